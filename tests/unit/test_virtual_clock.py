"""`VirtualClock`: time moves at once, in order, and only when nothing is left to do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyncette.testing import VirtualClock

START = datetime(2026, 3, 28, 23, 0, tzinfo=UTC)

Main = Coroutine[Any, Any, Any]


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def run_on_asyncio(main: Main) -> Any:
    return asyncio.run(main)


def run_on_uvloop(main: Main) -> Any:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@pytest.fixture(params=[run_on_asyncio, run_on_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    runner: Callable[[Main], Any] = request.param
    return runner


class Diary:
    """Who woke when, in seconds since the start of the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.entries: list[tuple[str, float]] = []

    def note(self, name: str) -> None:
        self.entries.append((name, self.clock.monotonic()))

    async def sleeper(self, name: str, *naps: float) -> None:
        for nap in naps:
            await self.clock.sleep(nap)
            self.note(name)


def test_it_stands_where_it_was_started() -> None:
    clock = VirtualClock(START)
    assert clock.now() == START
    assert clock.microseconds() == 1_774_738_800_000_000
    assert clock.monotonic() == 0.0


def test_it_starts_at_the_same_instant_on_every_run() -> None:
    assert VirtualClock().now() == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_start_in_another_zone_is_told_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    now = VirtualClock(datetime(2026, 3, 29, 1, 0, tzinfo=east)).now()
    assert now == START
    assert now.tzinfo is UTC


def test_a_naive_start_is_refused() -> None:
    with pytest.raises(ValueError, match="is naive"):
        VirtualClock(datetime(2026, 1, 1))  # noqa: DTZ001


def test_all_who_come_due_wake_in_order_each_at_its_instant(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        diary = Diary(clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(diary.sleeper("late", 3))
            tasks.create_task(diary.sleeper("early", 0.25))
            tasks.create_task(diary.sleeper("middle", 2))
            await clock.advance(seconds(10))
            assert diary.entries == [("early", 0.25), ("middle", 2.0), ("late", 3.0)]
            assert clock.now() == START + seconds(10)
            assert clock.monotonic() == 10.0

    run(main())


def test_sleepers_of_one_instant_wake_in_the_order_in_which_they_went_to_sleep(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(diary.sleeper("first", 2))
            tasks.create_task(diary.sleeper("second", 1, 1))
            tasks.create_task(diary.sleeper("third", 2))
            await clock.advance(seconds(2))
        assert [name for name, at in diary.entries if at == 2.0] == ["first", "third", "second"]

    run(main())


def test_sleeps_that_begin_on_the_way_are_honoured(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)

        async def parent() -> None:
            await clock.sleep(1)
            async with asyncio.TaskGroup() as children:
                children.create_task(diary.sleeper("child", 0.5, 0.5))
                children.create_task(diary.sleeper("sibling", 0.75, 99))

        task = asyncio.create_task(parent())
        await clock.advance(seconds(2))
        assert diary.entries == [("child", 1.5), ("sibling", 1.75), ("child", 2.0)]
        task.cancel()

    run(main())


def test_one_who_comes_due_at_the_very_end_wakes_and_one_just_after_does_not() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(diary.sleeper("at", 1))
            tasks.create_task(diary.sleeper("after", 1.000001))
            await clock.advance(seconds(1))
            assert diary.entries == [("at", 1.0)]
            await clock.advance(timedelta(microseconds=1))
            assert diary.entries[1:] == [("after", 1.000001)]

    asyncio.run(main())


def test_all_work_of_an_instant_is_done_before_time_moves_on(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)

        async def chain() -> None:
            await clock.sleep(1)
            for _ in range(40):
                await asyncio.sleep(0)
            diary.note("chain")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(chain())
            tasks.create_task(diary.sleeper("next", 1.000001))
            await clock.advance(seconds(5))
        assert diary.entries == [("chain", 1.0), ("next", 1.000001)]

    run(main())


def test_work_of_any_length_that_uses_the_clock_is_seen(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)

        async def many_quick_calls() -> None:
            for _ in range(20):
                with clock.hold():
                    pass
                for _ in range(10):
                    await asyncio.sleep(0)
            diary.note("done")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(many_quick_calls())
            tasks.create_task(diary.sleeper("next", 0.000001))
            await clock.advance(seconds(1))
        assert diary.entries == [("done", 0.0), ("next", 0.000001)]

    run(main())


def test_a_task_that_was_only_just_created_is_not_overtaken(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        task = asyncio.create_task(diary.sleeper("new", 1))
        await clock.advance(seconds(1))
        assert diary.entries == [("new", 1.0)]
        await task

    run(main())


def test_settling_runs_what_can_run_and_moves_nothing(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        diary = Diary(clock)

        async def work() -> None:
            for _ in range(30):
                await clock.sleep(0)
            diary.note("work")
            await diary.sleeper("sleep", 0.000001)

        task = asyncio.create_task(work())
        await clock.settle()
        assert diary.entries == [("work", 0.0)]
        assert clock.now() == START
        task.cancel()

    run(main())


@pytest.mark.parametrize("nothing", [0, 0.0, -1, -1e300])
def test_sleeping_for_nothing_only_lets_others_run(nothing: float) -> None:
    async def main() -> None:
        clock = VirtualClock()
        seen: list[str] = []
        asyncio.get_running_loop().call_soon(seen.append, "another")
        await clock.sleep(nothing)
        assert seen == ["another"]
        assert clock.monotonic() == 0.0

    asyncio.run(main())


def test_the_shortest_sleep_lasts_a_microsecond_so_that_time_moves() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        task = asyncio.create_task(diary.sleeper("short", 1e-12))
        await clock.advance(seconds(1))
        assert diary.entries == [("short", 0.000001)]
        await task

    asyncio.run(main())


def test_a_sleep_without_end_never_wakes() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        task = asyncio.create_task(diary.sleeper("endless", float("inf")))
        await clock.advance(timedelta(days=365_000))
        assert diary.entries == []
        task.cancel()

    asyncio.run(main())


def test_three_thousand_sleeps_of_a_tenth_of_a_second_are_three_hundred_seconds() -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        task = asyncio.create_task(Diary(clock).sleeper("tick", *[0.1] * 3_000))
        for _ in range(300):
            await clock.advance(seconds(1))
        assert task.done()
        assert clock.now() == START + seconds(300)

    asyncio.run(main())


@settings(deadline=None)
@given(st.integers(0, 2**52))
def test_a_sleep_until_an_instant_ends_at_that_very_instant(distance: int) -> None:
    async def main() -> int:
        clock = VirtualClock(datetime(1990, 1, 1, tzinfo=UTC))
        due = clock.microseconds() + distance
        woken = []

        async def wait() -> None:
            await clock.sleep((due - clock.microseconds()) / 1_000_000)
            woken.append(clock.microseconds())

        task = asyncio.create_task(wait())
        await clock.advance(timedelta(microseconds=distance))
        await task
        return woken[0] - due

    assert asyncio.run(main()) == 0


def test_a_cancelled_sleeper_leaves_no_trace() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        tasks = [asyncio.create_task(diary.sleeper(str(n), 1)) for n in range(3)]
        await clock.settle()
        tasks[1].cancel()
        await clock.settle()
        assert len(clock._sleepers) == 2
        await clock.advance(seconds(1))
        assert diary.entries == [("0", 1.0), ("2", 1.0)]
        assert clock._sleepers == []

    asyncio.run(main())


def test_a_sleep_that_is_abandoned_leaves_no_trace() -> None:
    async def main() -> None:
        clock = VirtualClock()
        sleep = clock.sleep(1)
        sleep.send(None)
        sleep.close()
        assert clock._sleepers == []

    asyncio.run(main())


def test_one_that_is_cancelled_by_another_of_the_same_instant_does_not_disturb_the_rest() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)

        async def killer() -> None:
            await clock.sleep(1)
            victim.cancel()

        task = asyncio.create_task(killer())
        await clock.settle()
        victim = asyncio.create_task(diary.sleeper("victim", 1))
        rest = asyncio.create_task(diary.sleeper("rest", 1))
        await clock.advance(seconds(2))
        assert diary.entries == [("rest", 1.0)]
        assert victim.cancelled()
        await asyncio.gather(task, rest)

    asyncio.run(main())


def test_time_stands_still_while_a_thread_works_under_a_hold(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        go = threading.Event()

        async def ask_the_store() -> None:
            await clock.sleep(1)
            with clock.hold():
                asyncio.get_running_loop().call_later(0.01, go.set)
                await asyncio.to_thread(go.wait)
                diary.note("answer")
            await diary.sleeper("afterwards", 0.5)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask_the_store())
            tasks.create_task(diary.sleeper("next", 2))
            await clock.advance(seconds(2))
        assert diary.entries == [("answer", 1.0), ("afterwards", 1.5), ("next", 2.0)]

    run(main())


def test_a_hold_may_be_taken_and_released_by_a_thread(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        held, go = threading.Event(), threading.Event()

        def work() -> None:
            with clock.hold():
                held.set()
                go.wait()
                diary.note("thread")

        thread = threading.Thread(target=work)
        thread.start()
        held.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(diary.sleeper("next", 1))
            asyncio.get_running_loop().call_later(0.01, go.set)
            await clock.advance(seconds(1))
        thread.join()
        assert diary.entries == [("thread", 0.0), ("next", 1.0)]

    run(main())


def test_time_moves_only_when_the_last_of_overlapping_holds_is_released() -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)

        async def hold(name: str, released: asyncio.Event) -> None:
            with clock.hold(), clock.hold():
                await released.wait()
                diary.note(name)

        first, second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hold("first", first))
            tasks.create_task(hold("second", second))
            tasks.create_task(diary.sleeper("next", 1))
            loop.call_later(0.001, first.set)
            loop.call_later(0.01, second.set)
            await clock.advance(seconds(1))
        assert diary.entries == [("first", 0.0), ("second", 0.0), ("next", 1.0)]

    asyncio.run(main())


def test_a_hold_is_released_when_its_block_fails() -> None:
    async def main() -> None:
        clock = VirtualClock()
        with pytest.raises(ZeroDivisionError), clock.hold():
            raise ZeroDivisionError
        await clock.advance(seconds(1))

    asyncio.run(main())


def test_a_hold_that_is_never_released_is_an_error_that_says_so() -> None:
    async def main() -> None:
        clock = VirtualClock(START, patience=timedelta(milliseconds=5))

        async def sleep_inside() -> None:
            with clock.hold():
                await clock.sleep(1)

        task = asyncio.create_task(sleep_inside())
        with pytest.raises(RuntimeError, match=r"held for 0:00:00.005000: .* inside"):
            await clock.advance(seconds(2))
        task.cancel()
        await asyncio.wait([task])
        await clock.advance(seconds(2))
        assert clock.monotonic() == 2.0

    asyncio.run(main())


def test_a_hold_released_just_as_the_advance_is_cancelled_is_harmless() -> None:
    async def main() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
        clock = VirtualClock()
        hold = clock.hold()
        hold.__enter__()
        task = asyncio.create_task(clock.advance(seconds(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert clock._released is not None
        hold.__exit__(None, None, None)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await clock.advance(seconds(1))
        assert clock.monotonic() == 1.0
        assert failures == []

    asyncio.run(main())


def test_what_waits_in_a_socket_of_this_process_is_read_before_time_moves(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock()
        diary = Diary(clock)
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)

        async def talk() -> None:
            await clock.sleep(1)
            theirs.send(b"!")
            await over.wait()

        async def listen() -> None:
            await loop.sock_recv(ours, 1)
            diary.note("heard")

        with ours, theirs:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(talk())
                tasks.create_task(listen())
                tasks.create_task(diary.sleeper("next", 1.000001))
                await clock.advance(seconds(2))
                over.set()
        assert diary.entries == [("heard", 1.0), ("next", 1.000001)]

    run(main())


def test_work_at_one_instant_that_does_not_end_is_an_error_that_names_the_instant(
    run: Callable[[Main], Any],
) -> None:
    async def main() -> None:
        clock = VirtualClock(START, passes_max=500)

        async def spin() -> None:
            await clock.sleep(1)
            while True:
                with clock.hold():
                    await clock.sleep(0)

        task = asyncio.create_task(spin())
        with pytest.raises(RuntimeError, match=r"work at 2026-03-28 23:00:01\+00:00 does not end"):
            await clock.advance(seconds(2))
        assert clock.now() == START + seconds(1)
        task.cancel()

    run(main())


def test_much_work_at_many_instants_is_not_taken_for_endless() -> None:
    async def main() -> None:
        clock = VirtualClock(passes_max=50)
        task = asyncio.create_task(Diary(clock).sleeper("busy", *[0.001] * 500))
        await clock.advance(seconds(1))
        assert task.done()

    asyncio.run(main())


def test_moving_a_clock_that_is_being_moved_is_an_error() -> None:
    async def main() -> None:
        clock = VirtualClock()

        async def meddle() -> None:
            await clock.sleep(1)
            for move in (clock.advance(seconds(1)), clock.settle()):
                with pytest.raises(RuntimeError, match="already being moved"):
                    await move

        task = asyncio.create_task(meddle())
        await clock.advance(seconds(3))
        await task
        assert clock.monotonic() == 3.0

    asyncio.run(main())


def test_time_does_not_go_back() -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        with pytest.raises(ValueError, match="forward only"):
            await clock.advance(timedelta(microseconds=-1))
        with pytest.raises(ValueError, match="lies before"):
            await clock.advance_to(START - seconds(1))
        assert clock.now() == START

    asyncio.run(main())


def test_it_can_be_moved_to_an_instant() -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        diary = Diary(clock)
        task = asyncio.create_task(diary.sleeper("noon", 3_600))
        await clock.advance_to(datetime(2026, 3, 29, 3, 0, tzinfo=timezone(timedelta(hours=2))))
        assert diary.entries == [("noon", 3_600.0)]
        assert clock.now() == START + timedelta(hours=2)
        with pytest.raises(ValueError, match="is naive"):
            await clock.advance_to(datetime(2027, 1, 1))  # noqa: DTZ001
        await task

    asyncio.run(main())


def test_it_refuses_to_leave_the_calendar_before_anything_moves() -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        with pytest.raises(OverflowError):
            await clock.advance(timedelta(days=3_000_000))
        assert clock.now() == START
        await clock.settle()

    asyncio.run(main())


def test_one_clock_serves_several_event_loops_in_turn() -> None:
    clock = VirtualClock()

    async def main() -> None:
        task = asyncio.create_task(clock.sleep(5))
        await clock.advance(seconds(1))
        task.cancel()

    asyncio.run(main())
    asyncio.run(main())
    assert clock.monotonic() == 2.0
    assert clock._sleepers == []
