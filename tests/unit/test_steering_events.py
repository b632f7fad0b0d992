"""Each call that changes what runs is told as an event, and says who made it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from tests.support import START, Bench, after, run, seconds

from pyncette import (
    Context,
    Instance,
    OnExisting,
    PyncetteContext,
    Retry,
    StoreUnavailableError,
    TaskLockedException,
    TaskNotFoundError,
    Where,
    acting_as,
)
from pyncette.acting import actor
from pyncette.events import (
    Event,
    GroupPaused,
    GroupResumed,
    InstanceSteered,
    LoopAnswered,
    Started,
    Steered,
)
from pyncette.memory import MemoryRepository
from pyncette.task import Task

pytestmark = pytest.mark.every_poll


class Place:
    """An app with a static task, a template and a partitioned one; what its handlers were told."""

    def __init__(self) -> None:
        self.bench = bench = Bench()
        self.told: list[Steered] = []
        bench.app.on_event(self.told.append, Steered)
        retry = Retry(attempts=1)
        self.tick: Task = bench.app.task(name="tick", interval=seconds(1_000))(bench.note)
        self.job: Task = bench.app.dynamic_task(name="job", retry=retry)(bench.fail)
        self.shop = bench.app.partitioned_task(name="shop", partition_count=2)(bench.note)

    async def fill(self, context: PyncetteContext) -> None:
        """Has two instances of each template, and forgets what was told of that."""
        for template in (self.job, self.shop):
            await context.schedule_tasks(template, [_instance("a"), _instance("b")])
        self.told.clear()

    async def park(self, context: PyncetteContext) -> None:
        """Has both instances of the template parked."""
        await self.fill(context)
        await self.bench.advance(501)
        self.told.clear()

    @property
    def said(self) -> list[dict[str, Any]]:
        """What the events say beside what all say, and beside what is as usual."""
        usual = {"at": None, "worker": None, "label": None}
        found = []
        for event in self.told:
            fields = {name: getattr(event, name) for name in Steered.__dataclass_fields__}
            found.append(
                {
                    name: value
                    for name, value in fields.items()
                    if name not in usual and value not in (None, False, 0)
                }
            )
        return found


def _instance(name: str) -> Instance:
    return Instance(name, execute_at=after(500))


Call = Callable[[PyncetteContext, Place], Awaitable[Any]]

CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "pause of a static task": (
        lambda c, p: c.pause(p.tick, until=after(60), reason="rest"),
        {"action": "pause", "task": "tick", "count": 1, "until": after(60), "reason": "rest"},
    ),
    "pause of an instance": (
        lambda c, p: c.pause(p.job, "a"),
        {"action": "pause", "task": "job", "instance": "a", "count": 1},
    ),
    "pause of a partition": (
        lambda c, p: c.pause(p.shop.get_partitions()[1]),
        {"action": "pause", "task": "shop", "partition": 1},
    ),
    "pause of a template": (
        lambda c, p: c.pause(p.job, reason="rest"),
        {"action": "pause", "task": "job", "reason": "rest"},
    ),
    "resume of a template": (
        lambda c, p: c.resume(p.job),
        {"action": "resume", "task": "job"},
    ),
    "resume of a partition": (
        lambda c, p: c.resume(p.shop.get_partitions()[0]),
        {"action": "resume", "task": "shop"},
    ),
    "trigger of a static task": (
        lambda c, p: c.trigger(p.tick),
        {"action": "trigger", "task": "tick", "count": 1},
    ),
    "trigger of an instance": (
        lambda c, p: c.trigger(p.job, "a"),
        {"action": "trigger", "task": "job", "instance": "a", "count": 1},
    ),
    "trigger of a template": (
        lambda c, p: c.trigger(p.job),
        {"action": "trigger", "task": "job", "count": 2},
    ),
    "schedule of many": (
        lambda c, p: c.schedule_tasks(p.job, [_instance("a"), _instance("c"), _instance("d")]),
        {"action": "schedule", "task": "job", "count": 2},
    ),
    "unschedule of named ones": (
        lambda c, p: c.unschedule_tasks(p.job, ["a", "nothing"]),
        {"action": "unschedule", "task": "job", "count": 1, "where": "named ones"},
    ),
    "unschedule of those that match": (
        lambda c, p: c.unschedule_tasks(
            p.job, where=Where({"scheduled"}, "a", after(900), False, False)
        ),
        {
            "action": "unschedule",
            "task": "job",
            "count": 1,
            "where": "state scheduled, name begins with 'a', "
            "due before 2026-01-05T12:15:00+00:00, not paused, not failing",
        },
    ),
    "unschedule of all": (
        lambda c, p: c.unschedule_tasks(p.job, where=Where()),
        {"action": "unschedule", "task": "job", "count": 2},
    ),
    "sync": (
        lambda c, p: c.sync_tasks(p.job, [_instance("a"), _instance("c")]),
        {"action": "sync", "task": "job", "count": 2},
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_each_call_that_changes_what_runs_is_told_once_with_who_made_it(what: str) -> None:
    call, expected = CALLS[what]

    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            await place.fill(context)
            with acting_as("alice"):
                await call(context, place)
            [said] = place.said
            assert said == {**expected, "by": "alice"}
            [event] = place.told
            assert (event.at, event.worker) == (place.bench.clock.now(), "worker")
            place.told.clear()
            if what.startswith("pause"):
                await context.resume(place.job)
                assert place.told[0].by is None

    run(main())


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda c, p: c.retry_parked(p.job, "a"),
            {"action": "retry", "task": "job", "instance": "a", "count": 1},
        ),
        (
            lambda c, p: c.drop_parked(p.job, "a"),
            {"action": "drop", "task": "job", "instance": "a", "count": 1},
        ),
        (
            lambda c, p: c.retry_parked_tasks(p.job),
            {"action": "retry", "task": "job", "count": 2, "where": "state parked"},
        ),
        (
            lambda c, p: c.drop_parked_tasks(p.job, where=Where(prefix="b", failing=True)),
            {
                "action": "drop",
                "task": "job",
                "count": 1,
                "where": "state parked, name begins with 'b', failing",
            },
        ),
    ],
)
def test_calls_about_what_is_parked_are_told(call: Call, expected: dict[str, Any]) -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.running() as context:
            await place.park(context)
            await call(context, place)
            assert place.said == [expected]

    run(main())


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda c, p: c.pause_tasks(
                p.job, where=Where(prefix="a"), until=after(50), reason="moves"
            ),
            {"action": "pause", "count": 1, "until": after(50), "reason": "moves"},
        ),
        (
            lambda c, p: c.resume_tasks(p.job, where=Where(prefix="a", paused=True)),
            {"action": "resume", "count": 1},
        ),
        (lambda c, p: c.trigger_tasks(p.job, where=Where(prefix="a")), {"action": "trigger"}),
    ],
)
def test_calls_about_some_instances_are_told_once(call: Call, expected: dict[str, Any]) -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            await place.fill(context)
            if expected["action"] == "resume":
                await context.pause(place.job, "a")
                place.told.clear()
            await call(context, place)
            [said] = place.said
        assert said["where"].startswith("name begins with 'a'")
        assert said == {"task": "job", "count": 1, "where": said["where"], **expected}

    run(main())


def test_to_rebalance_is_told_at_its_end_and_not_if_nothing_was_to_be_done() -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            await place.fill(context)
            for count in (3, 3, 1):
                with acting_as("alice"):
                    call = asyncio.create_task(context.rebalance(place.shop, count))
                while not call.done():
                    await place.bench.advance(1)
                result = await call
                assert result.partition_count == count
        first, second = place.told
        assert (first.action, first.label, first.partition_count) == ("rebalance", "shop", 3)
        assert (second.partition_count, second.count, second.by) == (1, result.moved, "alice")

    run(main())


def test_to_purge_a_removed_task_is_told_with_the_number_of_its_records() -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.running() as context:
            await place.fill(context)
        bare = place.bench.another_app()
        told: list[Steered] = []
        bare.on_event(told.append)
        async with bare.create() as context:
            for name in ("job", "tick", "nothing"):
                await context.purge(name)
        assert [(event.action, event.label, event.count) for event in told] == [
            ("purge", "job", 2),
            ("purge", "tick", 1),
        ]

    run(main())


@pytest.mark.parametrize(
    "call",
    [
        lambda c, p: c.trigger(p.job, "nothing"),
        lambda c, p: c.pause(p.job, "nothing"),
        lambda c, p: c.pause(p.job, until=START),
        lambda c, p: c.resume(p.job, "a"),
        lambda c, p: c.resume(p.tick),
        lambda c, p: c.retry_parked(p.job, "a"),
        lambda c, p: c.drop_parked(p.tick),
        lambda c, p: c.retry_parked_tasks(p.job),
        lambda c, p: c.resume_tasks(p.job, where=Where()),
        lambda c, p: c.pause_tasks(p.job, where=Where(prefix="nothing")),
        lambda c, p: c.unschedule_tasks(p.job, ["nothing"]),
        lambda c, p: c.unschedule_tasks(p.job, [""]),
        lambda c, p: c.sync_tasks(p.job, [_instance("a"), _instance("b")]),
        lambda c, p: c.sync_tasks(p.job, [_instance("c")], dry_run=True),
        lambda c, p: c.schedule_tasks(p.job, [_instance("a")], on_existing=OnExisting.KEEP),
        lambda c, p: c.schedule_task(p.job, "a", on_existing=OnExisting.KEEP, interval=5),
        lambda c, p: c.schedule_task(p.job, "a", execute_at=after(500)),
    ],
)
def test_a_call_that_fails_or_changes_nothing_is_not_told(call: Call) -> None:
    async def main() -> None:
        place = Place()
        instances: list[InstanceSteered] = []
        place.bench.app.on_event(instances.append, InstanceSteered)
        async with place.bench.app.create() as context:
            await place.fill(context)
            with suppress(TaskNotFoundError, ValueError), acting_as("alice"):
                await call(context, place)
        assert (place.told, instances) == ([], [])

    run(main())


def test_a_call_that_the_store_does_not_answer_is_not_told() -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            await place.fill(context)
            with place.bench.faults.down():
                for call in (
                    context.pause(place.job),
                    context.pause(place.job, "a"),
                    context.resume(place.job),
                    context.trigger(place.tick),
                    context.schedule_task(place.job, "c", interval=seconds(5)),
                    context.unschedule_task(place.job, "a"),
                ):
                    with pytest.raises(StoreUnavailableError), acting_as("alice"):
                        await call
        assert place.told == []

    run(main())


def test_a_call_about_many_that_fails_half_way_tells_what_it_has_changed() -> None:
    async def instances() -> AsyncIterator[Instance]:
        for number in range(1_500):
            yield _instance(f"x{number}")
        raise RuntimeError("the table cannot be read")

    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            with pytest.raises(RuntimeError, match="the table"):
                await context.schedule_tasks(place.job, instances())
        [event] = place.told
        assert (event.action, event.count, event.interrupted) == ("schedule", 1_000, True)

    run(main())


def test_single_instances_are_told_only_to_handlers_that_name_them() -> None:
    async def main() -> None:
        place = Place()
        named: list[InstanceSteered] = []
        every: list[Event] = []
        async with place.bench.app.create() as context:
            await context.schedule_task(place.job, "a", execute_at=after(500))
            place.bench.app.on_event(every.append)
            place.bench.app.on_event(named.append, InstanceSteered)
            await context.schedule_task(place.job, "b", execute_at=after(500))
            await context.unschedule_task(place.job, "b")
            await context.schedule_task(place.shop, "c", execute_at=after(500))
            await context.unschedule_task(await context.schedule_task(place.shop, "d", interval=5))
        assert (place.told, every) == ([], [])
        assert [(event.action, event.task, event.instance, event.by) for event in named] == [
            ("schedule", "job", "b", None),
            ("unschedule", "job", "b", None),
            ("schedule", "shop", "c", None),
            ("schedule", "shop", "d", None),
            ("unschedule", "shop", "d", None),
        ]

    run(main())


def test_single_instances_that_somebody_was_named_for_are_told_to_all() -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            with acting_as("alice"):
                await context.schedule_task(place.job, "a", execute_at=after(500))
                await context.schedule_task(place.job, "a", True, execute_at=after(600))
                await context.unschedule_task(place.job, "a")
        assert [(e.action, e.instance, e.label, e.by) for e in place.told] == [
            ("schedule", "a", "job:a", "alice"),
            ("schedule", "a", "job:a", "alice"),
            ("unschedule", "a", "job:a", "alice"),
        ]

    run(main())


def test_an_instance_that_is_locked_is_not_told() -> None:
    async def main() -> None:
        bench = Bench()
        told: list[Event] = []
        bench.app.on_event(told.append, Steered, InstanceSteered)

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            with pytest.raises(TaskLockedException):
                await context.app_context.schedule_task(job, "a", execute_at=START)

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            told.clear()
            await bench.advance(1)
        assert told == []

    run(main())


def test_a_worker_tells_the_pause_of_a_template_that_another_program_has_made() -> None:
    async def main() -> None:
        place = Place()
        told: list[Event] = []
        place.bench.app.on_event(told.append, GroupPaused, GroupResumed)
        other = place.bench.another_app(worker_name="other")
        job = other.dynamic_task(name="job")(place.bench.note)
        shop = other.partitioned_task(name="shop", partition_count=2)(place.bench.note)
        async with place.bench.running(), other.create() as context:
            with acting_as("alice"):
                await context.pause(job, until=after(60), reason="broken")
            await context.pause(shop.get_partitions()[1])
            await place.bench.advance(2)
            [one, two] = told
            assert isinstance(one, GroupPaused)
            assert (one.task, one.partition, one.until) == ("job", None, after(60))
            assert (one.reason, one.by, one.worker) == ("broken", "alice", "worker")
            assert isinstance(two, GroupPaused)
            assert (two.label, two.partition, two.by) == ("shop partition 1", 1, None)
            await context.resume(shop.get_partitions()[1])
            await place.bench.advance(2)
            assert isinstance(told[2], GroupResumed)
            assert (told[2].label, told[2].partition) == ("shop partition 1", 1)
            await place.bench.advance(60)
            assert isinstance(told[3], GroupResumed)
            assert (told[3].label, told[3].partition) == ("job", None)
            assert len(told) == 4

    run(main())


def test_a_pause_keeps_who_made_it_and_when() -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.running() as context:
            await place.fill(context)
            await place.bench.advance(5)
            with acting_as("alice"):
                await context.pause(place.job)
                await context.pause(place.job, "a", reason="rest")
                await context.pause(place.tick)
            await context.pause(place.shop, "a")
            [pause] = await context.pauses()
            assert (pause.since, pause.by) == (after(5), "alice")
            for task, name, by in (
                (place.job, "a", "alice"),
                (place.tick, None, "alice"),
                (place.shop, "a", None),
            ):
                state = await context.get_task(task, name)
                assert state is not None
                assert (state.state, state.paused_since, state.paused_by) == (
                    "paused",
                    after(5),
                    by,
                )
            await context.resume(place.job, "a")
            state = await context.get_task(place.job, "a")
            assert state is not None
            assert (state.state, state.paused_since, state.paused_by) == ("scheduled", None, None)

    run(main())


def test_the_log_says_who_made_a_call_without_codes_for_terminals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        place = Place()
        async with place.bench.app.create() as context:
            await place.fill(context)
            caplog.clear()
            with acting_as("alice\n\x1b[31m"):
                await context.pause(place.job, until=after(60), reason="rest\nnow")
                await context.trigger(place.tick)
            await context.unschedule_tasks(place.job, where=Where(prefix="a\n"))
            await context.unschedule_tasks(place.job, where=Where(prefix="a"))
            await context.trigger(place.shop, "a")

    caplog.set_level(logging.INFO, "pyncette")
    run(main())
    assert [
        record.getMessage()
        for record in caplog.records
        if " was called for " in record.getMessage()
    ] == [
        r"pause was called for job by alice\n\x1b[31m: until 2026-01-05T12:01:00+00:00, rest\nnow",
        r"trigger was called for tick by alice\n\x1b[31m: 1 changed",
        "unschedule was called for job (name begins with 'a'): 1 changed",
    ]


def test_nothing_is_made_of_a_call_while_no_handler_and_no_log_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    async def main() -> None:
        bench = Bench()
        bench.app.on_event(lambda event: None, Started, LoopAnswered)
        job = bench.app.dynamic_task(name="job")(bench.note)
        monkeypatch.setattr("pyncette.calls.telling.Steered", lambda **fields: made.append(fields))
        monkeypatch.setattr(
            "pyncette.calls.telling.InstanceSteered", lambda **fields: made.append(fields)
        )
        async with bench.app.create() as context:
            await context.schedule_task(job, "a", execute_at=START)
            with acting_as("alice"):
                await context.schedule_task(job, "a", execute_at=START)
                await context.trigger(job, "a")

    logging.getLogger("pyncette").setLevel(logging.WARNING)
    try:
        run(main())
    finally:
        logging.getLogger("pyncette").setLevel(logging.NOTSET)
    assert made == []


# Who acts.


def test_the_inner_of_two_names_holds_and_the_outer_one_afterwards() -> None:
    assert actor() is None
    with acting_as("alice"):
        with acting_as("bob"):
            assert actor() == "bob"
        assert actor() == "alice"
    again = acting_as("alice")
    with again, acting_as("bob"), again:
        assert actor() == "alice"
    assert actor() is None


def test_a_name_holds_in_tasks_and_threads_that_are_started_meanwhile() -> None:
    async def main() -> None:
        async def name() -> str | None:
            return actor()

        with acting_as("alice"):
            started = asyncio.create_task(name())
            assert await asyncio.to_thread(actor) == "alice"
        assert await started == "alice"
        assert await asyncio.create_task(name()) is None

    run(main())


def test_a_name_holds_for_blocking_calls() -> None:
    from pyncette import Pyncette

    app = Pyncette(MemoryRepository())
    told: list[Steered] = []
    app.on_event(told.append, Steered)

    @app.dynamic_task()
    async def job(context: Context) -> None: ...

    with app.sync() as context:
        with acting_as("alice"):
            context.pause(job)
            context.schedule_task(job, "a", interval=seconds(5))
            context.schedule_tasks(job, [Instance("b", interval=seconds(5))])
        context.resume(job)
    assert [(event.action, event.by) for event in told] == [
        ("pause", "alice"),
        ("schedule", "alice"),
        ("schedule", "alice"),
        ("resume", None),
    ]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "1 to 200 characters, not ''"),
        (" \n", ValueError, "1 to 200 characters"),
        ("x" * 201, ValueError, "not one of 201"),
        (None, TypeError, "not None"),
        (b"alice", TypeError, "the name of a person or a program"),
    ],
)
def test_a_name_is_checked(name: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        acting_as(name)
