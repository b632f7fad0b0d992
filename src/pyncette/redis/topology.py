"""Which server a call goes to: the one there is, the master that sentinels name, a cluster's.

Knows slots, redirections and failovers; knows no keys and no records. What is sent again here was
certainly not done before: the server said so, or was never reached.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol

from redis import exceptions

from pyncette import chance
from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis.connection import (
    Command,
    Lane,
    NotExecutedError,
    Reply,
    Server,
    ask,
    drop,
    translated,
)
from pyncette.redis.layout import SLOTS
from pyncette.redis.options import Target, place_of

ATTEMPTS: Final = 6
"""How often a call is sent on when a cluster redirects it or is moving its keys."""

PAUSE_INITIAL_S: Final = 0.01
LOOK_TIMEOUT_S: Final = 2.0
"""How long one sentinel, or one node, may take to say where the others are."""


class Script:
    """A Lua script of this package.

    Args:
        name: Of its file, without the ending.
    """

    def __init__(self, name: str) -> None:
        self.source = files(__package__ or "pyncette.redis").joinpath(f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """A command or a script for the server that has a slot, and what follows right behind it.

    Attributes:
        slot: Any, where there is no cluster.
        script: Its keys and arguments are ``command``, their number first; None: ``command`` is
            a command.
        command: See ``script``.
        after: Commands for the same connection, once the first one is done.
        asking: The slot is on its way to the server, which serves only who asks for it.
    """

    slot: int
    script: Script | None
    command: Command
    after: tuple[Command, ...] = ()
    asking: bool = False

    def commands(self, with_source: bool) -> list[Command]:
        """All of it, the script by its digest or in full."""
        command = self.command
        if self.script is not None and with_source:
            command = ("EVAL", self.script.source, *command)
        elif self.script is not None:
            command = ("EVALSHA", self.script.sha, *command)
        return [*([("ASKING",)] if self.asking else []), command, *self.after]


Outcome = list[Reply] | StoreError
"""The answers to a call and to what follows it, or why there is none."""


class Topology(Protocol):
    """The servers, and the way to each."""

    apart: bool
    """Whether slots lie apart, so that no call may touch two of them."""

    async def start(self) -> None:
        """Finds the servers."""

    async def perform(self, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
        """Makes all calls, in as few trips as there can be."""
        ...

    async def open_listener(self) -> tuple[Any, str]:
        """A connection that hears what is published, and where it leads, in words."""
        ...

    async def close(self) -> None:
        """Closes every connection."""


async def _send(server: Server, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
    """Makes calls on one server, scripts that it does not know included."""
    outcomes: list[Outcome] = [[] for _ in calls]
    left = list(range(len(calls)))
    for with_source in (False, True):
        commands = [calls[at].commands(with_source) for at in left]
        try:
            replies = await server.send(lane, [one for several in commands for one in several])
        except StoreError as error:
            for at in left:
                outcomes[at] = error
            return outcomes
        first = 0
        unknown = []
        for at, several in zip(left, commands, strict=True):
            answer = replies[first : first + len(several)]
            first += len(several)
            if calls[at].asking:
                del answer[0]
            outcomes[at] = answer
            if isinstance(answer[0], exceptions.NoScriptError):
                unknown.append(at)
        if not unknown:
            return outcomes
        left = unknown
    return outcomes


def _refusal(outcome: Outcome, place: str) -> Outcome:
    """The outcome; where the server refused the call, the error that this is."""
    if isinstance(outcome, list) and isinstance(outcome[0], Exception):
        return translated(outcome[0], place)
    return outcome


class Direct:
    """One server: always the same, or the master of the moment."""

    apart = False

    def __init__(self, find: Callable[[Server | None], Awaitable[Server]]) -> None:
        """Prepares the way.

        Args:
            find: Returns the server; given the one that it returned before, if any.
        """
        self._find = find
        self._server: Server | None = None
        self._doubtful = True
        self._finding = asyncio.Lock()

    async def start(self) -> None:
        await self._current()

    async def _current(self) -> Server:
        if self._server is not None and not self._doubtful:
            return self._server
        async with self._finding:
            if self._server is None or self._doubtful:
                before = self._server
                self._server = await self._find(before)
                self._doubtful = False
                if before is not None and before is not self._server:
                    await before.close()
            return self._server

    async def perform(self, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
        server: Server | None = None
        outcomes: list[Outcome] = []
        for _ in range(2):
            before = server
            try:
                server = await self._current()
            except StoreError as error:
                return [error] * len(calls)
            if server is before:
                break
            outcomes = [_refusal(one, server.place) for one in await _send(server, lane, calls)]
            if not any(isinstance(outcome, StoreUnavailableError) for outcome in outcomes):
                break
            # It may have failed over: what is connected to it is as doubtful as it is.
            self._doubtful = True
            await server.close(and_forget=False)
            if not all(isinstance(outcome, NotExecutedError) for outcome in outcomes):
                break
        return outcomes

    async def open_listener(self) -> tuple[Any, str]:
        server = await self._current()
        try:
            return await server.open(), server.place
        except StoreUnavailableError:
            self._doubtful = True
            raise

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()


def fixed(target: Target) -> Direct:
    """The one server of a target."""
    [address] = target.addresses
    server = Server(place_of(address), target.dialer, address, target.pool_size)

    async def find(before: Server | None) -> Server:
        return server

    return Direct(find)


def by_sentinels(target: Target) -> Direct:
    """The master that sentinels name (Redis, "Guidelines for Redis clients with Sentinel")."""

    async def find(before: Server | None) -> Server:
        reasons: list[str] = []
        misconfigured = True
        for address in list(target.addresses):
            place = place_of(address).replace("Redis", "Sentinel", 1)
            try:
                async with realtime.timeout(LOOK_TIMEOUT_S):
                    found = await _master_known_to(target, address, place)
                    server = before
                    if server is None or server.address != found:
                        server = Server(place_of(found), target.dialer, found, target.pool_size)
                    await _check_master(server)
            except (StoreError, TimeoutError) as error:
                misconfigured = misconfigured and isinstance(error, StoreMisconfiguredError)
                reasons.append(str(error) or f"{place} does not answer")
                continue
            # The one that answered is asked first the next time.
            target.addresses.remove(address)
            target.addresses.insert(0, address)
            return server
        text = f"No sentinel knows a master of '{target.service}': {'; '.join(reasons)}"
        raise StoreMisconfiguredError(text) if misconfigured else NotExecutedError(text)

    return Direct(find)


async def _master_known_to(target: Target, address: dict[str, Any], place: str) -> dict[str, Any]:
    connection = await target.sentinel_dialer.open(address, place)
    try:
        found = await ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
    except Exception as error:
        raise translated(error, place) from error
    finally:
        await drop(connection)
    if not found:
        raise StoreMisconfiguredError(f"{place} knows no service '{target.service}'")
    return {"host": found[0].decode(), "port": int(found[1])}


async def _check_master(server: Server) -> None:
    """Refuses a server that sentinels take for the master, and that knows nothing of it yet."""
    connection = await server.open()
    try:
        role = await ask(connection, "ROLE")
    except Exception as error:
        raise translated(error, server.place) from error
    finally:
        await drop(connection)
    if role[0] != b"master":
        raise NotExecutedError(f"{server.place} is no master yet")


Address = tuple[str, int]


class Cluster:
    """Redis Cluster: each slot lies on one master, until it moves.

    Args:
        target: Some of its nodes, and how to connect.
    """

    apart = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._nodes: dict[Address, Server] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._looks = 0
        self._looking = asyncio.Lock()

    async def start(self) -> None:
        await self._look()

    async def _look(self, seen: int | None = None) -> None:
        """Asks the nodes who has which slot, unless somebody has since the look ``seen``.

        Raises:
            StoreError: None of them answers.
        """
        async with self._looking:
            if seen is not None and seen != self._looks:
                return
            known = [server.address for server in self._nodes.values()]
            chance.current().shuffle(known)
            reasons: list[str] = []
            misconfigured = True
            for address in [*known, *self._target.addresses]:
                try:
                    async with realtime.timeout(LOOK_TIMEOUT_S):
                        ranges = await self._slots_known_to(address)
                except (StoreError, TimeoutError) as error:
                    misconfigured = misconfigured and isinstance(error, StoreMisconfiguredError)
                    reasons.append(str(error) or f"{place_of(address)} does not answer")
                    continue
                await self._take_in(ranges)
                return
            text = f"No node of the cluster can be asked: {'; '.join(reasons)}"
            raise StoreMisconfiguredError(text) if misconfigured else NotExecutedError(text)

    async def _slots_known_to(self, address: dict[str, Any]) -> list[tuple[int, int, Address]]:
        place = place_of(address)
        connection = await self._target.dialer.open(address, place)
        try:
            ranges = await ask(connection, "CLUSTER", "SLOTS")
        except Exception as error:
            raise translated(error, place) from error
        finally:
            await drop(connection)
        return [
            (first, last, self._reached((node[0] or b"").decode() or address["host"], node[1]))
            for first, last, node, *_ in ranges
        ]

    def _reached(self, host: str, port: int) -> Address:
        remap = self._target.remap
        return (host, port) if remap is None else remap((host, port))

    async def _take_in(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        self._looks += 1
        owners: list[Address | None] = [None] * SLOTS
        for first, last, owner in ranges:
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        current = set(owners)
        for gone in [address for address in self._nodes if address not in current]:
            await self._nodes.pop(gone).close()

    def _node(self, address: Address) -> Server:
        server = self._nodes.get(address)
        if server is None:
            found = {"host": address[0], "port": address[1]}
            server = Server(place_of(found), self._target.dialer, found, self._target.pool_size)
            self._nodes[address] = server
        return server

    async def perform(self, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
        looks = self._looks
        routes: dict[Address | None, list[int]] = {}
        for at, call in enumerate(calls):
            routes.setdefault(self._owners[call.slot], []).append(at)
        if len(routes) == 1:
            [owner] = routes
            outcomes = await self._send_to(owner, lane, calls)
        else:
            outcomes = [NotExecutedError("not sent")] * len(calls)
            answers = await asyncio.gather(
                *(
                    self._send_to(owner, lane, [calls[at] for at in places])
                    for owner, places in routes.items()
                )
            )
            for places, answer in zip(routes.values(), answers, strict=True):
                for at, outcome in zip(places, answer, strict=True):
                    outcomes[at] = outcome
        strays = [at for at, outcome in enumerate(outcomes) if _is_stray(outcome)]
        if strays:
            followed = await asyncio.gather(
                *(self._follow(lane, calls[at], outcomes[at], looks) for at in strays)
            )
            for at, outcome in zip(strays, followed, strict=True):
                outcomes[at] = outcome
        return outcomes

    async def _send_to(
        self, owner: Address | None, lane: Lane, calls: Sequence[Call]
    ) -> list[Outcome]:
        if owner is None:
            return [NotExecutedError("No node of the cluster has this slot")] * len(calls)
        server = self._node(owner)
        outcomes = await _send(server, lane, calls)
        return [
            outcome if _is_redirected(outcome) else _refusal(outcome, server.place)
            for outcome in outcomes
        ]

    async def _follow(self, lane: Lane, call: Call, outcome: Outcome, looks: int) -> Outcome:
        """Sends a call on that was redirected, or whose node is out of reach.

        Args:
            lane: For whom.
            call: What was not done.
            outcome: Why.
            looks: How often the nodes had been asked for their slots before it was sent.
        """
        owner = self._owners[call.slot]
        pause = PAUSE_INITIAL_S
        for _ in range(ATTEMPTS):
            reply = outcome[0] if isinstance(outcome, list) else outcome
            asking = False
            target: Address | None = None
            if isinstance(reply, exceptions.AskError):
                target, asking = self._told(reply, owner), True
            elif isinstance(reply, exceptions.TryAgainError):
                await realtime.sleep(pause)
                pause *= 2
            else:
                try:
                    await self._look(looks)
                except StoreError as error:
                    return error
                if isinstance(reply, exceptions.MovedError):
                    target = self._told(reply, owner)
                elif self._owners[call.slot] == owner:
                    return outcome
            looks = self._looks
            owner = target or self._owners[call.slot]
            [outcome] = await self._send_to(owner, lane, [call._replace(asking=asking)])
            if not _is_stray(outcome):
                return outcome
        if isinstance(outcome, list):
            return NotExecutedError(f"The cluster keeps moving slot {call.slot}: {outcome[0]}")
        return outcome

    def _told(self, reply: Any, owner: Address | None) -> Address:
        """The address that a redirection names; without a host it is that of who redirects."""
        return self._reached(reply.host or (owner[0] if owner else ""), int(reply.port))

    async def open_listener(self) -> tuple[Any, str]:
        owners = [address for address in set(self._owners) if address is not None]
        if not owners:
            raise NotExecutedError("No node of the cluster is known")
        server = self._node(chance.current().choice(owners))
        try:
            return await server.open(), server.place
        except StoreUnavailableError:
            await self._look(self._looks)
            raise

    async def close(self) -> None:
        for server in self._nodes.values():
            await server.close()


def _is_redirected(outcome: Outcome) -> bool:
    return isinstance(outcome, list) and isinstance(
        outcome[0], exceptions.AskError | exceptions.MovedError | exceptions.TryAgainError
    )


def _is_stray(outcome: Outcome) -> bool:
    """Whether a call was certainly not done, and may be by somebody else."""
    return isinstance(outcome, NotExecutedError) or _is_redirected(outcome)
