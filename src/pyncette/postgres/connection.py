"""Connections to PostgreSQL: how to open, set up and close them, and how to listen on one.

Knows asyncpg and what its errors mean; knows no table. How connections are shared between calls
is in ``pyncette.store.sql.pool``.
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
"""How often a listening connection is asked whether it is still there, and how long it may take."""

Connection = Any
"""An asyncpg connection, or the proxy of one that a pool lends."""

Connect = Callable[[], Awaitable[Connection]]

# What is known to hold no secret: host, port and database of a URL that is as it should be.
_PLAIN_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/?#]*@)?(?P<host>[\w.,:\[\]%-]*)(?P<database>/[\w.%-]*)?(?:\?[^@]*)?"
)

# A statement was sent to a connection that does not know it: there is a pooler in between.
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

# Settings of connections of our own. Every statement of the store is served by an index; a plan
# made while the table was tiny must not read all of it when it has grown, and none is worth being
# made anew for each call. A server that is too old to know one of them goes without. The timeouts
# are the second net below the deadline of a call: what was given up and could not be cancelled
# ends by itself, so that no session of ours goes on waiting for a table that is locked.
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
    """Host and database of a URL, for messages; never a part of it that may be a secret."""
    plain = _PLAIN_URL.fullmatch(url)
    if plain is None or not plain["host"]:
        return "PostgreSQL"
    return f"PostgreSQL at {plain['host']}{plain['database'] or ''}"


def translated(error: Exception, place: str) -> StoreError:
    """The error of the driver or of the network as one of ours."""
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
        url: Where to.
        place: Where to, in words.
        named: Statements may be given names, and kept under them: there is no pooler in between.

    Raises:
        StoreUnavailableError: The server cannot be reached, or not now.
        StoreMisconfiguredError: It answers, but not to this URL.
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
        # The driver quotes parts of the URL, which may be parts of the password.
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
    """Makes the session of a connection the store's own."""
    try:
        await connection.execute(SESSION)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, Exception):
            raise translated(error, place) from error
        raise
    return connection


async def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: another session than the greeting one runs statements."""
    # Without a name, which would stay behind on a pooler's connection and meet its like there.
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    return bool(await statement.fetchval() != connection.get_server_pid())


def refusal(error: Exception) -> ValueError | None:
    """What an error says about a value that cannot be kept; None where it is about something else.

    The driver refuses some values itself, before it sends anything.
    """
    if isinstance(error, _BAD_VALUE) or (
        isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    ):
        return ValueError(f"PostgreSQL cannot keep a value: {error}")
    return None


def _answered(error: BaseException) -> bool:
    """Whether the server has said no, and waits for the next statement."""
    return isinstance(error, asyncpg.PostgresError) and not isinstance(
        error, asyncpg.PostgresConnectionError
    )


def _unsent(error: BaseException) -> bool:
    """Whether the server cannot have executed the statement.

    asyncpg refuses to send where it has read that the server ends the session. And a session that
    ends because it was idle has read no statement, even where we had sent one already.
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
    """What a pool has to know about asyncpg."""
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
        open_one: Opens one.
    """

    def __init__(self, open_one: Connect) -> None:
        self._open_one = open_one

    async def open(self) -> Connection:
        return await self._open_one()

    async def close(self, connection: Connection) -> None:
        # This cancels at the server what still runs.
        await connection.close()

    def drop(self, connection: Connection) -> None:
        connection.terminate()


class LentConnections:
    """Connections of a pool of the application's; see ``pyncette.store.sql.pool.Supply``.

    Args:
        lender: An ``asyncpg.Pool``.
    """

    def __init__(self, lender: Any) -> None:
        self._lender = lender

    async def open(self) -> Connection:
        return await self._lender.acquire()

    async def close(self, connection: Connection) -> None:
        # The pool waits until what was cancelled has ended at the server, and resets the session.
        await self._lender.release(connection)

    def drop(self, connection: Connection) -> None:
        # Its pool notices, and has room for another one.
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
    """Listens on a channel for as long as the connection answers.

    A connection of which only our half is still open is noticed within two ping intervals.

    Args:
        open_one: Opens a connection that no pooler shares.
        channel: Its name.
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
