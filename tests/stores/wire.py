"""A network between a store and its server that can stop carrying anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from tests.stores.listening import leave


class Wire:
    """A forwarder in front of a server; what it carries can be frozen, as if it had vanished.

    Args:
        target: URL of the server.
    """

    def __init__(self, target: str) -> None:
        self._parts = urlsplit(target)
        self._frozen: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._requests: set[asyncio.Task[None]] = set()
        # For what carries requests, what carries their answers.
        self._partners: dict[asyncio.Task[None] | None, list[asyncio.Task[None]]] = {}
        self.connections = 0
        self.cut_before: bytes | None = None
        """A connection ends before it carries anything that contains this."""
        self.cut_after: bytes | None = None
        """A connection ends after a request that contains this was carried: its answer is lost."""
        self.hold_before: bytes | None = None
        """The next connection that is about to carry this carries no request from then on, while
        both of its ends stay open, until ``release`` ends it."""
        self._held = asyncio.Event()
        self._released = asyncio.Event()
        self.keep_open = False
        """Whether this side stays open when the other one has ended."""
        self.ended = asyncio.Event()

    @property
    def url(self) -> str:
        """The URL of the server, by way of this wire."""
        credentials = self._parts.netloc.rpartition("@")[0]
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(self._parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Carries until it is closed."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            # A pump that was cancelled before it began has closed nothing.
            await leave(self._writers)

    def freeze_requests(self) -> None:
        """From now on nothing reaches the server on the connections that there are."""
        self._frozen = set(self._requests)

    def freeze(self) -> None:
        """From now on nothing arrives on the connections that there are. New ones work."""
        self._frozen = set(self._pumps)

    async def held(self) -> None:
        """Until ``hold_before`` has held a connection."""
        await self._held.wait()

    def release(self) -> None:
        """Ends the connection that ``hold_before`` has held: its server learns of it."""
        self._released.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers.append(back)
        requests = asyncio.create_task(self._pump(reader, back))
        self._requests.add(requests)
        answers = asyncio.create_task(self._pump(there, writer))
        self._partners[requests] = [answers]
        self._pumps |= {requests, answers}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                if self.cut_before is not None and self.cut_before in data:
                    return
                if self.hold_before is not None and self.hold_before in data:
                    self.hold_before = None
                    self._held.set()
                    await self._released.wait()
                    return
                if asyncio.current_task() in self._frozen:
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()
                if self.cut_after is not None and self.cut_after in data:
                    for pump in self._partners.pop(asyncio.current_task(), ()):
                        pump.cancel()
            self.ended.set()
            if self.keep_open:
                await asyncio.Event().wait()
        except ConnectionError:
            pass
        finally:
            writer.close()
