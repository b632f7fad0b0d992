"""A network between a store and the nodes of a cluster, in which one node can fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.stores.listening import leave


class Relay:
    """Carries bytes to a server on this machine. While it is silent, it takes them and keeps them.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self._there = port
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._carrying = asyncio.Event()
        self._carrying.set()
        self._deaf = False
        self.port = 0
        self.accepted = 0

    def fall_silent(self, *, deaf: bool) -> None:
        """From now on no answer comes back; where it is deaf, no request arrives either."""
        self._carrying.clear()
        self._deaf = deaf

    def recover(self) -> None:
        """What was kept arrives, and all that follows."""
        self._carrying.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Relay]:
        """Listens until it is closed."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            # A pump that was cancelled before it began has closed nothing.
            await leave(self._writers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        there, back = await asyncio.open_connection("127.0.0.1", self._there)
        self._writers.append(back)
        for pump in (self._pump(reader, back, True), self._pump(there, writer, False)):
            self._pumps.add(asyncio.create_task(pump))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bool
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if self._deaf or not request:
                    await self._carrying.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
