"""Migrates the data of release 1.x in a store.

``python -m pyncette migrate`` is ``migrate`` as a command; its manual is
docs/coming-from/from-1.x.md.

SQL stores: all records are copied to a second table. Then, in one step, the old table is renamed to
``<table>_1x`` and the copy gets its name. Until then the data of 1.x are unchanged. Redis and
DynamoDB: all records are copied to another namespace or table, and the old data stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from pyncette.clock import Clock, SystemClock, from_microseconds
from pyncette.migrate.copying import (
    Counts,
    Example,
    Layout,
    MigrationError,
    Source,
    WorkersRunningError,
    copy,
    is_marked_finished,
    survey,
)

PASSES_MAX: Final = 3
"""Maximum number of times that all records are copied again because the old store has changed."""

_SOURCES: Final = {
    "sqlite_database": "sqlite",
    "postgres_url": "postgres",
    "mysql_url": "mysql",
    "mysql_host": "mysql",
    "redis_url": "redis",
    "dynamodb_table_name": "dynamodb",
}
"""The option that selects a store, and the module that reads it."""


@dataclass(frozen=True)
class Report:
    """The result of ``migrate``.

    Attributes:
        place: The name of the store.
        found: The data of 1.x; None if the migration was completed before.
        written: Records that were written now.
        present: Records that an earlier, interrupted migration had written.
        finished: Whether the new store is complete and in its place.
        kept: Where the old data are; None if they were removed, or never moved.
        dropped: Whether old data were removed.
    """

    place: str
    found: Counts | None = None
    written: int = 0
    present: int = 0
    finished: bool = False
    kept: str | None = None
    dropped: bool = False


async def migrate(
    *,
    dry_run: bool = False,
    force: bool = False,
    drop_old: bool = False,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock | None = None,
    **configuration: Any,
) -> Report:
    """Converts a store of 1.x to one of this release. Stop all workers before.

    You may interrupt it at any time and call it again: it continues, and no record is lost or
    duplicated. If the migration was completed before, it does nothing.

    Args:
        dry_run: Only count the records; change nothing.
        force: Continue even if records are leased, or if ``drop_old`` removes rows that could not
            be copied.
        drop_old: Remove the old data after all records have been copied, now or in an earlier
            call. Not for DynamoDB.
        progress: Called with the number of copied records, and the number of all records.
        clock: Tells which leases have not ended.
        configuration: The options of the store, as the app has them: ``sqlite_database``,
            ``postgres_url``, ``mysql_url`` or ``mysql_host``, ``redis_url``, or
            ``dynamodb_table_name``, with the others of that store. ``to_namespace`` (Redis) or
            ``to_table`` (DynamoDB) names the place of the new data.

    Returns:
        The result.

    Raises:
        ValueError: An option is not valid.
        WorkersRunningError: Records are leased, and ``force`` is not set.
        MigrationError: There are no data of 1.x, or they cannot be migrated now.
        StoreError: The store cannot be reached, or cannot be used with these options.
    """
    clock = SystemClock() if clock is None else clock
    async with _opened(configuration, clock) as source:
        if await source.look() is Layout.TAKEN_OVER:
            return await _done_before(source, dry_run, drop_old)
        found = await survey(source, clock.microseconds())
        if dry_run:
            return Report(source.place, found)
        if found.leased_until is not None and not force:
            until = from_microseconds(found.leased_until).isoformat(timespec="seconds")
            raise WorkersRunningError(
                f"{found.leased} records in {source.place} are leased, the last until {until}: "
                "workers seem to be running. Stop all of them; where none runs, wait until then, "
                "or use force. Nothing was changed.",
                found.leased_until,
            )
        if drop_old and found.left_behind and not force:
            raise MigrationError(
                f"{found.left_behind} records in {source.place} cannot be copied, and would be "
                "lost with the old data. Migrate without drop-old first. Nothing was changed."
            )
        written = 0
        for _ in range(PASSES_MAX):
            async with source.target() as store:
                if await is_marked_finished(store):
                    return await _done_before(source, dry_run, drop_old)
                copied = await copy(source, store, clock, found.to_copy, progress)
            written += copied.written
            if await source.finish(copied.fingerprint, copied.written + copied.present):
                break
        else:
            raise MigrationError(
                f"{source.place} was changed while it was copied, {PASSES_MAX} times: workers are "
                "running. Stop all of them, and migrate again."
            )
        complete = force or not copied.counts.left_behind
        dropped = drop_old and complete and await source.drop_old()
        kept = None if dropped else source.kept
        return Report(source.place, copied.counts, written, copied.present, True, kept, dropped)


async def _done_before(source: Source, dry_run: bool, drop_old: bool) -> Report:
    dropped = drop_old and not dry_run and await source.drop_old()
    return Report(source.place, finished=True, dropped=dropped)


def _opened(configuration: dict[str, Any], clock: Clock) -> AbstractAsyncContextManager[Source]:
    given = {module for option, module in _SOURCES.items() if configuration.get(option) is not None}
    if len(given) != 1:
        raise ValueError(
            f"Exactly one store has to be named, by one of {', '.join(_SOURCES)}"
            + (f", not {len(given)}" if given else "")
        )
    [module] = given
    opened: AbstractAsyncContextManager[Source] = import_module(
        f"pyncette.migrate.{module}"
    ).open_source(clock=clock, **configuration)
    return opened


__all__ = [
    "Counts",
    "Example",
    "MigrationError",
    "Report",
    "WorkersRunningError",
    "migrate",
]
