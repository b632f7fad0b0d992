"""Stores of 1.x, built to its layout on the real servers, are taken over, and then worked on."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.servers import url
from tests.stores.dynamodb_place import set_credentials
from tests.stores.legacy_place import HOLDER, Legacy, LegacyTask, legacy_at, spec_of

from pyncette import Context, Pyncette
from pyncette.__main__ import main
from pyncette.clock import to_microseconds
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.migrate import MigrationError, Report, WorkersRunningError, migrate
from pyncette.store import Store, scan_all
from pyncette.store.record import STATIC_GROUP, Record, State, load_args, load_progress
from pyncette.testing import VirtualClock

SQL = ["sqlite", "postgres", "mysql", "mariadb"]
ELSEWHERE = ["redis", "dynamodb"]
STORES = [*SQL, *ELSEWHERE]

MANY = int(os.environ.get("PYNCETTE_TEST_MIGRATE_RECORDS", "2500"))
"""Records of a large migration: several batches, so that it can be killed between two."""

FEW = dict.fromkeys(("sqlite", "postgres", "mysql", "mariadb", "redis"), MANY)
"""The same, by store; where it is none of these, the server here is a slow one."""

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def legacy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Legacy]:
    set_credentials(monkeypatch)
    with legacy_at(request.param, tmp_path, url) as place:
        yield place


def on(*stores: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("legacy", stores, indirect=True)


def migrated(legacy: Legacy, **options: Any) -> Report:
    return asyncio.run(migrate(clock=VirtualClock(NOW), **{**legacy.options, **options}))


def mail(name: str, after: timedelta, **more: Any) -> LegacyTask:
    """A one-off that 1.x has planned."""
    spec = spec_of(name, {"to": name}, execute_at=(NOW + after).isoformat())
    doubled = name.replace(":", "::")
    return LegacyTask(f"mail:{doubled}", "mail", NOW + after, spec=spec)._replace(**more)


@asynccontextmanager
async def opened(legacy: Legacy) -> AsyncIterator[Store]:
    async with legacy.factory(**legacy.new_options) as store:
        yield store


def in_thread(call: Callable[[], None]) -> None:
    """Makes a call that wants an event loop of its own."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def records_in(legacy: Legacy, *groups: str) -> dict[str, Record]:
    """What is in the groups of the new store, by key; nothing stands there twice."""

    async def read() -> list[Record]:
        async with opened(legacy) as store:
            return [record for group in groups async for record in scan_all(store, group)]

    records = asyncio.run(read())
    found = {record.key: record for record in records}
    assert len(found) == len(records)
    return found


@on(*STORES, "pgbouncer", "redis-sentinel", "valkey")
def test_times_arguments_and_leases_are_kept(legacy: Legacy) -> None:
    users = spec_of("a:b", {"n": [1, "ž", None]}, schedule="0 9 * * *", timezone="Europe/Berlin")
    legacy.fill(
        [
            LegacyTask("daily::report", None, NOW + HOUR),
            mail("soon", HOUR),
            mail("leased", -MINUTE, locked_until=NOW + MINUTE),
            mail("lapsed", -HOUR, locked_until=NOW - MINUTE),
            mail("done", -HOUR, execute_after=None),
            LegacyTask("users:3:a::b", "users:3", NOW + 2 * HOUR, spec=users),
        ]
    )
    report = migrated(legacy, force=True)
    assert report.finished
    assert report.found is not None
    assert (report.found.static, report.found.done, report.found.leased) == (1, 1, 1)
    assert report.found.instances == {"mail": 3, "users:3": 1}
    assert report.written == 5

    [daily] = records_in(legacy, STATIC_GROUP).values()
    assert daily.key == "daily:report"
    assert (daily.due_at, daily.state) == (to_microseconds(NOW + HOUR), State.SCHEDULED)

    records = records_in(legacy, "mail", "users:3")
    assert records.keys() == {"soon", "leased", "lapsed", "a:b"}
    soon, leased, lapsed, user = (records[key] for key in ("soon", "leased", "lapsed", "a:b"))
    assert (soon.due_at, soon.schedule) == (
        to_microseconds(NOW + HOUR),
        f"1 at {to_microseconds(NOW + HOUR)}",
    )
    assert load_args(soon.args) == {"to": "soon"}
    assert (leased.due_at, leased.state, leased.unfinished_attempts) == (
        to_microseconds(NOW + MINUTE),
        State.RUNNING,
        1,
    )
    assert load_progress(leased.progress).planned == to_microseconds(NOW - MINUTE)
    assert leased.token is not None
    assert leased.token.startswith(str(HOLDER))
    assert (lapsed.due_at, lapsed.state) == (to_microseconds(NOW - HOUR), State.SCHEDULED)
    assert user.schedule == "1 cron Europe/Berlin 0 9 * * *"
    assert load_args(user.args) == {"n": [1, "ž", None]}
    assert len({load_progress(record.progress).incarnation for record in records.values()}) == 4


@on(*STORES)
def test_a_dry_run_counts_and_changes_nothing(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR), mail("two", -MINUTE, locked_until=NOW + MINUTE)])
    before = legacy.everything()
    report = migrated(legacy, dry_run=True)
    assert report.found is not None
    assert (report.found.to_copy, report.found.leased, report.finished) == (2, 1, False)
    assert report.found.leased_until == to_microseconds(NOW + MINUTE)
    assert legacy.everything() == before


@on(*STORES)
def test_nothing_is_done_while_workers_seem_to_run(legacy: Legacy) -> None:
    legacy.fill([mail("leased", -MINUTE, locked_until=NOW + MINUTE)])
    before = legacy.everything()
    with pytest.raises(WorkersRunningError, match="2026-05-01T12:01:00"):
        migrated(legacy)
    assert legacy.everything() == before


@on(*STORES)
def test_the_old_data_are_left_until_told_otherwise(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR), mail("done", HOUR, execute_after=None)])
    report = migrated(legacy)
    assert report.kept is not None
    assert legacy.old_names() == {"mail:one", "mail:done"}
    if "dynamodb_table_name" in legacy.options:
        with pytest.raises(MigrationError, match="is not deleted from here"):
            migrated(legacy, drop_old=True)
        return
    assert migrated(legacy, drop_old=True).dropped
    assert legacy.old_names() == set()
    assert records_in(legacy, "mail").keys() == {"one"}


@on(*STORES)
def test_a_migration_that_is_done_is_not_done_again(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR), mail("two", HOUR)])
    migrated(legacy)

    async def remove_one() -> None:
        app = Pyncette(legacy.factory, clock=VirtualClock(NOW), **legacy.new_options)
        template = app.dynamic_task(name="mail")(nothing)
        async with app.create() as context:
            await context.unschedule_task(template, "one")

    asyncio.run(remove_one())
    report = migrated(legacy)
    assert (report.found, report.written, report.finished) == (None, 0, True)
    assert records_in(legacy, "mail").keys() == {"two"}


async def nothing(context: Context) -> None: ...


@on(*STORES)
def test_an_app_runs_what_was_due_and_then_keeps_its_times(legacy: Legacy) -> None:
    legacy.fill(
        [
            # Every two hours, planned 20 minutes from now: not two hours from the start.
            LegacyTask("sweep", None, NOW + 20 * MINUTE),
            LegacyTask("late", None, NOW - 10 * MINUTE),
            LegacyTask("held", None, NOW - 10 * MINUTE, locked_until=NOW + MINUTE),
            mail("overdue", -HOUR),
            mail("leased", -MINUTE, locked_until=NOW + MINUTE),
            mail("later", 30 * MINUTE),
            LegacyTask(
                # Where the default selector puts it.
                "users:1:ada",
                "users:1",
                NOW,
                spec=spec_of("ada", {"n": 1}, interval=3600),
            ),
        ]
    )
    migrated(legacy, force=True)
    clock = VirtualClock(NOW)
    # Nobody else writes here: to look now and then is enough.
    app = Pyncette(legacy.factory, poll_interval=20 * MINUTE, clock=clock, **legacy.new_options)
    runs: list[tuple[str, datetime, datetime, Any]] = []

    async def body(context: Context) -> None:
        runs.append((context.task.name, clock.now(), context.scheduled_at, context.args))

    for name in ("sweep", "late", "held"):
        app.task(name=name, interval=2 * HOUR)(body)
    app.dynamic_task(name="mail")(body)
    app.partitioned_task(name="users", partition_count=2)(body)

    async def work() -> None:
        async with app.create() as context:
            running = asyncio.create_task(context.run())
            await clock.advance(2 * HOUR + 30 * MINUTE)
            context.shutdown()
            await running

    asyncio.run(work())
    assert sorted(runs, key=lambda run: (run[1], run[0])) == [
        ("ada", NOW, NOW, {"n": 1}),
        ("late", NOW, NOW - 10 * MINUTE, {}),
        ("overdue", NOW, NOW - HOUR, {"to": "overdue"}),
        ("held", NOW + MINUTE, NOW - 10 * MINUTE, {}),
        ("leased", NOW + MINUTE, NOW - MINUTE, {"to": "leased"}),
        ("sweep", NOW + 20 * MINUTE, NOW + 20 * MINUTE, {}),
        ("later", NOW + 30 * MINUTE, NOW + 30 * MINUTE, {"to": "later"}),
        ("ada", NOW + HOUR, NOW + HOUR, {"n": 1}),
        ("held", NOW + 110 * MINUTE, NOW + 110 * MINUTE, {}),
        ("late", NOW + 110 * MINUTE, NOW + 110 * MINUTE, {}),
        ("ada", NOW + 2 * HOUR, NOW + 2 * HOUR, {"n": 1}),
        ("sweep", NOW + 140 * MINUTE, NOW + 140 * MINUTE, {}),
    ]
    assert records_in(legacy, "mail") == {}


GARBAGE: dict[str, dict[str, Any]] = {
    "mail:no json": {"execute_after": "2026-05-01T13:00:00", "task_spec": "{"},
    "mail:list": {"execute_after": "2026-05-01T13:00:00", "task_spec": "[1]"},
    "mail:when": {"execute_after": "soon", "task_spec": spec_of("when", {"n": 1}, interval=60)},
    "mail:cron": {
        "execute_after": "2026-05-01T13:00:00",
        "task_spec": spec_of("cron", {"n": 1}, schedule="0 0 30 2 *"),
    },
}


@on("sqlite", *ELSEWHERE)
def test_what_cannot_be_read_is_kept_with_the_reason(legacy: Legacy) -> None:
    for name, fields in GARBAGE.items():
        legacy.raw(name, parent_name="mail", **fields)
    legacy.raw("static", execute_after="?")
    legacy.raw("a:::b", execute_after="2026-05-01T13:00:00", task_spec=spec_of("c", interval=1))
    legacy.fill([mail("sound", HOUR)])
    report = migrated(legacy)
    assert report.found is not None
    assert (report.found.parked, report.found.left_behind) == (5, 1)
    records = records_in(legacy, "mail", STATIC_GROUP)
    assert records.pop("sound").state == State.SCHEDULED
    assert records.keys() == {"no json", "list", "when", "cron", "static"}
    for record in records.values():
        assert (record.state, record.due_at) == (State.PARKED, None)
        error = load_progress(record.progress).error
        assert error is not None
        assert error.startswith("taken over from 1.x: ")
    assert records["cron"].schedule == f"1.x {GARBAGE['mail:cron']['task_spec']}"
    assert load_args(records["cron"].args) == {"n": 1}
    assert load_progress(records["cron"].progress).planned == to_microseconds(NOW + HOUR)
    assert "a:::b" in legacy.old_names()


@on("dynamodb")
def test_what_is_too_large_is_left_behind(legacy: Legacy) -> None:
    large = spec_of("large", {"text": "x" * 200_000}, interval=60)
    legacy.fill([mail("one", HOUR), LegacyTask("mail:large", "mail", NOW, spec=large)])
    report = migrated(legacy)
    assert report.found is not None
    assert (report.found.left_behind, report.written) == (1, 1)
    assert "bytes" in report.found.left_behind_examples[0].reason
    assert records_in(legacy, "mail").keys() == {"one"}


@on("sqlite")
def test_what_has_no_usable_name_does_not_go_with_the_old_table(legacy: Legacy) -> None:
    legacy.raw("", execute_after="2026-05-01T13:00:00")
    with pytest.raises(MigrationError, match="would be lost"):
        migrated(legacy, drop_old=True)
    assert migrated(legacy, drop_old=True, force=True).dropped


# Interruptions.

_KILLED = """\
import asyncio, os, signal, sys
from pyncette.migrate import migrate

def progress(done, total):
    if done >= {share} * total:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(migrate(progress=progress, **{options!r}))
"""


def start_and_kill(legacy: Legacy, share: float) -> None:
    """A migration in a process of its own, killed when so much has been copied."""
    script = _KILLED.format(share=share, options=legacy.options)
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("legacy", "count"),
    [(store, FEW.get(store, 200)) for store in STORES],
    indirect=["legacy"],
    ids=STORES,
)
def test_a_killed_migration_goes_on_and_nothing_is_lost_or_doubled(
    legacy: Legacy, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC)
    legacy.fill(mail(str(number), later - NOW + number * MINUTE) for number in range(count))
    start_and_kill(legacy, 0.4)
    assert main(["migrate", *legacy.arguments()]) == 0
    assert f"Done: {count:,} records copied (" in capfd.readouterr().out
    records = records_in(legacy, "mail")
    assert len(records) == count
    for number in range(count):
        record = records[str(number)]
        assert record.due_at == to_microseconds(later + number * MINUTE)
        assert record.args == f'1 {{"to":"{number}"}}'


@on(*STORES)
def test_a_migration_that_is_killed_before_its_last_step_goes_on(legacy: Legacy) -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC) - NOW
    legacy.fill(mail(str(number), later) for number in range(30))
    start_and_kill(legacy, 1.0)
    report = migrated(legacy)
    assert (report.written, report.present, report.finished) == (0, 30, True)
    assert records_in(legacy, "mail").keys() == {str(number) for number in range(30)}


@on(*SQL)
def test_what_1x_did_after_an_interruption_is_taken_over_too(legacy: Any) -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC) - NOW
    legacy.fill(mail(name, later) for name in ("moved", "removed", "kept"))
    start_and_kill(legacy, 1.0)
    legacy.remove("mail:moved", "mail:removed")
    legacy.fill([mail("moved", later + HOUR), mail("new", later)])
    migrated(legacy)
    records = records_in(legacy, "mail")
    assert records.keys() == {"moved", "new", "kept"}
    assert records["moved"].due_at == to_microseconds(NOW + later + HOUR)


@on(*STORES)
def test_what_is_changed_while_it_is_copied_is_copied_again(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR)])
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        told += 1
        if told == 1:
            in_thread(lambda: legacy.fill([mail("two", HOUR)]))

    report = migrated(legacy, progress=progress)
    assert report.written == 2
    assert told >= 2  # Redis may find the two in different pages
    assert records_in(legacy, "mail").keys() == {"one", "two"}


@on(*STORES)
def test_a_store_that_does_not_hold_still_is_given_up(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR)])
    after = HOUR

    def move() -> None:
        nonlocal after
        after += MINUTE
        legacy.remove("mail:one")
        legacy.fill([mail("one", after)])

    with pytest.raises(MigrationError, match="was changed while it was copied"):
        migrated(legacy, progress=lambda done, total: in_thread(move))


# What is refused.


@on("sqlite", "postgres")
def test_the_table_is_like_one_that_was_made_for_this_release(legacy: Any) -> None:
    legacy.fill([mail("one", HOUR)])
    migrated(legacy)
    ours = {f"{legacy.table}_due", f"{legacy.table}_rare", f"{legacy.table}_pkey"}
    if "sqlite_database" in legacy.options:
        ours = {
            f"{legacy.table}_due",
            f"{legacy.table}_rare",
            f"sqlite_autoindex_{legacy.table}_1",
        }
    assert legacy.indexes() == ours
    migrated(legacy, drop_old=True)
    assert legacy.indexes() == ours


@on(*SQL)
def test_a_table_for_the_old_data_that_is_there_is_not_touched(legacy: Any) -> None:
    legacy.fill([mail("one", HOUR)])
    legacy.run(f"CREATE TABLE {legacy.table}_1x (a integer)")
    with pytest.raises(MigrationError, match="Rename or drop it first"):
        migrated(legacy)


@on("sqlite", "postgres")
def test_what_is_named_like_the_old_table_and_is_not_one_is_not_dropped(legacy: Any) -> None:
    legacy.fill([mail("one", HOUR)])
    migrated(legacy, drop_old=True)
    assert not migrated(legacy, drop_old=True).dropped
    legacy.run(f"CREATE TABLE {legacy.table}_1x (a integer)")
    with pytest.raises(MigrationError, match="is left alone"):
        migrated(legacy, drop_old=True)


@on("postgres")
def test_a_user_who_holds_the_table_makes_the_last_step_fail_and_nothing_else(
    legacy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyncette.migrate.postgres.LOCK_PATIENCE_S", 1)
    legacy.fill([mail("one", HOUR)])
    held, release = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(legacy.url)
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {legacy.table} IN ACCESS SHARE MODE")
            held.set()
            await asyncio.to_thread(release.wait)
        await connection.close()

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    held.wait()
    try:
        with pytest.raises(StoreUnavailableError, match="lock timeout"):
            migrated(legacy)
    finally:
        release.set()
        holder.join()
    assert migrated(legacy).present == 1


@on("dynamodb")
def test_a_table_of_this_release_needs_no_migration(legacy: Any) -> None:
    legacy.fill([mail("one", HOUR)])
    migrated(legacy)
    again = migrated(legacy, dynamodb_table_name=legacy.new_table, to_table="some-other")
    assert (again.found, again.finished) == (None, True)


@on(*ELSEWHERE)
def test_a_place_that_is_in_use_is_not_copied_to(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR)])

    async def use() -> None:
        app = Pyncette(legacy.factory, clock=VirtualClock(NOW), **legacy.new_options)
        app.partitioned_task(name="users", partition_count=2)(nothing)
        async with app.create():
            pass

    asyncio.run(use())
    with pytest.raises(MigrationError, match="is in use already"):
        migrated(legacy)


@on(*ELSEWHERE)
def test_the_new_place_has_to_be_another_one(legacy: Legacy) -> None:
    for option, old in (("to_namespace", "redis_namespace"), ("to_table", "dynamodb_table_name")):
        if option in legacy.options:
            for value in (None, legacy.options[old]):
                with pytest.raises(ValueError, match=f"{option} must name"):
                    migrated(legacy, **{option: value})


@on(*STORES)
def test_what_is_not_of_1x_is_not_touched(legacy: Legacy) -> None:
    empty = {
        "sqlite_table_name": "none",
        "postgres_table_name": "none",
        "mysql_table_name": "none",
        "redis_namespace": "none",
        "dynamodb_table_name": "none",
    }
    one = next(iter(legacy.options)).partition("_")[0]
    named = {key: value for key, value in empty.items() if key.startswith(one)}
    with pytest.raises(MigrationError, match=r"Name (the table|their namespace)"):
        migrated(legacy, **named)


def test_a_foreign_table_is_not_touched(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE pyncette_tasks (name, parent_name, extra)")
    connection.close()
    with pytest.raises(MigrationError, match=r"was not made by pyncette 1\.x"):
        asyncio.run(migrate(sqlite_database=database))


@on(*STORES)
def test_a_worker_that_meets_an_old_store_is_told_of_the_command(legacy: Legacy) -> None:
    legacy.fill([mail("one", HOUR)])
    options = {key: value for key, value in legacy.options.items() if not key.startswith("to_")}

    async def open_it() -> None:
        async with legacy.factory(**options):
            pass

    with pytest.raises(StoreMisconfiguredError, match="python -m pyncette migrate"):
        asyncio.run(open_it())


# The command.


def run_command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output."""
    code = main(["migrate", *arguments])
    out, err = capfd.readouterr()
    return code, out, err


@on(*STORES)
def test_the_command_counts_copies_and_tells(
    legacy: Legacy, capfd: pytest.CaptureFixture[str]
) -> None:
    legacy.fill([mail("one", HOUR), LegacyTask("daily", None, NOW)])
    code, out, _ = run_command(capfd, *legacy.arguments(), "--dry-run")
    assert code == 0
    assert "static tasks                    1" in out
    assert "    mail                          1" in out
    assert out.endswith("Dry run: nothing was changed.\n")
    code, out, err = run_command(capfd, *legacy.arguments())
    assert code == 0
    assert "Done: 2 records copied." in out
    assert "2 of 2 copied" in err
    assert run_command(capfd, *legacy.arguments())[0] == 0


@on("sqlite")
def test_the_command_says_with_its_exit_code_that_workers_run(
    legacy: Legacy, capfd: pytest.CaptureFixture[str]
) -> None:
    legacy.fill([mail("leased", HOUR, locked_until=datetime(2100, 1, 1, tzinfo=UTC))])
    code, out, err = run_command(capfd, *legacy.arguments())
    assert (code, out) == (3, "")
    assert "workers seem to be running" in err
    assert run_command(capfd, *legacy.arguments(), "--force")[0] == 0


@pytest.mark.parametrize(
    "option",
    [
        "--postgres-url=postgresql://me:hunter2@127.0.0.1:1/db",
        "--postgres-url=postgres://me:hunter2@@127.0.0.1:x/db",
        "--mysql-url=mysql://me:hunter2@127.0.0.1:1/db",
        "--redis-url=redis://:hunter2@127.0.0.1:1/0",
    ],
)
def test_no_password_is_shown(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_command(capfd, option, "--to-namespace=new")
    assert code == 1
    assert err.startswith("\nmigrate: ")
    assert "hunter2" not in out + err


def test_a_store_has_to_be_named(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_command(capfd)
    assert (code, out) == (2, "")
    assert err.startswith(
        "\nmigrate: Name the store: --sqlite-database (or PYNCETTE_SQLITE_DATABASE)"
    )
    assert "--mysql-host (or PYNCETTE_MYSQL_HOST)" in err


def test_several_stores_are_refused_by_the_names_that_were_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(capfd, "--sqlite-database=a.db", "--mysql-host=b", "--mysql-url=c")
    assert (code, err) == (
        2,
        "\nmigrate: Name one store, not 2: --sqlite-database, --mysql-url, --mysql-host\n",
    )
    monkeypatch.setenv("PYNCETTE_SQLITE_DATABASE", "a.db")
    monkeypatch.setenv("PYNCETTE_REDIS_URL", "redis://127.0.0.1:1/0")
    code, _, err = run_command(capfd)
    assert (code, err) == (
        2,
        "\nmigrate: Name one store, not 2: PYNCETTE_SQLITE_DATABASE, PYNCETTE_REDIS_URL\n",
    )


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (["--redis-url=redis://127.0.0.1:1/0"], "--to-namespace (or PYNCETTE_TO_NAMESPACE) must"),
        (["--dynamodb-table-name=old"], "--to-table (or PYNCETTE_TO_TABLE) must"),
        (["--mysql-host=db"], "--mysql-user (or PYNCETTE_MYSQL_USER) is required"),
    ],
)
def test_a_missing_option_is_wrong_usage(
    options: list[str], missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_command(capfd, *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"\nmigrate: {missing}")


def test_options_can_be_given_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYNCETTE_SQLITE_DATABASE", str(tmp_path / "absent.db"))
    code, _, err = run_command(capfd)
    assert code == 1
    assert "absent.db" in err
    # Read when the command runs, not when its arguments are described.
    monkeypatch.setenv("PYNCETTE_SQLITE_DATABASE", str(tmp_path / "other.db"))
    assert "other.db" in run_command(capfd)[2]
    # An option has precedence over its own variable.
    assert "third.db" in run_command(capfd, f"--sqlite-database={tmp_path / 'third.db'}")[2]


def test_a_variable_that_is_empty_is_not_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYNCETTE_REDIS_URL", "")
    code, _, err = run_command(capfd)
    assert code == 2
    assert "Name the store" in err
    monkeypatch.setenv("PYNCETTE_SQLITE_TABLE_NAME", "")
    monkeypatch.setenv("PYNCETTE_SQLITE_DATABASE", str(tmp_path / "absent.db"))
    code, _, err = run_command(capfd)
    assert code == 1
    assert "absent.db" in err
    monkeypatch.setenv("PYNCETTE_MYSQL_PORT", "")
    code, _, err = run_command(capfd, "--mysql-host=db")
    assert code == 2
    assert "--mysql-user" in err


def test_a_variable_that_is_no_number_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYNCETTE_MYSQL_PORT", "many")
    code, _, err = run_command(capfd, "--mysql-host=db")
    assert (code, err) == (2, "\nmigrate: PYNCETTE_MYSQL_PORT must be a whole number, not 'many'\n")
    # It does not matter if the option is given, or to another store.
    assert "--mysql-user" in run_command(capfd, "--mysql-host=db", "--mysql-port=3306")[2]
    assert run_command(capfd, f"--sqlite-database={tmp_path / 'absent.db'}")[0] == 1


def test_a_store_among_the_arguments_wins_over_variables_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYNCETTE_POSTGRES_URL", "postgresql://127.0.0.1:1/db")
    monkeypatch.setenv("PYNCETTE_MYSQL_HOST", "db")
    code, _, err = run_command(capfd, f"--sqlite-database={tmp_path / 'absent.db'}")
    assert code == 1
    assert "absent.db" in err


def test_a_url_of_mysql_among_the_arguments_wins_over_variables_of_another_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, object] = {}

    async def taken(**configuration: object) -> Report:
        given.update(configuration)
        return Report("there")

    monkeypatch.setattr("pyncette.migrate.command.migrate", taken)
    for name in ("HOST", "PORT", "USER", "DATABASE", "PASSWORD"):
        monkeypatch.setenv(f"PYNCETTE_MYSQL_{name}", "1")
    assert main(["migrate", "--mysql-url=mysql://me@here/mine"]) == 0
    options = {name: value for name, value in given.items() if name.startswith("mysql")}
    assert options == {"mysql_url": "mysql://me@here/mine", "mysql_password": "1"}


def test_the_package_can_be_run() -> None:
    command = [sys.executable, "-m", "pyncette", "migrate", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "--postgres-url" in shown.stdout
