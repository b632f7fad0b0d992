"""What users of other schedulers complain about does not happen here.

One test for each complaint that no other test answers; docs/coming-from/index.md lists all of
them, and names the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from tests.support import Bench, Run, after, micros, run, seconds

from pyncette import Context, Pyncette
from pyncette.schedule import At, dumps
from pyncette.store import Claimed, Page, Write
from pyncette.store.record import ANY, Progress, Put, dump_args, dump_progress

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S


def test_a_start_runs_nothing_and_each_planned_time_runs_once_with_any_number_of_workers() -> None:
    async def main() -> None:
        bench = Bench()

        def worker(name: str) -> Pyncette:
            app = bench.another_app(worker_name=name)

            @app.task(name="cron", schedule="* * * * *")
            @app.task(name="interval", interval=seconds(10))
            async def work(context: Context) -> None:
                await bench.note(context)
                await bench.clock.sleep(1)

            return app

        async with AsyncExitStack() as workers:
            # They start at once, a little later, and at the very second of a planned time.
            for name, pause_s in {"a": 0, "b": 0, "c": 3, "d": 57}.items():
                await bench.advance(pause_s)
                await workers.enter_async_context(bench.running(worker(name)))
            await bench.advance(62)
        planned = Counter((run.name, run.scheduled_at) for run in bench.runs)
        intervals = {("interval", 10.0 * number): 1 for number in range(1, 13)}
        assert planned == {**intervals, ("cron", 60.0): 1, ("cron", 120.0): 1}
        assert all(run.at == run.scheduled_at for run in bench.runs)

    run(main())


class Read:
    """A store that counts the records that it hands out."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.count = 0

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        call = getattr(self._store, name)
        if name not in ("claim", "get", "scan"):
            return call  # type: ignore[no-any-return]

        async def counted(*arguments: Any, **options: Any) -> Any:
            answer = await call(*arguments, **options)
            records = answer.records if isinstance(answer, (Claimed, Page)) else answer
            self.count += len(records)
            return answer

        return counted


def test_a_worker_that_starts_reads_only_what_is_due_however_many_instances_there_are() -> None:
    async def main() -> None:
        bench = Bench()
        read: list[Read] = []

        @asynccontextmanager
        async def repository(**configuration: Any) -> AsyncIterator[Read]:
            async with bench.repository(**configuration) as store:
                read.append(Read(store))
                yield read[-1]

        app = Pyncette(repository, clock=bench.clock)
        remind = app.dynamic_task()(bench.note)
        in_a_year = micros(365 * DAY_S)
        plan, args = dumps(At(after(365 * DAY_S))), dump_args({})
        progress = dump_progress(Progress(in_a_year, "incarnation"))
        put = Put(in_a_year, "scheduled", None, 0, plan, args, progress)
        async with bench.store() as store:
            for first in range(0, 20_000, 1_000):
                names = (f"user-{number}" for number in range(first, first + 1_000))
                await store.write(
                    [Write(remind.group, name, put, ANY) for name in names], micros(0)
                )
        for name in ("ada", "emmy", "grace"):
            await bench.plant(remind, name)

        async with bench.running(app):
            await bench.advance(MINUTE_S)
        assert sorted(run.name for run in bench.runs) == ["note:ada", "note:emmy", "note:grace"]
        assert bench.times == [0, 0, 0]
        assert sum(store.count for store in read) < 20

    run(main())


def test_a_thousand_missed_occurrences_are_all_run_and_the_recurrence_goes_on() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(interval=seconds(MINUTE_S))(bench.note)
        async with bench.running():
            pass
        await bench.advance(1_000 * MINUTE_S)
        async with bench.running():
            await bench.advance(20 * MINUTE_S)
        assert bench.planned == [float(number * MINUTE_S) for number in range(1, 1_021)]
        assert bench.times[-1] == bench.planned[-1]

    run(main())


def test_a_thousand_missed_occurrences_that_collapse_run_once_and_the_grid_is_kept() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=timedelta(minutes=1))
        bench.app.task(schedule="0 * * * *", fast_forward=True)(bench.note)
        async with bench.running():
            pass
        await bench.advance(1_000 * HOUR_S + 10)
        async with bench.running():
            await bench.advance(HOUR_S)
        assert bench.times == [1_000 * HOUR_S + 10, 1_001 * HOUR_S]

    run(main())


def test_a_one_off_ten_years_ahead_runs_once_at_its_instant_though_workers_come_and_go() -> None:
    async def main() -> None:
        # What waits is a record in the store: no worker holds it, so no lease can end meanwhile.
        bench = Bench(poll_interval=timedelta(days=30))
        remind = bench.app.dynamic_task()(bench.note)
        years_s = 3_652 * DAY_S
        async with bench.running(), bench.running() as context:
            await context.schedule_task(remind, "warranty", execute_at=after(years_s), item="roof")
            await bench.advance(years_s / 2)
        async with bench.running() as context:
            await bench.advance(years_s / 2 - 1)
            assert bench.runs == []
            await bench.advance(366 * DAY_S)
            assert (await context.list_tasks(remind)).tasks == []
        assert bench.runs == [Run(years_s, years_s, "note:warranty", {"item": "roof"})]

    run(main())


def test_instances_of_a_template_that_was_renamed_are_kept_until_it_has_its_name_again() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=timedelta(minutes=1))
        old = bench.another_app()
        report = old.dynamic_task(name="report")(bench.note)
        async with old.create() as context:
            await context.schedule_task(report, "ada", interval=seconds(HOUR_S), page=7)

        renamed = bench.another_app()
        renamed.dynamic_task(name="statement")(bench.note)
        async with bench.running(renamed):
            await bench.advance(2 * HOUR_S)
        assert bench.runs == []
        async with bench.running(old):
            await bench.advance(1)
        assert [(run.scheduled_at, run.args) for run in bench.runs] == [
            (HOUR_S, {"page": 7}),
            (2 * HOUR_S, {"page": 7}),
        ]

    run(main())
