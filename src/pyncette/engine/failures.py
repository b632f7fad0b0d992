"""What an exception of a task means: is there another attempt, when, and what the log says of it.

Asks the ``Retry`` of the task, which may be user code. ``pyncette.engine.rules`` decides which
change of the record follows.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final, NamedTuple

from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import Failure, Policy
from pyncette.errors import describe, describe_traceback
from pyncette.logs import log_exception
from pyncette.model import FailureMode, Outcome
from pyncette.retry import GiveUp, Retry, RetryIn, Skip, check_delay
from pyncette.store.record import Reading

logger = logging.getLogger(__name__)

MANY_FAILURES: Final = 8
"""Failures of one occurrence from which the log names ``retry=``; then at each doubling."""

_MICROSECOND: Final = timedelta(microseconds=1)


class Attempt(NamedTuple):
    """An attempt that has raised an exception.

    Attributes:
        reading: The record.
        retry: The policy of the task, if it has one.
        policy: The same, and its other options, for the rules.
        at_most_once: Whether there is no further attempt in any case.
        label: The name of the task for logs.
        planned_at: The planned time of the run, for logs.
        now: The instant.
    """

    reading: Reading
    retry: Retry | None
    policy: Policy
    at_most_once: bool
    label: str
    planned_at: str
    now: int

    @property
    def number(self) -> int:
        """The first attempt is 1."""
        return rules.attempt_of(self.reading)

    @property
    def shown(self) -> str:
        """The number for the log."""
        return f"{self.number}" if self.retry is None else f"{self.number} of {self.retry.attempts}"


def failure_of(error: BaseException, attempt: Attempt) -> Failure:
    """Returns what an exception of a task means, and logs it.

    The exception and the policy may be of classes of the user. If one of them cannot be asked, the
    attempt has failed like any other.
    """
    try:
        return _judged(error, attempt)
    except Exception as defect:
        name = type(error).__name__
        logger.error(
            "Task %s failed in attempt %s of the run planned for %s, and what follows from its "
            "exception, a %s, could not be decided (%s): it counts as an ordinary failure",
            attempt.label,
            attempt.shown,
            attempt.planned_at,
            name,
            describe(defect),
        )
        retry = attempt.retry
        if retry is None or attempt.at_most_once:
            return Failure(name)
        plain = Retry.delay(retry, attempt.number, RuntimeError(name))
        if plain is None or attempt.number >= retry.attempts:
            return Failure(name, final=True)
        return Failure(name, delay=plain // _MICROSECOND)


def _judged(error: BaseException, attempt: Attempt) -> Failure:
    if isinstance(error, Skip):
        _log(logging.INFO, "skipped", attempt, describe(error))
        return Failure(describe(error), outcome=Outcome.SKIPPED)
    if attempt.at_most_once:
        _log_failure(error, attempt, "it is not run again, because it is at most once")
        return Failure(describe(error))
    if isinstance(error, RetryIn):
        return _postponed(error, attempt)
    if isinstance(error, GiveUp):
        return _final(error, attempt, "it has given up")
    if attempt.retry is None:
        return _by_failure_mode(error, attempt)
    return _by_policy(error, attempt, attempt.retry)


def _by_policy(error: BaseException, attempt: Attempt, retry: Retry) -> Failure:
    if not retry.covers(error):
        return _final(error, attempt, "its policy does not retry after this exception")
    if attempt.number >= retry.attempts:
        return _final(error, attempt, "this was its last attempt")
    delay = _delay(retry, error, attempt)
    if delay is None:
        return _final(error, attempt, "its policy allows no further attempt")
    if rules.last_chance(attempt.reading, attempt.policy, attempt.now + delay):
        return _final(error, attempt, "the next attempt would be later than within allows")
    _log_failure(error, attempt, f"it is retried in {delay / 1_000_000:g} s", logging.WARNING)
    return Failure(describe(error), describe_traceback(error), delay)


def _postponed(error: RetryIn, attempt: Attempt) -> Failure:
    check_delay("The delay of RetryIn", error.delay)
    delay = error.delay // _MICROSECOND
    retry = attempt.retry
    shown = f"in {error.delay}"
    if (retry is None or error.free) and delay < attempt.policy.retry_after:
        # Nothing ends these attempts: without a pause they would keep a slot and the store busy.
        delay = attempt.policy.retry_after
        shown = f"in {timedelta(microseconds=delay)}, not in {error.delay}, which is too soon for "
        shown += "attempts that are not counted" if error.free else "attempts without a limit"
    if retry is not None and not error.free and attempt.number >= retry.attempts:
        return _final(error, attempt, "this was its last attempt")
    if rules.last_chance(attempt.reading, attempt.policy, attempt.now + delay):
        return _final(error, attempt, "the next attempt would be later than within allows")
    _log(logging.INFO, "postponed", attempt, f"{shown}: {describe(error)}")
    return Failure(describe(error), None, delay, free=error.free, outcome=Outcome.POSTPONED)


def _final(error: BaseException, attempt: Attempt, reason: str) -> Failure:
    _log_failure(error, attempt, f"it is not retried, because {reason}")
    return Failure(describe(error), describe_traceback(error), final=True)


def _by_failure_mode(error: BaseException, attempt: Attempt) -> Failure:
    policy = attempt.policy
    match policy.failure_mode:
        case FailureMode.COMMIT:
            _log_failure(error, attempt, "the failure counts as done")
        case FailureMode.UNLOCK:
            delay_s = policy.retry_after / 1_000_000
            _log_failure(error, attempt, f"it is retried in {delay_s:g} s")
            _log_many_failures(attempt, "after each poll interval")
        case FailureMode.NONE:
            lease_end = from_microseconds(attempt.reading.record.due_at or 0).isoformat()
            _log_failure(error, attempt, f"it is retried when its lease ends at {lease_end}")
            _log_many_failures(attempt, "each time its lease ends")
    return Failure(describe(error), describe_traceback(error))


def _log_failure(
    error: BaseException, attempt: Attempt, what_follows: str, level: int = logging.ERROR
) -> None:
    log_exception(
        logger,
        level,
        error,
        "Task %s failed in attempt %s of the run planned for %s: %s",
        attempt.label,
        attempt.shown,
        attempt.planned_at,
        what_follows,
    )


def _log(level: int, verb: str, attempt: Attempt, why: str) -> None:
    logger.log(
        level,
        "Task %s %s attempt %s of the run planned for %s: %s",
        attempt.label,
        verb,
        attempt.shown,
        attempt.planned_at,
        why,
    )


def _log_many_failures(attempt: Attempt, when: str) -> None:
    number = attempt.number
    if number >= MANY_FAILURES and number.bit_count() == 1:
        logger.warning(
            "Task %s has failed %d times for its occurrence of %s, which is run again %s; later "
            "occurrences wait. To limit this, give it retry=Retry(attempts=…), and exhausted= to "
            "say what follows the last attempt.",
            attempt.label,
            number,
            attempt.planned_at,
            when,
        )


def _delay(retry: Retry, error: BaseException, attempt: Attempt) -> int | None:
    """Asks the policy; a defect in it must not stop the retries."""
    try:
        delay = retry.delay(attempt.number, error)
        if delay is None:
            return None
        check_delay(f"What {type(retry).__name__}.delay returns", delay)
    except Exception as defect:
        log_exception(
            logger,
            logging.ERROR,
            defect,
            "The retry policy of %s failed; the delay of a plain Retry is used: %s",
            attempt.label,
            describe(defect),
        )
        delay = Retry.delay(retry, attempt.number, error)
        if delay is None:
            return None
    return delay // _MICROSECOND
