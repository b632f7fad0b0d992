"""A server of a test that leaves no connection behind, whatever its handler does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """Has connections to a port served, and closes all of them at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await handler(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await leave(writers)


async def leave(writers: Iterable[asyncio.StreamWriter]) -> None:
    """Closes what a server has accepted.

    Before Python 3.11.4, asyncio leaves open what was served by a task that was cancelled.
    """
    for _ in range(10):  # what was just accepted is known some passes later
        await asyncio.sleep(0)
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)
