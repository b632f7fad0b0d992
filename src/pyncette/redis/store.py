"""The store in Redis: each call of the storage contract as commands and scripts.

``pyncette.redis.topology`` decides to which server they are sent. ``pyncette.redis.layout`` and the
scripts (``*.lua``) know the layout of records. A script handles its whole batch at once; its server
does nothing else meanwhile.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyncette.clock import realtime
from pyncette.errors import (
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    as_public,
    printable,
)
from pyncette.redis.connection import Argument, Command, Lane, NotExecutedError, Reply
from pyncette.redis.history import RedisHistory
from pyncette.redis.layout import (
    FORMAT,
    LARGE,
    Names,
    change_texts,
    decoded,
    encoded,
    record_from,
    slot_of,
    token_text,
    wake_payload,
)
from pyncette.redis.listener import Listener, Watch
from pyncette.redis.options import RedisOptions, Target
from pyncette.redis.topology import Call, Cluster, Outcome, Script, Topology, by_sentinels, fixed
from pyncette.store import (
    Applied,
    Claimed,
    Counted,
    Failed,
    Filter,
    Group,
    Identity,
    Page,
    Refused,
    Result,
    Source,
    Unknown,
    WakeCallback,
    Write,
)
from pyncette.store.absent import NothingThereError
from pyncette.store.rare import by_key, is_rare, merged_page
from pyncette.store.record import Record

logger = logging.getLogger(__name__)

OLDEST_REDIS: Final = (6, 2)
WRITES_MAX: Final = 1_000
"""Maximum changes made by one script, which blocks the server for some 10 ms."""

CALL_CHARACTERS_MAX: Final = 8 * 1_024 * 1_024
"""Approximate maximum length of all texts of the changes made by one script."""

EXAMINED_MAX: Final = 1_000
"""Maximum records that one page of a filtered scan examines, for the same reason."""

WAIT_TIMEOUT_MS: Final = 1_000
"""How long replicas may take to confirm a write, if ``redis_wait_replicas`` is set."""

LEGACY_LOOK_S: Final = 2.0
"""How long to search for data of 1.x when a namespace is opened for the first time."""

_CLAIM: Final = Script("claim")
_WRITE: Final = Script("write")
_SCAN: Final = Script("scan")

_TOPOLOGIES: Final[dict[str, Callable[[Target], Topology]]] = {
    "single": fixed,
    "sentinel": by_sentinels,
    "cluster": Cluster,
}

LOST_MAX: Final = 10_000
"""The number of sources whose lost leases are remembered, and how many of each source."""

LOST_OF_SOURCE_MAX: Final = 8

_NEW, _HELD_AND_NEW, _HELD = "0", "1", "2"

_WRONG_TYPE: Final = -1
"""What a claim returns: records that it takes, records that its token already holds, or both."""


class _Part(NamedTuple):
    """Part of a claim: the sources in one slot.

    Attributes:
        slot: The slot.
        places: The numbers of its sources.
    """

    slot: int
    places: Sequence[int]


class _Lost(NamedTuple):
    """Leases that may have been taken by a claim whose answer was lost.

    Attributes:
        token: The token in the form of the script.
        lease_end: The end of all of these leases.
        due_at: The latest instant at which their records were due.
    """

    token: str
    lease_end: int
    due_at: int


class RedisStore:
    """See ``pyncette.store.Store``. Made by ``pyncette.redis.redis_repository``.

    If a node of a cluster does not answer, each call is answered in part:

    * ``write``: the writes of that node are ``Unknown``; it raises if all are.
    * ``claim``: its sources yield nothing, and their ``next_due`` is ``now``, so that they are
      asked again. What the node may have leased without an answer is remembered, and the next
      claim of these sources that it answers ends those leases first and then takes what is due:
      no record waits for the end of a lease that no worker holds. If the process ends before that,
      they do wait for it. It raises if no node of the cluster answers.
    * ``get`` raises, but soon: see ``pyncette.redis.topology.Cluster``.
    * ``now`` and notifications use other nodes instead.

    Attributes:
        history: The run history, see ``pyncette.store.history``.
    """

    def __init__(self, options: RedisOptions, creates: bool = True) -> None:
        target = options.target()
        self._creates = creates
        self._options = options
        self._names = Names(options.namespace, target.database)
        self._topology: Topology = _TOPOLOGIES[target.kind](target)
        self._listener = Listener(self._names.channel, self._topology.open_listener)
        self._slots: dict[str, int] = {}
        # By group and key; the key is empty if the source is a group.
        self._lost: dict[tuple[str, str], list[_Lost]] = {}
        self._missing: set[int] = set()
        # Groups of which a key is of a wrong type.
        self._broken: set[str] = set()
        self._home = slot_of(self._names.layout)
        self.history: RedisHistory = RedisHistory(self._topology, self._names, self.now, _answers)

    # Opening.

    async def open(self) -> None:
        """Connects to the server, and checks the data in the namespace.

        Raises:
            StoreError: It cannot be used.
        """
        await self._topology.start()
        about = dict(_lines(await self._ask("INFO", "server")))
        _check_server(about, self._topology.apart)
        await self._check_eviction()
        layout = await self._ask("GET", self._names.layout)
        if layout is None:
            if not self._creates:
                raise NothingThereError(
                    f"There is nothing in the namespace '{self._options.namespace}' of Redis"
                )
            if not self._topology.apart:
                await self._look_for_legacy()
            await self._ask("SET", self._names.layout, FORMAT, "NX")
        elif layout != FORMAT:
            raise StoreMisconfiguredError(
                f"The namespace '{self._options.namespace}' holds data of format "
                f"'{decoded(layout)[:20]}'; this release reads format '{decoded(FORMAT)}'"
            )

    async def _check_eviction(self) -> None:
        policy = dict(_lines(await self._ask("INFO", "memory"))).get("maxmemory_policy", "")
        if policy.startswith("allkeys"):
            logger.warning(
                "Redis evicts any key when its memory is full (maxmemory-policy %s), also those "
                "of tasks, which are then lost. Set it to noeviction, or to one of volatile-*",
                policy,
            )

    async def _look_for_legacy(self) -> None:
        """Refuses a namespace that contains tasks of 1.x."""
        found = await self._ask("EXISTS", self._names.legacy_static)
        until = realtime.monotonic() + LEGACY_LOOK_S
        cursor: bytes = b"0"
        while not found and realtime.monotonic() < until:
            cursor, found = await self._ask(
                "SCAN", cursor, "MATCH", self._names.legacy_tasks, "COUNT", 1_000
            )
            if cursor == b"0":
                break
        if found:
            raise StoreMisconfiguredError(
                f"The namespace '{self._options.namespace}' holds tasks of pyncette 1.x. Stop "
                "every worker and run 'python -m pyncette migrate', or choose another namespace "
                "with redis_namespace. Nothing was changed."
            )

    async def close(self) -> None:
        """Closes every connection; calls made from now on fail."""
        # All sockets are closed before the first wait, so a cancellation leaves none open.
        try:
            await self._topology.close()
        finally:
            await self._listener.close()

    # Calling.

    async def _ask(self, *command: Argument) -> Reply:
        """Sends a command to the server that has the keys of the namespace itself."""
        return await self._ask_at(self._home, command)

    async def _ask_at(self, slot: int, command: Command) -> Reply:
        [replies] = _answers(await self._topology.perform(Lane.CLAIMS, [Call(slot, None, command)]))
        return replies[0]

    async def _ask_any(self, *command: Argument) -> Reply:
        """As ``_ask``; if that server does not answer, another server is asked."""
        try:
            return await self._ask(*command)
        except StoreUnavailableError:
            for slot in self._topology.slots_beside(self._home):
                with suppress(StoreUnavailableError):
                    return await self._ask_at(slot, command)
            raise

    def _slot(self, group: str) -> int:
        """The slot of a group."""
        slot = self._slots.get(group)
        if slot is None:
            slot = self._slots[group] = slot_of(self._names.of(group)[0])
        return slot

    def _parts(self, groups: Sequence[str]) -> list[_Part]:
        """The numbers of the groups by slot; all in one part if there is only one server."""
        if not self._topology.apart:
            return [_Part(self._home, range(len(groups)))] if groups else []
        parts: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            slot = self._slot(group)
            part = parts.get(slot)
            if part is None:
                part = parts[slot] = []
            part.append(number)
        return [_Part(slot, places) for slot, places in parts.items()]

    # The calls.

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        if self._lost:
            self._look_through_lost(sources, now, token)
        claim = _Claim(sources, now, token, bounded, unfinished_max)
        parts = self._parts([source.group for source in sources])
        if len(parts) == 1:
            mode = _HELD_AND_NEW if repeated else _NEW
            await self._wave(claim, [(parts[0], limit)], mode)
        else:
            await self._waves(claim, parts, limit, repeated)
        if claim.failed:
            await self._settle_for_less(claim, repeated)
        return Claimed(claim.records, claim.next_due)

    async def _waves(self, claim: _Claim, parts: list[_Part], limit: int, repeated: bool) -> None:
        """Claims from several parts at the same time, and never more than the limit.

        Only the answers show how many records are due in each part. If a part yields fewer than
        its share, the rest is offered to the other parts in a further wave. A part that failed is
        not asked again, because its answer would not be complete.
        """
        if repeated:
            await self._wave(claim, [(part, limit) for part in parts], _HELD)
        while parts := [part for part in parts if part.slot not in claim.failed]:
            left = limit - len(claim.records)
            asked: list[tuple[_Part, int]] = []
            for part in parts:
                room = min(left, claim.room_of(part))
                left -= room
                asked.append((part, room))
            found = await self._wave(claim, asked, _NEW)
            parts = [
                part
                for (part, room), count in zip(asked, found, strict=True)
                if count == room and claim.has_more(part)
            ]
            if len(claim.records) >= limit:
                break

    async def _wave(
        self, claim: _Claim, asked: Sequence[tuple[_Part, int]], mode: str
    ) -> list[int]:
        """Claims from each part at most a number of records; returns how many each yielded."""
        sent = [self._lost_of(claim, part) for part, _ in asked] if self._lost else []
        calls = [
            self._claim_call(claim, part, limit, mode, sent[number] if sent else ())
            for number, (part, limit) in enumerate(asked)
        ]
        outcomes = await self._topology.perform(Lane.CLAIMS, calls)
        found = []
        for number, ((part, _), outcome) in enumerate(zip(asked, outcomes, strict=True)):
            if isinstance(outcome, StoreError):
                claim.failed[part.slot] = (part, outcome)
                found.append(0)
                continue
            [(next_due, values, *left_out)] = outcome
            # A wave that takes nothing may not touch the key that is of a wrong type.
            if left_out or (self._broken and mode != _HELD):
                self._note_broken(claim, part, left_out[0] if left_out else [])
            if sent:
                self._forget_lost(sent[number])
            if self._missing and part.slot in self._missing:
                self._missing.discard(part.slot)
                logger.info("Slot %d of the cluster can be claimed from again", part.slot)
            found.append(claim.take_in(part, next_due, values))
        return found

    def _note_broken(self, claim: _Claim, part: _Part, left_out: Sequence[int]) -> None:
        """Reports the groups that cannot be claimed from, once each."""
        groups = list(dict.fromkeys(claim.sources[place].group for place in part.places))
        broken = {groups[number - 1] for number in left_out}
        for group in broken - self._broken:
            logger.error("Nothing of %s can be claimed: %s", printable(group), _wrong_type(group))
        self._broken = self._broken.difference(groups) | broken

    async def _settle_for_less(self, claim: _Claim, repeated: bool) -> None:
        """Completes the answer to a claim, if some nodes of a cluster did not answer.

        Raises:
            StoreError: No node answered.
        """
        error = next(iter(claim.failed.values()))[1]
        if not claim.answered and not (
            isinstance(error, StoreUnavailableError)
            and await self._topology.answers_beside(claim.failed)
        ):
            raise error
        found = claim.failed.keys() - self._missing
        if found:
            self._missing |= found
            logger.warning(
                "Nothing is claimed for now from %d slots of the cluster: %s", len(found), error
            )
        for part, error in claim.failed.values():
            for place in part.places:
                claim.next_due[place] = claim.now
                # Records that it yielded before it failed have the same token and lease.
                if (repeated or not isinstance(error, NotExecutedError)) and not claim.has_yielded(
                    place
                ):
                    self._remember_lost(claim, place)

    # Leases that may have been granted by a node whose answer was lost.

    def _look_through_lost(self, sources: Sequence[Source], now: int, token: str) -> None:
        """Forgets leases that have ended, and those of this token, which a repeated claim finds."""
        mine = token_text(token)
        for source in sources:
            identity = _identity(source)
            lost = self._lost.get(identity)
            if lost is not None:
                kept = [one for one in lost if one.lease_end > now and one.token != mine]
                if kept:
                    self._lost[identity] = kept
                else:
                    del self._lost[identity]

    def _remember_lost(self, claim: _Claim, place: int) -> None:
        source = claim.sources[place]
        identity = _identity(source)
        lost = _Lost(token_text(claim.token), claim.now + source.lease, claim.now)
        known = self._lost.setdefault(identity, [])
        known.append(lost)
        del known[:-LOST_OF_SOURCE_MAX]
        if len(self._lost) > LOST_MAX:
            del self._lost[next(iter(self._lost))]

    def _lost_of(self, claim: _Claim, part: _Part) -> list[tuple[tuple[str, str], _Lost]]:
        """The lost leases that a claim from this part ends, with their sources."""
        identities = [_identity(claim.sources[place]) for place in part.places]
        return [(one, lost) for one in identities for lost in self._lost.get(one, ())]

    def _forget_lost(self, ended: Iterable[tuple[tuple[str, str], _Lost]]) -> None:
        for identity, lost in ended:
            known = self._lost.get(identity, [])
            if lost in known:
                known.remove(lost)
            if not known:
                self._lost.pop(identity, None)

    def _claim_call(
        self,
        claim: _Claim,
        part: _Part,
        limit: int,
        mode: str,
        lost: Sequence[tuple[tuple[str, str], _Lost]],
    ) -> Call:
        keys: list[Argument] = []
        numbers: dict[str, int] = {}
        now = claim.now
        for place in part.places:
            group = claim.sources[place].group
            if group not in numbers:
                numbers[group] = len(numbers) + 1
                keys += self._names.of(group)
        arguments: list[Argument] = [now, token_text(claim.token), limit, mode]
        arguments += (claim.bounded, claim.unfinished_max, len(lost))
        for (group, key), one in lost:
            arguments += (numbers[group], key, one.lease_end, one.token, one.due_at)
        for place in part.places:
            source = claim.sources[place]
            number = numbers[source.group]
            room = claim.room[place]
            if isinstance(source, Group):
                arguments += (number, now + source.lease, source.before, room, "")
            else:
                arguments += (number, now + source.lease, now, room, source.key)
        return Call(part.slot, _CLAIM, (len(keys), *keys, *arguments))

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        if not batch:
            if wake:
                await self._ask_any("PUBLISH", self._names.channel, wake_payload(wake))
            return []
        lane = Lane.USERS
        if any(write.token is not None for write in batch):
            lane = Lane.OUTCOMES
        results: list[Result] = [Refused(None)] * len(batch)
        writing = _Writing(batch, now, results)
        calls, places = self._write_calls(writing)
        if wake:
            publish: Command = ("PUBLISH", self._names.channel, wake_payload(wake))
            if calls:
                calls[-1] = calls[-1]._replace(after=(publish, *calls[-1].after))
        if calls:
            outcomes = await self._topology.perform(lane, calls)
            for where, outcome in zip(places, outcomes, strict=True):
                self._take_in(writing, where, outcome)
        for at in writing.large:
            call = self._write_call(self._slot(batch[at].group), writing, [at])
            [outcome] = await self._topology.perform(lane, [call])
            if isinstance(outcome, StoreError) and await self._is_too_long(call.slot, writing, at):
                error = ValueError(
                    f"The record {batch[at].key!r} is longer than the server takes. Make its "
                    "arguments shorter, or raise the server's proto-max-bulk-len."
                )
                results[at] = Failed(error)
            else:
                self._take_in(writing, [at], outcome)
        if wake and not calls:
            with suppress(StoreUnavailableError):  # a notification may be lost
                await self._ask_any(*publish)
        first = results[0]
        if type(first) is Unknown and all(type(result) is Unknown for result in results):
            raise first.error
        return results

    def _write_calls(self, writing: _Writing) -> tuple[list[Call], list[Sequence[int]]]:
        """Divides writes into calls; returns each call with the numbers of its writes."""
        kept = writing.kept
        step = WRITES_MAX
        if writing.length > CALL_CHARACTERS_MAX:
            step = max(1, min(step, len(kept) * CALL_CHARACTERS_MAX // writing.length))
        calls: list[Call] = []
        places: list[Sequence[int]] = []
        for part in self._parts([writing.batch[at].group for at in kept]):
            numbers = (
                part.places
                if len(kept) == len(writing.batch)
                else [kept[place] for place in part.places]
            )
            for first in range(0, len(numbers), step):
                places.append(numbers[first : first + step])
                calls.append(self._write_call(part.slot, writing, places[-1]))
        return calls, places

    def _write_call(self, slot: int, writing: _Writing, places: Iterable[int]) -> Call:
        keys: list[Argument] = []
        numbers: dict[str, int] = {}
        replicas = self._options.wait_replicas
        arguments: list[Argument] = [writing.now, 1 if replicas else 0]
        batch, texts = writing.batch, writing.texts
        for at in places:
            group, key, _, expect, token = batch[at]
            number = numbers.get(group)
            if number is None:
                number = numbers[group] = len(numbers) + 1
                keys += self._names.of(group)
            held = "" if token is None else f"={token}"
            arguments += (number, key, expect, held, *texts[at])
        after: tuple[Command, ...] = (("WAIT", replicas, WAIT_TIMEOUT_MS),) if replicas else ()
        return Call(slot, _WRITE, (len(keys), *keys, *arguments), after)

    def _take_in(self, writing: _Writing, places: Sequence[int], outcome: Outcome) -> None:
        """Stores the answers to the writes of one call."""
        results = writing.results
        if isinstance(outcome, StoreError):
            for at in places:
                results[at] = Unknown(as_public(outcome))
            return
        replies, *after = outcome
        unconfirmed = self._unconfirmed(after)
        if unconfirmed is not None:
            for at in places:
                results[at] = Unknown(unconfirmed)
            return
        applied = writing.applied
        for at, reply in zip(places, replies, strict=True):
            if type(reply) is int:
                # Most changes of a batch have the same version.
                if reply != applied.version:
                    if reply == _WRONG_TYPE:
                        error = StoreMisconfiguredError(_wrong_type(writing.batch[at].group))
                        results[at] = Failed(error)
                        continue
                    applied = writing.applied = Applied(reply)
                results[at] = applied
            elif reply is not None:
                group, key = writing.batch[at][:2]
                results[at] = Refused(record_from(group, key, reply))

    async def _is_too_long(self, slot: int, writing: _Writing, at: int) -> bool:
        """Whether the server refuses a change because of its length; False if that is unknown."""
        try:
            server = await self._topology.server_of(slot)
            return await server.refuses_length(len(writing.texts[at][-1].encode()))
        except StoreError:
            return False

    def _unconfirmed(self, after: Sequence[Reply]) -> StoreUnavailableError | None:
        """The error if too few replicas have confirmed a write.

        The write was made, but may be lost in a failover.
        """
        wanted = self._options.wait_replicas
        if not wanted:
            return None
        confirmed = after[-1]
        if isinstance(confirmed, int) and confirmed >= wanted:
            return None
        return StoreUnavailableError(
            f"{confirmed} of the {wanted} replicas that redis_wait_replicas asks for have "
            f"confirmed a write within {WAIT_TIMEOUT_MS} ms"
        )

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        groups: dict[str, list[int]] = {}
        for at, (group, _) in enumerate(identities):
            groups.setdefault(group, []).append(at)
        calls = [
            Call(
                self._slot(group),
                None,
                ("HMGET", self._names.of(group)[1], *(identities[at][1] for at in places)),
            )
            for group, places in groups.items()
        ]
        records: list[Record | None] = [None] * len(identities)
        if not calls:
            return records
        answers = _answers(await self._topology.perform(Lane.USERS, calls))
        for places, [values] in zip(groups.values(), answers, strict=True):
            for at, value in zip(places, values, strict=True):
                if value is not None:
                    records[at] = record_from(*identities[at], value)
        return records

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        call = self._scanning("", group, where, cursor, limit)
        [[found]] = _answers(await self._topology.perform(Lane.USERS, [call]))
        if is_rare(where):
            return _merged(group, found, limit)
        last, texts = found
        return Page(_records_in(group, texts), None if last is None else decoded(last))

    def _scanning(
        self, purpose: str, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Call:
        """The call of the script that scans and counts."""
        states, prefix, due_before = where
        _, records, names = self._names.of(group)
        # UTF-8 has no byte greater than F4.
        arguments = (
            purpose,
            b"[" + encoded(prefix) if cursor is None else b"(" + encoded(cursor),
            b"(" + encoded(prefix) + b"\xff" if prefix else "",
            limit,
            max(limit, EXAMINED_MAX),
            "" if due_before is None else due_before,
            0 if states is None else 2 if is_rare(where) else 1,
            *(states or ()),
        )
        return Call(self._slot(group), _SCAN, (2, names, records, *arguments))

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        states, prefix, due_before = where
        due, _, names = self._names.of(group)
        command: tuple[Any, ...] | None = None
        if states is None and due_before is None:
            start = b":" + encoded(prefix)
            end = start + b"\xff" if prefix else b";"
            command = ("ZLEXCOUNT", names, b"[" + start, b"(" + end)
        elif states is None and not prefix:
            command = ("ZCOUNT", due, "-inf", f"({due_before}")
        if command is not None:
            # The sorted set knows it, however many records there are.
            answers = _answers(
                await self._topology.perform(Lane.USERS, [Call(self._slot(group), None, command)])
            )
            [number] = answers[0]
            return Counted(min(number, limit), number <= limit)
        call = self._scanning("count", group, where, None, limit)
        [[(more, count)]] = _answers(await self._topology.perform(Lane.USERS, [call]))
        return Counted(count, more is None)

    async def now(self) -> int | None:
        seconds, microseconds = await self._ask_any("TIME")
        return int(seconds) * 1_000_000 + int(microseconds)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return self._listener.watch(groups, on_wake)


class _Writing:
    """A batch that is being written.

    Attributes:
        batch, now: The arguments of the call.
        results: The answers that are known so far.
        texts: Each change in the form of ``write.lua``; empty if Redis cannot store it.
        kept: The numbers of the writes that are sent together.
        large: The numbers of the writes that are sent one by one.
        length: The number of characters of all changes.
    """

    def __init__(self, batch: Sequence[Write], now: int, results: list[Result]) -> None:
        self.batch = batch
        self.now = now
        self.results = results
        self.kept: Sequence[int] = range(len(batch))
        self.large: list[int] = []
        self.applied = Applied(0)
        try:
            self.texts = [change_texts(write) for write in batch]
        except ValueError:
            self.texts = [self._texts_of(at) for at in self.kept]
            self.kept = [at for at in self.kept if self.texts[at]]
        self.length = sum([len(self.texts[at][-1]) for at in self.kept])
        if self.length > LARGE:
            self.large = [at for at in self.kept if len(self.texts[at][-1]) > LARGE]
            self.kept = [at for at in self.kept if len(self.texts[at][-1]) <= LARGE]

    def _texts_of(self, at: int) -> tuple[str, ...]:
        try:
            return change_texts(self.batch[at])
        except ValueError as error:
            self.results[at] = Failed(error)
            return ()


class _Claim:
    """A claim, and its results so far.

    Attributes:
        bounded, unfinished_max: The arguments, in the form of ``claim.lua``.
        room: How many records each source may still yield.
        failed: The parts without an answer, by slot, and the errors.
        answered: Whether any part has answered.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        now: int,
        token: str,
        bounded: bool,
        unfinished_max: int | None,
    ) -> None:
        self.sources = sources
        self.now = now
        self.token = token
        self.bounded = "1" if bounded else "0"
        self.unfinished_max = "" if unfinished_max is None else unfinished_max
        self.room = [source.share if isinstance(source, Group) else 1 for source in sources]
        self.records: list[Record] = []
        self.next_due: list[int | None] = [None] * len(sources)
        self.failed: dict[int, tuple[_Part, StoreError]] = {}
        self.answered = False

    def room_of(self, part: _Part) -> int:
        """How many records its sources may still yield."""
        return sum(self.room[place] for place in part.places)

    def has_more(self, part: _Part) -> bool:
        """Whether one of its sources has a due record that it may still yield."""
        for place in part.places:
            source, next_due = self.sources[place], self.next_due[place]
            before = source.before if isinstance(source, Group) else self.now
            if self.room[place] and next_due is not None and next_due <= before:
                return True
        return False

    def has_yielded(self, place: int) -> bool:
        """Whether this source has yielded records."""
        source = self.sources[place]
        return self.room[place] < (source.share if isinstance(source, Group) else 1)

    def take_in(self, part: _Part, next_due: list[bytes | None], values: list[Any]) -> int:
        """Adds the answer of ``claim.lua``; returns the number of its records."""
        self.answered = True
        for place, due_at in zip(part.places, next_due, strict=True):
            self.next_due[place] = None if due_at is None else _instant(due_at)
        groups = list(dict.fromkeys(self.sources[place].group for place in part.places))
        records = [
            record_from(groups[number - 1], decoded(key), value, sound=True)
            for number, key, value in zip(values[::3], values[1::3], values[2::3], strict=True)
        ]
        self.records += records
        if records and len(self.sources) > len(part.places):
            yielding = {_identity(self.sources[place]): place for place in part.places}
            for group, key, *_ in records:
                place = yielding.get((group, ""), -1)
                self.room[yielding[group, key] if place < 0 else place] -= 1
        return len(records)


def _wrong_type(group: str) -> str:
    return (
        f"a key of Redis for the group {group!r} holds something that is not Pyncette's "
        "(WRONGTYPE): remove that key"
    )


def _identity(source: Source) -> tuple[str, str]:
    return source.group, "" if isinstance(source, Group) else source.key


def _records_in(group: str, texts: Sequence[bytes]) -> list[Record]:
    """The records of a page: keys and values in turn."""
    return [
        record_from(group, decoded(key), value)
        for key, value in zip(texts[::2], texts[1::2], strict=True)
    ]


def _merged(group: str, pages: Sequence[tuple[bytes | None, Sequence[bytes]]], limit: int) -> Page:
    """One page of the pages of several states, up to where each of them is known."""
    ends = [last for last, _ in pages if last is not None]
    page = merged_page([_records_in(group, texts) for _, texts in pages], limit)
    if not ends:
        return page
    end = min(ends)
    known = [record for record in page.records if by_key(record) <= end]
    if len(known) < len(page.records) or page.cursor is None:
        return Page(known, decoded(end))
    return page


def _instant(text: bytes) -> int:
    """Reads an instant from a record, or from a score of an index, which may have an exponent."""
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _answers(outcomes: Iterable[Outcome]) -> list[list[Reply]]:
    """Returns the answer to each call.

    Raises:
        StoreError: The error of the first call without an answer.
    """
    answers = []
    for outcome in outcomes:
        if isinstance(outcome, StoreError):
            raise outcome
        answers.append(outcome)
    return answers


def _lines(text: bytes) -> Iterator[tuple[str, str]]:
    """The fields of INFO."""
    for line in text.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name, value


def _check_server(about: dict[str, str], expected_cluster: bool) -> None:
    version = about.get("redis_version", "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_REDIS:
        raise StoreMisconfiguredError(
            f"Redis {version} is too old: at least {'.'.join(map(str, OLDEST_REDIS))} is needed"
        )
    is_cluster = about.get("redis_mode") == "cluster"
    if is_cluster and not expected_cluster:
        raise StoreMisconfiguredError(
            "The server is a node of a Redis Cluster: redis_url has to begin with "
            "redis+cluster:// (or rediss+cluster://)"
        )
