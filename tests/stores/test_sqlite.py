"""What only the store in SQLite has: its options, its file, its table, rows edited by hand."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pyncette.errors import StoreError, StoreMisconfiguredError
from pyncette.sqlite import SqliteStore, schema_sql, sqlite_repository
from pyncette.sqlite.table import SqliteTable
from pyncette.store import Applied, Failed, Filter, Group, Key, Refused, Source, Write
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, Record, State
from pyncette.store.sql.rows import COLUMNS, prefix_end

T = TypeVar("T")

NOW = 1_764_000_000_000_000
LEASE = 60_000_000
REPORTS = Group("reports", LEASE, 100, NOW)


def new(key: str, **columns: Any) -> Write:
    """A new record that is due."""
    values: dict[str, Any] = {
        "due_at": NOW,
        "state": State.SCHEDULED,
        "token": None,
        "unfinished_attempts": 0,
        "schedule": "1 plan",
        "args": "1 {}",
        "progress": "1 - born",
    }
    return Write("reports", key, Put(**values | columns), ABSENT)


def on_store(
    use: Callable[[SqliteStore], Awaitable[T]], database: Path | str = ":memory:", **options: Any
) -> T:
    """Opens a store, and does something with it."""

    async def main() -> T:
        async with sqlite_repository(sqlite_database=database, **options) as store:
            return await use(store)

    return asyncio.run(main())


async def keep_one(store: SqliteStore) -> None:
    await store.write([new("kept")], NOW)


async def nothing(store: SqliteStore) -> None:
    pass


def by_hand(database: Path, *statements: str) -> list[Any]:
    """Edits the file as somebody with a shell would; returns the rows of the last statement."""
    connection = sqlite3.connect(database)
    try:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        connection.commit()
        return rows
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sqlite_database", ""),
        ("sqlite_database", None),
        ("sqlite_database", 7),
        ("sqlite_database", "tasks\0.db"),
        ("sqlite_table_name", "Tasks"),
        ("sqlite_table_name", "1tasks"),
        ("sqlite_table_name", "tasks; DROP TABLE tasks"),
        ("sqlite_table_name", "tasks\n"),
        ("sqlite_table_name", "tâches"),
        ("sqlite_table_name", ""),
        ("sqlite_table_name", None),
        ("sqlite_synchronous", "OFF"),
        ("sqlite_synchronous", 1),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name_and_value(
    option: str, value: Any
) -> None:
    with pytest.raises(ValueError) as refused:
        on_store(nothing, **{"database": ":memory:"} | {option: value}) if (
            option != "sqlite_database"
        ) else on_store(nothing, value)
    assert option in str(refused.value)
    assert repr(value) in str(refused.value)


def test_options_of_others_are_ignored() -> None:
    on_store(keep_one, redis_url="redis://localhost", batch_size=7)


@pytest.mark.parametrize(
    ("options", "of_a_write", "of_a_claim"),
    [
        ({"sqlite_synchronous": "normal"}, 1, 1),
        ({"sqlite_synchronous": "Full"}, 2, 1),
        ({}, 2, 1),
    ],
)
def test_synchronous_reaches_writes_and_a_claim_never_waits_for_the_disk(
    tmp_path: Path, options: dict[str, Any], of_a_write: int, of_a_claim: int
) -> None:
    def synchronous(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    async def use(store: SqliteStore) -> None:
        for _ in range(2):
            await store.write([new("a")], NOW)
            assert await store._thread.call(synchronous, None, False) == of_a_write
            await store.claim([REPORTS], 100, NOW, "worker-1")
            assert await store._thread.call(synchronous, None, False) == of_a_claim
            await store.write([Write("reports", "a", Delete(), -1)], NOW)

    on_store(use, tmp_path / "tasks.db", **options)


def test_each_context_in_memory_is_a_database_of_its_own() -> None:
    async def main() -> None:
        async with sqlite_repository() as store, sqlite_repository() as other:
            await store.write([new("a")], NOW)
            assert await other.get([("reports", "a")]) == [None]

    asyncio.run(main())


def test_a_file_keeps_what_was_written(tmp_path: Path) -> None:
    on_store(keep_one, tmp_path / "tasks.db")
    [record] = on_store(lambda store: store.get([("reports", "kept")]), tmp_path / "tasks.db")
    assert record is not None
    assert record.args == "1 {}"


def test_two_tables_in_one_file_know_nothing_of_each_other(tmp_path: Path) -> None:
    on_store(keep_one, tmp_path / "tasks.db", sqlite_table_name="one")
    [record] = on_store(
        lambda store: store.get([("reports", "kept")]),
        tmp_path / "tasks.db",
        sqlite_table_name="two",
    )
    assert record is None


def test_a_table_made_by_hand_from_the_printed_schema_is_used(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"
    by_hand(database, *schema_sql("mine").split(";\n")[:2])
    on_store(keep_one, database, sqlite_table_name="mine")
    assert by_hand(database, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("mine",)]


def test_the_documentation_shows_the_schema_as_it_is_printed() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "stores" / "sqlite.md"
    assert f"```sql\n{schema_sql()}```" in page.read_text()


def test_the_schema_is_not_printed_for_a_name_that_cannot_be_one() -> None:
    with pytest.raises(ValueError, match="Table name"):
        schema_sql("my tasks")


LEGACY = (
    "CREATE TABLE pyncette_tasks (name TEXT PRIMARY KEY, parent_name TEXT, "
    "locked_until TIMESTAMP, locked_by TEXT, execute_after TIMESTAMP, task_spec TEXT)"
)


def test_a_table_of_release_1_is_left_alone_and_the_error_says_how_to_migrate(
    tmp_path: Path,
) -> None:
    database = tmp_path / "tasks.db"
    by_hand(database, LEGACY, "INSERT INTO pyncette_tasks (name) VALUES ('a')")
    before = by_hand(database, "SELECT type, name, sql FROM sqlite_master")
    with pytest.raises(StoreMisconfiguredError, match="pyncette migrate") as refused:
        on_store(nothing, database)
    assert "'pyncette_tasks'" in str(refused.value)
    assert str(database) in str(refused.value)
    assert by_hand(database, "SELECT type, name, sql FROM sqlite_master") == before
    assert by_hand(database, "SELECT name FROM pyncette_tasks") == [("a",)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE pyncette_tasks (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE VIEW pyncette_tasks AS SELECT 1 AS one",
        f"CREATE TABLE pyncette_tasks ({', '.join(COLUMNS[:-1]).replace('group', '[group]')})",
    ],
)
def test_a_table_of_somebody_else_is_left_alone(tmp_path: Path, statement: str) -> None:
    by_hand(tmp_path / "tasks.db", statement)
    with pytest.raises(StoreMisconfiguredError, match="sqlite_table_name"):
        on_store(nothing, tmp_path / "tasks.db")
    assert by_hand(tmp_path / "tasks.db", "SELECT count(*) FROM sqlite_master") in ([(1,)], [(2,)])


def test_a_missing_index_is_made_again(tmp_path: Path) -> None:
    on_store(keep_one, tmp_path / "tasks.db")
    by_hand(tmp_path / "tasks.db", "DROP INDEX pyncette_tasks_due")
    on_store(nothing, tmp_path / "tasks.db")
    assert by_hand(
        tmp_path / "tasks.db", "SELECT name FROM sqlite_master WHERE name = 'pyncette_tasks_due'"
    )


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreMisconfiguredError, match="it is a directory") as refused:
        on_store(nothing, tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_file_in_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreMisconfiguredError, match="does not exist") as refused:
        on_store(nothing, tmp_path / "missing" / "tasks.db")
    assert str(tmp_path / "missing" / "tasks.db") in str(refused.value)


def test_a_file_that_is_no_database_is_refused_and_not_changed(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"
    database.write_text("to whom it may concern: " * 100)
    with pytest.raises(StoreMisconfiguredError, match="not a database") as refused:
        on_store(nothing, database)
    assert str(database) in str(refused.value)
    assert database.read_text() == "to whom it may concern: " * 100


def test_a_database_in_utf_16_is_refused(tmp_path: Path) -> None:
    by_hand(tmp_path / "tasks.db", "PRAGMA encoding = 'UTF-16'", "CREATE TABLE other (one)")
    with pytest.raises(StoreMisconfiguredError, match="UTF-16"):
        on_store(nothing, tmp_path / "tasks.db")


def _without_privileges(tmp_path: Path, mode_of_file: int, mode_of_directory: int) -> str:
    """What opening says to somebody who is not root."""
    database = tmp_path / "tasks.db"
    on_store(keep_one, database)
    database.chmod(mode_of_file)
    tmp_path.chmod(mode_of_directory)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            # Other test processes may need the same directories: they stay passable.
            for parent in tmp_path.parents[:3]:
                parent.chmod(parent.stat().st_mode | 0o011)
            os.seteuid(65_534)
        with pytest.raises(StoreMisconfiguredError) as refused:
            on_store(nothing, database)
        return str(refused.value)
    finally:
        if is_root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    assert "no permission to read and write it" in _without_privileges(tmp_path, 0o000, 0o777)


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    assert "no permission to read and write it" in _without_privileges(tmp_path, 0o444, 0o777)


def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    assert "no permission to write to its directory" in _without_privileges(tmp_path, 0o666, 0o555)


FULL_DISK = """
import asyncio, resource, signal, sys
from pyncette.errors import StoreError
from pyncette.store.record import ABSENT, Put
from pyncette.sqlite import sqlite_repository
from pyncette.store import Write

async def main():
    database, size = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    written = 0
    try:
        async with sqlite_repository(sqlite_database=database) as store:
            put = Put(1, "scheduled", None, 0, "1 plan", "1 " + "x" * 4000, "1 - born")
            for number in range(200):
                await store.write([Write("reports", f"{number}", put, ABSENT)], 1)
                written += 1
    except StoreError as error:
        print(type(error).__name__, written, error)

asyncio.run(main())
"""


def _on_full_disk(database: Path, size: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(database), str(size)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_disk_that_is_full_at_the_start_is_refused_with_the_path(tmp_path: Path) -> None:
    said = _on_full_disk(tmp_path / "tasks.db", resource.getpagesize())
    assert said.startswith("StoreMisconfiguredError 0 ")
    assert str(tmp_path / "tasks.db") in said


def test_a_disk_that_fills_up_is_an_outage_and_loses_nothing(tmp_path: Path) -> None:
    name, written, _ = _on_full_disk(tmp_path / "tasks.db", 200_000).split(" ", 2)
    assert name == "StoreUnavailableError"
    assert int(written) > 0
    page = on_store(lambda store: store.scan("reports", Filter(), None, 500), tmp_path / "tasks.db")
    assert len(page.records) >= int(written)


def test_a_sqlite_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreMisconfiguredError, match=r"too old: at least 3\.35"):
        on_store(nothing)


def test_a_table_that_disappears_is_an_error_and_not_an_outage(tmp_path: Path) -> None:
    async def use(store: SqliteStore) -> None:
        by_hand(tmp_path / "tasks.db", "DROP TABLE pyncette_tasks")
        with pytest.raises(StoreMisconfiguredError, match="no such table"):
            await store.get([("reports", "a")])

    on_store(use, tmp_path / "tasks.db")


def test_a_store_that_is_closed_says_so() -> None:
    async def main() -> None:
        async with sqlite_repository() as store:
            pass
        with pytest.raises(StoreError, match="closed"):
            await store.get([("reports", "a")])

    asyncio.run(main())


REFUSED_VALUES = [
    pytest.param(new("bad", args=1 << 70), id="an integer of 70 bits"),
    pytest.param(new("bad", args=["no text"]), id="no text"),
    pytest.param(new("bad", args="1 \ud800"), id="a lone surrogate"),
    pytest.param(new("bad", args="1 " + "x" * 20_000), id="longer than SQLite allows"),
    pytest.param(new("bad", due_at=1 << 63), id="an instant of 64 bits"),
    pytest.param(new("bad", unfinished_attempts=1 << 40), id="what a check refuses"),
    pytest.param(new("bad", schedule=None), id="none"),
    pytest.param(new("bad\ud800"), id="a key with a lone surrogate"),
    pytest.param(Write("\ud800", "bad", new("bad").change, ABSENT), id="a group with one"),
    pytest.param(new("bad")._replace(expect=ANY, token="\ud800"), id="a token with one"),
    pytest.param(
        Write("reports", "there", Patch(NOW, State.SCHEDULED, 0, "\ud800"), NOW), id="a patch"
    ),
    pytest.param(
        Write("reports", "there", Patch(NOW, State.SCHEDULED, 0, "\ud800"), ANY), id="forced"
    ),
    pytest.param(Write("reports", "there\ud800", Delete(), ANY), id="a deletion"),
    pytest.param(Write("reports", "there\ud800", Delete(), NOW), id="a conditional deletion"),
]


async def limit_texts(store: SqliteStore, characters: int) -> None:
    """As a SQLite that was built with this limit."""

    def limit(connection: sqlite3.Connection) -> bool:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, characters)
        return True

    await store._thread.call(limit, None, False)


@pytest.mark.parametrize("bad", REFUSED_VALUES)
def test_a_value_that_sqlite_refuses_fails_alone_and_the_others_of_its_batch_are_applied(
    bad: Write,
) -> None:
    async def use(store: SqliteStore) -> None:
        await store.write([new("there"), new("other")], NOW)
        await limit_texts(store, 15_000)
        results = await store.write(
            [
                new("a"),
                bad,
                Write("reports", "other", Patch(NOW, State.PAUSED, 0), NOW),
                new("b"),
            ],
            NOW,
        )
        if isinstance(bad.change, Delete):  # what cannot be a key is the key of nothing
            assert isinstance(results[1], (Failed, Refused, Applied))
        else:
            assert isinstance(results[1], (Failed, Refused))
        if isinstance(results[1], Failed):
            assert isinstance(results[1].error, ValueError)
            assert bad.group in str(results[1].error) or "\\ud800" in str(results[1].error)
        assert results[0] == results[3] == Applied(NOW)
        assert results[2] == Applied(NOW + 1)
        page = await store.scan("reports", Filter(), None, 10)
        assert [(record.key, record.state) for record in page.records] == [
            ("a", State.SCHEDULED),
            ("b", State.SCHEDULED),
            ("other", State.PAUSED),
            ("there", State.SCHEDULED),
        ]

    on_store(use)


@pytest.mark.parametrize("bad", REFUSED_VALUES)
def test_a_value_that_sqlite_refuses_leaves_other_calls_alone(bad: Write) -> None:
    async def use(store: SqliteStore) -> None:
        await store.write([new("there")], NOW)
        await limit_texts(store, 15_000)
        answers = await asyncio.gather(
            store.write([new("a")], NOW),
            store.write([bad], NOW),
            store.claim([Key("reports", "there", LEASE)], 1, NOW, "worker-1"),
            store.write([new("b")], NOW),
        )
        assert answers[0] == answers[3] == [Applied(NOW)]
        assert [record.key for record in answers[2].records] == ["there"]

    on_store(use)


def test_records_too_long_to_be_claimed_together_are_claimed_one_after_the_other() -> None:
    async def use(store: SqliteStore) -> None:
        keys = [f"{number}" for number in range(9)]
        await store.write([new(key, args="1 " + "x" * 2_000) for key in keys], NOW)
        await limit_texts(store, 10_000)
        found: list[str] = []
        for turn in range(9):
            claimed = await store.claim([REPORTS], 100, NOW, f"worker-{turn}")
            found += [record.key for record in claimed.records]
        assert sorted(found) == keys

    on_store(use)


def test_a_record_too_long_to_be_claimed_is_parked_with_the_reason_and_others_are_claimed() -> None:
    async def use(store: SqliteStore) -> None:
        long = new("long", args="1 " + "\0" * 4_000, due_at=NOW - 1)
        await store.write([new("a"), long, new("b")], NOW)
        await limit_texts(store, 10_000)
        found: list[str] = []
        for turn in range(3):
            claimed = await store.claim([REPORTS], 100, NOW, f"worker-{turn}")
            found += [record.key for record in claimed.records]
        assert sorted(found) == ["a", "b"]
        [parked] = await store.get([("reports", "long")])
        assert parked is not None
        assert (parked.state, parked.due_at, parked.token) == (State.PARKED, None, None)
        assert "too long" in parked.progress
        assert parked.version > NOW

    on_store(use)


@pytest.mark.parametrize(
    "edit",
    [
        "due_at = 'tomorrow'",
        "due_at = 1.5",
        "version = NULL",
        "version = 'one'",
        "version = 9223372036854775807",
        "unfinished_attempts = 9223372036854775807",
        "unfinished_attempts = x'00'",
        "schedule = x'00'",
        "args = NULL",
        "progress = x'ff'",
        "state = NULL",
        "token = x'00'",
        "\"key\" = x'00'",
    ],
)
def test_the_table_refuses_an_edit_that_would_stand_in_everybodys_way(
    tmp_path: Path, edit: str
) -> None:
    on_store(keep_one, tmp_path / "tasks.db")
    with pytest.raises(sqlite3.IntegrityError):
        by_hand(tmp_path / "tasks.db", f"UPDATE pyncette_tasks SET {edit}")


@pytest.mark.parametrize(
    "edit",
    [
        "schedule = ''",
        "schedule = 'garbage', args = 'garbage', progress = 'garbage'",
        "schedule = CAST(x'ff00fe' AS TEXT)",
        "args = CAST(x'c3' AS TEXT)",
        "progress = CAST(x'6100ff' AS TEXT)",
        "token = CAST(x'ff' AS TEXT)",
        "state = 'no such state'",
        "due_at = -9223372036854775808",
        "unfinished_attempts = -5",
        "unfinished_attempts = 2147483647",
        "version = 4611686018427387903",
        "version = -5",
        "schedule = x'3120ff'",
        "unfinished_attempts = 0.5",
        "version = 1.5",
    ],
)
def test_a_row_edited_by_hand_is_claimed_beside_the_others(tmp_path: Path, edit: str) -> None:
    async def fill(store: SqliteStore) -> None:
        await store.write([new("a"), new("bad"), new("c")], NOW - 1)

    async def claim(store: SqliteStore) -> None:
        claimed = await store.claim([REPORTS], 100, NOW, "worker-1")
        assert sorted(record.key for record in claimed.records) == ["a", "bad", "c"]
        for record in claimed.records:
            texts = (record.schedule, record.args, record.progress, record.state, record.token)
            assert all(isinstance(text, str) for text in texts)
        parked = [
            Write(
                record.group,
                record.key,
                Patch(None, State.PARKED, 0, "1 - born"),
                record.version,
                record.token,
            )
            for record in claimed.records
        ]
        results = await store.write(parked, NOW)
        assert all(isinstance(result, Applied) for result in results)
        page = await store.scan("reports", Filter(), None, 10)
        assert [record.state for record in page.records] == [State.PARKED] * 3

    on_store(fill, tmp_path / "tasks.db")
    by_hand(
        tmp_path / "tasks.db",
        "PRAGMA ignore_check_constraints = ON",
        f"UPDATE pyncette_tasks SET {edit} WHERE \"key\" = 'bad'",
    )
    on_store(claim, tmp_path / "tasks.db")


BARE = (
    f"CREATE TABLE pyncette_tasks ({', '.join(f'[{column}]' for column in COLUMNS)}, "
    "PRIMARY KEY ([group], [key]))",
    "CREATE INDEX pyncette_tasks_due ON pyncette_tasks ([group], due_at) WHERE due_at IS NOT NULL",
)
"""A table of which somebody has dropped types and checks: any column takes any value."""

ABSURD = (
    "NULL",
    "''",
    "'garbage'",
    "CAST(x'ff00fe' AS TEXT)",
    "x''",
    "x'ff'",
    "0",
    "-1",
    "-9223372036854775808",
    "9223372036854775807",
    "0.5",
    "1e300",
    "9e999",
    "-9e999",
    "'12'",
)


def is_sound(record: Record) -> bool:
    """Whether each column has a value of its type, and can be stored."""
    texts = (record.group, record.key, record.state, record.schedule, record.args, record.progress)
    return (
        all(type(text) is str and "\ud7ff" not in text and text.encode() for text in texts if text)
        and None not in texts
        and (record.token is None or type(record.token) is str)
        and (record.due_at is None or type(record.due_at) is int)
        and type(record.version) is int
        and record.version > 0
        and type(record.unfinished_attempts) is int
        and record.unfinished_attempts >= 0
    )


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("column", COLUMNS)
def test_an_absurd_value_in_any_column_stops_that_record_alone(
    tmp_path: Path, column: str, value: str
) -> None:
    database = tmp_path / "tasks.db"

    async def fill(store: SqliteStore) -> None:
        await store.write([new("a"), new("bad"), new("c"), new("key"), new("later")], NOW - 1)

    async def use(store: SqliteStore) -> None:
        # Before anything is claimed.
        before = await store.get([("reports", key) for key in ("a", "bad", "c")])
        assert before[0] is not None
        assert before[2] is not None
        sources: list[Source] = [REPORTS]
        sources += [Key("reports", "bad", LEASE), Key("reports", "key", LEASE)]
        _, next_due = await store.claim(sources[:1], 0, NOW, "worker-1")
        assert all(type(due_at) is int for due_at in next_due)
        # By group and by key, each alone and both in one.
        for claim_of in (sources[1:2], sources[2:], sources[:1]):
            records, next_due = await store.claim(claim_of, 100, NOW, "worker-1")
            assert all(due_at is None or type(due_at) is int for due_at in next_due)
            assert all(map(is_sound, records))
            claimed.update((record.key, record) for record in records)
        assert claimed.keys() >= {"a", "c", "key", "later"}
        again, _ = await store.claim(sources[:1], 100, NOW, "worker-1", repeated=True)
        assert {"a", "c", "later"} <= {record.key for record in again}
        # Their holders write them, in one batch.
        batch = [
            Write("reports", key, Patch(None, State.PARKED, 0), record.version, record.token)
            for key, record in claimed.items()
        ]
        results = await store.write(batch, NOW)
        assert all(isinstance(result, Applied) for result in results)
        # It is shown, once, and nothing is in the way of the others.
        shown: list[str] = []
        cursor: str | None = None
        for _ in range(20):
            page = await store.scan("reports", Filter(), cursor, 1)
            assert all(map(is_sound, page.records))
            shown += [record.key for record in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        assert cursor is None
        assert len(shown) == len(set(shown))
        assert {"a", "c", "key", "later"} <= set(shown)
        # Whoever schedules it again gets a sound record.
        [current] = await store.get([("reports", "bad")])
        put = new("bad").change
        expect = ABSENT if current is None else current.version
        [result] = await store.write([Write("reports", "bad", put, expect)], NOW)
        assert isinstance(result, Applied)
        records, _ = await store.claim([REPORTS], 100, NOW, "worker-2")
        assert [(record.key, record.args) for record in records] == [("bad", "1 {}")]
        assert records[0].version > result.version
        assert await store.write([Write("reports", "bad", Delete(), ANY)], NOW) == [Applied(0)]
        assert await store.get([("reports", "bad")]) == [None]

    claimed: dict[str, Record] = {}
    by_hand(database, *BARE)
    on_store(fill, database)
    by_hand(database, f"UPDATE pyncette_tasks SET [{column}] = {value} WHERE [key] = 'bad'")
    on_store(use, database)


@pytest.mark.parametrize("unfinished_max", [0, 2, None])
def test_a_count_of_attempts_that_is_absurd_counts_as_none(
    tmp_path: Path, unfinished_max: int | None
) -> None:
    database = tmp_path / "tasks.db"
    by_hand(database, *BARE)
    on_store(lambda store: store.write([new(f"{n}") for n in range(3)], NOW), database)
    by_hand(
        database,
        "UPDATE pyncette_tasks SET unfinished_attempts = 'many' WHERE [key] = '0'",
        "UPDATE pyncette_tasks SET unfinished_attempts = -7 WHERE [key] = '1'",
        "UPDATE pyncette_tasks SET unfinished_attempts = NULL WHERE [key] = '2'",
    )
    claimed = on_store(
        lambda store: store.claim([REPORTS], 9, NOW, "me", unfinished_max=unfinished_max), database
    )
    assert [record.unfinished_attempts for record in claimed.records] == [1, 1, 1]


def suspects() -> list[Write]:
    """Records with zero to four attempts without an outcome, the most first to come due."""
    return [
        new(f"{count}", unfinished_attempts=count, due_at=NOW - count, token="dead")
        for count in range(5)
    ]


def test_a_claim_takes_no_record_with_more_unfinished_attempts_than_it_allows() -> None:
    async def use(store: SqliteStore) -> None:
        await store.write(suspects(), NOW)
        records, next_due = await store.claim([REPORTS], 2, NOW, "me", unfinished_max=2)
        assert sorted(record.key for record in records) == ["1", "2"]
        assert next_due == [NOW - 4], "those that stay are counted"
        records, _ = await store.claim([REPORTS], 100, NOW, "me", unfinished_max=2)
        assert [record.key for record in records] == ["0"]
        left = await store.get([("reports", "3"), ("reports", "4")])
        assert [record and (record.state, record.token, record.version) for record in left] == [
            (State.SCHEDULED, "dead", NOW)
        ] * 2
        records, _ = await store.claim([REPORTS], 100, NOW, "me")
        assert sorted(record.key for record in records) == ["3", "4"]

    on_store(use)


def test_a_claim_by_key_takes_no_record_with_more_unfinished_attempts_either() -> None:
    async def use(store: SqliteStore) -> None:
        await store.write(suspects(), NOW)
        sources = [Key("reports", f"{count}", LEASE) for count in (4, 2, 3)]
        records, next_due = await store.claim(sources, 100, NOW, "me", unfinished_max=2)
        assert [record.key for record in records] == ["2"]
        assert next_due == [NOW - 4, NOW + LEASE, NOW - 3]

    on_store(use)


def test_a_repeated_claim_returns_what_the_first_one_took_and_no_suspect() -> None:
    async def use(store: SqliteStore) -> None:
        await store.write(suspects(), NOW)
        await store.claim([REPORTS], 100, NOW, "me")
        repeated, _ = await store.claim([REPORTS], 100, NOW, "me", True, unfinished_max=2)
        assert sorted(record.key for record in repeated) == ["0", "1", "2"]
        keys = [Key("reports", f"{count}", LEASE) for count in range(5)]
        repeated = (await store.claim(keys, 100, NOW, "me", True, unfinished_max=2)).records
        assert sorted(record.key for record in repeated) == ["0", "1", "2"]

    on_store(use)


def test_bounding_a_claim_by_the_clock_of_the_store_means_nothing_without_one() -> None:
    async def use(store: SqliteStore) -> None:
        assert await store.now() is None
        in_the_year_2100 = 4_102_444_800_000_000
        await store.write([new("a", due_at=in_the_year_2100)], NOW)
        source = REPORTS._replace(before=in_the_year_2100)
        claimed = await store.claim([source], 1, in_the_year_2100, "me", bounded=True)
        assert [record.key for record in claimed.records] == ["a"]

    on_store(use)


def test_a_row_whose_key_is_no_text_is_parked_and_the_others_are_claimed(tmp_path: Path) -> None:
    async def fill(store: SqliteStore) -> None:
        await store.write([new("a"), new("bad"), new("c"), new("\ufffd")], NOW - 1)

    async def claim(store: SqliteStore) -> None:
        claimed = await store.claim([REPORTS], 100, NOW, "worker-1")
        assert sorted(record.key for record in claimed.records) == ["a", "c", "\ufffd"]
        assert claimed.next_due == [NOW + LEASE]
        page = await store.scan("reports", Filter(frozenset([State.PARKED])), None, 10)
        assert [record.due_at for record in page.records] == [None]
        assert "not UTF-8" in page.records[0].progress

    on_store(fill, tmp_path / "tasks.db")
    by_hand(
        tmp_path / "tasks.db",
        "UPDATE pyncette_tasks SET \"key\" = CAST(x'ff' AS TEXT) WHERE \"key\" = 'bad'",
    )
    on_store(claim, tmp_path / "tasks.db")


def test_a_static_record_with_a_text_that_is_no_utf_8_is_claimed(tmp_path: Path) -> None:
    on_store(keep_one, tmp_path / "tasks.db")
    by_hand(tmp_path / "tasks.db", "UPDATE pyncette_tasks SET schedule = CAST(x'ff' AS TEXT)")
    claimed = on_store(
        lambda store: store.claim([Key("reports", "kept", LEASE)], 100, NOW, "worker-1"),
        tmp_path / "tasks.db",
    )
    assert [record.schedule for record in claimed.records] == ["\ufffd"]


def test_a_refused_write_among_many_undoes_none_of_the_others() -> None:
    async def use(store: SqliteStore) -> None:
        await store.write([new(f"{number}") for number in range(130)], NOW)
        claimed = await store.claim([REPORTS._replace(share=130)], 130, NOW + 1, "worker-1")
        await store.write([Write("reports", "77", Delete(), -1)], NOW)
        settles = [
            Write(
                record.group,
                record.key,
                Patch(NOW, State.SCHEDULED, 0) if number % 2 else Delete(),
                record.version,
                record.token,
            )
            for number, record in enumerate(claimed.records)
        ]
        results = await store.write(settles, NOW)
        refused = [
            write.key
            for write, result in zip(settles, results, strict=True)
            if isinstance(result, Refused)
        ]
        assert refused == ["77"]
        page = await store.scan("reports", Filter(), None, 500)
        kept = [write.key for write in settles if isinstance(write.change, Patch)]
        assert sorted(record.key for record in page.records) == sorted(set(kept) - {"77"})

    on_store(use)


def test_a_filtered_scan_of_many_rows_comes_in_short_pages() -> None:
    async def use(store: SqliteStore) -> None:
        await store.write([new(f"{number:05}") for number in range(6_000)], NOW)
        await store.write([Write("reports", "05500", Patch(None, State.RUNNING, 0), -1)], NOW)
        running = Filter(frozenset([State.RUNNING]))
        first = await store.scan("reports", running, None, 10)
        assert first.records == []
        assert first.cursor == "04999"
        second = await store.scan("reports", running, first.cursor, 10)
        assert [record.key for record in second.records] == ["05500"]
        assert second.cursor is None

    on_store(use)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("a", "b"),
        ("a\U0010ffff", "b"),
        ("\ud7ff", "\ue000"),
        ("\uffff", "\U00010000"),
        ("\U0010ffff", None),
        ("", None),
    ],
)
def test_the_end_of_a_prefix_is_the_next_text_that_does_not_begin_with_it(
    prefix: str, end: str | None
) -> None:
    assert prefix_end(prefix) == end


def test_no_statement_reads_the_table_from_end_to_end() -> None:
    async def use(store: SqliteStore) -> None:
        def plans(connection: sqlite3.Connection) -> dict[str, list[str]]:
            statements = [
                statement
                for value in vars(store._table).values()
                for statement in (value.values() if isinstance(value, dict) else [value])
                if isinstance(statement, str) and statement.startswith(("SELECT", "UPDATE", "DEL"))
            ]
            return {
                statement: [
                    row[3]
                    for row in connection.execute(
                        f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?")
                    )
                ]
                for statement in statements
            }

        found = await store._thread.call(plans, None, False)
        assert len(found) > 10
        for statement, schedule in found.items():
            assert any(step.startswith("SEARCH") for step in schedule), statement
            for step in schedule:
                assert not step.startswith(("SCAN t", "SCAN pyncette_tasks", "USE TEMP")), statement

    on_store(use)


def test_a_count_of_what_is_due_reads_its_index_alone() -> None:
    table = SqliteTable("pyncette_tasks")
    connection = sqlite3.connect(":memory:")
    table.make(connection, ":memory:")
    plan = connection.execute(f"EXPLAIN QUERY PLAN {table._count_due}", ["g", 1, 1]).fetchall()
    assert any(f"USING COVERING INDEX {table.name}_due" in step for *_, step in plan), plan
    connection.close()


def test_lists_and_counts_of_rare_states_are_served_by_their_index() -> None:
    table = SqliteTable("pyncette_tasks")
    connection = sqlite3.connect(":memory:")
    table.make(connection, ":memory:")
    for statement in (table._page_of_rare, table._count_rare):
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?")
        ).fetchall()
        assert any(f"USING INDEX {table.name}_rare" in step for *_, step in plan), plan
    connection.close()
