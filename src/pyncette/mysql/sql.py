"""The statements of the store in MySQL and MariaDB, its table, and the encoding of batches.

**Each transaction is one statement**, so that no lock outlives it, even if this process ends. No
statement waits for a row that another transaction holds: claims and changes select their rows with
``SKIP LOCKED`` in a derived table, and the outer statement changes only these rows. Only an
insertion may wait, for a second, for another insertion of the same key.

These servers cannot return the changed rows. So a change applies to all rows of its batch or to
none (a window function counts the rows that were found), and the number of changed rows tells
which. It is never zero if a row was found, since every change increases the version.

Every table is read by a named index. A server prefers to scan a small table; the statement would
then read other rows, and wait for the transactions that hold them.

A batch is sent as one JSON text. Keys are compared as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyncette.mysql.connection import Connection
from pyncette.store.record import Delete, Patch, Put, State
from pyncette.store.sql.rows import COLUMNS, RARE, UNFINISHED_MAX, VERSION_MAX

SUBQUERIES_MAX: Final = 500
"""Maximum groups of one statement; a statement may have some thousands of columns."""

_SHORT_MAX: Final = 1_000
"""Texts up to this length stay in memory during a statement."""

# Keys are bytes, so that no collation confuses two of them. Group and key have at most 1,000 bytes
# together, and fit into an index, for which InnoDB allows 3,072.
SCHEMA: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    `group`  VARBINARY(1000) NOT NULL,
    `key`    VARBINARY(1000) NOT NULL,
    due_at   BIGINT,
    version  BIGINT NOT NULL,
    token    VARCHAR(1000),
    state    VARCHAR(20) NOT NULL,
    unfinished_attempts INT NOT NULL,
    schedule MEDIUMTEXT NOT NULL,
    args     LONGTEXT NOT NULL,
    progress MEDIUMTEXT NOT NULL,
    rare     VARCHAR(20) AS (CASE WHEN {rare} THEN state END) VIRTUAL,
    PRIMARY KEY (`group`, `key`),
    KEY due (`group`, due_at),
    KEY rare (`group`, rare),
    CHECK (version > 0 AND version < 4611686018427387904),
    CHECK (unfinished_attempts >= 0 AND unfinished_attempts < 2147483647),
    CHECK (COALESCE(HEX(CONVERT(`key` USING utf8mb4)), '') = HEX(`key`))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4 COLLATE = utf8mb4_bin"""

# A row may have been edited by hand to any value of its columns. It must not make a statement fail,
# because that would affect other rows. A version of 0 or less would mean ABSENT or ANY. A version
# or a count that is too large is repaired before it overflows.
VERSION: Final = "GREATEST(r.version, 1)"
_NUMBERS: Final = {
    "due_at": "r.due_at",
    "version": VERSION,
    "unfinished_attempts": "r.unfinished_attempts",
}
ALL_COLUMNS: Final = ", ".join(
    f"CONVERT(r.`{column}` USING utf8mb4)"
    if column in ("group", "key")
    else _NUMBERS.get(column, f"r.`{column}`")
    for column in COLUMNS
)

# The same if a text may not be UTF-8: MariaDB accepts surrogates as characters.
BYTES: Final = ", ".join(
    _NUMBERS.get(column, f"CAST(r.`{column}` AS BINARY)") for column in COLUMNS
)

# The clock of the server, in microseconds. It does not change during a statement.
CLOCK: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"

UNFINISHED: Final = " AND r.unfinished_attempts <= {max}"

# Columns of a table of that name in the database, but for those that it computes, and its engine.
LAYOUT: Final = """\
SELECT c.column_name, t.engine FROM information_schema.columns AS c
JOIN information_schema.tables AS t USING (table_schema, table_name)
WHERE c.table_schema = DATABASE() AND c.table_name = '{table}'
    AND COALESCE(c.generation_expression, '') = '' ORDER BY c.ordinal_position"""

# The rows of a batch, in its order, and the records of the same keys, by the primary key.
BATCH: Final = "JSON_TABLE({json}, '$[*]' COLUMNS (number FOR ORDINALITY, {columns})) AS j"
BY_KEY: Final = """\
{table} AS r FORCE INDEX (PRIMARY)
    ON r.`group` = CAST(j.`group` AS BINARY) AND r.`key` = CAST(j.`key` AS BINARY)"""

# The due records of one group, by the index on (group, due_at).
DUE_OF_GROUP: Final = """\
(SELECT r.`group`, r.`key`, {lease} AS lease FROM {table} AS r FORCE INDEX (due)
WHERE r.`group` = {group} AND r.due_at >= {since} AND r.due_at <= {before}{allowed}
ORDER BY r.due_at LIMIT {limit} FOR UPDATE SKIP LOCKED)"""

# The due records of the keys, by the primary key.
DUE_OF_KEYS: Final = """\
(SELECT r.`group`, r.`key`, j.lease FROM {batch}
STRAIGHT_JOIN {by_key} AND r.due_at <= {due}{allowed}
LIMIT {limit} FOR UPDATE {of_rows} SKIP LOCKED)"""

# Claims the due records.
CLAIM: Final = """\
UPDATE {picked} AS q STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY)
    ON t.`group` = q.`group` AND t.`key` = q.`key`
SET t.state = '{running}', t.token = {token}, t.due_at = {now} + q.lease,
    t.unfinished_attempts = LEAST(GREATEST(t.unfinished_attempts, 0), {unfinished_max}) + 1,
    t.version = IF(t.version < {version_max}, GREATEST(t.version + 1, {now}), {now})"""

# The records that a token holds; groups by the index on (group, due_at), keys by the primary key.
HELD_OF_GROUPS: Final = """\
SELECT j.number, {columns} FROM {batch}
STRAIGHT_JOIN {table} AS r FORCE INDEX (due)
    ON r.`group` = CAST(j.`group` AS BINARY) AND r.due_at = j.lease_end
WHERE CAST(r.token AS BINARY) = {token}{held_allowed}"""
HELD_OF_KEYS: Final = """\
SELECT j.number, {columns} FROM {batch}
STRAIGHT_JOIN {by_key} AND r.due_at = j.lease_end
WHERE CAST(r.token AS BINARY) = {token}{held_allowed}"""

# The soonest instant of one group, by the index on (group, due_at). Each group is a range of its
# own: with a join, MySQL would first read all records without an instant.
NEXT_DUE: Final = """\
(SELECT r.due_at FROM {table} AS r FORCE INDEX (due)
WHERE r.`group` = {group} AND r.due_at >= {since} ORDER BY r.due_at LIMIT 1)"""
NEXT_DUE_OF_KEYS: Final = """\
SELECT j.number, r.due_at FROM {batch} STRAIGHT_JOIN {by_key}"""

# The rows of a batch that are as expected and not locked, by the primary key.
EXPECTED: Final = """\
(SELECT j.*, COUNT(*) OVER () AS found FROM {batch}
STRAIGHT_JOIN {by_key} AND {version} = j.expect
    AND (j.expected_token IS NULL
        OR CAST(r.token AS BINARY) = CAST(j.expected_token AS BINARY))
FOR UPDATE {of_rows} SKIP LOCKED) AS q
STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY) ON t.`group` = CAST(q.`group` AS BINARY)
    AND t.`key` = CAST(q.`key` AS BINARY) AND q.found = {size}"""

# Creates absent records, in the order of keys. Existing records are not touched: an insertion would
# wait for the transaction that changes the record.
INSERT: Final = """\
INSERT INTO {table} (`group`, `key`, due_at, version, token, state, unfinished_attempts, schedule,
    args, progress)
SELECT CAST(q.`group` AS BINARY), CAST(q.`key` AS BINARY), q.due_at, q.version, q.token, q.state,
    q.unfinished_attempts, q.schedule, q.args, q.progress
FROM (SELECT j.*, COUNT(*) OVER () AS found FROM {batch}
    LEFT JOIN {by_key} WHERE r.`key` IS NULL) AS q
WHERE q.found = {size} ORDER BY q.number"""

# Many records, by the primary key; which of them can be locked now; and which exist, or are being
# created in a transaction that has not ended.
GET: Final = "SELECT j.number, {columns} FROM {batch} STRAIGHT_JOIN {by_key}"
LOCKABLE: Final = """\
SELECT j.number FROM {batch} STRAIGHT_JOIN {by_key}
FOR UPDATE {of_rows} SKIP LOCKED"""
DIRTILY: Final = "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"
THERE: Final = "SELECT j.number FROM {batch} STRAIGHT_JOIN {by_key}"

# The last row that a filtered page may examine, and a page; by the primary key.
LAST_EXAMINED: Final = """\
SELECT CONVERT(r.`key` USING utf8mb4) FROM {table} AS r FORCE INDEX (PRIMARY)
WHERE {keys} ORDER BY r.`key` LIMIT 1 OFFSET {examined}"""
PAGE: Final = """\
SELECT {columns} FROM {table} AS r FORCE INDEX (PRIMARY)
WHERE {wanted} ORDER BY r.`key` LIMIT {limit}"""

# A count within so many rows: by the primary key, by the index of due rows, or by that of rare
# states. How many rows were looked at, and how many of them match. Where no state is asked for, the
# index has all that is read.
COUNT: Final = """\
SELECT COUNT(*), COALESCE(SUM({matches}), 0) FROM (
    SELECT {read} FROM {table} AS r FORCE INDEX ({index})
    WHERE {keys} ORDER BY {order} LIMIT {examined}
) AS r"""

# A page of one rare state, by its index: in the order of keys, which end every index.
PAGE_OF_RARE: Final = """\
SELECT {columns} FROM {table} AS r FORCE INDEX (rare)
WHERE r.rare = {state} AND {wanted} ORDER BY r.`key` LIMIT {limit}"""

TEXT: Final = "text"
KEY_COLUMNS: Final[Mapping[str, str]] = {"group": TEXT, "key": TEXT}
_EXPECTED_COLUMNS: Final = {**KEY_COLUMNS, "expect": "BIGINT", "expected_token": TEXT}

_RUNNING: Final = State.RUNNING.value
_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, eq=False)
class Kind:
    """Changes that one statement makes.

    Attributes:
        statement: The statement.
        columns: The columns of its batch: each one's type, or that it is a text.
    """

    statement: str
    columns: Mapping[str, str]


DELETION: Final = Kind("DELETE t FROM {expected}", _EXPECTED_COLUMNS)
_PATCHING: Final = Kind(
    "UPDATE {expected} SET t.version = q.version, t.due_at = q.due_at, t.state = q.state, "
    "t.unfinished_attempts = q.unfinished_attempts, t.progress = COALESCE(q.progress, t.progress)",
    {
        **_EXPECTED_COLUMNS,
        "version": "BIGINT",
        "due_at": "BIGINT",
        "state": TEXT,
        "unfinished_attempts": "INT",
        "progress": TEXT,
    },
)
_WHOLE_COLUMNS: Final = {
    **_EXPECTED_COLUMNS,
    "version": "BIGINT",
    "due_at": "BIGINT",
    "state": TEXT,
    "token": TEXT,
    "unfinished_attempts": "INT",
    "schedule": TEXT,
    "args": TEXT,
    "progress": TEXT,
}
_REPLACEMENT: Final = Kind(
    "UPDATE {expected} SET t.version = q.version, t.due_at = q.due_at, t.state = q.state, "
    "t.token = q.token, t.unfinished_attempts = q.unfinished_attempts, "
    "t.schedule = q.schedule, t.args = q.args, "
    "t.progress = q.progress",
    _WHOLE_COLUMNS,
)
CREATION: Final = Kind(INSERT, _WHOLE_COLUMNS)
KINDS: Final[Mapping[type, Kind]] = {Delete: DELETION, Patch: _PATCHING, Put: _REPLACEMENT}


def schema_sql(table_name: str) -> str:
    """The statement that creates the table and its index."""
    return SCHEMA.format(table=table_name, rare=RARE) + ";\n"


def names_of(table: str, mariadb: bool) -> dict[str, Any]:
    """The values of the placeholders that are the same in every statement on a table."""
    return {
        "table": table,
        "columns": BYTES if mariadb else ALL_COLUMNS,
        "by_key": BY_KEY.format(table=table),
        # MySQL needs the name of the table whose rows are locked; MariaDB does not accept it.
        "of_rows": "" if mariadb else "OF r",
        "running": _RUNNING,
        "version": VERSION,
        "version_max": VERSION_MAX,
        "unfinished_max": UNFINISHED_MAX,
    }


def batch_of(
    connection: Connection, rows: Sequence[Sequence[Any]], columns: Mapping[str, str]
) -> str:
    """Rows as a table in a statement. Short texts are declared with a short length."""
    declared = []
    values = [*zip(*rows, strict=True)]
    for at, (name, kind) in enumerate(columns.items()):
        if kind is TEXT:
            longest = max(map(len, filter(None, values[at])), default=0)
            size = f"VARCHAR({longest or 1})" if longest <= _SHORT_MAX else "LONGTEXT"
            declared.append(f"`{name}` {size} CHARACTER SET utf8mb4 PATH '$[{at}]'")
        else:
            declared.append(f"`{name}` {kind} PATH '$[{at}]'")
    return BATCH.format(json=connection.escape(_to_json(rows)), columns=", ".join(declared))
