"""Timeouts, for each way in which a body may take its cancellation, and each order of events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final

import pytest
from tests.simulation.places import NOW, SECOND, Place, place_of

from pyncette.engine.timeouts import _Timeout, with_timeout

TIMEOUT_S: Final = 5


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


class Other(Exception):  # noqa: N818
    """Not a timeout."""


Sleep = Callable[[float], Awaitable[None]]


async def _returns(sleep: Sleep) -> None:
    await sleep(3)


async def _fails(sleep: Sleep) -> None:
    await sleep(3)
    raise Other


async def _waits(sleep: Sleep) -> None:
    await sleep(60)


async def _swallows(sleep: Sleep) -> None:
    try:
        await sleep(60)
    except asyncio.CancelledError:
        return


async def _fails_when_cancelled(sleep: Sleep) -> None:
    try:
        await sleep(60)
    except asyncio.CancelledError:
        raise Other from None


async def _cleans_up(sleep: Sleep) -> None:
    try:
        await sleep(60)
    finally:
        await sleep(4)


BODIES: Final = (_returns, _fails, _waits, _swallows, _fails_when_cancelled, _cleans_up)


def _expected(body: Any, cancelled_s: int | None) -> tuple[str, int]:
    """What comes out of a body that is cancelled from outside then, and when."""
    ends = {
        _returns: (3, "returns"),
        _fails: (3, "Other"),
        _waits: (5, "TimeoutError"),
        _swallows: (5, "TimeoutError"),
        _fails_when_cancelled: (5, "Other"),
        _cleans_up: (9, "TimeoutError"),
    }
    at, what = ends[body]
    if cancelled_s is None or cancelled_s >= at:
        return what, at
    by_outside = {_swallows: "returns", _fails_when_cancelled: "Other"}
    if body is _cleans_up and cancelled_s < TIMEOUT_S:
        # It cleans up for four seconds: the timeout may come meanwhile, and cancels that.
        return "CancelledError", min(cancelled_s + 4, TIMEOUT_S)
    return by_outside.get(body, "CancelledError"), cancelled_s


async def _outcome(
    place: Place, body: Any, cancelled_s: int | None
) -> tuple[str, int, asyncio.Task[None]]:
    async def handler(context: Any) -> None:
        await body(place.clock.sleep)

    limited = with_timeout(handler, timedelta(seconds=TIMEOUT_S), place.worker)
    context = SimpleNamespace(_execution=place.execution)
    runner = asyncio.ensure_future(limited(context))
    await place.clock.settle()
    for second in range(20):
        if second == cancelled_s:
            runner.cancel()
            await place.clock.settle()
        if runner.done():
            break
        await place.clock.advance(timedelta(seconds=1))
    assert runner.done()
    try:
        runner.result()
    except BaseException as error:
        return type(error).__name__, second, runner
    return "returns", second, runner


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("cancelled_s", [None, 1, 4, 6])
def test_each_body_ends_as_its_timeout_or_what_cancels_it_says(
    body: Any, cancelled_s: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with place_of() as place:
            what, at, runner = await _outcome(place, body, cancelled_s)
            assert (what, at) == _expected(body, cancelled_s)
            assert place.execution.rarely().deadline == NOW + TIMEOUT_S * SECOND
            if what in ("returns", "TimeoutError"):
                # Of the timeout's own cancellation nothing is left.
                outside = int(cancelled_s is not None and cancelled_s <= at)
                assert runner.cancelling() == outside
            other = [entry for entry in caplog.records if "raised another" in entry.getMessage()]
            ran_out = at >= TIMEOUT_S
            assert len(other) == (what == "Other" and ran_out)
            before = len(caplog.records)
            await place.clock.advance(timedelta(seconds=600))
            assert len(caplog.records) == before  # nothing cancels, and nothing is said any more

    _run(main)


@pytest.mark.parametrize("stack", [[], ["in the middle\n"]])
def test_a_timeout_tells_where_a_function_stood_if_it_ran_in_a_thread(stack: list[str]) -> None:
    async def main() -> None:
        async with place_of() as place:
            context = SimpleNamespace(_execution=place.execution)
            limit = _Timeout(place.worker, context, timedelta(seconds=1))
            await limit.__aenter__()
            limit._stack, limit._expired = stack, True
            with pytest.raises(TimeoutError) as raised:
                await limit.__aexit__(None, None, None)
            notes = getattr(raised.value, "__notes__", [])
            assert bool(notes) is bool(stack)
            assert notes[1:] == ["in the middle"] * bool(stack)

    _run(main)


def test_a_timer_that_ends_with_its_body_cancels_nothing() -> None:
    async def main() -> None:
        async with place_of() as place:

            async def body(context: Any) -> None:
                await place.clock.sleep(TIMEOUT_S)

            limited = with_timeout(body, timedelta(seconds=TIMEOUT_S), place.worker)
            runner = asyncio.ensure_future(limited(SimpleNamespace(_execution=place.execution)))
            await place.clock.advance(timedelta(seconds=60))
            assert runner.done()
            assert runner.exception() is None

    _run(main)


def test_a_body_that_goes_on_is_said_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with place_of() as place:
            goes_on = asyncio.Event()

            async def body(context: Any) -> None:
                while not goes_on.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await goes_on.wait()

            limited = with_timeout(body, timedelta(seconds=TIMEOUT_S), place.worker)
            runner = asyncio.ensure_future(limited(SimpleNamespace(_execution=place.execution)))
            times: list[int] = []
            for second in range(0, 30_000, 5):
                said = [entry for entry in caplog.records if "still runs" in entry.getMessage()]
                times += [second] * (len(said) - len(times))
                await place.clock.advance(timedelta(seconds=5))
            pauses = [later - sooner for sooner, later in pairwise([TIMEOUT_S, *times])]
            assert pauses[:9] == [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560]
            assert set(pauses[9:]) == {3_600}
            goes_on.set()
            with pytest.raises(TimeoutError):
                await runner

    _run(main)
