"""Taking over what release 1.x left in a store.

``python -m pyncette migrate`` is ``migrate`` as a command; docs/from-1.x.md is its manual.

SQL stores: everything is copied to a table beside the old one, which is then renamed to
``<table>_1x`` while the copy takes its name, in one step. Until then 1.x is as it was. Redis and
DynamoDB: everything is copied to another namespace or table, and the old data stay untouched.
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
"""So often everything is copied anew because the old store was changed meanwhile."""

_SOURCES: Final = {
    "sqlite_database": "sqlite",
    "postgres_url": "postgres",
    "mysql_url": "mysql",
    "mysql_host": "mysql",
    "redis_url": "redis",
    "dynamodb_table_name": "dynamodb",
}
"""The option that says that a store is meant, and the module that reads it."""


@dataclass(frozen=True)
class Report:
    """What ``migrate`` found and did.

    Attributes:
        place: The store, in words.
        found: What 1.x had left there; None where the migration had been done before.
        written: Records that were written now.
        present: Records that an earlier, interrupted migration had written.
        finished: Whether the new store is complete and in its place.
        kept: Where the old data are, in words; None where they were removed, or never moved.
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
    """Turns a store of 1.x into one of this release. All workers must be stopped meanwhile.

    It may be stopped at any time, and called again: it goes on, and no record is lost or stands
    there twice. Where it has been done before, nothing is done.

    Args:
        dry_run: Only count; nothing is changed.
        force: Also where records are leased, and where ``drop_old`` would remove rows that could
            not be copied.
        drop_old: Remove the old data once everything has been copied, or where that was done
            before. Not for DynamoDB.
        progress: Called with how many records have been copied, of how many.
        clock: Tells which leases lie ahead.
        configuration: The options of the store, as the app has them: ``sqlite_database``,
            ``postgres_url``, ``mysql_url`` or ``mysql_host``, ``redis_url``, or
            ``dynamodb_table_name``, with the others of that store. ``to_namespace`` (Redis) or
            ``to_table`` (DynamoDB) names the place of the new data.

    Returns:
        What was found and done.

    Raises:
        ValueError: An option makes no sense.
        WorkersRunningError: Records are leased, and ``force`` is not set.
        MigrationError: There is nothing of 1.x, or it cannot be taken over now.
        StoreError: The store cannot be reached, or not like this.
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
