"""Instants as the engine counts them: whole microseconds since 1970-01-01 UTC.

All lie before 2255: beyond, a double loses microseconds, and some stores keep instants as doubles.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

logger: Final = logging.getLogger("pyncette.schedule")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECOND: Final = timedelta(microseconds=1)
SECOND: Final = 1_000_000
"""Microseconds of a second."""

DAY_S: Final = 86_400
"""Seconds of a day."""


def to_microseconds(instant: datetime) -> int:
    """The instant as whole microseconds since 1970-01-01 UTC, exactly.

    Raises:
        ValueError: `instant` is naive, so that it names no instant.
    """
    if instant.tzinfo is not UTC and instant.utcoffset() is None:
        raise ValueError(f"{instant!r} is naive: give it a time zone, for example tzinfo=UTC")
    since = instant - EPOCH
    return (since.days * DAY_S + since.seconds) * SECOND + since.microseconds


def from_microseconds(microseconds: int) -> datetime:
    """The instant that lies `microseconds` after 1970-01-01 UTC, as an aware UTC datetime.

    Raises:
        OverflowError: the instant lies outside the years 1 to 9999.
    """
    return EPOCH + timedelta(microseconds=microseconds)


INSTANT_LIMIT: Final = to_microseconds(datetime(2255, 1, 1, tzinfo=UTC))
"""The first instant that is too late."""

INSTANT_FIRST: Final = to_microseconds(datetime(1, 1, 1, tzinfo=UTC))
"""The earliest instant that a datetime can hold."""


@lru_cache(maxsize=1)  # said once
def _warn_of_naive() -> None:
    logger.warning(
        "A datetime without a time zone is taken as local time of this machine. Give it one, "
        "for example datetime(2026, 5, 1, 12, tzinfo=UTC). Later ones are not reported."
    )


def _offset_of(value: datetime) -> timedelta | None:
    try:
        return value.utcoffset()
    except Exception as error:
        zone = type(value.tzinfo).__name__
        raise ValueError(
            f"{value.replace(tzinfo=None)} is no instant: utcoffset() of its tzinfo ({zone}) "
            f"raised {type(error).__name__}: {error}"
        ) from error


def instant_of(value: datetime) -> int:
    """A datetime of the user, as the engine counts instants.

    A naive datetime means local time of the machine, and is warned about in the log, once.

    Raises:
        ValueError: It is naive, and the machine cannot tell what it means.
        TypeError: It is no datetime.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"an instant is a datetime, not {type(value).__name__}")
    if value.tzinfo is not UTC and _offset_of(value) is None:
        _warn_of_naive()
        try:
            value = value.replace(tzinfo=None).astimezone()
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{value!r} cannot be taken as local time: {error}") from None
    return to_microseconds(value)


def storable(instant: int) -> int:
    """An instant, if a record can keep it.

    Raises:
        ValueError: It lies in 2255 or later, or before the year 1.
    """
    if not INSTANT_FIRST <= instant < INSTANT_LIMIT:
        raise ValueError("An instant must lie before the year 2255")
    return instant
