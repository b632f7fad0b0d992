"""The record of a task: its columns, the texts in them, and the changes that can be made to it.

A store never reads the content of ``schedule``, ``args`` and ``progress``. Only this module reads
and writes these texts (``schedule`` with the help of ``pyncette.schedule``). Which change follows
from which event is decided in ``pyncette.engine.rules``.

All instants are integers: microseconds since the epoch, UTC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from types import MethodType
from typing import Any, Final, NamedTuple

from pyncette.errors import ERROR_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX, printable
from pyncette.model import Outcome
from pyncette.schedule import NewerFormat, Schedule, UnreadableHere
from pyncette.schedule import loads as load_schedule

STATIC_GROUP: Final = ":static"
"""The group of all static tasks. No template's group begins with a colon."""

CONTROL_GROUP: Final = ":control"
"""The group of control records: one record for each fact, shared by all workers on the store."""

MEMBERS_GROUP: Final = ":members"
"""The group of the records that workers keep about themselves, one for each worker."""

IDENTITY_BYTES_MAX: Final = 1_000

LATEST_INSTANT: Final = 8_993_721_599_999_999
"""The last microsecond of 2254: from 2255 on a double no longer holds every microsecond."""

EARLIEST_INSTANT: Final = -62_135_596_800_000_000
"""The first microsecond of the year 1, the earliest that a datetime can hold."""

ABSENT: Final = 0
"""The ``expect`` of a ``Write``: there must be no record."""

ANY: Final = -1
"""The ``expect`` of a ``Write``: there is no condition on the record."""


class State(StrEnum):
    """The state of a record. Stores keep it as text, for conditions and filters."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    RETRYING = "retrying"
    PAUSED = "paused"
    PARKED = "parked"
    FINISHED = "finished"


class Record(NamedTuple):
    """One row of a store.

    Attributes:
        group: The records that are claimed together: a template, one of its partitions, or a
            reserved group.
        key: The name of the instance or of the static task. Unique within the group.
        due_at: The only indexed instant: the planned run, the retry, or the end of the lease. None
            while parked, finished, or paused without an end. If a pause has an end, this is when
            the record is claimed again: a claim never looks at ``state``.
        version: Increased by every write; its value at the claim is the fencing token.
        token: The token of the last claim, unique over all workers and all time. None if the
            record was never claimed, or was taken away from its holder.
        state: See ``State``.
        unfinished_attempts: Attempts of this occurrence that ended without an outcome (crashed
            workers), and the one that is running.
        schedule: The schedule as text (``pyncette.schedule.dumps``), with a mark if it is the
            default of the template.
        args: The instance's own arguments as text (``dump_args``); empty for static tasks.
        progress: The progress as text (``Progress``).
    """

    group: str
    key: str
    due_at: int | None
    version: int
    token: str | None
    state: str
    unfinished_attempts: int
    schedule: str
    args: str
    progress: str


record_of: Final[Callable[[tuple[Any, ...]], Record]] = MethodType(tuple.__new__, Record)
"""Makes a record of a tuple of all columns, at a third of the cost of ``Record(*row)``."""


class Put(NamedTuple):
    """Writes a whole record: creates it, or replaces all columns of an existing one."""

    due_at: int | None
    state: str
    token: str | None
    unfinished_attempts: int
    schedule: str
    args: str
    progress: str


class Patch(NamedTuple):
    """Writes the columns that change while a task runs.

    It keeps ``schedule``, ``args`` and ``token``, and also ``progress`` if that is None.
    """

    due_at: int | None
    state: str
    unfinished_attempts: int
    progress: str | None = None


put_of: Final[Callable[[tuple[Any, ...]], Put]] = MethodType(tuple.__new__, Put)
"""Makes a put of a tuple of all fields, as ``record_of`` does."""

patch_of: Final[Callable[[tuple[Any, ...]], Patch]] = MethodType(tuple.__new__, Patch)
"""Makes a patch of a tuple of all fields, as ``record_of`` does."""


class Delete(NamedTuple):
    """Removes a record."""

    @property
    def due_at(self) -> None:
        """None: a removed record never comes due."""


DELETE: Final = Delete()
"""The only instance that is needed."""

Change = Put | Patch | Delete


class Pause(NamedTuple):
    """What a user said about a pause.

    Attributes:
        until: The instant at which it ends by itself; None: when the record is resumed.
        reason: Why, as text for people; None if no reason was given.
        since: The instant at which it was made; None if that is not known.
        by: Who has made it, as text for people; None: nobody was named.
    """

    until: int | None = None
    reason: str | None = None
    since: int | None = None
    by: str | None = None

    def ended(self, now: int) -> bool:
        """Returns whether the pause has ended by itself."""
        return self.until is not None and self.until <= now


class Pending(NamedTuple):
    """Requests that were made while the task ran. They apply when that run has ended.

    Attributes:
        schedule, args, planned, incarnation: A replacement (all of them, or none).
        paused: Pause after the current occurrence, and after a triggered one that follows it.
        triggered: Run once more, planned for this instant.
        pause: What was said about the pause, if it has an end or a reason.
    """

    schedule: str | None = None
    args: str | None = None
    planned: int | None = None
    incarnation: str | None = None
    paused: bool = False
    triggered: int | None = None
    pause: Pause | None = None


class Progress(NamedTuple):
    """The progress of a record through its schedule.

    Attributes:
        planned: The planned instant of the current occurrence (if ``triggered`` is set, of the
            next one). None if the schedule has no further occurrence.
        incarnation: A random id chosen when the record was created.
        triggered: The instant of the current run if a user has triggered it, else None.
        failures: Attempts of the current occurrence that count and have ended without success.
        pending: See ``Pending``.
        error: The error of the last attempt that was recorded, or its reason, as text.
        pause: What was said about the pause, if it has an end or a reason. It holds only in the
            state ``paused``; a claim after the end leaves it until the next outcome.
        last: When the last attempt that was recorded started and how many microseconds it took, as
            ``start+length``; only the start if its end is unknown (at most once). See
            ``last_started``.
        outcome: How that attempt ended, if it neither succeeded nor failed; see ``last_outcome``.
        skipped: Occurrences of this record that were skipped, or ran together with another one.
        traceback: The end of the traceback of a failed attempt.
        begun: When the first attempt of the planned occurrence started, where that matters. A
            triggered run leaves it.
        renewed: When the current occurrence got all of its attempts anew.
        backlog: If occurrences that came due during a run are skipped, and the planned one was
            missed before: when the first run of this backlog started. What came due after that is
            skipped once the backlog has been run. A pause ends it.
    """

    planned: int | None
    incarnation: str
    triggered: int | None = None
    failures: int = 0
    pending: Pending | None = None
    error: str | None = None
    pause: Pause | None = None
    last: str | None = None
    outcome: Outcome | None = None
    skipped: int = 0
    traceback: str | None = None
    begun: int | None = None
    renewed: int | None = None
    backlog: int | None = None

    @property
    def occurrence(self) -> int | None:
        """The planned instant of the current run, or of the next one."""
        return self.planned if self.triggered is None else self.triggered

    @property
    def last_started(self) -> int | None:
        """When the last attempt that was recorded started."""
        return None if self.last is None else _instant_in(self.last.partition("+")[0])

    @property
    def last_finished(self) -> int | None:
        """When that attempt ended."""
        if self.last is None:
            return None
        start, _, length = self.last.partition("+")
        started, took = _instant_in(start), _instant_in(length)
        return None if started is None or took is None else started + took

    @property
    def last_outcome(self) -> Outcome | None:
        """How that attempt ended; None if there was none, or if its end is unknown."""
        if self.outcome is not None:
            return self.outcome
        if self.last_finished is None:
            return None
        return Outcome.SUCCEEDED if self.error is None else Outcome.FAILED


def _instant_in(text: str) -> int | None:
    # It is only shown: a row that was edited by hand shows nothing, and runs as before.
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 17 else None


_progress_of: Final[Callable[[tuple[Any, ...]], Progress]] = MethodType(tuple.__new__, Progress)
"""Makes a progress of a tuple of all fields, as ``record_of`` does."""


class Reading(NamedTuple):
    """A record together with its parsed texts."""

    record: Record
    schedule: Schedule
    progress: Progress


reading_from: Final[Callable[[tuple[Any, ...]], Reading]] = MethodType(tuple.__new__, Reading)
"""Makes a reading of a tuple of all fields, as ``record_of`` does."""


class UnreadableRecord(ValueError):  # noqa: N818
    """A text of a record does not have a valid format. Pyncette did not write it."""


def read(record: Record) -> Reading:
    """Reads the schedule and the progress of a record (its arguments are read when first needed).

    Raises:
        UnreadableHere: This worker cannot read the record, but another worker may: a later release
            wrote it (``NewerFormat``), or the tz data of this machine lack its zone.
        UnreadableRecord: No worker can read the record.
    """
    args = record.args
    try:
        schedule = load_schedule(record.schedule)
    except UnreadableHere:
        raise
    except ValueError as error:
        raise UnreadableRecord(f"schedule: {error}") from error
    if args and not args.startswith("1 "):
        # Unreadable arguments fail the run, which reads them. Newer ones are for newer workers.
        args_error = _not_ours("args", args)
        if isinstance(args_error, NewerFormat):
            raise args_error
    return reading_from((record, schedule, load_progress(record.progress)))


_encoder: Final = json.JSONEncoder(separators=(",", ":"))


def _direct() -> Callable[[Any, int], Iterable[str]]:
    """Encodes as ``_encoder`` does, but without making the encoder in C anew for each value.

    It does not look for circular references: they end in a ``RecursionError``. What it returns
    takes the value, and zero, and returns the text in parts.
    """
    try:
        encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None,
            _encoder.default,
            json.encoder.encode_basestring_ascii,
            None,
            _encoder.key_separator,
            _encoder.item_separator,
            False,
            False,
            True,
        )
        if "".join(encode({"a": [1, None]}, 0)) == '{"a":[1,null]}':
            return encode  # type: ignore[no-any-return]
    except (AttributeError, TypeError):
        pass  # another implementation of Python
    return lambda value, _: _encoder.encode(value)


_parts_of: Final = _direct()


def _encode(value: Any) -> str:
    """JSON as printable ASCII: DEL is ASCII, but is not escaped by the encoder."""
    return "".join(_parts_of(value, 0)).replace("\x7f", "\\u007f")


# In the common case, a progress is three words, and a fourth one after the first attempt: no JSON
# is read or written on the hot path. Rare fields follow as an object:
# "1 1764000000000000 k3Rn9a 1763996400001234+5678 {"failures":2}".

_NOTHING: Final = tuple(Progress._field_defaults.values())[6:]


def dump_position(planned: int | None, incarnation: str, last: str | None = None) -> str:
    """Returns the text of a progress of which nothing else is known: the common case."""
    if last is None:
        return f"1 {'-' if planned is None else planned} {incarnation}"
    return f"1 {'-' if planned is None else planned} {incarnation} {last}"


def dump_progress(progress: Progress) -> str:
    """Returns the progress as text."""
    planned, incarnation, triggered, failures, pending, error, pause, last = progress[:8]
    head = dump_position(planned, incarnation, last)
    if (
        triggered is None
        and not failures
        and pending is None
        and error is None
        and pause is None
        and progress[8:] == _NOTHING
    ):
        return head
    outcome, skipped, traceback, begun, renewed, backlog = progress[8:]
    rest: dict[str, Any] = {}
    if triggered is not None:
        rest["triggered"] = triggered
    if failures:
        rest["failures"] = failures
    if pending is not None:
        defaults = Pending._field_defaults
        rest["pending"] = {
            name: value for name, value in pending._asdict().items() if value != defaults[name]
        }
    if error is not None:
        rest["error"] = error[:ERROR_CHARACTERS_MAX]
    if pause is not None:
        rest["pause"] = pause
    if outcome is not None:
        rest["outcome"] = outcome
    if skipped:
        rest["skipped"] = skipped
    if traceback is not None:
        rest["traceback"] = traceback[-TRACEBACK_CHARACTERS_MAX:]
    if begun is not None:
        rest["begun"] = begun
    if renewed is not None:
        rest["renewed"] = renewed
    if backlog is not None:
        rest["backlog"] = backlog
    return f"{head} {_encode(rest)}"


def load_progress(text: str) -> Progress:
    """Reads a progress from its text.

    Raises:
        NewerFormat: A later release wrote it.
        UnreadableRecord: No release can read it.
    """
    words = text.split(" ", 4)
    if len(words) < 3:
        raise _not_ours("progress", text)
    version, instant, incarnation, *more = words
    if version != "1" or not incarnation:
        raise _not_ours("progress", text)
    try:
        planned: int | None = None
        if instant != "-":
            planned = int(instant)
            if not EARLIEST_INSTANT <= planned <= LATEST_INSTANT:
                raise ValueError(f"{planned} is not an instant")
        if not more:
            # Written out, which takes a third of the time that it takes to unpack the defaults.
            return _progress_of(
                (planned, incarnation, None, 0, None, None, None, None,
                 None, 0, None, None, None, None)
            )  # fmt: skip
        last: str | None = more[0]
        if more[0].startswith("{"):
            last, body = None, text.split(" ", 3)[3]
        elif not more[0] or more[0][0] not in "0123456789":
            raise ValueError("the last attempt is not an instant")
        elif len(more) == 1:
            return _progress_of(
                (planned, incarnation, None, 0, None, None, None, last,
                 None, 0, None, None, None, None)
            )  # fmt: skip
        else:
            body = more[1]
        rest = json.loads(body)
        error, traceback = rest.get("error"), rest.get("traceback")
        return Progress(
            planned,
            incarnation,
            _instant_or_none(rest.get("triggered")),
            _count(rest.get("failures", 0)),
            _pending(rest["pending"]) if "pending" in rest else None,
            None if error is None else str(error),
            _pause(rest["pause"]) if "pause" in rest else None,
            last,
            _outcome(rest.get("outcome")),
            _count(rest.get("skipped", 0)),
            None if traceback is None else str(traceback),
            _instant_or_none(rest.get("begun")),
            _instant_or_none(rest.get("renewed")),
            _instant_or_none(rest.get("backlog")),
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(f"progress '{text[:100]}': {error}") from error


def _pause(fields: list[Any]) -> Pause:
    until, reason, since, by, *_ = (*fields, None, None)
    if reason is not None and not isinstance(reason, str):
        raise ValueError(f"the reason of the pause is {reason!r}")
    # These are only shown.
    since = since if type(since) is int and EARLIEST_INSTANT <= since <= LATEST_INSTANT else None
    by = by if isinstance(by, str) else None
    return Pause(None if until is None else _instant(until), reason, since, by)


def _outcome(value: Any) -> Outcome | None:
    try:
        return None if value is None else Outcome(value)
    except ValueError:
        return None  # it is only shown; a later release may know more


def _pending(fields: dict[str, Any]) -> Pending:
    pending = Pending(**fields)
    if pending.pause is not None:
        pending = pending._replace(pause=_pause(list(pending.pause)))
    for instant in (pending.planned, pending.triggered):
        if instant is not None:
            _instant(instant)
    if not isinstance(pending.paused, bool):
        raise ValueError(f"paused is {pending.paused!r}")
    texts = (pending.schedule, pending.args, pending.incarnation)
    if any(text is not None for text in texts) and not all(map(_plain, texts)):
        raise ValueError(f"pending replacement is incomplete: {fields!r}")
    return pending


def _plain(text: Any) -> bool:
    """Returns whether a text may become a column: Pyncette writes only printable ASCII."""
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _instant_or_none(value: Any) -> int | None:
    return None if value is None else _instant(value)


def _instant(value: Any) -> int:
    if type(value) is not int or not EARLIEST_INSTANT <= value <= LATEST_INSTANT:
        raise ValueError(f"{value!r} is not an instant")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def dump_args(args: dict[str, Any]) -> str:
    """Returns the arguments of an instance as text. They were checked to be serialisable before."""
    return f"1 {_encode(args)}" if args else "1 {}"


def load_args(text: str) -> dict[str, Any]:
    """Reads the arguments of an instance from their text: a new dictionary at each call.

    Raises:
        NewerFormat: A later release wrote it.
        UnreadableRecord: No release can read it.
    """
    if not text.startswith("1 "):
        raise _not_ours("args", text)
    try:
        args = json.loads(text[2:])
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"args '{text[:100]}': {error}") from error
    if type(args) is not dict:
        raise UnreadableRecord(f"args '{text[:100]}': not an object")
    return args


def _not_ours(what: str, text: str) -> ValueError:
    version = text.partition(" ")[0]
    # Not more than four digits: a long number is an instant, in a row that was edited.
    if version.isascii() and version.isdigit() and len(version) <= 4 and int(version) > 1:
        return NewerFormat(f"{what} has format {version}, this release reads format 1")
    return UnreadableRecord(f"{what} '{text[:100]}': not of a known format")


def group_of(template: str, partition: int | None = None) -> str:
    """Returns the group of a template, or of one of its partitions.

    ``%`` and ``:`` in the template's name are percent-encoded, so that no two templates and
    partitions share a group, and none shares one with the reserved groups.
    """
    encoded = template.replace("%", "%25").replace(":", "%3A")
    return encoded if partition is None else f"{encoded}:{partition}"


def template_of(group: str) -> tuple[str, int | None]:
    """Returns the template and the partition whose ``group_of`` is this one."""
    encoded, divided, number = group.rpartition(":")
    partition = int(number) if divided and number.isdecimal() else None
    name = encoded if divided else group
    return name.replace("%3A", ":").replace("%25", "%"), partition


def is_plain_identity(group: str, key: str) -> bool:
    """Whether every store can keep these names, seen at a glance: short ASCII, as most are."""
    return (
        0 < len(key) <= IDENTITY_BYTES_MAX - len(group)
        and key.isascii()
        and group.isascii()
        and "\0" not in key
        and "\0" not in group
    )


def check_identity(group: str, key: str, what: str) -> None:
    """Refuses names that some store cannot keep, or cannot tell from other names.

    Args:
        group: The group.
        key: The name.
        what: What the name is, for the error.

    Raises:
        ValueError: The name has a NUL or a lone surrogate, is empty, or is longer than 1,000 bytes
            together with its group.
    """
    if not key:
        raise ValueError(f"{printable(what)} must not be empty")
    if "\0" in key or "\0" in group:
        raise ValueError(f"{printable(what)} {key!r} must not hold a NUL character")
    try:
        size = len(group.encode()) + len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{printable(what)} {key!r} must not hold a lone surrogate") from None
    if size > IDENTITY_BYTES_MAX:
        raise ValueError(
            f"{printable(what)} {key[:40]!r}… is too long: {size} bytes in UTF-8 together with its "
            f"template {group[:40]!r}, at most {IDENTITY_BYTES_MAX} are kept"
        )
