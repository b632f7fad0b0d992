"""The floor of the store in SQLite: the bare driver claims 100, settles 100, and nothing else.

One thread, one connection, one table with the columns and the index of the store; no event loop,
no records, no queue. What the whole scheduler reaches is judged against it, in the same run. Beside
it stands what each call of the store costs at the same batch, with records, queue and thread:

    python bench/floor_sqlite.py [runs]
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from pyncette.sqlite import MEMORY, schema_sql, sqlite_repository
from pyncette.store import Applied, Group, Write
from pyncette.store.record import ABSENT, Delete, Patch, Put, State

BATCH = 100
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_INSERT = "INSERT INTO pyncette_tasks VALUES (?, ?, ?, ?, NULL, 'scheduled', 0, ?, ?, ?)"
_SELECT = (
    'SELECT "key", version, schedule, args, progress FROM pyncette_tasks '
    "WHERE \"group\" = 'reports' AND due_at <= ? ORDER BY due_at, rowid LIMIT ?"
)
_TAKE = (
    "UPDATE pyncette_tasks SET due_at = ?, version = max(version + 1, ?), token = ?, "
    "state = 'running', unfinished_attempts = unfinished_attempts + 1 WHERE rowid IN ("
    "SELECT rowid FROM pyncette_tasks WHERE \"group\" = 'reports' AND due_at <= ? "
    "ORDER BY due_at, rowid LIMIT ?)"
)
_SETTLE = (
    "DELETE FROM pyncette_tasks "
    'WHERE "group" = \'reports\' AND "key" = ? AND version = ? AND token = ?'
)


def floor(path: str, synchronous: str = "NORMAL", runs: int = 20_000) -> float:
    """Runs per second: so many due one-off records claimed and deleted, a hundred at a time.

    Args:
        path: Of a file that does not exist yet, or ``:memory:``.
        synchronous: ``NORMAL`` or ``FULL``.
        runs: How many.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(schema_sql())
        connection.execute("BEGIN")
        connection.executemany(
            _INSERT,
            (
                (
                    "reports",
                    f"user-{number}",
                    NOW - runs + number,
                    NOW - 1,
                    f"1 at {NOW}",
                    f'1 {{"user":{number}}}',
                    f"1 {NOW} {number:010x}",
                )
                for number in range(runs)
            ),
        )
        connection.execute("COMMIT")
        done = 0
        started = perf_counter()
        while done < runs:
            token = f"worker-{done}"
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(_SELECT, (NOW, BATCH)).fetchall()
            connection.execute(_TAKE, (NOW + LEASE, NOW, token, NOW, BATCH))
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            settled = connection.executemany(_SETTLE, [(row[0], NOW, token) for row in rows])
            assert settled.rowcount == len(rows) > 0
            connection.execute("COMMIT")
            done += len(rows)
        return runs / (perf_counter() - started)
    finally:
        connection.close()


async def calls(path: str, synchronous: str = "NORMAL", runs: int = 20_000) -> dict[str, float]:
    """Microseconds a record that the calls of the store take, a hundred records at a time.

    Half of the records are patched after their claim, as recurring ones are; the others deleted.
    """
    taken = {"insert": 0.0, "claim": 0.0, "patch": 0.0, "delete": 0.0}
    async with sqlite_repository(sqlite_database=path, sqlite_synchronous=synchronous) as store:

        async def write(kind: str, batch: list[Write], now: int) -> None:
            started = perf_counter()
            results = await store.write(batch, now)
            taken[kind] += perf_counter() - started
            assert all(type(result) is Applied for result in results)

        for start in range(0, runs, BATCH):
            puts = {
                f"user-{number}": Put(
                    NOW - runs + number,
                    State.SCHEDULED,
                    None,
                    0,
                    f"1 at {NOW}",
                    f'1 {{"user":{number}}}',
                    f"1 {NOW} {number:010x}",
                )
                for number in range(start, start + BATCH)
            }
            batch = [Write("reports", key, put, ABSENT) for key, put in puts.items()]
            await write("insert", batch, NOW - 1)
        for start in range(0, runs, BATCH):
            source = Group("reports", LEASE, BATCH, NOW)
            started = perf_counter()
            records, _ = await store.claim([source], BATCH, NOW, f"worker-{start}")
            taken["claim"] += perf_counter() - started
            assert len(records) == BATCH
            kind = "delete" if start % (2 * BATCH) else "patch"
            tomorrow = NOW + 86_400_000_000 + start
            batch = [
                Write(
                    record.group,
                    record.key,
                    Delete()
                    if kind == "delete"
                    else Patch(tomorrow, State.SCHEDULED, 0, record.progress),
                    record.version,
                    record.token,
                )
                for record in records
            ]
            await write(kind, batch, NOW)
    shares = {"insert": 1.0, "claim": 1.0, "patch": 0.5, "delete": 0.5}
    return {kind: taken[kind] / (runs * share) * 1e6 for kind, share in shares.items()}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as directory:
        for number in range(3):
            for name, synchronous in (("memory", "NORMAL"), ("NORMAL", "NORMAL"), ("FULL", "FULL")):
                path = MEMORY if name == "memory" else str(Path(directory, f"{name}-{number}.db"))
                rate = floor(path, synchronous, runs)
                path = path if path == MEMORY else f"{path}-calls"
                costs = asyncio.run(calls(path, synchronous, runs))
                told = ", ".join(f"{kind} {cost:.1f}" for kind, cost in costs.items())
                print(f"{name:7} {rate:>9,.0f} runs/s; µs a record through the store: {told}")


if __name__ == "__main__":
    main()
