"""The run history in Redis: a few sorted sets, whose members are in the order of bytes.

The tasks are divided among ``PARTS`` parts, by their names. Each part is one key in a slot of its
own, however many tasks and instances there are. All its members have the score 0. The first byte
says what follows; a place is the two numbers of an attempt's place in time, of eight bytes each:

====== ===========================================================
``a``  place, the attempt (JSON)
``t``  task, NUL, place
``i``  task, NUL, instance, NUL, place
``f``  place of an attempt that has not succeeded
``g``  task, NUL, place of an attempt that has not succeeded
``m``  minute (eight bytes), task, NUL, the numbers of the total
``n``  task, NUL, minute, the numbers of the total
``b``  place: a batch was written that has totals alone in this part
====== ===========================================================

One key for a part, since scripts with a key that does not exist are refused in a slot that moves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final
from zlib import crc32

from pyncette.redis.connection import Argument, Command, Lane
from pyncette.redis.layout import Names, encoded, slot_of
from pyncette.redis.topology import Call, Outcome, Script, Topology
from pyncette.store.history import (
    KEEP,
    SUCCEEDED,
    TOTALS_MAX,
    RowsPage,
    RunFilter,
    RunRow,
    TotalRow,
    examined,
    page_of,
)
from pyncette.store.packed_history import (
    PLACE_BYTES,
    number_bytes,
    number_in,
    place_bytes,
    place_in,
    row_of,
    text_of,
    unreadable,
)
from pyncette.store.sql.history import FIRST, RunIndex, Selection, selected

PARTS: Final = 8

EXPIRES_AFTER_US: Final = 86_400_000_000
"""How much longer than attempts are kept a part stays, if no worker removes anything any more."""

BATCH_KNOWN_US: Final = 3_600_000_000
"""For how long a part remembers that a batch was written which has only totals there."""

_APPEND: Final = Script("append")
_RUNS: Final = Script("runs")

_PREFIXES: Final = {
    RunIndex.ALL: b"a",
    RunIndex.TASK: b"t",
    RunIndex.INSTANCE: b"i",
    RunIndex.FAILED: b"f",
    RunIndex.TASK_FAILED: b"g",
}


class RedisHistory:
    """See ``pyncette.store.history.History``.

    Args:
        topology: The servers.
        names: The names of the namespace.
        now: Asks the server for its time.
        answers: Returns the answers to calls, or raises the error of the first one without.
    """

    def __init__(
        self,
        topology: Topology,
        names: Names,
        now: Callable[[], Awaitable[int | None]],
        answers: Callable[[Iterable[Outcome]], list[list[Any]]],
    ) -> None:
        self._topology = topology
        self._keys = [names.history(part) for part in range(PARTS)]
        self._slots = [slot_of(key) for key in self._keys]
        self._now = now
        self._answers = answers
        self._next = 0

    async def prepare(self, keep: int = KEEP) -> None:
        """Nothing has to be created."""

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        if not runs:
            return
        rows_of: dict[int, list[RunRow]] = {}
        totals_of: dict[int, list[TotalRow]] = {}
        for row in runs:
            rows_of.setdefault(_part_of(row.task), []).append(row)
        for total in totals:
            totals_of.setdefault(_part_of(total.task), []).append(total)
        calls = []
        for part in sorted({*rows_of, *totals_of}):
            rows = rows_of.get(part, [])
            if rows:
                shown, forgotten = _attempt(rows[0]), b""
            else:
                shown = b"b" + place_bytes(*runs[0][:2])
                forgotten = b"b" + number_bytes(runs[0].ended_at - BATCH_KNOWN_US)
            members = [member for row in rows for member in _members(row)]
            arguments: list[Argument] = [shown, forgotten, len(members), *members]
            for minute, task, *numbers in totals_of.get(part, ()):
                arguments += (*_total_prefixes(minute, task), *numbers)
            calls.append(Call(self._slots[part], _APPEND, (1, self._keys[part], *arguments)))
        await self._perform(calls)

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        selection, most = selected(where, cursor), examined(where, limit)
        prefix = _prefix(selection)
        ends = (
            b"(" + prefix + place_bytes(*selection.end),
            b"[" + prefix + number_bytes(selection.since),
        )
        direct = selection.by is RunIndex.ALL
        found = await self._rows(_parts_of(where.task), "ZREVRANGEBYLEX", ends, most, direct)
        found.sort(key=lambda row: row[:2], reverse=True)
        return page_of(found[:most], where, limit, most)

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        prefix = b"m" if task is None else b"n" + encoded(task) + b"\0"
        calls = [
            self._call(
                part,
                "ZREVRANGEBYLEX",
                b"(" + prefix + number_bytes(until),
                b"[" + prefix + number_bytes(since),
                "LIMIT",
                0,
                TOTALS_MAX,
            )
            for part in _parts_of(task)
        ]
        found = [
            total
            for members in await self._perform(calls)
            for member in members
            if (total := _total(member, task)) is not None
        ]
        found.sort(key=lambda total: total[:2], reverse=True)
        return found[:TOTALS_MAX]

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        if task is not None:
            prefix = _prefix(Selection(RunIndex.TASK, task, None, FIRST, (0, 0)))
            ends = (b"[" + prefix, b"(" + prefix + number_bytes(before))
            part = _part_of(task)
            return await self._remove_rows({part: limit}, ends, direct=False)
        end = number_bytes(before)
        old = await self._perform(
            [
                self._call(part, "ZLEXCOUNT", b"[" + kind, b"(" + kind + end)
                for kind in (b"a", b"m")
                for part in range(PARTS)
            ]
        )
        await self._expire(before)
        # Each time, another part is the first one.
        self._next += 1
        of_rows = self._shared(old[:PARTS], limit)
        removed = await self._remove_rows(of_rows, (b"[a", b"(a" + end), direct=True)
        minutes = await self._remove_totals(self._shared(old[PARTS:], limit), end)
        return max(removed, minutes)

    def _shared(self, old: Sequence[int], limit: int) -> dict[int, int]:
        """How many of each part to remove; together at most as many as the limit."""
        shares = {}
        for number in range(PARTS):
            part = (self._next + number) % PARTS
            share = min(old[part], limit)
            if share:
                shares[part] = share
                limit -= share
        return shares

    async def _expire(self, before: int) -> None:
        now = await self._now() or before
        milliseconds = (max(now - before, 0) + EXPIRES_AFTER_US) // 1_000
        await self._perform([self._call(part, "PEXPIRE", milliseconds) for part in range(PARTS)])

    async def _remove_rows(
        self, shares: dict[int, int], ends: tuple[bytes, bytes], direct: bool
    ) -> int:
        members: dict[int, list[bytes]] = {}
        removed = 0
        for part, share in shares.items():
            of_part: list[bytes] = []
            [texts] = await self._perform([self._reading(part, "ZRANGEBYLEX", ends, share, direct)])
            for text in texts:
                # What is no attempt has no other members that are known.
                row = _row(text)
                of_part += [text, *(() if row is None else _members(row)[1:])]
                if not direct:
                    of_part.append(ends[0][1:] + text[1 : 1 + PLACE_BYTES])
                removed += 1
            if of_part:
                members[part] = of_part
        await self._perform(
            [self._call(part, "ZREM", *of_part) for part, of_part in members.items()]
        )
        return removed

    async def _remove_totals(self, shares: dict[int, int], end: bytes) -> int:
        calls = [
            self._call(part, "ZRANGEBYLEX", b"[m", b"(m" + end, "LIMIT", 0, share)
            for part, share in shares.items()
        ]
        removals, removed = [], 0
        for part, members in zip(shares, await self._perform(calls), strict=True):
            removed += len(members)
            both = [*members, *(twin for member in members if (twin := _twin(member)))]
            if both:
                removals.append(self._call(part, "ZREM", *both))
        await self._perform(removals)
        return removed

    async def _rows(
        self,
        parts: Iterable[int],
        order: str,
        ends: tuple[bytes, bytes],
        most: int,
        direct: bool,
    ) -> list[RunRow]:
        calls = [self._reading(part, order, ends, most, direct) for part in parts]
        return [
            _row(text) or unreadable(_times(text))
            for texts in await self._perform(calls)
            for text in texts
        ]

    def _reading(
        self, part: int, order: str, ends: tuple[bytes, bytes], most: int, direct: bool
    ) -> Call:
        arguments = (1, self._keys[part], order, *ends, most, 0 if direct else 1)
        return Call(self._slots[part], _RUNS, arguments)

    def _call(self, part: int, name: str, *arguments: Argument) -> Call:
        command: Command = (name, self._keys[part], *arguments)
        return Call(self._slots[part], None, command)

    async def _perform(self, calls: Sequence[Call]) -> list[Any]:
        """Makes calls; returns the answer to each."""
        if not calls:
            return []
        answers = self._answers(await self._topology.perform(Lane.USERS, calls))
        return [answer[0] for answer in answers]


def _part_of(task: str) -> int:
    return crc32(encoded(task)) % PARTS


def _parts_of(task: str | None) -> Iterable[int]:
    return range(PARTS) if task is None else (_part_of(task),)


def _prefix(selection: Selection) -> bytes:
    names = (selection.task, selection.instance)
    texts = b"".join(encoded(name) + b"\0" for name in names if name is not None)
    return _PREFIXES[selection.by] + texts


def _attempt(row: RunRow) -> bytes:
    return b"a" + place_bytes(*row[:2]) + encoded(text_of(row))


def _members(row: RunRow) -> list[bytes]:
    """The members of an attempt, itself first."""
    place, task = place_bytes(*row[:2]), encoded(row.task) + b"\0"
    members = [_attempt(row), b"t" + task + place]
    if row.instance is not None:
        members.append(b"i" + task + encoded(row.instance) + b"\0" + place)
    if row.outcome != SUCCEEDED:
        members += [b"f" + place, b"g" + task + place]
    return members


def _times(text: bytes) -> tuple[int, int]:
    """The place in time of a member with an attempt."""
    return place_in(text[1:])


def _row(text: bytes) -> RunRow | None:
    """The attempt of a member; None if it is none."""
    return row_of(_times(text), text[1 + PLACE_BYTES :])


def _total_prefixes(minute: int, task: str) -> tuple[bytes, bytes]:
    name = encoded(task)
    return b"m" + number_bytes(minute) + name + b"\0", b"n" + name + b"\0" + number_bytes(minute)


def _total(member: bytes, task: str | None) -> TotalRow | None:
    """The total of a member: of any task, or of this one; None if it is none."""
    try:
        if task is None:
            time, rest = member[1:9], member[9:]
            name, _, numbers = rest.partition(b"\0")
            found = name.decode()
        else:
            start = len(encoded(task)) + 2
            time, numbers, found = member[start : start + 8], member[start + 8 :], task
        succeeded, failed, other, took, lateness_max = map(int, numbers.split(b","))
    except ValueError:
        return None
    minute = number_in(time)
    return TotalRow(minute, found, succeeded, failed, other, took, lateness_max)


def _twin(member: bytes) -> bytes | None:
    """The member of the same total by its task; None if it is no total."""
    name, divided, numbers = member[9:].partition(b"\0")
    return b"n" + name + b"\0" + member[1:9] + numbers if divided else None
