"""Connections whose calls wait for the database, each with what is special about its driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

from pyncette.connections.links import Answer, Dialect
from pyncette.connections.placeholders import STYLES, Style, rendered

IN_TRANSACTION: Final = 1
"""The flag by which a MySQL server tells that a transaction is open."""


def answer_of(cursor: Any) -> Answer:
    """Returns the answer that a cursor of PEP 249 holds."""
    rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
    return Answer(rows, cursor.rowcount)


class _Given:
    """What all drivers have in common."""

    style = Style.PERCENT
    patience_s = 0.0

    def __init__(self, connection: Any, name: str) -> None:
        self.connection = connection
        self.name = name

    @contextmanager
    def _impatient(self, connection: Any) -> Iterator[None]:
        """Makes a connection of sqlite3 fail at once where it would wait for a lock."""
        patience_ms = pragma(connection, "busy_timeout")
        self.patience_s = patience_ms / 1000
        pragma(connection, "busy_timeout = 0")
        try:
            yield
        finally:
            pragma(connection, f"busy_timeout = {patience_ms}")

    def _begin_sqlite(self, connection: Any) -> None:
        """Begins in the order of those that write, unless a transaction is open already.

        Else another one could write in between, and this one would fail.
        """
        if not connection.in_transaction:
            with self._impatient(connection):
                connection.execute("BEGIN IMMEDIATE")

    def flush(self) -> None:
        """Nothing is held back."""

    def _cursor(self) -> Any:
        return self.connection.cursor()

    def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        text, ordered = rendered(statement, parameters, self.style)
        with closing(self._cursor()) as cursor:
            cursor.execute(text) if ordered is None else cursor.execute(text, ordered)
            return answer_of(cursor)


class Sqlite3(_Given):
    """Of the standard library."""

    style = Style.QUESTION

    def dialect(self) -> Dialect:
        return Dialect.SQLITE

    def _cursor(self) -> Any:
        cursor = self.connection.cursor()
        cursor.row_factory = None
        return cursor

    def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        with plain_texts(self.connection):
            return super().run(statement, parameters)

    def is_outside(self) -> bool:
        # Else the driver itself begins a transaction before a statement that writes.
        return not self.has_begun() and self.connection.isolation_level is None

    def has_begun(self) -> bool:
        return bool(self.connection.in_transaction) and not self._always

    @property
    def _always(self) -> bool:
        """Whether the driver keeps a transaction open all the time (Python 3.12 and later)."""
        return getattr(self.connection, "autocommit", None) is False

    def begin(self) -> None:
        self._begin_sqlite(self.connection)

    def commit(self) -> None:
        self.connection.execute("COMMIT") if not self._always else self.connection.commit()

    def rollback(self, error: BaseException | None) -> None:
        self.connection.rollback()


class Psycopg(_Given):
    """psycopg 3."""

    def __init__(self, connection: Any, name: str) -> None:
        super().__init__(connection, name)
        self._transaction: Any = None

    def dialect(self) -> Dialect:
        return Dialect.POSTGRES

    def _cursor(self) -> Any:
        return self.connection.cursor(row_factory=sys.modules["psycopg"].rows.tuple_row)

    def is_outside(self) -> bool:
        return not self.has_begun()

    def has_begun(self) -> bool:
        return bool(self.connection.info.transaction_status)

    def begin(self) -> None:
        self._transaction = self.connection.transaction()
        self._transaction.__enter__()

    def commit(self) -> None:
        self._transaction.__exit__(None, None, None)

    def rollback(self, error: BaseException | None) -> None:
        error = error or sys.modules["psycopg"].Rollback(self._transaction)
        self._transaction.__exit__(type(error), error, None)


class Psycopg2(_Given):
    """psycopg2."""

    def dialect(self) -> Dialect:
        return Dialect.POSTGRES

    def _cursor(self) -> Any:
        return self.connection.cursor(cursor_factory=sys.modules["psycopg2"].extensions.cursor)

    def is_outside(self) -> bool:
        return not self.has_begun()

    def has_begun(self) -> bool:
        return bool(self.connection.info.transaction_status)

    def begin(self) -> None:
        if self.connection.autocommit:
            with closing(self._cursor()) as cursor:
                cursor.execute("BEGIN")

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self, error: BaseException | None) -> None:
        self.connection.rollback()


class Mysql(_Given):
    """PyMySQL, and mysqlclient."""

    def dialect(self) -> Dialect:
        return Dialect.MYSQL

    def _cursor(self) -> Any:
        module = sys.modules[type(self.connection).__module__.partition(".")[0]]
        return self.connection.cursor(module.cursors.Cursor)

    def is_outside(self) -> bool:
        return bool(self.connection.get_autocommit()) and not self.has_begun()

    def has_begun(self) -> bool:
        status = getattr(self.connection, "server_status", None)
        if status is None:  # mysqlclient does not tell
            return False
        return bool(status & IN_TRANSACTION)

    def begin(self) -> None:
        self.connection.begin()

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self, error: BaseException | None) -> None:
        self.connection.rollback()


DJANGO: Final = {
    "postgresql": Dialect.POSTGRES,
    "mysql": Dialect.MYSQL,
    "sqlite": Dialect.SQLITE,
}


class Django(_Given):
    """``django.db.connection``, or one of ``django.db.connections``."""

    def __init__(self, connection: Any, name: str) -> None:
        super().__init__(connection, name)
        self._atomic: Any = None

    def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        if self.dialect() is not Dialect.SQLITE:
            return super().run(statement, parameters)
        self.connection.ensure_connection()
        with plain_texts(self.connection.connection):
            return super().run(statement, parameters)

    def dialect(self) -> Dialect:
        return known(DJANGO.get(self.connection.vendor), self.name, self.connection.vendor)

    def is_outside(self) -> bool:
        return not self.connection.in_atomic_block and bool(self.connection.get_autocommit())

    def has_begun(self) -> bool:
        return bool(self.connection.in_atomic_block)

    def begin(self) -> None:
        transaction = sys.modules["django.db.transaction"]
        if transaction.get_connection(self.connection.alias) is not self.connection:
            raise TypeError(
                f"{self.name} is not the one that this thread has under {self.connection.alias!r}: "
                "pass django.db.connection, or django.db.connections[alias]"
            )
        self._atomic = transaction.atomic(using=self.connection.alias, durable=True)
        if self.dialect() is not Dialect.SQLITE:
            self._atomic.__enter__()
            return
        self.connection.ensure_connection()
        # It waits if its option transaction_mode is IMMEDIATE.
        with self._impatient(self.connection.connection):
            self._atomic.__enter__()

    def commit(self) -> None:
        self._atomic.__exit__(None, None, None)

    def rollback(self, error: BaseException | None) -> None:
        self._atomic.__exit__(Exception if error is None else type(error), error, None)


SQLALCHEMY: Final = {
    "postgresql": Dialect.POSTGRES,
    "mysql": Dialect.MYSQL,
    "mariadb": Dialect.MYSQL,
    "sqlite": Dialect.SQLITE,
}


def style_of(dialect: Any, name: str) -> Style:
    """Returns how a driver under SQLAlchemy marks parameters.

    Raises:
        TypeError: In a way that is not known here.
    """
    style = STYLES.get(dialect.paramstyle)
    if style is None:
        raise TypeError(
            f"{name} uses the driver {dialect.driver!r}, whose parameters are marked in a way that "
            f"is not supported ({dialect.paramstyle!r}): use another driver"
        )
    return style


class SqlalchemyConnection(_Given):
    """A ``Connection`` of SQLAlchemy.

    Args:
        connection: It.
        name: What it is, for messages.
        native: Returns the driver of what lies below; None if that is not known.
    """

    def __init__(self, connection: Any, name: str, native: Callable[[Any], Any | None]) -> None:
        super().__init__(connection, name)
        self._native = native
        self._transaction: Any = None

    def dialect(self) -> Dialect:
        name = self._dialect().name
        return known(SQLALCHEMY.get(name), self.name, name)

    def _dialect(self) -> Any:
        return self.connection.dialect

    def _core(self) -> Any:
        return self.connection

    def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        core = self._core()
        text, ordered = rendered(statement, parameters, style_of(core.dialect, self.name))
        given = () if ordered is None else (tuple(ordered),)
        if self.dialect() is not Dialect.SQLITE:
            return core_answer(core.exec_driver_sql(text, *given))
        with plain_texts(core.connection.driver_connection):
            return core_answer(core.exec_driver_sql(text, *given))

    def is_outside(self) -> bool:
        native = self._native(self._core().connection.driver_connection)
        return native is not None and bool(native.is_outside())

    def has_begun(self) -> bool:
        return bool(self.connection.in_transaction())

    def begin(self) -> None:
        self._transaction = self.connection.begin()
        if self.dialect() is Dialect.SQLITE:
            try:
                self._begin_sqlite(self._core().connection.driver_connection)
            except BaseException:
                self._transaction.rollback()
                raise

    def commit(self) -> None:
        self._transaction.commit()

    def rollback(self, error: BaseException | None) -> None:
        self._transaction.rollback()


class SqlalchemySession(SqlalchemyConnection):
    """A ``Session`` of SQLAlchemy."""

    def _dialect(self) -> Any:
        return self.connection.get_bind().dialect

    def _core(self) -> Any:
        return self.connection.connection()

    def flush(self) -> None:
        self.connection.flush()

    def commit(self) -> None:
        # A transaction that the body has begun in its place would be committed in its stead.
        self._transaction.commit()


@contextmanager
def plain_texts(connection: Any) -> Iterator[None]:
    """Lets a connection of sqlite3 or aiosqlite return texts, whatever it has been told to."""
    factory = connection.text_factory
    connection.text_factory = str
    try:
        yield
    finally:
        connection.text_factory = factory


def pragma(connection: Any, statement: str) -> Any:
    """Returns the answer to a ``PRAGMA`` of a connection of sqlite3, whatever rows it makes."""
    with closing(connection.cursor()) as cursor:
        cursor.row_factory = None
        return cursor.execute(f"PRAGMA {statement}").fetchone()[0]


def core_answer(result: Any) -> Answer:
    """Returns the answer that a result of SQLAlchemy holds."""
    rows = [tuple(row) for row in result.fetchall()] if result.returns_rows else []
    return Answer(rows, result.rowcount)


def known(dialect: Dialect | None, name: str, found: str) -> Dialect:
    """Returns the dialect.

    Raises:
        TypeError: It is none that a store has.
    """
    if dialect is None:
        raise TypeError(
            f"{name} is connected to {found}: only transactions of PostgreSQL, MySQL, MariaDB and "
            "SQLite can be joined"
        )
    return dialect
