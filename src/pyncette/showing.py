"""What people are shown of tasks, on the command line and in the dashboard: words, and limits.

It returns plain text. Names come from users: what shows it escapes it as its medium needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pyncette.errors import printable
from pyncette.model import PauseState, TaskState, Where, WorkerState
from pyncette.schedule import Schedule
from pyncette.task import Task
from pyncette.when import as_written, bounds_text

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext

OVERDUE_AFTER: Final = timedelta(minutes=1)
"""What is due for longer than this, and for longer than three poll intervals, is overdue."""

SILENT_AFTER: Final = timedelta(seconds=40)
"""A worker writes every 20 s that it is alive; after a minute it counts as dead."""

CLOCK_OFFSET_MAX: Final = timedelta(seconds=1)
"""How far the clock of a machine may be off that of the store before people are told."""

PAUSED_LONG_AFTER: Final = timedelta(days=1)
"""A pause that lasts longer may have been forgotten."""

LEASE_TOLD_AFTER: Final = timedelta(days=1)
"""When a lease lasts longer, whoever triggers what holds it is told of its end."""

SLOW_ANSWER_MIN: Final = timedelta(milliseconds=250)
"""A store whose fastest answer to one small question takes longer than this is slow."""

_WEEKDAYS: Final = (
    *("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
)
_MONTHS: Final = (
    *("", "January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
_LISTED_MAX: Final = 8
"""Values of a field that are named one by one; more are shown as the expression has them."""

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def named(task: Task, instance: str | None) -> str:
    """A task, or one of its instances, for people."""
    return printable(f"{task}:{instance}" if instance is not None else task)


def triggered_text(what: str, added: int, running: TaskState | None, now: datetime) -> str:
    """What comes of triggering a static task or an instance, for people.

    Args:
        what: The task or the instance.
        added: 0 if that was requested already.
        running: Its state, if it runs or a failed run has left its lease; None: it runs now.
        now: The time.
    """
    if running is None:
        return f"{what} runs now, once more" if added else f"{what} is due to run already"
    first = "what runs has ended" if running.locked_until else "its next attempt has ended"
    runs = "runs once more" if added else "is due to run once more already,"
    text = f"{what} {runs} when {first}"
    ends = running.next
    if ends is None or ends - now <= LEASE_TOLD_AFTER:
        return text
    return f"{text}: its lease ends at {ends.isoformat(' ', 'seconds')}"


def schedule_text(task: Task) -> str:
    """When a task runs, as it was written."""
    when = task.when
    if isinstance(when.schedule, Schedule):
        text = as_written(when.schedule)
    elif when.schedule is not None:
        text = f"{when.schedule} {when.timezone or 'UTC'}"
    elif when.interval:
        text = f"every {when.interval}"
    elif when.execute_at is not None:
        text = f"once at {when.execute_at.isoformat()}"
    else:
        return "-"
    text += bounds_text(when.span.start_at, when.span.end_at)
    if when.span.jitter is not None:
        text += f" jitter {when.span.jitter}"
    return text


def paused_word(pauses: Iterable[PauseState], template: str) -> str | None:
    """How a template is paused: as a whole, or some of its partitions; None: it is not."""
    partitions = [pause.partition for pause in pauses if pause.name == template]
    if not partitions:
        return None
    return "paused" if None in partitions else "partly paused"


def pause_text(
    since: datetime | None,
    until: datetime | None,
    by: str | None,
    reason: str | None,
    *,
    now: datetime,
) -> str:
    """Since when something is paused, until when, by whom and why; empty if none is known."""
    parts = []
    if since is not None:
        instant = since.isoformat(" ", "seconds")
        parts.append(f"since {instant} ({duration_text(max(now - since, timedelta()))})")
    if until is not None:
        parts.append(f"until {until.isoformat(' ', 'seconds')}")
    if by is not None:
        parts.append(f"by {by}")
    if reason is not None:
        parts.append(f"because: {reason}")
    return ", ".join(parts)


def overdue(context: PyncetteContext) -> Where:
    """Which instances are overdue: they could have been run for a while, and were not.

    What is parked, finished, or paused until it is resumed is never due. What is paused for a time
    is due at its end. So no state need be asked for, and a store reads no more than an index.
    """
    patience = max(OVERDUE_AFTER, 3 * context.poll_interval)
    return Where(due_before=context.clock.now() - patience)


def silent(workers: Iterable[WorkerState], now: datetime) -> list[WorkerState]:
    """The workers that have not written for longer than they should, and are not dead yet."""
    return [worker for worker in workers if now - worker.seen_at > SILENT_AFTER]


def died_text(worker: WorkerState, now: datetime) -> str:
    """Which worker has died, where it was, and how long it was not heard of."""
    return (
        f"{worker.name} on {worker.host}, process {worker.process_id}, last seen "
        f"{duration_text(now - worker.seen_at)} ago"
    )


def clock_change(before: datetime | None, time: datetime) -> timedelta | None:
    """By how much the clocks of the zone were moved between two occurrences; None: not."""
    if before is None:
        return None
    earlier, later = before.utcoffset(), time.utcoffset()
    return None if earlier is None or later is None or earlier == later else later - earlier


def clock_change_text(change: timedelta) -> str:
    """The same, in words."""
    forward = change > timedelta()
    return f"{'forward' if forward else 'back'} by {abs(change)} before this"


def duration_text(duration: timedelta) -> str:
    """A duration for people: its two largest units, for example ``2 h 5 min``."""
    seconds = duration.total_seconds()
    if seconds < 0:
        return f"-{duration_text(-duration)}"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 10:
        return f"{seconds:.3g} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def schedule_words(task: Task) -> str:
    """When a task runs, in words, for example ``at 09:00, Monday to Friday (Europe/Berlin)``.

    What has no simple words is shown as it was written.
    """
    try:
        return _words(task.plan._form())
    except (ValueError, TypeError):
        return "-" if task.dynamic else "cannot be read"


def _words(form: Sequence[Any]) -> str:
    match list(form):
        case ["cron", zone, expression]:
            return f"{cron_words(expression)} ({zone})"
        case ["every", interval, anchor, at_once]:
            text = f"every {duration_text(timedelta(microseconds=interval))}"
            if at_once:
                text += ", first at once"
            return text if anchor is None else f"{text}, counted from {_instant(anchor)}"
        case ["at", instant]:
            return f"once at {_instant(instant)}"
        case ["rule", zone, _, _, rule]:
            return f"rule {rule} ({zone})"
        case ["any", *members]:
            return "; or ".join(_words(member) for member in members)
        case ["without", names, inner]:
            calendars = ", ".join(str(name) for name, _ in names)
            return f"{_words(inner)}, not on days of the calendar {calendars}"
        case ["between", start, end, inner]:
            text = _words(inner)
            if start is not None:
                text += f", from {_instant(start)}"
            return text if end is None else f"{text}, until {_instant(end)}"
        case ["jitter", jitter, inner]:
            return f"{_words(inner)}, up to {duration_text(timedelta(microseconds=jitter))} later"
    return " ".join(map(str, form))


def _instant(microseconds: int) -> str:
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def cron_words(expression: str) -> str:
    """A cron expression in words; what has no simple words is shown as it is."""
    expression = _ALIASES.get(expression.strip().lower(), expression)
    minute, hour, day, month, weekday, *rest = expression.split()
    second, year = [*rest, *("0", "*")[len(rest) :]]
    time = _time_words(second, minute, hour)
    dates = [_day_words(day), _weekday_words(weekday), _month_words(month)]
    if time is None or None in dates or year != "*":
        return f"cron {expression}"
    on_day, on_weekday, in_month = dates
    # As in other crons: either of the two, if both are restricted.
    days = " or ".join(filter(None, (on_day, on_weekday)))
    if not days and not in_month and time.startswith("at "):
        days = "every day"
    return ", ".join(part for part in (time, days, in_month) if part)


def _time_words(second: str, minute: str, hour: str) -> str | None:
    minutes, hours, seconds = _values(minute, 0, 59), _values(hour, 0, 23), _values(second, 0, 59)
    if second != "0":
        if minute == "*" and hour == "*":
            step = _step(second, 60)
            return f"every {step} seconds" if step else "every second" if second == "*" else None
        if not (seconds and len(seconds) == 1):
            return None
    if minute == "*" and hour == "*":
        return "every minute"
    if (step := _step(minute, 60)) and second == "0":
        if hour == "*":
            return f"every {step} minutes"
        span = _span(hour)
        return f"every {step} minutes, from {span[0]:02}:00 to {span[1]:02}:59" if span else None
    if minutes is None:
        return None
    step = _step(hour, 24)
    if hour == "*" or step:
        every = "every hour" if hour == "*" else f"every {step} hours"
        return every if minutes == [0] else f"{every} at minute {_joined(minutes)}"
    if hours is None or len(hours) * len(minutes) > _LISTED_MAX:
        span = _span(hour)
        if span and len(minutes) == 1:
            return f"every hour from {span[0]:02}:{minutes[0]:02} to {span[1]:02}:{minutes[0]:02}"
        return None
    ending = f":{seconds[0]:02}" if seconds and seconds != [0] else ""
    return f"at {_joined([f'{h:02}:{m:02}{ending}' for h in hours for m in minutes])}"


def _day_words(field: str) -> str | None:
    if field in ("*", "?"):
        return ""
    if field.upper() == "L":
        return "on the last day of the month"
    values = _values(field, 1, 31)
    if values is None:
        span = _span(field)
        return f"on days {span[0]} to {span[1]} of the month" if span else None
    return f"on day {_joined(values)} of the month"


def _weekday_words(field: str) -> str | None:
    if field in ("*", "?"):
        return ""
    names = {name[:3].upper(): str(number) for number, name in enumerate(_WEEKDAYS[:7])}
    text = field.upper()
    for name, number in names.items():
        text = text.replace(name, number)
    if (span := _span(text)) and max(span) <= 7:
        return f"{_WEEKDAYS[span[0]]} to {_WEEKDAYS[span[1]]}"
    values = _values(text, 0, 7)
    return None if values is None else f"on {_joined([_WEEKDAYS[value] for value in values])}"


def _month_words(field: str) -> str | None:
    if field in ("*", "?"):
        return ""
    text = field.upper()
    for number, name in enumerate(_MONTHS):
        if name:
            text = text.replace(name[:3].upper(), str(number))
    if (span := _span(text)) and min(span) >= 1 and max(span) <= 12:
        return f"from {_MONTHS[span[0]]} to {_MONTHS[span[1]]}"
    values = _values(text, 1, 12)
    return None if values is None else f"in {_joined([_MONTHS[value] for value in values])}"


def _values(field: str, first: int, last: int) -> list[int] | None:
    """The values of a list of numbers; None if it is something else."""
    parts = field.split(",")
    if len(parts) > _LISTED_MAX or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    values = [int(part) for part in parts]
    return values if all(first <= value <= last for value in values) else None


def _step(field: str, size: int) -> int | None:
    """The distance between two values, if it is the same everywhere; else None."""
    start, divided, step = field.partition("/")
    if divided and start in ("*", "0") and step.isascii() and step.isdecimal():
        return int(step) if int(step) > 1 and size % int(step) == 0 else None
    return None


def _span(field: str) -> tuple[int, int] | None:
    start, divided, end = field.partition("-")
    if divided and start.isdecimal() and end.isdecimal():
        return int(start), int(end)
    return None


def _joined(values: Sequence[object]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
