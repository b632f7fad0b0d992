"""The writes that move an instance, and what is known of partitions, with every small input.

``test_explorer_moves.py`` searches through what becomes of these writes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest
from tests.simulation.places import NOW
from tests.simulation.test_small_members import alone

from pyncette.engine.moves import (
    EXPIRED_FOR,
    Copy,
    Mark,
    Pair,
    Step,
    arriving,
    as_freed,
    copy_of,
    freed,
    in_transit,
    is_transit,
    mark_of,
    marked,
    movable,
    next_step,
    record_after,
    reserved,
)
from pyncette.engine.partitions import (
    KNOWN_FOR_S,
    PREFIX,
    WAS_MAX,
    Fact,
    Look,
    checked_count,
    fact_identity,
    fact_record,
    read_fact,
)
from pyncette.errors import PyncetteException
from pyncette.store import Write
from pyncette.store.record import (
    ABSENT,
    ANY,
    DELETE,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    Put,
    Record,
    State,
    dump_args,
    load_args,
)
from pyncette.task import PARTITION_COUNT_MAX, Layout, PartitionedTask

ORIGIN: Final = "t:1"
TARGET: Final = "t:5"
RECORD: Final = Record(
    ORIGIN, "x", 50, 10, "w:1", State.RETRYING, 0, "1 at 50", '1 {"n":0}', "1 50 inc"
)
COPY: Final = Copy("c1", ORIGIN, 10, "w:1", 50, "retrying", "w:1", "1 50 inc")


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _transit(*content: Any, version: int = 20, group: str = TARGET) -> Record:
    progress = f"2 moving {json.dumps(content)}"
    return RECORD._replace(
        group=group, version=version, due_at=None, state=State.FINISHED, progress=progress
    )


# Copies and marks.


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("token", [None, "w:1"])
@pytest.mark.parametrize("due_at", [None, 50, EARLIEST_INSTANT, LATEST_INSTANT])
def test_a_copy_is_never_due_and_is_freed_as_its_record_was(
    state: State, token: str | None, due_at: int | None
) -> None:
    record = RECORD._replace(state=state, token=token, due_at=due_at, unfinished_attempts=2)
    put = arriving(record)
    assert put.due_at is None
    arrived = record_after(record._replace(group=TARGET), put, 20)
    copy = copy_of(arrived)
    assert copy is not None
    assert mark_of(arrived) is None
    assert in_transit(arrived)
    assert copy[1:5] == (ORIGIN, 10, token, due_at)
    # Whatever ends a run takes its token away.
    kept = None if state is State.RUNNING else token
    assert as_freed(arrived) == record._replace(group=TARGET, version=20, token=kept)
    assert freed(arrived, copy).progress == record.progress
    mark = record_after(record, marked(record, Mark(copy.id, TARGET)), 11)
    assert mark_of(mark) == Mark(copy.id, TARGET)
    assert copy_of(mark) is None
    assert (mark.due_at, mark.token) == (None, kept)


def test_a_place_is_reserved_by_a_mark_of_a_copy_that_does_not_exist() -> None:
    record = record_after(RECORD, reserved(TARGET), 1)
    mark = mark_of(record)
    assert mark is not None
    assert mark.target == TARGET
    assert next_step(Pair("x", ORIGIN, TARGET, record, None, "target"), NOW) == Write(
        ORIGIN, "x", DELETE, 1, record.token
    )


def test_what_is_no_copy_and_no_mark_is_a_record() -> None:
    assert not in_transit(RECORD)
    for record in (RECORD, None):
        assert copy_of(record) is None
        assert mark_of(record) is None
    assert is_transit(_transit("copy", *COPY).progress)
    assert copy_of(_transit("copy", *COPY)) == COPY
    assert mark_of(_transit("mark", "c1", TARGET)) == Mark("c1", TARGET)


ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    1.5,
    [],
    {},
    EARLIEST_INSTANT - 1,
    LATEST_INSTANT + 1,
    7,
    "x",
)


@pytest.mark.parametrize("field", Copy._fields)
@pytest.mark.parametrize("value", ODD)
def test_a_copy_that_was_edited_is_none(field: str, value: Any) -> None:
    fits: dict[str, Callable[[Any], bool]] = {
        "version": lambda value: value == 7,
        "due_at": lambda value: value is None or value == 7,
        "token": lambda value: value is None or value == "x",
        "kept_token": lambda value: value is None or value == "x",
        "state": lambda value: False,
    }
    sound = fits[field](value) if field in fits else value == "x"
    record = _transit("copy", *COPY._replace(**{field: value}))
    assert (copy_of(record) is not None) is in_transit(record) is sound
    pair = Pair("x", ORIGIN, TARGET, RECORD, record, "origin")
    assert (next_step(pair, NOW) is Step.BROKEN) is not sound


@pytest.mark.parametrize(
    "content",
    [
        ("copy",),
        ("copy", *COPY[:-1]),
        ("copy", *COPY, "more"),
        ("copy", *COPY[:-1], "2 moving []"),
        ("mark",),
        ("mark", "c1"),
        ("mark", "c1", 5),
        ("mark", None, TARGET),
        ("mark", "c1", TARGET, "more"),
        ("other", "c1", TARGET),
        (),
    ],
)
def test_what_was_edited_stops_its_move(content: tuple[Any, ...]) -> None:
    broken = _transit(*content)
    assert not in_transit(broken)
    for origin, target in ((broken, None), (broken, RECORD), (None, broken), (RECORD, broken)):
        assert next_step(Pair("x", ORIGIN, TARGET, origin, target, "origin"), NOW) is Step.BROKEN
    for text in ("2 moving", "2 moving ", "2 moving x", "2 moving 5", "2 moving " + "[" * 100_000):
        assert not is_transit(text)


# What can be moved.


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("attempts", [0, 1])
@pytest.mark.parametrize("left", [None, 1, 0, -EXPIRED_FOR + 1, -EXPIRED_FOR, -EXPIRED_FOR - 1])
def test_only_what_no_worker_runs_can_be_moved(
    state: State, attempts: int, left: int | None
) -> None:
    due_at = None if left is None else NOW + left
    record = RECORD._replace(state=state, unfinished_attempts=attempts, due_at=due_at)
    runs = state is State.RUNNING and attempts > 0 and left is not None and left > -EXPIRED_FOR
    assert movable(record, NOW) is not runs
    pair = Pair("x", ORIGIN, TARGET, record, None, "target")
    if runs:
        assert next_step(pair, NOW) is Step.WAIT
    else:
        write = next_step(pair, NOW)
        assert isinstance(write, Write)
        assert (write.group, write.expect, write.token) == (TARGET, ABSENT, None)


# The table of steps.


def _write(record: Record, change: Any) -> Write:
    return Write(record.group, "x", change, record.version, record.token)


ITS_COPY: Final = _transit("copy", *COPY)
OLD_COPY: Final = _transit("copy", *COPY._replace(version=9))
OTHER_TOKEN: Final = _transit("copy", *COPY._replace(token=None))
OTHER_TEXT: Final = _transit("copy", *COPY._replace(progress="1 49 inc"))
STRANGE_COPY: Final = _transit("copy", *COPY._replace(origin="t:7"))
ITS_MARK: Final = _transit("mark", "c1", TARGET, group=ORIGIN, version=11)
OTHER_MARK: Final = _transit("mark", "c2", TARGET, group=ORIGIN, version=11)
STRANGE_MARK: Final = _transit("mark", "c1", "t:7", group=ORIGIN, version=11)
MARK_THERE: Final = _transit("mark", "c9", "t:7")
COPY_HERE: Final = _transit("copy", *COPY._replace(origin="t:7"), group=ORIGIN)
THERE: Final = RECORD._replace(group=TARGET, version=30)


@pytest.mark.parametrize("newer", ["", "origin", "target"])
def test_each_pair_of_places_has_its_next_step(newer: str) -> None:
    def step(origin: Record | None, target: Record | None) -> Write | Step:
        return next_step(Pair("x", ORIGIN, TARGET, origin, target, newer), NOW)

    read_origin = newer != "origin"
    read_target = newer != "target"
    # A mark at the origin: the instance is at the target, or was.
    assert step(ITS_MARK, ITS_COPY) == _write(ITS_COPY, freed(ITS_COPY, COPY))
    for target in (None, ITS_COPY, THERE, STRANGE_COPY, MARK_THERE):
        assert step(STRANGE_MARK, target) is Step.WAIT
    for mark, targets in (
        (ITS_MARK, (None, THERE, MARK_THERE)),
        (OTHER_MARK, (None, THERE, MARK_THERE, ITS_COPY)),
    ):
        for target in targets:
            done = _write(mark, DELETE)
            assert step(mark, target) == (Step.READ_TARGET if read_target else done)
    # Nothing of this move at the origin.
    for origin in (None, COPY_HERE):
        for target in (None, THERE, STRANGE_COPY, MARK_THERE):
            assert step(origin, target) is Step.DONE
        rubbish = _write(ITS_COPY, DELETE)
        assert step(origin, ITS_COPY) == (Step.READ_ORIGIN if read_origin else rubbish)
    # The instance is at the origin.
    write = step(RECORD, None)
    assert isinstance(write, Write)
    assert copy_of(record_after(RECORD, write.change, 1)) is not None  # type: ignore[arg-type]
    assert step(RECORD, ITS_COPY) == _write(RECORD, marked(RECORD, Mark("c1", TARGET)))
    for old in (OLD_COPY, OTHER_TOKEN, OTHER_TEXT):
        again = step(RECORD, old)
        if read_origin:
            assert again is Step.READ_ORIGIN
        else:
            assert isinstance(again, Write)
            assert again[:2] == (TARGET, "x")
            assert (again.expect, again.token) == (old.version, old.token)
            made = copy_of(record_after(old, again.change, 1))  # type: ignore[arg-type]
            assert made is not None
            assert made[1:] == COPY[1:]
            assert made.id != "c1"
    assert step(RECORD, STRANGE_COPY) is Step.ELSEWHERE
    assert step(RECORD, MARK_THERE) is Step.ELSEWHERE
    # Both places hold it: a process that knew nothing of the move has scheduled it.
    if read_origin:
        assert step(RECORD, THERE) is Step.READ_ORIGIN


def _both(origin: Record, target: Record) -> Write | Step:
    return next_step(Pair("x", ORIGIN, TARGET, origin, target, "origin"), NOW)


def test_what_was_scheduled_at_the_old_place_is_granted_at_the_new_one() -> None:
    scheduled = RECORD._replace(state=State.SCHEDULED, token=None)
    there = scheduled._replace(group=TARGET, version=30)
    # The same request: the one at the old place goes.
    assert _both(scheduled, there) == _write(scheduled, DELETE)
    other = scheduled._replace(args='1 {"n":1}', schedule="1 at 40")
    granted = _both(other, there)
    assert isinstance(granted, Write)
    assert (granted.group, granted.expect, granted.token) == (TARGET, 30, None)
    assert isinstance(granted.change, Put)
    assert (granted.change.args, granted.change.due_at) == ('1 {"n":1}', 40)
    # While it runs there, or the request cannot be read.
    running = there._replace(state=State.RUNNING, due_at=NOW + 1, unfinished_attempts=1)
    assert _both(other, running) is Step.WAIT
    assert _both(other._replace(schedule="nonsense"), there) is Step.BROKEN
    assert _both(other._replace(schedule="9 later"), there) is Step.BROKEN
    assert _both(other, there._replace(progress="9 later")) is Step.BROKEN


# What the control record says.


def _fact(**args: Any) -> Record:
    return Record(*fact_identity("t"), None, 5, None, State.FINISHED, 0, "", dump_args(args), "")


COUNTS: Final = (1, PARTITION_COUNT_MAX)


@pytest.mark.parametrize("to", [None, *COUNTS])
@pytest.mark.parametrize("sources", [(), (2,), (2, 3)])
@pytest.mark.parametrize("was", [(), (4,), (4, 5)])
def test_a_control_record_is_read_as_it_was_written(
    to: int | None, sources: tuple[int, ...], was: tuple[int, ...]
) -> None:
    fact = Fact(6, to, sources, was)
    put = fact_record(fact)
    assert set(load_args(put.args)) == {
        "partition_count",
        *(["to"] if to else []),
        *(["from"] if sources else []),
        *(["was"] if was else []),
    }
    record = Record(*fact_identity("t"), None, 5, None, put.state, 0, "", put.args, "")
    assert read_fact(record) == fact
    assert set(fact.known_counts) == {6, *sources, *was} | (set() if to is None else {to})
    if to is None:
        assert fact.layout == Layout(6, sources, bool(sources))
        assert fact.begun() == Fact(6, None, was, was)
    else:
        assert fact.layout == Layout(6, (to,))
        assert fact.begun() == Fact(to, None, (6,), was)
    assert fact.announced(9) == fact._replace(to=9)


def test_one_number_needs_no_list() -> None:
    assert read_fact(_fact(partition_count=3, **{"from": 4}, was=[5])) == Fact(3, None, (4,), (5,))


@pytest.mark.parametrize("count", [0, -1, PARTITION_COUNT_MAX + 1, True, 1.5, "4", None, [], {}])
def test_a_number_of_partitions_that_cannot_be_is_refused(count: Any) -> None:
    said: list[dict[str, Any]] = [
        {"partition_count": count},
        {"partition_count": 4, "from": [4, count]},
        {"partition_count": 4, "was": [count]},
    ]
    if count is not None:
        said.append({"partition_count": 4, "to": count})
    for args in said:
        with pytest.raises(PyncetteException, match="does not say how many partitions"):
            read_fact(_fact(**args))
    wrong = ValueError if type(count) is int else TypeError
    with pytest.raises(wrong, match="partition_count must be"):
        checked_count(count)


@pytest.mark.parametrize("count", COUNTS)
def test_a_number_of_partitions_that_can_be_is_taken(count: int) -> None:
    assert checked_count(count) == count
    assert read_fact(_fact(partition_count=count)).partition_count == count


def test_the_numbers_of_before_are_remembered_the_latest_last_and_each_once() -> None:
    assert Fact(6, None, (4,), (6, 3, 4, 5)).ended() == Fact(6, was=(3, 5, 4))
    assert Fact(6, 7, (), (2,)).ended() == Fact(6, was=(2,))
    many = Fact(1, None, (90,), tuple(range(2, 60))).ended()
    assert many.was == (*range(60 - WAS_MAX + 1, 60), 90)


# What a context knows.


def _parted(count: int = 4, **options: Any) -> dict[str, Any]:
    return {"count": count, "partition_selector": _by_number, **options}


def _by_number(count: int, name: str) -> int:
    return int(name) % count


async def _write_fact(one: Any, name: str, fact: Fact, at: int = NOW + 9) -> None:
    with one.clock.hold():
        async with one.repository() as store:
            await store.write([Write(*fact_identity(name), fact_record(fact), ANY)], at)


def test_what_is_known_is_read_again_when_it_is_too_old() -> None:
    async def main() -> None:
        async with alone(t=_parted(), plain={}) as one:
            known, gets = one.worker.partitions, []
            for wait_s in (0, 0, KNOWN_FOR_S - 0.5, 0.5, 0.25):
                await one.clock.advance(timedelta(seconds=wait_s))
                one.faults.calls.clear()
                await known.fresh()
                gets.append(len(one.faults.made("get")))
            assert gets == [1, 0, 0, 1, 0]
            await one.clock.advance(timedelta(seconds=60))
            one.faults.calls.clear()
            await asyncio.gather(*(known.fresh() for _ in range(3)))
            assert len(one.faults.made("get")) == 1
            # What the loop has read counts, too, and never makes it older.
            await one.clock.advance(timedelta(seconds=60))
            now = one.clock.monotonic()
            known.learn([], now)
            known.learn([], now - 60)
            one.faults.calls.clear()
            await known.fresh()
            assert one.faults.made("get") == []

    _run(main)


def test_a_context_without_partitions_reads_nothing() -> None:
    async def main() -> None:
        async with alone(plain={}) as one:
            one.faults.calls.clear()
            await one.worker.partitions.fresh()
            assert one.faults.calls == []
            assert one.worker.partitions.quiet
            assert one.worker.partitions.places("plain", "5") == ("plain",)

    _run(main)


def test_what_is_read_is_taken_in_once_and_told() -> None:
    async def main() -> None:
        async with alone(t=_parted(), u=_parted(2)) as one:
            known, told = one.worker.partitions, list[str]()
            task = one.tasks["t"]
            assert isinstance(task, PartitionedTask)
            known.on_change = lambda: told.append("changed")
            assert known.quiet
            assert known.places("t:1", "5") == ("t:1",)
            for fact, places, changes in (
                (Fact(4, 8), ["t:1", "t:5"], 1),
                (Fact(4, 8), ["t:1", "t:5"], 1),
                (Fact(8, None, (4,)), ["t:5", "t:1"], 2),
                (Fact(8, was=(4,)), ["t:5", "t:1"], 3),
            ):
                await _write_fact(one, "t", fact)
                await known.read()
                assert [*known.places("t:1", "5")] == places
                assert len(told) == changes
                assert not known.quiet
                assert task.layout == fact.layout
            # An answer that was on its way for long.
            old = Record(
                *fact_identity("t"), None, 1, None, "", 0, "", fact_record(Fact(4)).args, ""
            )
            known.learn([old, old._replace(key=f"{PREFIX}unknown")], 0.0)
            assert task.layout == Layout(8)
            known.on_change = None
            known.learn([old._replace(version=NOW * 2)], 0.0)
            assert task.layout == Layout(4)
            assert not known.quiet  # instances have lain elsewhere
            assert known.places("t:5", "5") == ["t:1", "t:5"]

    _run(main)


def test_tasks_that_are_declared_later_are_known() -> None:
    async def main() -> None:
        async with alone(t=_parted(), plain={}) as one:
            declared = [one.tasks["plain"]]
            one.worker.partitions._declared = lambda: declared
            assert one.worker.partitions.tasks == {}
            declared.append(one.tasks["t"])
            assert one.worker.partitions.tasks == {"t": one.tasks["t"]}
            assert one.worker.partitions.template_of("t:3") is one.tasks["t"]
            assert one.worker.partitions.template_of("t") is None

    _run(main)


def _logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


def test_a_control_record_that_cannot_be_read_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with alone(t=_parted(), u=_parted()) as one:
            known = one.worker.partitions
            wrong = _fact(partition_count=0)._replace(version=NOW * 2)
            right = _fact(partition_count=5)._replace(key=f"{PREFIX}u", version=NOW * 2)
            for _ in range(3):
                known.learn([wrong, right], 0.0)
            assert _logged(caplog, "does not say how many partitions") == 1
            assert one.tasks["u"].layout == Layout(5)  # type: ignore[attr-defined]
            # Once it is mended, it is taken in, though its version is the known one.
            task = one.tasks["t"]
            assert isinstance(task, PartitionedTask)
            assert task.unplaced is wrong
            task.layout_version = NOW * 2
            known.learn([_fact(partition_count=6)._replace(version=NOW * 2)], 0.0)
            assert task.layout == Layout(6)
            assert getattr(task, "unplaced", "missing") is None
            known.learn([_fact(partition_count=7)._replace(version=NOW * 2)], 0.0)
            assert task.layout == Layout(6)
            known.learn([wrong._replace(key=f"{PREFIX}u", version=NOW * 3)], 0.0)
            assert _logged(caplog, "does not say how many partitions") == 2

    _run(main)


FACTS: Final = (Fact(4), Fact(4, 8), Fact(8), Fact(8, None, (4,)), Fact(4, None, (8,)))


@pytest.mark.parametrize("enabled", [None, [0, 1]])
def test_what_an_opened_context_finds_in_force_is_said(
    enabled: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for fact in FACTS:
            async with alone(t=_parted(enabled_partitions=enabled)) as one:
                task = one.tasks["t"]
                assert isinstance(task, PartitionedTask)
                caplog.clear()
                one.worker.partitions.opened(task, fact, 17)
                assert (task.layout, task.layout_version) == (fact.layout, 17)
                other = fact.partition_count != 4
                assert _logged(caplog, "is declared with 4 partitions") == other
                assert _logged(caplog, "were chosen among 4") == (other and enabled is not None)
                moving = fact.to is not None or bool(fact.sources)
                assert _logged(caplog, "or was interrupted") == moving
                count = fact.to or fact.partition_count
                assert _logged(caplog, f"rebalance(task, {count})") == moving

    _run(main)


def test_what_changes_while_a_worker_runs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        for before, after in product(FACTS, FACTS):
            async with alone(t=_parted(enabled_partitions=[0])) as one:
                task = one.tasks["t"]
                assert isinstance(task, PartitionedTask)
                one.worker.partitions.opened(task, before, 17)
                caplog.clear()
                one.worker.partitions._adopt(task, after, 18)
                assert task.layout_version == 18
                count = before.partition_count != after.partition_count
                assert _logged(caplog, "partitions now; it had") == count
                chosen = count and after.partition_count != 4
                assert _logged(caplog, "were chosen among 4") == chosen
                moved = before.layout != after.layout and bool(after.sources)
                assert _logged(caplog, "are moved to") == moved

    _run(main)


def test_an_instance_that_lies_where_no_call_looks_is_said_once_for_each_template(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with alone(t=_parted(), u=_parted(), plain={}) as one:
            known = one.worker.partitions
            for name in ("t", "plain", "u"):
                task = one.tasks[name]
                parent = task.parent_of("5") if name != "plain" else task
                for group, key in ((f"{name}:1", "5"), (f"{name}:2", "5"), (f"{name}:3", "5")):
                    known.note_place(parent, RECORD._replace(group=group, key=key))
            assert _logged(caplog, "lies in the group 't:2'") == 1
            assert _logged(caplog, "lies in the group 'u:2'") == 1
            assert _logged(caplog, "lies in the group") == 2

    _run(main)


def test_what_is_found_of_partitions_is_their_move_and_what_one_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = (
        (None, None),
        (Fact(4), None),
        (Fact(4, 8), 8),
        (Fact(4, None, (2,)), 4),
        (Fact(4, 8, (2,)), 8),
        (Fact(4, None, (), (8,)), None),
        (Fact(4, None, (2,), (8,)), 4),
        (Fact(4, 6, (), (8,)), 6),
    )

    async def main() -> None:
        for (fact, moving_to), stray in product(facts, (False, True)):
            async with alone(t=_parted()) as one:
                if fact is not None:
                    await _write_fact(one, "t", fact)
                if stray:
                    put = Put(None, State.PAUSED, None, 0, "", "", "")
                    async with one.repository() as store:
                        await store.write([Write("t:6", "6", put, ANY)], NOW)
                task = one.tasks["t"]
                assert isinstance(task, PartitionedTask)
                look = await one.worker.partitions.examine(task)
                # Only where a move has ended, something may have been left behind.
                left = stray and fact == Fact(4, None, (), (8,))
                assert look == Look(4, moving_to, "t:6" if left else None)
                caplog.clear()
                await one.worker.partitions.look_beyond(task, fact or Fact(4))
                assert _logged(caplog, "lie in the group 't:6'") == left

    _run(main)
