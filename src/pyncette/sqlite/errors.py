"""What the errors of SQLite and of its driver mean."""

from __future__ import annotations

import sqlite3
from typing import Final

from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError

_UNAVAILABLE: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    )
)

_VALUE_REFUSED: Final = frozenset(
    (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH)
)

_VALUE_NOT_BOUND: Final = (sqlite3.ProgrammingError, OverflowError, UnicodeEncodeError)
"""What the driver raises, without a code, for a parameter that SQLite has no value for."""


def code_of(error: BaseException) -> int:
    """The primary code of an error; 0 where it is the driver's own, or none of SQLite."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether another connection holds a lock on the database."""
    return code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_undecodable(error: BaseException) -> bool:
    """Whether a text in the database is not UTF-8; the driver has no type or code for it."""
    return isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in str(error)


def is_too_big(error: BaseException) -> bool:
    """Whether a text is longer than SQLite, or the memory, allows."""
    return isinstance(error, MemoryError) or code_of(error) == sqlite3.SQLITE_TOOBIG


def refuses_value(error: BaseException) -> bool:
    """Whether a statement failed because of a value in it, so that others may succeed."""
    code = code_of(error)
    return code in _VALUE_REFUSED or (code == 0 and isinstance(error, _VALUE_NOT_BOUND))


def explained(error: Exception, place: str) -> Exception:
    """What an error means to the caller.

    Args:
        error: Of SQLite, its driver, or another, which is returned as it is.
        place: The database, in words.
    """
    if refuses_value(error):
        told: Exception = ValueError(f"{place} refuses a value: {error}")
    elif code_of(error) == 0:
        return error
    elif is_busy(error):
        told = StoreUnavailableError(
            f"{place} was locked by another connection for too long ({error})"
        )
    elif code_of(error) in _UNAVAILABLE:
        told = StoreUnavailableError(f"{place}: {error}")
    else:
        told = StoreMisconfiguredError(f"{place}: {error}")
    told.__cause__ = error
    return told
