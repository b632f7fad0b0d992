"""What a worker makes sure of when it opens and starts: the kinds of tasks, and static records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest
from tests.simulation.places import NOW, SECOND, START
from tests.simulation.test_small_members import alone
from tests.simulation.workers import every

from pyncette import Context, ExecutionMode
from pyncette.engine import rules, static_tasks
from pyncette.engine.partitions import Fact, Partitions, fact_identity, fact_record, read_fact
from pyncette.engine.polling import NEVER
from pyncette.engine.static_tasks import Correction, ensure_records
from pyncette.engine.steering import pause_identity, pause_record
from pyncette.engine.templates import (
    check_templates,
    groups_of,
    registered_templates,
    registration_of,
)
from pyncette.errors import PyncetteException, StoreUnavailableError, TaskUnreadableError
from pyncette.memory import MemoryStore
from pyncette.schedule import Calendar, Every, Schedule, dumps
from pyncette.store import Failed, Filter, Page, Result, Unknown, Write
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    ABSENT,
    ANY,
    CONTROL_GROUP,
    LATEST_INSTANT,
    STATIC_GROUP,
    Pause,
    Progress,
    Put,
    Record,
    State,
    dump_progress,
    load_progress,
)
from pyncette.task import PartitionedTask, Task
from pyncette.testing.clocks import VirtualClock

DOWN: Final = StoreUnavailableError("down")
SOME: Final = Put(NOW, State.SCHEDULED, None, 0, "1 at 5", "1 {}", "1 5 inc")


async def _body(context: Context) -> None: ...


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


class Store(MemoryStore):
    """A store that notes which calls write, and in which others may write first.

    Attributes:
        written: The batches.
        before: What others write before the next batch.
        answers: The answer to the next batch, which is not made.
        empty_pages: How many pages of each listing are empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[list[Write]] = []
        self.gets = 0
        self.before: list[Write] = []
        self.answer: Result | None = None
        self.empty_pages = 0

    async def plant(self, group: str, key: str, put: Put = SOME) -> None:
        await super().write([Write(group, key, put, ANY)], NOW)

    async def write(self, batch: Sequence[Write], now: int, wake: Any = ()) -> list[Result]:
        self.written.append([*batch])
        before, self.before = self.before, []
        if before:
            await super().write(before, now)
        answer, self.answer = self.answer, None
        if answer is not None:
            return [answer] * len(batch)
        return await super().write(batch, now)

    async def get(self, identities: Any) -> list[Record | None]:
        self.gets += 1
        return await super().get(identities)

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        if self.empty_pages and cursor is None:
            return Page([], "")
        return await super().scan(group, where, cursor or None, limit)


# The kinds of tasks.


def _declare(kind: str, name: str = "t", **options: Any) -> Task:
    match kind:
        case "static":
            return Task(name=name, func=_body, interval=timedelta(seconds=5), **options)
        case "plain":
            return Task(name=name, func=_body, dynamic=True, **options)
    return PartitionedTask(name=name, func=_body, partition_count=int(kind), **options)


async def _opened(store: Store, *tasks: Task) -> None:
    clock = VirtualClock(START)
    partitions = Partitions(DeadlineStore(store, clock, 60), clock, lambda: tasks)
    await check_templates(store, clock, tasks, partitions)


async def _fact(store: Store) -> Fact | None:
    [record] = await store.get([fact_identity("t")])
    return None if record is None else read_fact(record)


FACTS: Final = (None, Fact(4), Fact(4, 8), Fact(8, None, (4,)), Fact(8, was=(4,)))
KINDS: Final = ("static", "plain", "4", "8", "6")
LIES_IN: Final = (None, "t", "t:0", "t:3", "t:7", "t:9")


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_kind_is_refused_where_it_would_leave_instances_behind(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for fact, group, pages in product(FACTS, LIES_IN, (0, 1)):
            store = Store()
            store.empty_pages = pages
            if fact is not None:
                await store.plant(*fact_identity("t"), put=fact_record(fact))
            if group is not None:
                await store.plant(group, "x")
            known = () if fact is None else fact.known_counts
            count = int(kind) if kind.isdigit() else None
            number = int(group[2:]) if group is not None and group != "t" else None
            in_partitions = number is not None and number < max(known, default=0)
            if count is not None and count in known:
                refused = False  # it opens with what is in force
            elif fact is not None:
                refused = in_partitions or (kind == "static" and group == "t")
            else:
                refused = group == "t" and kind != "plain"
            caplog.clear()
            task = _declare(kind)
            case = f"{fact} {group}"
            if refused:
                with pytest.raises(PyncetteException, match="They would never run again"):
                    await _opened(store, task)
                assert await _fact(store) == fact, case
                continue
            await _opened(store, task)
            changes = fact is not None and count not in known
            assert (_logged(caplog, "it was a dynamic task with") == 1) is changes, case
            if count is None:
                assert await _fact(store) is None, case
                continue
            expected = fact if fact is not None and not changes else Fact(count)
            assert await _fact(store) == expected, case
            assert isinstance(task, PartitionedTask)
            [record] = await store.get([fact_identity("t")])
            assert record is not None
            assert (task.layout, task.layout_version) == (expected.layout, record.version), case

    _run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_record_that_cannot_be_read_stops_nothing_and_is_said(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store()
        garbage = Put(None, State.FINISHED, None, 0, "", "?", "")
        await store.plant(*fact_identity("t"), put=garbage)
        await store.plant(*fact_identity("u"), put=fact_record(Fact(4)))
        task = _declare(kind)
        await _opened(store, task, _declare("4", "u"))
        partitioned = isinstance(task, PartitionedTask)
        # Where its instances lie is not known, so that calls are refused.
        assert (getattr(task, "unplaced", None) is not None) is partitioned
        assert _logged(caplog, "was a template with partitions, and may have") == (not partitioned)
        found = dict(await registered_templates(store))
        assert isinstance(found["t"], TaskUnreadableError)
        assert found["u"] == Fact(4)
        assert groups_of("u", found["u"]) == ["u:0", "u:1", "u:2", "u:3"]

    _run(main)


def test_what_is_known_is_written_once() -> None:
    async def main() -> None:
        store = Store()
        tasks = [_declare("4"), _declare("plain", "u"), _declare("static", "v")]
        await _opened(store, *tasks)
        [names, facts] = store.written
        assert sorted(write.key for write in names) == ["template:t", "template:u"]
        assert [write[:2] for write in facts] == [fact_identity("t")]
        assert registration_of("t") == [facts[0][:2], names[0][:2]]
        await _opened(store, *tasks)
        assert len(store.written) == 2
        await _opened(store, *tasks, _declare("plain", "w"))
        assert [write.key for write in store.written[2]] == ["template:w"]
        # Nothing is asked for nothing.
        store.gets = 0
        await _opened(store)
        assert (store.gets, len(store.written)) == (0, 3)

    _run(main)


@pytest.mark.parametrize("answer", [Failed(DOWN), Unknown(DOWN)])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_store_that_fails_is_said(answer: Result, batch: int) -> None:
    async def main() -> None:
        store = Store()
        if batch:
            await _opened(store, _declare("plain"))
        store.answer = answer
        with pytest.raises(StoreUnavailableError):
            await _opened(store, _declare("4"))

    _run(main)


def test_of_two_workers_that_start_at_once_the_second_takes_what_the_first_has_said() -> None:
    async def main() -> None:
        for theirs in (Fact(4), Fact(4, 6), Fact(6, was=(4,))):
            store, task = Store(), _declare("4")
            await store.plant(CONTROL_GROUP, "template:t")
            store.before = [Write(*fact_identity("t"), fact_record(theirs), ANY)]
            await _opened(store, task)
            assert isinstance(task, PartitionedTask)
            assert task.layout == theirs.layout
            assert await _fact(store) == theirs
            assert len(store.written) == 1
        # It has said something else, but there are no instances yet.
        store, task = Store(), _declare("4")
        await store.plant(CONTROL_GROUP, "template:t")
        store.before = [Write(*fact_identity("t"), fact_record(Fact(6)), ANY)]
        await _opened(store, task)
        assert await _fact(store) == Fact(4)
        # A template without partitions any more, which another one has said already.
        store, task = Store(), _declare("plain")
        await store.plant(CONTROL_GROUP, "template:t")
        await store.plant(*fact_identity("t"), put=fact_record(Fact(4)))
        store.before = [Write(*fact_identity("t"), fact_record(Fact(5)), ANY)]
        await _opened(store, task)
        assert await _fact(store) is None

    _run(main)


@pytest.mark.parametrize("kind", ["plain", "4"])
@pytest.mark.parametrize("state", [None, *State])
def test_a_static_task_that_becomes_a_template_is_said_if_its_record_still_waits(
    kind: str, state: State | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store()
        if state is not None:
            put = Put(5, state, None, 0, "1 at 5", "", "1 5 inc")
            await store.plant(STATIC_GROUP, "t", put=put)
        await _opened(store, _declare(kind))
        waits = state is not None and state is not State.FINISHED
        assert _logged(caplog, "was a static task") == waits

    _run(main)


# Static records.


def _static(schedule: Schedule | None = None, **options: Any) -> Task:
    schedule = every(10 * SECOND) if schedule is None else schedule
    return Task(name="s", func=_body, schedule=schedule, **options)


def _put(task: Task, planned: int = NOW + 5 * SECOND, **fields: Any) -> Put:
    progress = dump_progress(Progress(planned, "inc"))
    put = Put(planned, State.SCHEDULED, None, 0, dumps(task.plan), "", progress)
    return put._replace(**fields)


def _row(put: Put) -> Record:
    due_at, state, token, attempts, schedule, args, progress = put
    return Record(
        *(STATIC_GROUP, "s", due_at, NOW, token, state, attempts, schedule, args, progress)
    )


async def _ensured(
    store: Store, task: Task, correction: Correction
) -> tuple[list[Write], Record | None]:
    written = await ensure_records(store, VirtualClock(START), [task], correction)
    [record] = await store.get([(STATIC_GROUP, "s")])
    return written, record


@pytest.mark.parametrize("correction", Correction)
def test_a_record_that_is_missing_is_created_from_now(correction: Correction) -> None:
    async def main() -> None:
        store, task = Store(), _static()
        [write], record = await _ensured(store, task, correction)
        assert record is not None
        assert (write[:2], write.expect) == ((STATIC_GROUP, "s"), ABSENT)
        assert (record.due_at, record.state) == (NOW + 10 * SECOND, State.SCHEDULED)
        assert await _ensured(store, task, correction) == ([], record)
        assert len(store.written) == 1
        store.gets = 0
        assert await ensure_records(store, VirtualClock(START), [], correction) == []
        assert store.gets == 0

    _run(main)


AHEAD: Final = NOW + 10**14


@pytest.mark.parametrize("correction", Correction)
@pytest.mark.parametrize("at_most_once", [False, True])
def test_which_records_are_corrected(
    correction: Correction, at_most_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mode = ExecutionMode.AT_MOST_ONCE if at_most_once else ExecutionMode.AT_LEAST_ONCE
    task = _static(execution_mode=mode)
    other = dumps(every(7 * SECOND))

    async def main() -> None:
        for planned, schedule, token in product(
            (NOW + 5 * SECOND, AHEAD), (dumps(task.plan), other), (None, "w:1")
        ):
            store = Store()
            put = _put(task, planned, schedule=schedule, token=token)
            await store.plant(STATIC_GROUP, "s", put=put)
            caplog.clear()
            written, record = await _ensured(store, task, correction)
            assert record is not None
            same = schedule != other
            wrong = same and planned == AHEAD and not (at_most_once and token)
            corrected = (wrong and correction is not Correction.NONE) or (
                not same and correction is Correction.ALL
            )
            assert len(written) == corrected
            if not corrected:
                assert record[2:] == (*record[2:4], token, "scheduled", 0, *put[4:])
                # What may have run already is left for then, which a start says.
                left = same and planned == AHEAD and correction is not Correction.NONE
                assert _logged(caplog, "is at most once, and was planned for") == left
                assert len(caplog.records) == left
                continue
            before = _row(put)
            change = rules.replanned(before, task.plan, NOW, at_most_once)
            assert change is not None
            assert written == [Write(STATIC_GROUP, "s", change, NOW)]
            assert record.schedule == dumps(task.plan)
            assert _logged(caplog, "was planned for later") == same
            assert not _logged(caplog, "is at most once")
            assert _logged(caplog, "becomes") == (not same)

    _run(main)


@pytest.mark.parametrize("state", State)
def test_a_start_says_whose_lease_a_clock_that_was_ahead_has_counted(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    days = 86_400 * SECOND
    other = dumps(every(7 * SECOND))

    async def main() -> None:
        for lease_d, due_d, changed in product((1, 40), (0.5, 35, 50, None), (False, True)):
            task = _static(lease_duration=timedelta(days=lease_d))
            due_at = AHEAD if due_d is None else NOW + round(due_d * days)
            schedule = other if changed else dumps(task.plan)
            fields: dict[str, Any] = {"due_at": due_at, "state": state, "schedule": schedule}
            store = Store()
            put = _put(task, NOW, token="w:1", unfinished_attempts=1, **fields)
            await store.plant(STATIC_GROUP, "s", put=put)
            caplog.clear()
            _, record = await _ensured(store, task, Correction.ALL)
            assert record is not None
            # No lease that a task declares ends later than in a month, or than itself.
            counted = state is State.RUNNING and due_at > NOW + max(lease_d, 30) * days
            assert _logged(caplog, "The lease of s would end at") == counted
            if counted:
                assert record.due_at == NOW + lease_d * days
                assert static_tasks._shown(due_at) in caplog.text
                assert static_tasks._shown(record.due_at) in caplog.text
            if state is State.RUNNING:
                assert not _logged(caplog, "was planned for later")
                assert _logged(caplog, "becomes") == changed
            assert not _logged(caplog, "is at most once")

    _run(main)


def test_instants_that_no_clock_shows_are_shown_too() -> None:
    assert static_tasks._shown(None) == "never"
    assert static_tasks._shown(NOW) == START.isoformat()
    assert static_tasks._shown(LATEST_INSTANT + 1) == static_tasks._shown(LATEST_INSTANT)
    assert static_tasks._shown(LATEST_INSTANT) > "2254"


@pytest.mark.parametrize("correction", Correction)
def test_a_parked_record_is_said_and_freed_only_by_a_start_with_another_schedule(
    correction: Correction, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task = _static()
    unreadable = "nonsense"

    async def main() -> None:
        for schedule, progress, planned in product(
            (dumps(task.plan), dumps(every(7 * SECOND)), rules.UNKNOWN_SCHEDULE),
            (None, unreadable),
            (NOW + 5 * SECOND, AHEAD),
        ):
            store = Store()
            put = _put(task, planned, schedule=schedule, state=State.PARKED, due_at=None)
            if progress is not None:
                put = put._replace(progress=progress)
            await store.plant(STATIC_GROUP, "s", put=put)
            caplog.clear()
            written, record = await _ensured(store, task, correction)
            assert record is not None
            # What was migrated without its schedule is filled in, and stays parked.
            known = (dumps(task.plan), rules.UNKNOWN_SCHEDULE)
            differs = schedule not in known or progress is not None
            starts = correction is Correction.ALL
            parked = record.state == State.PARKED
            if not starts:
                assert written == []
                assert not caplog.records
            assert parked is not (starts and (differs or not _has_occurrence(put)))
            assert _logged(caplog, "is parked and does not run") == (starts and parked)
            assert _logged(caplog, "was parked and is planned anew") == (starts and not parked)
            filled_in = starts and parked and schedule == rules.UNKNOWN_SCHEDULE
            assert _logged(caplog, "becomes") == filled_in

    _run(main)


def _has_occurrence(put: Put) -> bool:
    try:
        return load_progress(put.progress).occurrence is not None
    except ValueError:
        return False


def test_of_two_workers_that_create_a_record_the_second_sees_the_first() -> None:
    async def main() -> None:
        store, task = Store(), _static()
        store.before = [Write(STATIC_GROUP, "s", _put(task), ANY)]
        written, record = await _ensured(store, task, Correction.ALL)
        assert record is not None
        assert (written, record.due_at) == ([], NOW + 5 * SECOND)
        # The first is of another release: its schedule is replaced.
        store = Store()
        store.before = [Write(STATIC_GROUP, "s", _put(_static(every(SECOND))), ANY)]
        [write], record = await _ensured(store, task, Correction.ALL)
        assert write.expect == NOW
        assert len(store.written) == 2

    _run(main)


@pytest.mark.parametrize("answer", [Failed(DOWN), Unknown(DOWN)])
def test_a_store_that_fails_ends_the_call(answer: Result) -> None:
    async def main() -> None:
        store = Store()
        store.answer = answer
        with pytest.raises(StoreUnavailableError):
            await _ensured(store, _static(), Correction.ALL)

    _run(main)


def test_a_task_that_cannot_be_planned_here_is_left_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = _static(Every(timedelta(seconds=5)) - Calendar("missing"))

    async def main() -> None:
        store = Store()
        for correction in Correction:
            caplog.clear()
            assert await _ensured(store, task, correction) == ([], None)
            assert _logged(caplog, "cannot be planned by this worker") == 1
        later = Put(5, "scheduled", None, 0, "9 later", "", "9 later")
        await store.plant(STATIC_GROUP, "s", put=later)
        caplog.clear()
        written, _ = await _ensured(store, _static(), Correction.ALL)
        assert written == []
        assert _logged(caplog, "is left as it is") == 1

    _run(main)


# Pauses of groups.


PAUSES: Final = {
    "for ever": Pause(None, "because"),
    "until later": Pause(NOW + 20 * SECOND),
    "until sooner": Pause(NOW + 10 * SECOND),
    "ended": Pause(NOW),
}


@pytest.mark.parametrize("partitioned", [False, True])
def test_what_is_paused_is_known_until_it_ends(
    partitioned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"count": 4} if partitioned else {}

    async def main() -> None:
        for first, second in product((None, *PAUSES), repeat=2):
            async with alone(t=dict(options)) as one:
                pauses, expected = one.worker.pauses, dict[str, int]()
                assert not pauses.holds("t", NOW)
                assert pauses.next_end() == NEVER
                with one.clock.hold():
                    async with one.repository() as store:
                        for group, name in (("t", first), ("t:1", second)):
                            if name is None:
                                continue
                            put = pause_record(PAUSES[name]._replace(since=NOW))
                            await store.write([Write(*pause_identity(group), put, ANY)], NOW)
                            until = PAUSES[name].until
                            if name != "ended":
                                expected[group] = NEVER if until is None else until
                caplog.clear()
                for _ in range(2):
                    await pauses.refresh(one.worker.store, NOW)
                assert pauses.known == expected
                assert _logged(caplog, "is paused") == len(expected)
                assert pauses.next_end() == min(expected.values(), default=NEVER)
                for at in (NOW, NOW + 10 * SECOND, NOW + 10 * SECOND - 1, NOW + 20 * SECOND):
                    whole = expected.get("t", 0) > at
                    assert pauses.holds("t", at) is whole
                    assert pauses.holds("t:1", at) is (whole or expected.get("t:1", 0) > at)
                    assert pauses.holds("t:2", at) is whole
                    assert not pauses.holds("tt", at)
                caplog.clear()
                await pauses.refresh(one.worker.store, NOW + 60 * SECOND)
                left = [group for group, end in expected.items() if end == NEVER]
                assert [*pauses.known] == left
                assert _logged(caplog, "is claimed again") == len(expected) - len(left)

    _run(main)


def test_the_same_listing_tells_of_partitions() -> None:
    async def main() -> None:
        async with alone(t={"count": 4}) as one:
            with one.clock.hold():
                async with one.repository() as store:
                    put = fact_record(Fact(4, 8))
                    await store.write([Write(*fact_identity("t"), put, ANY)], NOW + 9)
            one.faults.calls.clear()
            await one.worker.pauses.refresh(one.worker.store, NOW)
            assert one.tasks["t"].layout == Fact(4, 8).layout  # type: ignore[attr-defined]
            assert one.worker.pauses.known == {}
            assert len(one.faults.made("scan")) == 1
            assert one.faults.made("get") == []

    _run(main)
