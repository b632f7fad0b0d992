"""What an exception of a task means: is there another attempt, when, and how this is told.

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
from pyncette.errors import class_name, describe, describe_traceback
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
    def name(self) -> str:
        """The attempt in words, for people."""
        return (
            f"task {self.label}, in attempt {self.number} of the run planned for {self.planned_at}"
        )


class Judgement(NamedTuple):
    """What an exception of a task means.

    Attributes:
        failure: The same for the rules.
        what_follows: The same for people, as a clause.
    """

    failure: Failure
    what_follows: str


def failure_of(error: BaseException, attempt: Attempt) -> Judgement:
    """Returns what an exception of a task means.

    The exception and the policy may be of classes of the user. If one of them cannot be asked, the
    attempt has failed like any other.
    """
    try:
        return _judged(error, attempt)
    except BaseException as defect:
        name = class_name(error)
        what_follows = (
            f"what follows from its exception, a {name}, could not be decided "
            f"({describe(defect)}): it counts as an ordinary failure"
        )
        retry = attempt.retry
        if retry is None or attempt.at_most_once:
            return Judgement(Failure(name), what_follows)
        plain = Retry.delay(retry, attempt.number, RuntimeError(name))
        if plain is None or attempt.number >= retry.attempts:
            return Judgement(Failure(name, final=True), what_follows)
        return Judgement(Failure(name, delay=plain // _MICROSECOND), what_follows)


def _judged(error: BaseException, attempt: Attempt) -> Judgement:
    if isinstance(error, Skip):
        return Judgement(Failure(describe(error), outcome=Outcome.SKIPPED), "it is skipped")
    if attempt.at_most_once:
        why = "it is not run again, because it is at most once"
        return Judgement(Failure(describe(error)), why)
    if isinstance(error, RetryIn):
        return _postponed(error, attempt)
    if isinstance(error, GiveUp):
        return _final(error, "it has given up")
    if attempt.retry is None:
        return _by_failure_mode(error, attempt)
    return _by_policy(error, attempt, attempt.retry)


def _by_policy(error: BaseException, attempt: Attempt, retry: Retry) -> Judgement:
    if not retry.covers(error):
        return _final(error, "its policy does not retry after this exception")
    if attempt.number >= retry.attempts:
        return _final(error, "this was its last attempt")
    delay = _delay(retry, error, attempt)
    if delay is None:
        return _final(error, "its policy allows no further attempt")
    if rules.last_chance(attempt.reading, attempt.policy, attempt.now + delay):
        return _final(error, "the next attempt would be later than within allows")
    failure = Failure(describe(error), describe_traceback(error), delay)
    return Judgement(failure, f"it is retried in {delay / 1_000_000:g} s")


def _postponed(error: RetryIn, attempt: Attempt) -> Judgement:
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
        return _final(error, "this was its last attempt")
    if rules.last_chance(attempt.reading, attempt.policy, attempt.now + delay):
        return _final(error, "the next attempt would be later than within allows")
    failure = Failure(describe(error), None, delay, free=error.free, outcome=Outcome.POSTPONED)
    return Judgement(failure, shown)


def _final(error: BaseException, reason: str) -> Judgement:
    failure = Failure(describe(error), describe_traceback(error), final=True)
    return Judgement(failure, f"it is not retried, because {reason}")


def _by_failure_mode(error: BaseException, attempt: Attempt) -> Judgement:
    policy = attempt.policy
    match policy.failure_mode:
        case FailureMode.COMMIT:
            what_follows = "the failure counts as done"
        case FailureMode.UNLOCK:
            what_follows = f"it is retried in {policy.retry_after / 1_000_000:g} s"
            _log_many_failures(attempt, "after each poll interval")
        case FailureMode.NONE:
            lease_end = from_microseconds(attempt.reading.record.due_at or 0).isoformat()
            what_follows = f"it is retried when its lease ends at {lease_end}"
            _log_many_failures(attempt, "each time its lease ends")
    return Judgement(Failure(describe(error), describe_traceback(error)), what_follows)


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
