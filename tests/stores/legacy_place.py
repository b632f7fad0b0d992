"""Stores as release 1.x left them, on the real servers: filled row by row, and looked into."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg
from tests.stores import dynamodb_place, mysql_place, postgres_place, redis_place

from pyncette.dynamodb import dynamodb_repository
from pyncette.mysql import mysql_repository
from pyncette.postgres import postgres_repository
from pyncette.redis import redis_repository
from pyncette.sqlite import sqlite_repository
from pyncette.store import RepositoryFactory

T = TypeVar("T")

HOLDER = UUID("3f2f4f3e-8a51-4d0f-9d7c-0a8e5a6c1b11")


class LegacyTask(NamedTuple):
    """What 1.x keeps of a task; the fields are those of the columns of its tables."""

    name: str
    parent: str | None
    execute_after: datetime | None
    locked_until: datetime | None = None
    spec: str | None = None


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def spec_of(name: str, args: dict[str, Any] | None = None, **schedule: Any) -> str:
    """The text that 1.x keeps with an instance."""
    options = {"schedule": None, "interval": None, "execute_at": None, "timezone": None}
    return json.dumps({"name": name, **options, **schedule, "extra_args": args or {}})


class Legacy(ABC):
    """A store of 1.x.

    Attributes:
        factory: Of the store of this release.
        options: Of the migration.
        new_options: Of the app that follows.
    """

    factory: RepositoryFactory
    options: dict[str, Any]
    new_options: dict[str, Any]

    @abstractmethod
    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        """Puts tasks there."""

    @abstractmethod
    def everything(self) -> object:
        """All that is there, tables beside it included: equal where nothing was changed."""

    @abstractmethod
    def old_names(self) -> set[str]:
        """The names of the tasks in the old data after a migration; none where they are gone."""

    def remove(self, *names: str) -> None:  # noqa: B027
        """Removes tasks, where filling does not take the place of what is there."""

    def raw(self, name: str, **fields: Any) -> None:
        """Puts fields there that 1.x would not have written."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        """The options of the migration as arguments of the command."""
        return [f"--{option.replace('_', '-')}={value}" for option, value in self.options.items()]


class LegacySqlite(Legacy):
    """Instants are text, as Python's driver writes datetimes."""

    factory = staticmethod(sqlite_repository)

    def __init__(self, database: Path) -> None:
        self.table = "pyncette_tasks"
        self.options = self.new_options = {"sqlite_database": str(database)}
        self.database = database
        self.run(
            "CREATE TABLE pyncette_tasks (name PRIMARY KEY, parent_name, locked_until timestamp, "
            "locked_by, execute_after timestamp, task_spec)",
            "CREATE INDEX due_tasks_pyncette_tasks ON pyncette_tasks "
            "(parent_name, MAX(COALESCE(locked_until, 0), COALESCE(execute_after, 0)))",
        )

    def run(self, *statements: str) -> list[Any]:
        """The rows of the last statement."""
        connection = sqlite3.connect(self.database)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            connection.commit()
            return rows
        finally:
            connection.close()

    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        connection = sqlite3.connect(self.database)
        connection.executemany(
            "INSERT INTO pyncette_tasks VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    task.name,
                    task.parent,
                    task.locked_until and task.locked_until.isoformat(" "),
                    task.locked_until and str(HOLDER),
                    task.execute_after and task.execute_after.isoformat(" "),
                    task.spec,
                )
                for task in tasks
            ),
        )
        connection.commit()
        connection.close()

    def raw(self, name: str, **fields: Any) -> None:
        connection = sqlite3.connect(self.database)
        columns = {"name": name, **fields}
        connection.execute(
            f"INSERT INTO pyncette_tasks ({', '.join(columns)}) "
            f"VALUES ({', '.join('?' * len(columns))})",
            tuple(columns.values()),
        )
        connection.commit()
        connection.close()

    def indexes(self) -> set[str]:
        """The names of the indexes of the application's table."""
        table = f"tbl_name = '{self.table}'"
        rows = self.run(f"SELECT name FROM sqlite_schema WHERE type = 'index' AND {table}")
        return {row[0] for row in rows}

    def everything(self) -> object:
        return (
            self.run("SELECT * FROM sqlite_schema"),
            self.run("SELECT * FROM pyncette_tasks ORDER BY rowid"),
        )

    def remove(self, *names: str) -> None:
        self.run(*(f"DELETE FROM pyncette_tasks WHERE name = '{name}'" for name in names))

    def old_names(self) -> set[str]:
        if not self.run("SELECT 1 FROM sqlite_schema WHERE name = 'pyncette_tasks_1x'"):
            return set()
        return {row[0] for row in self.run("SELECT name FROM pyncette_tasks_1x")}


class LegacyPostgres(Legacy):
    """The table in PostgreSQL."""

    factory = staticmethod(postgres_repository)

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = postgres_place.new_table()
        self.options = self.new_options = {
            "postgres_url": url,
            "postgres_table_name": self.table,
        }
        self.run(
            f"CREATE TABLE {self.table} (name text PRIMARY KEY, parent_name text, "
            "locked_until timestamptz, locked_by uuid, execute_after timestamptz, task_spec json)",
            f"CREATE INDEX due_tasks_{self.table} ON {self.table} "
            "(parent_name, GREATEST(locked_until, execute_after))",
        )

    def run(self, *statements: str) -> list[Any]:
        """The rows of the last statement."""
        return postgres_place.run_sql(self.url, *statements)

    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        rows = [
            (
                task.name,
                task.parent,
                task.locked_until,
                task.locked_until and HOLDER,
                task.execute_after,
                task.spec,
            )
            for task in tasks
        ]

        async def main() -> None:
            connection = await asyncpg.connect(self.url, statement_cache_size=0)
            try:
                await connection.fetch(
                    f"INSERT INTO {self.table} SELECT * FROM unnest($1::text[], $2::text[], "
                    "$3::timestamptz[], $4::uuid[], $5::timestamptz[], $6::json[])",
                    *map(list, zip(*rows, strict=True)),
                )
            finally:
                await connection.close()

        asyncio.run(main())

    def indexes(self) -> set[str]:
        """The names of the indexes of the application's table."""
        rows = self.run(f"SELECT indexname FROM pg_indexes WHERE tablename = '{self.table}'")
        return {row[0] for row in rows}

    def everything(self) -> object:
        like = f"relname LIKE '%{self.table}%'"
        return (
            self.run(f"SELECT relname::text FROM pg_class WHERE {like} ORDER BY 1"),
            self.run(f"SELECT t::text FROM {self.table} AS t ORDER BY 1"),
        )

    def remove(self, *names: str) -> None:
        self.run(*(f"DELETE FROM {self.table} WHERE name = '{name}'" for name in names))

    def old_names(self) -> set[str]:
        if not self.run(f"SELECT 1 WHERE to_regclass('{self.table}_1x') IS NOT NULL"):
            return set()
        return {row[0] for row in self.run(f"SELECT name FROM {self.table}_1x")}

    def drop(self) -> None:
        """Leaves nothing behind."""
        self.run(*(f"DROP TABLE IF EXISTS {self.table}{end}" for end in ("", "_1x", "_2x")))


class LegacyMysql(Legacy):
    """The table in MySQL or MariaDB, which has no indexes on expressions."""

    factory = staticmethod(mysql_repository)

    def __init__(self, url: str, mariadb: bool) -> None:
        self.url = url
        self.table = mysql_place.new_table()
        self.options = self.new_options = {"mysql_url": url, "mysql_table_name": self.table}
        self.run(
            f"CREATE TABLE {self.table} (name varchar(256) PRIMARY KEY, "
            "parent_name varchar(256), locked_until double, locked_by varchar(256), "
            "execute_after double, task_spec text)"
        )
        if not mariadb:
            self.run(
                f"CREATE INDEX due_tasks_{self.table} ON {self.table} (parent_name, "
                "(GREATEST(COALESCE(locked_until, 0), COALESCE(execute_after, 0))))"
            )

    def run(self, *statements: str) -> list[Any]:
        """The rows of the last statement."""
        rows = mysql_place.run_sql(self.url, *statements)[-1]
        return list(rows) if isinstance(rows, (list, tuple)) else []

    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        for some in in_parts(tasks, 1_000):
            self.run(f"INSERT INTO {self.table} VALUES {', '.join(map(_mysql_row, some))}")

    def everything(self) -> object:
        return (
            self.run(f"SHOW TABLES LIKE '{self.table}%'"),
            self.run(f"SELECT * FROM {self.table} ORDER BY name"),
        )

    def remove(self, *names: str) -> None:
        self.run(*(f"DELETE FROM {self.table} WHERE name = '{name}'" for name in names))

    def old_names(self) -> set[str]:
        if not self.run(f"SHOW TABLES LIKE '{self.table}\\_1x'"):
            return set()
        return {row[0] for row in self.run(f"SELECT name FROM {self.table}_1x")}

    def drop(self) -> None:
        """Leaves nothing behind."""
        self.run(*(f"DROP TABLE IF EXISTS {self.table}{end}" for end in ("", "_1x", "_2x")))


def _mysql_row(task: LegacyTask) -> str:
    def text(value: object) -> str:
        if value is None:
            return "NULL"
        return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"

    def seconds(value: datetime | None) -> str:
        return "NULL" if value is None else repr(value.timestamp())

    return (
        f"({text(task.name)}, {text(task.parent)}, {seconds(task.locked_until)}, "
        f"{text(task.locked_until and HOLDER)}, {seconds(task.execute_after)}, {text(task.spec)})"
    )


class LegacyRedis(Legacy):
    """A hash for each task, and a sorted set of what is due for each template."""

    factory = staticmethod(redis_repository)

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = redis_place.new_namespace()
        self.new_namespace = redis_place.new_namespace()
        self.options = {
            "redis_url": url,
            "redis_namespace": self.namespace,
            "to_namespace": self.new_namespace,
        }
        self.new_options = {"redis_url": url, "redis_namespace": self.new_namespace}

    def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What is answered to each command."""

        async def main() -> list[Any]:
            async with redis_place.client_at(self.url) as client:
                pipeline = client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute())

        return asyncio.run(main())

    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        commands: list[tuple[Any, ...]] = []
        for task in tasks:
            key = f"pyncette:{self.namespace}:task:{task.name}"
            fields: dict[str, Any] = {
                "execute_after": task.execute_after and task.execute_after.isoformat(),
                "locked_until": task.locked_until and task.locked_until.isoformat(),
                "locked_by": task.locked_until and str(HOLDER),
                "task_spec": task.spec,
            }
            pairs = [part for field, value in fields.items() if value for part in (field, value)]
            commands.append(("HSET", key, "version", "1", *pairs))
            if task.execute_after is not None:
                index = f"pyncette:{self.namespace}:index"
                index += "" if task.parent is None else f":{task.parent}"
                due = max(filter(None, (task.execute_after, task.locked_until)))
                commands.append(("ZADD", index, 0, f"{due.isoformat()}_{key}"))
        self.send(commands)

    def raw(self, name: str, **fields: Any) -> None:
        fields.pop("parent_name", None)
        pairs = [part for pair in fields.items() for part in pair]
        self.send([("HSET", f"pyncette:{self.namespace}:task:{name}", *pairs)])

    def _keys(self, pattern: str) -> list[bytes]:
        keys: list[bytes] = []
        cursor: Any = 0
        while True:
            [(cursor, found)] = self.send([("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)])
            keys += found
            if int(cursor) == 0:
                return sorted(keys)

    def everything(self) -> object:
        keys = self._keys(f"*{self.namespace}*")
        new = self._keys(f"*{self.new_namespace}*")
        hashes = [key for key in keys if b":task:" in key]
        sets = [key for key in keys if key not in hashes]
        return (
            keys,
            new,
            self.send([("HGETALL", key) for key in hashes]),
            self.send([("ZRANGE", key, 0, -1) for key in sets]),
        )

    def old_names(self) -> set[str]:
        head = f"pyncette:{self.namespace}:task:"
        return {key.decode()[len(head) :] for key in self._keys(f"{head}*")}

    def drop(self) -> None:
        """Leaves nothing behind."""
        for pattern in (f"*{self.namespace}*", f"*{self.new_namespace}*"):
            for some in in_parts(self._keys(pattern), 500):
                self.send([("UNLINK", *some)])


class LegacyDynamoDB(Legacy):
    """The table in DynamoDB, in which another application has its tasks, too."""

    factory = staticmethod(dynamodb_repository)

    def __init__(self, url: str) -> None:
        self.url = url
        self.table, self.new_table = dynamodb_place.new_table(), dynamodb_place.new_table()
        common = {
            "dynamodb_endpoint": url,
            "dynamodb_region_name": dynamodb_place.REGION,
            "dynamodb_partition_prefix": "ours",
        }
        self.options = {**common, "dynamodb_table_name": self.table, "to_table": self.new_table}
        self.new_options = {**common, "dynamodb_table_name": self.new_table}
        names = ("partition_id", "task_id", "ready_at")
        keys = [
            {"AttributeName": "partition_id", "KeyType": "HASH"},
            {"AttributeName": "task_id", "KeyType": "RANGE"},
        ]
        self.ask(
            "CreateTable",
            TableName=self.table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in names],
            KeySchema=keys,
            LocalSecondaryIndexes=[
                {
                    "IndexName": "ready_at",
                    "KeySchema": [keys[0], {"AttributeName": "ready_at", "KeyType": "RANGE"}],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
        )
        self._put([self._item("theirs:mail", "mail:theirs", {"execute_after": "soon"})])

    def ask(self, operation: str, **parameters: Any) -> Any:
        """The answer to a request."""
        return dynamodb_place.request(self.url, operation, **parameters)

    def _item(self, partition: str, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        texts = {"partition_id": partition, "task_id": name, "ready_at": f"x_{name}", **fields}
        item = {key: {"S": value} for key, value in texts.items() if value is not None}
        return {**item, "version": {"N": "1"}}

    def _put(self, items: Iterable[dict[str, Any]]) -> None:
        for some in in_parts(items, 25):
            puts = [{"PutRequest": {"Item": item}} for item in some]
            self.ask("BatchWriteItem", RequestItems={self.table: puts})

    def fill(self, tasks: Iterable[LegacyTask]) -> None:
        self._put(
            self._item(
                f"ours:{task.parent or ''}",
                task.name,
                {
                    "execute_after": task.execute_after and task.execute_after.isoformat(),
                    "locked_until": task.locked_until and task.locked_until.isoformat(),
                    "locked_by": task.locked_until and str(HOLDER),
                    "task_spec": task.spec,
                },
            )
            for task in tasks
        )

    def raw(self, name: str, **fields: Any) -> None:
        parent = fields.pop("parent_name", None)
        self._put([self._item(f"ours:{parent or ''}", name, fields)])

    def everything(self) -> object:
        return self.ask("ListTables")["TableNames"].count(self.new_table), self._items()

    def _items(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        start: dict[str, Any] = {}
        while True:
            answer = self.ask("Scan", TableName=self.table, **start)
            items += answer.get("Items", ())
            if "LastEvaluatedKey" not in answer:
                return items
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def old_names(self) -> set[str]:
        return {
            item["task_id"]["S"]
            for item in self._items()
            if item["partition_id"]["S"].startswith("ours:")
        }

    def drop(self) -> None:
        """Leaves nothing behind."""
        for table in (self.table, self.new_table):
            self.ask("DeleteTable", TableName=table)


@contextmanager
def legacy_at(store: str, directory: Path, url: Callable[[str], str]) -> Iterator[Legacy]:
    """An empty store of 1.x; what was put there is removed afterwards.

    Args:
        store: One of the names of the servers, or ``sqlite``.
        directory: For files.
        url: The URL of a server.
    """
    if store == "sqlite":
        yield LegacySqlite(directory / "pyncette.db")
        return
    makers: dict[str, Callable[[str], Any]] = {
        "postgres": LegacyPostgres,
        "pgbouncer": LegacyPostgres,
        "mysql": lambda server: LegacyMysql(server, mariadb=False),
        "mariadb": lambda server: LegacyMysql(server, mariadb=True),
        "redis": LegacyRedis,
        "redis-sentinel": LegacyRedis,
        "valkey": LegacyRedis,
        "dynamodb": LegacyDynamoDB,
    }
    legacy = makers[store](url(store))
    try:
        yield legacy
    finally:
        legacy.drop()
