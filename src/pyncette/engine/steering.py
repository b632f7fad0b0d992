"""Pauses of whole templates and partitions: one control record each, however many instances.

Every worker reads these records once per poll interval, and does not claim from a group that is
paused. A pause with an end needs no worker to end it: from then on it is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pyncette.clock import Clock
from pyncette.engine.partitions import PREFIX, Partitions
from pyncette.engine.polling import NEVER
from pyncette.store import Filter, Identity, Scans, scan_all
from pyncette.store.record import (
    CONTROL_GROUP,
    LATEST_INSTANT,
    Pause,
    Put,
    Record,
    State,
    dump_args,
    load_args,
)

_PREFIX: Final = "paused:"
_PAUSES: Final = Filter(prefix=_PREFIX)
_PAUSES_AND_PARTITIONS: Final = Filter(prefix="pa")
"""The control records of both kinds, whose keys begin alike: one listing finds them."""


class GroupPause(NamedTuple):
    """The pause of a group.

    Attributes:
        group: The group of a partition, or of a template with all its partitions.
        pause: What was said about it.
    """

    group: str
    pause: Pause


def pause_identity(group: str) -> Identity:
    """Returns the identity of the control record that pauses a group."""
    return CONTROL_GROUP, f"{_PREFIX}{group}"


def covering(group: str) -> list[str]:
    """Returns the groups whose pause holds for a group: itself, and that of its template."""
    # A colon in the name of a template is encoded.
    template, _, _ = group.rpartition(":")
    return [group, template] if template else [group]


def pause_record(pause: Pause) -> Put:
    """Returns the control record of a pause."""
    args: dict[str, Any] = pause._asdict()
    if pause.by is None:
        del args["by"]
    return Put(None, State.FINISHED, None, 0, "", dump_args(args), "")


def read_pause(record: Record) -> GroupPause:
    """Reads a control record. One that this release cannot read is a pause without an end."""
    group = record.key.removeprefix(_PREFIX)
    try:
        args = load_args(record.args)
    except ValueError:
        return GroupPause(group, Pause())
    pause = Pause(
        _instant(args.get("until")),
        _text(args.get("reason")),
        _instant(args.get("since")),
        _text(args.get("by")),
    )
    return GroupPause(group, pause)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _instant(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= LATEST_INSTANT else None


async def read_pauses(store: Scans) -> list[GroupPause]:
    """Returns all pauses of groups, also those that have ended."""
    return [read_pause(record) async for record in scan_all(store, CONTROL_GROUP, _PAUSES)]


class Pauses:
    """The pauses that a worker knows.

    Attributes:
        known: For each paused group when its pause ends (``NEVER``: when it is resumed).
    """

    def __init__(
        self,
        partitions: Partitions,
        clock: Clock,
        on_change: Callable[[Pause | None, str], object],
    ) -> None:
        """Knows no pause yet.

        Args:
            partitions: Learns what the same listing says of partitions.
            clock: Tells how old that is.
            on_change: Called with a pause that was found, or None if it has ended; and its group.
        """
        self._on_change = on_change
        self.known: dict[str, int] = {}
        self._partitions = partitions
        self._clock = clock

    async def refresh(self, store: Scans, now: int) -> None:
        """Reads the pauses from the store.

        Raises:
            StoreError: The store failed; what was known before stays.
        """
        found = {group: pause for group, pause in await self._read(store) if not pause.ended(now)}
        known = {
            group: NEVER if pause.until is None else pause.until for group, pause in found.items()
        }
        if known != self.known:
            before, self.known = self.known, known
            for group in sorted(known.keys() - before.keys()):
                self._on_change(found[group], group)
            for group in sorted(before.keys() - known.keys()):
                self._on_change(None, group)

    async def _read(self, store: Scans) -> list[GroupPause]:
        if not self._partitions.tasks:
            return await read_pauses(store)
        asked_at = self._clock.monotonic()
        found = [record async for record in scan_all(store, CONTROL_GROUP, _PAUSES_AND_PARTITIONS)]
        facts = [record for record in found if record.key.startswith(PREFIX)]
        self._partitions.learn(facts, asked_at)
        return [read_pause(record) for record in found if record.key.startswith(_PREFIX)]

    def holds(self, group: str, now: int) -> bool:
        """Returns whether a group is paused."""
        if not self.known:
            return False
        return any(self.known.get(name, now) > now for name in covering(group))

    def next_end(self) -> int:
        """Returns when the next pause ends by itself."""
        return min(self.known.values(), default=NEVER)
