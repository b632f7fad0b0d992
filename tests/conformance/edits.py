"""Changes of rows past the stores, with what each database's own client offers."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg
from asyncmy.errors import MySQLError
from tests.stores import mysql_place, postgres_place
from tests.stores.redis_place import client_at

from pyncette.redis.layout import Names, encoded
from pyncette.store import Identity
from pyncette.store.record import Record
from pyncette.testing.conformance import Place

_VALUE_ORDER = (
    "version",
    "due_at",
    "state",
    "unfinished_attempts",
    "token",
    "progress",
    "schedule",
    "args",
)
"""The columns in a record's value in Redis, divided by NUL."""


def edit_postgres(url: str, place: Place, identity: Identity, column: str, value: Any) -> bool:
    """Sets a column; the server casts the text to the column's type."""
    table = place.configuration["postgres_table_name"]
    group, key = identity
    literal = _quoted(value) if not isinstance(value, bytes) else f"'\\x{value.hex()}'::bytea"
    where = f""""group" = {_quoted(group)} AND "key" = {_quoted(key)}"""
    try:
        postgres_place.standing(url).run(f'UPDATE {table} SET "{column}" = {literal} WHERE {where}')
    except (asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


def edit_mysql(url: str, place: Place, identity: Identity, column: str, value: Any) -> bool:
    """Sets a column; the server casts the text to the column's type."""
    table = place.configuration["mysql_table_name"]
    group, key = identity
    literal = _quoted(value) if not isinstance(value, bytes) else f"x'{value.hex()}'"
    where = f"`group` = {_quoted(group)} AND `key` = {_quoted(key)}"
    try:
        mysql_place.run_sql(url, f"UPDATE {table} SET `{column}` = {literal} WHERE {where}")
    except MySQLError:
        return False
    return True


def edit_sqlite(path: str, identity: Identity, column: str, value: Any) -> bool:
    """Sets a column, which takes the value as it is."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        connection.execute(
            f'UPDATE pyncette_tasks SET "{column}" = ? WHERE "group" = ? AND "key" = ?',
            (value, *identity),
        )
    except (sqlite3.Error, OverflowError):
        return False
    finally:
        connection.close()
    return True


async def edit_redis(url: str, place: Place, identity: Identity, column: str, value: Any) -> bool:
    """Sets a part of the value of a record, and the score for its instant where it is one."""
    if column not in Record._fields or column == "key":
        return False
    group, key = identity
    due, records, *_ = Names(place.configuration["redis_namespace"]).of(group)
    part = b"" if value is None else value if isinstance(value, bytes) else encoded(str(value))
    async with client_at(url) as client:
        parts = (await client.hget(records, encoded(key))).split(b"\0", len(_VALUE_ORDER) - 1)
        parts[_VALUE_ORDER.index(column)] = part
        await client.hset(records, encoded(key), b"\0".join(parts))
        if column == "due_at" and isinstance(value, int | float):
            await client.zadd(due, {encoded(key): float(value)})
    return True


def _quoted(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + str(value).replace("'", "''") + "'"
