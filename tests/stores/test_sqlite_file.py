"""The store in SQLite on a file that others use, too; its thread; processes that are killed."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from pyncette.clock import realtime
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.sqlite import SqliteStore, sqlite_repository
from pyncette.sqlite import thread as sqlite_thread
from pyncette.store import Applied, Claimed, Filter, Group, Write
from pyncette.store.record import ABSENT, Put, State

T = TypeVar("T")

NOW = 1_764_000_000_000_000
LEASE = 60_000_000
PATIENCE_S = 60.0
DUE = Put(NOW, State.SCHEDULED, None, 0, "1 plan", "1 {}", "1 - born")
REPORTS = Group("reports", LEASE, 100, NOW)


@contextmanager
def locked(database: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else is in the middle of a write transaction."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.close()


def noting(notes: list[T], note: T) -> Callable[[sqlite3.Connection], bool]:
    """A call that leaves a note that it was made."""

    def make(connection: sqlite3.Connection) -> bool:
        notes.append(note)
        return True

    return make


def in_memory(making: bool) -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


async def kept_busy(
    thread: sqlite_thread.ConnectionThread, until: threading.Event
) -> asyncio.Future[bool]:
    """Has a call made that takes until the event is set, and waits until it has begun."""
    begun = threading.Event()

    def wait(connection: sqlite3.Connection) -> bool:
        begun.set()
        return until.wait(PATIENCE_S)

    call = asyncio.ensure_future(thread.call(wait, None, False))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    return call


BEFORE: set[threading.Thread] = set()
"""The threads of other tests: that of app.sync(), and of its store, live as long as the process."""


@pytest.fixture(autouse=True)
def _threads_of_others() -> None:
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def threads_of_stores() -> list[threading.Thread]:
    """The threads of SQLite stores that this test has opened."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("pyncette") and thread not in BEFORE
    ]


def threads() -> list[str]:
    return [thread.name for thread in threads_of_stores()]


def test_closing_leaves_no_thread_and_no_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            await store.watch(["reports"], lambda groups: None)
            await store.write([Write("reports", "a", DUE, ABSENT)], NOW)
            assert len(threads()) == 1

    asyncio.run(main())
    assert threads() == []
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.db"]


def test_an_opening_that_is_refused_leaves_no_thread(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(StoreMisconfiguredError):
            async with sqlite_repository(sqlite_database=tmp_path):
                pass

    asyncio.run(main())
    assert threads() == []


def test_calls_under_way_are_finished_before_the_store_closes(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            writes = [
                asyncio.ensure_future(
                    store.write([Write("reports", f"{number}", DUE, ABSENT)], NOW)
                )
                for number in range(1_500)
            ]
            await asyncio.sleep(0)
        assert await asyncio.gather(*writes) == [[Applied(NOW)]] * 1_500

    asyncio.run(main())


def test_the_log_does_not_grow_without_bounds(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(
            sqlite_database=tmp_path / "tasks.db", sqlite_synchronous="NORMAL"
        ) as store:
            big = DUE._replace(args="1 " + "x" * 10_000)
            for number in range(150):
                keys = [f"{number} {instance}" for instance in range(10)]
                await store.write([Write("reports", key, big, ABSENT) for key in keys], NOW)
            assert (tmp_path / "tasks.db").stat().st_size > 8_000_000
            assert (tmp_path / "tasks.db-wal").stat().st_size < 6_000_000

    asyncio.run(main())


def test_looking_for_what_is_due_needs_no_lock_when_nothing_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            await store.write([Write("reports", "a", DUE._replace(due_at=NOW + 1), ABSENT)], NOW)
            with locked(tmp_path / "tasks.db"):
                assert await store.claim([REPORTS], 100, NOW, "me") == Claimed([], [NOW + 1])
                assert (await store.get([("reports", "a")]))[0] is not None
                assert len((await store.scan("reports", Filter(), None, 10)).records) == 1

    asyncio.run(main())


def test_a_call_waits_for_a_lock_that_somebody_else_holds(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            with locked(tmp_path / "tasks.db") as other:
                write = asyncio.ensure_future(
                    store.write([Write("reports", "a", DUE, ABSENT)], NOW)
                )
                await asyncio.wait([write], timeout=0.05)
                assert not write.done()
                other.execute("COMMIT")
                assert await write == [Applied(NOW)]

    asyncio.run(main())


def test_a_lock_that_is_held_for_too_long_is_an_outage_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_thread, "BUSY_DEADLINE_S", 0.05)

    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            with locked(tmp_path / "tasks.db"):
                answers = await asyncio.gather(
                    store.write([Write("reports", "a", DUE, ABSENT)], NOW),
                    store.write([Write("reports", "b", DUE, ABSENT)], NOW),
                    return_exceptions=True,
                )
            for answer in answers:
                assert isinstance(answer, StoreUnavailableError)
                assert "tasks.db" in str(answer)
                assert "locked" in str(answer)
            assert await store.get([("reports", "a"), ("reports", "b")]) == [None, None]
            assert await store.write([Write("reports", "a", DUE, ABSENT)], NOW) == [Applied(NOW)]

    asyncio.run(main())


def test_one_who_commits_back_to_back_does_not_keep_another_out(tmp_path: Path) -> None:
    """History 22."""

    async def main() -> None:
        async with (
            sqlite_repository(sqlite_database=tmp_path / "tasks.db") as greedy,
            sqlite_repository(sqlite_database=tmp_path / "tasks.db") as modest,
        ):
            done = asyncio.Event()

            async def commit_back_to_back(store: SqliteStore, name: str) -> None:
                number = 0
                while not done.is_set():
                    number += 1
                    await store.write([Write(name, f"{number}", DUE, ABSENT)], NOW)

            # Several at once: there is always one waiting when a transaction ends.
            busy = [
                asyncio.ensure_future(commit_back_to_back(greedy, f"busy-{number}"))
                for number in range(20)
            ]
            async with realtime.timeout(PATIENCE_S):
                for number in range(50):
                    await modest.write([Write("modest", f"{number}", DUE, ABSENT)], NOW)
            done.set()
            await asyncio.gather(*busy)
            assert len((await modest.scan("modest", Filter(), None, 100)).records) == 50

    asyncio.run(main())


def test_a_change_made_by_another_program_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
            heard: asyncio.Queue[object] = asyncio.Queue()
            await store.watch(["reports"], heard.put_nowait)
            with locked(tmp_path / "tasks.db") as other:
                other.execute(
                    "INSERT INTO pyncette_tasks VALUES "
                    "('reports', 'a', 1, 1, NULL, 'scheduled', 0, '1 plan', '1 {}', '1 - born')"
                )
                other.execute("COMMIT")
            async with realtime.timeout(PATIENCE_S):
                assert await heard.get() is None

    asyncio.run(main())


def test_a_wake_is_told_in_the_same_opening_to_those_whom_it_concerns() -> None:
    async def main() -> None:
        async with sqlite_repository() as store:
            concerned: asyncio.Queue[object] = asyncio.Queue()
            unconcerned: asyncio.Queue[object] = asyncio.Queue()
            await store.watch(["reports", "others"], concerned.put_nowait)
            await store.watch(["others"], unconcerned.put_nowait)
            await store.write([Write("reports", "a", DUE, ABSENT)], NOW, wake=["reports"])
            assert concerned.get_nowait() == {"reports"}
            assert unconcerned.empty()

    asyncio.run(main())


def test_an_opening_that_is_cancelled_leaves_no_thread(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        with locked(database):
            opening = asyncio.ensure_future(
                sqlite_repository(sqlite_database=database).__aenter__()
            )
            await asyncio.wait([opening], timeout=0.05)
            assert not opening.done()
            [thread] = threads_of_stores()
            opening.cancel()
            await asyncio.wait([opening])
        await asyncio.to_thread(thread.join, PATIENCE_S)
        assert not thread.is_alive()

    asyncio.run(main())


def test_a_context_left_open_does_not_keep_the_process_alive() -> None:
    program = (
        "import asyncio\n"
        "from pyncette.sqlite import sqlite_repository\n"
        "async def main():\n"
        "    await sqlite_repository().__aenter__()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0


def test_urgent_calls_go_before_others_that_came_earlier() -> None:
    async def main() -> None:
        order: list[int] = []
        held = threading.Event()
        thread = sqlite_thread.ConnectionThread("a database", in_memory, None, "FULL", print)
        await thread.open()
        first = await kept_busy(thread, held)
        calls = [
            asyncio.ensure_future(thread.call(noting(order, number), None, number >= 700))
            for number in range(800)
        ]
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, *calls)
        await thread.close()
        assert order == [*range(700, 800), *range(700)]

    asyncio.run(main())


def test_a_call_that_is_cancelled_while_it_waits_is_not_made() -> None:
    async def main() -> None:
        made: list[str] = []
        held = threading.Event()
        thread = sqlite_thread.ConnectionThread("a database", in_memory, None, "FULL", print)
        await thread.open()
        first = await kept_busy(thread, held)
        cancelled = asyncio.ensure_future(thread.call(noting(made, "no"), None, True))
        kept = asyncio.ensure_future(thread.call(noting(made, "yes"), None, True))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, kept)
        await thread.close()
        assert made == ["yes"]

    asyncio.run(main())


def test_a_group_and_a_key_that_read_the_same_together_are_two_records() -> None:
    """History 37."""

    async def main() -> None:
        async with sqlite_repository() as store:
            writes = [Write("a:", "b", DUE, ABSENT), Write("a", ":b", DUE, ABSENT)]
            assert await store.write(writes, NOW) == [Applied(NOW)] * 2
            assert None not in await store.get([("a:", "b"), ("a", ":b")])

    asyncio.run(main())


WRITES_UNTIL_KILLED = """
import asyncio, sys
from pyncette.store.record import ABSENT, Put
from pyncette.sqlite import sqlite_repository
from pyncette.store import Group, Write

async def main():
    async with sqlite_repository(sqlite_database=sys.argv[1]) as store:
        put = Put(1, "scheduled", None, 0, "1 plan", "1 " + "x" * 500, "1 - born")
        for number in range(1_000_000):
            keys = [f"{number} {instance}" for instance in range(20)]
            await store.write([Write("reports", key, put, ABSENT) for key in keys], 1)
            await store.claim([Group("reports", 1_000, 5, 1)], 5, 1, f"token-{number}")
            print(number, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"
    acknowledged = 0
    for _ in range(3):
        database.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES_UNTIL_KILLED, str(database)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged >= 40:
                break
        process.kill()
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.stdout.close()
        process.wait()
        assert (tmp_path / "tasks.db-wal").exists(), "it was killed, not closed"

        async def main(batches: int) -> None:
            async with sqlite_repository(sqlite_database=database) as store:
                page = await store.scan("reports", Filter(), None, 1_000_000)
                keys = {record.key for record in page.records}
                wanted = {
                    f"{number} {instance}" for number in range(batches) for instance in range(20)
                }
                assert wanted <= keys
                # The batch that was under way is there as a whole, or not at all.
                assert len(keys) % 20 == 0
                claimed = [record for record in page.records if record.token is not None]
                assert len(claimed) >= 5 * batches
                left = await store.claim(
                    [Group("reports", LEASE, 1_000_000, NOW)], 1_000_000, NOW, "heir"
                )
                assert len(left.records) == len(keys)

        asyncio.run(main(acknowledged + 1))
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


def files_open_in(directory: Path) -> list[str]:
    """The files below a directory that this process has open."""
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # the one that lists them
            continue
        if target.startswith(str(directory)):
            opened.append(target)
    return opened


@pytest.mark.parametrize("times", [1, 2])
def test_a_closing_that_is_cancelled_ends_the_thread_and_closes_the_file(
    tmp_path: Path, times: int
) -> None:
    async def main() -> None:
        held = threading.Event()
        closing = asyncio.Event()

        async def use() -> None:
            async with sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store:
                await store.write([Write("reports", "a", DUE, ABSENT)], NOW)
                await kept_busy(store._thread, held)
                asyncio.get_running_loop().call_soon(closing.set)

        using = asyncio.ensure_future(use())
        async with realtime.timeout(PATIENCE_S):
            await closing.wait()
        for _ in range(times):
            using.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([using])
        assert using.cancelled()
        held.set()

    asyncio.run(main())
    for thread in threads_of_stores():
        thread.join(PATIENCE_S)
    assert threads() == []
    assert files_open_in(tmp_path) == []


def keys_in(database: Path) -> list[str]:
    """The keys in a file, which must be sound."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute('SELECT "key" FROM pyncette_tasks ORDER BY "key"').fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in rows]
    finally:
        connection.close()


async def add(store: SqliteStore, key: str) -> None:
    assert await store.write([Write("reports", key, DUE, ABSENT)], NOW) == [Applied(NOW)]


def make_database(database: Path, *keys: str) -> None:
    """A good database, closed."""

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            for key in keys:
                await add(store, key)

    asyncio.run(main())


def deleted(database: Path) -> None:
    database.unlink()


def deleted_with_its_log(database: Path) -> None:
    for path in database.parent.glob("tasks.db*"):
        path.unlink()


def moved_away(database: Path) -> None:
    database.rename(database.with_name("former.db"))


@pytest.mark.parametrize("lose", [deleted, deleted_with_its_log, moved_away])
def test_a_file_that_is_gone_is_an_outage_that_says_what_to_do(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            lose(database)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.write([Write("reports", "b", DUE, ABSENT)], NOW),
                lambda: store.claim([REPORTS], 100, NOW, "me"),
                lambda: store.claim([REPORTS], 0, NOW, "me"),
                lambda: store.get([("reports", "a")]),
                lambda: store.scan("reports", Filter(), None, 10),
            ]
            for _ in range(2):
                for call in calls:
                    with pytest.raises(StoreUnavailableError, match="Put it back, or restart") as e:
                        await call()
                    assert str(database) in str(e.value)
                    assert "there is no such file" in str(e.value)
            assert not database.exists()

    asyncio.run(main())
    assert threads() == []


def test_a_file_that_is_moved_away_takes_along_what_was_acknowledged_and_may_come_back(
    tmp_path: Path,
) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            moved_away(database)
            with pytest.raises(StoreUnavailableError):
                await add(store, "lost")
            assert keys_in(tmp_path / "former.db") == ["a"]
            (tmp_path / "former.db").rename(database)
            await add(store, "b")

    asyncio.run(main())
    assert keys_in(database) == ["a", "b"]


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_is_replaced_by_a_good_one_is_used_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: bool
) -> None:
    """The log of the former database stays at its path, and must not get into the new one."""
    database = tmp_path / "tasks.db"
    make_database(tmp_path / "backup.db", "restored")

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            for number in range(30):
                await add(store, f"{number:02}")
            if beside:
                deleted_with_its_log(database)
            (tmp_path / "backup.db").rename(database)
            page = await store.scan("reports", Filter(), None, 100)
            assert [record.key for record in page.records] == ["restored"]
            await add(store, "new")
            claimed = await store.claim([REPORTS], 100, NOW, "me")
            assert sorted(record.key for record in claimed.records) == ["new", "restored"]

    with caplog.at_level("WARNING"):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records if str(database) in record.message]
    assert keys_in(database) == ["new", "restored"]


@pytest.mark.parametrize("content", ["", "to whom it may concern " * 100, "another table"])
def test_a_file_that_is_replaced_by_a_useless_one_is_an_outage_and_not_changed(
    tmp_path: Path, content: str
) -> None:
    database = tmp_path / "tasks.db"
    if content == "another table":
        connection = sqlite3.connect(tmp_path / "useless")
        connection.execute("CREATE TABLE other (one)")
        connection.close()
    else:
        (tmp_path / "useless").write_text(content)
    before = (tmp_path / "useless").read_bytes()

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            (tmp_path / "useless").rename(database)
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="cannot be used"):
                    await add(store, "b")
            assert database.read_bytes() == before

    asyncio.run(main())


def test_a_file_is_not_replaced_while_another_process_still_uses_the_log_of_the_former(
    tmp_path: Path,
) -> None:
    database = tmp_path / "tasks.db"
    make_database(tmp_path / "backup.db", "restored")

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            other = sqlite3.connect(database, isolation_level=None)
            other.execute("BEGIN")
            other.execute("SELECT * FROM pyncette_tasks").fetchall()
            await add(store, "b")
            (tmp_path / "backup.db").rename(database)
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="Stop the workers"):
                    await add(store, "c")
            other.execute("ROLLBACK")
            await add(store, "c")
            other.close()

    asyncio.run(main())
    assert keys_in(database) == ["c", "restored"]


@pytest.mark.parametrize(
    "lost", [["tasks.db-wal"], ["tasks.db-shm"], ["tasks.db-wal", "tasks.db-shm"]]
)
def test_a_log_that_is_deleted_alone_loses_nothing(tmp_path: Path, lost: list[str]) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            for name in lost:
                (tmp_path / name).unlink()
            await add(store, "b")
            async with sqlite_repository(sqlite_database=database) as other:
                page = await other.scan("reports", Filter(), None, 10)
                assert [record.key for record in page.records] == ["a", "b"]

    asyncio.run(main())
    assert keys_in(database) == ["a", "b"]


def test_what_is_written_while_the_file_is_deleted_is_not_acknowledged(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:

            def delete(connection: sqlite3.Connection) -> bool:
                database.unlink()
                return True

            with pytest.raises(StoreUnavailableError, match="while it was written to"):
                await store._thread.call(None, delete, False)

    asyncio.run(main())


def test_watchers_are_told_when_the_file_was_replaced(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"
    make_database(tmp_path / "backup.db", "restored")

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            heard: asyncio.Queue[object] = asyncio.Queue()
            await store.watch(["reports"], heard.put_nowait)
            (tmp_path / "backup.db").rename(database)
            await store.claim([REPORTS], 0, NOW, "me")
            async with realtime.timeout(PATIENCE_S):
                assert await heard.get() is None

    asyncio.run(main())


@pytest.mark.parametrize("name", ["50% #1?.db", "file:tasks.db", "täglich 'x'.db", "%41.db"])
def test_a_path_means_the_file_of_this_very_name(tmp_path: Path, name: str) -> None:
    database = tmp_path / name
    make_database(database, "a")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert keys_in(database) == ["a"]


def test_a_relative_path_means_the_same_file_after_a_change_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with sqlite_repository(sqlite_database="tasks.db") as store:
            await add(store, "a")
            monkeypatch.chdir(tmp_path / "elsewhere")
            await add(store, "b")

    asyncio.run(main())
    assert keys_in(tmp_path / "tasks.db") == ["a", "b"]


def test_a_path_that_is_a_link_is_watched_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database = tmp_path / "tasks.db"
    database.symlink_to(tmp_path / "data" / "tasks.db")
    make_database(tmp_path / "data" / "backup.db", "restored")

    async def main() -> None:
        async with sqlite_repository(sqlite_database=database) as store:
            await add(store, "a")
            await add(store, "b")
            database.unlink()
            database.symlink_to(tmp_path / "data" / "backup.db")
            await add(store, "c")

    asyncio.run(main())
    assert keys_in(database) == ["c", "restored"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_get_their_answers(tmp_path: Path) -> None:
    async def main() -> None:
        eager = getattr(asyncio, "eager_task_factory")  # noqa: B009 - absent from 3.11
        asyncio.get_running_loop().set_task_factory(eager)
        async with (
            sqlite_repository(sqlite_database=tmp_path / "tasks.db") as store,
            realtime.timeout(PATIENCE_S),
        ):
            await asyncio.gather(
                *(asyncio.create_task(add(store, f"{number}")) for number in range(1_200))
            )
            claims = await asyncio.gather(
                *(
                    asyncio.create_task(store.claim([REPORTS], 100, NOW, f"{number}"))
                    for number in range(12)
                )
            )
        assert sum(len(claimed.records) for claimed in claims) == 1_200

    asyncio.run(main())
    assert threads() == []
