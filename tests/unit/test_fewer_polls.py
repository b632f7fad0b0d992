"""Under a clock that a test moves, polls that can find nothing new are left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from tests.faulty_store import Faults, faulty
from tests.support import START, after, looping, run, seconds

from pyncette import Context, Partitions, Pyncette, PyncetteContext
from pyncette.memory import MemoryRepository
from pyncette.testing import VirtualClock


class Programs:
    """Apps on one store and one clock, as the user of the library gets them."""

    def __init__(self, every_poll: bool = False) -> None:
        self.clock = VirtualClock(START, every_poll=every_poll)
        self.faults = Faults()
        self.repository = MemoryRepository()
        self.ran: list[tuple[str, float]] = []

    def app(self) -> Pyncette:
        return Pyncette(faulty(self.repository, self.faults), clock=self.clock)

    async def note(self, context: Context) -> None:
        self.ran.append((str(context.task), self.clock.monotonic()))

    @asynccontextmanager
    async def running(self, app: Pyncette) -> AsyncIterator[PyncetteContext]:
        async with app.create() as context, looping(context):
            await self.clock.settle()
            yield context

    @property
    def polls(self) -> int:
        return len(self.faults.made("claim"))


def test_a_day_takes_a_few_claims_for_each_run_and_not_86_400() -> None:
    async def main() -> None:
        programs = Programs()
        app = programs.app()
        app.task(name="hourly", schedule="0 * * * *")(programs.note)
        app.task(name="daily", schedule="30 8 * * *")(programs.note)
        async with programs.running(app):
            await programs.clock.advance(timedelta(days=1))
        assert len(programs.ran) == 25
        assert programs.polls < 4 * 25 + 10

    run(main())


def test_a_year_in_which_nothing_happens_takes_a_few_calls() -> None:
    async def main() -> None:
        programs = Programs()
        async with programs.running(programs.app()):
            await programs.clock.advance(timedelta(days=365))
        assert programs.polls < 10

    run(main())


def test_every_poll_is_made_if_the_clock_is_told_so() -> None:
    async def main() -> None:
        programs = Programs(every_poll=True)
        async with programs.running(programs.app()):
            before = programs.polls
            await programs.clock.advance(timedelta(minutes=1))
            assert programs.polls - before == 60

    run(main())


def test_a_worker_is_known_to_be_alive_after_a_day_without_runs() -> None:
    async def main() -> None:
        programs = Programs()
        async with programs.running(programs.app()) as context:
            await programs.clock.advance(timedelta(days=1))
            [worker] = await context.workers()
            assert worker.since == START
            assert context.last_tick == programs.clock.now()

    run(main())


def test_what_another_program_schedules_for_a_distant_time_runs_then() -> None:
    async def main() -> None:
        programs = Programs()
        worker, web = programs.app(), programs.app()
        worker.dynamic_task(name="job")(programs.note)
        same = web.dynamic_task(name="job")(programs.note)
        async with programs.running(worker), web.create() as context:
            await programs.clock.advance(timedelta(hours=1))
            await context.schedule_task(same, "x", execute_at=after(2 * 3600))
            await programs.clock.advance(timedelta(hours=2))
            assert programs.ran == [("job:x", 7200.0)]

    run(main())


def test_what_another_program_schedules_while_the_clock_moves_runs_in_time() -> None:
    async def main() -> None:
        programs = Programs()
        worker, web = programs.app(), programs.app()
        worker.dynamic_task(name="job")(programs.note)
        job = web.dynamic_task(name="job")(programs.note)
        async with programs.running(worker), web.create() as context:

            async def visitor() -> None:
                await programs.clock.sleep(3600)
                await context.schedule_task(job, "x", execute_in=timedelta(hours=5))

            visit = asyncio.create_task(visitor())
            await programs.clock.advance(timedelta(days=1))
            await visit
        assert programs.ran == [("job:x", 6 * 3600.0)]

    run(main())


def test_a_task_that_is_enabled_between_two_moves_runs_within_a_poll() -> None:
    async def main() -> None:
        programs = Programs()
        app = programs.app()
        hourly = app.task(name="hourly", interval=3600, enabled=False)(programs.note)
        async with programs.running(app):
            await programs.clock.advance(timedelta(hours=10))
            hourly.enabled = True
            await programs.clock.advance(timedelta(hours=3))
        assert [at for _, at in programs.ran] == [36_001.0 + 3600, 36_001.0 + 7200]

    run(main())


def test_a_partition_whose_owner_has_stopped_claiming_is_claimed_by_another_worker() -> None:
    async def main() -> None:
        programs = Programs()
        apps = [programs.app(), programs.app()]
        template, _ = (
            app.partitioned_task(name="job", partition_count=4, partitions=Partitions.SHARED)(
                programs.note
            )
            for app in apps
        )
        async with programs.running(apps[0]) as first:
            async with programs.running(apps[1]):
                await programs.clock.advance(seconds(60))
            for number in range(20):
                await first.schedule_task(template, str(number), execute_in=timedelta(minutes=10))
            await programs.clock.advance(timedelta(minutes=20))
        assert len(programs.ran) == 20
        assert {at for _, at in programs.ran} == {660.0}

    run(main())


def test_a_pause_ends_by_itself_while_nothing_else_happens() -> None:
    async def main() -> None:
        programs = Programs()
        app = programs.app()
        job = app.dynamic_task(name="job")(programs.note)
        async with programs.running(app) as context:
            await context.pause(job, until=after(5 * 3600))
            await context.schedule_task(job, "x", execute_at=after(60))
            await programs.clock.advance(timedelta(days=1))
        assert programs.ran == [("job:x", 5 * 3600.0)]

    run(main())
