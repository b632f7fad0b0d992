"""Every statement of the store in PostgreSQL, each with the index that serves it.

No statement waits for a row that another transaction holds: claims and changes skip it (``SKIP
LOCKED``), creations give up after a moment. A batch is sent as arrays, one for each column. This
module knows only the dialect; ``pyncette.postgres.table`` sends the statements and reads the
results.
"""

from __future__ import annotations

from typing import Final

from pyncette.store.record import State
from pyncette.store.sql.rows import COLUMNS, RARE, UNFINISHED_MAX, VERSION_MAX

# Every update changes the indexed due_at, so no update is "heap only". The free space of fillfactor
# lets the new version of a row stay on its page. Vacuum runs early and often, because the index
# entries of old versions lie where claims begin to read.
SCHEMA: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    "group"  text COLLATE "C" NOT NULL,
    "key"    text COLLATE "C" NOT NULL,
    due_at   bigint,
    version  bigint NOT NULL CHECK (version > 0 AND version < 4611686018427387904),
    token    text COLLATE "C",
    state    text COLLATE "C" NOT NULL,
    unfinished_attempts integer NOT NULL CHECK (unfinished_attempts BETWEEN 0 AND 1073741823),
    schedule text NOT NULL,
    args     text NOT NULL,
    progress text NOT NULL,
    PRIMARY KEY ("group", "key")
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);
CREATE INDEX IF NOT EXISTS {table}_due ON {table} ("group", due_at) WHERE due_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS {table}_rare ON {table} ("group", state, "key") WHERE {rare};
"""

_RUNNING: Final = State.RUNNING.value

# A row may have been edited by hand to any value of its columns. It must not make a statement fail,
# because that would affect other rows. A version of 0 or less would mean ABSENT or ANY. A version
# or a count that is too large is repaired before it overflows.
_VERSION: Final = 'greatest(r."version", 1)'
_NEXT_VERSION: Final = (
    f"CASE WHEN t.version < {VERSION_MAX} THEN greatest(t.version + 1, {{now}}) ELSE {{now}} END"
)
_COLUMNS: Final = ", ".join(
    _VERSION if column == "version" else f'r."{column}"' for column in COLUMNS
)

# Columns of a table of that name on the search path; by the indexes of the catalogue.
LAYOUT: Final = """\
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""

# The schema of that table, and the database.
_PLACE: Final = """\
SELECT relnamespace::regnamespace::text, current_database()::text FROM pg_class
WHERE oid = to_regclass($1)"""

# Creates the table unless it exists. If several workers start together, one creates it while the
# others wait.
MAKE: Final = "SELECT pg_advisory_xact_lock(8247610394451120483);\n{schema}"

# Claims due records: groups by the index on (group, due_at), keys by the primary key. Returns also
# the soonest instant of each source among the records that it did not take, in rows without a key
# at the end. A bounded claim takes only records that are due by the clock of this server, too. The
# rows are updated by their ctid, because a join was once planned as a scan of the table.
_CLAIM: Final = """\
WITH sources AS MATERIALIZED (
    SELECT u."group", u."key", u.since, u.share, u.lease, CASE WHEN $11::boolean
        THEN least(u.before, {clock}) ELSE u.before END AS before
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS u("group", "key", since, before, share, lease)
), picked AS MATERIALIZED (
    SELECT p.place FROM sources AS s CROSS JOIN LATERAL (
        SELECT d.place FROM (
            SELECT r.ctid AS place FROM {table} AS r
            WHERE s."key" IS NULL AND r."group" = s."group"
                AND r.due_at >= s.since AND r.due_at <= s.before
                AND ($12::bigint IS NULL OR r.unfinished_attempts <= $12)
            ORDER BY r.due_at LIMIT s.share FOR UPDATE SKIP LOCKED
        ) AS d
        UNION ALL
        SELECT d.place FROM (
            SELECT r.ctid AS place FROM {table} AS r
            WHERE r."group" = s."group" AND r."key" = s."key" AND r.due_at <= s.before
                AND ($12::bigint IS NULL OR r.unfinished_attempts <= $12)
            FOR UPDATE SKIP LOCKED
        ) AS d
    ) AS p LIMIT $7
), taken AS (
    UPDATE {table} AS t SET state = '{running}', token = $9,
        unfinished_attempts = least(greatest(t.unfinished_attempts, 0), {unfinished_max}) + 1,
        version = {next_version},
        due_at = $8 + coalesce($10::bigint, (
            SELECT s.lease FROM sources AS s
            WHERE s."group" = t."group" AND (s."key" IS NULL OR s."key" = t."key")))
    WHERE t.ctid = ANY(ARRAY(SELECT place FROM picked))
    RETURNING t."group", t."key", t.due_at, t.version, t.unfinished_attempts, t.schedule, t.args,
        t.progress
)
SELECT * FROM taken
UNION ALL
SELECT NULL, NULL, coalesce((
    SELECT r.due_at FROM {table} AS r
    WHERE s."key" IS NULL AND r."group" = s."group" AND r.due_at >= s.since
        AND r.ctid <> ALL(ARRAY(SELECT place FROM picked))
    ORDER BY r.due_at LIMIT 1
), (
    SELECT r.due_at FROM {table} AS r
    WHERE r."group" = s."group" AND r."key" = s."key"
        AND r.ctid <> ALL(ARRAY(SELECT place FROM picked))
)), NULL, NULL, NULL, NULL, NULL
FROM sources AS s"""

# The clock of the server, in microseconds.
_CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

# The records of a claim whose answer was lost; by the index on (group, due_at), or the primary key.
_HELD: Final = """\
SELECT h.* FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
    AS s("group", "key", lease_end, share)
CROSS JOIN LATERAL (
    (SELECT {columns} FROM {table} AS r
    WHERE s."key" IS NULL AND r."group" = s."group" AND r.due_at = s.lease_end AND r.token = $5
        AND ($7::bigint IS NULL OR r.unfinished_attempts <= $7)
    LIMIT s.share)
    UNION ALL
    (SELECT {columns} FROM {table} AS r
    WHERE r."group" = s."group" AND r."key" = s."key" AND r.due_at = s.lease_end AND r.token = $5
        AND ($7::bigint IS NULL OR r.unfinished_attempts <= $7))
) AS h LIMIT $6"""

# The ctids of the rows that are as expected and not locked, by the primary key.
_EXPECTED: Final = """\
SELECT w.*, l.place
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]{arrays})
    WITH ORDINALITY AS w("group", "key", expect, expected_token{names}, number)
CROSS JOIN LATERAL (
    SELECT r.ctid AS place FROM {table} AS r
    WHERE r."group" = w."group" AND r."key" = w."key"
        AND (w.expect = -1 OR {version} = w.expect)
        AND (w.expected_token IS NULL OR r.token = w.expected_token)
    FOR UPDATE SKIP LOCKED
) AS l"""

# Returns their numbers only if some rows were not as expected.
_DELETE: Final = """\
WITH gone AS (
    DELETE FROM {table} AS t WHERE t.ctid = ANY(ARRAY(SELECT w.place FROM ({expected}) AS w))
    RETURNING t."group", t."key"
)
SELECT count(*), CASE WHEN count(*) < cardinality($1::text[]) THEN array_agg("group") END,
    CASE WHEN count(*) < cardinality($1::text[]) THEN array_agg("key") END
FROM gone"""

_UPDATE: Final = """\
WITH changed AS (
    UPDATE {table} AS t SET version = {next_version}, {assignments}
    FROM ({expected}) AS w WHERE t.ctid = w.place RETURNING w.number, t.version
)
SELECT array_agg(number), array_agg(version) FROM changed"""

# Creates absent records, in the order of keys. An existing row is not touched: an insertion would
# wait for the transaction that changes it. If another transaction is creating the row, the
# insertion waits for a moment.
_INSERT: Final = """\
WITH made AS (
    INSERT INTO {table} SELECT w."group", w."key", w.due_at, $3, w.token, w.state,
        w.unfinished_attempts, w.schedule, w.args, w.progress
    FROM (SELECT set_config('lock_timeout', '100ms', true) AS timeout) AS s
    CROSS JOIN unnest($1::text[], $2::text[], $4::bigint[], $5::text[], $6::text[], $7::integer[],
        $8::text[], $9::text[], $10::text[]) WITH ORDINALITY
        AS w("group", "key", due_at, state, token, unfinished_attempts, schedule, args, progress,
            number)
    WHERE s.timeout IS NOT NULL AND NOT EXISTS (
        SELECT FROM {table} AS r WHERE r."group" = w."group" AND r."key" = w."key")
    ORDER BY w.number
    ON CONFLICT DO NOTHING
    RETURNING "group", "key"
)
SELECT array_agg("group"), array_agg("key") FROM made"""

# Many records, by the primary key.
_GET: Final = """\
SELECT {columns} FROM unnest($1::text[], $2::text[]) AS w("group", "key")
JOIN {table} AS r ON r."group" = w."group" AND r."key" = w."key\""""

# The last row that a filtered page may examine, by the primary key.
_LAST_EXAMINED: Final = """\
SELECT r."key" FROM {table} AS r
WHERE r."group" = $1 AND r."key" > $2 AND r."key" >= $3 AND r."key" < $4
ORDER BY r."key" OFFSET $5 LIMIT 1"""

# A range of keys, by the primary key.
_PAGE: Final = """\
SELECT {columns} FROM {table} AS r
WHERE r."group" = $1 AND r."key" > $2 AND r."key" >= $3 AND r."key" < $4 AND r."key" <= $5
    AND ($6::bigint IS NULL OR r.due_at < $6) AND ($7::text[] IS NULL OR r.state = ANY($7))
ORDER BY r."key" LIMIT $8"""

# The same of one rare state, by its index.
_PAGE_OF_RARE: Final = """\
SELECT {columns} FROM {table} AS r
WHERE r."group" = $1 AND r."key" > $2 AND r."key" >= $3 AND r."key" < $4 AND r.state = $5
    AND {rare} AND ($6::bigint IS NULL OR r.due_at < $6)
ORDER BY r."key" LIMIT $7"""

# Counts, each within so many rows: by the primary key, by the index of due rows, by that of rare
# states. How many rows were looked at, and how many of them match.
_COUNTED: Final = """\
SELECT count(*), count(*) FILTER (WHERE ($1::bigint IS NULL OR coalesce(q.due_at < $1, false))
    AND ($2::text[] IS NULL OR q.state = ANY($2)))
FROM ({rows}) AS q"""
_ROWS_OF_KEYS: Final = """\
SELECT r.due_at, r.state FROM {table} AS r
WHERE r."group" = $3 AND r."key" >= $4 AND r."key" < $5 ORDER BY r."key" LIMIT $6"""
_ROWS_DUE: Final = """\
SELECT r.due_at, r.state FROM {table} AS r
WHERE r."group" = $3 AND r.due_at < $1::bigint ORDER BY r.due_at LIMIT $4"""
# In any state: no more is read than the index.
_COUNTED_DUE: Final = """\
SELECT count(*), count(*)
FROM (SELECT r.due_at FROM {table} AS r
    WHERE r."group" = $2 AND r.due_at < $1::bigint ORDER BY r.due_at LIMIT $3) AS q"""
_ROWS_OF_RARE: Final = """\
SELECT r.due_at, r.state FROM {table} AS r
WHERE r."group" = $3 AND {rare} AND r.state = ANY($2::text[]) LIMIT $4"""

# The columns of each kind of change: the type of the array, and the new value of the column.
_PATCHED: Final[dict[str, tuple[str, str]]] = {
    "due_at": ("bigint", "w.due_at"),
    "state": ("text", "w.state"),
    "unfinished_attempts": ("integer", "w.unfinished_attempts"),
    "progress": ("text", "coalesce(w.progress, t.progress)"),
}
_PUT: Final[dict[str, tuple[str, str]]] = {
    "due_at": ("bigint", "w.due_at"),
    "state": ("text", "w.state"),
    "token": ("text", "w.token"),
    "unfinished_attempts": ("integer", "w.unfinished_attempts"),
    "schedule": ("text", "w.schedule"),
    "args": ("text", "w.args"),
    "progress": ("text", "w.progress"),
}


def schema_sql(table_name: str) -> str:
    """The statements that create the table and its index."""
    return SCHEMA.format(table=table_name, rare=RARE)


class Statements:
    """The statements on one table.

    Args:
        table: A lower-case ASCII identifier.
    """

    def __init__(self, table: str) -> None:
        self.layout = LAYOUT
        self.place = _PLACE
        self.make = MAKE.format(schema=schema_sql(table))
        self.claim = _CLAIM.format(
            table=table,
            running=_RUNNING,
            clock=_CLOCK,
            next_version=_NEXT_VERSION.format(now="$8"),
            unfinished_max=UNFINISHED_MAX,
        )
        self.clock = f"SELECT {_CLOCK}"
        self.held = _HELD.format(table=table, columns=_COLUMNS)
        self.delete = _DELETE.format(table=table, expected=_expected(table, {}, 5))
        self.patch = _update(table, _PATCHED)
        self.put = _update(table, _PUT)
        self.insert = _INSERT.format(table=table)
        self.get = _GET.format(table=table, columns=_COLUMNS)
        self.last_examined = _LAST_EXAMINED.format(table=table)
        self.page = _PAGE.format(table=table, columns=_COLUMNS)
        self.page_of_rare = _PAGE_OF_RARE.format(table=table, columns=_COLUMNS, rare=f"r.{RARE}")
        self.count_due = _COUNTED_DUE.format(table=table)
        self.count, self.count_due_in_states, self.count_rare = (
            _COUNTED.format(rows=rows.format(table=table, rare=f"r.{RARE}"))
            for rows in (_ROWS_OF_KEYS, _ROWS_DUE, _ROWS_OF_RARE)
        )


def _expected(table: str, columns: dict[str, tuple[str, str]], first: int) -> str:
    """The statement that finds the rows of a batch, with further columns of the batch."""
    arrays = "".join(
        f", ${number}::{kind}[]" for number, (kind, _) in enumerate(columns.values(), first)
    )
    names = "".join(f", {name}" for name in columns)
    return _EXPECTED.format(table=table, arrays=arrays, names=names, version=_VERSION)


def _update(table: str, columns: dict[str, tuple[str, str]]) -> str:
    """The statement that changes these columns."""
    assignments = ", ".join(f"{name} = {value}" for name, (_, value) in columns.items())
    expected = _expected(table, columns, 6)
    return _UPDATE.format(
        table=table,
        next_version=_NEXT_VERSION.format(now="$5"),
        assignments=assignments,
        expected=expected,
    )
