"""The statements of one claim, and the reading of their results.

Knows sources, and how a claim is written in SQL; sends nothing. The texts of the statements are in
``pyncette.mysql.sql``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyncette.mysql.connection import Connection, Results
from pyncette.mysql.sql import (
    CLAIM,
    CLOCK,
    DUE_OF_GROUP,
    DUE_OF_KEYS,
    HELD_OF_GROUPS,
    HELD_OF_KEYS,
    KEY_COLUMNS,
    NEXT_DUE,
    NEXT_DUE_OF_KEYS,
    SUBQUERIES_MAX,
    TEXT,
    UNFINISHED,
    batch_of,
)
from pyncette.store import Group, Key, Source
from pyncette.store.record import Record

RecordOf = Callable[[tuple[Any, ...]], Record]


class Asked:
    """The statements of a claim, and the reading of their results.

    Args:
        connection: Quotes the values.
        names: The placeholders that are the same in every statement.
        sources: The sources; at least one.
        since: For each source, the instant at which to begin to read.
        now, token, bounded, unfinished_max: See ``pyncette.store.Store.claim``.
    """

    def __init__(
        self,
        connection: Connection,
        names: Mapping[str, Any],
        sources: Sequence[Source],
        since: Sequence[int],
        now: int,
        token: str,
        bounded: bool,
        unfinished_max: int | None,
    ) -> None:
        self._connection = connection
        self._now = now
        self._since = since
        self._due = "LEAST({before}, " + CLOCK + ")" if bounded else "{before}"
        self._names = {
            **names,
            "token": connection.escape(token),
            "now": now,
            "due": self._due.format(before=now),
            "allowed": UNFINISHED.format(max=unfinished_max) if unfinished_max is not None else "",
            # The claim itself has increased the count.
            "held_allowed": UNFINISHED.format(max=unfinished_max + 1)
            if unfinished_max is not None
            else "",
        }
        self._size = len(sources)
        self._keys_first = isinstance(sources[0], Key)
        self._groups: list[tuple[int, Group]] = []
        self._keys: list[tuple[int, Key]] = []
        for at, source in enumerate(sources):
            if isinstance(source, Key):
                self._keys.append((at, source))
            else:
                self._groups.append((at, source))

    def take(self, room: Sequence[int], limit: int) -> list[str]:
        """The statement that takes due records; none if the limit is 0."""
        if limit <= 0:
            return []
        escape = self._connection.escape
        parts = [
            DUE_OF_GROUP.format(
                **self._names,
                group=escape(source.group),
                since=self._since[at],
                before=self._due.format(before=source.before),
                lease=source.lease,
                limit=min(room[at], limit),
            )
            for at, source in self._groups
            if room[at] > 0
        ]
        keys = [(key.group, key.key, key.lease) for at, key in self._keys if room[at] > 0]
        if keys:
            batch = batch_of(self._connection, keys, {**KEY_COLUMNS, "lease": "BIGINT"})
            due = DUE_OF_KEYS.format(**self._names, batch=batch, limit=limit)
            parts.insert(0 if self._keys_first else len(parts), due)
        if not parts:
            return []
        due = parts[0]
        if len(parts) > 1:
            due = f"(SELECT * FROM ({' UNION ALL '.join(parts)}) AS p LIMIT {limit})"
        return [CLAIM.format(**self._names, picked=due)]

    def held(self) -> list[str]:
        """The statements that read the records that the token holds."""
        statements = []
        if self._groups:
            ends = [(group.group, self._now + group.lease) for _, group in self._groups]
            batch = batch_of(self._connection, ends, {"group": TEXT, "lease_end": "BIGINT"})
            statements.append(HELD_OF_GROUPS.format(**self._names, batch=batch))
        if self._keys:
            rows = [(key.group, key.key, self._now + key.lease) for _, key in self._keys]
            batch = batch_of(self._connection, rows, {**KEY_COLUMNS, "lease_end": "BIGINT"})
            statements.append(HELD_OF_KEYS.format(**self._names, batch=batch))
        return statements

    def next_due(self) -> list[str]:
        """The statements that read the soonest instant of each source."""
        escape = self._connection.escape
        soonest = [
            NEXT_DUE.format(**self._names, group=escape(group.group), since=self._since[at])
            for at, group in self._groups
        ]
        statements = [
            "SELECT " + ", ".join(soonest[first : first + SUBQUERIES_MAX])
            for first in range(0, len(soonest), SUBQUERIES_MAX)
        ]
        if self._keys:
            batch = batch_of(self._connection, [key[:2] for _, key in self._keys], KEY_COLUMNS)
            statements.append(NEXT_DUE_OF_KEYS.format(**self._names, batch=batch))
        return statements

    def read_held(self, results: Results, record: RecordOf) -> list[tuple[int, Record]]:
        """Removes the answers of ``held`` from the results; returns records and their sources."""
        records = []
        for sources in (self._groups, self._keys):
            if sources:
                records += [(sources[row[0] - 1][0], record(row[1:])) for row in results.pop(0)]
        return records

    def read_next_due(self, results: Results) -> list[int | None]:
        """Removes the answers of ``next_due`` from the results, and returns them."""
        soonest: list[int | None] = [None] * self._size
        for first in range(0, len(self._groups), SUBQUERIES_MAX):
            [row] = results.pop(0)
            for (at, _), due_at in zip(self._groups[first:], row, strict=False):
                soonest[at] = due_at
        if self._keys:
            for number, due_at in results.pop(0):
                soonest[self._keys[number - 1][0]] = due_at
        return soonest
