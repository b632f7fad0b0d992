"""``partitions=Partitions.SHARED``: workers share the partitions of a template among themselves."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tests.faulty_store import AnswerWrites
from tests.support import Bench, after, logged, micros, run, seconds
from tests.unit.test_workers import plant_member

from pyncette import Context, Partitions, PerWorker, Pyncette, PyncetteContext
from pyncette.engine.membership import LEASE, LEASE_MIN, Member, shares_of
from pyncette.engine.polling import NEVER, Share, Sources
from pyncette.store import Failed, Group
from pyncette.store.record import MEMBERS_GROUP
from pyncette.task import PartitionedTask, Task

pytestmark = pytest.mark.every_poll

COUNT = 8


class Fleet:
    """Workers on one store, each with a template whose partitions they share, and who ran what."""

    def __init__(self, lease_s: float = 6, **options: Any) -> None:
        self.bench = Bench()
        self.ran: list[tuple[str, str, float]] = []
        self.tasks: dict[str, PartitionedTask] = {}
        self._lease_s = lease_s
        self._options = options
        self.slow_s = 0.0

    def app(self, name: str, **configuration: Any) -> Pyncette:
        app = self.bench.another_app(worker_name=name, **configuration)

        async def job(context: Context) -> None:
            self.ran.append((name, context.task.name, self.bench.clock.monotonic()))
            if self.slow_s:
                await self.bench.clock.sleep(self.slow_s)

        self.tasks[name] = app.partitioned_task(
            COUNT,
            partition_selector=lambda count, name: int(name) % count,
            partitions=Partitions.SHARED,
            name="job",
            lease_duration=seconds(self._lease_s),
            **self._options,
        )(job)
        return app

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[list[PyncetteContext]]:
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.bench.running(self.app(name)))
                for name in names
            ]

    async def due_in_each(self, context: PyncetteContext, at: float) -> None:
        """Schedules one run in each partition."""
        task = next(iter(self.tasks.values()))
        for number in range(COUNT):
            await context.schedule_task(task, f"{number}", execute_at=after(at))

    def who(self) -> dict[str, list[int]]:
        """What each worker ran, since this was last asked."""
        found: dict[str, list[int]] = {}
        for worker, instance, _ in self.ran:
            found.setdefault(worker, []).append(int(instance))
        self.ran.clear()
        return {worker: sorted(numbers) for worker, numbers in sorted(found.items())}


def owned(context: PyncetteContext) -> set[str]:
    """The partitions of which a worker is the owner, as it sees it."""
    return {source.group for source in context._worker.sources.all() if source.own}


def asked(context: PyncetteContext, group: str) -> int:
    return context._worker.sources.find(group, "").next_ask  # type: ignore[union-attr]


async def crash(context: PyncetteContext) -> None:
    """The worker does nothing any more, and its record stays."""
    worker = context._worker
    worker.membership.leave = lambda reachable: None  # type: ignore[method-assign]
    worker.shutdown()
    await worker.at_rest(queued=False)


# The rule.


def members(*ids: str, tasks: Sequence[str] = ("job",)) -> list[Member]:
    return [Member(name, name, 0, 0, tasks=tuple(tasks)) for name in ids]


@pytest.mark.parametrize("count", range(1, 7))
def test_shares_are_disjoint_complete_and_even(count: int) -> None:
    ids = [f"w{number}" for number in range(count)]
    for template in ("job", "other", "ï"):
        alive = members(*ids, tasks=(template,))
        shares = [shares_of([template], alive, name)[template] for name in ids]
        for partition_count in (1, 2, 7, 32, 1000):
            owners = [
                [number for number, share in enumerate(shares) if share.owns(index)]
                for index in range(partition_count)
            ]
            assert all(len(found) == 1 for found in owners)
            sizes = Counter(dict.fromkeys(range(count), 0))
            sizes.update(found[0] for found in owners)
            assert max(sizes.values()) - min(sizes.values()) <= 1


def test_many_templates_with_one_partition_are_spread_as_well() -> None:
    names = [f"job-{number}" for number in range(1000)]
    alive = members("a", "b", "c", tasks=names)
    owned = Counter(
        worker
        for worker in ("a", "b", "c")
        for share in shares_of(names, alive, worker).values()
        if share.owns(0)
    )
    assert sum(owned.values()) == 1000
    assert min(owned[worker] for worker in ("a", "b", "c")) > 280


def test_only_those_that_claim_from_a_template_have_a_share_of_it() -> None:
    alive = [*members("a", "b"), *members("c", tasks=("other",))]
    assert shares_of(["job"], alive, "a")["job"].workers == 2
    # Its own record is perhaps not there yet, or too old.
    assert shares_of(["job"], alive, "d")["job"].workers == 3


# Workers.


def test_workers_share_the_partitions_evenly_and_each_runs_its_own() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a", "b", "c") as contexts:
            await fleet.bench.advance(3)
            parts = [owned(context) for context in contexts]
            assert sorted(map(len, parts)) == [2, 3, 3]
            assert len(set.union(*parts)) == COUNT
            for round_ in range(3):
                await fleet.due_in_each(contexts[round_], 5.25 + 3 * round_)
                await fleet.bench.advance(3)
            await fleet.bench.advance(1)
            assert {time for _, _, time in fleet.ran} == {5.25, 8.25, 11.25}
            ran = fleet.who()
            groups = {
                name: {f"job:{number}" for number in numbers} for name, numbers in ran.items()
            }
            assert groups == dict(zip("abc", parts, strict=True))

    run(main())


def test_a_worker_that_joins_or_leaves_is_noticed_within_a_beat() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a") as [first]:
            await fleet.bench.advance(0.5)
            assert len(owned(first)) == COUNT
            async with fleet.running("b") as [second]:
                await fleet.bench.advance(2)
                assert len(owned(first)) == len(owned(second)) == COUNT / 2
                assert owned(first).isdisjoint(owned(second))
            await fleet.bench.advance(2)
            assert len(owned(first)) == COUNT

    run(main())


def test_after_a_crash_the_partitions_are_shared_anew_within_two_lease_times() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a", "b", "c") as contexts:
            await fleet.bench.advance(5)
            await crash(contexts[1])
            await fleet.bench.advance(4)
            left = [owned(contexts[0]), owned(contexts[2])]
            assert sum(map(len, left)) < COUNT
            await fleet.bench.advance(8)
            left = [owned(contexts[0]), owned(contexts[2])]
            assert [len(part) for part in left] == [4, 4]
            assert left[0].isdisjoint(left[1])
            await fleet.due_in_each(contexts[0], 20.25)
            await fleet.bench.advance(5)
            assert {time for _, _, time in fleet.ran} == {20.25}
            assert sorted(fleet.who()) == ["a", "c"]

    run(main())


def test_what_a_frozen_worker_owns_runs_two_or_three_poll_intervals_late() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        async with fleet.running("a", "b") as contexts:
            await fleet.bench.advance(25)
            await crash(contexts[1])
            await fleet.due_in_each(contexts[0], 30.25)
            await fleet.bench.advance(10)
            times = Counter(time for _, _, time in fleet.ran)
            assert times == {30.25: 4, 33: 4}
            assert list(fleet.who()) == ["a"]

    run(main())


def test_what_a_worker_has_no_slot_for_is_run_by_another_one() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        fleet.slow_s = 40
        async with AsyncExitStack() as stack:
            busy = await stack.enter_async_context(
                fleet.bench.running(fleet.app("a", concurrency_limit=1))
            )
            await stack.enter_async_context(fleet.bench.running(fleet.app("b")))
            await fleet.bench.advance(25)
            await fleet.due_in_each(busy, 30.25)
            await fleet.bench.advance(10)
            assert Counter(time for _, _, time in fleet.ran) == {30.25: 5, 33: 3}
            assert list(map(len, fleet.who().values())) == [1, 7]
            await fleet.bench.advance(60)

    run(main())


def test_a_backlog_of_a_dead_worker_is_run_without_pauses_once_it_is_overdue() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        async with AsyncExitStack() as stack:
            [dead] = await stack.enter_async_context(fleet.running("b"))
            alive = await stack.enter_async_context(
                fleet.bench.running(fleet.app("a", batch_size=5))
            )
            await fleet.bench.advance(25)
            await crash(dead)
            mine = next(group for group in owned(alive))
            other = next(number for number in range(COUNT) if f"job:{number}" not in owned(alive))
            assert mine != f"job:{other}"
            for number in range(50):
                await alive.schedule_task(
                    fleet.tasks["a"], str(other + COUNT * number), execute_at=after(30.25)
                )
            before = len(fleet.bench.faults.made("claim"))
            await fleet.bench.advance(8)
            assert {time for _, _, time in fleet.ran} == {33}
            assert len(fleet.ran) == 50
            # Ten batches, and what is left is no reason to ask sooner than at the next poll.
            assert len(fleet.bench.faults.made("claim")) - before <= 8 + 12

    run(main())


def test_no_news_of_anothers_partition_makes_a_worker_ask() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        async with fleet.running("a", "b") as [first, second]:
            await fleet.bench.advance(25.5)
            await crash(second)
            other = next(iter(owned(second)))
            worker = first._worker
            before = len(fleet.bench.faults.made("claim"))
            source = worker.sources.find(other, "x")
            assert source is not None
            assert not source.own
            worker.wake(other, "x", micros(25.5))
            worker.wake_groups([other])
            worker.sources.hold_off(source, micros(25.5), 1_000_000)
            number = int(other.rpartition(":")[2])
            await first.schedule_task(fleet.tasks["a"], f"{number}", execute_at=after(25.6))
            await fleet.bench.advance(0.4)
            assert len(fleet.bench.faults.made("claim")) == before
            assert asked(first, other) == NEVER
            await fleet.bench.advance(1.6)
            assert len(fleet.bench.faults.made("claim")) == before + 2
            assert fleet.ran == []
            await fleet.bench.advance(1)
            assert fleet.who() == {"a": [number]}

    run(main())


def test_a_partition_that_changes_its_owner_is_asked_at_once() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a") as [first]:
            async with fleet.running("b") as [second]:
                await fleet.bench.advance(3)
                gone = owned(second)
                numbers = sorted(int(group.rpartition(":")[2]) for group in gone)
            for number in numbers:
                await fleet.bench.plant(fleet.tasks["a"], f"{number}", planned=3.1)
            await fleet.bench.advance(2)
            assert owned(first) >= gone
            assert {time for _, _, time in fleet.ran} <= {4, 5}
            assert fleet.who() == {"a": numbers}

    run(main())


def test_what_others_own_is_asked_only_for_what_is_overdue() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a", "b"):
            await fleet.bench.advance(3)
            fleet.bench.faults.calls.clear()
            await fleet.bench.advance(1)
            for call in fleet.bench.faults.made("claim"):
                sources, _, now, *_ = call.arguments
                overdue = [source for source in sources if source.before == now - 2_000_000]
                assert len(overdue) == COUNT / 2
                assert all(
                    source.before in (now, now - 2_000_000) and type(source) is Group
                    for source in sources
                )

    run(main())


def test_a_full_claim_is_no_reason_to_ask_others_again() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        async with AsyncExitStack() as stack:
            [dead] = await stack.enter_async_context(fleet.running("b"))
            alive = await stack.enter_async_context(
                fleet.bench.running(fleet.app("a", batch_size=1))
            )
            await fleet.bench.advance(25)
            await crash(dead)
            own = next(number for number in range(COUNT) if f"job:{number}" in owned(alive))
            other = next(number for number in range(COUNT) if f"job:{number}" not in owned(alive))
            for number in (*range(own, own + 20 * COUNT, COUNT), other):
                await fleet.bench.plant(fleet.tasks["a"], f"{number}", planned=25.9)
            fleet.bench.faults.calls.clear()
            await fleet.bench.advance(1)
            claims = [call.arguments[0] for call in fleet.bench.faults.made("claim")]
            assert len(fleet.ran) == 20
            assert sum(f"job:{other}" in {source.group for source in one} for one in claims) == 1

    run(main())


def test_what_a_limit_leaves_out_of_a_poll_is_asked_after_it() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60, limit=PerWorker(1))
        app = fleet.app("a")
        app.dynamic_task(name="plain")(fleet.bench.note)
        async with fleet.running("b") as [dead], fleet.bench.running(app) as alive:
            await fleet.bench.advance(25)
            await crash(dead)
            fleet.bench.faults.calls.clear()
            await fleet.bench.advance(20)
            groups = Counter(
                source.group
                for call in fleet.bench.faults.made("claim")
                for source in call.arguments[0]
            )
            assert groups["plain"] == 20
            assert {groups[f"job:{number}"] for number in range(COUNT)} == {20}
            assert len(owned(alive)) == COUNT / 2 + 1

    run(main())


def test_workers_that_poll_seldom_share_anew_as_soon_as_others() -> None:
    async def main() -> None:
        fleet = Fleet()
        async with AsyncExitStack() as stack:
            first, second = [
                await stack.enter_async_context(
                    fleet.bench.running(fleet.app(name, poll_interval=seconds(600)))
                )
                for name in ("a", "b")
            ]
            await fleet.bench.advance(2)
            assert len(owned(first)) == len(owned(second)) == COUNT / 2
            await crash(second)
            await fleet.bench.advance(12)
            assert len(owned(first)) == COUNT

    run(main())


def test_the_record_names_shared_templates_first() -> None:
    async def main() -> None:
        fleet = Fleet()
        plain = fleet.bench.another_app()
        for number in range(250):
            plain.dynamic_task(name=f"plain-{number}")(fleet.bench.note)
        job = fleet.app("a")
        plain._tasks += job._tasks
        async with fleet.bench.running(plain) as context:
            await fleet.bench.advance(1)
            [state] = await context.workers()
            assert (state.tasks[0], state.task_count) == ("job", 251)

    run(main())


# What may go wrong.


def test_a_worker_that_cannot_read_the_membership_claims_from_all_partitions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a", "b") as contexts:
            await fleet.bench.advance(3)
            assert len(owned(contexts[0])) == COUNT / 2

            def of_members(group: str, *_: Any) -> bool:
                return group == MEMBERS_GROUP

            for _ in range(6):
                fleet.bench.faults.next("scan", AlwaysFails(), matches=of_members)
            await fleet.bench.advance(3)
            assert len(owned(contexts[0])) == len(owned(contexts[1])) == COUNT
            await fleet.due_in_each(contexts[0], 6.5)
            await fleet.bench.advance(0.5)
            assert {time for _, _, time in fleet.ran} == {6.5}
            await fleet.bench.advance(6)
            assert len(owned(contexts[0])) == COUNT / 2

    run(main())
    warnings = [record for record in caplog.records if "cannot read which" in record.getMessage()]
    assert len(warnings) == 2  # one of each worker


class AlwaysFails:
    async def strike(self, call: Any) -> Any:
        raise RuntimeError("no page")


def test_a_worker_that_cannot_write_its_record_works_on() -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.bench.faults.of_members = True
        async with fleet.running("a", "b") as contexts:
            await fleet.bench.advance(3)

            def of_a(write: Any) -> bool:
                return bool(write.group == MEMBERS_GROUP and write.key.startswith("a:"))

            fault = AnswerWrites(Failed(ValueError("no room")), of_a)
            with fleet.bench.faults.down("write", fault=fault):
                await fleet.bench.advance(10)
                assert len(owned(contexts[1])) == COUNT
                assert len(owned(contexts[0])) == COUNT / 2
                await fleet.due_in_each(contexts[1], 15.25)
                await fleet.bench.advance(5)
            assert {time for _, _, time in fleet.ran} == {15.25}
            assert len(fleet.ran) == COUNT
            await fleet.bench.advance(4)
            assert len(owned(contexts[1])) == COUNT / 2

    run(main())


def test_rows_of_nobody_have_no_share() -> None:
    async def main() -> None:
        fleet = Fleet()
        bench = fleet.bench
        await plant_member(bench, "idle:1", tasks=("other",))
        await plant_member(bench, "dead:1", at=-9, tasks=("job",), lease=1)
        await plant_member(bench, "there:1", at=1, tasks=("job",))
        async with fleet.running("a") as [context]:
            await bench.advance(1)
            assert len(owned(context)) == COUNT / 2

    run(main())


# Changes while it runs.


def test_a_task_that_is_disabled_leaves_its_share_to_others_and_has_one_again() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60)
        async with fleet.running("a", "b") as contexts:
            await fleet.bench.advance(41)
            fleet.tasks["a"].enabled = False
            await fleet.bench.advance(1.5)
            assert owned(contexts[0]) == set()
            [first, _] = await contexts[0].workers()
            assert (first.name, first.tasks) == ("a", ())
            await fleet.bench.advance(20)
            assert len(owned(contexts[1])) == COUNT
            await fleet.due_in_each(contexts[0], 65.25)
            await fleet.bench.advance(4)
            assert {time for _, _, time in fleet.ran} == {65.25}
            assert list(fleet.who()) == ["b"]
            fleet.tasks["a"].enabled = True
            await fleet.bench.advance(22)
            assert len(owned(contexts[0])) == len(owned(contexts[1])) == COUNT / 2

    run(main())


@pytest.mark.parametrize(("lease_s", "expected"), [(0.5, LEASE_MIN), (6, 6_000_000), (600, LEASE)])
def test_the_record_lives_as_long_as_the_shortest_lease_within_bounds(
    lease_s: float, expected: int
) -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=lease_s)
        async with fleet.running("a") as [context]:
            await fleet.bench.advance(1)
            [state] = await context.workers()
            assert state.expires_at - state.seen_at == seconds(expected / 1_000_000)
            fleet.tasks["a"].enabled = False
            await fleet.bench.advance(2)
            [state] = await context.workers()
            assert state.expires_at - state.seen_at == seconds(60)

    run(main())


def test_idle_workers_that_share_partitions_beat_three_times_per_lease() -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.bench.faults.of_members = True
        async with fleet.running("a"):
            await fleet.bench.advance(60)
            fleet.bench.faults.calls.clear()
            await fleet.bench.advance(60)
            counts = Counter(call.name for call in fleet.bench.faults.calls)
            # One scan per poll reads the pauses.
            assert counts == {"claim": 60, "write": 30, "scan": 60 + 30}

    run(main())


def test_a_change_of_shares_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        fleet = Fleet()
        async with fleet.running("a"):
            async with fleet.running("b"):
                await fleet.bench.advance(8)
            await fleet.bench.advance(8)

    run(main())
    assert logged(caplog, "Task 'job': 2 workers share its partitions")
    said = [record for record in caplog.records if "share its partitions" in record.getMessage()]
    assert len(said) == 4


def test_a_limit_holds_in_the_partitions_of_others_too() -> None:
    async def main() -> None:
        fleet = Fleet(lease_s=60, limit=PerWorker(1))
        fleet.slow_s = 2
        async with fleet.running("a", "b") as contexts:
            await fleet.bench.advance(25)
            await crash(contexts[1])
            await fleet.due_in_each(contexts[0], 30)
            await fleet.bench.advance(40)
            times = sorted(time for _, _, time in fleet.ran)
            assert len(times) == COUNT
            assert all(later - sooner >= 2 for sooner, later in itertools.pairwise(times))
            assert times[-1] <= 50

    run(main())


def test_the_table_asks_a_partition_of_another_only_when_told_to_again() -> None:
    async def body(context: Context) -> None: ...

    task = PartitionedTask(partition_count=2, name="a", func=body, partitions=Partitions.SHARED)
    sources = Sources()
    sources.refresh([task], shares={"a": Share(0, 2)})
    own, other = sources.due(5)
    assert (own.own, other.own) == (True, False)
    assert not sources.ask_by(other, 7)
    assert sources.ask_by(own, 8)
    assert sources.soonest() == 8
    sources.ask_again(other, 6)
    assert sources.due(6) == [other]
    sources.refresh([task])
    assert other.own


# Declaration.


async def _body(context: Context) -> None: ...


def declare(**options: Any) -> PartitionedTask:
    return Pyncette().partitioned_task(4, name="job", **options)(_body)


def test_partitions_are_not_shared_unless_asked_for() -> None:
    assert declare().partitions is Partitions.ALL
    assert declare(partitions=Partitions.ALL, enabled_partitions=[1]).partitions is Partitions.ALL
    assert declare(partitions=Partitions.SHARED).partitions is Partitions.SHARED


def test_shared_partitions_cannot_be_enabled_one_by_one() -> None:
    with pytest.raises(ValueError, match="share the partitions among themselves"):
        declare(partitions=Partitions.SHARED, enabled_partitions=[1])
    task = declare(partitions=Partitions.SHARED)
    with pytest.raises(ValueError, match="Remove one of the two"):
        task.enabled_partitions = range(2)
    task.enabled_partitions = None


@pytest.mark.parametrize("value", [object(), {1, 2}, Partitions])
def test_a_value_that_is_no_option_and_no_argument_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"partitions must be a pyncette\.Partitions, not"):
        declare(partitions=value)


@pytest.mark.parametrize("value", [None, 3, "shared", [1, 2]])
def test_a_value_that_json_can_hold_is_an_argument_as_before(value: Any) -> None:
    task = declare(partitions=value)
    assert task.partitions is Partitions.ALL
    assert task.extra_args == {"partitions": value}
    assert task.instantiate("x", interval=1, partitions=value).extra_args["partitions"] == value
    plain: Task = Pyncette().dynamic_task(name="job", partitions=value)(_body)
    assert plain.extra_args == {"partitions": value}


def test_a_task_without_partitions_cannot_share_them() -> None:
    app: Any = Pyncette()
    for decorate in (app.dynamic_task, app.task):
        with pytest.raises(TypeError, match=r"'_body' has no partitions: declare it with @app\."):
            decorate(partitions=Partitions.SHARED)(_body)


def test_an_instance_cannot_choose_to_share() -> None:
    for task in (declare(), Pyncette().dynamic_task(name="plain")(_body)):
        with pytest.raises(TypeError, match="partitions is an option of the template"):
            task.instantiate("x", partitions=Partitions.SHARED)  # type: ignore[arg-type]
