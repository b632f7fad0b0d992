"""The floor of the store in MySQL: the bare driver claims 100, settles 100, and nothing else.

One connection, one table with the columns and the index of the store; no records, no queue, no
conditions beyond the key, and the statements that a textbook has. What the whole scheduler reaches
is judged against it, in the same run. Beside it stands what each call of the store costs at the
same batch:

    python bench/floor_mysql.py mysql://user:password@host/database [runs]
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from time import perf_counter

import asyncmy

from pyncette.mysql import MysqlOptions, mysql_repository, schema_sql
from pyncette.store import Applied, Group, Write
from pyncette.store.record import ABSENT, Delete, Patch, Put, Record, State

BATCH = 100
COLUMNS = ", ".join(f"`{column}`" for column in Record._fields)
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_SESSION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_SELECT = """\
SELECT `key`, version, schedule, args, progress FROM {table}
WHERE `group` = 'reports' AND due_at <= %s ORDER BY due_at LIMIT 100 FOR UPDATE SKIP LOCKED"""
_TAKE = """\
UPDATE {table} SET due_at = %s, version = GREATEST(version + 1, %s), token = %s,
    state = 'running', unfinished_attempts = unfinished_attempts + 1
    WHERE `group` = 'reports' AND `key` IN ({keys})"""
_SETTLE = """\
DELETE FROM {table}
WHERE `group` = 'reports' AND `key` IN ({keys}) AND version = %s AND token = %s"""


async def _connect(url: str) -> asyncmy.Connection:
    host, port, user, password, database, tls = MysqlOptions(mysql_url=url).address()
    return await asyncmy.connect(
        host=host,
        port=port,
        user=user,
        password=password,
        database=database,
        ssl=tls,
        autocommit=True,
    )


async def floor(url: str, runs: int = 20_000) -> float:
    """Runs per second: so many due one-off records claimed and deleted, a hundred at a time.

    Args:
        url: Of a database in which a table may be made; it is dropped in the end.
        runs: How many.
    """
    connection = await _connect(url)
    cursor = connection.cursor()
    table = f"floor_{secrets.token_hex(6)}"
    try:
        await cursor.execute(_SESSION)
        await cursor.execute(schema_sql(table))
        for first in range(0, runs, BATCH):
            values = ", ".join(
                f"('reports', 'user-{number}', {NOW - runs + number}, {NOW - 1}, NULL, "
                f"'scheduled', 0, '1 at {NOW}', '1 {{\"user\":{number}}}', '1 {NOW} {number:010x}')"
                for number in range(first, first + BATCH)
            )
            await cursor.execute(f"INSERT INTO {table} ({COLUMNS}) VALUES {values}")
        done = 0
        started = perf_counter()
        while done < runs:
            token = f"worker-{done}"
            await cursor.execute("START TRANSACTION")
            await cursor.execute(_SELECT.format(table=table), (NOW,))
            rows = await cursor.fetchall()
            keys = ", ".join(f"'{row[0].decode()}'" for row in rows)
            take = _TAKE.format(table=table, keys=keys)
            await cursor.execute(take, (NOW + LEASE, NOW, token))
            await cursor.execute("COMMIT")
            settled = await cursor.execute(_SETTLE.format(table=table, keys=keys), (NOW, token))
            assert settled == len(rows) > 0
            done += len(rows)
        return runs / (perf_counter() - started)
    finally:
        await cursor.execute(f"DROP TABLE IF EXISTS {table}")
        await connection.ensure_closed()


async def calls(url: str, runs: int = 20_000) -> dict[str, float]:
    """Microseconds a record that the calls of the store take, a hundred records at a time.

    Half of the records are patched after their claim, as recurring ones are; the others deleted.
    """
    taken = {"insert": 0.0, "claim": 0.0, "patch": 0.0, "delete": 0.0}
    table = f"floor_{secrets.token_hex(6)}"
    async with mysql_repository(mysql_url=url, mysql_table_name=table) as store:

        async def write(kind: str, batch: list[Write], now: int) -> None:
            started = perf_counter()
            results = await store.write(batch, now)
            taken[kind] += perf_counter() - started
            assert all(type(result) is Applied for result in results)

        for first in range(0, runs, BATCH):
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
                for number in range(first, first + BATCH)
            }
            batch = [Write("reports", key, put, ABSENT) for key, put in puts.items()]
            await write("insert", batch, NOW - 1)
        for first in range(0, runs, BATCH):
            started = perf_counter()
            source = Group("reports", LEASE, BATCH, NOW)
            records, _ = await store.claim([source], BATCH, NOW, f"worker-{first}")
            taken["claim"] += perf_counter() - started
            assert len(records) == BATCH
            kind = "delete" if first % (2 * BATCH) else "patch"
            patch = Patch(NOW + 86_400_000_000 + first, State.SCHEDULED, 0, records[0].progress)
            change = Delete() if kind == "delete" else patch
            batch = [
                Write(record.group, record.key, change, record.version, record.token)
                for record in records
            ]
            await write(kind, batch, NOW)
    connection = await _connect(url)
    await connection.cursor().execute(f"DROP TABLE {table}")
    await connection.ensure_closed()
    shares = {"insert": 1.0, "claim": 1.0, "patch": 0.5, "delete": 0.5}
    return {kind: taken[kind] / (runs * share) * 1e6 for kind, share in shares.items()}


def main() -> None:
    url = sys.argv[1]
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    for _ in range(3):
        rate = asyncio.run(floor(url, runs))
        costs = asyncio.run(calls(url, runs))
        told = ", ".join(f"{kind} {cost:.1f}" for kind, cost in costs.items())
        print(f"{rate:>9,.0f} runs/s; µs a record through the store: {told}")


if __name__ == "__main__":
    main()
