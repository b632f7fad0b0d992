"""The floor of the store in DynamoDB: the bare driver claims 100, settles 100, and nothing else.

One client, one table with the items and the index of the store; a query for what is due, four
requests of 25 statements that take it, four that delete it. What the whole scheduler reaches is
judged against it, in the same run. Credentials are those of the environment, anything will do for
DynamoDB Local:

    python bench/floor_dynamodb.py http://localhost:8000 [runs]
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from time import perf_counter
from typing import Any

from pyncette.dynamodb import table_definition
from pyncette.dynamodb.requests import open_client

BATCH = 100
STATEMENTS = 25
NOW = 1_764_000_000_000_000
LEASE = 60_000_000

_INSERT = (
    "INSERT INTO \"{table}\" VALUE {{'group': ?, 'key': ?, 'due_at': ?, 'version': ?, 'state': ?, "
    "'unfinished_attempts': ?, 'schedule': ?, 'args': ?, 'progress': ?}}"
)
_TAKE = (
    'UPDATE "{table}" SET "due_at" = ? SET "version" = ? SET "token" = ? SET "state" = ? '
    'SET "unfinished_attempts" = ? '
    'WHERE "group" = ? AND "key" = ? AND "version" = ? AND "due_at" = ? '
    "RETURNING ALL NEW *"
)
_SETTLE = (
    'DELETE FROM "{table}" WHERE "group" = ? AND "key" = ? AND "version" = ? AND "token" = ? '
    "RETURNING ALL OLD *"
)


def _text(value: object) -> dict[str, str]:
    return {"S": str(value)}


def _number(value: int) -> dict[str, str]:
    return {"N": str(value)}


async def floor(url: str, runs: int = 5_000) -> float:
    """Runs per second: so many due one-off records claimed and deleted, a hundred at a time.

    Args:
        url: Of a service where a table may be made; it is deleted in the end.
        runs: How many.
    """
    table = f"floor-{secrets.token_hex(6)}"
    insert, take, settle = (text.format(table=table) for text in (_INSERT, _TAKE, _SETTLE))
    async with open_client(os.environ.get("AWS_DEFAULT_REGION", "eu-west-1"), url, 30) as client:

        async def execute(statement: str, rows: list[list[Any]]) -> list[Any]:
            answers = await asyncio.gather(
                *(
                    client.batch_execute_statement(
                        Statements=[
                            {"Statement": statement, "Parameters": row}
                            for row in rows[start : start + STATEMENTS]
                        ]
                    )
                    for start in range(0, len(rows), STATEMENTS)
                )
            )
            items = [response["Item"] for answer in answers for response in answer["Responses"]]
            assert len(items) == len(rows)
            return items

        await client.create_table(**table_definition(table))
        await client.get_waiter("table_exists").wait(TableName=table)
        try:
            for start in range(0, runs, STATEMENTS):
                await client.batch_execute_statement(
                    Statements=[
                        {
                            "Statement": insert,
                            "Parameters": [
                                *(_text("reports"), _text(f"user-{number}")),
                                *(_number(NOW - runs + number), _number(NOW - 1)),
                                *(_text("scheduled"), _number(0), _text(f"1 at {NOW}")),
                                *(_text(f'1 {{"user":{number}}}'), _text(f"1 {NOW} {number:010x}")),
                            ],
                        }
                        for number in range(start, start + STATEMENTS)
                    ]
                )
            done = 0
            started = perf_counter()
            while done < runs:
                token = f"worker-{done}"
                due = await client.query(
                    TableName=table,
                    IndexName="due",
                    KeyConditionExpression="#group = :group AND due_at <= :now",
                    ExpressionAttributeNames={"#group": "group"},
                    ExpressionAttributeValues={":group": _text("reports"), ":now": _number(NOW)},
                    Limit=BATCH,
                )
                rows = [
                    [
                        *(_number(NOW + LEASE), _number(NOW), _text(token), _text("running")),
                        *(_number(1), item["group"], item["key"], item["version"], item["due_at"]),
                    ]
                    for item in due["Items"]
                ]
                items = await execute(take, rows)
                await execute(
                    settle,
                    [
                        [item["group"], item["key"], item["version"], item["token"]]
                        for item in items
                    ],
                )
                done += len(items)
            return runs / (perf_counter() - started)
        finally:
            await client.delete_table(TableName=table)


def main() -> None:
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5_000
    for _ in range(3):
        print(f"DynamoDB {asyncio.run(floor(sys.argv[1], runs)):>9,.0f} runs/s", flush=True)


if __name__ == "__main__":
    main()
