"""Instances that may lie in several places, because their template is moved to other partitions.

A call looks at all places (``Partitions.places``), and changes the instance where it lies. It never
lies in two; see ``pyncette.engine.moves`` for what holds while it moves. What is left to decide is
where a new instance is created, since no write has a condition about two records:

* While a move is only announced, at the old place, as by processes that know nothing of it.
* While instances are moved, at the new place, after a mark was written to the old one if that is
  empty. So whoever still creates at the old place is refused, and finds out. The marks stay until
  no such process is left: only then instances begin to be moved, and marks to be removed.
* Afterwards, at the new place.

In each stage a process conflicts with those of the same stage and of the next one in one record: a
name is never created twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyncette.calls.writing import (
    BULK_PATIENCE_S,
    PAUSE_INITIAL_S,
    PAUSE_MAX_S,
    Decide,
    Holding,
    Patience,
    Writer,
    write_after,
)
from pyncette.clock import realtime
from pyncette.engine.moves import (
    Pair,
    Step,
    as_freed,
    copy_of,
    in_transit,
    is_transit,
    mark_of,
    next_step,
    record_after,
    reserved,
)
from pyncette.engine.worker import Worker
from pyncette.errors import StoreUnavailableError, printable
from pyncette.store import (
    Applied,
    Identity,
    Refused,
    Result,
    Write,
    expectation_holds,
)
from pyncette.store.record import ABSENT, Change, Delete, Put, Record

if TYPE_CHECKING:
    from pyncette.calls.requests import Outcome, Wish

LOOKS_MAX: Final = 20
"""How often a call looks for an instance that moves at the same time."""

ROUNDS_MAX: Final = 100
"""How many writes and reads one move may take, before it is left for later."""

TOGETHER: Final = 100
"""Instances of a bulk call that are looked for at the same time."""

DEPTH_MAX: Final = 3
"""How many unfinished moves of one instance may depend on each other."""


class Seen(NamedTuple):
    """What was found at the places of an instance.

    Attributes:
        key: The name of the instance.
        places: The groups; it is created in the first one.
        records: What they hold.
    """

    key: str
    places: list[str]
    records: dict[str, Record]

    def live(self) -> Record | None:
        """Returns the record of the instance, unless it is on its way."""
        for group in self.places:
            record = self.records.get(group)
            if record is not None and not in_transit(record):
                return record
        return None

    def chosen(self) -> Pair | None:
        """Returns the pair of a copy that holds the instance, but is not yet freed."""
        for group, record in self.records.items():
            mark = mark_of(record)
            if mark is None:
                continue
            target = self.records.get(mark.target)
            copy = copy_of(target)
            if copy is not None and copy.id == mark.id:
                return Pair(self.key, group, mark.target, record, target)
        return None

    def linked(self, group: str) -> Pair | None:
        """Returns the pair that what is in transit at a place belongs to."""
        record = self.records.get(group)
        copy, mark = copy_of(record), mark_of(record)
        if copy is not None:
            return Pair(self.key, copy.origin, group, self.records.get(copy.origin), record)
        if mark is not None:
            return Pair(self.key, group, mark.target, record, self.records.get(mark.target))
        return None


class Moved(NamedTuple):
    """What came of pairs.

    Attributes:
        moved: Instances that lie at their target now.
        waiting: Instances that run, or that a transaction holds.
        failed: Names of instances that cannot be moved, and why.
    """

    moved: int
    waiting: list[str]
    failed: list[tuple[str, Exception]]


class Places:
    """Finds and changes instances that may lie in several places, and moves them."""

    def __init__(self, requests: Writer, worker: Worker) -> None:
        """Works on the store of a worker."""
        self._requests = requests
        self._worker = worker
        self._partitions = worker.partitions

    def several(self, group: str, key: str) -> bool:
        """Returns whether a record may lie elsewhere than in this group."""
        return not self._partitions.quiet and [*self._partitions.places(group, key)] != [group]

    async def _look(self, group: str, key: str) -> Seen:
        await self._partitions.fresh()
        seen = Seen(key, [*self._partitions.places(group, key)], {})
        looked = 0
        while looked < len(seen.places):
            asked = seen.places[looked:]
            looked = len(seen.places)
            found = await self._requests.store.get([(place, key) for place in asked])
            for record in found:
                if record is None:
                    continue
                seen.records[record.group] = record
                copy, mark = copy_of(record), mark_of(record)
                for link in (copy and copy.origin, mark and mark.target):
                    if link and link not in seen.places:
                        seen.places.append(link)
        return seen

    async def find(self, group: str, key: str) -> Record | None:
        """Returns the record of an instance, wherever it lies; None: there is none."""
        before: Seen | None = None
        for _ in range(LOOKS_MAX):
            seen = await self._look(group, key)
            if (record := seen.live()) is not None:
                return record
            if (pair := seen.chosen()) is not None and pair.target is not None:
                return as_freed(pair.target)
            # The places were not read at one instant: it may have moved meanwhile.
            if len(seen.places) == 1 or seen == before:
                return None
            before = seen
        return None

    async def change(self, group: str, key: str, decide: Decide) -> Write | None:
        """As ``Requests.change``, wherever the instance lies."""
        requests = self._requests
        holding = Holding(requests, f"{key} of {group}")
        before: Seen | None = None
        looked_up = False
        for _ in range(ROUNDS_MAX):
            await requests.settled([(place, key) for place in self._partitions.places(group, key)])
            seen = await self._look(group, key)
            if (pair := seen.chosen()) is not None:
                await self._help(pair)
                continue
            current = seen.live()
            target = seen.places[0]
            if current is None:
                if mark_of(seen.records.get(target)) is not None and not looked_up:
                    # A process that knows more has created it elsewhere.
                    await self._partitions.read()
                    looked_up = True
                    continue
                if len(seen.places) > 1 and seen != before:
                    before = seen
                    continue
            change = decide(current, requests.clock.microseconds())
            confirmed = change is None
            if change is None:
                place = target if current is None else current.group
                change = requests.confirmation(current, place, key)
                if change is None:
                    return None
            if current is not None:
                write = write_after(current.group, key, current, change)
            elif (pair := seen.linked(target)) is not None:
                await self._help(pair)
                before = None
                continue
            elif not await self._reserve(group, seen):
                before = None
                continue
            else:
                write = Write(target, key, change, ABSENT)
            result = await requests.submit(write)
            if isinstance(result, Applied):
                requests.wrote(write)
                return None if confirmed else write
            await holding.wait(write, result)
        raise StoreUnavailableError(
            f"{printable(key)} of {printable(group)} was changed again and again meanwhile"
        )

    async def _help(self, pair: Pair) -> None:
        """Goes on with the move of an instance that a call is about."""
        if (await self.move([pair])).waiting:
            with self._requests.clock.hold():
                await realtime.sleep(PAUSE_INITIAL_S)

    async def _reserve(self, group: str, seen: Seen) -> bool:
        """Prevents that others create an instance at its old places; returns whether it did."""
        template = self._partitions.template_of(group)
        if template is None or not template.layout.moving:
            return True
        target, *others = template.places(seen.key)
        if target != seen.places[0]:
            return False
        for place in others:
            if place not in seen.records:
                write = Write(place, seen.key, reserved(target), ABSENT)
                if isinstance(await self._requests.submit(write), Refused):
                    return False
        return True

    async def change_all(self, wishes: Sequence[Wish]) -> list[Outcome]:
        """As ``Requests.change_all``, wherever the instances lie."""
        outcomes: list[Outcome] = []
        for first in range(0, len(wishes), TOGETHER):
            some = wishes[first : first + TOGETHER]
            outcomes += await asyncio.gather(*map(self.outcome, some))
        return outcomes

    async def outcome(self, wish: Wish) -> Outcome:
        """Makes one wish of a bulk call."""
        clock = self._requests.clock

        def again(error: StoreUnavailableError) -> None:
            if not wish.repeatable(clock.microseconds()):
                raise error

        patience = Patience(BULK_PATIENCE_S, PAUSE_MAX_S, PAUSE_MAX_S, clock)
        try:
            return await patience.insist(
                lambda: self.change(wish.group, wish.key, wish.decide), again
            )
        except Exception as error:
            return error

    # Moving.

    async def read_pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Reads what is not known of pairs: the place that is empty as far as is known."""
        missing: list[Identity] = []
        for pair in pairs:
            group = pair.target_group if pair.target is None else pair.origin_group
            missing.append((group, pair.key))
        found = await self._requests.store.get(missing)
        return [
            pair._replace(target=record, newer="target")
            if pair.target is None
            else pair._replace(origin=record, newer="origin")
            for pair, record in zip(pairs, found, strict=True)
        ]

    async def move(self, pairs: Sequence[Pair], depth: int = 0) -> Moved:
        """Goes on with moves until they are done, or cannot be.

        What the store does not answer is read again.

        Raises:
            StoreUnavailableError: The store fails.
        """
        moving = _Moving(pairs)
        for _ in range(ROUNDS_MAX):
            moving.step(self._requests.clock.microseconds())
            for index in moving.elsewhere:
                await self._resolve(moving, index, depth)
            if moving.reads:
                found = await self._requests.store.get([*moving.reads.values()])
                moving.read(found)
            if moving.writes:
                writes = [*moving.writes.values()]
                moving.answered(await self._requests.write_all(writes, moving.floor))
            if not moving.left:
                break
        moving.waiting += [moving.pairs[index].key for index in moving.left]
        for write in moving.freed:
            self._worker.wrote(write)
        return Moved(len(moving.freed), moving.waiting, moving.failed)

    async def _resolve(self, moving: _Moving, index: int, depth: int) -> None:
        """Ends the other move that the target of a pair is part of."""
        pair = moving.pairs[index]
        seen = Seen(pair.key, [pair.target_group], {})
        if pair.target is not None:
            seen.records[pair.target_group] = pair.target
        other = seen.linked(pair.target_group)
        if other is None or depth >= DEPTH_MAX:
            moving.give_up(index)
            return
        [other] = await self.read_pairs([other])
        ended = await self.move([other], depth + 1)
        if ended.waiting or ended.failed:
            moving.give_up(index)


class _Moving:
    """Pairs of which some are not yet done."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.left = list(range(len(pairs)))
        self.waiting: list[str] = []
        self.failed: list[tuple[str, Exception]] = []
        self.freed: list[Write] = []
        self.writes: dict[int, Write] = {}
        self.reads: dict[tuple[int, str], Identity] = {}
        self.elsewhere: list[int] = []
        # The fencing tokens of an instance grow, also when it moves.
        self.floor = 0

    def step(self, now: int) -> None:
        """Decides about each pair what comes next."""
        self.writes, self.reads, self.elsewhere = {}, {}, []
        left, self.left = self.left, []
        for index in left:
            pair = self.pairs[index]
            match next_step(pair, now):
                case Write() as write:
                    self.writes[index] = write
                    if pair.origin is not None:
                        self.floor = max(self.floor, pair.origin.version + 1)
                    if pair.target is not None:
                        self.floor = max(self.floor, pair.target.version + 1)
                case Step.READ_ORIGIN:
                    self.reads[index, "origin"] = (pair.origin_group, pair.key)
                case Step.READ_TARGET:
                    self.reads[index, "target"] = (pair.target_group, pair.key)
                case Step.ELSEWHERE:
                    self.elsewhere.append(index)
                    self.reads[index, "target"] = (pair.target_group, pair.key)
                case Step.WAIT:
                    self.waiting.append(pair.key)
                    continue
                case Step.BROKEN:
                    self._fail(
                        pair,
                        ValueError("it lies in two places, one of them unreadable, or is broken"),
                    )
                    continue
                case Step.DONE:
                    continue
            self.left.append(index)

    def give_up(self, index: int) -> None:
        """Leaves a pair for later."""
        self.left.remove(index)
        self.reads.pop((index, "target"), None)
        self.waiting.append(self.pairs[index].key)

    def read(self, found: Sequence[Record | None]) -> None:
        """Takes in what was read."""
        for (index, side), record in zip(self.reads, found, strict=True):
            self._set(index, side, record)

    def answered(self, results: Sequence[Result]) -> None:
        """Takes in what came of the writes."""
        for (index, write), result in zip(self.writes.items(), results, strict=True):
            pair = self.pairs[index]
            side = "origin" if write.group == pair.origin_group else "target"
            before = pair.origin if side == "origin" else pair.target
            if isinstance(result, Applied):
                if side == "target" and copy_of(before) is not None and _lives(write.change):
                    self.freed.append(write)
                self._set(index, side, _after(write, before, result.version))
            elif isinstance(result, Refused):
                if expectation_holds(write, result.current):
                    self.left.remove(index)  # an open transaction holds it
                    self.waiting.append(pair.key)
                else:
                    self._set(index, side, result.current)
            else:
                self.left.remove(index)
                if isinstance(result.error, StoreUnavailableError):
                    self.waiting.append(pair.key)
                else:
                    self._fail(pair, result.error)

    def _fail(self, pair: Pair, error: Exception) -> None:
        self.failed.append((pair.key, error))

    def _set(self, index: int, side: str, record: Record | None) -> None:
        self.pairs[index] = self.pairs[index]._replace(**{side: record, "newer": side})  # type: ignore[arg-type]


def _lives(change: Change) -> bool:
    return isinstance(change, Put) and not is_transit(change.progress)


def _after(write: Write, before: Record | None, version: int) -> Record | None:
    if isinstance(write.change, Delete):
        return None
    assert isinstance(write.change, Put)
    empty = Record(write.group, write.key, None, version, None, "", 0, "", "", "")
    return record_after(before or empty, write.change, version)
