"""Tags: which workers may run a task."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.support import Bench, after, lines, logged, run

from pyncette import Context, Partitions, Pyncette, PyncetteContext

pytestmark = pytest.mark.every_poll


class Fleet:
    """Workers with different tags, which declare the same tasks."""

    def __init__(self, **tags: set[str]) -> None:
        self.bench = Bench()
        self.ran: list[tuple[str, str]] = []
        self.apps = {
            name: self.bench.another_app(worker_name=name, worker_tags=given)
            for name, given in tags.items()
        }

    def body(self, worker: str) -> Any:
        async def body(context: Context) -> None:
            self.ran.append((worker, str(context.task)))

        return body

    def declare(self, kind: str, *args: Any, **options: Any) -> dict[str, Any]:
        return {
            name: getattr(app, kind)(*args, **options)(self.body(name))
            for name, app in self.apps.items()
        }

    async def start(self, stack: AsyncExitStack, *names: str) -> list[PyncetteContext]:
        return [
            await stack.enter_async_context(self.bench.running(self.apps[name])) for name in names
        ]

    def workers_of(self, task: str) -> set[str]:
        return {worker for worker, name in self.ran if name == task}


def test_a_task_runs_only_where_all_of_its_tags_are() -> None:
    async def main() -> None:
        fleet = Fleet(plain=set(), gpu={"gpu"}, both={"gpu", "eu"})
        fleet.declare("task", name="anywhere", interval=1)
        fleet.declare("task", name="render", interval=1, tags={"gpu"})
        fleet.declare("task", name="local", interval=1, tags={"gpu", "eu"})
        async with AsyncExitStack() as stack:
            await fleet.start(stack, "plain", "gpu", "both")
            await fleet.bench.advance(100)
        assert fleet.workers_of("anywhere") <= {"plain", "gpu", "both"}
        assert fleet.workers_of("render") <= {"gpu", "both"}
        assert fleet.workers_of("local") == {"both"}
        for task in ("anywhere", "render", "local"):
            assert len([name for _, name in fleet.ran if name == task]) in (99, 100)

    run(main())


def test_instances_follow_the_tags_of_their_template_whoever_schedules_or_triggers_them() -> None:
    async def main() -> None:
        fleet = Fleet(web=set(), gpu={"gpu"})
        templates = fleet.declare("dynamic_task", name="render", tags={"gpu"})
        async with AsyncExitStack() as stack:
            web, _ = await fleet.start(stack, "web", "gpu")
            await web.schedule_task(templates["web"], "x", interval=360)
            await web.schedule_task(templates["web"], "y", execute_at=after(5))
            await fleet.bench.advance(10)
            assert fleet.ran == [("gpu", "render:y")]
            assert await web.trigger(templates["web"], "x") == 1
            await fleet.bench.advance(2)
            assert fleet.ran[1:] == [("gpu", "render:x")]
            await web.pause(templates["web"])
            await fleet.bench.advance(720)
            assert fleet.ran[2:] == []
            await web.resume(templates["web"])
            await fleet.bench.advance(2)
            assert {worker for worker, _ in fleet.ran} == {"gpu"}
            assert len(fleet.ran) > 2

    run(main())


def test_a_static_task_that_is_triggered_elsewhere_runs_where_its_tags_are() -> None:
    async def main() -> None:
        fleet = Fleet(web=set(), gpu={"gpu"})
        tasks = fleet.declare("task", name="nightly", schedule="0 3 * * *", tags={"gpu"})
        async with AsyncExitStack() as stack:
            web, _ = await fleet.start(stack, "web", "gpu")
            await web.trigger(tasks["web"])
            await fleet.bench.advance(2)
        assert fleet.ran == [("gpu", "nightly")]

    run(main())


def test_only_workers_that_may_run_a_template_share_its_partitions() -> None:
    async def main() -> None:
        fleet = Fleet(plain=set(), one={"gpu"}, two={"gpu"})
        templates = fleet.declare(
            "partitioned_task", 8, name="render", partitions=Partitions.SHARED, tags={"gpu"}
        )
        async with AsyncExitStack() as stack:
            contexts = await fleet.start(stack, "plain", "one", "two")
            await fleet.bench.advance(60)
            for number in range(64):
                await contexts[0].schedule_task(
                    templates["plain"], str(number), execute_at=after(100)
                )
            await fleet.bench.advance(40)  # at once: no partition belongs to one that may not
            assert len(fleet.ran) == 64
            by = [worker for worker, _ in fleet.ran]
            assert by.count("one") > 10 < by.count("two")
            assert by.count("plain") == 0

    run(main())


def test_workers_show_their_tags_and_only_what_they_may_run() -> None:
    async def main() -> None:
        fleet = Fleet(plain=set(), gpu={"gpu", "a"})
        fleet.declare("task", name="render", interval=3600, tags={"gpu"})
        fleet.declare("task", name="anywhere", interval=3600)
        async with AsyncExitStack() as stack:
            context, _ = await fleet.start(stack, "plain", "gpu")
            gpu, plain = await context.workers()
            assert gpu.tags == {"gpu", "a"}
            assert gpu.tasks == ("render", "anywhere")
            assert plain.tags == frozenset()
            assert plain.tasks == ("anywhere",)

    run(main())


def test_a_task_that_no_worker_may_run_is_named_once_and_can_be_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def named() -> list[str]:
        return [line for line in lines(caplog) if "has all of its tags" in line]

    async def main() -> None:
        fleet = Fleet(plain=set(), gpu={"gpu"})
        fleet.declare("task", name="render", interval=1, tags={"gpu"})
        fleet.declare("task", name="anywhere", interval=3600)
        async with AsyncExitStack() as stack:
            [plain] = await fleet.start(stack, "plain")
            await fleet.bench.advance(50)
            assert named() == []  # others may still start
            await fleet.bench.advance(3600)
            assert [task.name for task in await plain.tasks_without_worker()] == ["render"]
            [line] = named()
            assert "Task 'render' does not run" in line
            assert "(gpu)" in line
            async with AsyncExitStack() as later:
                await fleet.start(later, "gpu")
                await fleet.bench.advance(100)
                assert await plain.tasks_without_worker() == []
            await fleet.bench.advance(100)
            assert len(named()) == 2

    caplog.set_level(logging.INFO)
    run(main())


def test_other_workers_are_not_looked_at_if_the_worker_may_run_everything() -> None:
    async def main() -> None:
        fleet = Fleet(gpu={"gpu"})
        fleet.declare("task", name="render", interval=60, tags={"gpu"})
        async with AsyncExitStack() as stack:
            await fleet.start(stack, "gpu")
            fleet.bench.faults.calls.clear()
            await fleet.bench.advance(600)
            # Once an hour, records of dead workers are looked for.
            assert len(fleet.bench.faults.made("scan")) == 1

    run(main())


def test_a_worker_that_may_run_nothing_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        fleet = Fleet(plain=set())
        fleet.declare("task", name="render", interval=1, tags={"gpu"})
        async with AsyncExitStack() as stack:
            await fleet.start(stack, "plain")
            await fleet.bench.advance(5)
        assert fleet.ran == []

    run(main())
    assert logged(caplog, "because it does not have the tags of its 1 task (worker_tags)")


def test_tags_that_are_set_while_it_runs_hold_from_the_next_poll_on() -> None:
    async def main() -> None:
        fleet = Fleet(plain=set())
        task = fleet.declare("task", name="job", interval=1)["plain"]
        async with AsyncExitStack() as stack:
            await fleet.start(stack, "plain")
            await fleet.bench.advance(5)
            task.tags = {"gpu"}
            await fleet.bench.advance(2)
            count = len(fleet.ran)
            await fleet.bench.advance(10)
            assert len(fleet.ran) == count
            task.tags = set()
            await fleet.bench.advance(10)
            assert len(fleet.ran) > count

    run(main())


def test_running_until_idle_leaves_to_others_what_needs_other_tags() -> None:
    async def main() -> None:
        fleet = Fleet(plain=set(), gpu={"gpu"})
        templates = fleet.declare("dynamic_task", name="render", tags={"gpu"})
        async with fleet.apps["plain"].create() as plain, fleet.apps["gpu"].create() as gpu:
            await plain.schedule_task(templates["plain"], "x", execute_at=after(0))
            assert (await plain.run_until_idle()).runs == 0
            assert (await gpu.run_until_idle()).runs == 1

    run(main())


@pytest.mark.parametrize(
    ("tags", "error", "words"),
    [
        ({""}, ValueError, "1 to 100 printable characters, not ''"),
        ({"a" * 101}, ValueError, "1 to 100 printable"),
        ({"a\n"}, ValueError, "printable"),
        ({1}, TypeError, "tags must hold strings only, not 1"),
        ({str(number) for number in range(101)}, ValueError, "at most 100 tags, not 101"),
        (frozenset, TypeError, "tags must be a set of strings"),
    ],
)
def test_tags_are_checked(tags: Any, error: type[Exception], words: str) -> None:
    app = Pyncette()

    async def body(context: Context) -> None: ...

    with pytest.raises(error, match=words):
        app.task(name="job", interval=1, tags=tags)(body)


@pytest.mark.parametrize("tags", ["gpu", 5, {"a": 1, 2: 3}, [None]])
def test_tags_of_a_worker_are_checked(tags: Any) -> None:
    with pytest.raises(TypeError, match="worker_tags must"):
        Pyncette(worker_tags=tags)


def test_a_list_is_an_argument_of_the_task_as_in_1x() -> None:
    app = Pyncette()

    @app.task(interval=1, tags=["a", "b"])  # type: ignore[call-overload, untyped-decorator]
    async def job(context: Context) -> None: ...

    assert job.extra_args == {"tags": ["a", "b"]}
    assert job.tags == frozenset()


def test_a_task_of_an_instance_has_the_tags_of_its_template() -> None:
    async def main() -> None:
        bench = Bench()
        template = bench.app.dynamic_task(name="job", tags={"gpu"})(bench.note)
        async with bench.app.create() as context:
            instance = await context.schedule_task(template, "x", execute_at=after(5))
            assert instance.tags == {"gpu"}
            with pytest.raises(TypeError, match="tags is an option of the template"):
                await context.schedule_task(template, "y", execute_at=after(5), tags={"a"})  # type: ignore[arg-type]

    asyncio.run(main())
