"""`with_heartbeat`: beats while the body runs, and cancels nothing but the body."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pyncette import Context, Pyncette
from pyncette.errors import LeaseLostException
from pyncette.executor import DefaultExecutor, SynchronousExecutor
from pyncette.memory import MemoryRepository
from pyncette.model import NextFunc
from pyncette.testing import VirtualClock
from pyncette.utils import with_heartbeat

LEASE = timedelta(seconds=60)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def lost() -> LeaseLostException:
    return LeaseLostException(SimpleNamespace())  # type: ignore[arg-type]


class Run:
    """All that `with_heartbeat` needs of a context; its heartbeats end as they are told to."""

    def __init__(self, *answers: Exception | None) -> None:
        self.clock = VirtualClock()
        self.task = SimpleNamespace(lease_duration=LEASE)
        self.app_context = SimpleNamespace(clock=self.clock)
        self.beats: list[float] = []
        self._answers = list(answers)

    async def heartbeat(self) -> None:
        self.beats.append(self.clock.monotonic())
        answer = self._answers.pop(0) if self._answers else None
        if answer is not None:
            raise answer

    async def body(self) -> None:
        """A body that takes five minutes."""
        await self.clock.sleep(300)


def no_task_is_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("ratio", "beats"), [(0.5, [30, 60, 90]), (0.25, [15, 30, 45, 60, 75, 90]), (0.75, [45, 90])]
)
def test_it_beats_at_the_given_part_of_the_lease(ratio: float, beats: list[float]) -> None:
    async def main() -> None:
        run = Run()
        running = asyncio.create_task(_awaited(with_heartbeat(ratio)(Run.body)(run)))
        await run.clock.advance(seconds(100))
        assert run.beats == pytest.approx(beats)
        await run.clock.advance(seconds(200))
        await running

    asyncio.run(main())


@pytest.mark.parametrize("ratio", [None, "0.5", [0.5]])
def test_a_ratio_is_a_number(ratio: Any) -> None:
    with pytest.raises(TypeError, match="lease_remaining_ratio must be a number"):
        with_heartbeat(lease_remaining_ratio=ratio)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan"), float("inf")])
def test_a_ratio_that_is_not_between_0_and_1_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="lease_remaining_ratio must be more than 0"):
        with_heartbeat(lease_remaining_ratio=ratio)


def test_forgotten_parentheses_are_pointed_out() -> None:
    async def report(context: Context) -> None: ...

    with pytest.raises(TypeError, match=r"write @with_heartbeat\(\)"):
        with_heartbeat(report)  # type: ignore[arg-type]


def test_the_task_keeps_the_name_of_the_function() -> None:
    app = Pyncette()

    @app.task(interval=LEASE)
    @with_heartbeat()
    async def report(context: Context) -> None:
        """Sends the report."""

    assert report.name == "report"
    assert report.task_func.__doc__ == "Sends the report."


def test_no_heartbeat_comes_after_the_body_and_no_task_is_left() -> None:
    async def main() -> None:
        run = Run()

        @with_heartbeat()
        async def short(context: Run) -> str:
            await context.clock.sleep(40)
            return "done"

        running = asyncio.create_task(_awaited(short(run)))
        await run.clock.advance(seconds(40))
        assert await running == "done"
        assert no_task_is_left()
        await run.clock.advance(seconds(300))
        assert run.beats == [30]

    asyncio.run(main())


def test_an_exception_of_the_body_comes_through_and_no_task_is_left() -> None:
    async def main() -> None:
        @with_heartbeat()
        async def failing(context: Run) -> None:
            raise KeyError("the body's")

        with pytest.raises(KeyError, match="the body's"):
            await failing(Run())
        assert no_task_is_left()

    asyncio.run(main())


def test_a_heartbeat_that_fails_is_logged_and_the_next_one_made_when_it_is_due(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        run = Run(OSError("no route"), None)
        running = asyncio.create_task(_awaited(with_heartbeat()(Run.body)(run)))
        await run.clock.advance(seconds(300))
        await running
        assert run.beats[:3] == [30, 60, 90]

    asyncio.run(main())
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "no route" in record.getMessage()


def test_a_slow_heartbeat_does_not_put_off_the_next() -> None:
    class Slow(Run):
        async def heartbeat(self) -> None:
            await super().heartbeat()
            await self.clock.sleep(20)

    async def main() -> None:
        run = Slow()
        running = asyncio.create_task(_awaited(with_heartbeat()(Run.body)(run)))
        await run.clock.advance(seconds(300))
        await running
        assert run.beats[:3] == [30, 60, 90]

    asyncio.run(main())


def test_when_the_lease_is_lost_the_beats_stop_and_the_body_goes_on() -> None:
    async def main() -> None:
        run = Run(None, lost())
        running = asyncio.create_task(_awaited(with_heartbeat()(Run.body)(run)))
        await run.clock.advance(seconds(299))
        assert not running.done()
        await run.clock.advance(seconds(1))
        await running
        assert run.beats == [30, 60]

    asyncio.run(main())


def test_a_lost_lease_cancels_the_body_and_nothing_but_the_body() -> None:
    async def main() -> None:
        run = Run(None, lost())
        seen: list[str] = []

        @with_heartbeat(cancel_on_lease_lost=True)
        async def body(context: Run) -> None:
            try:
                await context.body()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async def caller() -> None:
            with pytest.raises(LeaseLostException):
                await body(run)
            await run.clock.sleep(10)
            seen.append("went on")

        running = asyncio.create_task(caller())
        await run.clock.advance(seconds(60))
        assert seen == ["cancelled"]
        assert running.cancelling() == 0
        await run.clock.advance(seconds(10))
        await running
        assert seen == ["cancelled", "went on"]
        assert no_task_is_left()

    asyncio.run(main())


def test_a_body_that_survives_its_cancellation_has_lost_its_lease_all_the_same() -> None:
    async def main() -> None:
        run = Run(lost())

        @with_heartbeat(cancel_on_lease_lost=True)
        async def stubborn(context: Run) -> None:
            try:
                await context.body()
            except asyncio.CancelledError:
                await context.clock.sleep(1)

        running = asyncio.create_task(_awaited(stubborn(run)))
        await run.clock.advance(seconds(31))
        with pytest.raises(LeaseLostException):
            await running
        assert running.cancelling() == 0

    asyncio.run(main())


def test_what_the_body_raises_while_it_is_cancelled_wins_over_the_loss() -> None:
    async def main() -> None:
        run = Run(lost())

        @with_heartbeat(cancel_on_lease_lost=True)
        async def failing(context: Run) -> None:
            try:
                await context.body()
            finally:
                raise KeyError("cleaning up")

        running = asyncio.create_task(_awaited(failing(run)))
        await run.clock.advance(seconds(30))
        with pytest.raises(KeyError, match="cleaning up"):
            await running
        assert running.cancelling() == 0

    asyncio.run(main())


def test_a_cancellation_from_outside_ends_body_and_beats() -> None:
    async def main() -> None:
        run = Run()
        seen: list[str] = []

        @with_heartbeat(cancel_on_lease_lost=True)
        async def body(context: Run) -> None:
            try:
                await context.body()
            finally:
                seen.append("ended")

        running = asyncio.create_task(_awaited(body(run)))
        await run.clock.advance(seconds(40))
        running.cancel("shutdown")
        with pytest.raises(asyncio.CancelledError, match="shutdown"):
            await running
        assert seen == ["ended"]
        assert no_task_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("first", ["outside", "lease"])
def test_a_cancellation_from_outside_is_not_taken_for_a_lost_lease(first: str) -> None:
    async def main() -> None:
        run = Run(lost())

        @with_heartbeat(cancel_on_lease_lost=True)
        async def body(context: Run) -> None:
            try:
                await context.body()
            except asyncio.CancelledError:
                await context.clock.sleep(60)
                raise

        running = asyncio.create_task(_awaited(body(run)))
        await run.clock.advance(seconds(29 if first == "outside" else 31))
        running.cancel()
        await run.clock.advance(seconds(100))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert running.cancelling() == 1

    asyncio.run(main())


class Lingering(Run):
    """A heartbeat that is under way when the body ends takes a second to be cancelled."""

    async def heartbeat(self) -> None:
        try:
            await self.clock.sleep(1_000)
        except asyncio.CancelledError:
            await self.clock.sleep(1)
            await super().heartbeat()
            raise


def test_a_lease_lost_after_the_body_has_ended_cancels_nothing() -> None:
    async def main() -> None:
        run = Lingering(lost())

        @with_heartbeat(cancel_on_lease_lost=True)
        async def body(context: Run) -> str:
            await context.clock.sleep(40)
            return "done"

        async def caller() -> str:
            result = await body(run)
            await run.clock.sleep(10)
            return str(result)

        running = asyncio.create_task(caller())
        await run.clock.advance(seconds(60))
        assert run.beats == [41]
        assert await running == "done"

    asyncio.run(main())


def test_a_cancellation_after_the_body_has_ended_leaves_its_outcome_alone() -> None:
    async def main() -> None:
        run = Lingering()
        seen: list[Any] = []

        @with_heartbeat()
        async def body(context: Run) -> str:
            await context.clock.sleep(40)
            return "done"

        async def caller() -> None:
            seen.append(await body(run))
            await run.clock.sleep(10)
            seen.append("not reached")

        running = asyncio.create_task(caller())
        await run.clock.advance(seconds(40.5))
        running.cancel()
        await run.clock.advance(seconds(60))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert seen == ["done"]
        assert running.cancelling() == 1

    asyncio.run(main())


# On the engine.


def starts_of_a_body_longer_than_its_lease(decorate: Callable[[Any], Any]) -> list[float]:
    async def main() -> list[float]:
        clock = VirtualClock()
        starts: list[float] = []
        app = Pyncette(MemoryRepository(), clock=clock)

        @app.task(interval=seconds(60), lease_duration=seconds(10))
        @decorate
        async def slow(context: Context) -> None:
            starts.append(clock.monotonic())
            await clock.sleep(55)

        async with app.create() as one, app.create() as other:
            running = [asyncio.create_task(context.run()) for context in (one, other)]
            await clock.advance(seconds(119))
            for context in (one, other):
                context.shutdown()
            await clock.advance(seconds(60))
            await asyncio.gather(*running)
        return starts

    return asyncio.run(main())


def test_a_body_longer_than_its_lease_runs_once_thanks_to_its_heartbeats() -> None:
    assert starts_of_a_body_longer_than_its_lease(with_heartbeat()) == [60]


def test_a_body_longer_than_its_lease_runs_again_without_heartbeats() -> None:
    assert starts_of_a_body_longer_than_its_lease(lambda body: body)[:2] == [60, 70]


@pytest.mark.parametrize("executor", [DefaultExecutor, SynchronousExecutor])
def test_an_execution_that_lost_its_lease_is_cancelled_and_the_worker_goes_on(
    executor: type[Any],
) -> None:
    async def main() -> list[Any]:
        clock = VirtualClock()
        seen: list[Any] = []
        app = Pyncette(MemoryRepository(), executor, clock=clock)

        @app.middleware
        async def watch(context: Context, following: NextFunc) -> None:
            try:
                await following()
            except BaseException as error:
                seen.append(type(error))
                raise
            seen.append(context.task.name)

        @app.dynamic_task()
        @with_heartbeat(cancel_on_lease_lost=True)
        async def report(context: Context) -> None:
            await clock.sleep(context.args["takes"])

        async with app.create() as context:
            await context.schedule_task(report, "long", execute_at=clock.now(), takes=10_000)
            running = asyncio.create_task(context.run())
            await clock.advance(seconds(10))
            await context.unschedule_task(report, "long")
            await clock.advance(seconds(30))
            await context.schedule_task(report, "short", execute_at=clock.now(), takes=1)
            await clock.advance(seconds(10))
            context.shutdown()
            await running
        return seen

    assert asyncio.run(main()) == [LeaseLostException, "short"]


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def test_a_plain_function_may_be_decorated() -> None:
    ran: list[Any] = []

    @with_heartbeat()
    def plain(context: Any) -> Any:
        ran.append(context)

    context = SimpleNamespace(
        task=SimpleNamespace(lease_duration=timedelta(seconds=1)),
        app_context=SimpleNamespace(clock=VirtualClock()),
    )

    async def main() -> None:
        await plain(context)

    asyncio.run(main())
    assert ran == [context]


def test_what_cannot_be_a_task_is_not_decorated() -> None:
    async def generator(context: Any) -> AsyncIterator[int]:
        yield 1

    decorate: Any = with_heartbeat()
    with pytest.raises(TypeError, match="an async generator function"):
        decorate(generator)


def logs(func: Callable[[Context], Awaitable[Any]]) -> Callable[[Context], Awaitable[Any]]:
    """A decorator as users write them."""

    @functools.wraps(func)
    async def wrapper(context: Context) -> None:
        await func(context)

    return wrapper


@pytest.mark.parametrize(
    "decorate",
    [
        lambda task: task,
        logs,
        lambda task: logs(logs(task)),
        functools.partial,
        lambda task: task.__call__,
    ],
    ids=["the task", "wrapped", "wrapped twice", "partial", "its call"],
)
@pytest.mark.parametrize("kind", ["task", "dynamic_task", "partitioned_task"])
def test_above_the_decorator_that_declares_the_task_it_is_refused(
    kind: str, decorate: Callable[[Any], Any]
) -> None:
    async def body(context: Context) -> None: ...

    options: dict[str, Any] = {"partition_count": 2} if kind == "partitioned_task" else {}
    task = getattr(Pyncette(), kind)(name="report", interval=60, **options)(body)
    with pytest.raises(TypeError, match=r"'report'.*below the decorator that declares"):
        with_heartbeat()(decorate(task))


def test_wrapped_functions_are_accepted_even_in_a_circle() -> None:
    @logs
    async def body(context: Context) -> None: ...

    with_heartbeat()(logs(body))
    body.__wrapped__ = body  # type: ignore[attr-defined]
    with_heartbeat()(body)
