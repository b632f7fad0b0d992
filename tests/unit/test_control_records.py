"""Rows of control records that were edited by hand stop nothing but what they are about."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support import Bench, after, logged, run
from tests.unit.web_site import Browser, ada, text

from pyncette import Instance, Pyncette, PyncetteContext, Where
from pyncette.cli import doctor
from pyncette.cli.printing import Printer
from pyncette.engine.steering import pause_identity
from pyncette.errors import PyncetteException, TaskUnreadableError
from pyncette.migrate.copying import MARK, is_marked_finished
from pyncette.model import Partitions
from pyncette.sqlite import sqlite_repository
from pyncette.store import Store, Write
from pyncette.store.record import (
    ABSENT,
    CONTROL_GROUP,
    MEMBERS_GROUP,
    Put,
    State,
    dump_args,
)
from pyncette.task import PartitionedTask, Task
from pyncette.web import dashboard


@pytest.fixture(autouse=True)
def few_partitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """If their number cannot be read, all that may exist are gone through: let it be fewer.

    One test goes through as many as there may really be, once.
    """
    if request.node.get_closest_marker("exhaustive") is None:
        for module in ("calls.rebalancing", "engine.templates"):
            monkeypatch.setattr(f"pyncette.{module}.PARTITION_COUNT_MAX", 500)


KINDS: Final = (
    "partitions:part",
    "template:part",
    "template:good",
    pause_identity("good")[1],
    MARK,
    "member",
)
"""The kinds of control records: the keys of one of each."""

GARBAGE: Final[dict[str, tuple[Any, ...]]] = {
    "args": ("garbage", "", "1 [", "1 []", '1 {"partition_count": 0, "seen": "x"}', "2 {}"),
    "schedule": ("garbage",),
    "progress": ("garbage",),
    "state": ("garbage", "running"),
    "token": ("garbage",),
    "version": (0, -1, 2**63 - 1),
    "due_at": (0, -(2**63), 2**63 - 1),
    "unfinished_attempts": (-1, 2**31),
}


class Edited:
    """An app on a file, whose rows a test edits."""

    def __init__(self, path: Path, every: float = 1) -> None:
        self.path = path / "tasks.db"
        self.bench = Bench()
        self.app, self.part, self.good = self.another_app(every=every)

    def another_app(
        self, count: int = 3, every: float = 1
    ) -> tuple[Pyncette, PartitionedTask, Task]:
        """The app, as a process has it that was started again.

        Args:
            count: Partitions.
            every: Seconds between runs of its pulse, and between its polls.
        """
        app = Pyncette(
            sqlite_repository,
            sqlite_database=str(self.path),
            clock=self.bench.clock,
            poll_interval=every,
        )
        note = self.bench.note
        app.task(name="pulse", interval=every)(note)
        good: Task = app.dynamic_task(name="good")(note)
        part: PartitionedTask = app.partitioned_task(
            count, name="part", partitions=Partitions.SHARED
        )(note)
        return app, part, good

    def edit(self, key: str, column: str, value: Any) -> None:
        """Sets a column of one row."""
        where = f"\"group\" = '{MEMBERS_GROUP}'" if key == "member" else f"\"key\" = '{key}'"
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            changed = connection.execute(
                f'UPDATE pyncette_tasks SET "{column}" = ? WHERE {where}', (value,)
            )
            assert changed.rowcount == 1
        finally:
            connection.close()

    async def fill(self) -> None:
        """Makes a record of every kind, and instances of both templates."""
        async with self.app.create() as context:
            for name in ("a", "b", "c", "d", "e"):
                await context.schedule_task(self.part, name, execute_at=after(60))
            await context.schedule_task(self.good, "g", execute_at=after(60))
            await context.pause(self.good)
            store: Store = context._requests.store
            for group, key in ((CONTROL_GROUP, MARK), (MEMBERS_GROUP, "one:1")):
                put = Put(None, State.FINISHED, None, 0, "", dump_args({"state": "x"}), "")
                await store.write([Write(group, key, put, ABSENT)], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", GARBAGE)
def test_an_edited_control_record_stops_no_other_task(
    kind: str, column: str, tmp_path: Path
) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        for value in GARBAGE[column]:
            edited.edit(kind, column, value)
            app, part, good = edited.another_app()
            edited.bench.runs.clear()
            async with edited.bench.running(app) as context:
                await edited.bench.advance(2)
                assert {run.name for run in edited.bench.runs} == {"pulse"}, value
                for call in (
                    context.unknown(),
                    context.static_tasks(),
                    context.workers(),
                    context.pauses(),
                    context.count_tasks(good),
                    context.get_task(good, "g"),
                    context.tasks_without_worker(),
                    context.schedule_task(good, "g", execute_at=after(60)),
                    context.list_tasks(good),
                ):
                    await call
                try:
                    await context.schedule_task(part, "a", execute_at=after(60))
                except TaskUnreadableError:
                    assert (kind, column) == ("partitions:part", "args")

    run(main())


async def mended(
    edited: Edited, context: PyncetteContext, part: PartitionedTask, count: int
) -> Any:
    """Moves the clock until a call of rebalance has returned."""
    call = asyncio.ensure_future(context.rebalance(part, count))
    while not call.done():
        await edited.bench.advance(1)
    return await call


@pytest.mark.parametrize("count", [2, 3, 7])
def test_rebalance_writes_a_number_of_partitions_anew_that_cannot_be_read(
    count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        edited.edit("partitions:part", "args", "garbage")
        app, part, _ = edited.another_app(count, every=10)
        async with edited.bench.running(app) as context:
            with pytest.raises(TaskUnreadableError, match=r"'partitions:part'.*rebalance") as told:
                await context.schedule_task(part, "new", execute_at=after(200))
            assert (told.value.name, told.value.elsewhere) == ("part", False)
            for refused in (
                lambda: context.get_task(part, "a"),
                lambda: context.count_tasks(part),
                lambda: context.list_tasks(part),
                lambda: context.unschedule_task(part, "a"),
                lambda: context.trigger(part, "a"),
                lambda: context.schedule_tasks(part, [Instance("a", interval=9)]),
                lambda: context.unschedule_tasks(part, where=Where()),
            ):
                with pytest.raises(TaskUnreadableError):
                    await refused()
            assert logged(caplog, "does not say how many partitions")
            assert (await mended(edited, context, part, count)).stage == "done"
            await context.schedule_task(part, "new", execute_at=after(200))
            found = [state.task.name async for state in context.iter_tasks(part)]
            assert sorted(found) == ["a", "b", "c", "d", "e", "new"]
            await edited.bench.advance(200)
            ran = [run.name for run in edited.bench.runs if run.name.startswith("part")]
            assert len(ran) == len(set(ran)) == len(found)
        async with edited.another_app(count)[0].create():
            pass

    run(main())


def test_workers_run_on_while_the_number_of_partitions_cannot_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        edited = Edited(tmp_path, every=10)
        await edited.fill()
        async with edited.bench.running(edited.app) as context:
            edited.edit("partitions:part", "args", "garbage")
            await edited.bench.advance(100)
            ran = [run.name for run in edited.bench.runs if run.name.startswith("part")]
            assert len(ran) == 5
            with pytest.raises(TaskUnreadableError):
                await context.get_task(edited.part, "a")
            await mended(edited, context, edited.part, 3)
            assert await context.get_task(edited.part, "a") is None

    run(main())


def test_a_number_of_partitions_of_a_later_release_is_not_written_over(tmp_path: Path) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        edited.edit("partitions:part", "args", "2 {}")
        app, part, _ = edited.another_app()
        async with app.create() as context:
            with pytest.raises(TaskUnreadableError, match="by another") as told:
                await context.rebalance(part, 3)
            assert told.value.elsewhere

    run(main())


@pytest.mark.parametrize(
    "partitions", ["fewer", pytest.param("all that there may be", marks=pytest.mark.exhaustive)]
)
def test_what_is_left_of_a_template_whose_partitions_cannot_be_read_is_purged(
    tmp_path: Path, partitions: str
) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        edited.edit("partitions:part", "args", "garbage")
        app = Pyncette(sqlite_repository, sqlite_database=str(edited.path))
        async with app.create() as context:
            left = {unknown.name: unknown for unknown in await context.unknown()}
            assert (str(left["part"].count), left["part"].partition_count) == ("0+", None)
            assert (await context.purge("part")).removed == 5
            assert "part" not in {unknown.name for unknown in await context.unknown()}

    run(main())


def test_a_template_without_partitions_opens_beside_a_record_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        edited.edit("partitions:part", "args", "garbage")
        app = Pyncette(sqlite_repository, sqlite_database=str(edited.path))
        app.dynamic_task(name="part")(edited.bench.note)
        async with app.create():
            assert logged(caplog, "was a template with partitions")

    run(main())


def test_the_doctor_says_how_to_write_the_number_of_partitions_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = Edited(tmp_path)
    run(edited.fill())
    edited.edit("partitions:part", "args", "garbage")

    def load() -> tuple[Pyncette, bool]:
        app = Pyncette(sqlite_repository, sqlite_database=str(edited.path))
        app.partitioned_task(3, name="part")(edited.bench.note)
        app.dynamic_task(name="good")(edited.bench.note)
        return app, True

    assert run(doctor.examine(load, Printer(as_json=True))) == 1
    found = {
        check["name"]: check for check in map(json.loads, capsys.readouterr().out.split("\n")[:-1])
    }
    assert found["store"]["level"] == "ok"
    assert found["number of partitions"]["level"] == "fail"
    assert "pyncette rebalance part PARTITION_COUNT" in found["number of partitions"]["found"]
    assert "app" not in [name for name, check in found.items() if check["level"] == "fail"]


def test_the_dashboard_says_the_same_and_shows_the_other_tasks(tmp_path: Path) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        app = Pyncette(sqlite_repository, sqlite_database=str(edited.path))
        app.partitioned_task(3, name="part")(edited.bench.note)
        app.dynamic_task(name="good")(edited.bench.note)
        board = dashboard(app, ada, refresh=timedelta(microseconds=1))
        browser = Browser(board)
        assert "cannot be counted" not in text(await browser.get())
        await board._opened.close()
        edited.edit("partitions:part", "args", "garbage")
        overview = text(await browser.get())
        assert "part cannot be counted: " in overview
        assert "pyncette rebalance part PARTITION_COUNT" in overview
        assert "good" in text(await browser.get("tasks"))
        assert "pyncette rebalance part" in text(await browser.get("task", 400, name="part"))
        await board._opened.close()

    run(main())


@pytest.mark.parametrize("args", ["garbage", "1 []"])
def test_a_mark_of_a_migration_that_cannot_be_read_is_said(args: str, tmp_path: Path) -> None:
    async def main() -> None:
        edited = Edited(tmp_path)
        await edited.fill()
        edited.edit(MARK, "args", args)
        async with edited.app.create() as context:
            with pytest.raises(PyncetteException, match=r"how far the migration is.*'migration"):
                await is_marked_finished(context._requests.store)

    run(main())
