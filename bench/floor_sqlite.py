"""The floor of the store in SQLite: the bare driver claims 100, settles 100, and nothing else.

One thread, one connection, one table with the columns and the index of the store; no event loop,
no records, no queue. What the whole scheduler reaches is judged against it, in the same run:

    python bench/floor_sqlite.py [runs]
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from pyncette.sqlite import MEMORY, schema_sql

BATCH = 100
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_INSERT = "INSERT INTO pyncette_tasks VALUES (?, ?, ?, ?, NULL, 'scheduled', 0, ?, ?, ?)"
_SELECT = (
    'SELECT "key", version, plan, args, progress FROM pyncette_tasks '
    "WHERE \"group\" = 'reports' AND due_at <= ? ORDER BY due_at, rowid LIMIT ?"
)
_TAKE = (
    "UPDATE pyncette_tasks SET due_at = ?, version = max(version + 1, ?), token = ?, "
    "state = 'running', starts = starts + 1 WHERE rowid IN ("
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


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as directory:
        for number in range(3):
            print(f"in memory    {floor(MEMORY, runs=runs):>9,.0f} runs/s")
            for synchronous in ("NORMAL", "FULL"):
                path = str(Path(directory, f"{synchronous}-{number}.db"))
                print(f"file {synchronous:7} {floor(path, synchronous, runs):>9,.0f} runs/s")


if __name__ == "__main__":
    main()
