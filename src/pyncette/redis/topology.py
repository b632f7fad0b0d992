"""Finds the server of a call: the only one, the master that sentinels report, or a cluster's node.

Knows slots, redirections and failovers; knows no keys and no records. A call is sent again only if
it was certainly not executed before: the server said so, or was never reached.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
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
    translated,
)
from pyncette.redis.layout import SLOTS
from pyncette.redis.options import Target, place_of

ATTEMPTS: Final = 6
"""How often a call is sent to another node if a cluster redirects it or is moving its keys."""

PAUSE_INITIAL_S: Final = 0.005
"""The first pause; each one is twice the one before. Together they last less than
``NODE_GRACE_S``."""

LOOK_TIMEOUT_S: Final = 2.0
"""How long one sentinel, or one node, may take to report the other servers."""

LOOK_INTERVAL_S: Final = 0.25
"""Maximum number of times that the nodes are asked which node has replaced an unreachable one."""

NODE_GRACE_S: Final = 0.4
"""How long a node may leave every call unanswered before it is suspected to hang. With the time to
ask another node it is less than the shortest deadline of a call (1 s)."""

LOOK_AGAIN_S: Final = 0.05
"""How often a suspected node is checked again."""

WITNESS_TIMEOUT_S: Final = 0.2
"""How long another node may take to answer, which shows that the cluster as a whole works."""

WITNESSES_MAX: Final = 2


class Script:
    """A Lua script of this package.

    Args:
        name: The name of its file, without the suffix.
    """

    def __init__(self, name: str) -> None:
        self.source = files(__package__ or "pyncette.redis").joinpath(f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """A command or a script for the server of a slot, and the commands that follow it.

    Attributes:
        slot: The slot; any number if there is no cluster.
        script: The script, whose number of keys, keys and arguments are ``command``. None:
            ``command`` is a command.
        command: See ``script``.
        after: Commands that are sent on the same connection after it.
        asking: Whether to send ``ASKING`` first, because the slot is being moved to the server.
    """

    slot: int
    script: Script | None
    command: Command
    after: tuple[Command, ...] = ()
    asking: bool = False

    def commands(self, with_source: bool) -> list[Command]:
        """All commands; the script is sent as its digest or in full."""
        command = self.command
        if self.script is not None and with_source:
            command = ("EVAL", self.script.source, *command)
        elif self.script is not None:
            command = ("EVALSHA", self.script.sha, *command)
        return [*([("ASKING",)] if self.asking else []), command, *self.after]


Outcome = list[Reply] | StoreError
"""The answers to a call and to the commands after it, or the error."""


class Topology(Protocol):
    """The servers, with the connections to each."""

    apart: bool
    """Whether slots may be on different servers, so that no call may use two of them."""

    async def start(self) -> None:
        """Finds the servers."""

    async def perform(self, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
        """Makes all calls in as few round trips as possible."""
        ...

    async def server_of(self, slot: int) -> Server:
        """Returns the server of a slot.

        Raises:
            StoreError: The server cannot be determined.
        """
        ...

    async def answers_beside(self, slots: Collection[int]) -> bool:
        """Whether another server answers, which has none of these slots."""
        ...

    def slots_beside(self, slot: int) -> list[int]:
        """One slot of each other server that may answer."""
        ...

    async def open_listener(self) -> tuple[Any, Server]:
        """Opens a connection that receives published messages, and returns its server, too."""
        ...

    async def close(self) -> None:
        """Closes every connection, and opens none from now on."""


async def _send(server: Server, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
    """Makes calls on one server, and sends it the scripts that it does not have."""
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
    """The outcome; if the server refused the call, as the matching error."""
    if isinstance(outcome, list) and isinstance(outcome[0], Exception):
        return translated(outcome[0], place)
    return outcome


class Direct:
    """One server: a fixed one, or the current master."""

    apart = False

    def __init__(self, target: Target, find: Callable[[Server | None], Awaitable[Server]]) -> None:
        """Does not connect yet.

        Args:
            target: The target; its dialers are closed with this object.
            find: Returns the server. Its argument is the server that it returned before, or None.
        """
        self._target = target
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
                    await before.retire()
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
            # It may have failed over, so the other connections to it are not trusted either.
            self._doubtful = True
            await server.drop_idle()
            if not all(isinstance(outcome, NotExecutedError) for outcome in outcomes):
                break
        return outcomes

    async def server_of(self, slot: int) -> Server:
        return await self._current()

    async def answers_beside(self, slots: Collection[int]) -> bool:
        return False

    def slots_beside(self, slot: int) -> list[int]:
        return []

    async def open_listener(self) -> tuple[Any, Server]:
        server = await self._current()
        try:
            return await server.open(), server
        except StoreUnavailableError:
            self._doubtful = True
            raise

    async def close(self) -> None:
        await _close(self._target)


async def _close(target: Target) -> None:
    try:
        await target.dialer.close()
    finally:
        await target.sentinel_dialer.close()


def fixed(target: Target) -> Direct:
    """The only server of a target."""
    [address] = target.addresses
    server = Server(place_of(address), target.dialer, address, target.pool_size)

    async def find(before: Server | None) -> Server:
        return server

    return Direct(target, find)


def by_sentinels(target: Target) -> Direct:
    """The master that sentinels report (Redis, "Guidelines for Redis clients with Sentinel")."""

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
            # The sentinel that answered is asked first the next time.
            target.addresses.remove(address)
            target.addresses.insert(0, address)
            return server
        text = f"No sentinel knows a master of '{target.service}': {'; '.join(reasons)}"
        raise StoreMisconfiguredError(text) if misconfigured else NotExecutedError(text)

    return Direct(target, find)


async def _master_known_to(target: Target, address: dict[str, Any], place: str) -> dict[str, Any]:
    connection = await target.sentinel_dialer.open(address, place)
    try:
        found = await ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
    except Exception as error:
        raise translated(error, place) from error
    finally:
        await target.sentinel_dialer.drop(connection)
    if not found:
        raise StoreMisconfiguredError(f"{place} knows no service '{target.service}'")
    return {"host": found[0].decode(), "port": int(found[1])}


async def _check_master(server: Server) -> None:
    """Refuses a server that the sentinels report as the master, but that is not the master yet."""
    connection = await server.open()
    try:
        role = await ask(connection, "ROLE")
    except Exception as error:
        raise translated(error, server.place) from error
    finally:
        await server.dialer.drop(connection)
    if role[0] != b"master":
        raise NotExecutedError(f"{server.place} is no master yet")


Address = tuple[str, int]


class Cluster:
    """Redis Cluster: each slot is on one master, until it moves.

    A node that hangs does not delay calls to other nodes for long. If it has not answered any call
    for ``NODE_GRACE_S``, another node is asked, because the network may be slow, or this process
    busy. If the other node answers, all calls to the first one are given up, and for
    ``connection.SILENT_FOR_S`` calls to it fail at once. The next call afterwards tries it again.

    Args:
        target: The addresses of some nodes, and how to connect.
    """

    apart = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._nodes: dict[Address, Server] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._looks = 0
        self._looked_at = 0.0
        self._looking = asyncio.Lock()

    async def start(self) -> None:
        await self._look()

    async def _look(self, seen: int | None = None) -> None:
        """Asks a node which node has which slot, unless that was done after the look ``seen``.

        Raises:
            StoreError: No node answers.
        """
        async with self._looking:
            if seen is not None and seen != self._looks:
                return
            self._looked_at = realtime.monotonic()
            known = list(self._nodes.values())
            chance.current().shuffle(known)
            known.sort(key=lambda server: server.silent)
            addresses = [server.address for server in known]
            reasons: list[str] = []
            misconfigured = True
            for address in [*addresses, *self._target.addresses]:
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
            await self._target.dialer.drop(connection)
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
            await self._nodes.pop(gone).retire()

    def _node(self, address: Address) -> Server:
        server = self._nodes.get(address)
        if server is None:
            found = {"host": address[0], "port": address[1]}
            server = Server(place_of(found), self._target.dialer, found, self._target.pool_size)
            self._nodes[address] = server
        return server

    async def perform(self, lane: Lane, calls: Sequence[Call]) -> list[Outcome]:
        routes: dict[Address | None, list[int]] = {}
        for at, call in enumerate(calls):
            routes.setdefault(self._owners[call.slot], []).append(at)
        if len(routes) == 1:
            [owner] = routes
            return await self._perform_at(owner, lane, calls)
        parts = await asyncio.gather(
            *(
                self._perform_at(owner, lane, [calls[at] for at in places])
                for owner, places in routes.items()
            )
        )
        outcomes: list[Outcome] = [NotExecutedError("not sent")] * len(calls)
        for places, part in zip(routes.values(), parts, strict=True):
            for at, outcome in zip(places, part, strict=True):
                outcomes[at] = outcome
        return outcomes

    async def _perform_at(
        self, owner: Address | None, lane: Lane, calls: Sequence[Call]
    ) -> list[Outcome]:
        """Makes calls on a node, and sends calls that it did not execute to another node."""
        looks = self._looks
        outcomes = await self._send_to(owner, lane, calls)
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
        if server.silent:
            silent = NotExecutedError(f"{server.place} did not answer a moment ago")
            return [silent] * len(calls)
        sending = asyncio.create_task(_send(server, lane, calls))
        try:
            while not sending.done():
                with suppress(TimeoutError):
                    async with realtime.timeout(max(NODE_GRACE_S - server.silence, LOOK_AGAIN_S)):
                        await asyncio.wait([sending])
                if not sending.done() and await self._hangs(owner, server):
                    break
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
        if sending.cancelled():
            text = f"{server.place} did not answer within {NODE_GRACE_S:g} s, while others did"
            return [StoreUnavailableError(text)] * len(calls)
        return [
            outcome if _is_redirected(outcome) else _refusal(outcome, server.place)
            for outcome in sending.result()
        ]

    async def _hangs(self, owner: Address, server: Server) -> bool:
        """Whether a node does not answer calls, although another node answers.

        Asking another node also gives this process time to read an answer that arrived while its
        event loop was blocked.
        """
        async with server.judging:
            if server.silent:
                return True
            if server.silence < NODE_GRACE_S or not await self._answers_beside({owner}):
                return False
            if server.silence < NODE_GRACE_S:
                return False
            server.found_silent()
            return True

    async def server_of(self, slot: int) -> Server:
        owner = self._owners[slot]
        if owner is None:
            raise NotExecutedError("No node of the cluster has this slot")
        return self._node(owner)

    async def answers_beside(self, slots: Collection[int]) -> bool:
        return await self._answers_beside({self._owners[slot] for slot in slots})

    async def _answers_beside(self, owners: Collection[Address | None]) -> bool:
        others = [server for owner, server in self._others(owners) if not server.silent]
        for server in others[:WITNESSES_MAX]:
            try:
                async with realtime.timeout(WITNESS_TIMEOUT_S):
                    connection = await server.open()
                    try:
                        await ask(connection, "PING")
                    finally:
                        await server.dialer.drop(connection)
            except Exception:  # any error: this node proves nothing
                continue
            return True
        return False

    def _others(self, owners: Collection[Address | None]) -> list[tuple[Address, Server]]:
        """The nodes that have slots, except some of them, in any order."""
        others = [
            (owner, self._node(owner))
            for owner in set(self._owners)
            if owner is not None and owner not in owners
        ]
        chance.current().shuffle(others)
        return others

    def slots_beside(self, slot: int) -> list[int]:
        return [
            self._owners.index(owner)
            for owner, server in self._others({self._owners[slot]})
            if not server.silent
        ]

    async def _follow(self, lane: Lane, call: Call, outcome: Outcome, looks: int) -> Outcome:
        """Sends a call to another node, if it was redirected or its node cannot be reached.

        Args:
            lane: The kind of call.
            call: The call that was not executed.
            outcome: The reason.
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
                moved = isinstance(reply, exceptions.MovedError)
                if not moved and looks == self._looks and not self._may_look():
                    return outcome
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

    def _may_look(self) -> bool:
        return realtime.monotonic() - self._looked_at >= LOOK_INTERVAL_S

    def _told(self, reply: Any, owner: Address | None) -> Address:
        """The address in a redirection; without a host, that of the node that redirects."""
        return self._reached(reply.host or (owner[0] if owner else ""), int(reply.port))

    async def open_listener(self) -> tuple[Any, Server]:
        servers = [server for _, server in self._others(())]
        if not servers:
            raise NotExecutedError("No node of the cluster is known")
        server = min(servers, key=lambda server: server.silent)
        try:
            return await server.open(), server
        except StoreUnavailableError:
            await self._look(self._looks)
            raise

    async def close(self) -> None:
        await _close(self._target)


def _is_redirected(outcome: Outcome) -> bool:
    return isinstance(outcome, list) and isinstance(
        outcome[0], exceptions.AskError | exceptions.MovedError | exceptions.TryAgainError
    )


def _is_stray(outcome: Outcome) -> bool:
    """Whether a call was certainly not executed, and may be sent to another node."""
    return isinstance(outcome, NotExecutedError) or _is_redirected(outcome)
