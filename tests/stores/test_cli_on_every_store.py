"""The command line looks at every store, and the doctor finds it in order."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.stores.every_store import STORES, place_of

from pyncette import Context, OnExisting, Pyncette
from pyncette.calls.listing import LEASE_AHEAD
from pyncette.cli import doctor
from pyncette.cli.arguments import main
from pyncette.cli.printing import Printer
from pyncette.clock import SystemClock
from pyncette.errors import TaskLockedException
from pyncette.history import use_history
from pyncette.store import Key, Store, Write
from pyncette.store.record import ANY, Patch, State
from pyncette.testing.conformance import Place


@pytest.mark.parametrize("store", [store for store in STORES if store != "sqlite"])
def test_the_command_line_schedules_lists_moves_and_checks(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def reminder(context: Context) -> None:
        pass

    def rows() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    with place_of(store, tmp_path) as place:
        app = Pyncette(place.factory, **place.configuration)
        app.dynamic_task(interval=timedelta(hours=1))(reminder)
        module = ModuleType("program_on_a_store")
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "program_on_a_store", module)
        monkeypatch.setenv("PYNCETTE_APP", "program_on_a_store:app")
        assert main(["schedule", "reminder", "a", "--arg", "n=1"]) == 0
        assert main(["schedule", "reminder", "b", "--interval", "2h"]) == 0
        assert main(["pause", "reminder", "b"]) == 0
        capsys.readouterr()
        assert main(["list", "reminder", "--json"]) == 0
        states = {row["instance"]: (row["state"], row["inherited"]) for row in rows()}
        assert states == {"a": ("scheduled", True), "b": ("paused", False)}
        file = str(tmp_path / "all.jsonl")
        assert main(["export", "--output", file]) == 0
        assert main(["unschedule", "reminder", "--all", "--yes"]) == 0
        assert main(["import", file]) == 0
        capsys.readouterr()
        assert main(["list", "reminder", "--json"]) == 0
        assert {row["instance"]: (row["state"], row["inherited"]) for row in rows()} == states
        assert main(["runs"]) == 0
        assert capsys.readouterr().out == "No runs in the history\n"
        app = Pyncette(place.factory, **place.configuration)
        app.dynamic_task(interval=timedelta(hours=1))(reminder)
        use_history(app)
        monkeypatch.setattr(module, "app", app)
        assert main(["resume", "reminder", "b"]) == 0
        assert main(["trigger", "reminder", "b"]) == 0

        async def work() -> None:
            async with app.create() as context, asyncio.timeout(30):
                # DynamoDB tells whole seconds of its clock: what another process has triggered
                # may come due here up to a second later.
                ran = 0
                while not ran:
                    ran = (await context.run_until_idle()).runs
                    await asyncio.sleep(0.05)

        asyncio.run(work())
        capsys.readouterr()
        assert main(["runs", "reminder", "b", "--since", "1d", "--json"]) == 0
        assert [(row["instance"], row["outcome"]) for row in rows()] == [("b", "succeeded")]
        assert main(["doctor", "--json"]) == 0
        levels = {row["name"]: row["level"] for row in rows()}
        assert levels["store"] == levels["rights"] == levels["clock"] == "ok"


@pytest.mark.parametrize("store", [store for store in STORES if store != "sqlite"])
def test_the_doctor_names_what_never_comes_due(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LOOKED_AT_MAX", 4)

    async def main(place: Place) -> None:
        app = Pyncette(place.factory, **place.configuration)
        for name in ("reminder", "report"):

            @app.dynamic_task(interval=timedelta(hours=1), name=name)
            async def task(context: Context) -> None: ...

        async def found() -> dict[str, Any]:
            capsys.readouterr()
            await doctor.examine(lambda: (app, True), Printer(as_json=True))
            rows = map(json.loads, capsys.readouterr().out.splitlines())
            [row] = [row for row in rows if row["name"] == "never due"]
            return dict(row)

        reminder, report = app.tasks
        async with app.create() as context:
            for name in ("lost", "late", "sound"):
                await context.schedule_task(reminder, name)
            for number in range(5):
                await context.schedule_task(report, f"{number}")
            await context.pause(reminder, "sound")
        none = await found()
        assert (none["level"], none["advice"]) == ("ok", "")
        assert none["found"] == "none; of report, 4 instances were looked at"
        far = context.clock.microseconds() + 40 * 86_400_000_000
        lost = [
            Write("reminder", name, Patch(due_at, State.SCHEDULED, 0), ANY)
            for name, due_at in (("lost", None), ("late", far))
        ]
        async with place.open() as opened:
            await opened.write(lost, context.clock.microseconds())
        some = await found()
        assert some["level"] == "warn"
        assert some["found"].startswith("reminder late, reminder lost; of report")
        assert "schedule or trigger" in some["advice"]

    with place_of(store, tmp_path) as place:
        asyncio.run(main(place))


@pytest.mark.parametrize("store", [store for store in STORES if store != "sqlite"])
def test_the_doctor_names_a_lease_that_a_clock_years_ahead_has_counted(
    store: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it says helps, and that what it says does not help does not."""
    years = 5 * 365 * 86_400_000_000
    ran: list[str] = []

    async def main(place: Place) -> None:
        app = Pyncette(place.factory, **place.configuration)

        @app.dynamic_task(interval=timedelta(hours=1), lease_duration=timedelta(days=60))
        async def reminder(context: Context) -> None:
            ran.append(context.task.name)

        async def found() -> dict[str, Any]:
            capsys.readouterr()
            await doctor.examine(lambda: (app, True), Printer(as_json=True))
            rows = map(json.loads, capsys.readouterr().out.splitlines())
            [row] = [row for row in rows if row["name"] == "leases"]
            return dict(row)

        async def claim(opened: Store, names: list[str], now: int) -> None:
            keys = [Key("reminder", name, 60 * 86_400_000_000) for name in names]
            claimed = await opened.claim(keys, len(keys), now, f"killed:1:{now}")
            assert len(claimed.records) == len(names)

        async with app.create() as context, place.open() as opened:
            for name in ("forced", "removed", "replaced", "triggered"):
                await context.schedule_task(reminder, name)
            # Its lease lasts for long, as is declared.
            await context.schedule_task(reminder, "sound", execute_in=timedelta())
            await claim(opened, ["sound"], context.clock.microseconds() + 2_000_000)
            assert (await found())["level"] == "ok"
            held = ["forced", "removed", "replaced", "triggered"]
            await claim(opened, held, context.clock.microseconds() + years)
            some = await found()
            assert some["level"] == "warn"
            assert "reminder forced until 203" in some["found"]
            assert "reminder sound" not in some["found"]
            assert "--force" in some["advice"]
            states = {state.task.name: state async for state in context.iter_tasks(reminder)}
            assert states["forced"].state == "running"
            assert states["forced"].reason == LEASE_AHEAD
            assert states["sound"].reason is None
            now = timedelta()
            with pytest.raises(TaskLockedException):
                await context.schedule_task(reminder, "replaced", execute_in=now)
            replace = OnExisting.REPLACE
            await context.schedule_task(reminder, "replaced", on_existing=replace, execute_in=now)
            assert await context.trigger(reminder, "triggered") == 1
            for name in ("replaced", "triggered"):
                assert f"reminder:{name} does not run before its lease ends at 203" in caplog.text
            assert "schedule it with force=True" in caplog.text
            caplog.clear()
            await context.schedule_task(reminder, "sound", on_existing=replace)
            assert await context.trigger(reminder, "sound") == 1
            await context.schedule_task(reminder, "forced", force=True, execute_in=now)
            assert "does not run before" not in caplog.text
            await context.unschedule_task(reminder, "removed")
            async with asyncio.timeout(30):
                while not ran:  # see above
                    await context.run_until_idle()
                    await asyncio.sleep(0.05)
            assert ran == ["forced"]
            rest = (await found())["found"]
            assert "reminder replaced until" in rest
            assert "reminder triggered until" in rest
            assert "forced" not in rest
            assert "removed" not in rest

    with place_of(store, tmp_path) as place:
        asyncio.run(main(place))


class Ahead(SystemClock):
    """The clock of a machine that is a minute and a half ahead."""

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=90)

    def microseconds(self) -> int:
        return super().microseconds() + 90_000_000


@pytest.mark.parametrize("store", ["postgres", "mysql", "redis", "dynamodb"])
def test_the_doctor_tells_by_how_much_the_clock_of_the_machine_is_off(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with place_of(store, tmp_path) as place:
        module = ModuleType("program_with_a_clock")
        module.app = Pyncette(place.factory, clock=Ahead(), **place.configuration)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "program_with_a_clock", module)
        assert main(["doctor", "--app", "program_with_a_clock:app", "--json"]) == 0
        found = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        assert found["clock"]["level"] == "warn"
        # DynamoDB tells the time in whole seconds; 90.96 is shown as 91.0.
        off = float(found["clock"]["found"].partition(" is +")[2].partition(" s ")[0])
        assert 89 <= off <= 91
        assert "NTP" in found["clock"]["advice"]


@pytest.mark.parametrize("store", ["postgres", "mysql", "mariadb", "redis", "dynamodb"])
def test_a_look_at_a_url_creates_nothing(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with place_of(store, tmp_path) as place:
        given = place.configuration
        where = given.get(f"{store.replace('mariadb', 'mysql')}_url")
        name = given.get("redis_namespace", given.get("mysql_table_name"))
        name = given.get("postgres_table_name", name)
        look = ["--url", where, "--table", name]
        if store == "dynamodb":
            table, endpoint = given["dynamodb_table_name"], given["dynamodb_endpoint"]
            region = given["dynamodb_region_name"]
            look = ["--url", f"dynamodb://{region}/{table}?endpoint={endpoint}"]
            assert main(["list", *look, "--table", "x"]) == 2
        for _ in range(2):
            assert main(["list", *look]) == 1
            assert "nothing is created for a look" in capsys.readouterr().err
        assert main(["doctor", *look]) == 1
        assert "nothing is created for a look" in capsys.readouterr().out
        app = Pyncette(place.factory, **given)

        @app.task(interval=timedelta(hours=1))
        async def tick(context: Context) -> None: ...

        async def opened() -> None:
            async with app.create() as context:
                await context.run_until_idle()

        asyncio.run(opened())
        assert main(["list", *look, "--json"]) == 0
        assert '"tick"' in capsys.readouterr().out
        assert main(["doctor", *look]) == 0
