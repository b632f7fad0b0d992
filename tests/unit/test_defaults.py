"""Instances follow the defaults of their template where they gave none of their own."""

from __future__ import annotations

import pickle
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

import pytest
from tests.support import Bench, after, logged, micros, run, seconds

from pyncette import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Instance,
    OnExisting,
    Pyncette,
    Retry,
    Where,
)
from pyncette.engine import rules
from pyncette.engine.occurrences import overdue_count
from pyncette.schedule import (
    At,
    Calendar,
    Cron,
    Every,
    Inherited,
    NewerFormat,
    Schedule,
    UnreadableHere,
    dumps,
    loads,
)
from pyncette.store.record import Put, State, load_progress
from pyncette.task import Task


class Releases(Bench):
    """A bench with one template, `job`, of which each release has other defaults."""

    def release(self, partitions: int | None = None, **defaults: Any) -> tuple[Pyncette, Task]:
        app = self.another_app()
        body = defaults.pop("body", self.note)
        if partitions is None:
            return app, app.dynamic_task(name="job", **defaults)(body)
        return app, app.partitioned_task(partitions, name="job", **defaults)(body)

    async def schedule_text(self, job: Task, name: str = "x") -> str:
        record = await self.record(job, name)
        assert record is not None
        return record.schedule

    @asynccontextmanager
    async def scheduled(self, app: Pyncette, job: Task, **options: Any) -> Any:
        """An app with the instance `x`."""
        async with app.create() as context:
            await context.schedule_task(job, "x", **options)
            yield context


async def scheduled(app: Pyncette, job: Task, name: str = "x", **options: Any) -> None:
    async with app.create() as context:
        await context.schedule_task(job, name, **options)


# Schedules.


@pytest.mark.parametrize("partitions", [None, 3])
def test_after_a_deployment_an_instance_follows_the_new_default_from_the_next_occurrence_on(
    partitions: int | None,
) -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(partitions, interval=seconds(10))
        await scheduled(app, job)
        app, job = bench.release(partitions, interval=seconds(25))
        before = await bench.record(job, "x")
        async with bench.running(app):
            assert await bench.record(job, "x") == before
            await bench.advance(70)
        # What was planned stays planned.
        assert bench.times == [10, 35, 60]
        assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(25))))

    run(main())


def test_an_instance_with_a_schedule_of_its_own_keeps_it() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        await scheduled(app, job, interval=seconds(10))
        app, job = bench.release(interval=seconds(25))
        async with bench.running(app):
            await bench.advance(35)
        assert bench.times == [10, 20, 30]

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"timezone": "Europe/Berlin"},
        {"start_at": after(0)},
        {"end_at": after(100_000)},
        {"jitter": seconds(1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_one_option_of_when_makes_the_whole_schedule_its_own(options: dict[str, Any]) -> None:
    job = Releases().release(schedule="*/5 * * * *", end_at=after(200_000))[1]
    assert job.stored_plan(job.describe("a", {})) == Inherited(job.plan)
    assert not job.stored_plan(job.describe("a", options)).inherited
    assert job.instantiate("a", **options).schedule == "*/5 * * * *"


def test_an_inherited_schedule_is_shown_as_the_templates_own() -> None:
    _, job = Releases().release(
        schedule=" */5  * * * *", timezone="Europe/Berlin", jitter=seconds(1)
    )
    instance = job.instantiate("a")
    for name in ("schedule", "timezone", "jitter", "interval", "execute_at", "start_at", "plan"):
        assert getattr(instance, name) == getattr(job, name), name


def test_a_template_without_a_default_any_more_leaves_its_instances_the_last_one() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        await scheduled(app, job)
        app, job = bench.release()
        async with bench.running(app) as context:
            await bench.advance(25)
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.task.interval == seconds(10)
            # The mark stays: a later default is followed again.
            assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(10))))
        assert bench.times == [10, 20]
        app, job = bench.release(interval=seconds(5))
        async with bench.running(app):
            await bench.advance(15)
        assert bench.times == [10, 20, 30, 35, 40]

    run(main())


def test_two_releases_side_by_side_each_plan_by_their_own_default_and_only_when_they_settle() -> (
    None
):
    async def main() -> None:
        bench = Releases()
        first, job = bench.release(interval=seconds(10))
        second, changed = bench.release(interval=seconds(25))
        await scheduled(first, job)
        async with first.create() as one, second.create() as two:
            before = await bench.record(job, "x")
            for context, task in ((one, job), (two, changed), (one, job)):
                state = await context.get_task(task, "x")
                assert state is not None
                # It is planned for this time by this schedule, whoever asks.
                assert (state.scheduled_at, state.task.interval) == (after(10), seconds(10))
                await context.schedule_task(task, "x", on_existing=OnExisting.KEEP)
                await context.pause(task, "x")
                await context.resume(task, "x")
                await context.sync_tasks(task, [Instance("x")])
            record = await bench.record(job, "x")
            assert before is not None
            assert record is not None
            assert record[:3] + record[4:] == before[:3] + before[4:]
        async with bench.running(second):
            await bench.advance(12)
        assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(25))))
        async with bench.running(first):
            await bench.advance(40)
        assert bench.times == [10, 35, 45]
        assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(10))))

    run(main())


def test_what_was_planned_and_what_follows_are_shown_without_contradiction() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(schedule="0 13 * * *")
        await scheduled(app, job)
        app, job = bench.release(schedule="0 14 * * *")
        async with app.create() as context:
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.scheduled_at == datetime(2026, 1, 5, 13, tzinfo=UTC)
            assert state.task.schedule == "0 13 * * *"
            # The last run of the old default, then those of the new one.
            assert [moment.hour for moment in await context.preview(job, 3, "x")] == [13, 14, 14]

    run(main())


def test_a_body_sees_what_follows_it() -> None:
    seen: list[Any] = []

    async def look(context: Context) -> None:
        seen.append((context.upcoming(2), context.task.interval))

    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(25), body=look)
        async with bench.running(app):
            await bench.advance(11)

    run(main())
    assert seen == [([after(35), after(60)], seconds(25))]


def test_scheduling_again_gives_the_new_default_at_once_and_keeps_the_sooner_time() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(4))
        await scheduled(app, job)
        assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(4))))
        async with bench.running(app):
            await bench.advance(9)
        assert bench.times == [4, 8]

    run(main())


@pytest.mark.parametrize("own_first", [True, False])
def test_scheduling_again_makes_a_schedule_its_own_or_the_templates(own_first: bool) -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        options: list[dict[str, Any]] = [{"interval": seconds(10)}, {}]
        for given in options if own_first else options[::-1]:
            await scheduled(app, job, **given)
        assert (await bench.schedule_text(job) == dumps(job.plan)) is not own_first

    run(main())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fails and is retried", {"retry": Retry(attempts=2, jitter=0)}, [10, 11, 35]),
        ("fails and counts as done", {"failure_mode": FailureMode.COMMIT}, [10, 35]),
        (
            "is given up",
            {"retry": Retry(attempts=1), "exhausted": Exhausted.CONTINUE},
            [10, 35],
        ),
        ("is at most once", {"execution_mode": ExecutionMode.AT_MOST_ONCE}, [10, 35]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_new_default_holds_however_an_occurrence_ends(
    name: str, options: dict[str, Any], expected: list[float]
) -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), **options)
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(25), body=bench.fail, **options)
        async with bench.running(app) as context:
            await bench.advance(10.5)
            if name == "fails and is retried":
                # It is still the occurrence that the old default has planned.
                assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(10))))
            await bench.advance(20)
            assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(25))))
            state = await context.get_task(job, "x")
            assert state is not None
            if name != "is at most once":
                assert state.last_error == "RuntimeError: the body failed"
            await bench.advance(5)
        assert bench.times == expected

    run(main())


def test_a_run_that_is_too_late_is_skipped_by_the_new_default() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), misfire_grace=seconds(3))
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(25), misfire_grace=seconds(3))
        await bench.advance(50)  # 10 and 35 are missed
        async with bench.running(app) as context:
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.skipped, state.scheduled_at) == (2, after(60))
            assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(25))))

    run(main())


@pytest.mark.parametrize("catch_up", CatchUp)
def test_what_was_missed_since_the_planned_time_is_counted_by_the_new_default(
    catch_up: CatchUp,
) -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), catch_up=catch_up)
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(20), catch_up=catch_up)
        await bench.advance(55)
        async with bench.running(app):
            await bench.advance(16)
        latest = catch_up is CatchUp.LATEST
        assert bench.planned == ([10, 70] if latest else [10, 30, 50, 70])

    run(main())


def test_a_record_that_is_paused_triggered_and_resumed_follows_the_new_default() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10))
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(25))
        async with bench.running(app) as context:
            await context.pause(job, "x")
            await context.trigger(job, "x")
            await bench.advance(1)
            record = await bench.record(job, "x")
            assert record is not None
            assert (record.state, load_progress(record.progress).planned) == (
                State.PAUSED,
                micros(10),
            )
            await context.resume(job, "x")
            await bench.advance(40)
        assert bench.times == [0, 10, 35]

    run(main())


def test_a_parked_record_that_runs_again_or_is_dropped_follows_the_new_default() -> None:
    async def main() -> None:
        bench = Releases()
        policy: dict[str, Any] = {"retry": Retry(attempts=1), "exhausted": Exhausted.PARK}
        app, job = bench.release(interval=seconds(10), body=bench.fail, **policy)
        async with bench.running(app) as context:
            for name in ("again", "dropped"):
                await context.schedule_task(job, name)
            await bench.advance(11)
        assert bench.times == [10, 10]
        app, job = bench.release(interval=seconds(25), **policy)
        async with bench.running(app) as context:
            assert await context.retry_parked(job, "again")
            record = await bench.record(job, "dropped")
            assert record is not None
            change = rules.dropped(job.reading_of(record), rules.Policy(), micros(11))
            assert isinstance(change, Put)
            assert (change.schedule, change.due_at) == (
                dumps(Inherited(Every(seconds(25)))),
                micros(35),
            )
            await bench.advance(25)
            assert await bench.schedule_text(job, "again") == dumps(Inherited(Every(seconds(25))))
        assert [item.at for item in bench.runs if item.name == "job:again"] == [10, 11, 35]

    run(main())


def test_a_request_during_the_run_holds_with_the_default_of_its_release() -> None:
    async def main() -> None:
        bench = Releases()

        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        app, job = bench.release(interval=seconds(10), body=slow)
        async with bench.running(app) as context:
            await context.schedule_task(job, "x")
            await bench.advance(11)
            await context.schedule_task(job, "x", on_existing=OnExisting.REPLACE)
            await bench.advance(5)
        assert await bench.schedule_text(job) == dumps(Inherited(Every(seconds(10))))

    run(main())


def test_the_calendars_of_the_old_default_need_not_be_known_any_more() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(schedule=Cron("*/1 * * * *") - Calendar("closed"))

        def closed(day: date) -> bool:
            return False

        app.calendar("closed")(closed)
        await scheduled(app, job)
        app, job = bench.release(schedule=Cron("*/2 * * * *"))
        async with bench.running(app):
            await bench.advance(300)
        assert bench.times == [60, 120, 240]

    run(main())


def test_an_app_whose_new_default_cannot_be_planned_cannot_be_opened() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(schedule=Cron("*/1 * * * *"))
        await scheduled(app, job)
        ignorant, unknown = bench.release(schedule=Cron("*/2 * * * *") - Calendar("closed"))
        with pytest.raises(ValueError, match="Task 'job' cannot be planned: Calendar 'closed'"):
            async with ignorant.create():
                pass
        record = await bench.record(job, "x")
        assert record is not None
        with pytest.raises(UnreadableHere):
            unknown.reading_of(record)

    run(main())


def test_a_new_default_whose_calendar_fails_leaves_the_record_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(schedule=Cron("*/1 * * * *"))
        await scheduled(app, job)
        app, job = bench.release(schedule=Cron("*/2 * * * *") - Calendar("closed"))
        fails = False

        def closed(day: date) -> bool:
            if fails:
                raise OSError("no network")
            return False

        app.calendar("closed")(closed)
        async with bench.running(app) as context:
            fails = True
            await bench.advance(61)
            assert bench.times == []
            fails = False
            await bench.advance(200)
            await context.schedule_task(job, "y")
            await bench.advance(100)
            assert await bench.schedule_text(job) == dumps(Inherited(job.plan))
        assert bench.planned[:3] == [60, 120, 240]
        assert sorted(bench.planned) == [60, 120, 240, 360, 360]

    run(main())
    assert logged(caplog, "x of job cannot be read by this worker", "no network")


# Synchronising.


def sync_counts(result: Any) -> tuple[int, int, int, int]:
    return (result.created, result.updated, result.removed, result.unchanged)


def test_synchronising_leaves_alone_what_follows_the_template_whatever_its_default_was() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), size=1)
        async with app.create() as context:
            await context.sync_tasks(job, [Instance("x", to="ada"), Instance("y", interval=60)])
        app, job = bench.release(interval=seconds(25), size=2)
        async with app.create() as context:
            before = await bench.record(job, "x")
            wanted = [Instance("x", to="ada"), Instance("y", interval=60)]
            assert sync_counts(await context.sync_tasks(job, wanted)) == (0, 0, 0, 2)
            assert await bench.record(job, "x") == before
            # It gets a schedule of its own, and other arguments.
            wanted = [Instance("x", to="ada", interval=10), Instance("y", interval=60, n=1)]
            assert sync_counts(await context.sync_tasks(job, wanted)) == (0, 2, 0, 0)

    run(main())


def test_synchronising_changes_whose_a_schedule_or_an_argument_is_and_nothing_else() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), size=1)
        own, inherits = Instance("x", interval=10, size=1, to="ada"), Instance("x", to="ada")
        async with app.create() as context:
            await context.sync_tasks(job, [own])
            before = await bench.record(job, "x")
            await bench.advance(5)
            for wanted in (inherits, own):
                assert sync_counts(await context.sync_tasks(job, [wanted])) == (0, 1, 0, 0)
                assert sync_counts(await context.sync_tasks(job, [wanted])) == (0, 0, 0, 1)
                record = await bench.record(job, "x")
                assert before is not None
                assert record is not None
                # It is not planned anew.
                assert (record.due_at, record.progress) == (before.due_at, before.progress)
                assert record.schedule.startswith("1 default") is (wanted is inherits)
            assert record is not None
            assert record[7:] == before[7:]  # type: ignore[index]

    run(main())


def test_synchronising_while_it_runs_leaves_that_to_the_next_time() -> None:
    async def main() -> None:
        bench = Releases()

        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        app, job = bench.release(interval=seconds(10), body=slow)
        async with bench.running(app) as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(11)
            wanted = [Instance("x")]
            assert sync_counts(await context.sync_tasks(job, wanted)) == (0, 0, 0, 1)
            await bench.advance(6)
            assert sync_counts(await context.sync_tasks(job, wanted)) == (0, 1, 0, 0)
            await bench.advance(20)
        assert bench.times == [10, 20, 30]

    run(main())


def test_synchronising_replaces_arguments_that_cannot_be_read() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), size=1)
        async with app.create() as context:
            await bench.plant(job, "x", schedule=Inherited(job.plan), args="broken", planned=10)
            assert sync_counts(await context.sync_tasks(job, [Instance("x")])) == (0, 1, 0, 0)
            record = await bench.record(job, "x")
            assert record is not None
            assert record.args == "1 {}"

    run(main())


# Arguments.


def test_an_instance_takes_new_default_arguments_and_keeps_its_own() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), color="red", size=1)
        await scheduled(app, job, size=5, to="ada")
        app, job = bench.release(interval=seconds(10), color="blue", size=2, shape="round")
        async with bench.running(app) as context:
            merged = {"color": "blue", "size": 5, "shape": "round", "to": "ada"}
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.args == merged
            assert [state.args for state in (await context.list_tasks(job)).tasks] == [merged]
            await bench.advance(11)
            record = await bench.record(job, "x")
            assert record is not None
            assert record.args == '1 {"size":5,"to":"ada"}'
        assert bench.runs[0].args == merged

    run(main())


def test_an_argument_that_is_no_default_any_more_is_gone() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), color="red")
        await scheduled(app, job)
        app, job = bench.release(interval=seconds(10))
        async with bench.running(app):
            await bench.advance(11)
        assert bench.runs[0].args == {}

    run(main())


def test_each_run_has_a_copy_of_the_defaults_of_its_own() -> None:
    seen: list[Any] = []

    async def grow(context: Context) -> None:
        seen.append(context.args)
        context.args["names"].append(context.task.name)
        context.args["more"]["deep"].append(1)

    async def main() -> None:
        bench = Releases()
        app, job = bench.release(interval=seconds(10), names=("a",), more={"deep": []}, body=grow)
        async with bench.running(app) as context:
            for name in ("x", "y"):
                instance = await context.schedule_task(job, name)
                instance.extra_args["names"].append("by the caller")
            await bench.advance(21)
        assert job.extra_args == {"names": ("a",), "more": {"deep": []}}

    run(main())
    assert len(seen) == 4
    assert all(len(args["names"]) == 2 and args["more"] == {"deep": [1]} for args in seen)


def test_new_arguments_of_a_parked_instance_stand_over_the_present_defaults() -> None:
    async def main() -> None:
        bench = Releases()
        policy: dict[str, Any] = {"retry": Retry(attempts=1), "exhausted": Exhausted.PARK}
        app, job = bench.release(body=bench.fail, size=1, **policy)
        async with bench.running(app) as context:
            await context.schedule_task(job, "x", execute_at=after(1), to="ada")
            await bench.advance(2)
        app, job = bench.release(size=2, **policy)
        async with bench.running(app) as context:
            [state] = [state async for state in context.iter_tasks(job, Where(states={"parked"}))]
            assert state.args == {"size": 2, "to": "ada"}
            assert await context.retry_parked(job, "x", to="bob")
            record = await bench.record(job, "x")
            assert record is not None
            assert record.args == '1 {"to":"bob"}'
            await bench.advance(2)
        assert bench.runs[-1].args == {"size": 2, "to": "bob"}

    run(main())


def test_scheduling_an_instance_with_the_same_arguments_of_its_own_writes_nothing() -> None:
    async def main() -> None:
        bench = Releases()
        app, job = bench.release(size=1)
        await scheduled(app, job, execute_at=after(10), to="ada")
        app, job = bench.release(size=2)
        before = await bench.record(job, "x")
        async with app.create() as context:
            again = await context.schedule_task(job, "x", execute_at=after(10), to="ada")
            assert again.extra_args == {"size": 2, "to": "ada"}
        assert await bench.record(job, "x") == before

    run(main())


def test_an_instance_that_was_made_tells_all_of_its_arguments() -> None:
    _, job = Releases().release(interval=seconds(10), size=1)
    assert job.instantiate("a", to="ada").extra_args == {"size": 1, "to": "ada"}
    assert job.instantiate("a", size=3).extra_args == {"size": 3}


# The text.


@pytest.mark.parametrize(
    "schedule",
    [
        Every(seconds(10)),
        Every(seconds(10), at_once=True),
        Cron("0 9 * * *", "Europe/Berlin"),
        (Cron("0 9 * * *") - Calendar("closed")).with_jitter(seconds(3)),
        Cron("0 9 * * *").between(after(0), after(1_000_000)),
    ],
    ids=str,
)
def test_an_inherited_schedule_has_the_occurrences_of_the_default_and_a_text_of_its_own(
    schedule: Schedule,
) -> None:
    inherited = Inherited(schedule)
    text = dumps(inherited)
    assert text == f"1 default {dumps(schedule)}"
    read = loads(text)
    assert isinstance(read, Inherited)
    assert (read, hash(read)) == (inherited, hash(inherited))
    assert (read == schedule) is False
    assert pickle.loads(pickle.dumps(read)) == read
    assert repr(read) == f"Inherited({schedule!r})"
    for name in ("timezone", "timezone_name", "at_once", "calendars", "jitter", "floats"):
        assert getattr(read, name) == getattr(schedule, name)
    if not schedule.calendars:
        now = micros(5)
        for ask in ("first", "next", "following"):
            assert getattr(read, ask)(now) == getattr(schedule, ask)(now)
        assert read.skip(now, now + 7) == schedule.skip(now, now + 7)
        assert overdue_count(read, now, now + 10**8) == overdue_count(schedule, now, now + 10**8)
    assert read.due(micros(5), "g", "k") == schedule.due(micros(5), "g", "k")
    assert read.moved_to(micros(5)) is read


def test_the_mark_stands_once_and_outermost() -> None:
    with pytest.raises(ValueError, match="marked already"):
        Inherited(Inherited(Every(seconds(1))))
    for text in ("1 default 1 default 1 every 5", "1 default ", "1 default", "1 default nonsense"):
        with pytest.raises(ValueError, match="Not a stored schedule"):
            loads(text)
    with pytest.raises(NewerFormat):
        loads("1 default 9 every 5")
    # A combination can hold no mark.
    with pytest.raises(TypeError, match="cannot be stored"):
        dumps(Inherited(Every(seconds(1))).with_jitter(seconds(1)))
    with pytest.raises(NewerFormat):
        loads('2 ["any",["default",["every",5,0,false]],["at",7]]')
    assert loads("1 default 1 at 1764000000000000") == Inherited(At.of(1764000000000000))


def test_a_schedule_that_carries_the_mark_becomes_the_own_one_of_what_it_is_given_to() -> None:
    _, job = Releases().release(interval=seconds(10))
    marked = job.stored_plan(job.describe("a", {}))
    assert marked.inherited
    assert job.stored_plan(job.describe("b", {"schedule": marked})) == Every(seconds(10))
