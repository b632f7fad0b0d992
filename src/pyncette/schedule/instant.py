"""Instants as the engine counts them: whole microseconds since 1970-01-01 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 1_000_000


def to_microseconds(instant: datetime) -> int:
    """The instant as whole microseconds since 1970-01-01 UTC, exactly.

    Raises:
        ValueError: `instant` is naive, so that it names no instant.
    """
    if instant.utcoffset() is None:
        raise ValueError(f"{instant!r} is naive: give it a time zone, for example tzinfo=UTC")
    since = instant - _EPOCH
    return (since.days * 86_400 + since.seconds) * _SECOND + since.microseconds


def from_microseconds(microseconds: int) -> datetime:
    """The instant that lies `microseconds` after 1970-01-01 UTC, as an aware UTC datetime.

    Raises:
        OverflowError: the instant lies outside the years 1 to 9999.
    """
    return _EPOCH + timedelta(microseconds=microseconds)
