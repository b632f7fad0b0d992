"""What follows a failure: `Retry`, and the exceptions with which a body decides it by itself.

A policy decides when the next attempt is made, or that there is none. It knows nothing of records
and stores; which change of a record follows is in ``pyncette.engine.rules``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pyncette import chance
from pyncette.errors import PyncetteException
from pyncette.options import check_flag

__all__ = ["DELAY_MAX", "GiveUp", "Retry", "RetryIn", "Skip", "check_delay"]

DELAY_MAX: Final = timedelta(days=3_660)
"""The longest delay before an attempt: ten years."""

ATTEMPTS_MAX: Final = 1_000_000

_MAXIMUM: Final = timedelta(minutes=5)
"""The longest delay of a policy that says none; no other object is this one."""

_EXPONENT_MAX: Final = 1_000
"""Beyond it, a delay that grows at all has reached its maximum; a float would overflow."""


@dataclass(frozen=True)
class Retry:
    """How often, and after which delays, a failed occurrence is tried again.

    A subclass may override ``delay``. It cannot exceed ``attempts`` and ``within``, and it is not
    asked after an exception that is final.

    Attributes:
        attempts: Maximum attempts of one occurrence. All starts count: the first one, and those
            that ended without an outcome because their worker crashed.
        initial: The delay after the first attempt.
        factor: Each further delay is this many times as long; at least 1.
        maximum: The longest delay; default is five minutes, or ``initial`` if that is longer.
        jitter: The part of each delay that is random, from 0 (none) to 1: a delay of 10 s with a
            jitter of 0.2 becomes 8 to 10 s.
        on: The exceptions after which to try again, as classes: one, or any iterable of them. Any
            other exception is final.
        give_up_on: Exceptions that are final although they are among ``on``.
        within: No attempt is planned for later than this after the planned time of the occurrence.
            None: no limit. The first attempt is always made.
    """

    attempts: int = 5
    initial: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    maximum: timedelta = _MAXIMUM
    jitter: float = 0.2
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()
    within: timedelta | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: A value is out of its range.
            TypeError: A value is of a wrong type.
        """
        _check_number("attempts", self.attempts, int)
        if not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ValueError(
                f"attempts must be from 1 to {ATTEMPTS_MAX:,}, not {self.attempts!r}: the first "
                "start counts as well"
            )
        check_delay("initial", self.initial)
        if self.maximum is _MAXIMUM and self.initial > _MAXIMUM:
            object.__setattr__(self, "maximum", self.initial)
        check_delay("maximum", self.maximum)
        if self.maximum < self.initial:
            raise ValueError(
                f"maximum must be at least initial, not {self.maximum!r} with initial "
                f"{self.initial!r}"
            )
        _check_number("factor", self.factor, (int, float))
        if not 1 <= self.factor < float("inf"):
            raise ValueError(f"factor must be at least 1, not {self.factor!r}")
        _check_number("jitter", self.jitter, (int, float))
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be from 0 to 1, not {self.jitter!r}")
        for option in ("on", "give_up_on"):
            object.__setattr__(self, option, _kinds(option, getattr(self, option)))
        if self.within is not None:
            check_delay("within", self.within)
            if not self.within:
                raise ValueError("within must be longer than zero; None means no limit")

    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        """Returns the delay before the next attempt.

        Args:
            attempt: The attempt that has failed; the first one is 1.
            error: What it raised.

        Returns:
            At least zero and at most ten years; None: there is no further attempt.
        """
        grown = self.initial.total_seconds() * _power(self.factor, attempt - 1)
        longest = self.maximum.total_seconds()
        seconds = grown if grown < longest else longest
        return timedelta(seconds=seconds * (1 - self.jitter * chance.current().random()))

    def covers(self, error: BaseException) -> bool:
        """Returns whether to try again after this exception.

        A body may raise what is no ``Exception``, for example ``CancelledError``. ``on`` covers
        that as well if it has ``Exception``.
        """
        if isinstance(error, self.give_up_on):
            return False
        return isinstance(error, self.on) or (
            Exception in self.on and not isinstance(error, Exception)
        )


class RetryIn(PyncetteException):
    """Raise it in a body to run the same occurrence again after a delay.

    Attributes:
        delay: The delay, from the end of this attempt. At least one ``poll_interval`` if nothing
            limits the attempts: without a ``Retry``, or if ``free``.
        reason: Why; shown in the state and in the log.
        free: Whether this attempt does not count. A ``Retry`` limits the attempts that count; its
            ``within`` limits all of them.
    """

    def __init__(self, delay: timedelta, reason: str = "", *, free: bool = False) -> None:
        """Checks the delay.

        Raises:
            ValueError: The delay is negative, or longer than ten years.
            TypeError: The delay is not a timedelta.
        """
        check_delay("The delay of RetryIn", delay)
        check_flag("free", free)
        super().__init__(reason or f"in {delay}")
        self.delay = delay
        self.reason = reason
        self.free = free

    def __reduce__(self) -> tuple[type[RetryIn], tuple[timedelta, str], dict[str, bool]]:
        return type(self), (self.delay, self.reason), {"free": self.free}


class GiveUp(PyncetteException):
    """Raise it in a body if no further attempt can help: the occurrence has failed for good.

    What follows is the option ``exhausted`` of the task, as after the last attempt.

    Attributes:
        reason: Why; shown in the state and in the log.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(*([reason] if reason else []))
        self.reason = reason


class Skip(PyncetteException):
    """Raise it in a body that has nothing to do: the occurrence is done, and shown as skipped.

    Attributes:
        reason: Why; shown in the state and in the log.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(*([reason] if reason else []))
        self.reason = reason


def check_delay(option: str, value: object) -> None:
    """Refuses what is not a delay.

    Raises:
        ValueError: It is negative, or longer than ten years.
        TypeError: It is not a timedelta.
    """
    if not isinstance(value, timedelta):
        raise TypeError(f"{option} must be a timedelta, not {value!r}")
    if value < timedelta():
        raise ValueError(f"{option} must not be negative, but is {value!r}")
    if value > DELAY_MAX:
        raise ValueError(f"{option} must be at most {DELAY_MAX.days} days, not {value!r}")


def _power(factor: float, exponent: int) -> float:
    try:
        return float(factor) ** min(exponent, _EXPONENT_MAX)
    except OverflowError:
        return float("inf")


def _check_number(option: str, value: object, kind: type | tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a whole number" if kind is int else "a number"
        raise TypeError(f"{option} must be {what}, not {value!r}")


def _kinds(option: str, value: object) -> tuple[type[BaseException], ...]:
    if isinstance(value, Iterable) and not isinstance(value, (type, str)):
        kinds = tuple(value)
    else:
        kinds = (value,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise TypeError(
                f"{option} must hold classes of exceptions, as in {option}=(OSError, ValueError), "
                f"not {kind!r:.200}"
            )
    return kinds
