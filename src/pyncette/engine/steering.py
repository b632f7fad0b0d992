"""Pauses of whole templates and partitions: one control record each, however many instances.

Every worker reads these records once per poll interval, and does not claim from a group that is
paused. A pause with an end needs no worker to end it: from then on it is ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pyncette.clock import Clock
from pyncette.engine.partitions import PREFIX, Partitions
from pyncette.engine.polling import NEVER
from pyncette.errors import printable
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

logger = logging.getLogger(__name__)

_PREFIX: Final = "paused:"
_PAUSES: Final = Filter(prefix=_PREFIX)
_PAUSES_AND_PARTITIONS: Final = Filter(prefix="pa")
"""The control records of both kinds, whose keys begin alike: one listing finds them."""


class GroupPause(NamedTuple):
    """The pause of a group.

    Attributes:
        group: The group of a partition, or of a template with all its partitions.
        pause: Its end and its reason.
        since: When it was made, in microseconds; None if the record does not say it.
    """

    group: str
    pause: Pause
    since: int | None


def pause_identity(group: str) -> Identity:
    """Returns the identity of the control record that pauses a group."""
    return CONTROL_GROUP, f"{_PREFIX}{group}"


def covering(group: str) -> list[str]:
    """Returns the groups whose pause holds for a group: itself, and that of its template."""
    # A colon in the name of a template is encoded.
    template, _, _ = group.rpartition(":")
    return [group, template] if template else [group]


def pause_record(pause: Pause, now: int) -> Put:
    """Returns the control record of a pause."""
    args = {"until": pause.until, "reason": pause.reason, "since": now}
    return Put(None, State.FINISHED, None, 0, "", dump_args(args), "")


def read_pause(record: Record) -> GroupPause:
    """Reads a control record. One that this release cannot read is a pause without an end."""
    group = record.key.removeprefix(_PREFIX)
    try:
        args = load_args(record.args)
    except ValueError:
        return GroupPause(group, Pause(), None)
    reason = args.get("reason")
    return GroupPause(
        group,
        Pause(_instant(args.get("until")), None if reason is None else str(reason)),
        _instant(args.get("since")),
    )


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

    def __init__(self, partitions: Partitions, clock: Clock) -> None:
        """Knows no pause yet.

        Args:
            partitions: Learns what the same listing says of partitions.
            clock: Tells how old that is.
        """
        self.known: dict[str, int] = {}
        self._partitions = partitions
        self._clock = clock

    async def refresh(self, store: Scans, now: int) -> None:
        """Reads the pauses from the store.

        Raises:
            StoreError: The store failed; what was known before stays.
        """
        known: dict[str, int] = {}
        for group, pause, _ in await self._read(store):
            if not pause.ended(now):
                known[group] = NEVER if pause.until is None else pause.until
        if known != self.known:
            self._log(known)
            self.known = known

    async def _read(self, store: Scans) -> list[GroupPause]:
        if not self._partitions.tasks:
            return await read_pauses(store)
        asked_at = self._clock.monotonic()
        found = [record async for record in scan_all(store, CONTROL_GROUP, _PAUSES_AND_PARTITIONS)]
        facts = [record for record in found if record.key.startswith(PREFIX)]
        self._partitions.learn(facts, asked_at)
        return [read_pause(record) for record in found if record.key.startswith(_PREFIX)]

    def _log(self, known: Mapping[str, int]) -> None:
        for group in known.keys() - self.known.keys():
            logger.info("'%s' is paused: nothing of it is claimed", printable(group))
        for group in self.known.keys() - known.keys():
            logger.info("'%s' is claimed again: its pause has ended", printable(group))

    def holds(self, group: str, now: int) -> bool:
        """Returns whether a group is paused."""
        if not self.known:
            return False
        return any(self.known.get(name, now) > now for name in covering(group))

    def next_end(self) -> int:
        """Returns when the next pause ends by itself."""
        return min(self.known.values(), default=NEVER)
