"""Connections to PostgreSQL: opened when needed, bounded in number, dropped when in doubt.

Knows asyncpg, what its errors mean, and how to listen; knows no table. A call that was cancelled or
that lost its server drops its connection, so that the next one starts on a sound one. Nothing is
repeated here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeVar

try:
    import asyncpg
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "The store in PostgreSQL needs asyncpg: pip install 'pyncette[postgres]'"
    ) from error

from pyncette import chance
from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.store import WakeCallback

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
PING_INTERVAL_S: Final = 5.0
"""How often a listening connection is asked whether it is still there, and how long it may take."""

RECONNECT_DELAY_INITIAL_S: Final = 0.1
RECONNECT_DELAY_MAX_S: Final = 5.0

Connection = Any
"""An asyncpg connection, or the proxy of one that a pool lends."""

Connect = Callable[[], Awaitable[Connection]]

_Answer = TypeVar("_Answer")

# What is known to hold no secret: host, port and database of a URL that is as it should be.
_PLAIN_URL = re.compile(
    r"postgres(?:ql)?://(?:[^@/?#]*@)?(?P<host>[\w.,:\[\]%-]*)(?P<database>/[\w.%-]*)?(?:\?[^@]*)?"
)

# A statement was sent to a connection that does not know it: somebody pools in between.
_STATEMENT_ERRORS: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)
_MISCONFIGURED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.SyntaxOrAccessError,
)

# Settings of connections of our own. Every statement of the store is served by an index; a plan
# made while the table was tiny must not read all of it when it has grown, and none is worth being
# made anew for each call. A server that is too old to know one of them goes without.
SESSION: Final = """\
SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_bitmapscan', 'off'),
    ('enable_hashjoin', 'off'),
    ('enable_mergejoin', 'off'),
    ('enable_memoize', 'off'),
    ('jit', 'off'),
    ('default_transaction_isolation', 'read committed')
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
        named: Statements may be given names, and kept under them: nobody pools in between.

    Raises:
        StoreUnavailableError: The server cannot be reached, or not now.
        StoreMisconfiguredError: It answers, but not to this URL.
    """
    try:
        return await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, statement_cache_size=100 if named else 0
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
        raise translated(error, place) from error
    except (ValueError, asyncpg.InterfaceError) as error:
        # The driver quotes parts of the URL, which may be parts of the password.
        raise StoreMisconfiguredError(
            f"{place}: postgres_url is not understood ({type(error).__name__}); expected is "
            "postgresql://user:***@host:port/database, with what is special percent-encoded"
        ) from None


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
    """Whether somebody stands between: who answered the greeting is not who runs statements."""
    # Without a name, which would stay behind on a pooler's connection and meet its like there.
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    return bool(await statement.fetchval() != connection.get_server_pid())


class Connections(ABC):
    """Runs calls, at most so many at a time, each on a connection of its own.

    Args:
        place: Where they lead, for messages.
        size: At most so many calls at a time; the others wait for their turn.
    """

    def __init__(self, place: str, size: int) -> None:
        self._place = place
        self._room = asyncio.Semaphore(size)

    async def run(self, call: Callable[[Connection], Awaitable[_Answer]]) -> _Answer:
        """Makes a call, which may hold several statements.

        Raises:
            StoreError: It failed; whether its last statement took effect is unknown.
        """
        async with self._room:
            try:
                connection = await self._take()
                sound = False
                try:
                    answer = await call(connection)
                    sound = True
                    return answer
                except (asyncpg.PostgresError, StoreError):
                    # The server has said no and waits for the next statement.
                    sound = True
                    raise
                finally:
                    if not sound:
                        connection.terminate()
                    await self._give_back(connection)
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
            ) as error:
                raise translated(error, self._place) from error

    async def keep(self, connection: Connection) -> None:
        """Takes one that was opened elsewhere."""
        await self._give_back(connection)

    @abstractmethod
    async def _take(self) -> Connection:
        """A connection that nobody else uses."""

    @abstractmethod
    async def _give_back(self, connection: Connection) -> None:
        """Takes it back, usable or terminated."""

    async def close(self) -> None:
        """Closes those that are ours."""
        return


class OwnConnections(Connections):
    """Connections that the store opens, keeps and closes.

    Args:
        place: Where they lead, for messages.
        size: At most so many.
        open_one: Opens one.
    """

    def __init__(self, place: str, size: int, open_one: Connect) -> None:
        super().__init__(place, size)
        self._open_one = open_one
        self._idle: list[Connection] = []

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._open_one()

    async def _give_back(self, connection: Connection) -> None:
        if not connection.is_closed():
            self._idle.append(connection)

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*map(close, idle))


class LentConnections(Connections):
    """Connections from a pool that the application brought, which stays the application's.

    Args:
        place: Where they lead, for messages.
        size: At most so many.
        pool: An ``asyncpg.Pool``.
    """

    def __init__(self, place: str, size: int, pool: Any) -> None:
        super().__init__(place, size)
        self._pool = pool

    async def _take(self) -> Connection:
        return await self._pool.acquire()

    async def _give_back(self, connection: Connection) -> None:
        await self._pool.release(connection)


async def close(connection: Connection) -> None:
    """Takes leave of the server, if it is there to hear it."""
    try:
        async with realtime.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


class Listener:
    """Hears notifications on one channel, on a connection of its own, and tells the watches.

    A connection that is lost, also one of which only our half is still open, is noticed within
    two ping intervals and replaced. Whoever watches is then told that anything may have come due.

    Args:
        place: Where it listens, for messages.
        channel: The name of the channel.
        open_one: Opens a connection that nobody pools.
    """

    def __init__(self, place: str, channel: str, open_one: Connect) -> None:
        self._place = place
        self._channel = channel
        self._open_one = open_one
        self._watches: list[Watch] = []
        self._task: asyncio.Task[None] | None = None

    def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch:
        """Registers a callback; listening begins with the first one."""
        watch = Watch(frozenset(groups), on_wake, self._watches)
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="pyncette listener")
        return watch

    async def close(self) -> None:
        """Stops listening."""
        self._watches.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        delay = RECONNECT_DELAY_INITIAL_S
        while True:
            try:
                connection = await self._open_one()
                try:
                    await self._hear(connection)
                    delay = RECONNECT_DELAY_INITIAL_S
                finally:
                    connection.terminate()
                logger.info("%s stopped notifying; listening again", self._place)
            except Exception as error:
                if delay == RECONNECT_DELAY_INITIAL_S:
                    logger.warning("Not notified for now, only polling: %s", error)
                delay = min(2 * delay, RECONNECT_DELAY_MAX_S)
            await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))

    async def _hear(self, connection: Connection) -> None:
        """Listens for as long as the connection answers."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        async with realtime.timeout(CONNECT_TIMEOUT_S):
            await connection.add_listener(self._channel, self._heard)
        self._tell(None)
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

    def _heard(self, connection: Connection, pid: int, channel: str, payload: str) -> None:
        try:
            self._tell(frozenset(json.loads(payload)))
        except (ValueError, TypeError):  # anybody may send anything on a channel
            self._tell(None)

    def _tell(self, groups: frozenset[str] | None) -> None:
        for watch in list(self._watches):
            concerned = None if groups is None else watch.groups & groups
            if concerned is None or concerned:
                watch.on_wake(concerned)


class Watch:
    """A registration with a ``Listener``."""

    def __init__(self, groups: frozenset[str], on_wake: WakeCallback, watches: list[Watch]) -> None:
        self.groups = groups
        self.on_wake = on_wake
        self._watches = watches
        watches.append(self)

    def close(self) -> None:
        """See ``pyncette.store.Watch.close``."""
        if self in self._watches:
            self._watches.remove(self)
