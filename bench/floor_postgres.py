"""The floor of the store in PostgreSQL: the bare driver claims 100, settles 100, and nothing else.

One connection, one table with the columns and the indexes of the store; no records, no queue, no
conditions beyond the key. What the whole scheduler reaches is judged against it, in the same run:

    python bench/floor_postgres.py postgresql://user:password@host/database [runs]
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from time import perf_counter

import asyncpg

from pyncette.postgres import schema_sql

BATCH = 100
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_INSERT = """\
INSERT INTO {table} SELECT 'reports', 'user-' || n, $1::bigint - $2 + n, $1::bigint - 1, NULL,
    'scheduled', 0, '1 at ' || $1, '1 {{"user":' || n || '}}', '1 ' || $1 || ' ' || md5(n::text)
FROM generate_series(1, $2::bigint) AS n"""
_CLAIM = """\
UPDATE {table} SET due_at = $2, version = greatest(version + 1, $1), token = $3,
    state = 'running', unfinished_attempts = unfinished_attempts + 1
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {table} WHERE "group" = 'reports' AND due_at <= $1 ORDER BY due_at
    LIMIT 100 FOR UPDATE SKIP LOCKED))
RETURNING "key", version, schedule, args, progress"""
_SETTLE = """\
DELETE FROM {table} AS t USING unnest($1::text[], $2::bigint[]) AS w("key", version)
WHERE t."group" = 'reports' AND t."key" = w."key" AND t.version = w.version AND t.token = $3"""


async def floor(url: str, runs: int = 20_000) -> float:
    """Runs per second: so many due one-off records claimed and deleted, a hundred at a time.

    Args:
        url: Of a database in which a table may be made; it is dropped in the end.
        runs: How many.
    """
    connection = await asyncpg.connect(url)
    table = f"floor_{secrets.token_hex(6)}"
    insert, claim, settle = (text.format(table=table) for text in (_INSERT, _CLAIM, _SETTLE))
    try:
        await connection.execute(schema_sql(table))
        await connection.execute(insert, NOW, runs)
        await connection.execute(f"VACUUM ANALYZE {table}")
        done = 0
        started = perf_counter()
        while done < runs:
            token = f"worker-{done}"
            rows = await connection.fetch(claim, NOW, NOW + LEASE, token)
            status = await connection.execute(
                settle, [row[0] for row in rows], [row[1] for row in rows], token
            )
            assert status == f"DELETE {len(rows)}", status
            done += len(rows)
        return runs / (perf_counter() - started)
    finally:
        await connection.execute(f"DROP TABLE IF EXISTS {table}")
        await connection.close()


def main() -> None:
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    for _ in range(3):
        print(f"PostgreSQL {asyncio.run(floor(sys.argv[1], runs)):>9,.0f} runs/s")


if __name__ == "__main__":
    main()
