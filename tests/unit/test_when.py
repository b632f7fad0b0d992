"""When tasks run, as options say it: schedules, bounds, jitter, calendars, previews."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from tests.support import START, Bench, after, logged, micros, run, seconds

from pyncette import Context, ExecutionMode, Instance, OnExisting, Pyncette
from pyncette.schedule import (
    At,
    Bounded,
    Calendar,
    Cron,
    Every,
    Jittered,
    Rule,
    Schedule,
    UnreadableHere,
    instant_of,
)
from pyncette.store.record import load_progress
from pyncette.task import PartitionedTask, Task
from pyncette.when import When

pytestmark = pytest.mark.every_poll

DAY = timedelta(days=1)
MINUTELY = Cron("* * * * *", "Europe/Berlin")


async def body(context: Context) -> None: ...


def declared(**options: Any) -> Task:
    return Task(name="x", func=body, **options)


def template(**options: Any) -> Task:
    return Task(name="job", func=body, dynamic=True, **options)


# What the options say.


@pytest.mark.parametrize(
    ("schedule", "shown"),
    [
        (MINUTELY, {"schedule": "* * * * *", "timezone": "Europe/Berlin"}),
        (Every(seconds(5)), {"interval": seconds(5)}),
        (Every(seconds(5), at_once=True), {"schedule": Every(seconds(5), at_once=True)}),
        (MINUTELY | Cron("0 9 * * *"), {"schedule": MINUTELY | Cron("0 9 * * *")}),
        (
            MINUTELY.between(after(0), after(99)),
            {
                "schedule": "* * * * *",
                "timezone": "Europe/Berlin",
                "start_at": after(0),
                "end_at": after(99),
            },
        ),
        (
            Every(seconds(5)).between(after(2)).with_jitter(seconds(1)),
            {"interval": seconds(5), "start_at": after(2), "jitter": seconds(1)},
        ),
        (
            (MINUTELY - Calendar("closed")).between(end=after(99)),
            {"schedule": MINUTELY - Calendar("closed"), "end_at": after(99)},
        ),
    ],
    ids=repr,
)
def test_a_schedule_that_options_can_say_is_shown_as_these(
    schedule: Schedule, shown: dict[str, Any]
) -> None:
    names = ("schedule", "interval", "execute_at", "timezone", "start_at", "end_at", "jitter")
    for task in (declared(schedule=schedule), template().instantiate("a", schedule=schedule)):
        assert {name: value for name in names if (value := getattr(task, name)) is not None} == (
            shown
        )
        assert task.named_plan == schedule
    assert When.of(schedule).plan == schedule


def test_options_bound_and_spread_what_they_come_with() -> None:
    options: dict[str, Any] = {"start_at": after(10), "end_at": after(99), "jitter": seconds(1)}
    cron = declared(schedule="* * * * *", timezone="Asia/Tokyo", **options)
    assert cron.plan == Cron("* * * * *", "Asia/Tokyo").between(after(10), after(99)).with_jitter(
        seconds(1)
    )
    assert (cron.schedule, cron.timezone) == ("* * * * *", "Asia/Tokyo")
    assert (cron.start_at, cron.end_at, cron.jitter) == (after(10), after(99), seconds(1))
    every = declared(interval=5, **options)
    assert every.plan == Every(seconds(5)).between(after(10), after(99)).with_jitter(seconds(1))
    assert every.interval == seconds(5)
    bounded = declared(schedule=MINUTELY.between(after(0), after(70)), start_at=after(9))
    assert bounded.plan == MINUTELY.between(after(9), after(70))


def test_an_instance_takes_bounds_and_jitter_of_its_template_and_has_its_own() -> None:
    job = template(
        schedule="0 9 * * *", timezone="Asia/Tokyo", end_at=after(5 * 86_400), jitter=seconds(9)
    )
    nine = Cron("0 9 * * *", "Asia/Tokyo")
    end = after(5 * 86_400)
    assert job.instantiate("a").plan == nine.between(end=end).with_jitter(seconds(9))
    own = job.instantiate("a", interval=60, jitter=timedelta(0))
    assert own.plan == Every(seconds(60)).between(end=end)
    later = job.instantiate("a", start_at=after(86_400), end_at=after(3 * 86_400))
    assert later.plan == nine.between(after(86_400), after(3 * 86_400)).with_jitter(seconds(9))
    # Bounds are of a recurrence; a single run is spread as well.
    assert job.instantiate("a", execute_at=after(7)).plan == At(after(7)).with_jitter(seconds(9))
    assert job.instantiate("a", schedule=At(after(7))).plan == At(after(7)).with_jitter(seconds(9))


def test_an_instance_with_a_schedule_of_its_own_has_not_the_bounds_of_another_schedule() -> None:
    job = template(schedule=MINUTELY.between(end=after(99)).with_jitter(seconds(1)))
    assert job.instantiate("a").plan == job.plan
    assert job.instantiate("a", interval=5).plan == Every(seconds(5))


def test_a_time_zone_of_the_template_is_for_cron_expressions_alone() -> None:
    job = template(timezone="Asia/Tokyo")
    assert job.instantiate("a", schedule=MINUTELY).plan == MINUTELY
    assert job.instantiate("a", schedule="0 9 * * *").plan == Cron("0 9 * * *", "Asia/Tokyo")


def test_the_partitions_of_a_template_have_its_defaults() -> None:
    job = PartitionedTask(name="job", func=body, partition_count=2, interval=60, jitter=seconds(9))
    plan = Every(seconds(60)).with_jitter(seconds(9))
    assert job.instantiate("a").plan == plan
    [partition, _] = job.get_partitions()
    assert (partition.plan, partition.jitter) == (plan, seconds(9))
    assert partition.instantiate("a", interval=5).jitter == seconds(9)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"schedule": 5}, TypeError, "schedule must be a cron expression or a Schedule, not 5"),
        (
            {"schedule": MINUTELY, "timezone": "UTC"},
            ValueError,
            "timezone may only be given together with a cron expression: .* zone of its own",
        ),
        ({"schedule": At(START)}, ValueError, "execute_at is for instances of dynamic tasks"),
        (
            {"schedule": At(START).with_jitter(DAY)},
            ValueError,
            "execute_at is for instances of dynamic tasks",
        ),
        (
            {"interval": 5, "start_at": date(2026, 1, 1)},
            TypeError,
            r"start_at must be a datetime, not datetime.date\(2026, 1, 1\)",
        ),
        ({"interval": 5, "end_at": DAY}, TypeError, "end_at must be a datetime, not"),
        ({"interval": 5, "jitter": START}, TypeError, "jitter must be a timedelta, not"),
        ({"interval": 5, "jitter": -DAY}, ValueError, "jitter must be 0 to 366 days"),
        (
            {"interval": 5, "start_at": after(9), "end_at": after(8)},
            ValueError,
            "end_at .* must not lie before start_at",
        ),
        (
            {"interval": 5, "start_at": datetime(2255, 1, 1, tzinfo=UTC)},
            ValueError,
            "before the year 2255",
        ),
        (
            {"schedule": "0 9 * * *", "start_at": after(1), "end_at": after(2)},
            ValueError,
            "The schedule would never run",
        ),
    ],
    ids=repr,
)
def test_a_wrong_value_is_refused_where_it_is_declared(
    options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        declared(**options)
    with pytest.raises(error, match=complaint):
        template(**options)


def test_bounds_of_a_single_run_are_refused() -> None:
    for bounds in ({"start_at": after(1)}, {"end_at": after(9)}):
        options: dict[str, Any] = {"execute_at": after(5), **bounds}
        with pytest.raises(ValueError, match="start_at and end_at bound a recurrence"):
            template().instantiate("a", **options)
    with pytest.raises(ValueError, match="start_at and end_at bound a recurrence"):
        template().instantiate("a", schedule=At(after(5)).between(after(1)))


def test_a_value_that_json_can_hold_is_an_argument_as_in_1_x(
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = {"start_at": "2026-01-01", "end_at": None, "jitter": 0.5, "execute_in": 30}
    job = template(interval=5, **args)
    assert job.extra_args == args
    assert (job.start_at, job.jitter) == (None, None)
    for _ in range(2):
        values: dict[str, Any] = {"start_at": 1, "end_at": [], "jitter": {}, "execute_in": "soon"}
        instance = job.instantiate("a", **values)
    assert instance.extra_args == values
    warned = [line for line in caplog.messages if "is an argument of the task" in line]
    assert len(warned) == 4
    assert logged(caplog, "'jitter' is an argument", "the option takes a timedelta")


# Schedules that run.


def test_a_union_runs_at_the_times_of_both_and_once_where_they_fall_together() -> None:
    async def main() -> None:
        bench = Bench()
        union = Cron("* * * * *") | Cron("*/2 * * * *") | Every(seconds(90), anchor=after(0))
        bench.app.task(name="x", schedule=union)(bench.note)
        async with bench.running():
            await bench.advance(200)
        assert bench.times == [60, 90, 120, 180]

    run(main())


def test_a_rule_runs_with_its_planned_time_in_its_zone() -> None:
    async def main() -> None:
        bench = Bench()
        rule = Rule("FREQ=MINUTELY;INTERVAL=2;COUNT=3", start=START, timezone="Asia/Tokyo")
        job = bench.app.dynamic_task(name="job")(bench.note)
        planned: list[str] = []

        @bench.app.middleware
        async def look(context: Context, following: Callable[[], Any]) -> None:
            planned.append(context.scheduled_at.isoformat())
            await following()

        async with bench.running() as context:
            await context.schedule_task(job, "x", schedule=rule)
            await bench.advance(900)
            assert await context.get_task(job, "x") is None
        assert planned == ["2026-01-05T21:02:00+09:00", "2026-01-05T21:04:00+09:00"]

    run(main())


def test_an_interval_at_once_begins_at_once_and_not_again_when_it_is_scheduled_again() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        at_once = Every(seconds(60), at_once=True)
        async with bench.running() as context:
            for _ in range(5):
                await context.schedule_task(job, "x", schedule=at_once)
                await bench.advance(10)
            await bench.advance(30)
            assert bench.times == [0, 60]
            # Another schedule begins at once, too.
            await context.schedule_task(job, "x", schedule=Every(seconds(50), at_once=True))
            await bench.advance(55)
        assert bench.times == [0, 60, 80, 130]

    run(main())


def test_a_static_task_at_once_runs_when_it_is_new_and_not_at_each_start() -> None:
    async def main() -> None:
        bench = Bench()
        for app in (bench.app, bench.another_app(), bench.another_app()):
            app.task(name="x", schedule=Every(seconds(60), at_once=True))(bench.note)
            async with bench.running(app):
                await bench.advance(10)
        assert bench.times == [0]

    run(main())


def test_an_instance_is_gone_after_its_end_and_a_static_task_finished() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        static = bench.app.task(name="x", interval=10, end_at=after(25))(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "a", interval=10, start_at=after(5), end_at=after(25))
            await bench.advance(100)
            assert await context.get_task(job, "a") is None
            state = await context.get_task(static)
            assert state is not None
            assert (state.state, state.scheduled_at) == ("finished", None)
        assert sorted(bench.times) == [5, 10, 15, 20, 25]

    run(main())


def test_what_has_ended_already_is_refused_for_an_instance_and_finished_for_a_static_task() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        static = bench.app.task(name="x", interval=10, end_at=after(-1))(bench.note)
        async with bench.running() as context:
            with pytest.raises(ValueError, match="Task 'job:a' would never run"):
                await context.schedule_task(job, "a", schedule="* * * * *", end_at=after(-1))
            state = await context.get_task(static)
            assert state is not None
            assert state.state == "finished"
        assert bench.times == []

    run(main())


def test_an_end_that_is_taken_away_lets_a_static_task_go_on() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="x", interval=10, end_at=after(15))(bench.note)
        async with bench.running():
            await bench.advance(30)
        later = bench.another_app()
        later.task(name="x", interval=10)(bench.note)
        async with bench.running(later):
            await bench.advance(15)
        assert bench.times == [10, 40]

    run(main())


def test_an_instance_may_run_in_some_time_from_now() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", schedule="* * * * *")(bench.note)
        async with bench.running() as context:
            await bench.advance(1)
            instance = await context.schedule_task(job, "a", execute_in=seconds(30))
            assert instance.execute_at == after(31)
            await context.schedule_task(job, "b", execute_in=timedelta(0))
            await bench.advance(50)
        assert bench.times == [1, 31]

    run(main())


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"execute_in": seconds(-1)}, ValueError, "execute_in must not be negative"),
        ({"execute_in": timedelta.max}, ValueError, "execute_in is too long"),
        ({"execute_in": timedelta(days=300 * 366)}, ValueError, "before the year 2255"),
        ({"execute_in": START}, TypeError, "execute_in must be a timedelta, not"),
        (
            {"execute_in": seconds(1), "execute_at": START},
            ValueError,
            "execute_in and execute_at cannot be given together",
        ),
        (
            {"execute_in": seconds(1), "interval": 5},
            ValueError,
            "more than one of schedule, interval and execute_in: interval, execute_in",
        ),
        (
            {"execute_in": seconds(1), "timezone": "Europe/Berlin"},
            ValueError,
            "together with schedule, not with execute_in",
        ),
        (
            {"execute_in": seconds(1), "end_at": START},
            ValueError,
            "a single run has its execute_in",
        ),
    ],
)
def test_a_wrong_time_from_now_is_refused(
    options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(error, match=complaint):
                await context.schedule_task(job, "a", **options)

    run(main())


# Jitter.


def waits_of(task: Task, name: str, schedule: Schedule, planned: float) -> float:
    due = schedule.due(micros(planned), task.group, name)
    return (due - micros(0)) / 1_000_000


def test_a_jitter_lets_each_record_wait_its_own_time_and_keeps_the_planned_time() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", schedule="* * * * *", jitter=seconds(50))(
            bench.note
        )
        plan = Cron("* * * * *").with_jitter(seconds(50))
        names = [f"user {number}" for number in range(20)]
        async with bench.running() as context:
            for name in names:
                instance = await context.schedule_task(job, name)
                waits = timedelta(microseconds=plan.due(micros(60), job.group, name) - micros(60))
                assert instance.next_run == after(60) + waits
            await bench.advance(179)
        expected = sorted(waits_of(job, name, plan, at) for name in names for at in (60, 120))
        assert bench.times == pytest.approx(expected)
        assert len(set(expected)) == 40
        assert bench.planned == [60.0] * 20 + [120.0] * 20

    run(main())


def test_a_wait_is_the_same_after_a_restart_and_in_a_static_task_of_another_worker() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"schedule": "* * * * *", "jitter": seconds(50)}
        static = bench.app.task(name="x", **options)(bench.note)
        due = waits_of(static, "x", static.plan, 60)
        async with bench.running():
            await bench.advance(59)
        another = bench.another_app()
        another.task(name="x", **options)(bench.note)
        async with bench.running(another):
            await bench.advance(60)
        assert bench.times == pytest.approx([due])
        record = await bench.record(static)
        assert record is not None
        assert record.due_at == static.plan.due(micros(120), static.group, "x")

    run(main())


@pytest.mark.parametrize("mode", list(ExecutionMode))
def test_each_event_keeps_the_wait_of_an_occurrence(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(
            name="job", schedule="* * * * *", jitter=seconds(50), execution_mode=mode
        )(bench.note)

        async def due() -> float:
            record = await bench.record(job, "a")
            assert record is not None
            assert record.due_at is not None
            assert load_progress(record.progress).planned == micros(expected)
            return (record.due_at - micros(0)) / 1_000_000

        async with bench.running() as context:
            instance = await context.schedule_task(job, "a")
            expected = 60
            first = waits_of(job, "a", instance.plan, 60)
            assert await due() == first
            await context.schedule_task(job, "a", text="again")
            assert await due() == first
            await context.schedule_task(job, "a", force=True)
            assert await due() == first
            await context.schedule_task(job, "a", on_existing=OnExisting.REPLACE)
            assert await due() == first
            await context.pause(job, "a")
            await context.resume(job, "a")
            assert await due() == first
            await context.pause(job, "a", until=after(30))
            assert await due() == first
            await context.schedule_task(job, "a", force=True)
            assert await due() == first
            await context.trigger(job, "a")
            await bench.advance(1)
            assert bench.times == [0]  # a triggered run does not wait
            await bench.advance(first)
            assert bench.times == pytest.approx([0, first])
            expected = 120
            assert await due() == waits_of(job, "a", instance.plan, 120)
            # A single run that is kept at its sooner time waits as well.
            once = await context.schedule_task(job, "a", execute_at=after(900), n=2)
            assert once.execute_at == after(120)
            assert await due() == waits_of(job, "a", At(after(120)).with_jitter(seconds(50)), 120)

    run(main())


def test_a_replacement_that_waits_for_the_end_of_a_run_has_its_jitter() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job", jitter=seconds(50))(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0), jitter=timedelta(0))
            await bench.advance(1)
            await context.schedule_task(
                job, "a", schedule="* * * * *", on_existing=OnExisting.REPLACE
            )
            await bench.advance(10)
            record = await bench.record(job, "a")
            assert record is not None
            plan = Cron("* * * * *").with_jitter(seconds(50))
            assert record.due_at == plan.due(micros(60), job.group, "a")

    run(main())


def test_fast_forward_passes_over_nothing_because_of_a_wait() -> None:
    async def main() -> None:
        bench = Bench()
        # A jitter far longer than the distance: no occurrence waits beyond the following one.
        bench.app.task(
            name="x", schedule="* * * * *", jitter=timedelta(hours=1), fast_forward=True
        )(bench.note)
        async with bench.running():
            await bench.advance(600)
        assert bench.planned == [60.0 * n for n in range(1, len(bench.planned) + 1)]
        assert len(bench.planned) >= 9

    run(main())


# Calendars.


def office(bench: Bench, app: Pyncette | None = None) -> tuple[Pyncette, Task]:
    app = bench.app if app is None else app
    task = app.task(name="x", schedule=Cron("0 9 * * *") - Calendar("closed"))(bench.note)
    return app, task


def test_a_task_does_not_run_on_the_days_of_its_calendar() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=timedelta(hours=1))
        app, _ = office(bench)

        @app.calendar("closed")
        def weekend(day: date) -> bool:
            return day.weekday() >= 5

        async with bench.running():
            await bench.advance(9 * 86_400)
        assert [after(at).strftime("%a %d") for at in bench.planned] == [
            *("Tue 06", "Wed 07", "Thu 08", "Fri 09", "Mon 12", "Tue 13", "Wed 14")
        ]

    run(main())


def test_a_calendar_that_no_code_has_declared_is_refused_when_the_app_is_opened() -> None:
    async def main() -> None:
        bench = Bench()
        office(bench)
        with pytest.raises(ValueError, match="Task 'x' cannot be planned: Calendar 'closed' is no"):
            async with bench.app.create():
                pass
        bench.app.calendar("closed")(lambda day: True)
        with pytest.raises(ValueError, match="Task 'x' cannot be planned: The schedule would neve"):
            async with bench.app.create():
                pass

    run(main())


def test_an_instance_with_an_unknown_calendar_is_refused_where_it_is_scheduled() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        never = Cron("0 9 * * *") - Calendar("always")
        bench.app.calendar("always")(lambda day: True)
        async with bench.app.create() as context:
            with pytest.raises(UnreadableHere, match="Calendar 'closed' is not known here"):
                await context.schedule_task(
                    job, "a", schedule=Cron("0 9 * * *") - Calendar("closed")
                )
            with pytest.raises(UnreadableHere, match="would never run"):
                await context.schedule_task(job, "a", schedule=never)

    run(main())


def test_a_record_whose_calendar_a_worker_does_not_know_is_left_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        knows = bench.another_app(worker_name="knows")
        knows.calendar("closed")(lambda day: False)
        job = knows.dynamic_task(name="job")(bench.note)
        async with knows.create() as context:
            schedule = Cron("* * * * *") - Calendar("closed")
            await context.schedule_task(job, "a", schedule=schedule)
        bench.app.dynamic_task(name="job")(bench.fail)
        async with bench.running():
            await bench.advance(300)
        assert bench.times == []
        said = [line for line in caplog.messages if "left to others" in line]
        assert len(said) > 3
        assert "Calendar 'closed' is not known here" in said[0]
        waits = [float(line.split(" for ")[1].split(" s:")[0]) for line in said]
        assert waits == sorted(waits)
        assert waits[-1] > 10
        async with bench.running(knows):
            await bench.advance(130)
        assert bench.planned[0] == 60

    run(main())


def test_a_worker_without_the_calendar_makes_runs_of_others_late_only_once() -> None:
    async def main() -> None:
        bench = Bench()
        knows = bench.another_app(worker_name="knows")
        knows.calendar("closed")(lambda day: False)
        job = knows.dynamic_task(name="job")(bench.note)
        bench.app.dynamic_task(name="job")(bench.fail)
        async with bench.running(), bench.running(knows) as context:
            schedule = Cron("* * * * *") - Calendar("closed")
            for number in range(20):
                await context.schedule_task(job, str(number), schedule=schedule)
            await bench.advance(600)
        assert len(bench.times) >= 190
        late = [time - planned for time, planned in zip(bench.times, bench.planned, strict=True)]
        assert max(late) <= 60
        assert sum(late) <= 20 * 60, "each was left to others at most a few times"
        assert max(late[-100:]) == 0

    run(main())


def test_a_task_does_not_run_while_its_next_occurrence_cannot_be_planned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench(poll_interval=timedelta(hours=1))
        app, task = office(bench)
        broken = False

        @app.calendar("closed")
        def closed(day: date) -> bool:
            if broken:
                raise LookupError("no such year")
            return False

        async with bench.running():
            broken = True
            await bench.advance(86_400)
            assert bench.times == []
            assert logged(caplog, "left to others", "Calendar 'closed' failed", "LookupError: no s")
            broken = False
            await bench.advance(60)
        assert len(bench.times) == 1
        record = await bench.record(task)
        assert record is not None
        assert record.state == "scheduled"

    run(main())


def test_a_static_task_whose_calendar_fails_does_not_keep_others_from_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        app, _ = office(bench)
        broken = False

        @app.calendar("closed")
        def closed(day: date) -> bool:
            return 1 // 0 == 1 if broken else False

        app.task(name="y", interval=60)(bench.note)
        async with app.create() as context:
            broken = True
            loop = asyncio.create_task(context.run())
            await bench.advance(70)
            context.shutdown()
            await loop
        assert bench.times == [60]
        assert logged(caplog, "x cannot be planned by this worker", "Calendar 'closed' failed")

    run(main())


def test_calendars_belong_to_their_app() -> None:
    for answer in (True, False):
        app = Pyncette()
        app.calendar("closed")(lambda day, answer=answer: answer and day.weekday() >= 5)
        task = app.task(name="x", schedule=Cron("0 9 * * *") - Calendar("closed"))(body)
        friday = datetime(2026, 1, 9, 12, tzinfo=UTC)
        expected = datetime(2026, 1, 12 if answer else 10, 9, tzinfo=UTC)
        assert task.get_next_execution(friday, None) == expected
        assert task.plan.next_after(friday) == expected


def test_a_calendar_is_declared_with_a_name_and_its_function_is_returned() -> None:
    app = Pyncette()

    def closed(day: date) -> bool:
        return True

    assert app.calendar("closed")(closed) is closed
    with pytest.raises(ValueError, match="Duplicate calendar 'closed'"):
        app.calendar("closed")(closed)
    with pytest.raises(TypeError, match=r'write @app.calendar\("…"\)'):
        app.calendar(closed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid name of a calendar"):
        app.calendar("")(closed)


# What comes next.


def times(instants: list[datetime]) -> list[float]:
    return [(instant - START).total_seconds() for instant in instants]


def test_a_run_knows_what_is_planned_after_it() -> None:
    async def main() -> None:
        bench = Bench()
        found: list[list[float]] = []
        zones: list[object] = []

        async def look(context: Context) -> None:
            await bench.note(context)
            following = context.upcoming(3)
            zones.append(following[0].utcoffset() if following else None)
            found.append(times(following))

        plan = Cron("* * * * *", "Asia/Tokyo").between(end=after(240)).with_jitter(seconds(30))
        bench.app.task(name="x", schedule=plan)(look)
        async with bench.running():
            await bench.advance(300)
        assert found == [[120, 180, 240], [180, 240], [240], []]
        assert zones[0] == timedelta(hours=9)
        assert [bench.planned[1:], bench.planned[2:]] == found[:2]

    run(main())


@pytest.mark.parametrize(("fast_forward", "expected"), [(False, [20, 30]), (True, [50, 60])])
def test_what_comes_next_follows_the_options_of_the_task(
    fast_forward: bool, expected: list[float]
) -> None:
    async def main() -> None:
        bench = Bench()
        found: list[list[float]] = []

        async def look(context: Context) -> None:
            found.append(times(context.upcoming(2)))

        job = bench.app.dynamic_task(name="job", fast_forward=fast_forward)(look)
        await bench.plant(job, "a", schedule=Every(seconds(10)), planned=10)
        await bench.advance(45)
        async with bench.running():
            await bench.advance(1)
        assert found[0] == expected

    run(main())


def test_a_triggered_run_is_followed_by_the_plan() -> None:
    async def main() -> None:
        bench = Bench()
        found: list[list[float]] = []

        async def look(context: Context) -> None:
            if len(found) == 1:
                await context.app_context.trigger(context.task)
            found.append(times(context.upcoming(2)))

        static = bench.app.task(name="x", interval=10)(look)
        async with bench.running() as context:
            await bench.advance(5)
            await context.trigger(static)
            await bench.advance(6)
        assert found == [[10, 20], [20, 30], [20, 30]]

    run(main())


def test_a_fixture_may_have_the_name_of_what_was_added_to_the_context() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[object] = []

        async def look(context: Context) -> None:
            seen.append(context.upcoming)

        bench.app.task(name="x", interval=10)(look)
        async with bench.running(context_items={"upcoming": "a shelf of books"}):
            await bench.advance(11)
        assert seen == ["a shelf of books"]

    run(main())


def test_a_context_that_a_test_has_built_has_nothing_upcoming() -> None:
    assert Context().upcoming() == []


def test_a_preview_shows_what_is_planned_from_the_record_on() -> None:
    async def main() -> None:
        bench = Bench()
        static = bench.app.task(name="x", interval=10)(bench.note)
        job = bench.app.dynamic_task(name="job", interval=60)(bench.note)
        async with bench.running() as context:
            assert times(await context.preview(static, 3)) == [10, 20, 30]
            await bench.advance(5)
            assert times(await context.preview(static, 2)) == [10, 20]
            assert times(await context.preview(job, 2)) == [65, 125]
            assert times(await context.preview(job, 2, "a")) == [65, 125]
            instance = await context.schedule_task(job, "a", interval=7)
            await bench.advance(1)
            assert times(await context.preview(job, 2, "a")) == [12, 19]
            assert times(await context.preview(instance, 2)) == [12, 19]
            await context.trigger(job, "a")
            await context.pause(job, "a")
            assert times(await context.preview(job, 2, "a")) == [12, 19]
            await context.schedule_task(job, "b", execute_in=seconds(4))
            assert times(await context.preview(job, 5, "b")) == [10]

    run(main())


def test_a_preview_of_a_running_instance_begins_with_the_next_run() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Context) -> None:
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job")(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "a", interval=10)
            await context.schedule_task(job, "b", execute_at=after(10))
            await bench.advance(11)
            assert times(await context.preview(job, 2, "a")) == [20, 30]
            assert await context.preview(job, 2, "b") == []
            await context.schedule_task(job, "b", interval=9, on_existing=OnExisting.REPLACE)
            assert times(await context.preview(job, 2, "b")) == [20, 29]
            await bench.advance(5)

    run(main())


def test_a_preview_of_what_has_ended_is_empty() -> None:
    async def main() -> None:
        bench = Bench()
        static = bench.app.task(name="x", interval=10, end_at=after(15))(bench.note)
        async with bench.running() as context:
            assert times(await context.preview(static)) == [10]
            await bench.advance(20)
            assert await context.preview(static) == []

    run(main())


def test_a_schedule_can_be_previewed_before_it_is_used() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.calendar("closed")(lambda day: day.weekday() >= 5)
        async with bench.app.create() as context:
            schedule = Cron("0 9 * * *", "Asia/Tokyo") - Calendar("closed")
            found = await context.preview(schedule, 5)
            assert [instant.strftime("%a %H:%M %z") for instant in found] == [
                *("Tue 09:00 +0900", "Wed 09:00 +0900", "Thu 09:00 +0900", "Fri 09:00 +0900"),
                "Mon 09:00 +0900",
            ]
            assert times(await context.preview(Every(seconds(9), at_once=True), 2)) == [0, 9]
            for wrong, complaint in ((0, "n must be"), (1_001, "n must be at most 1,000")):
                with pytest.raises(ValueError, match=complaint):
                    await context.preview(schedule, wrong)
            with pytest.raises(ValueError, match="A schedule has no instances"):
                await context.preview(schedule, 5, "a")
            with pytest.raises(TypeError, match="A task is what its decorator returned"):
                await context.preview("0 9 * * *")  # type: ignore[arg-type]

    run(main())


def test_a_template_without_a_default_has_no_preview() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="needs exactly one of"):
                await context.preview(job)

    run(main())


def test_the_parts_of_a_task_are_what_was_built_of_its_options() -> None:
    plan = declared(schedule="* * * * *", end_at=after(99), jitter=seconds(1)).plan
    assert isinstance(plan, Jittered)
    assert isinstance(plan.schedule, Bounded)
    assert plan.schedule.next(instant_of(after(98))) is None


def test_a_run_that_waits_for_its_jitter_is_not_late() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"jitter": seconds(50), "misfire_grace": seconds(1)}
        static = bench.app.task(name="x", schedule="* * * * *", **options)(bench.note)
        async with bench.running():
            await bench.advance(240)
        due = [waits_of(static, "x", static.plan, at) for at in (60, 120, 180)]
        assert bench.times == pytest.approx(due)
        # Nobody works for a while: what waits still when work goes on again is in time.
        last = waits_of(static, "x", static.plan, 600)
        await bench.advance(last - 240 - 0.5)
        again = bench.another_app()
        again.task(name="x", schedule="* * * * *", **options)(bench.note)
        async with bench.running(again):
            await bench.advance(30)
        assert bench.planned[3:4] == [600]

    run(main())


def test_instances_of_a_bulk_call_have_the_same_options() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        schedule = Cron("* * * * *") - Calendar("closed")
        bench.app.calendar("closed")(lambda day: False)
        async with bench.running() as context:
            result = await context.schedule_tasks(
                job,
                [
                    Instance("a", schedule=schedule, end_at=after(70), jitter=seconds(1)),
                    Instance("b", execute_in=seconds(5)),
                    Instance("c", interval=10, start_at=after(3), end_at=after(13)),
                    Instance("d", interval=10, execute_in=seconds(5)),
                    Instance("e", schedule=schedule - Calendar("unknown")),
                ],
            )
            assert result.failed == 2
            await bench.advance(100)
        assert [(run.name, run.scheduled_at) for run in bench.runs] == [
            *(("job:c", 3), ("job:b", 5), ("job:c", 13), ("job:a", 60))
        ]

    run(main())


def test_a_cron_expression_of_many_instances_is_parsed_once() -> None:
    job = template()
    first, second = (
        job.describe(name, {"schedule": "*/7 * * * *", "timezone": "Europe/Berlin"})
        for name in ("a", "b")
    )
    assert first.plan is second.plan
    assert job.describe("c", {"schedule": "*/7 * * * *"}).plan != first.plan
    for _ in range(2):
        with pytest.raises(ValueError, match="minute"):
            job.instantiate("d", schedule="99 * * * *")
