"""The smaller parts of the engine, each against every small input, or every small history.

What they should do is said a second time here, in another way: as a plain table, or as the simplest
program that does it.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from random import Random
from typing import Any, Final

import pytest
from tests.simulation.places import place_of
from tests.simulation.workers import EPOCH, at, every

from pyncette import Context, GiveUp, Heartbeat, Retry, RetryIn, Skip
from pyncette.engine.alarm import Alarm
from pyncette.engine.background import Background, is_cancelled
from pyncette.engine.backlog import BACKLOG_AGE_MIN, Backlogs, Waits
from pyncette.engine.failures import MANY_FAILURES, Attempt, failure_of
from pyncette.engine.heartbeats import beat_plan
from pyncette.engine.occurrences import overdue_count
from pyncette.engine.polling import BACKOFF_INITIAL, NEVER, PolledSource, Share, Sources
from pyncette.engine.rules import Failure, Policy
from pyncette.engine.steering import GroupPause, covering, pause_identity, pause_record, read_pause
from pyncette.engine.upcoming import (
    UPCOMING_MAX,
    after_current,
    checked_number,
    with_current,
)
from pyncette.model import FailureMode, Outcome
from pyncette.schedule import Cron, Every, Schedule, dumps
from pyncette.store import Write
from pyncette.store.record import (
    ANY,
    LATEST_INSTANT,
    STATIC_GROUP,
    Pause,
    Pending,
    Progress,
    Reading,
    Record,
    State,
    dump_progress,
)
from pyncette.task import PartitionedTask, Task
from pyncette.testing.clocks import VirtualClock

SECOND: Final = 1_000_000
EVERY: Final = every(3)


def _anchored(microseconds: int) -> Every:
    return Every(timedelta(microseconds=microseconds), anchor=EPOCH)


async def _body(context: Context) -> None: ...


def _template(name: str, **options: Any) -> Task:
    return Task(name=name, func=_body, dynamic=True, **options)


# What is behind its schedule.


def test_the_record_that_is_furthest_behind_is_told_until_it_has_caught_up() -> None:
    task, schedule = _template("a"), every(20 * SECOND)
    now = 1_000 * SECOND
    ages = [0, BACKLOG_AGE_MIN - 1, BACKLOG_AGE_MIN, BACKLOG_AGE_MIN + 20 * SECOND]
    notes = list(product("xy", ages))
    for history in product(notes, repeat=3):
        told: list[tuple[int, int]] = []
        backlogs = Backlogs(VirtualClock(), lambda _, __, *what, told=told: told.append(what))
        furthest: tuple[str, int] | None = None
        expected: list[tuple[int, int]] = []
        for key, age in history:
            backlogs.note(task, ("a", key), schedule, now - age, now)
            if age < BACKLOG_AGE_MIN:
                if furthest is not None and furthest[0] == key:
                    furthest = None
                    expected.append((0, 0))
            elif furthest is None or furthest[0] == key or age > furthest[1]:
                furthest = (key, age)
                expected.append((age // (20 * SECOND) + 1, age))
            assert (task in backlogs.behind) is (furthest is not None)
        assert told == expected


def test_the_longest_wait_of_a_task_is_told_when_it_has_changed() -> None:
    told: list[tuple[Any, int]] = []
    waits = Waits(lambda task, age: told.append((task, age)))
    one, other = (Task(name=name, func=_body, dynamic=True) for name in ("one", "other"))
    for soonest, now, expected in (
        ([(one, 90), (one, 70), (one, 80), (other, 120)], 100, [(one, 30), (other, 0)]),
        ([(one, 70), (other, 120)], 100, []),
        ([(one, 70), (other, 120)], 130, [(one, 60), (other, 10)]),
        ([(other, 120)], 130, [(one, 0)]),
        ([(other, 120)], 130, []),
    ):
        told.clear()
        waits.note(soonest, now)
        assert told == expected


def test_one_late_occurrence_is_no_backlog() -> None:
    told: list[Any] = []
    backlogs = Backlogs(VirtualClock(), lambda *what: told.append(what))
    for schedule, count in ((every(90 * SECOND), 0), (every(80 * SECOND), 1), (at(5), 0)):
        backlogs.note(_template("a"), ("a", "x"), schedule, 10 * SECOND, 90 * SECOND)
        assert len(told) == count
        told.clear()


def test_warnings_of_a_backlog_come_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main() -> list[float]:
        clock = VirtualClock()
        backlogs = Backlogs(clock, lambda *_: None)
        times: list[float] = []
        for _ in range(8 * 360):
            backlogs.note(_template_a, ("a", "x"), every(SECOND), 0, 100 * SECOND)
            if len(caplog.records) > len(times):
                times.append(clock.monotonic())
            await clock.advance(timedelta(seconds=10))
        return times

    _template_a = _template("a")
    times = asyncio.run(main())
    assert times[0] == 0
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[:8] == [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]


@pytest.mark.parametrize("schedule", [EVERY, every(7), at(20), _anchored(5) | _anchored(8)])
def test_overdue_occurrences_are_counted_as_they_come(schedule: Schedule) -> None:
    for now in range(20, 90):
        planned, count = schedule.first(0) or 0, 0
        instant: int | None = planned
        while instant is not None and instant <= now:
            instant, count = schedule.following(instant), count + 1
        assert overdue_count(schedule, planned, now) == count


def test_beyond_a_thousand_they_are_estimated() -> None:
    schedule = Cron("* * * * *")
    minute = 60 * SECOND
    for count in (999, 1_000, 1_001, 5_000):
        now = minute * (count - 1)
        assert abs(overdue_count(schedule, 0, now) - count) <= count // 500


# Internal tasks.


def test_a_worker_is_being_ended_when_all_its_internal_tasks_are_cancelled() -> None:
    async def main() -> None:
        background = Background()
        assert not background.is_cancelled()
        tasks = [background.start(asyncio.sleep(60), name) for name in "ab"]
        await asyncio.sleep(0)
        assert not background.is_cancelled()
        for task, ends in zip(tasks, (False, True), strict=True):
            task.cancel()
            assert background.is_cancelled() is ends
        await asyncio.wait(tasks)
        assert not background.is_cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_clock_that_moves_by_hand_is_told_apart_what_is_due_and_what_is_only_looked_for(
    by_hand: bool,
) -> None:
    asked: list[tuple[str, float]] = []

    class Noting(VirtualClock):
        def moves_by_hand(self) -> bool:
            return by_hand

        async def sleep(self, seconds: float) -> None:
            asked.append(("sleep", seconds))
            await asyncio.sleep(60)

        async def sleep_until_poll(self, seconds: float) -> None:
            asked.append(("until poll", seconds))
            await asyncio.sleep(60)

    async def main() -> None:
        alarm = Alarm(Noting(), Background())
        waiting = asyncio.ensure_future(alarm.wait_for(9 * SECOND, 4 * SECOND))
        for _ in range(3):
            await asyncio.sleep(0)
        expected = {("until poll", 4.0), ("sleep", 9.0)} if by_hand else {("sleep", 4.0)}
        assert set(asked) == expected
        alarm.ring()
        await waiting
        alarm.close()

    asyncio.run(main())


def test_only_a_cancellation_that_was_requested_is_one() -> None:
    found: list[tuple[str, bool]] = []

    async def main() -> None:
        found.append(("plain", is_cancelled()))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            found.append(("cancelled", is_cancelled()))
        task.uncancel()
        found.append(("taken back", is_cancelled()))
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        try:
            await other
        except asyncio.CancelledError:
            found.append(("another", is_cancelled()))
        asyncio.get_running_loop().call_soon(lambda: found.append(("no task", is_cancelled())))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert found == [
        ("plain", False),
        ("cancelled", True),
        ("taken back", False),
        ("another", False),
        ("no task", False),
    ]


@pytest.mark.parametrize("awaited", [False, True])
def test_an_internal_task_that_fails_is_said_unless_its_result_is_taken(
    awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def waits() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        background = Background()
        failing = background.start(fails(), "failing", awaited)
        waiting = background.start(waits(), "waiting", awaited)
        with pytest.raises(ValueError, match="no"):
            await failing
        await background.close()
        assert waiting.cancelled()
        assert not background._tasks

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == (
        [] if awaited else ["failing failed"]
    )


# What an exception means.

RETRY: Final = Retry(
    attempts=3,
    initial=timedelta(seconds=1),
    maximum=timedelta(seconds=60),
    factor=2,
    jitter=0,
    within=timedelta(seconds=10),
    on=(OSError, GiveUp, RetryIn, Skip),
)


def _attempt(
    retry: Retry | None,
    mode: FailureMode,
    at_most_once: bool,
    number: int = 1,
    now: int = 0,
) -> Attempt:
    progress = Progress(0, "old", failures=number - 1, error="e" if number > 1 else None)
    record = Record(
        *("g", "k", 15 * SECOND, 5, "t", State.RUNNING, 1),
        *(dumps(every(3)), "1 {}", dump_progress(progress)),
    )
    policy = Policy(
        failure_mode=mode,
        attempts=None if retry is None else retry.attempts,
        within=None if retry is None else 10 * SECOND,
    )
    reading = Reading(record, every(3), progress)
    return Attempt(reading, retry, policy, at_most_once, "a", "then", now)


def test_each_exception_means_what_the_policy_says() -> None:
    errors: list[BaseException] = [
        OSError("no"),
        ValueError("no"),
        Skip("no"),
        GiveUp("no"),
        RetryIn(timedelta(seconds=5)),
        RetryIn(timedelta(seconds=5), free=True),
        asyncio.CancelledError(),
    ]
    for error, retry, mode, once, number, now in product(
        errors, (None, RETRY), FailureMode, (False, True), (1, 2, 3), (0, 5, 6, 9)
    ):
        failure = failure_of(error, _attempt(retry, mode, once, number, now * SECOND)).failure
        found = (failure.outcome, failure.delay, failure.final, failure.free)
        last = retry is not None and number == 3
        late = retry is not None and now + 5 > 10
        backoff = 2 ** (number - 1)
        final = (None, None, True, False)
        if isinstance(error, Skip):
            expected: tuple[Any, ...] = (Outcome.SKIPPED, None, False, False)
        elif once:
            expected = (None, None, False, False)
        elif isinstance(error, RetryIn):
            expected = (Outcome.POSTPONED, 5 * SECOND, False, error.free)
            if late or (last and not error.free):
                expected = final
        elif isinstance(error, GiveUp):
            expected = final
        elif retry is None:
            expected = (None, None, False, False)
        elif last or not isinstance(error, OSError) or now + backoff > 10:
            expected = final
        else:
            expected = (None, backoff * SECOND, False, False)
        assert found == expected, (error, retry, mode, once, number, now)
        assert failure.error.startswith(type(error).__name__)
        plain = not isinstance(error, (Skip, RetryIn)) or found == final
        assert (failure.traceback is not None) is (plain and not once), (error, found)


class Odd(Retry):
    """A policy of a user with a delay of its own."""

    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        if isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, FileExistsError):
            return timedelta(seconds=-1)
        if isinstance(error, PermissionError):
            raise ValueError("a defect")
        return timedelta(seconds=3)


class Unjudgeable(Retry):
    """A policy that cannot be asked whether it covers an exception."""

    def covers(self, error: BaseException) -> bool:
        raise ValueError("a defect")


def test_what_asks_to_be_run_again_at_once_waits_where_nothing_ends_its_attempts() -> None:
    for delay_s, retry, free in product((0.0, 0.5, 1.0, 2.0), (None, RETRY), (False, True)):
        error = RetryIn(timedelta(seconds=delay_s), free=free)
        found = failure_of(error, _attempt(retry, FailureMode.NONE, False)).failure
        shortest_s = 1.0 if retry is None or free else 0.0
        assert found.delay == round(max(delay_s, shortest_s) * SECOND)


class Nameless(Exception):  # noqa: N818
    """An exception of which nobody can ask what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ValueError("a defect")


@pytest.mark.parametrize("retry", [None, RETRY])
def test_an_exception_that_cannot_be_judged_is_an_ordinary_failure(retry: Retry | None) -> None:
    for number, once in product((1, 2, 3), (False, True)):
        attempt = _attempt(retry, FailureMode.NONE, once, number)
        found = failure_of(Nameless("no"), attempt).failure
        if retry is None or once:
            assert found == Failure("Nameless")
        elif number == 3:
            assert found == Failure("Nameless", final=True)
        else:
            assert found == Failure("Nameless", delay=number * SECOND)


def test_a_policy_that_fails_is_taken_for_a_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"attempts": 3, "initial": timedelta(seconds=1), "jitter": 0}
    odd, unjudgeable = Odd(**options), Unjudgeable(**options)
    for retry, error, delay in (
        (odd, OSError("no"), 3 * SECOND),
        (odd, FileNotFoundError("no"), None),
        (odd, FileExistsError("no"), SECOND),
        (odd, PermissionError("no"), SECOND),
        (unjudgeable, OSError("no"), SECOND),
    ):
        found = failure_of(error, _attempt(retry, FailureMode.NONE, False)).failure
        assert (found.delay, found.final) == (delay, delay is None), error
    for number, final in ((1, False), (2, False), (3, True)):
        attempt = _attempt(unjudgeable, FailureMode.NONE, False, number)
        assert failure_of(OSError("no"), attempt).failure.final is final
    once = _attempt(unjudgeable, FailureMode.NONE, True)
    assert failure_of(OSError("no"), once).failure.final is False
    bad = RetryIn(timedelta(seconds=1))
    bad.delay = "never"  # type: ignore[assignment]
    assert failure_of(bad, _attempt(None, FailureMode.NONE, False)).failure == Failure("RetryIn")
    assert failure_of(bad, _attempt(odd, FailureMode.NONE, True)).failure.final is False
    assert failure_of(bad, _attempt(odd, FailureMode.NONE, False)).failure.delay == SECOND


@pytest.mark.parametrize("mode", [FailureMode.NONE, FailureMode.UNLOCK, FailureMode.COMMIT])
def test_what_fails_again_and_again_without_a_policy_is_said_at_each_doubling(
    mode: FailureMode, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for number in range(1, 70):
        caplog.clear()
        failure_of(ValueError("no"), _attempt(None, mode, False, number))
        if any("has failed" in record.getMessage() for record in caplog.records):
            said.append(number)
    assert said == ([] if mode is FailureMode.COMMIT else [MANY_FAILURES, 16, 32, 64])


def test_what_follows_a_failure_is_said() -> None:
    judged = failure_of(ValueError("no"), _attempt(None, FailureMode.NONE, False))
    assert judged.what_follows == "it is retried when its lease ends at 1970-01-01T00:00:15+00:00"
    for free, retry, of_what in (
        (False, None, "without a limit"),
        (True, None, "that are not counted"),
        (True, RETRY, "that are not counted"),
    ):
        soon = RetryIn(timedelta(0), free=free)
        judged = failure_of(soon, _attempt(retry, FailureMode.NONE, False))
        assert f"which is too soon for attempts {of_what}" in judged.what_follows


# What follows.


def test_as_many_occurrences_are_shown_as_a_page_has() -> None:
    for number in (1, UPCOMING_MAX):
        assert checked_number(number) == number
    for number in (0, -1, UPCOMING_MAX + 1):
        with pytest.raises(ValueError, match="n must be"):
            checked_number(number)


def test_occurrences_that_are_hours_apart_follow_each_other() -> None:
    hour = 3_600 * SECOND
    schedule, task = every(hour), _template("a")
    record = Record(
        *("a", "k", 9, 5, None, State.SCHEDULED, 0),
        *(dumps(schedule), "1 {}", dump_progress(Progress(9, "old"))),
    )
    assert after_current(task, record, Policy(), 10, 3) == [9 + hour, 9 + 2 * hour, 9 + 3 * hour]
    # What was missed is followed by what lies ahead.
    late = Policy(fast_forward=True)
    now = 9 + 5 * hour + 1
    assert after_current(task, record, late, now, 2) == [9 + 6 * hour, 9 + 7 * hour]


# What is claimed from next.


class Table:
    """What the table of sources should do, without a heap."""

    def __init__(self) -> None:
        self.next: dict[tuple[str, str | None], int] = {}

    def due(self, now: int) -> list[tuple[str, str | None]]:
        found = [identity for identity, instant in self.next.items() if instant <= now]
        found.sort(key=lambda identity: self.next[identity])
        for identity in found:
            self.next[identity] = NEVER
        return found


def _identity(source: PolledSource) -> tuple[str, str | None]:
    return source.group, source.key


@pytest.mark.parametrize("seed", range(40))
def test_sources_are_due_as_a_plain_table_says(seed: int) -> None:
    random = Random(seed)
    tasks = [_template(name) for name in "abc"]
    tasks.append(Task(name="s", func=_body, interval=timedelta(seconds=1)))
    tasks.append(_template("l", limit=2))
    paused: set[str] = set()
    sources, table, now = Sources(), Table(), 0
    known: list[PolledSource] = []

    def refresh() -> None:
        declared = [task for task in tasks if random.random() < 0.9]
        sources.refresh(declared, paused.__contains__)
        active = [task for task in declared if task.enabled]
        identities = {
            (group, None if task.dynamic else task.key): task
            for task in active
            for group in task.groups()
            if group not in paused
        }
        for identity in [*table.next]:
            if identity not in identities:
                del table.next[identity]
        for identity in identities:
            table.next.setdefault(identity, 0)
        assert sources.limited is any(task.limit is not None for task in declared)
        assert {_identity(source) for source in sources.all()} == set(identities)
        known[:] = sources.all()

    refresh()
    for _ in range(300):
        now += random.choice((0, 0, 1, 5))
        match random.randrange(8):
            case 0:
                refresh()
            case 1:
                paused.symmetric_difference_update({random.choice("abc")})
            case 2:
                found = [_identity(source) for source in sources.due(now)]
                assert sorted(found, key=str) == sorted(table.due(now), key=str)
            case 3 | 4 | 5 if known:
                source = random.choice(known)
                instant = random.choice((now, now + 3, now + 50, NEVER))
                sooner = instant < table.next[_identity(source)]
                assert sources.ask_by(source, instant) is sooner
                if sooner:
                    table.next[_identity(source)] = instant
            case 6 if known:
                source = random.choice(known)
                sources.hold(source)
                if random.random() < 0.5:
                    refresh()
                sources.release(source.task, now)
                if _identity(source) in table.next:
                    table.next[_identity(source)] = min(table.next[_identity(source)], now)
                assert source.task not in sources.held
            case _:
                pass
        assert sources.soonest() == min(table.next.values(), default=NEVER)
        assert len(sources._heap) <= 2 * len(table.next) + 64 + 1
        for source in known:
            assert sources.find(source.group, source.key or "any") is source
    assert sources.find("a", "x") is sources.find("a", "y")
    assert sources.find(STATIC_GROUP, "t") is None


def test_a_source_that_yields_too_little_is_left_alone_ever_longer() -> None:
    sources, task = Sources(), _template("a")
    sources.refresh([task])
    [source] = sources.due(0)
    backoffs = []
    for _ in range(6):
        sources.hold_off(source, 100, 7 * BACKOFF_INITIAL)
        assert source.next_ask == 100 + source.backoff
        backoffs.append(source.backoff // BACKOFF_INITIAL)
        assert sources.due(10**9) == [source]
    assert backoffs == [1, 2, 4, 7, 7, 7]


def test_a_task_that_is_declared_anew_or_disabled_is_not_asked_for_what_it_was() -> None:
    sources, task = Sources(), _template("a")
    sources.refresh([task])
    task.enabled = False
    assert sources.due(1) == []
    task.enabled = True
    other = _template("a")
    [before] = sources.all()
    sources.refresh([other])
    [after] = sources.due(1)
    assert after is not before
    assert after.task is other
    sources.refresh([other])
    assert sources.all() == [after]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_partition_of_another_worker_is_asked_only_when_it_is_told_to_again(
    workers: int,
) -> None:
    task = PartitionedTask(name="a", func=_body, partition_count=5)
    for position in range(workers):
        sources = Sources()
        sources.refresh([task], shares={"a": Share(position, workers)})
        for index, source in enumerate(sources.due(0)):
            assert source.own is (index % workers == position)
            assert sources.ask_by(source, 7) is source.own
            assert (source.next_ask == 7) is source.own
            sources.ask_again(source, 8)
            assert source.next_ask == 8
        sources.refresh([task])
        assert all(source.own for source in sources.all())


def test_the_table_stays_small_however_often_a_source_is_asked_for() -> None:
    sources, tasks = Sources(), [_template(name) for name in "abc"]
    sources.refresh(tasks)
    first, second, third = sources.due(0)
    longest = 2 * 3 + 64
    sources.ask_by(second, 7)
    lengths = []
    for number in range(2 * longest):
        sources.ask_again(first, number % 5)
        lengths.append(len(sources._heap))
        assert third.next_ask == NEVER
    # Two sources have an instant, and everything else in it is void.
    once = [*range(2, longest + 1)]
    assert lengths == [*once, *once, 2, 3]
    assert sources.due(6) == [first]
    assert sources.due(7) == [second]
    assert sources.due(NEVER - 1) == []


# Heartbeats.


def test_a_task_has_the_heartbeats_that_it_says_or_those_of_the_app() -> None:
    lease = timedelta(seconds=9)
    own, of_app = Heartbeat(every=timedelta(seconds=2)), Heartbeat(cancel_on_lease_lost=True)
    for said, default in product((None, False, True, own), (None, of_app)):
        task = _template("a", lease_duration=lease, heartbeat=said)
        plan = beat_plan(task, default)
        if said is False or (said is None and default is None):
            assert plan is None
            continue
        assert plan is not None
        assert plan.every_s == (2.0 if said is own else 3.0)
        assert plan.cancel_on_lease_lost is (said is None)


# Pauses of groups.


def test_a_group_is_paused_with_its_template() -> None:
    assert covering("a") == ["a"]
    assert covering("a:3") == ["a:3", "a"]
    assert covering(":control") == [":control"]

    async def main() -> None:
        async with place_of() as place:
            pauses = place.worker.pauses
            assert not pauses.holds("a", 5)
            assert pauses.next_end() == NEVER
            pauses.known = {"a": 10, "b:1": NEVER}
            for group, now, holds in (
                *(("a", 9, True), ("a", 10, False), ("a:3", 9, True), ("a:3", 10, False)),
                *(("b:1", 10, True), ("b:2", 10, False), ("b", 10, False), ("c", 0, False)),
            ):
                assert pauses.holds(group, now) is holds, (group, now)
            assert pauses.next_end() == 10

    asyncio.run(main())


@pytest.mark.parametrize("by", [None, "alice"])
def test_a_pause_keeps_who_asked_for_it_if_somebody_was_named(by: str | None) -> None:
    args = pause_record(Pause(since=7, until=None, reason="", by=by)).args
    assert ("by" in args) is (by is not None)


def test_a_pause_of_a_group_is_read_as_it_was_written() -> None:
    async def main() -> None:
        async with place_of() as place:
            store, pauses = place.worker.store, place.worker.pauses
            made = {
                "a": Pause(),
                "b": Pause(20, "why"),
                "c": Pause(10),
                "d": Pause(LATEST_INSTANT),
            }
            writes = [
                Write(*pause_identity(group), pause_record(pause._replace(since=7)), ANY)
                for group, pause in made.items()
            ]
            await store.write(writes, 7)
            await pauses.refresh(store, 10)
            assert pauses.known == {"a": NEVER, "b": 20, "d": LATEST_INSTANT}
            records = await store.get([pause_identity(group) for group in made])
            for record, (group, pause) in zip(records, made.items(), strict=True):
                assert record is not None
                assert read_pause(record) == GroupPause(group, pause._replace(since=7))
                for args, since in (
                    ("garbage", None),
                    ('1 {"until":"x","since":true}', None),
                    ('1 {"until":-1,"since":0}', 0),
                    (
                        f'1 {{"until":{LATEST_INSTANT + 1},"since":{LATEST_INSTANT}}}',
                        LATEST_INSTANT,
                    ),
                ):
                    found = read_pause(record._replace(args=args))
                    assert found == GroupPause(group, Pause(since=since))

    asyncio.run(main())


# What follows.


def _standing(state: State, progress: Progress, schedule: Schedule = EVERY) -> Record:
    return Record(
        *(STATIC_GROUP, "s", 9, 5, "t", state, int(state == State.RUNNING)),
        *(dumps(schedule), "1 {}", dump_progress(progress)),
    )


def test_what_comes_next_begins_with_the_current_occurrence_if_it_is_still_to_be_run() -> None:
    task = Task(name="s", func=_body, interval=timedelta(seconds=1))
    ended = every(3).between(None, datetime(1970, 1, 1, 0, 0, 0, 15, UTC))
    for state, planned, triggered, number in product(State, (9, None), (None, 8), (1, 2, 3)):
        record = _standing(state, Progress(planned, "old", triggered))
        found = with_current(task, record, Policy(), 10, number)
        if state in (State.PARKED, State.FINISHED) or planned is None:
            assert found == []
            continue
        first = 12 if state is State.RUNNING and triggered is None else 9
        assert found == [first + 3 * step for step in range(number)], (state, triggered)
    record = _standing(State.SCHEDULED, Progress(9, "old"), ended)
    assert with_current(task, record, Policy(), 10, 9) == [9, 12, 15]
    late = _standing(State.SCHEDULED, Progress(9, "old"))
    assert with_current(task, late, Policy(fast_forward=True), 20, 3) == [9, 21, 24]
    pending = Pending(dumps(every(4)), "1 []", 14, "new")
    replaced = _standing(State.RUNNING, Progress(9, "old", pending=pending))
    assert after_current(task, replaced, Policy(), 10, 3) == [14, 18, 22]
