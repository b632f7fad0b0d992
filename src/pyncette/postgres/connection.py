"""Connections to PostgreSQL: how to open, set up and close them, and how to listen on one.

Knows asyncpg and its errors; knows no table. ``pyncette.store.sql.pool`` shares connections between
calls.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

try:
    import asyncpg
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "The store in PostgreSQL needs asyncpg: pip install 'pyncette[postgres]'"
    ) from error

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.store.sql import pool
from pyncette.store.sql.listener import Tell

CONNECT_TIMEOUT_S: Final = 10.0
CONNECT_GRACE_S: Final = 0.5
"""How long connecting goes on after a cancellation before it is cancelled, too."""
PING_INTERVAL_S: Final = 5.0
"""How often a listening connection is pinged, and how long the answer may take."""

Connection = Any
"""An asyncpg connection, or a pool's proxy of one."""

Connect = Callable[[], Awaitable[Connection]]

# The parts that contain no secret: host, port and database of a valid URL.
_PLAIN_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/?#]*@)?(?P<host>[\w.,:\[\]%-]*)(?P<database>/[\w.%-]*)?(?:\?[^@]*)?"
)

# A prepared statement is not known at the server, because there is a pooler in between.
_STATEMENT_ERRORS: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)
_BAD_VALUE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
_MISCONFIGURED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.SyntaxOrAccessError,
)

# Settings of the store's own connections. Every statement uses an index: a plan that was made while
# the table was small must not scan it when it is large, and planning again for each call is not
# worth its cost. A server that is too old for a setting does without it. The timeouts are a second
# limit beside the deadline of a call: a statement that was given up and could not be cancelled ends
# by itself, so that no session waits for a locked table for long.
SESSION: Final = """\
SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_bitmapscan', 'off'),
    ('enable_hashjoin', 'off'),
    ('enable_mergejoin', 'off'),
    ('enable_memoize', 'off'),
    ('jit', 'off'),
    ('default_transaction_isolation', 'read committed'),
    ('lock_timeout', '5s'),
    ('statement_timeout', '15s')
) AS ours(option, wanted) ON name = option"""


def place_of(url: str) -> str:
    """Host and database of a URL, for messages; never a part that may be secret."""
    plain = _PLAIN_URL.fullmatch(url)
    if plain is None or not plain["host"]:
        return "PostgreSQL"
    return f"PostgreSQL at {plain['host']}{plain['database'] or ''}"


def translated(error: Exception, place: str) -> StoreError:
    """Translates an error of the driver or the network to one of Pyncette's."""
    if isinstance(error, StoreError):
        return error
    text = f"{place}: {error or type(error).__name__}"
    if isinstance(error, _STATEMENT_ERRORS):
        return StoreMisconfiguredError(
            f"{text} (behind a pooler in transaction mode, a pool of connections must be made "
            "with statement_cache_size=0)"
        )
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return StoreUnavailableError(f"{text} (is it a standby?)")
    if isinstance(error, _MISCONFIGURED):
        return StoreMisconfiguredError(text)
    return StoreUnavailableError(text)


async def connect(url: str, place: str, *, named: bool) -> Connection:
    """Opens a connection.

    Args:
        url: The address of the server.
        place: The server, for messages.
        named: Whether statements may be prepared under names, since there is no pooler.

    Raises:
        StoreUnavailableError: The server cannot be reached now.
        StoreMisconfiguredError: The server refuses the login or the database.
    """
    try:
        return await _to_its_end(
            asyncpg.connect(
                url, timeout=CONNECT_TIMEOUT_S, statement_cache_size=100 if named else 0
            )
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
        raise translated(error, place) from error
    except (ValueError, asyncpg.InterfaceError) as error:
        # The driver's message quotes parts of the URL, which may be parts of the password.
        raise StoreMisconfiguredError(
            f"{place}: postgres_url is not understood ({type(error).__name__}); expected is "
            "postgresql://user:***@host:port/database, with what is special percent-encoded"
        ) from None


async def _to_its_end(connecting: Coroutine[Any, Any, Connection]) -> Connection:
    """Connects; if the caller is cancelled meanwhile, the connection is completed and closed.

    A cancellation at certain steps makes asyncpg leave a future with an error that is never
    retrieved, and is logged. These steps are over after one round trip. So what takes longer than
    ``CONNECT_GRACE_S`` waits for the server, and is cancelled.
    """
    task = asyncio.get_running_loop().create_task(connecting, name="pyncette connecting")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            async with realtime.timeout(CONNECT_GRACE_S):
                await asyncio.wait([task])
        except TimeoutError:
            pass
        finally:
            task.cancel()
            task.add_done_callback(_terminate)
        await asyncio.wait([task])
        raise


def _terminate(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


async def set_up(connection: Connection, place: str) -> Connection:
    """Prepares the session of a connection for the store."""
    try:
        await connection.execute(SESSION)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, Exception):
            raise translated(error, place) from error
        raise
    return connection


async def is_pooled(connection: Connection) -> bool:
    """Whether there is a pooler: statements run in another session than the one that greeted."""
    # Without a name, which would stay on the pooler's connection and cause a conflict there.
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    return bool(await statement.fetchval() != connection.get_server_pid())


def refusal(error: Exception) -> ValueError | None:
    """The error about a value that cannot be stored; None if the error has another cause.

    The driver refuses some values itself, before it sends anything.
    """
    if isinstance(error, _BAD_VALUE) or (
        isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    ):
        return ValueError(f"PostgreSQL cannot keep a value: {error}")
    return None


def _answered(error: BaseException) -> bool:
    """Whether the server answered with an error, and the connection can be used further."""
    return isinstance(error, asyncpg.PostgresError) and not isinstance(
        error, asyncpg.PostgresConnectionError
    )


def _unsent(error: BaseException) -> bool:
    """Whether the server cannot have executed the statement.

    asyncpg does not send if it has read that the server ends the session. And a session that ends
    because it was idle has read no statement, even if one was sent already.
    """
    if isinstance(error, asyncpg.InternalClientError):
        text = str(error)
        return text.startswith("cannot switch to state") or text == "not connected"
    if isinstance(error, asyncpg.InterfaceError):
        return "connection is closed" in str(error)
    return any(
        isinstance(seen, asyncpg.IdleSessionTimeoutError) for seen in (error, error.__cause__)
    )


def driver_of(place: str) -> pool.Driver:
    """Tells a pool what it needs to know about asyncpg."""
    return pool.Driver(
        errors=(
            OSError,
            TimeoutError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ),
        translated=partial(translated, place=place),
        is_open=lambda connection: not connection.is_closed(),
        answered=_answered,
        unsent=_unsent,
    )


class OwnConnections:
    """Connections that the store opens and closes; see ``pyncette.store.sql.pool.Supply``.

    Args:
        open_one: Opens a connection.
    """

    def __init__(self, open_one: Connect) -> None:
        self._open_one = open_one

    async def open(self) -> Connection:
        return await self._open_one()

    async def close(self, connection: Connection) -> None:
        # This cancels the running statement at the server.
        await connection.close()

    def drop(self, connection: Connection) -> None:
        connection.terminate()


class LentConnections:
    """Connections of the application's pool; see ``pyncette.store.sql.pool.Supply``.

    Args:
        lender: An ``asyncpg.Pool``.
    """

    def __init__(self, lender: Any) -> None:
        self._lender = lender

    async def open(self) -> Connection:
        return await self._lender.acquire()

    async def close(self, connection: Connection) -> None:
        # The pool waits until the cancelled statement has ended at the server, and resets the
        # session.
        await self._lender.release(connection)

    def drop(self, connection: Connection) -> None:
        # Its pool notices that, and can open another one.
        with suppress(asyncpg.InterfaceError):  # returned in the meantime
            connection.terminate()


async def close(connection: Connection) -> None:
    """Closes a connection that is in no pool; errors are ignored."""
    try:
        async with realtime.timeout(pool.CLOSE_TIMEOUT_S):
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def listen(open_one: Connect, channel: str, tell: Tell) -> None:
    """Listens on a channel as long as the connection answers.

    A lost connection that is still open on this side is detected within two ping intervals.

    Args:
        open_one: Opens a connection that no pooler shares.
        channel: The name of the channel.
        tell: See ``pyncette.store.sql.listener.Listener``.
    """

    def heard(connection: Connection, pid: int, channel: str, payload: str) -> None:
        try:
            tell(frozenset(json.loads(payload)))
        except (ValueError, TypeError):  # any session may send anything on a channel
            tell(None)

    connection = await open_one()
    try:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        async with realtime.timeout(CONNECT_TIMEOUT_S):
            await connection.add_listener(channel, heard)
        tell(None)
        while not connection.is_closed():
            try:
                async with realtime.timeout(PING_INTERVAL_S):
                    await lost.wait()
            except TimeoutError:
                try:
                    async with realtime.timeout(PING_INTERVAL_S):
                        await connection.execute("SELECT 1")
                except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    return
    finally:
        connection.terminate()
