"""The records of workers, and who owns which partition: each function with every small input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import product
from typing import Any, Final, NamedTuple

import pytest
from tests.faulty_store import Faults, faulty
from tests.simulation.places import NOW, SECOND, START

from pyncette import Context, Partitions, Pyncette
from pyncette.engine import membership
from pyncette.engine.membership import (
    BEATS_PER_LEASE,
    DEAD_MAX,
    FORGET_AFTER,
    LEASE,
    LEASE_MIN,
    RUNS_MAX,
    TASKS_CHARACTERS_MAX,
    TASKS_MAX,
    TIDY_INTERVAL,
    Member,
    Membership,
    forgotten,
    member_record,
    read_member,
    read_members,
    served,
    shares_of,
)
from pyncette.engine.polling import NEVER
from pyncette.engine.worker import Worker
from pyncette.engine.writes import Next
from pyncette.errors import StoreUnavailableError
from pyncette.memory import MemoryRepository
from pyncette.store import Applied, Failed, Refused, Unknown, Write
from pyncette.store.record import (
    ANY,
    DELETE,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    MEMBERS_GROUP,
    Put,
    Record,
    State,
    dump_args,
)
from pyncette.task import Task
from pyncette.testing.clocks import VirtualClock

FULL: Final[dict[str, Any]] = {
    "name": "n",
    "since": 3,
    "seen": 5,
    "lease": 7,
    "host": "h",
    "process": 9,
    "version": "v",
    "tasks": ["a", "b"],
    "task_count": 4,
    "running": 2,
    "runs": [["a:x", 4], ["b:y", 5]],
}
READ: Final = Member(
    *("w:1", "n", 3, 5, 7, "h", 9, "v", ("a", "b"), 4, 2, (("a:x", 4), ("b:y", 5))),
)


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _row(args: str, key: str = "w:1", version: int = 11) -> Record:
    return Record(MEMBERS_GROUP, key, None, version, None, State.FINISHED, 0, "", args, "")


def _said(**changes: Any) -> Member | None:
    return read_member(_row(dump_args({**FULL, **changes})))


# What a record says.


def test_a_record_is_read_as_it_was_written() -> None:
    assert _said() == READ
    assert read_member(_row(member_record(READ).args)) == READ


@pytest.mark.parametrize("instant", [0, EARLIEST_INSTANT, LATEST_INSTANT])
def test_an_instant_lies_in_the_years_that_a_datetime_has(instant: int) -> None:
    assert _said(seen=instant) == READ._replace(seen=instant)
    assert _said(since=instant) == READ._replace(since=instant)


ODD: Final[tuple[Any, ...]] = (None, True, 1.5, [], {}, EARLIEST_INSTANT - 1, LATEST_INSTANT + 1)


@pytest.mark.parametrize("value", [*ODD, "x"])
def test_a_record_that_does_not_say_when_it_was_written_is_none(value: Any) -> None:
    assert _said(seen=value) is None


@pytest.mark.parametrize("value", ODD)
def test_what_cannot_be_is_read_as_unknown(value: Any) -> None:
    assert _said(since=value) == READ._replace(since=None)
    assert _said(host=value) == READ._replace(host=None)
    assert _said(version=value) == READ._replace(version=None)
    assert _said(name=value) == READ._replace(name="w")
    whole = value if type(value) is int else None
    assert _said(process=value) == READ._replace(process_id=whole)
    assert _said(lease=value) == READ._replace(lease=LEASE)
    assert _said(tasks=value) == READ._replace(tasks=())
    assert _said(runs=value) == READ._replace(runs=())
    # At least as many as are named.
    many = max(2, whole or 0)
    assert _said(task_count=value) == READ._replace(task_count=many)
    assert _said(running=value) == READ._replace(running=many)


def test_a_lease_is_longer_than_zero() -> None:
    assert [_said(lease=lease).lease for lease in (-1, 0, 1)] == [LEASE, LEASE, 1]  # type: ignore[union-attr]


def test_of_lists_the_items_are_read_that_can_be() -> None:
    assert _said(tasks=["a", 3, None, "b"]) == READ
    runs = [["a:x", 4], "c", ["d"], ["e", 1, 2], [5, 6], ["f", "g"], ["h", 1.5], ["b:y", 5]]
    assert _said(runs=runs) == READ
    assert _said(tasks="ab") == READ._replace(tasks=())


def test_no_more_is_read_than_is_written() -> None:
    tasks = [f"t{number}" for number in range(TASKS_MAX + 5)]
    runs = [[f"r{number}", number] for number in range(RUNS_MAX + 5)]
    found = _said(tasks=tasks, runs=runs)
    assert found is not None
    assert found.tasks == tuple(tasks[:TASKS_MAX])
    assert found.task_count == TASKS_MAX + 5
    assert found.runs == tuple((name, at) for name, at in runs[:RUNS_MAX])
    assert found.running == RUNS_MAX + 5


@pytest.mark.parametrize(
    ("key", "name"), [("w:1", "w"), ("w:2:1", "w:2"), ("w", "w"), (":1", ":1"), ("", "")]
)
def test_a_record_of_a_later_release_names_its_worker_by_its_key(key: str, name: str) -> None:
    assert read_member(_row("9 {}", key)) == Member(key, name, None, 11)
    without = dump_args({"seen": 5})
    assert read_member(_row(without, key)) == Member(key, name, None, 5)


def test_what_is_no_record_of_a_worker_is_left_out() -> None:
    assert read_member(_row("nonsense")) is None
    assert read_member(_row("")) is None
    assert read_member(_row("9 {}", version=LATEST_INSTANT + 1)) is None
    assert read_member(_row("9 {}", version=EARLIEST_INSTANT - 1)) is None


# Who is alive, and what is forgotten.


@pytest.mark.parametrize("now", range(-8, 9))
def test_a_worker_is_alive_until_its_lease_ends_and_not_in_a_future_far_away(now: int) -> None:
    assert Member("w", "w", None, 0, 5).alive(now) is (-5 < now < 5)


def _member(number: int, seen: int, lease: int = 10) -> tuple[Record, Member]:
    key = f"w:{number}"
    return _row("", key, version=seen), Member(key, "w", None, seen, lease)


def test_records_of_dead_workers_are_forgotten_after_a_day() -> None:
    now = 10 * FORGET_AFTER
    ages = (0, FORGET_AFTER, FORGET_AFTER + 1, -FORGET_AFTER, -FORGET_AFTER - 1)
    for age in ages:
        record, member = _member(0, now - age)
        gone = abs(age) > FORGET_AFTER
        assert forgotten([(record, member)], now) == ([record] if gone else [])
        assert forgotten([(record, None)], now) == ([record] if gone else [])
        lives = member._replace(lease=2 * FORGET_AFTER)
        assert forgotten([(record, lives)], now) == []


def test_of_a_crowd_of_dead_workers_the_oldest_are_forgotten() -> None:
    now = 10 * FORGET_AFTER
    for extra in (-1, 0, 1, 3):
        dead = [_member(number, now - 10_000 + number) for number in range(DEAD_MAX + extra)]
        living = [_member(9_000, now), _member(9_001, now - 9)]
        gone = forgotten([*living, *reversed(dead)], now)
        assert [record.key for record in gone] == [f"w:{number}" for number in range(extra)]


# Shares.


def test_all_workers_that_read_the_same_agree_on_the_owner_of_each_partition() -> None:
    ids = ("a", "b", "c")
    for tasks in product((("t",), ("u",), ("u", "t")), repeat=3):
        alive = [
            Member(one, one, None, 0, tasks=mine) for one, mine in zip(ids, tasks, strict=True)
        ]
        for name in "tu":
            sharing = [member.id for member in alive if name in member.tasks]
            shares = [shares_of([name], alive, one)[name] for one in sharing]
            for index in range(7):
                assert sum(share.owns(index) for share in shares) == (1 if sharing else 0)
        # One whose record is not there yet counts itself.
        for name in "tu":
            count = sum(name in mine for mine in tasks) + 1
            assert shares_of([name], alive, "d")[name].workers == count


# One worker.


class Alone(NamedTuple):
    """A worker that runs nothing, and its declared tasks."""

    worker: Worker
    member: Membership
    tasks: dict[str, Task]
    clock: VirtualClock
    faults: Faults
    repository: MemoryRepository

    def queued(self) -> list[Write]:
        """The writes that wait in the queue; they are taken out."""
        entries = self.worker.writes._take_all()
        built = [entry.build(NOW) for entry in entries]
        return [write for write in built if write is not None]

    async def plant(self, *members: Member) -> None:
        """Puts records of other workers into the store, as they have written them."""
        for member in members:
            await self.plant_row(member.id, member_record(member), member.seen)

    async def plant_row(self, key: str, put: Put, at: int) -> None:
        with self.clock.hold():
            async with self.repository() as store:
                await store.write([Write(MEMBERS_GROUP, key, put, ANY)], at)


async def _body(context: Context) -> None: ...


@asynccontextmanager
async def alone(poll_s: float = 1, **declared: Any) -> AsyncIterator[Alone]:
    """Opens an app with templates of these names, and these options."""
    clock, faults, repository = VirtualClock(START), Faults(), MemoryRepository()
    app = Pyncette(
        faulty(repository, faults),
        clock=clock,
        worker_name="me",
        poll_interval=timedelta(seconds=poll_s),
    )
    tasks = {}
    for name, options in declared.items():
        partitions = options.pop("count", None)
        declare = app.dynamic_task if partitions is None else app.partitioned_task
        given = () if partitions is None else (partitions,)
        tasks[name] = declare(*given, name=name, **options)(_body)
    async with app.create() as context:
        worker = context._worker
        worker.writes._writing = True  # what is queued stays there
        try:
            yield Alone(worker, worker.membership, tasks, clock, faults, repository)
        finally:
            worker.writes._take_all()
            worker.writes._writing = False


def shared(lease_s: float = 6, **options: Any) -> dict[str, Any]:
    """The options of a template whose partitions are shared."""
    lease = timedelta(seconds=lease_s)
    return {"count": 4, "partitions": Partitions.SHARED, "lease_duration": lease, **options}


@pytest.mark.parametrize(
    ("leases", "poll_s", "lease"),
    [
        ((), 1, LEASE),
        ((), 19, LEASE),
        ((), 30, 90 * SECOND),
        ((6,), 1, 6 * SECOND),
        ((6,), 50, 6 * SECOND),
        ((9, 5, 7), 1, 5 * SECOND),
        ((1,), 1, LEASE_MIN),
        ((1, 9), 1, LEASE_MIN),
        ((3600,), 1, LEASE),
    ],
)
def test_a_record_lives_as_long_as_its_worker_needs(
    leases: tuple[float, ...], poll_s: float, lease: int
) -> None:
    async def main() -> None:
        declared = {f"t{number}": shared(given) for number, given in enumerate(leases)}
        async with alone(poll_s, plain={"lease_duration": timedelta(seconds=3)}, **declared) as one:
            await one.member.beat(0)
            assert one.member.beat_at == lease // BEATS_PER_LEASE
            [write] = one.queued()
            found = read_member(_row(write.change.args))  # type: ignore[union-attr]
            assert found is not None
            assert found.lease == lease

    _run(main)


def test_only_enabled_templates_that_say_so_are_shared_and_they_are_named_first() -> None:
    async def main() -> None:
        async with alone(
            plain={},
            off={"enabled": False},
            parts={"count": 4},
            shared=shared(),
            unused=shared(),
        ) as one:
            one.tasks["unused"].enabled = False
            await one.member.beat(0)
            assert set(one.member.shares()) == {"shared"}
            [write] = one.queued()
            found = read_member(_row(write.change.args))  # type: ignore[union-attr]
            assert found is not None
            assert (found.tasks, found.task_count) == (("shared", "plain", "parts"), 3)
            assert (found.name, found.since, found.seen) == ("me", NOW, NOW)
            assert (found.running, found.runs) == (0, ())
            assert write[:2] == (MEMBERS_GROUP, one.member.id)
            # What it claims from has changed: the record is written soon.
            one.member.shares()
            assert one.member.beat_at > 0
            one.tasks["off"].enabled = True
            one.member.shares()
            assert one.member.beat_at == 0

    _run(main)


def test_names_that_are_too_long_together_are_left_out() -> None:
    assert membership._bounded(["a" * TASKS_CHARACTERS_MAX]) == ("a" * TASKS_CHARACTERS_MAX,)
    assert membership._bounded(["a" * TASKS_CHARACTERS_MAX, "b"]) == ("a" * TASKS_CHARACTERS_MAX,)
    assert membership._bounded(["a" * (TASKS_CHARACTERS_MAX + 1)]) == ()
    assert len(membership._bounded(map(str, range(TASKS_MAX + 9)))) == TASKS_MAX


def test_a_beat_waits_for_the_answer_of_the_one_before() -> None:
    async def main() -> None:
        async with alone(plain={}) as one:
            await one.member.beat(0)
            await one.member.beat(1)
            assert len(one.worker.writes) == 1
            [entry] = one.worker.writes._take_all()
            write = entry.build(NOW)
            assert write is not None
            assert entry.answered(Applied(1), write, NOW) is Next.DONE
            await one.clock.advance(timedelta(seconds=5))
            await one.member.beat(2)
            [again] = one.queued()
            found = read_member(_row(again.change.args))  # type: ignore[union-attr]
            assert found is not None
            assert found.since == NOW  # not when it was written again
            one.member._writing.abandon(ValueError("no room"))  # type: ignore[union-attr]
            await one.member.beat(3)
            assert len(one.queued()) == 1

    _run(main)


def test_what_others_say_decides_what_is_its_own_and_a_change_is_told() -> None:
    async def main() -> None:
        async with alone(shared=shared(), other=shared()) as one:
            member, own = one.member, one.member.id
            assert await member.beat(0)  # as yet it knew nothing
            assert not await member.beat(1)
            assert [share.workers for share in member.shares().values()] == [1, 1]
            alive = Member("zz:1", "zz", None, NOW, 10 * SECOND, tasks=("shared",))
            dead = alive._replace(id="zz:2", seen=NOW - 11 * SECOND)
            await one.plant(alive, dead)
            await one.plant_row("zz:3", Put(None, State.FINISHED, None, 0, "", "?", ""), NOW)
            assert await member.beat(2)
            shares = member.shares()
            assert shares == shares_of(["shared", "other"], [alive], own)
            assert (shares["shared"].workers, shares["other"].workers) == (2, 1)
            assert not await member.beat(3)
            # Without any that it shares, it owns all, and that is no change that matters.
            for task in one.tasks.values():
                task.enabled = False
            assert not await member.beat(4)
            assert member.shares() == {}

    _run(main)


def test_a_change_of_shares_is_logged_for_the_templates_that_it_concerns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with alone(shared=shared(), other=shared()) as one:
            await one.member.beat(0)
            assert _logged(caplog, "share its partitions") == 2
            await one.plant(Member("zz:1", "zz", None, NOW, 10 * SECOND, tasks=("shared",)))
            await one.member.beat(1)
            assert _logged(caplog, "Task 'shared': 2 workers share its partitions") == 1
            assert _logged(caplog, "share its partitions") == 3
            one.faults.down("scan").__enter__()
            await one.member.beat(2)  # nothing is known, so nothing is said of shares
            assert _logged(caplog, "share its partitions") == 3

    _run(main)


def _logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


def test_a_worker_that_cannot_read_the_others_owns_all_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with alone(shared=shared()) as one:
            await one.plant(Member("zz:1", "zz", None, NOW, 10 * SECOND, tasks=("shared",)))
            assert await one.member.beat(0)
            assert one.member.shares()["shared"].workers == 2
            with one.faults.down("scan"):
                assert await one.member.beat(1)
                assert one.member.shares() == {}
                assert not await one.member.beat(2)
                assert _logged(caplog, "cannot read which other workers") == 1
            assert await one.member.beat(3)
            with one.faults.down("scan"):
                await one.member.beat(4)
            assert _logged(caplog, "cannot read which other workers") == 2
            assert _logged(caplog, "Records of dead workers") == 0

    _run(main)


def test_a_worker_that_shares_nothing_reads_only_to_remove_dead_records(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with alone(plain={}) as one:
            old = Member("zz:1", "zz", None, NOW - 2 * FORGET_AFTER)
            recent = Member("zz:2", "zz", None, NOW - FORGET_AFTER // 2)
            first = LEASE // BEATS_PER_LEASE
            await one.plant(old, recent)
            one.faults.calls.clear()
            scans = []
            for at in (0, first - 1, first, first + 1, first + TIDY_INTERVAL):
                assert not await one.member.beat(at)
                scans.append(len(one.faults.made("scan")))
            assert scans == [0, 0, 1, 1, 2]
            gone = [write for write in one.queued() if write.key != one.member.id]
            assert gone == [Write(MEMBERS_GROUP, "zz:1", DELETE, old.seen)] * 2
            with one.faults.down("scan"):
                await one.member.beat(first + 2 * TIDY_INTERVAL)
            assert _logged(caplog, "Records of dead workers cannot be read") == 1
            assert _logged(caplog, "cannot read which other workers") == 0

    _run(main)


def test_a_worker_that_shares_partitions_removes_dead_records_no_more_often() -> None:
    async def main() -> None:
        async with alone(shared=shared()) as one:
            old = Member("zz:1", "zz", None, NOW - 2 * FORGET_AFTER)
            await one.plant(old)
            removals = []
            for at in (0, 1, 2 * SECOND, 2 * SECOND + 1):
                await one.member.beat(at)
                removals.append(sum(write.key == "zz:1" for write in one.queued()))
                one.member._writing = None
            assert removals == [0, 0, 1, 0]

    _run(main)


def test_a_task_is_served_by_a_worker_that_names_it_or_perhaps_by_one_that_leaves_names_out() -> (
    None
):
    some = [(("a",), 1), (("a", "b"), 2), (("a",), 2), ((), 0), ((), 3)]
    for chosen in product(some, repeat=2):
        members = [Member("w:1", "w", None, NOW, tasks=t, task_count=n) for t, n in chosen]
        expected = any("b" in tasks or count > len(tasks) for tasks, count in chosen)
        assert served("b", members) is expected
    assert not served("b", [])


def test_what_needs_tags_that_this_worker_lacks_is_looked_for_once_a_minute() -> None:
    async def main() -> None:
        for tags, enabled in product((set(), {"gpu"}), (False, True)):
            async with alone(plain={"tags": tags, "enabled": enabled}) as one:
                left = bool(tags) and enabled
                assert one.member._left_to_others() == ([one.tasks["plain"]] if left else [])
                minute = membership.UNSERVED_INTERVAL
                instants = (5, 6, 4 + minute, 5 + minute, 6 + minute, 5 + 2 * minute)
                asked = [at for at in instants if one.member._asks(at)]
                assert asked == ([5 + minute, 5 + 2 * minute] if left else [])

    _run(main)


def test_a_task_that_no_worker_runs_is_named_once_and_again_when_it_was_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"tags": {"gpu", "eu"}}
        async with alone(one=dict(options), other=dict(options), plain={}) as one:
            both = Member("w:1", "w", None, NOW, tasks=("one", "other"), task_count=2)
            only = both._replace(tasks=("other",), task_count=1)
            for alive, warnings in (
                ([both], []),
                ([only], ["one"]),
                ([only], []),
                ([], ["other"]),
                ([both], []),
                ([], ["one", "other"]),
            ):
                caplog.clear()
                one.member._name_unserved(alive)
                found = [record.getMessage() for record in caplog.records]
                assert [text.split("'")[1] for text in found] == warnings
                assert all("(eu, gpu)" in text for text in found)

    _run(main)


@pytest.mark.parametrize("asks", [False, True])
def test_only_a_read_that_was_made_for_it_names_what_no_worker_runs(
    asks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with alone(plain={"tags": {"gpu"}}) as one:
            await one.member._read([], False, asks)
            assert len(caplog.records) == asks
            # And it is read for nothing else, where nothing is shared.
            one.member._tidy_at = NEVER
            one.member._ask_at = 7 if asks else 9
            one.faults.calls.clear()
            assert not await one.member.beat(8)
            assert len(one.faults.made("scan")) == asks

    _run(main)


def test_a_crowd_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PAGE_SIZE", 2)

    async def main() -> None:
        async with alone(plain={}) as one:
            await one.plant(*(Member(f"w{number}", "w", None, NOW) for number in range(7)))
            for limit, scans in ((100, 4), (7, 4), (4, 2), (3, 2), (1, 1)):
                monkeypatch.setattr(membership, "MEMBERS_MAX", limit)
                one.faults.calls.clear()
                found = await read_members(one.worker.store)
                keys = [record.key for record, _ in found]
                assert keys == [f"w{number}" for number in range(min(limit, 7))]
                assert len(one.faults.made("scan")) == scans

    _run(main)


REFUSED: Final = Refused(None)
ANSWERS: Final = (Applied(1), REFUSED, Failed(ValueError("no")), Unknown(ValueError("no")))


@pytest.mark.parametrize("answers", list(product(ANSWERS, repeat=3)))
def test_a_record_that_cannot_be_written_is_said_once_and_that_it_can_again_too(
    answers: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with alone(plain={}) as one:
            failing = False
            for answer in answers:
                caplog.clear()
                one.member.written(answer)
                fails = not isinstance(answer, Applied)
                assert _logged(caplog, "cannot write that it is alive") == (fails and not failing)
                assert _logged(caplog, "is known again") == (failing and not fails)
                failing = fails
            one.member._left = True
            caplog.clear()
            for answer in answers:
                one.member.written(answer)
            assert not caplog.records
            assert one.member._failing is failing

    _run(main)


@pytest.mark.parametrize(("joined", "reachable", "failing"), list(product((False, True), repeat=3)))
def test_a_worker_that_leaves_removes_its_record_if_the_store_answers(
    joined: bool, reachable: bool, failing: bool
) -> None:
    async def main() -> None:
        async with alone(plain={}) as one:
            member = one.member
            await member.left()  # it never came
            if joined:
                await member.beat(0)
                assert member.write(NOW) is not None
                if failing:
                    member.written(Failed(ValueError("no")))
            one.faults.calls.clear()
            member.leave(reachable)
            assert member.write(NOW) is None
            await member.left()
            removed = [
                write
                for call in one.faults.made("write")
                for write in call.arguments[0]
                if write.change is DELETE
            ]
            expected = joined and reachable and not failing
            mine = Write(MEMBERS_GROUP, member.id, DELETE, ANY)
            assert removed == ([mine] if expected else [])
            # It may come again.
            one.queued()
            await member.join()
            assert (member._left, member.beat_at, member._since) == (False, 0, None)

    _run(main)


def test_a_removal_that_the_store_refuses_is_no_error() -> None:
    async def main() -> None:
        async with alone(plain={}) as one:
            await one.member.beat(0)
            with one.faults.down("write"):
                one.member.leave(True)
                await one.member.left()
            error = StoreUnavailableError("closed")
            gone = membership._Removal(_row("", "zz:1", 4))
            assert gone.build(NOW) == Write(MEMBERS_GROUP, "zz:1", DELETE, 4)
            assert gone.answered(REFUSED, Write("", "", DELETE, 4), NOW) is Next.DONE
            gone.abandon(error)

    _run(main)
