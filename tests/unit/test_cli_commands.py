"""The command line, through its entry function, on SQLite files."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyncette.app import Pyncette
from pyncette.cli.arguments import main
from pyncette.context import PyncetteContext
from pyncette.history import use_history
from pyncette.model import Where

PROGRAM = """
import os
from datetime import timedelta
from pyncette import Context, Pyncette, Retry

def create_app():
    app = Pyncette(url="sqlite:///" + os.environ["CLI_TEST_STORE"], worker_name="one")

    @app.task(schedule="0 9 * * *", timezone="Europe/Berlin")
    async def report(context: Context) -> None:
        pass

    @app.dynamic_task(interval=timedelta(hours=1))
    async def reminder(context: Context) -> None:
        if context.args.get("fail"):
            raise RuntimeError("no mail today")

    @app.dynamic_task(retry=Retry(attempts=1))
    async def once(context: Context) -> None:
        if context.args.get("fail"):
            raise RuntimeError("no mail today")

    @app.partitioned_task(2, interval=timedelta(hours=1))
    async def spread(context: Context) -> None:
        pass

    @app.fixture()
    async def database(context):
        raise RuntimeError("the fixture was opened")
        yield

    return app

app = create_app()
number = 5
"""

Run = Callable[..., int]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with an app, on a store of its own; it is named in the environment."""
    name = f"program_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CLI_TEST_STORE", str(tmp_path / "tasks.db"))
    monkeypatch.setenv("PYNCETTE_APP", name)
    monkeypatch.setenv("TZ", "UTC")
    return name


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def with_app(program: str, work: Callable[[Pyncette, PyncetteContext], Awaitable[Any]]) -> Any:
    """Does something with the app of a program, and runs what is due."""

    async def run() -> Any:
        app: Pyncette = sys.modules[program].create_app()
        async with app.create(fixtures=False) as context:
            return await work(app, context)

    return asyncio.run(run())


def run_what_is_due(program: str) -> None:
    with_app(program, lambda app, context: context.run_until_idle())


# What is shown.


def test_tasks_are_listed_with_their_kind(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("TASK")
    assert "0 9 * * * Europe/Berlin" in out
    assert main(["--json", "list"]) == 0
    found = {row["task"]: row for row in rows(capsys)}
    assert found["report"] == {
        "task": "report",
        "kind": "static",
        "schedule": "0 9 * * * Europe/Berlin",
        "state": None,
        "next": None,
    }
    assert found["reminder"] == {
        "task": "reminder",
        "kind": "template",
        "schedule": "every 1:00:00",
        "state": None,
        "instances": 1,
        "exact": True,
    }


def test_instances_are_listed_up_to_the_limit(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a1", "a2", "b1"):
        assert main(["schedule", "reminder", name, "--arg", "n=5", "--arg", "to=x@y"]) == 0
    capsys.readouterr()
    assert main(["list", "reminder", "--prefix", "a", "--json"]) == 0
    found = rows(capsys)
    assert sorted(row["instance"] for row in found) == ["a1", "a2"]
    assert found[0]["args"] == {"n": 5, "to": "x@y"}
    assert found[0]["inherited"] is True
    assert main(["list", "reminder", "--limit", "1"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert "--limit 0" in shown.err
    assert main(["list", "reminder", "--state", "parked"]) == 0
    assert capsys.readouterr().out == "No instances\n"


def test_names_are_printed_escaped(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "reminder", "bad\x1b[2Jname\nline"]) == 0
    assert main(["list", "reminder"]) == 0
    assert main(["show", "reminder", "bad\x1b[2Jname\nline"]) == 0
    assert main(["show", "reminder", "gone\x1b[2J"]) == 3
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "bad\\x1b[2Jname\\nline" in shown.out


def test_an_instance_is_shown_with_its_schedule(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["schedule", "reminder", "a", "--schedule", "0 8 * * 1", "--timezone", "Asia/Tokyo"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["show", "reminder", "a"]) == 0
    assert "schedule        0 8 * * 1 Asia/Tokyo\n" in capsys.readouterr().out
    assert main(["show", "reminder", "a", "--json"]) == 0
    (row,) = rows(capsys)
    assert row["task"] == "reminder"
    assert row["inherited"] is False
    assert main(["show", "reminder", "--json"]) == 0
    (row,) = rows(capsys)
    assert (row["instances"], row["parked"], row["failing"]) == (1, 0, 0)
    assert main(["show", "reminder"]) == 0


def test_occurrences_are_shown_with_changes_of_the_clocks_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["next", "--schedule", "0 12 1 * *", "--timezone", "Europe/Berlin", "--count", "13"]
    assert main([*command, "--json"]) == 0
    found = rows(capsys)
    assert len(found) == 13
    assert set(found[0]) == {"at", "in_zone", "zone", "clocks_changed"}
    assert {row["clocks_changed"] for row in found} == {None, 3600.0, -3600.0}
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "forward by 1:00:00 before this" in shown
    assert "back by 1:00:00 before this" in shown


def test_occurrences_of_a_task_and_of_an_interval_are_shown(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["next", "report", "--count", "3", "--json"]) == 0
    assert [row["in_zone"][11:16] for row in rows(capsys)] == ["09:00"] * 3
    assert main(["next", "--interval", "90m", "--count", "2", "--json"]) == 0
    assert len(rows(capsys)) == 2
    assert main(["next"]) == 2
    assert main(["next", "reminder", "gone"]) == 3
    assert main(["next", "--schedule", "not cron"]) == 2


def with_history(program: str) -> None:
    """Runs an instance that succeeds and two that fail, with a history."""
    for name, fails in (("good", "false"), ("bad", "true"), ("bad\x1b[2J", "true")):
        assert main(["schedule", "once", name, "--in", "0s", "--arg", f"fail={fails}"]) == 0

    async def run() -> None:
        app: Pyncette = sys.modules[program].create_app()
        use_history(app)
        async with app.create(fixtures=False) as context:
            await context.run_until_idle()

    asyncio.run(run())


def test_past_runs_are_shown_the_last_ones_first(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "No runs in the history\n"
    with_history(program)
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    found = rows(capsys)
    assert len([row for row in found if row["task"] == "once"]) == 3
    ended = [row["ended_at"] for row in found]
    assert ended == sorted(ended, reverse=True)
    assert main(["runs", "once", "bad", "--json"]) == 0
    (row,) = rows(capsys)
    assert set(row) == {
        *("task", "instance", "execution_id", "attempt", "planned_at", "started_at", "ended_at"),
        *("worker", "outcome", "error"),
    }
    assert (row["outcome"], row["worker"], row["attempt"]) == ("failed", "one", 1)
    assert main(["runs", "once", "--failed"]) == 0
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    assert header.split() == ["ENDED", "TASK", "INSTANCE", "OUTCOME", "TOOK", "ATTEMPT", "ERROR"]
    assert len(lines) == 2
    assert all(line.endswith("RuntimeError: no mail today") for line in lines)
    assert "\x1b" not in shown


def test_past_runs_are_selected_by_outcome_and_time(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_history(program)
    capsys.readouterr()
    for options, number in (
        (["--outcome", "succeeded"], 1),
        (["--outcome", "succeeded", "--failed"], 3),
        (["--outcome", "skipped", "--outcome", "timed_out"], 0),
        (["--since", "1h"], 3),
        (["--until", "1h"], 0),
        (["--since", "2020-01-01", "--until", "2090-01-01T00:00Z"], 3),
    ):
        assert main(["runs", "once", "--json", *options]) == 0
        assert len(rows(capsys)) == number, options
    for wrong in (["--since", "soon"], ["--limit", "-1"], ["--outcome", "lost"]):
        with pytest.raises(SystemExit) as ended:
            main(["runs", *wrong])
        assert ended.value.code == 2
    assert "neither a time nor how long ago" in capsys.readouterr().err
    assert main(["runs", "--since", "9000w"]) == 0
    assert main(["runs", "--since", "9000000w"]) == 2
    assert main(["runs", "gone"]) == 3
    assert main(["runs", "report", "a"]) == 2


def test_past_runs_are_shown_up_to_the_limit_and_from_a_store_alone(
    program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_history(program)
    capsys.readouterr()
    assert main(["runs", "once", "--limit", "2"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    assert "--limit 0 shows all" in shown.err
    monkeypatch.setattr("pyncette.cli.looking.RUNS_PAGE", 2)
    assert main(["runs", "once", "--limit", "0", "--json"]) == 0
    assert len(rows(capsys)) == 3
    store = ["--url", f"sqlite:///{tmp_path / 'tasks.db'}"]
    assert main(["runs", "--json", "--failed", *store]) == 0
    assert len(rows(capsys)) == 2
    assert main(["runs", "once", *store]) == 2


def test_the_table_of_past_runs_fits_the_terminal(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_history(program)
    capsys.readouterr()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "95")
    assert main(["runs", "once", "bad"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 95


def test_without_workers_that_is_said(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers"]) == 0
    assert capsys.readouterr().out == "No worker is alive\n"

    async def look(app: Pyncette, context: PyncetteContext) -> None:
        loop = asyncio.create_task(context.run())
        while not await context.workers():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await asyncio.to_thread(main, ["workers", "--json"]) == 0
        context.shutdown()
        await loop

    assert main(["list"]) == 0
    capsys.readouterr()
    with_app(program, look)
    (row,) = rows(capsys)
    assert row["worker"] == "one"
    assert "reminder" in row["tasks"]


# What is changed.


def test_an_instance_runs_once_at_a_time(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "once", "a", "--at", "2090-01-01T09:00+01:00", "--json"]) == 0
    (row,) = rows(capsys)
    assert row == {"task": "once", "instance": "a", "next": "2090-01-01T08:00:00+00:00"}
    assert main(["schedule", "once", "b", "--in", "90m"]) == 0
    assert main(["schedule", "once", "a", "--in", "1h", "--on-existing", "raise"]) == 4
    assert main(["schedule", "once", "c"]) == 2
    assert main(["schedule", "report", "c", "--in", "1h"]) == 2
    assert main(["schedule", "reminders", "c", "--in", "1h"]) == 3
    assert "did you mean 'reminder'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--in", "soon"], ["--at", "today"], ["--interval", "5x"], ["--count", "0"]]
)
def test_a_value_that_cannot_be_read_is_wrong_usage(option: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "once", "a", *option])
    assert ended.value.code == 2


@pytest.mark.parametrize("arguments", ["[]", "{"])
def test_arguments_that_are_no_object_are_refused(program: str, arguments: str) -> None:
    assert main(["schedule", "reminder", "a", "--args", arguments]) == 2
    assert main(["schedule", "reminder", "a", "--arg", arguments]) == 2


def test_nothing_is_removed_without_a_yes(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c", "d"):
        assert main(["schedule", "reminder", name]) == 0
    assert main(["unschedule", "reminder", "a"]) == 4
    assert "--yes" in capsys.readouterr().err
    assert main(["show", "reminder", "a"]) == 0
    assert main(["unschedule", "reminder", "a", "--yes"]) == 0
    assert main(["show", "reminder", "a"]) == 3
    assert main(["unschedule", "reminder", "a", "--yes"]) == 3
    assert main(["unschedule", "reminder", "--yes"]) == 2
    assert main(["unschedule", "reminder", "a", "--all", "--yes"]) == 2
    assert main(["unschedule", "reminder", "--prefix", "b", "--yes"]) == 0
    capsys.readouterr()
    assert main(["--yes", "unschedule", "reminder", "--all", "--json"]) == 0
    assert rows(capsys) == [{"created": 0, "updated": 0, "removed": 2, "unchanged": 0, "failed": 0}]


def test_a_question_on_a_terminal_is_answered(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["n\n", "y\n"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: answers.pop(0), raising=False)
    assert main(["schedule", "reminder", "a"]) == 0
    assert main(["unschedule", "reminder", "a"]) == 4
    assert main(["show", "reminder", "a"]) == 0
    assert main(["unschedule", "reminder", "a"]) == 0
    assert main(["show", "reminder", "a"]) == 3


def test_a_pause_is_made_and_ended(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    assert main(["pause", "reminder", "a", "--reason", "moving", "--for", "2h"]) == 0
    capsys.readouterr()
    assert main(["show", "reminder", "a", "--json"]) == 0
    (row,) = rows(capsys)
    assert (row["state"], row["reason"]) == ("paused", "moving")
    assert (row["paused_by"], row["paused_since"] is None) == (f"{getpass.getuser()} (cli)", False)
    assert main(["resume", "reminder", "a"]) == 0
    assert main(["pause", "reminder", "gone"]) == 3
    assert main(["pause", "reminder", "a", "--for", "2h", "--until", "2090-01-01"]) == 2
    assert main(["pause", "reminder"]) == 0
    assert main(["trigger", "reminder", "a"]) == 4
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    assert {row["task"]: row["state"] for row in rows(capsys)}["reminder"] == "paused"
    assert main(["show", "reminder"]) == 0
    shown = f"paused          all, until it is resumed, by {getpass.getuser()} (cli)\n"
    assert shown in capsys.readouterr().out
    assert main(["show", "reminder", "--json"]) == 0
    ((pause,),) = [row["pauses"] for row in rows(capsys)]
    assert (pause["by"], pause["until"]) == (f"{getpass.getuser()} (cli)", None)
    assert main(["resume", "reminder"]) == 0


def test_one_partition_is_paused(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pause", "spread", "--partition", "1"]) == 0
    assert main(["pause", "spread", "--partition", "2"]) == 3
    assert main(["pause", "reminder", "--partition", "0"]) == 2
    assert main(["pause", "spread", "a", "--partition", "0"]) == 2
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    assert {row["task"]: row["state"] for row in rows(capsys)}["spread"] == "partly paused"


def test_instances_are_paused_resumed_and_triggered_by_prefix_and_state(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a1", "a2", "b1"):
        assert main(["schedule", "reminder", name, "--in", "1d"]) == 0
    capsys.readouterr()
    assert main(["pause", "reminder", "--prefix", "a", "--reason", "moves", "--for", "2h"]) == 0
    assert capsys.readouterr().out == "2 updated\n"
    assert main(["list", "reminder", "--state", "paused", "--json"]) == 0
    assert sorted(row["instance"] for row in rows(capsys)) == ["a1", "a2"]
    assert main(["resume", "reminder", "--state", "paused", "--json"]) == 0
    assert [row["updated"] for row in rows(capsys)] == [2]
    assert main(["trigger", "reminder", "--prefix", "a"]) == 4
    assert main(["trigger", "reminder", "--prefix", "a", "--yes", "--json"]) == 0
    assert [row["updated"] for row in rows(capsys)] == [2]
    for verb in ("pause", "resume"):
        assert main([verb, "reminder", "a1", "--prefix", "a"]) == 2
        assert main([verb, "report", "--prefix", "a"]) == 2


def test_an_instance_is_triggered(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    capsys.readouterr()
    assert main(["trigger", "reminder", "a", "--json"]) == 0
    assert rows(capsys) == [{"task": "reminder", "instance": "a", "added": 1}]
    assert main(["trigger", "reminder"]) == 4
    assert main(["trigger", "reminder", "--yes"]) == 0
    assert main(["trigger", "reminder", "gone"]) == 3


def test_parked_instances_run_again_or_are_given_up(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        assert main(["schedule", "once", name, "--in", "0s", "--arg", "fail=true"]) == 0
    run_what_is_due(program)
    capsys.readouterr()
    assert main(["show", "once", "a"]) == 0
    shown = capsys.readouterr().out
    assert "RuntimeError: no mail today" in shown
    assert "last traceback" in shown
    assert main(["retry", "once", "a", "--args", "{}", "--arg", "fail=false"]) == 0
    assert main(["retry", "once", "a"]) == 3
    assert main(["retry", "once", "b", "--drop"]) == 4
    assert main(["retry", "once", "b", "--drop", "--yes"]) == 0
    assert main(["show", "once", "b"]) == 3
    assert main(["retry", "once", "--arg", "x=1"]) == 2
    assert main(["retry", "once", "c", "--drop", "--arg", "x=1"]) == 2
    capsys.readouterr()
    assert main(["retry", "once", "--json"]) == 0
    assert rows(capsys)[0]["updated"] == 1
    run_what_is_due(program)
    assert main(["show", "once", "a"]) == 3
    assert main(["retry", "once", "--drop", "--yes"]) == 0


def test_what_a_task_of_old_has_left_is_purged(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    assert main(["purge", "reminder", "--yes"]) == 2
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    assert main(["purge", "gone", "--url", url]) == 3
    capsys.readouterr()
    assert main(["list", "--url", url, "--json"]) == 0
    found = {row["task"]: row for row in rows(capsys)}
    assert (found["reminder"]["kind"], found["reminder"]["instances"]) == ("unknown", 1)
    assert main(["purge", "reminder", "--url", url]) == 4
    capsys.readouterr()
    assert main(["purge", "reminder", "--url", url, "--yes"]) == 0
    assert capsys.readouterr().out == "1 record removed\n"
    assert main(["show", "reminder", "a"]) == 3


# Which app.


@pytest.mark.parametrize("name", ["", ":app", ":create_app"])
def test_an_app_or_a_function_that_makes_one_is_found(program: str, name: str) -> None:
    assert main(["--app", f"{program}{name}", "list"]) == 0


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no_such_module_here:app", 2, "There is no module 'no_such_module_here'"),
        ("PROGRAM:wrong", 2, "has no 'wrong'; it has PROGRAM:app"),
        ("PROGRAM:number", 2, "is no app, but int"),
        ("./tasks.py", 2, "module:attribute"),
        ("broken:app", 1, "ZeroDivisionError"),
        ("lacking:app", 1, "imports 'not_installed_at_all'"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_told_in_words(
    program: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
    words: str,
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import not_installed_at_all\n")
    assert main(["--app", name.replace("PROGRAM", program), "list"]) == code
    err = capsys.readouterr().err
    assert words.replace("PROGRAM", program) in err
    assert len(err.splitlines()) == 1


def test_with_debug_the_traceback_is_shown(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_too.py").write_text("1 / 0\n")
    assert main(["--app", "broken_too:app", "--debug", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_without_an_app_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYNCETTE_APP", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 2
    assert main(["list", "--url", "sqlite://"]) == 2
    assert main(["list", "--url", "sqlite:///none.db"]) == 1
    assert not (tmp_path / "none.db").exists()
    assert main(["list", "--url", "oracle://x"]) == 2
    assert main(["list", "--url", "sqlite:///none.db", "--app", "x:y"]) == 2
    assert main(["run", "--url", "sqlite:///none.db"]) == 2
    assert main(["list", "--app", "x:y", "--table", "mine"]) == 2


def test_a_look_at_a_url_creates_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.db").touch()
    store = ["--url", "sqlite:///none.db"]
    for command in (["list"], ["doctor"], ["workers"], ["runs"], ["purge", "x"]):
        assert main([*command, *store]) == 1
    said = capsys.readouterr().err
    assert "There is no table 'pyncette_tasks' in none.db" in said
    assert "--table" in said
    assert (tmp_path / "none.db").stat().st_size == 0

    async def opened() -> None:
        async with Pyncette(url="sqlite:///none.db", sqlite_table_name="mine").create():
            pass

    asyncio.run(opened())
    assert main(["list", *store]) == 1
    store += ["--table", "mine"]
    capsys.readouterr()
    assert main(["list", *store, "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["list", *store]) == 0
    assert capsys.readouterr().out == "No tasks\n"
    assert main(["show", "x", *store]) == 2
    assert main(["export", *store]) == 2
    assert main(["import", *store]) == 2


def test_an_interrupt_ends_the_command_with_130(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyncette.cli.arguments.load_app", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "\npyncette: interrupted\n"


def test_an_interrupt_before_a_command_begins_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyncette.cli.arguments.parser_of", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "\npyncette: interrupted\n"


def test_a_reader_that_ends_early_is_no_error(program: str) -> None:
    command = f"{sys.executable} -m pyncette next --interval 1s --count 1000 | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_reader_of_the_doctor_that_ends_early_is_no_error(program: str) -> None:
    command = f"{sys.executable} -m pyncette doctor | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_the_doctor_says_what_helps_where_a_record_cannot_be_read(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "reminder", "a", "--at", "2020-01-01"]) == 0
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as file, file:
        file.execute("UPDATE pyncette_tasks SET schedule = '1 every x' WHERE key = 'a'")
    run_what_is_due(program)
    assert main(["retry", "reminder", "a"]) != 0
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    parked = checks(capsys)["parked"]
    assert "UnreadableRecord" in parked["found"]
    assert "UnreadableRecord" in parked["advice"]
    assert main(["schedule", "reminder", "a", "--interval", "1h"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    assert checks(capsys)["parked"]["level"] == "ok"


def test_lines_that_are_no_export_are_refused_as_such(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.jsonl").write_text('{"task": "x", "kind": "static"}\n')
    assert main(["import", str(tmp_path / "no.jsonl")]) == 1
    assert "This is no export: a line of it has the kind 'static'" in capsys.readouterr().err


def test_the_next_of_a_template_without_a_schedule_asks_for_an_instance(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["next", "once"]) == 2
    assert "'once' has no schedule of its own: name an instance" in capsys.readouterr().err


def test_names_that_are_not_utf_8_are_wrong_usage(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["list", "reminder", "--prefix", "\udcff"],
        ["unschedule", "reminder", "\udcff"],
    ):
        assert main(command) == 2
        assert "is not UTF-8 text" in capsys.readouterr().err
    assert main(["export", "--output", str(tmp_path / "\udcff.jsonl")]) == 0


def test_a_port_that_the_dashboard_cannot_have_is_told_in_words(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["web", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"pyncette: The dashboard cannot listen on port {port} of 127.0.0.1 (")
    assert said.count("\n") == 1
    for wrong in ("99999", "x", "1" * 5_000):
        with pytest.raises(SystemExit):
            main(["web", "--port", wrong])
        assert "is no port: 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("unschedule", "rebalance", "doctor", "import", "on-existing", "runs", "outcome"):
        assert word in script
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0


def test_instances_are_moved_to_more_partitions_only_where_there_are_some(program: str) -> None:
    assert main(["rebalance", "reminder", "4"]) == 2
    assert main(["rebalance", "gone", "4"]) == 3


# Moving.


def test_instances_move_to_another_store(
    program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schedule", "reminder", "default", "--arg", "n=1"]) == 0
    own = ["--schedule", "0 8 * * *", "--timezone", "Asia/Tokyo", "--jitter", "5m"]
    assert main(["schedule", "reminder", "own", *own]) == 0
    assert main(["schedule", "reminder", "resting", "--interval", "1s"]) == 0
    assert main(["pause", "reminder", "resting", "--reason", "why not"]) == 0
    assert main(["schedule", "once", "later", "--at", "2090-01-01T00:00Z"]) == 0
    assert main(["schedule", "once", "stuck", "--in", "0s", "--arg", "fail=true"]) == 0
    run_what_is_due(program)
    assert main(["pause", "spread", "--partition", "1", "--reason", "repair"]) == 0
    assert main(["pause", "report"]) == 0
    assert main(["export", "--output", "all.jsonl"]) == 0
    assert not (tmp_path / "all.jsonl.part").exists()
    monkeypatch.setenv("CLI_TEST_STORE", str(tmp_path / "other.db"))
    capsys.readouterr()
    command = ["--app", f"{program}:create_app", "--json"]
    assert main([*command, "import", "all.jsonl"]) == 0
    assert rows(capsys) == [{"created": 4, "updated": 0, "unchanged": 0, "failed": 0, "parked": 1}]
    assert main([*command, "list", "reminder"]) == 0
    found = {row["instance"]: row for row in rows(capsys)}
    assert found["default"]["inherited"]
    assert found["default"]["args"] == {"n": 1}
    assert found["own"]["schedule"] == "0 8 * * * Asia/Tokyo jitter 0:05:00"
    assert (found["resting"]["state"], found["resting"]["reason"]) == ("paused", "why not")
    assert found["resting"]["schedule"] == "every 0:00:01"
    assert main([*command, "list"]) == 0
    states = {row["task"]: row["state"] for row in rows(capsys)}
    assert (states["report"], states["spread"]) == ("paused", "partly paused")
    # Once more: nothing is left to do, and nothing of it is done twice.
    assert main([*command, "import", "all.jsonl", "--parked", "run"]) == 0
    assert rows(capsys) == [{"created": 1, "updated": 0, "unchanged": 4, "failed": 0, "parked": 0}]


def test_an_export_that_was_cut_off_is_noticed(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert main(["schedule", "reminder", name]) == 0
    capsys.readouterr()
    assert main(["export", "reminder"]) == 0
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in lines] == ["export", "instance", "instance", "end"]
    (tmp_path / "cut.jsonl").write_text("".join(lines[:2]))
    assert main(["import", "cut.jsonl"]) == 1
    assert "not complete" in capsys.readouterr().err
    (tmp_path / "wrong.jsonl").write_text("no json\n")
    assert main(["import", "wrong.jsonl"]) == 1
    assert "Line 1" in capsys.readouterr().err
    (tmp_path / "newer.jsonl").write_text('{"kind": "export", "format": 99}\n')
    assert main(["import", "newer.jsonl"]) == 1
    assert main(["import", "gone.jsonl"]) == 1
    assert main(["export", "report"]) == 2
    assert main(["export", "--output", "no/such/place"]) == 1


def test_an_instance_of_a_task_that_is_not_declared_is_no_success(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "pause", "task": "gone"},
        {"kind": "pause", "task": "spread", "partition": 7},
        {"kind": "instance", "task": "gone", "instance": "a", "schedule": None, "args": {}},
        {"kind": "instance", "task": "once", "instance": "a", "schedule": "9 x", "args": {}},
        {"kind": "end", "instances": 2},
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["import", "lines.jsonl", "--json"]) == 1
    assert rows(capsys)[0]["failed"] == 4


def test_a_paused_instance_is_replaced_if_that_is_wished(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    assert main(["pause", "reminder", "a"]) == 0
    assert main(["export", "--output", "all.jsonl"]) == 0
    assert main(["schedule", "reminder", "a", "--interval", "2h", "--on-existing", "replace"]) == 0
    capsys.readouterr()
    assert main(["import", "all.jsonl", "--on-existing", "replace", "--json"]) == 0
    assert rows(capsys)[0]["updated"] == 1
    state = with_app(
        program, lambda app, context: context.count_tasks(app.tasks[1], Where(states={"paused"}))
    )
    assert state.count == 1


# Health.


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows(capsys)}


def exported(path: Path) -> list[str]:
    """The kinds of the lines of an export."""
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()]


def test_an_export_follows_links_and_keeps_the_mode_of_a_file(program: str, tmp_path: Path) -> None:
    assert main(["schedule", "reminder", "a", "--arg", "secret=1"]) == 0
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "all.jsonl", tmp_path / "link"
    link.symlink_to(target)
    assert main(["export", "--output", "link"]) == 0
    assert (link.is_symlink(), target.stat().st_mode & 0o777) == (True, 0o600)
    target.write_text("before")
    target.chmod(0o640)
    assert main(["export", "--output", "link"]) == 0
    assert (link.is_symlink(), target.stat().st_mode & 0o777) == (True, 0o640)
    assert exported(target) == ["export", "instance", "end"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["all.jsonl"]


def test_an_export_is_written_into_a_pipe_or_a_device_and_does_not_replace_it(
    program: str, tmp_path: Path
) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert main(["export", "--output", str(pipe)]) == 0
        assert reader.stdout is not None
        assert len(reader.stdout.read().splitlines()) == 3
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert main(["export", "--output", os.devnull]) == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("into", ["a pipe", "a file"])
def test_an_export_to_dev_stdout_goes_where_the_output_goes(
    program: str, tmp_path: Path, into: str
) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    command = [sys.executable, "-m", "pyncette", "export", "--output", "/dev/stdout"]
    out = tmp_path / "out.jsonl"
    if into == "a pipe":
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        out.write_text(done.stdout)
    else:
        with out.open("w") as stream:
            subprocess.run(command, stdout=stream, check=True)
    assert exported(out) == ["export", "instance", "end"]


def test_an_export_that_fails_leaves_the_file_of_before(program: str, tmp_path: Path) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    assert main(["export", "--output", "all.jsonl"]) == 0
    before = (tmp_path / "all.jsonl").read_text()

    async def schedule(app: Pyncette, context: PyncetteContext) -> None:
        [reminder] = [task for task in app.tasks if task.name == "reminder"]
        for name in ("b", "c"):
            await context.schedule_task(reminder, name, text="x" * 150_000)

    with_app(program, schedule)
    command = f"ulimit -f 200; {sys.executable} -m pyncette export --output all.jsonl"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, "File too large" in done.stderr) == (1, True)
    assert (tmp_path / "all.jsonl").read_text() == before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


@pytest.mark.parametrize("command", ["doctor", "list"])
def test_a_module_that_runs_its_app_while_it_is_imported_is_a_failure_in_words(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = "from pyncette import Pyncette\napp = Pyncette()\napp.main(until_idle=True)\n"
    (tmp_path / "running_at_once.py").write_text(program)
    (tmp_path / "run_by_a_call.py").write_text(
        "import pyncette\ndef app(): pyncette.Pyncette().main(until_idle=True)\n"
    )
    (tmp_path / "run_in_a_loop.py").write_text(
        "import asyncio, pyncette\n"
        "app = pyncette.Pyncette()\n"
        "async def main():\n"
        "    async with app.running() as context: await context.run_until_idle()\n"
        "asyncio.run(main())\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("running_at_once", "run_by_a_call", "run_in_a_loop"):
        assert main(["--app", name, command]) == 1
        said = "".join(capsys.readouterr())
        assert 'it under if __name__ == "__main__": only' in said


@pytest.mark.parametrize("text", ["import sys; sys.exit()", "import sys; sys.exit(0)"])
@pytest.mark.parametrize("command", [["doctor"], ["list"], ["export"], ["run"], ["workers"]])
def test_a_module_that_exits_while_it_is_imported_is_a_failure_in_words(
    command: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "leaving.py").write_text(text)
    (tmp_path / "calling.py").write_text(f"def app(): {text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for app in ("leaving", "calling"):
        assert main(["--app", app, *command]) == 1
        shown = capsys.readouterr()
        assert f"'{app}'" in shown.out + shown.err
        assert "sys.exit(" in shown.out + shown.err


def test_a_module_that_raises_what_is_no_exception_is_a_failure_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.py").write_text("class Odd(BaseException): pass\nraise Odd('of its own')\n")
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["doctor", "--app", "odd"]) == 1
    assert "Odd: of its own" in capsys.readouterr().out
    assert main(["list", "--app", "stopped"]) == 130


def test_what_the_module_prints_is_not_taken_for_a_result(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy.py").write_text(
        f"import {program}\nprint('imported')\n"
        f"def app():\n    print('made')\n    return {program}.create_app()\n"
    )
    for command in ("list", "doctor", "workers"):
        assert main(["--json", "--app", "noisy", command]) == 0
        shown = capsys.readouterr()
        assert all(json.loads(line) for line in shown.out.splitlines())
        assert "made" in shown.err
    assert main(["export", "--app", "noisy"]) == 0
    assert "made" not in capsys.readouterr().out


def strictly(text: str) -> Any:
    """Reads JSON as other programs do."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_infinite_numbers_are_shown_and_exported_as_json_that_any_program_reads(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--arg",
        "a=NaN",
        "--arg",
        "b=[Infinity]",
        "--arg",
        'c={"d":-Infinity}',
        "--arg",
        "e=1",
    ]
    assert main(["schedule", "reminder", "x", *given]) == 0
    capsys.readouterr()
    for command in (["show", "reminder", "x"], ["list", "reminder"]):
        assert main(["--json", *command]) == 0
        [line] = capsys.readouterr().out.splitlines()
        shown = {"a": "NaN", "b": ["Infinity"], "c": {"d": "-Infinity"}, "e": 1}
        assert strictly(line)["args"] == shown
    assert main(["export", "--output", "all.jsonl"]) == 0
    assert [strictly(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert main(["--yes", "unschedule", "reminder", "--all"]) == 0
    assert main(["import", "all.jsonl"]) == 0

    async def args(app: Pyncette, context: PyncetteContext) -> dict[str, Any]:
        [reminder] = [task for task in app.tasks if task.name == "reminder"]
        state = await context.get_task(reminder, "x")
        assert state is not None
        return state.args

    found = with_app(program, args)
    assert repr(found) == "{'a': nan, 'b': [inf], 'c': {'d': -inf}, 'e': 1}"


@pytest.mark.parametrize("command", ["list", "doctor", "workers", "export"])
def test_a_command_without_a_standard_output_does_its_work(program: str, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pyncette {command} >&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error" not in done.stderr
    assert done.returncode == (1 if command == "export" else 0)


@pytest.mark.parametrize("given", [["--arg", "x=" + "[" * 100_000], ["--args", "[" * 100_000]])
def test_arguments_that_are_nested_too_deeply_are_wrong_usage(
    program: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "reminder", "x", *given]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_the_doctor_says_what_to_do(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "once", "a", "--in", "0s", "--arg", "fail=true"]) == 0
    run_what_is_due(program)
    assert main(["schedule", "once", "b", "--at", "2020-01-01"]) == 0
    assert main(["pause", "reminder", "--reason", "forgotten"]) == 0
    assert main(["pause", "report"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    found = checks(capsys)
    assert set(found["store"]) == {"name", "level", "found", "advice"}
    levels = {name: check["level"] for name, check in found.items()}
    assert levels["store"] == levels["rights"] == levels["time zones"] == "ok"
    for name in ("workers", "paused templates", "paused tasks", "parked"):
        assert (levels[name], bool(found[name]["advice"])) == ("warn", True), name
    assert found["parked"]["found"].startswith("once (1), such as a: RuntimeError: no mail today")
    assert "forgotten" in found["paused templates"]["found"]
    assert main(["doctor", "--strict"]) == 1
    assert "warn  workers: none is alive\n      Start one: pyncette run" in capsys.readouterr().out


def test_the_doctor_finds_what_is_overdue(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "once", "b", "--at", "2020-01-01"]) == 0

    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    found = checks(capsys)["overdue"]
    assert (found["level"], found["found"]) == ("warn", "once (1)")


def test_the_doctor_looks_at_a_store_alone(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "reminder", "a"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--url", f"sqlite:///{tmp_path / 'tasks.db'}", "--json"]) == 0
    assert "reminder (1)" in checks(capsys)["tasks in the store"]["found"]


def test_the_doctor_fails_where_nothing_can_work(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--app", "no_such_module_here"]) == 1
    assert main(["doctor", "--url", "sqlite:///none.db"]) == 1
    (tmp_path / "tasks.db").write_text("this is no database, but a text that is long enough" * 30)
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 1
    assert checks(capsys)["store"]["level"] == "fail"


def test_the_doctor_warns_of_an_app_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forgetful.py").write_text("import pyncette\napp = pyncette.Pyncette()\n")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--app", "forgetful", "--json"]) == 0
    found = checks(capsys)
    assert (found["in memory"]["level"], found["tasks"]["level"]) == ("warn", "warn")


@pytest.mark.usefixtures("measured")
def test_a_worker_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "ticking.py").write_text(
        "import pyncette\n"
        "app = pyncette.Pyncette()\n"
        "@app.task(interval=0.01)\n"
        "async def tick(context): print('ticked', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pyncette", "--app", "ticking", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        assert worker.stdout.readline() == "ticked\n"
        worker.send_signal(signal.SIGTERM)
        said = worker.stderr.read()
    assert worker.returncode == 0
    assert said.count("1 task\n") == 1, "the number of tasks is told once"
    assert said.endswith("pyncette: the worker has stopped\n")


def test_what_is_due_runs_and_the_worker_ends(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **options: None)
    assert main(["schedule", "once", "a", "--in", "0s"]) == 0
    sys.modules[program].app._fixtures.clear()
    capsys.readouterr()
    assert main(["run", "--until-idle", "--json"]) == 0
    assert rows(capsys) == [{"runs": 1, "failures": 0}]
    assert main(["show", "once", "a"]) == 3


def test_the_last_column_gives_way_to_the_width_of_a_terminal(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a-name-that-is-long-" * 5
    assert main(["schedule", "reminder", name]) == 0
    assert main(["pause", "reminder", name, "--reason", "a reason that is long " * 9]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["list", "reminder"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith(f"{name}  paused")
    assert row.endswith("…")
    assert len(row) <= 150


TEXTS = """
from datetime import date, datetime, timedelta, UTC
from pyncette import Calendar, Context, Cron, Pyncette

app = Pyncette(url="sqlite:///texts.db")

@app.calendar("berlin")
def holiday(day: date) -> bool:
    return day.day == 1

@app.task(schedule=Cron("0 9 * * MON-FRI", "Europe/Berlin") - Calendar("berlin"))
async def report(context: Context) -> None: ...

@app.task(
    schedule=(
        (Cron("0 9 * * *") | Cron("30 17 * * *")) - Calendar("berlin")
    ).between(datetime(2026, 1, 1, tzinfo=UTC), None).with_jitter(timedelta(minutes=5))
)
async def twice(context: Context) -> None: ...

@app.dynamic_task()
async def charge(
    context: Context, order: str, count: int = 1, code: str | None = None
) -> None: ...
"""


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"texts_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(TEXTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYNCETTE_APP", name)
    monkeypatch.setenv("TZ", "UTC")


@pytest.mark.usefixtures("texts")
def test_an_argument_that_a_text_parameter_gets_is_text_even_if_it_is_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for given, expected in {
        "5": "5",
        '"5"': "5",
        "true": "true",
        "null": "null",
        "[1]": "[1]",
        "o1": "o1",
    }.items():
        code = ("--arg", "code=null") if given == "5" else ("--arg", f"code={given}")
        words = ["schedule", "charge", "a", "--in", "90m", "--arg", f"order={given}", *code]
        assert main([*words, "--arg", "count=5"]) == 0
        capsys.readouterr()
        assert main(["show", "charge", "a", "--json"]) == 0
        args = json.loads(capsys.readouterr().out)["args"]
        assert (args["order"], args["count"]) == (expected, 5)
        assert args["code"] == (None if given in ("5", "null") else expected)


@pytest.mark.usefixtures("texts")
def test_arguments_that_are_refused_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--in", "1m", "--arg", "ordr=c"],
        ["--in", "1m"],
        ["--in", "1m", "--arg", "order=c", "--arg", "count=many"],
        ["--schedule", "0 99 * * *", "--arg", "order=c"],
        ["--in", "1m", "--at", "2026-12-24", "--arg", "order=c"],
    ):
        assert main(["schedule", "charge", "a", *arguments]) == 2, arguments
        assert capsys.readouterr().err.startswith("pyncette: ")


@pytest.mark.usefixtures("texts")
def test_a_schedule_is_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    shown = {row["task"]: row["schedule"] for row in rows(capsys)}
    assert shown["report"] == "0 9 * * MON-FRI Europe/Berlin without berlin"
    assert shown["twice"] == (
        "(0 9 * * * UTC or 30 17 * * * UTC) without berlin from 2026-01-01T00:00:00+00:00"
        " jitter 0:05:00"
    )
