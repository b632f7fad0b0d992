"""Running in the background, opening while the store is away, and closing within a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support import Bench, lines, logged, run, seconds

from pyncette import Context, Pyncette, PyncetteContext, PyncetteException
from pyncette.errors import DeadlineExceededError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.memory import MemoryRepository

pytestmark = pytest.mark.every_poll


class Away:
    """A store that cannot be reached for the first attempts."""

    def __init__(self, attempts: int, error: type[Exception] = StoreUnavailableError) -> None:
        self.left = attempts
        self.attempts = 0
        self.error = error
        self.repository = MemoryRepository()

    @asynccontextmanager
    async def __call__(self, **configuration: Any) -> AsyncIterator[Any]:
        self.attempts += 1
        if self.left:
            self.left -= 1
            raise self.error("nobody listens there")
        async with self.repository(**configuration) as store:
            yield store


def test_opening_tries_again_while_the_store_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Away(2)
        async with Pyncette(store, open_timeout=5).create():
            assert store.attempts == 3
        [line] = lines(caplog)
        assert "tries again for up to 5 s" in line
        assert "nobody listens" in line

    run(main())


def test_opening_ends_after_its_timeout() -> None:
    async def main() -> None:
        store = Away(1_000)
        with pytest.raises(StoreUnavailableError, match="nobody listens"):
            async with Pyncette(store, open_timeout=seconds(0.12)).create():
                pass
        assert store.attempts >= 3

        once = Away(1_000)
        with pytest.raises(StoreUnavailableError, match="nobody listens"):
            async with Pyncette(once, open_timeout=0).create():
                pass
        assert once.attempts == 1

    run(main())


def test_opening_does_not_insist_on_what_is_misconfigured() -> None:
    async def main() -> None:
        store = Away(1_000, StoreMisconfiguredError)
        with pytest.raises(StoreMisconfiguredError):
            async with Pyncette(store, open_timeout=60).create():
                pass
        assert store.attempts == 1

    run(main())


@pytest.mark.parametrize("option", ["open_timeout", "shutdown_timeout"])
def test_bad_timeouts_are_refused(option: str) -> None:
    app: Any = Pyncette
    with pytest.raises(ValueError, match=f"{option} must not be negative, not"):
        app(**{option: -1})
    with pytest.raises(TypeError, match=f"{option} must be a timedelta or a number of seconds"):
        app(**{option: "10"})


def test_an_app_runs_in_the_background_of_a_block() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.app.running({"item": 1}):
            await bench.clock.settle()
            await bench.advance(3)
        assert bench.times == [1, 2, 3]
        await bench.advance(3)
        assert bench.times == [1, 2, 3]

    run(main())


def test_leaving_the_block_waits_for_running_tasks() -> None:
    async def main() -> None:
        bench = Bench()
        done = []
        begun, leaving = asyncio.Event(), asyncio.Event()

        @bench.app.task(interval=1)
        async def tick(context: Context) -> None:
            begun.set()
            await leaving.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            done.append(1)

        async with bench.app.running():
            await bench.clock.settle()
            await bench.advance(1)
            await begun.wait()
            leaving.set()
        assert done == [1]

    run(main())


def test_an_error_in_the_block_is_raised_and_stops_the_app() -> None:
    async def main() -> None:
        bench = Bench()
        with pytest.raises(KeyError):
            async with bench.app.running():
                raise KeyError
        async with bench.app.running():
            pass

    run(main())


def test_cancelling_the_block_cancels_what_runs() -> None:
    async def main() -> None:
        bench = Bench()
        ended = []

        @bench.app.task(interval=1)
        async def tick(context: Context) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async def served() -> None:
            async with bench.app.running():
                await asyncio.Event().wait()

        server = asyncio.create_task(served())
        await bench.clock.settle()
        await bench.advance(1)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        assert ended == ["cancelled"]

    run(main())


def test_a_loop_that_fails_is_said_and_raised(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        bench = Bench()

        async def broken(self: object, until_idle: bool) -> None:
            raise OSError("broken")

        monkeypatch.setattr("pyncette.engine.loop.Loop.run", broken)
        with pytest.raises(OSError, match="broken"):
            async with bench.app.running():
                await asyncio.sleep(0.01)
        assert logged(caplog, "no task runs any more")

    run(main())


class Held:
    """A task whose first run never ends by itself, and its lease: an hour."""

    def __init__(self) -> None:
        self.repository = MemoryRepository()
        self.starts: list[str] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def app(self, **options: Any) -> Pyncette:
        app = Pyncette(self.repository, **options)

        @app.task(interval=0.01, lease_duration=seconds(3600))
        async def tick(context: Context) -> None:
            self.starts.append(context.execution_id)
            if self.first.is_set():
                self.second.set()
            else:
                self.first.set()
                await asyncio.Event().wait()

        return app

    async def runs_elsewhere(self) -> None:
        async with self.app().running():
            await self.second.wait()
        assert self.starts[1] == self.starts[0]


def test_closing_cancels_what_runs_after_its_timeout_and_gives_it_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        held = Held()
        async with held.app(shutdown_timeout=0.05).running():
            await held.first.wait()
        assert logged(caplog, "waited for 0.05 s", "1 running", "given back: tick")
        await held.runs_elsewhere()

    run(main())


def test_closing_does_not_wait_for_its_timeout_if_nothing_runs() -> None:
    async def main() -> None:
        async with asyncio.timeout(5):
            async with Pyncette(shutdown_timeout=3600).running():
                pass

    run(main())


def test_what_runs_in_a_block_that_is_cancelled_is_given_back() -> None:
    async def main() -> None:
        held = Held()

        async def served() -> None:
            async with held.app().running():
                await asyncio.Event().wait()

        server = asyncio.create_task(served())
        await held.first.wait()
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        await held.runs_elsewhere()

    run(main())


def test_run_beside_a_running_block_is_refused() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.app.running() as context:
            with pytest.raises(PyncetteException, match="runs already"):
                await context.run()

    run(main())


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("shutdown_timeuot", "shutdown_timeout"), ("poll_intervall", "poll_interval")],
)
def test_misspelt_options_of_the_app_are_said(
    misspelt: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = Pyncette
    app(**{misspelt: 5})
    assert logged(caplog, f"There is no option '{misspelt}': did you mean '{meant}'?")


@pytest.mark.parametrize("option", ["lease_duration", "retry", "fast_forward"])
def test_options_of_tasks_that_are_given_to_the_app_are_said(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = Pyncette
    app(**{option: 5})
    assert logged(caplog, f"it is an option of a task, as in @app.task({option}=")


class Silent:
    """A store that is not opened while it is silent, or that answers no call."""

    def __init__(self, errors: int = 0) -> None:
        self.left = errors
        self.cancelled = 0

    @asynccontextmanager
    async def __call__(self, **configuration: Any) -> AsyncIterator[Any]:
        if self.left:
            self.left -= 1
            raise StoreUnavailableError("nobody listens there")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield None


@pytest.mark.parametrize("errors", [0, 1])
def test_no_try_to_open_a_silent_store_takes_longer_than_opening_may(errors: int) -> None:
    async def main() -> None:
        store = Silent(errors)
        with pytest.raises(StoreUnavailableError, match=r"not opened within 0\.") as told:
            async with Pyncette(store, open_timeout=seconds(0.6)).create():
                pass
        assert store.cancelled >= 1
        assert ("nobody listens there" in str(told.value)) == bool(errors)
        assert "another kind of server" in str(told.value)

    run(main())


def test_calls_are_not_bound_by_short_leases_before_a_lease_runs() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(interval=60, lease_duration=seconds(3))(bench.note)
        seen: list[float] = []

        @bench.app.fixture()
        async def noted(context: PyncetteContext) -> AsyncIterator[None]:
            seen.append(context._requests.store.deadline_s)
            yield

        async with bench.app.create():
            pass
        assert seen == [1.5]
        assert "longer leases" in str(DeadlineExceededError("now", seen[0]))
        assert "longer leases" not in str(DeadlineExceededError("now", 10))

    run(main())
