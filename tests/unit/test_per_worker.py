"""``limit=PerWorker(n)``: how many executions of one task run at once in one worker."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.faulty_store import LoseAnswer
from tests.support import START, Bench, after, run, seconds

from pyncette import Context, ExecutionMode, FailureMode, PerWorker, Retry
from pyncette.engine.polling import NEVER, Sources
from pyncette.executor import SynchronousExecutor
from pyncette.model import TaskFunc
from pyncette.task import Task

pytestmark = pytest.mark.every_poll


class Counted:
    """Bodies that take a while, and how many of them ran at once."""

    def __init__(self, bench: Bench, length_s: float = 10) -> None:
        self._bench = bench
        self._length_s = length_s
        self._running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def body(self, context: Context) -> None:
        name = context.task.template.name
        self._running[name] += 1
        self.most[name] = max(self.most[name], self._running[name])
        await self._bench.note(context)
        try:
            await self._bench.clock.sleep(self._length_s)
        finally:
            self._running[name] -= 1


async def scheduled(context: Any, task: Task, count: int) -> None:
    for number in range(count):
        await context.schedule_task(task, str(number), execute_at=START)


def claims(bench: Bench) -> int:
    return len(bench.faults.made("claim"))


def test_no_more_of_a_task_run_at_once_than_its_limit_allows() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(3))(counted.body)
        async with bench.running() as context:
            await scheduled(context, job, 10)
            await bench.advance(60)
        assert counted.most == {"job": 3}
        assert bench.times == [0] * 3 + [10] * 3 + [20] * 3 + [30]

    run(main())


def test_what_is_above_the_limit_is_not_claimed_so_that_another_worker_runs_it() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench)

        def declare(app: Any) -> Task:
            task: Task = app.dynamic_task(name="job", limit=PerWorker(2))(counted.body)
            return task

        job, other = declare(bench.app), bench.another_app(worker_name="other")
        declare(other)
        async with bench.running() as context:
            await scheduled(context, job, 4)
            await bench.advance(0.5)
            states = [await context.get_task(job, str(number)) for number in range(4)]
            assert sum(state is not None and state.locked_by is not None for state in states) == 2
            async with bench.running(other):
                await bench.advance(2)
                assert counted.most == {"job": 4}
                await bench.advance(20)
        assert len(bench.runs) == 4

    run(main())


def test_a_place_that_becomes_free_is_filled_at_once() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        counted = Counted(bench, 0.25)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(1))(counted.body)
        async with bench.running() as context:
            await scheduled(context, job, 4)
            await bench.advance(5)
        assert bench.times == [0, 0.25, 0.5, 0.75]

    run(main())


def test_a_task_at_its_limit_neither_spins_nor_keeps_others_waiting() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=3)
        counted = Counted(bench, 100)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(1), lease_duration=seconds(1000))(
            counted.body
        )
        tick = bench.app.task(name="tick", interval=seconds(1))(bench.note)
        async with bench.running() as context:
            await scheduled(context, job, 50)
            await bench.advance(0.5)
            before = claims(bench)
            await bench.advance(10)
            # One for each poll, one for each tick, and no more.
            assert claims(bench) - before <= 21
            ticks = [entry.at for entry in bench.runs if entry.name == str(tick)]
            assert ticks == [float(second) for second in range(1, 11)]
            assert context.last_tick >= after(10)
            context.shutdown()
            await bench.advance(100)

    run(main())


def test_a_notification_does_not_make_a_task_at_its_limit_ask() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        counted = Counted(bench, 30)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(1), lease_duration=seconds(1000))(
            counted.body
        )
        async with bench.running() as context:
            await context.schedule_task(job, "first", execute_at=START)
            await bench.advance(1)
            before = claims(bench)
            await scheduled(context, job, 20)
            await bench.advance(10)
            assert claims(bench) == before
            context.shutdown()
            await bench.advance(100)

    run(main())


def test_two_tasks_at_their_limits_do_not_count_each_other() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench)
        first = bench.app.dynamic_task(name="first", limit=PerWorker(1))(counted.body)
        second = bench.app.dynamic_task(name="second", limit=PerWorker(2))(counted.body)
        free = bench.app.dynamic_task(name="free")(counted.body)
        async with bench.running() as context:
            for task in (first, second, free):
                await scheduled(context, task, 6)
            await bench.advance(5)
            assert counted.most == {"first": 1, "second": 2, "free": 6}
            await bench.advance(100)
        assert counted.most == {"first": 1, "second": 2, "free": 6}
        assert len(bench.runs) == 18

    run(main())


@pytest.mark.parametrize("limit", [1, 3, 8, 20])
def test_the_limit_counts_all_partitions_together(limit: int) -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench, 2)
        job = bench.app.partitioned_task(8, name="job", limit=PerWorker(limit))(counted.body)
        other = bench.app.task(name="other", interval=seconds(1))(bench.note)
        async with bench.running() as context:
            await scheduled(context, job, 40)
            await bench.advance(5)
            assert counted.most == {"job": limit}
            assert len([entry for entry in bench.runs if entry.name == str(other)]) == 5
            await bench.advance(100)
        assert counted.most == {"job": limit}
        assert len([entry for entry in bench.runs if entry.name != str(other)]) == 40

    run(main())


def test_partitions_beyond_the_limit_cost_one_claim_and_not_one_each() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.partitioned_task(50, name="job", limit=PerWorker(1))(bench.note)
        async with bench.running():
            await bench.advance(1.5)
            before = claims(bench)
            await bench.advance(10)
            assert claims(bench) - before <= 20

    run(main())


def test_a_retry_takes_a_place_like_any_other_run() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench, 1)

        async def fails(context: Context) -> None:
            await counted.body(context)
            raise RuntimeError("the body failed")

        job = bench.app.dynamic_task(
            name="job",
            limit=PerWorker(1),
            retry=Retry(attempts=2, initial=seconds(0), jitter=0),
        )(fails)
        async with bench.running() as context:
            await scheduled(context, job, 3)
            await bench.advance(10)
        assert counted.most == {"job": 1}
        assert bench.times == [0, 1, 2, 3, 4, 5]

    run(main())


def test_an_at_most_once_task_that_overlaps_itself_respects_the_limit() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench, 2.5)
        bench.app.task(
            name="slow",
            interval=seconds(1),
            execution_mode=ExecutionMode.AT_MOST_ONCE,
            limit=PerWorker(2),
        )(counted.body)
        async with bench.running() as context:
            await bench.advance(30)
            context.shutdown()
            await bench.advance(5)
        assert counted.most == {"slow": 2}
        assert bench.planned[:4] == [1, 2, 3, 4]
        assert bench.times[:4] == [1, 2, 3.5, 4.5]

    run(main())


def test_a_body_that_outlives_its_lease_is_not_started_again_above_the_limit() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench, 10)
        bench.app.task(
            name="slow",
            interval=seconds(60),
            lease_duration=seconds(2),
            failure_mode=FailureMode.NONE,
            limit=PerWorker(1),
        )(counted.body)
        async with bench.running() as context:
            await bench.advance(75)
            context.shutdown()
            await bench.advance(20)
        assert counted.most == {"slow": 1}

    run(main())


def test_a_claim_whose_answer_was_lost_takes_no_more_when_it_is_repeated() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench, 1)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(2))(counted.body)
        async with bench.app.create() as context:
            await scheduled(context, job, 6)
        bench.faults.next("claim", LoseAnswer())
        async with bench.running():
            await bench.advance(30)
        assert counted.most == {"job": 2}
        assert len(bench.runs) == 6

    run(main())


def test_a_synchronous_executor_runs_one_by_one_as_ever() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)
        counted = Counted(bench, 0)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(2))(counted.body)
        async with bench.running() as context:
            await scheduled(context, job, 6)
            await bench.advance(5)
        assert counted.most == {"job": 1}
        assert bench.times == [0] * 6

    run(main())


def test_a_limit_can_be_changed_and_removed_while_the_app_runs() -> None:
    async def main() -> None:
        bench = Bench()
        counted = Counted(bench)
        job = bench.app.dynamic_task(name="job")(counted.body)
        async with bench.running() as context:
            job.limit = PerWorker(1)
            await bench.advance(1)
            await scheduled(context, job, 9)
            await bench.advance(2)
            assert counted.most == {"job": 1}
            job.limit = PerWorker(3)
            await bench.advance(1)
            assert counted.most == {"job": 3}
            job.limit = None
            await bench.advance(1)
            assert counted.most == {"job": 9}
            await bench.advance(50)

    run(main())


def test_a_source_that_is_held_and_then_removed_is_not_asked_again() -> None:
    async def body(context: Context) -> None:
        """Does nothing."""

    task = Task(name="a", func=body, dynamic=True, limit=PerWorker(1))
    sources = Sources()
    sources.refresh([task])
    assert sources.limited
    [source] = sources.due(5)
    sources.hold(source)
    sources.refresh([])
    assert not sources.limited
    sources.release(task, 7)
    assert sources.held == {}
    assert sources.soonest() == NEVER


# Declaration.


def declarations(bench: Bench) -> list[Callable[..., Callable[[TaskFunc], Task]]]:
    return [
        lambda **options: bench.app.task(interval=seconds(1), **options),
        bench.app.dynamic_task,
        lambda **options: bench.app.partitioned_task(4, **options),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_a_number_stays_an_argument_and_is_warned_about(
    kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    with caplog.at_level(logging.WARNING):
        task = declarations(bench)[kind](name="job", limit=3)(bench.note)
    assert task.limit is None
    assert task.extra_args == {"limit": 3}
    assert "the option takes a pyncette.PerWorker" in caplog.text


@pytest.mark.parametrize("kind", range(3))
def test_a_limit_is_an_option_and_no_argument(kind: int) -> None:
    bench = Bench()
    task = declarations(bench)[kind](name="job", limit=PerWorker(3))(bench.note)
    assert task.limit == PerWorker(3)
    assert task.extra_args == {}


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError), ("2", TypeError)],
)
def test_a_limit_is_a_positive_number(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="PerWorker"):
        PerWorker(value)


def test_a_limit_of_another_kind_is_refused() -> None:
    bench = Bench()
    with pytest.raises(TypeError, match=r"limit must be a pyncette\.PerWorker"):
        bench.app.dynamic_task(name="job", limit=object())(bench.note)  # type: ignore[call-overload]


def test_an_instance_has_no_limit_of_its_own() -> None:
    bench = Bench()
    job = bench.app.dynamic_task(name="job", limit=PerWorker(1))(bench.note)
    with pytest.raises(TypeError, match="limit is an option of the template"):
        job.instantiate("x", execute_at=START, limit=PerWorker(2))  # type: ignore[arg-type]
    assert job.instantiate("x", execute_at=START, limit=5).extra_args == {"limit": 5}
