"""When a task or an instance runs: what its options say of it, and which values are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from pyncette.errors import printable
from pyncette.model import UNSET
from pyncette.schedule import (
    AnyOf,
    At,
    Bounded,
    Cron,
    Every,
    Jittered,
    Schedule,
    UnreadableHere,
    Without,
    instant_of,
    name_of,
    nearest_timezone,
    own,
    parse_timezone,
    seconds_may_be_first,
)
from pyncette.task_options import SPAN_OPTIONS, duration, meant_among

logger: Final = logging.getLogger(__name__)

_STATIC_WHEN: Final = ("schedule", "interval")
_INSTANCE_WHEN: Final = ("schedule", "interval", "execute_at", "execute_in")

_T = TypeVar("_T")


class Span(NamedTuple):
    """What bounds and spreads the occurrences of a schedule.

    Attributes:
        start_at: There is no occurrence before it.
        end_at: There is no occurrence after it.
        jitter: Each occurrence waits for a part of it.
    """

    start_at: datetime | None = None
    end_at: datetime | None = None
    jitter: timedelta | None = None

    @classmethod
    def given(cls, start_at: object, end_at: object, jitter: object, args: dict[str, Any]) -> Span:
        """The options, each of them ``UNSET`` if it was not given; see ``option_or_argument``.

        Raises:
            TypeError: A value is neither an option nor an argument.
            ValueError: A value is out of range, or the end lies before the start.
        """
        if start_at is UNSET and end_at is UNSET and jitter is UNSET:
            return NO_SPAN
        start = option_or_argument("start_at", start_at, datetime, args)
        end = option_or_argument("end_at", end_at, datetime, args)
        wait = option_or_argument("jitter", jitter, timedelta, args)
        if start is not None and end is not None and instant_of(end) < instant_of(start):
            raise ValueError(f"end_at ({end}) must not lie before start_at ({start})")
        span = cls(start, end, wait)
        span.applied(_ALWAYS)
        return span

    def over(self, inherited: Span, single: bool) -> Span:
        """This span, and of another one what this one leaves open; no bounds for a single run."""
        if inherited == NO_SPAN:
            return self
        jitter = inherited.jitter if self.jitter is None else self.jitter
        if single:
            return self._replace(jitter=jitter)
        return Span(
            inherited.start_at if self.start_at is None else self.start_at,
            inherited.end_at if self.end_at is None else self.end_at,
            jitter,
        )

    def applied(self, schedule: Schedule) -> Schedule:
        """The schedule in this span.

        Raises:
            ValueError: It has no occurrence there.
        """
        schedule = schedule.between(self.start_at, self.end_at)
        return schedule if self.jitter is None else schedule.with_jitter(self.jitter)


NO_SPAN: Final = Span()

_ALWAYS: Final = Every(timedelta(microseconds=1))


def option_or_argument(
    option: str, value: object, kind: type[_T], args: dict[str, Any]
) -> _T | None:
    """Returns the value of an option that 1.x did not have.

    A value that JSON can hold is an argument of the task, as it was in 1.x: it is added to
    ``args``.

    Raises:
        TypeError: The value can be neither.
    """
    if value is UNSET:
        return None
    if isinstance(value, kind):
        return value
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise TypeError(f"{option} must be {SPAN_OPTIONS[option]}, not {value!r:.100}") from None
    args[option] = value
    return None


def in_time(wait: timedelta, execute_at: datetime | None, now: datetime) -> datetime:
    """The instant that lies ``execute_in`` from now.

    Raises:
        ValueError: It is negative, or too long, or ``execute_at`` is given as well.
    """
    if execute_at is not None:
        raise ValueError("execute_in and execute_at cannot be given together")
    if wait < timedelta(0):
        raise ValueError(f"execute_in must not be negative, not {wait!r}")
    try:
        return now + wait
    except OverflowError:
        raise ValueError(f"execute_in is too long: {wait!r}") from None


class When(NamedTuple):
    """When a task runs.

    Attributes:
        schedule: The cron expression, as it was given, or another schedule.
        interval: The distance between two runs. Zero on a handle: an instance that names a
            record and cannot be scheduled.
        execute_at: The instant of the only run.
        timezone: The name of the zone in which the cron expression holds, as it was given.
        plan: What the others mean; None on a template without a default, and on a handle.
        span: What bounds and spreads the occurrences.
    """

    schedule: str | Schedule | None = None
    interval: timedelta | None = None
    execute_at: datetime | None = None
    timezone: str | None = None
    plan: Schedule | None = None
    span: Span = NO_SPAN

    @classmethod
    def of(cls, plan: Schedule | None) -> When:
        """What a stored schedule says."""
        plan = None if plan is None else own(plan)
        inner, span = plan, NO_SPAN
        if isinstance(inner, Jittered):
            span = span._replace(jitter=timedelta(microseconds=inner.jitter))
            inner = inner.schedule
        if isinstance(inner, Bounded):
            span = span._replace(start_at=inner.start, end_at=inner.end)
            inner = inner.schedule
        match inner:
            case Cron():
                return cls(inner.expression, timezone=inner.timezone_name, plan=plan, span=span)
            case Every() if span.applied(Every(inner.interval)) == plan:
                return cls(interval=inner.interval, plan=plan, span=span)
            case At():
                return cls(execute_at=inner.instant, plan=plan, span=span)
        return cls(inner, plan=plan, span=span)

    @classmethod
    def checked(
        cls,
        schedule: str | Schedule | None,
        interval: timedelta | float | None,
        execute_at: datetime | None,
        timezone: str | tzinfo | None,
        span: Span = NO_SPAN,
        *,
        name: str,
        dynamic: bool = False,
        instance: bool = False,
        args: Iterable[str] = (),
    ) -> When:
        """When a task runs, if the options say it.

        Args:
            schedule: See the attribute.
            interval: See the attribute; a number means seconds.
            execute_at: See the attribute; only an instance may have it.
            timezone: A name, or a time zone object.
            span: See the attribute.
            name: The name of the task, for the message of an error.
            dynamic: Whether it is a template, which need not say when.
            instance: Whether it is an instance.
            args: The names of its arguments: one of them may be a misspelt option.

        Raises:
            ValueError: None or several of the first three are given, or one is invalid.
            TypeError: A value is of a wrong type.
        """
        zone = None if timezone is None else name_of(timezone)
        distance = None if interval is None else duration("interval", interval, zero=True)
        given = [
            option
            for option, value in (
                ("schedule", schedule),
                ("interval", interval),
                ("execute_at", execute_at),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"Task '{printable(name)}' has more than one of schedule, interval and execute_at: "
                + ", ".join(given)
            )
        if not given and not dynamic:
            allowed = _INSTANCE_WHEN if instance else _STATIC_WHEN
            raise ValueError(needs_when(name, allowed) + meant_among(args, allowed))
        if zone is not None and schedule is None and given:
            raise ValueError(
                f"timezone may only be given together with schedule, not with {given[0]} "
                f"(task '{printable(name)}')"
            )
        if schedule is not None:
            when = _scheduled(schedule, zone, name)
        elif execute_at is not None:
            at = single_at(execute_at)
            when = cls(execute_at=at.instant, plan=at)
        else:
            if zone is not None:
                with _zone_of(name, zone):
                    parse_timezone(zone)
            handle = instance and not distance
            every = None if distance is None or handle else Every(distance)
            when = cls(interval=distance, timezone=zone, plan=every)
        if when.execute_at is not None:
            _check_single(when.span.over(span, single=False), name, instance)
        if span == NO_SPAN:
            return when
        if when.plan is not None:
            plan = span.applied(when.plan)
            return when._replace(plan=plan, span=cls.of(plan).span)
        return when._replace(span=span)


def check_beside_single(options: Mapping[str, Any], single: str, name: str) -> None:
    """Refuses options that do not go with one that asks for a single run.

    ``When.of`` refuses them, too, but knows of ``execute_at`` only.

    Args:
        options: The options, as they were given.
        single: The name of the option that asks for the run.
        name: The name of the task, for the message of an error.

    Raises:
        ValueError: One of them was given.
    """
    given = [option for option in ("schedule", "interval") if options.get(option) is not None]
    if given:
        raise ValueError(
            f"Task '{printable(name)}' has more than one of schedule, interval and {single}: "
            f"{', '.join([*given, single])}"
        )
    if options.get("timezone") is not None:
        raise ValueError(
            f"timezone may only be given together with schedule, not with {single} (task "
            f"'{printable(name)}')"
        )
    # What is no instant is an argument of the task.
    if any(isinstance(options.get(option), datetime) for option in ("start_at", "end_at")):
        raise _bounded_single(single, name)


def _bounded_single(single: str, name: str) -> ValueError:
    return ValueError(
        f"start_at and end_at bound a recurrence: a single run has its {single} (task "
        f"'{printable(name)}')"
    )


def single_at(execute_at: datetime) -> At:
    """The schedule of a single run.

    Raises:
        TypeError: ``execute_at`` is no datetime.
        ValueError: It lies too far ahead.
    """
    try:
        return At(execute_at)
    except TypeError:
        raise TypeError(f"execute_at must be a datetime, not {execute_at!r:.100}") from None


def is_single(schedule: str | Schedule | None) -> bool:
    """Whether a schedule is one instant."""
    return isinstance(schedule, Schedule) and When.of(schedule).execute_at is not None


def _scheduled(schedule: str | Schedule, zone: str | None, name: str) -> When:
    if isinstance(schedule, Schedule):
        if zone is not None:
            raise ValueError(
                f"timezone may only be given together with a cron expression: {schedule!r:.200} "
                f"has a zone of its own (task '{printable(name)}')"
            )
        return When.of(schedule)
    if not isinstance(schedule, str):
        raise TypeError(f"schedule must be a cron expression or a Schedule, not {schedule!r}")
    with _zone_of(name, zone):
        return _of_cron(schedule, zone)


@contextmanager
def _zone_of(name: str, zone: str | None) -> Iterator[None]:
    """Says whose time zone it is that is not known.

    Raises:
        ValueError: The tz data of this machine have no such zone.
    """
    try:
        yield
    except UnreadableHere as error:
        close = nearest_timezone(zone)
        hint = f": did you mean {close!r}?" if close else ""
        raise ValueError(f"{error} (timezone of the task '{printable(name)}'){hint}") from None


def needs_when(name: object, allowed: Sequence[str] = _INSTANCE_WHEN) -> str:
    """Says of a task that its options do not tell when it runs."""
    return (
        f"Task '{printable(name)}' needs exactly one of {', '.join(allowed[:-1])} and {allowed[-1]}"
    )


@lru_cache(maxsize=1024)
def _of_cron(schedule: str, zone: str | None) -> When:
    """Parsed once: many instances have the same expression."""
    cron = Cron(schedule, "UTC" if zone is None else zone)
    _warn_of_seconds(cron.expression)
    return When(schedule, timezone=zone, plan=cron)


def _check_single(span: Span, name: str, instance: bool) -> None:
    if not instance:
        raise ValueError(
            f"execute_at is for instances of dynamic tasks, not for '{printable(name)}' itself"
        )
    if span.start_at is not None or span.end_at is not None:
        raise _bounded_single("execute_at", name)


@lru_cache(maxsize=1024)  # once for each expression, whatever its zone
def _warn_of_seconds(expression: str) -> None:
    if seconds_may_be_first(expression):
        fields = expression.split()
        logger.warning(
            "The schedule '%s' runs at every second of the minutes '%s' of the hours '%s'. If the "
            "first field was meant to be the second: it stands last here, as in '%s'",
            expression,
            *fields[:2],
            " ".join([*fields[1:6], fields[0], *fields[6:]]),
        )


def as_written(schedule: Schedule) -> str:
    """A schedule as it was written, for people who need not know Python."""
    match schedule:
        case Cron():
            return f"{schedule.expression} {schedule.timezone_name}"
        case Every():
            anchor = "" if schedule.anchor is None else f" from {schedule.anchor.isoformat()}"
            return f"every {schedule.interval}{anchor}"
        case At():
            return f"once at {schedule.instant.isoformat()}"
        case AnyOf():
            return " or ".join(map(as_written, schedule.schedules))
        case Without():
            inner = as_written(schedule.schedule)
            inner = f"({inner})" if isinstance(schedule.schedule, AnyOf) else inner
            return f"{inner} without {', '.join(each.name for each in schedule.calendars)}"
        case Bounded():
            return as_written(schedule.schedule) + bounds_text(schedule.start, schedule.end)
        case Jittered():
            wait = timedelta(microseconds=schedule.jitter)
            return f"{as_written(schedule.schedule)} jitter {wait}"
    return repr(schedule)


def bounds_text(start: datetime | None, end: datetime | None) -> str:
    """Between which instants there are occurrences, for people; empty if there is no bound."""
    first = "" if start is None else f" from {start.isoformat()}"
    return first if end is None else f"{first} until {end.isoformat()}"
