"""The store in Redis: each call of the storage contract as commands and scripts.

Which server they go to is ``pyncette.redis.topology``'s business, and how records lie there
that of ``pyncette.redis.layout`` and of the scripts (``*.lua``), each of which does its whole
batch at once, alone on its server.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis.connection import Argument, Command, Lane, NotExecutedError, Reply
from pyncette.redis.layout import (
    FORMAT,
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
    Filter,
    Group,
    Identity,
    Page,
    Refused,
    Result,
    Source,
    WakeCallback,
    Write,
)
from pyncette.store.record import Record

logger = logging.getLogger(__name__)

OLDEST_REDIS: Final = (6, 2)
WRITES_MAX: Final = 1_000
"""So many changes one script makes: it keeps the server from everybody else for some 10 ms."""

EXAMINED_MAX: Final = 1_000
"""So many records a page of a filtered scan looks at, for the same reason."""

WAIT_TIMEOUT_MS: Final = 1_000
"""How long replicas may take to confirm a write, where it has to be confirmed."""

LEGACY_LOOK_S: Final = 2.0
"""How long to look for what 1.x left, the first time that a namespace is opened."""

_CLAIM: Final = Script("claim")
_WRITE: Final = Script("write")
_SCAN: Final = Script("scan")

_TOPOLOGIES: Final[dict[str, Callable[[Target], Topology]]] = {
    "single": fixed,
    "sentinel": by_sentinels,
    "cluster": Cluster,
}

_NEW, _HELD_AND_NEW, _HELD = "0", "1", "2"
"""What a claim may return: what it takes, what its token holds from before, or both."""


class _Part(NamedTuple):
    """Part of a claim: what lies in one slot.

    Attributes:
        slot: The slot.
        places: The numbers of its sources.
    """

    slot: int
    places: Sequence[int]


class RedisStore:
    """See ``pyncette.store.Store``. Made by ``pyncette.redis.redis_repository``."""

    def __init__(self, options: RedisOptions) -> None:
        target = options.target()
        self._options = options
        self._names = Names(options.namespace, target.database)
        self._topology: Topology = _TOPOLOGIES[target.kind](target)
        self._listener = Listener(self._names.channel, self._topology.open_listener)
        self._slots: dict[str, int] = {}
        self._home = slot_of(self._names.layout)

    # Opening.

    async def open(self) -> None:
        """Reaches the server and looks at what is there.

        Raises:
            StoreError: It cannot be used.
        """
        await self._topology.start()
        about = dict(_lines(await self._ask("INFO", "server")))
        _check_server(about, self._topology.apart)
        await self._check_eviction()
        layout = await self._ask("GET", self._names.layout)
        if layout is None:
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
        """Refuses a namespace in which 1.x keeps tasks."""
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
        """Closes every connection."""
        await self._listener.close()
        await self._topology.close()

    # Calling.

    async def _ask(self, *command: Argument) -> Reply:
        """The answer to a command for the server that has the namespace's own keys."""
        [replies] = _answers(
            await self._topology.perform(Lane.CLAIMS, [Call(self._home, None, command)])
        )
        return replies[0]

    def _slot(self, group: str) -> int:
        """The slot of a group."""
        slot = self._slots.get(group)
        if slot is None:
            slot = self._slots[group] = slot_of(self._names.of(group)[0])
        return slot

    def _parts(self, groups: Sequence[str]) -> list[_Part]:
        """The numbers of the groups, by slot; together where slots do not lie apart."""
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
        claim = _Claim(sources, now, token)
        parts = self._parts([source.group for source in sources])
        if len(parts) == 1:
            mode = _HELD_AND_NEW if repeated else _NEW
            await self._wave(claim, [(parts[0], limit)], mode)
        else:
            await self._waves(claim, parts, limit, repeated)
        return Claimed(claim.records, claim.next_due)

    async def _waves(self, claim: _Claim, parts: list[_Part], limit: int, repeated: bool) -> None:
        """Claims from sources that lie apart, all of them at once, and never more than the limit.

        Which of them have something due is known only when they have answered: what room those
        leave that have less than they may is offered in a further wave to those that have more.
        """
        if repeated:
            await self._wave(claim, [(part, limit) for part in parts], _HELD)
        while parts:
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
        """Asks each part for so many records at most; takes them in, and returns how many.

        A part whose server certainly did nothing, a node of a cluster that is down, counts as one
        that had something due and yielded nothing, so that the others go on.
        """
        calls = [self._claim_call(claim, part, limit, mode) for part, limit in asked]
        outcomes = await self._topology.perform(Lane.CLAIMS, calls)
        refused = [outcome for outcome in outcomes if isinstance(outcome, NotExecutedError)]
        if refused and len(refused) == len(outcomes):
            raise refused[0]
        found = []
        for (part, _), outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, NotExecutedError):
                logger.warning("Nothing is claimed for now from a part of the cluster: %s", outcome)
                claim.missed(part)
                found.append(-1)
            else:
                [(next_due, values)] = _answers([outcome])[0]
                found.append(claim.take_in(part, next_due, values))
        return found

    def _claim_call(self, claim: _Claim, part: _Part, limit: int, mode: str) -> Call:
        keys: list[Argument] = []
        numbers: dict[str, int] = {}
        now = claim.now
        arguments: list[Argument] = [now, token_text(claim.token), limit, mode]
        for place in part.places:
            source = claim.sources[place]
            number = numbers.get(source.group)
            if number is None:
                number = numbers[source.group] = len(numbers) + 1
                keys += self._names.of(source.group)[:2]
            room = claim.room[place]
            if isinstance(source, Group):
                arguments += (number, now + source.lease, source.before, room, "")
            else:
                arguments += (number, now + source.lease, now, room, source.key)
        return Call(part.slot, _CLAIM, (len(keys), *keys, *arguments))

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        lane = Lane.USERS
        if any(write.token is not None for write in batch):
            lane = Lane.OUTCOMES
        calls: list[Call] = []
        places: list[Sequence[int]] = []
        for part in self._parts([write.group for write in batch]):
            for first in range(0, len(part.places), WRITES_MAX):
                places.append(part.places[first : first + WRITES_MAX])
                calls.append(self._write_call(part.slot, [batch[at] for at in places[-1]], now))
        if wake:
            publish: Command = ("PUBLISH", self._names.channel, wake_payload(wake))
            if not calls:
                _answers(await self._topology.perform(lane, [Call(self._home, None, publish)]))
                return []
            calls[-1] = calls[-1]._replace(after=(publish, *calls[-1].after))
        if not calls:
            return []
        results: list[Result] = [Refused(None)] * len(batch)
        answers = _answers(await self._topology.perform(lane, calls))
        applied = Applied(0)
        for where, (replies, *after) in zip(places, answers, strict=True):
            self._check_confirmed(after)
            for at, reply in zip(where, replies, strict=True):
                if type(reply) is int:
                    # Most changes of a batch make the same version.
                    if reply != applied.version:
                        applied = Applied(reply)
                    results[at] = applied
                elif reply is not None:
                    group, key = batch[at][:2]
                    results[at] = Refused(record_from(group, key, reply))
        return results

    def _write_call(self, slot: int, writes: Iterable[Write], now: int) -> Call:
        keys: list[Argument] = []
        numbers: dict[str, int] = {}
        replicas = self._options.wait_replicas
        arguments: list[Argument] = [now, 1 if replicas else 0]
        for write in writes:
            group, key, _, expect, token = write
            number = numbers.get(group)
            if number is None:
                number = numbers[group] = len(numbers) + 1
                keys += self._names.of(group)
            held = "" if token is None else f"={token}"
            arguments += (number, key, expect, held, *change_texts(write))
        after: tuple[Command, ...] = (("WAIT", replicas, WAIT_TIMEOUT_MS),) if replicas else ()
        return Call(slot, _WRITE, (len(keys), *keys, *arguments), after)

    def _check_confirmed(self, after: Sequence[Reply]) -> None:
        """Raises where fewer replicas than wanted have what was written.

        Raises:
            StoreUnavailableError: It is written all the same, and may be lost in a failover.
        """
        wanted = self._options.wait_replicas
        if not wanted:
            return
        confirmed = after[-1]
        if not isinstance(confirmed, int) or confirmed < wanted:
            raise StoreUnavailableError(
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
        states, prefix, due_before = where
        _, records, keys = self._names.of(group)
        # No text in UTF-8 has a byte that is greater than F4.
        start = b"[" + encoded(prefix) if cursor is None else b"(" + encoded(cursor)
        end = b"(" + encoded(prefix) + b"\xff" if prefix else b"+"
        arguments: list[Argument] = [start, end, limit, max(limit, EXAMINED_MAX)]
        arguments.append("" if due_before is None else due_before)
        arguments.append(0 if states is None else 1)
        arguments += states or ()
        call = Call(self._slot(group), _SCAN, (2, keys, records, *arguments))
        [[(last, found)]] = _answers(await self._topology.perform(Lane.USERS, [call]))
        return Page(
            [
                record_from(group, decoded(key), value)
                for key, value in zip(found[::2], found[1::2], strict=True)
            ],
            None if last is None else decoded(last),
        )

    async def now(self) -> int | None:
        seconds, microseconds = await self._ask("TIME")
        return int(seconds) * 1_000_000 + int(microseconds)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return self._listener.watch(groups, on_wake)


class _Claim:
    """A claim, and what came of it so far."""

    def __init__(self, sources: Sequence[Source], now: int, token: str) -> None:
        self.sources = sources
        self.now = now
        self.token = token
        self.room = [source.share if isinstance(source, Group) else 1 for source in sources]
        self.records: list[Record] = []
        self.next_due: list[int | None] = [None] * len(sources)

    def room_of(self, part: _Part) -> int:
        """How many records its sources may still yield."""
        return sum(self.room[place] for place in part.places)

    def has_more(self, part: _Part) -> bool:
        """Whether a source of it has something due that it may still yield."""
        for place in part.places:
            source, next_due = self.sources[place], self.next_due[place]
            before = source.before if isinstance(source, Group) else self.now
            if self.room[place] and next_due is not None and next_due <= before:
                return True
        return False

    def missed(self, part: _Part) -> None:
        """Its server was not reached: somebody has to ask again."""
        for place in part.places:
            self.next_due[place] = self.now

    def take_in(self, part: _Part, next_due: list[bytes | None], values: list[Any]) -> int:
        """Takes in what ``claim.lua`` answered; returns how many records that are."""
        for place, due_at in zip(part.places, next_due, strict=True):
            self.next_due[place] = None if due_at is None else _instant(due_at)
        groups = list(dict.fromkeys(self.sources[place].group for place in part.places))
        records = [
            record_from(groups[number - 1], decoded(key), value, sound=True)
            for number, key, value in zip(values[::3], values[1::3], values[2::3], strict=True)
        ]
        self.records += records
        if len(self.sources) > len(part.places):
            yielding = {self._identity(place): place for place in part.places}
            for group, key, *_ in records:
                place = yielding.get((group, None), -1)
                self.room[yielding[group, key] if place < 0 else place] -= 1
        return len(records)

    def _identity(self, place: int) -> tuple[str, str | None]:
        source = self.sources[place]
        return source.group, None if isinstance(source, Group) else source.key


def _instant(text: bytes) -> int:
    """An instant as a record, or as a score of an index, tells it: that may have an exponent."""
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _answers(outcomes: Iterable[Outcome]) -> list[list[Reply]]:
    """What was answered to each call.

    Raises:
        StoreError: Of the first call that was not answered.
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
