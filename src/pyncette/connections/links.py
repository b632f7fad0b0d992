"""A connection of the application, as the stores use it: one interface over all drivers.

Nothing is imported here that is not installed: a connection is recognised by the module of its
class, and brings its driver with it.

* A ``Driver`` knows the connections of one driver: how a statement is run, whether a transaction is
  open, how one begins and ends. Those that block have plain methods, the others coroutines.
* A ``Link`` is what the rest of the package uses; always with coroutines. Who makes it says where
  the plain methods of a blocking driver run: in the event loop, or in the thread of the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

from pyncette.errors import NoTransactionError, TransactionBegunError

_T = TypeVar("_T")


class Dialect(StrEnum):
    """The kind of a database."""

    POSTGRES = "PostgreSQL"
    MYSQL = "MySQL"
    SQLITE = "SQLite"


class Answer(NamedTuple):
    """The answer to a statement.

    Attributes:
        rows: Its rows.
        changed: How many rows it changed, if the driver says so; else -1.
    """

    rows: list[tuple[Any, ...]]
    changed: int


class _Described(Protocol):
    @property
    def connection(self) -> Any:
        """What the application has given."""
        ...

    @property
    def name(self) -> str:
        """What it is, for messages."""
        ...

    def dialect(self) -> Dialect:
        """Returns the kind of its database."""
        ...


class BlockingDriver(_Described, Protocol):
    """A connection whose calls wait for the database."""

    def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        """Runs a statement; see ``pyncette.connections.placeholders`` for its form."""

    def is_outside(self) -> bool:
        """Returns whether the statement that was just run was a transaction by itself."""
        ...

    def has_begun(self) -> bool:
        """Returns whether a transaction is open already."""
        ...

    def begin(self) -> None:
        """Begins a transaction. It waits for no lock on a SQLite file, but fails at once."""

    @property
    def patience_s(self) -> float:
        """How long the connection would have waited for a lock that ``begin`` did not get."""
        ...

    def flush(self) -> None:
        """Sends what is held back until the transaction ends."""

    def commit(self) -> None:
        """Commits what ``begin`` has begun."""

    def rollback(self, error: BaseException | None) -> None:
        """Undoes what ``begin`` has begun."""


class AsyncDriver(_Described, Protocol):
    """The same for the event loop."""

    async def run(self, statement: str, parameters: Sequence[Any]) -> Answer: ...
    def is_outside(self) -> bool: ...
    def has_begun(self) -> bool: ...
    async def begin(self) -> None: ...
    @property
    def patience_s(self) -> float: ...
    async def flush(self) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self, error: BaseException | None) -> None: ...


class Link:
    """A connection of the application.

    Attributes:
        connection: What the application has given.
        name: What it is, for messages.
        dialect: The kind of its database.
    """

    connection: Any
    name: str
    dialect: Dialect

    async def run(self, statement: str, *parameters: Any) -> Answer:
        """Runs a statement, whose parameters are marked by ``$1`` or ``?``.

        Raises:
            Exception: What the driver raises.
        """
        raise NotImplementedError

    async def check_inside(self) -> None:
        """Refuses a connection whose statements are transactions by themselves.

        Call it after a first statement: with most drivers, that begins the transaction.

        Raises:
            NoTransactionError: It is one.
        """
        raise NotImplementedError

    async def begin(self) -> None:
        """Begins a transaction. It waits for no lock on a SQLite file, but fails at once.

        Raises:
            TransactionBegunError: One has begun already.
            Exception: What the driver raises.
        """
        raise NotImplementedError

    @property
    def patience_s(self) -> float:
        """How long the connection would have waited for a lock that ``begin`` did not get."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Sends what is held back until the transaction ends: the objects of a session."""
        raise NotImplementedError

    async def commit(self) -> None:
        """Commits the transaction that ``begin`` has begun."""
        raise NotImplementedError

    async def rollback(self, error: BaseException | None = None) -> None:
        """Undoes it."""
        raise NotImplementedError


def _outside(name: str) -> NoTransactionError:
    return NoTransactionError(
        f"{name} is not in a transaction: each of its statements would be committed by itself. "
        "Begin a transaction first, or leave out connection="
    )


def _begun(name: str) -> TransactionBegunError:
    return TransactionBegunError(
        f"{name} is in a transaction already: context.transaction() begins one, and commits it. "
        "Commit or roll back what was done before, or pass another connection; with SQLAlchemy, "
        "one of engine.connect(), not of engine.begin()"
    )


class AsyncLink(Link):
    """A connection for the event loop."""

    def __init__(self, driver: AsyncDriver) -> None:
        """Uses a driver."""
        self._driver = driver
        self.connection = driver.connection
        self.name = driver.name
        self.dialect = driver.dialect()

    async def run(self, statement: str, *parameters: Any) -> Answer:
        return await self._driver.run(statement, parameters)

    async def check_inside(self) -> None:
        if self._driver.is_outside():
            raise _outside(self.name)

    async def begin(self) -> None:
        if self._driver.has_begun():
            raise _begun(self.name)
        await self._driver.begin()

    @property
    def patience_s(self) -> float:
        return self._driver.patience_s

    async def flush(self) -> None:
        await self._driver.flush()

    async def commit(self) -> None:
        await self._driver.commit()

    async def rollback(self, error: BaseException | None = None) -> None:
        await self._driver.rollback(error)


class Do(Protocol):
    """Runs blocking work where it may run."""

    def __call__(self, work: Callable[[], _T]) -> Awaitable[_T]: ...


async def at_once(work: Callable[[], _T]) -> _T:
    """Runs blocking work in the event loop: for calls that do not wait for a network."""
    return work()


class BlockingLink(Link):
    """A connection whose calls wait for the database.

    Args:
        driver: Its driver.
        do: Where its calls are made.
    """

    def __init__(self, driver: BlockingDriver, do: Do) -> None:
        self._driver = driver
        self._do = do
        self.connection = driver.connection
        self.name = driver.name
        self.dialect = driver.dialect()

    async def run(self, statement: str, *parameters: Any) -> Answer:
        return await self._do(lambda: self._driver.run(statement, parameters))

    async def check_inside(self) -> None:
        if await self._do(self._driver.is_outside):
            raise _outside(self.name)

    async def begin(self) -> None:
        if await self._do(self._driver.has_begun):
            raise _begun(self.name)
        await self._do(self._driver.begin)

    @property
    def patience_s(self) -> float:
        return self._driver.patience_s

    async def flush(self) -> None:
        await self._do(self._driver.flush)

    async def commit(self) -> None:
        await self._do(self._driver.commit)

    async def rollback(self, error: BaseException | None = None) -> None:
        await self._do(lambda: self._driver.rollback(error))
