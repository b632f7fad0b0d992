"""The lines of the log about workers, runs and the store, made from the events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from pyncette import events
from pyncette.errors import StoreError, plural, printable
from pyncette.logs import log_exception

logger = logging.getLogger("pyncette.events")


class EventLog:
    """The handler that writes the log."""

    def wants_starts(self) -> bool:
        """Returns whether the level of the log is so low that each run has lines."""
        return logger.isEnabledFor(logging.DEBUG)

    def wants_steering(self) -> bool:
        """Returns whether the level of the log is so low that calls have lines."""
        return logger.isEnabledFor(logging.INFO)

    def __call__(self, event: events.Event) -> None:
        """Writes the line of an event, if it has one."""
        line = _LINES.get(type(event))
        if line is not None:
            line(event)


def _joined(event: events.WorkerJoined) -> None:
    name = printable(event.worker)
    if event.tasks:
        logger.info("Worker %s starts with %s", name, plural(event.tasks, "task"))
    elif event.left_to_others:
        logger.warning(
            "Worker %s starts and runs nothing, because it does not have the tags of its %s "
            "(worker_tags)",
            name,
            plural(event.left_to_others, "task"),
        )
    else:
        logger.warning(
            "Worker %s starts with 0 tasks and runs nothing: import the modules that declare "
            "tasks before the app is run",
            name,
        )


def _left(event: events.WorkerLeft) -> None:
    logger.info("Worker %s claims nothing more", printable(event.worker))


def _store_down(event: events.StoreDown) -> None:
    logger.warning(
        "The store failed, trying again in %.1f s: %s",
        event.retry_in.total_seconds(),
        event.error,
        exc_info=None if isinstance(event.exception, StoreError) else event.exception,
    )


def _store_up(event: events.StoreUp) -> None:
    logger.info("The store answers again")


def _history_lost(event: events.HistoryLost) -> None:
    logger.warning(
        "%d attempts are missing in the run history, which has no effect on the runs: %s",
        event.attempts,
        event.reason,
    )


def _started(event: events.Started) -> None:
    logger.debug(
        "Task %s starts attempt %d of the run planned for %s",
        event.label,
        event.attempt,
        event.planned_at.isoformat(),
    )


def _not_started(event: events.NotStarted) -> None:
    logger.warning("%s was not started: %s", event.label, event.reason)


def _not_started_again(event: events.NotStartedAgain) -> None:
    logger.error("%s is not started again: %s", event.label, event.reason)


def _failed(event: events.Failed) -> None:
    retried = event.attempts is not None and not event.final
    log_exception(
        logger,
        logging.WARNING if retried else logging.ERROR,
        event.exception,
        "Task %s failed in attempt %s of the run planned for %s: %s",
        event.label,
        _number(event),
        event.planned_at.isoformat(),
        event.what_follows,
    )


def _skipped(event: events.SkippedByBody) -> None:
    _ended(event, "skipped", event.reason)


def _postponed(event: events.Postponed) -> None:
    _ended(event, "postponed", f"{event.what_follows}: {event.reason}")


def _ended(event: events.AttemptEnded, verb: str, why: str) -> None:
    logger.info(
        "Task %s %s attempt %s of the run planned for %s: %s",
        event.label,
        verb,
        _number(event),
        event.planned_at.isoformat(),
        why,
    )


def _number(event: events.RunEvent) -> str:
    return f"{event.attempt}" if event.attempts is None else f"{event.attempt} of {event.attempts}"


def _cancelled(event: events.Cancelled) -> None:
    if not event.by_worker:
        logger.warning(
            "Task %s was cancelled, but not by its worker: %s", event.label, event.reason
        )


def _parked(event: events.Parked) -> None:
    logger.error(
        "%s is parked: retry_parked() runs it again, drop_parked() gives this run up, "
        "unschedule_task() removes an instance",
        event.label,
    )


def _paused(event: events.Paused) -> None:
    logger.error("%s is paused until it is resumed", event.label)


def _given_up(event: events.GivenUp) -> None:
    logger.error("%s: the occurrence is given up", event.label)


def _lost(event: events.LeaseLost) -> None:
    logger.log(
        logging.DEBUG if event.by_body else logging.WARNING,
        "%s lost its lease: its outcome is not recorded, because %s",
        event.label,
        event.reason,
    )


def _not_recorded(event: events.NotRecorded) -> None:
    logger.warning(
        "The outcome of %s could not be recorded; it may run again at the end of its lease, %s: %s",
        event.label,
        event.lease_end.isoformat(),
        event.error,
    )


def _missed(event: events.Missed) -> None:
    if event.grace is not None:
        logger.warning("%s is late by more than misfire_grace (%s)", event.label, event.grace)
    if event.count:
        logger.info("Task %s: %d missed occurrences are skipped", event.label, event.count)


def _unreadable(event: events.Unreadable) -> None:
    if event.left_for is None:
        logger.error("%s is unreadable and parked: %s", event.label, event.reason)
    else:
        logger.warning(
            "%s cannot be read by this worker and is left to others for %.0f s: %s",
            event.label,
            event.left_for.total_seconds(),
            event.reason,
        )


def _steered(event: events.Steered) -> None:
    # A program may trigger thousands of instances: what nobody asked for by name is no news.
    single = event.by is None and event.instance is not None
    logger.log(
        logging.DEBUG if single else logging.INFO,
        "%s was called for %s%s%s%s",
        event.action,
        event.label,
        "" if event.where is None else f" ({printable(event.where)})",
        "" if event.by is None else f" by {printable(event.by)}",
        _what_was_steered(event),
    )


def _what_was_steered(event: events.Steered) -> str:
    said = []
    if event.count is not None and event.instance is None:
        said.append(f"{event.count:,} changed")
    if event.failed:
        said.append(f"{event.failed:,} failed")
    if event.partition_count is not None:
        said.append(f"{event.partition_count} partitions now")
    if event.until is not None:
        said.append(f"until {event.until.isoformat()}")
    if event.reason:
        said.append(printable(event.reason))
    if event.in_transaction:
        said.append("in a transaction of the application")
    if event.interrupted:
        said.append("then the call failed")
    return f": {', '.join(said)}" if said else ""


def _group_paused(event: events.GroupPaused) -> None:
    logger.info(
        "'%s' is paused%s: nothing of it is claimed%s%s",
        event.label,
        "" if event.by is None else f" by {printable(event.by)}",
        "" if event.until is None else f" until {event.until.isoformat()}",
        f" ({printable(event.reason)})" if event.reason else "",
    )


def _group_resumed(event: events.GroupResumed) -> None:
    logger.info("'%s' is claimed again: its pause has ended", event.label)


def _blocked(event: events.LoopBlocked) -> None:
    logger.warning(
        "The event loop %s blocked for %.1f s by %s. Nothing else runs meanwhile, no heartbeat "
        "either. Await what blocks, or make the task a plain function (def), which runs in a "
        "thread. It is here:\n%s",
        "is still" if event.still else "has been",
        event.lag.total_seconds(),
        event.what,
        event.stack,
    )


def _goes_on(event: events.LoopGoesOn) -> None:
    logger.info("The event loop goes on, after %.1f s", event.lag.total_seconds())


def _time_stopped(event: events.LoopTimeStopped) -> None:
    logger.error(
        "The time of the event loop stands still, so nothing that waits for a time goes "
        "on: asyncio.sleep, timeouts, the polls of this worker. Has a test frozen "
        "time.monotonic()? With freezegun, pass real_asyncio=True to freeze_time; or use "
        "pyncette.testing.VirtualClock instead"
    )


_LINES: Final[dict[type[events.Event], Callable[[Any], None]]] = {
    events.WorkerJoined: _joined,
    events.WorkerLeft: _left,
    events.StoreDown: _store_down,
    events.StoreUp: _store_up,
    events.HistoryLost: _history_lost,
    events.Started: _started,
    events.NotStarted: _not_started,
    events.NotStartedAgain: _not_started_again,
    events.Failed: _failed,
    events.TimedOut: _failed,
    events.SkippedByBody: _skipped,
    events.Postponed: _postponed,
    events.Cancelled: _cancelled,
    events.Parked: _parked,
    events.Paused: _paused,
    events.GivenUp: _given_up,
    events.LeaseLost: _lost,
    events.NotRecorded: _not_recorded,
    events.Missed: _missed,
    events.Unreadable: _unreadable,
    events.Steered: _steered,
    events.GroupPaused: _group_paused,
    events.GroupResumed: _group_resumed,
    events.LoopBlocked: _blocked,
    events.LoopGoesOn: _goes_on,
    events.LoopTimeStopped: _time_stopped,
}
