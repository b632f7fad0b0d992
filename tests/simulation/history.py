"""What could be observed in a simulation, in order; and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple


class Event(NamedTuple):
    """Something that could be observed.

    Attributes:
        time: Seconds since the simulation began.
        store_time: The instant on the clock of the store, in microseconds.
        process: Where.
        kind: What.
        subject: The record, as ``template/instance``; the call of a user, as a number; or nothing.
        details: More, by name.
    """

    time: float
    store_time: int
    process: str
    kind: str
    subject: str
    details: dict[str, Any]

    def line(self) -> str:
        """The event for a reader."""
        details = " ".join(f"{name}={_short(value)}" for name, value in self.details.items())
        return (
            f"{self.time:10.4f}  {self.process:8} {self.kind:14} {self.subject:10} {details}"
        ).rstrip()


EPOCH: Final = int(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()) * 1_000_000
"""The instant at which a simulation begins, in microseconds."""


def _short(value: Any) -> str:
    """An instant is shown as seconds since the simulation began."""
    if isinstance(value, int) and abs(value - EPOCH) < 10**12:
        return f"T{(value - EPOCH) / 1_000_000:+.4f}"
    return str(value)


class History:
    """The events so far. Once closed, it takes no more: what crashed has no last words."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    def note(self, event: Event) -> None:
        """Adds an event."""
        if not self.closed:
            self.events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def lines(self, calls: bool = False) -> list[str]:
        """The history for a reader, with or without each call to the store."""
        return [event.line() for event in self.events if calls or event.kind != "call"]
