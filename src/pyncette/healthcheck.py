"""A health check over HTTP: does the loop still reach its store?

The part of HTTP that a probe of an orchestrator or a load balancer needs, on asyncio's own streams.
It reads the first line of a request and answers with a status; the handler decides whether the
app is healthy.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from pyncette.app import Pyncette
from pyncette.clock import realtime
from pyncette.context import PyncetteContext
from pyncette.engine.background import is_cancelled
from pyncette.errors import describe
from pyncette.logs import log_exception
from pyncette.options import whole_number

logger: Final = logging.getLogger(__name__)

HealthcheckHandler = Callable[[PyncetteContext], Awaitable[bool]]
"""Takes the context of the running app, and returns whether it is healthy."""

REQUEST_LINE_BYTES_MAX: Final = 8 * 1024
REQUEST_LINE_DEADLINE_S: Final = 5.0
"""How long a client may take to send the first line of its request."""

CLOSING_DEADLINE_S: Final = 1.0
"""How long a client may take to close the connection after it was answered."""

DISCARDED_BYTES_MAX: Final = 256 * 1024
"""Maximum bytes of the rest of a request that are read and discarded."""

CONNECTIONS_MAX: Final = 100
"""Maximum connections; further ones are closed at once, so that hanging clients use no files."""

PORT_TRIES: Final = 10
ACCEPTING_PASSES: Final = 4

# RFC 9112, 3: method, target and version, with one space between them.
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [!-~]+ HTTP/1\.[0-9]\r?\n")

_numbers = itertools.count(1)


async def default_healthcheck(app_context: PyncetteContext) -> bool:
    """Whether the loop reached its store less than two poll intervals ago, by the app's clock.

    It only reads the context and never calls the store.
    """
    age = app_context.clock.now() - app_context.last_tick
    return age < 2 * app_context.poll_interval


class HealthcheckServer:
    """The health check of an app, while the app is open.

    Attributes:
        port: The port that it listens on. If a free one is picked: the port that was picked when
            the app was opened last, and 0 before that.
    """

    def __init__(
        self,
        port: int,
        bind_address: str | None,
        handler: HealthcheckHandler,
        isolated: Callable[[], bool] = lambda: False,
    ) -> None:
        """Declares a server; see ``use_healthcheck_server``.

        Args:
            port: Where to listen.
            bind_address: The address.
            handler: Returns whether the app is healthy.
            isolated: Whether a test has isolated the app: then a free port is picked instead.
        """
        self._isolated = isolated
        self.port: int = port
        self._wanted_port = port
        self._bind_address = bind_address
        self._handler = handler

    async def serve(self, app_context: PyncetteContext) -> AsyncIterator[HealthcheckServer]:
        """The fixture: listens until the app's context closes.

        If it cannot listen, the log says so, and ``run`` of the context raises the ``OSError``: a
        worker must not run unwatched, but a program that only schedules may open the same app.
        """
        connections: set[asyncio.Task[None]] = set()
        closing = False

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if closing or len(connections) >= CONNECTIONS_MAX:
                writer.transport.abort()
                return
            connection = asyncio.create_task(
                self._connection(app_context, reader, writer), name="pyncette health check"
            )
            connections.add(connection)

            # A task that is cancelled before its first step cannot clean up by itself.
            def ended(connection: asyncio.Task[None]) -> None:
                connections.discard(connection)
                writer.transport.abort()

            connection.add_done_callback(ended)

        try:
            # An app that a test has isolated is open beside a worker of the same machine.
            server = await self._listen(0 if self._isolated() else self._wanted_port, connected)
        except OSError as error:
            refusal = OSError(error.errno, self._why_not(error))
            refusal.__cause__ = error
            logger.warning("%s", refusal.strerror)
            app_context._refuse_run(refusal)
            yield self
            return
        self.port = server.sockets[0].getsockname()[1]
        logger.info("Health check on port %d", self.port)
        try:
            yield self
        finally:
            closing = True
            server.close()
            for connection in connections:
                connection.cancel()
            if connections:
                await asyncio.wait(connections)
            await server.wait_closed()
            # asyncio takes a few passes to notice that a transport was aborted, and to hand over
            # a connection that it had just accepted.
            for _ in range(ACCEPTING_PASSES):
                await realtime.sleep(0)

    def _why_not(self, error: OSError) -> str:
        return (
            f"The health check cannot listen on port {self._wanted_port} ({describe(error)}). "
            "Each worker of a machine needs a port of its own: use_healthcheck_server(app, "
            "port=…), where port=0 picks a free one. A program that runs no tasks needs no health "
            "check: open the app with app.create(fixtures=False), or use app.sync()"
        )

    async def _listen(
        self,
        wanted_port: int,
        connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None],
    ) -> asyncio.Server:
        async def listen(port: int) -> asyncio.Server:
            return await asyncio.start_server(
                connected, self._bind_address, port, limit=REQUEST_LINE_BYTES_MAX
            )

        server = await listen(wanted_port)
        # Several addresses (IPv4 and IPv6) each got another free port: take one
        # that is free on all of them.
        for _ in range(PORT_TRIES):
            ports = [socket.getsockname()[1] for socket in server.sockets]
            if len(set(ports)) == 1:
                break
            server.close()
            await server.wait_closed()
            try:
                server = await listen(ports[0])
            except OSError:
                server = await listen(0)
        return server

    async def _connection(
        self,
        app_context: PyncetteContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            await self._answer(app_context, reader, writer)
        except OSError as error:
            logger.debug("A client of the health check went away: %s", error)

    async def _answer(
        self,
        app_context: PyncetteContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            async with realtime.timeout(REQUEST_LINE_DEADLINE_S):
                line = await reader.readuntil(b"\n")
        except TimeoutError:
            method, status = b"", HTTPStatus.REQUEST_TIMEOUT
        except asyncio.LimitOverrunError:
            method, status = b"", HTTPStatus.BAD_REQUEST
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return  # a probe that only opens a connection
            method, status = b"", HTTPStatus.BAD_REQUEST
        else:
            method, status = await self._status(app_context, line)
        if writer.is_closing():
            return
        writer.write(_response(status, with_body=method != b"HEAD"))
        # A connection that is closed with unread data is reset, which may destroy the
        # answer. So the client is told that the answer is complete, and closes first.
        writer.write_eof()
        discarded = 0
        with suppress(TimeoutError):
            async with realtime.timeout(CLOSING_DEADLINE_S):
                while discarded < DISCARDED_BYTES_MAX and (rest := await reader.read(64 * 1024)):
                    discarded += len(rest)

    async def _status(self, app_context: PyncetteContext, line: bytes) -> tuple[bytes, HTTPStatus]:
        request = _REQUEST_LINE.fullmatch(line)
        if request is None:
            return b"", HTTPStatus.BAD_REQUEST
        method = request[1]
        if method not in (b"GET", b"HEAD"):
            return method, HTTPStatus.METHOD_NOT_ALLOWED
        connection = asyncio.current_task()
        try:
            healthy = await self._handler(app_context)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # The connection is closed, or this coroutine is.
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            if isinstance(error, GeneratorExit) and asyncio.current_task() is not connection:
                raise
            log_exception(logger, logging.ERROR, error, "The health check failed")
            healthy = False
        return method, HTTPStatus.OK if healthy else HTTPStatus.INTERNAL_SERVER_ERROR


def _response(status: HTTPStatus, with_body: bool) -> bytes:
    body = b"OK" if status is HTTPStatus.OK else status.phrase.encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET, HEAD")
    return "\r\n".join([*head, "", ""]).encode() + (body if with_body else b"")


def use_healthcheck_server(
    app: Pyncette,
    port: int = 8080,
    bind_address: str | None = None,
    healthcheck_handler: HealthcheckHandler = default_healthcheck,
) -> HealthcheckServer:
    """Adds an HTTP server to the app that reports whether the app is healthy.

    It listens from when the app is opened (with its fixtures) until the last task has ended. If
    the port is in use, the log warns, and ``run`` raises an ``OSError``. The answers, for any path:

    - ``GET``: 200 and ``OK`` if the app is healthy, else 500 (also if the handler raises).
    - ``HEAD``: the same without a body.
    - Any other method: 405.
    - No HTTP request, or a first line longer than 8 kB: 400.
    - No complete first line within 5 s: 408.

    Args:
        app: The app.
        port: Where to listen; with 0, and in an app that a test has isolated, a free port is
            picked each time the app is opened.
        bind_address: The address to listen on; all addresses of the machine if not given.
        healthcheck_handler: Takes the app's context and returns whether the app is healthy. By
            default it is healthy if the loop has reached its store within the last two poll
            intervals, or the app was opened within them.

    Returns:
        The server; its ``port`` is the port on which it listens once the app is open.

    Raises:
        ValueError: ``port`` is not a port number.
    """
    whole_number("port", port, 0, 65_535)
    server = HealthcheckServer(port, bind_address, healthcheck_handler, lambda: app._isolated)
    app.use_fixture(f"pyncette_healthcheck_server_{next(_numbers)}", server.serve)
    return server
