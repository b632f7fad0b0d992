"""The options of a task: what they mean, and which values are refused.

``TaskOptions`` is what the code of a worker decides, for a template and all of its instances. When
one task or instance runs is said by ``pyncette.when.When``. Both are checked when they are made and
never change.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, Literal

from pyncette.body import check_body, check_importable
from pyncette.errors import printable
from pyncette.model import (
    CatchUp,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    Overlap,
    PerWorker,
    Process,
    TaskFunc,
)
from pyncette.options import check_flag
from pyncette.parameters import Parameters, parameters_of
from pyncette.retry import Retry

logger: Final = logging.getLogger(__name__)

DEFAULT_LEASE_DURATION: Final = timedelta(seconds=60)
DURATION_MAX: Final = timedelta(days=3_660)
"""The longest lease and the longest pause that an option may ask for: ten years."""

TAGS_MAX: Final = 100
TAG_CHARACTERS_MAX: Final = 100

INSTANCE_OPTIONS: Final = ("schedule", "interval", "execute_at", "timezone")
"""The options that an instance may set for itself."""

SPAN_OPTIONS: Final = {
    "start_at": "a datetime",
    "end_at": "a datetime",
    "jitter": "a timedelta",
    "execute_in": "a timedelta",
}
"""More of them, which 1.x did not have, and what they take. A value that JSON can hold stays an
argument of the task, as it was in 1.x."""

_SHARED_OPTIONS: Final = (
    "fast_forward",
    "failure_mode",
    "execution_mode",
    "lease_duration",
    "enabled",
)
TEMPLATE_OPTIONS: Final = frozenset({"name", "func", "dynamic", "parent_task", *_SHARED_OPTIONS})
"""The options that only the code of a task sets, not an instance."""

NEW_OPTIONS: Final = {
    "retry": "a pyncette.Retry",
    "exhausted": "a pyncette.Exhausted",
    "timeout": "a timedelta",
    "heartbeat": "True or a pyncette.Heartbeat",
    "misfire_grace": "a timedelta",
    "catch_up": "a pyncette.CatchUp",
    "overlap": "a pyncette.Overlap",
    "limit": "a pyncette.PerWorker",
    "executor": "a pyncette.Process",
    "tags": "a set of strings",
}
"""Options that 1.x did not have, and what they take. A value that JSON can hold stays an argument
of the task, as it was in 1.x."""

PARTITIONS_OPTION: Final = "partitions"
"""Another one, of partitioned tasks only. No argument counts as a misspelling of it: ``partition``
is a likely name of one."""

NOT_OF_INSTANCES: Final = TEMPLATE_OPTIONS.union(NEW_OPTIONS, (PARTITIONS_OPTION,))
"""Names that an argument of an instance may have only with a value that is no option."""

PARTITION_OPTIONS: Final = ("partition_count", "partition_selector", "enabled_partitions")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What holds for a declared task and for all of its instances.

    It comes from the code at every run, never from the store, so that a deployment changes it for
    all instances.

    Attributes:
        func: The body.
        fast_forward: Whether missed occurrences collapse into one.
        failure_mode: What happens after a failure, for at-least-once tasks.
        execution_mode: At least once, or at most once.
        lease_duration: How long a worker may take before another worker may run the task again.
        retry: How often a failed occurrence is tried again; None: as ``failure_mode`` says.
        exhausted: What follows the last attempt; None: one-offs are parked, recurrences continue.
        timeout: How long the body may take; None: no limit.
        heartbeat: The automatic heartbeats; False: none; None: as the app says.
        misfire_grace: How late an occurrence may be at its first start; None: no limit.
        catch_up: What happens to missed occurrences; None: as ``fast_forward`` says.
        overlap: What happens to occurrences that come due while the record runs.
        limit: How many of its executions may run at once in one worker; None: no limit.
        tags: What a worker must have, all of it, to run it.
        executor: The processes that the body runs in; None: it runs in the worker.
        parameters: Which arguments the body takes by name; None: none of them.
    """

    func: TaskFunc
    fast_forward: bool
    failure_mode: FailureMode
    execution_mode: ExecutionMode
    lease_duration: timedelta
    retry: Retry | None = None
    exhausted: Exhausted | None = None
    timeout: timedelta | None = None
    heartbeat: Heartbeat | Literal[False] | None = None
    misfire_grace: timedelta | None = None
    catch_up: CatchUp | None = None
    overlap: Overlap = Overlap.QUEUE
    limit: PerWorker | None = None
    executor: Process | None = None
    parameters: Parameters | None = None
    tags: frozenset[str] = frozenset()

    @classmethod
    def checked(
        cls,
        func: TaskFunc,
        fast_forward: bool,
        failure_mode: FailureMode,
        execution_mode: ExecutionMode,
        lease_duration: timedelta | float,
        retry: Retry | None = None,
        exhausted: Exhausted | None = None,
        timeout: timedelta | None = None,
        heartbeat: Heartbeat | bool | None = None,
        misfire_grace: timedelta | None = None,
        catch_up: CatchUp | None = None,
        overlap: Overlap = Overlap.QUEUE,
        limit: PerWorker | None = None,
        executor: Process | None = None,
        tags: Set[str] | None = None,
    ) -> TaskOptions:
        """The options, if they are valid.

        Raises:
            ValueError: A value is invalid, or two options contradict each other.
            TypeError: A value is of a wrong type, or the function cannot be a body.
        """
        if execution_mode is ExecutionMode.AT_MOST_ONCE and failure_mode is not FailureMode.NONE:
            raise ValueError("failure_mode is not applicable when execution_mode is AT_MOST_ONCE")
        check_body(func)
        parameters = parameters_of(func)
        check_flag("fast_forward", fast_forward)
        for option, value, kind in (
            ("failure_mode", failure_mode, FailureMode),
            ("execution_mode", execution_mode, ExecutionMode),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{option} must be a {kind.__name__}, not {value!r}")
        lease = duration("lease_duration", lease_duration)
        if heartbeat is True:
            heartbeat = Heartbeat()
        for option, new, expected in (
            ("retry", retry, Retry),
            ("exhausted", exhausted, Exhausted),
            ("timeout", timeout, timedelta),
            ("heartbeat", heartbeat or None, Heartbeat),
            ("misfire_grace", misfire_grace, timedelta),
            ("catch_up", catch_up, CatchUp),
            ("overlap", overlap, Overlap),
            ("limit", limit, PerWorker),
            ("executor", executor, Process),
            ("tags", tags, Set),
        ):
            if new is not None and not isinstance(new, expected):
                raise TypeError(f"{option} must be {NEW_OPTIONS[option]}, not {new!r}")
        if retry is not None and failure_mode is not FailureMode.NONE:
            raise ValueError(
                f"retry and failure_mode={failure_mode.name} cannot be given together: both say "
                "what follows a failure. Remove failure_mode"
            )
        if execution_mode is ExecutionMode.AT_MOST_ONCE:
            _check_at_most_once(retry, exhausted, heartbeat, overlap)
        if executor is not None:
            check_importable(func)
        if timeout is not None:
            timeout = duration("timeout", timeout)
        if misfire_grace is not None:
            misfire_grace = duration("misfire_grace", misfire_grace)
        if heartbeat:
            check_pause(heartbeat, lease)
        if fast_forward and catch_up is CatchUp.ALL:
            raise ValueError(
                "fast_forward=True and catch_up=CatchUp.ALL contradict each other: the first runs "
                "missed occurrences as one, the second one by one"
            )
        return cls(
            func,
            fast_forward,
            failure_mode,
            execution_mode,
            lease,
            retry,
            exhausted,
            timeout,
            heartbeat,
            misfire_grace,
            catch_up,
            overlap,
            limit,
            executor,
            parameters,
            tags_of("tags", tags or ()),
        )

    def replaced(self, field: str, value: object) -> TaskOptions:
        """The options with one of them changed, checked again.

        Raises:
            ValueError: The value is invalid, or contradicts another option.
            TypeError: It is of a wrong type.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        del values["parameters"]
        return TaskOptions.checked(**{**values, field: value})


def tags_of(option: str, tags: Collection[str]) -> frozenset[str]:
    """Tags, of a task or of a worker.

    Raises:
        ValueError: There are too many, or one is empty or too long.
        TypeError: It is no collection of strings.
    """
    if isinstance(tags, str) or not isinstance(tags, Collection):
        raise TypeError(f"{option} must be a set of strings, not {tags!r}")
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"{option} must hold strings only, not {tag!r}")
        if not 1 <= len(tag) <= TAG_CHARACTERS_MAX or not tag.isprintable():
            raise ValueError(
                f"A tag in {option} must have 1 to {TAG_CHARACTERS_MAX} printable characters, "
                f"not {tag!r}"
            )
    if len(tags) > TAGS_MAX:
        raise ValueError(f"{option} must have at most {TAGS_MAX} tags, not {len(tags)}")
    return frozenset(tags)


def _check_at_most_once(
    retry: Retry | None,
    exhausted: Exhausted | None,
    heartbeat: Heartbeat | bool | None,
    overlap: Overlap,
) -> None:
    for option, given, reason in (
        ("retry", retry is not None, "its runs are never repeated"),
        ("exhausted", exhausted is not None, "its runs are never repeated"),
        ("heartbeat", bool(heartbeat), "it holds no lease while it runs"),
        ("overlap=Overlap.SKIP", overlap is Overlap.SKIP, "it holds no lease while it runs"),
    ):
        if given:
            raise ValueError(
                f"{option} is not applicable when execution_mode is AT_MOST_ONCE: {reason}"
            )


def check_pause(heartbeat: Heartbeat, lease: timedelta) -> None:
    """Refuses heartbeats that come too late.

    Raises:
        ValueError: The pause between two of them is not shorter than the lease.
    """
    if heartbeat.every is not None and heartbeat.every >= lease:
        raise ValueError(
            f"every of the heartbeat must be shorter than lease_duration ({lease}), not "
            f"{heartbeat.every}: the lease would end between two heartbeats"
        )


def take_new_options(args: dict[str, Any]) -> dict[str, Any]:
    """Takes the options that 1.x did not have out of the arguments of a task.

    A value that JSON can hold stays an argument. ``heartbeat=True`` and ``heartbeat=False`` are
    both: an option, and still an argument.
    """
    taken = {option: args.pop(option) for option in new_options_in(args)}
    if isinstance(args.get("heartbeat"), bool):
        taken["heartbeat"] = args["heartbeat"]
    return taken


def new_options_in(args: Mapping[str, Any]) -> list[str]:
    """The options that 1.x did not have, with values that JSON cannot hold."""
    return [
        option
        for option in (*NEW_OPTIONS, PARTITIONS_OPTION)
        if option in args and not isinstance(args[option], _JSON_TYPES)
    ]


_JSON_TYPES: Final = (type(None), bool, int, float, str, list, tuple, dict)


def duration(option: str, value: timedelta | float, *, zero: bool = False) -> timedelta:
    """An option that is a length of time: a timedelta, or a number of seconds.

    Raises:
        ValueError: It is not longer than zero (unless ``zero`` allows that), or absurdly long.
        TypeError: It is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            value = timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ValueError(f"{option} is no length of time: {value!r}") from None
    if not isinstance(value, timedelta):
        raise TypeError(f"{option} must be a timedelta or a number of seconds, not {value!r}")
    if value < timedelta() or (not value and not zero):
        raise ValueError(f"{option} must be longer than zero, not {value!r}")
    if option != "interval" and value > DURATION_MAX:
        raise ValueError(f"{option} must be at most {DURATION_MAX.days} days, not {value!r}")
    return value


def split_arguments(given: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the mapping ``args`` out of what was given by name: the arguments without the options.

    What is given as ``args`` and is no mapping is an argument of that name, as it was in 1.x.

    Returns:
        The arguments; None if there was no such mapping.

    Raises:
        TypeError: A name in it is no string.
    """
    if not isinstance(given.get("args"), Mapping):
        return None
    args = dict(given.pop("args"))
    for name in args:
        if not isinstance(name, str):
            raise TypeError(f"args must have strings as keys, not {_shown(name)}")
    return args


def joined_arguments(
    by_name: dict[str, Any], args: Mapping[str, Any] | None, label: str
) -> dict[str, Any]:
    """Returns the arguments that were given by name and those given in ``args``.

    Raises:
        TypeError: One was given both ways.
    """
    if args is None:
        return by_name
    if twice := by_name.keys() & args.keys():
        raise TypeError(
            f"The argument '{min(twice)}' of '{label}' was given twice: by itself, and in args"
        )
    return {**by_name, **args}


def drop_unsaid(args: dict[str, Any], parameters: Parameters) -> None:
    """Removes what is an option that says nothing, and no parameter: ``limit=None``.

    For functions without parameters it stays an argument, as in 1.x.
    """
    if _MAY_SAY_NOTHING.isdisjoint(args):
        return
    for option in _MAY_SAY_NOTHING.intersection(args):
        if option not in parameters.names:
            value = args[option]
            if value is None or (option == "heartbeat" and isinstance(value, bool)):
                del args[option]


_MAY_SAY_NOTHING: Final = frozenset({*NEW_OPTIONS, *SPAN_OPTIONS, PARTITIONS_OPTION})


def hint_of(name: str, *, declaring: bool = False) -> str:
    """The end of a message about an argument that is not known, and was perhaps an option."""
    option = meant_option(name, declaring=declaring)
    if option is None:
        return ""
    if option != name:
        return f". Did you mean the option '{option}'?"
    taken = {**NEW_OPTIONS, **SPAN_OPTIONS}.get(option)
    return "" if taken is None else f". The option '{option}' takes {taken}"


def check_arguments(args: Mapping[str, Any]) -> None:
    """Refuses arguments that cannot be stored.

    Raises:
        ValueError: One of them is not JSON-serialisable; it is named, with a hint.
    """
    if not args:
        return
    try:
        json.dumps(args)
    except (TypeError, ValueError, RecursionError):
        pass
    else:
        return
    for name, value in args.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            hint = (
                f"; pass {printable(name)}.isoformat() instead"
                if hasattr(value, "isoformat")
                else f"; pass str({printable(name)}), or something else that JSON can hold, instead"
            )
            if name == "on_existing":
                hint = "; it is an option of schedule_task and schedule_tasks, not of an instance"
            elif name == "execute_in":
                hint = "; it is an option of schedule_task, and of an Instance for schedule_tasks"
            elif (meant := meant_option(name) or _like_span(name)) is not None:
                hint += f"; or did you mean the option '{meant}'?"
            raise ValueError(
                f"Extra parameters must be JSON serializable, but '{printable(name)}' is "
                f"{type(value).__name__} {_shown(value)} ({error}){hint}"
            ) from None


def _like_span(name: str) -> str | None:
    """The one of the options of time that a name looks like. Arguments have similar names."""
    close = difflib.get_close_matches(name.lower(), SPAN_OPTIONS, 1, _LIKENESS)
    return close[0] if close else None


def _shown(value: object) -> str:
    try:
        return repr(value)[:100]
    except Exception:  # nested too deeply, or with a repr of its own
        return "that cannot be shown"


# A keyword that is no option is an argument of the task, and so is a misspelt option. No error can
# be made of that, since 1.x took any name.

# `name` is left out: `names` is more often an argument than a misspelling.
_HINTS: Final = (
    *INSTANCE_OPTIONS,
    "execute_in",
    "on_existing",
    *_SHARED_OPTIONS,
    *PARTITION_OPTIONS,
    *NEW_OPTIONS,
)
_OTHER_WORDS: Final = {
    "tz": "timezone",
    "tzinfo": "timezone",
    "cron": "schedule",
    "crontab": "schedule",
    "every": "interval",
    "eta": "execute_at",
    "run_at": "execute_at",
}
# Where a task is declared, these are most likely options. An instance may well have such arguments:
# the lease of a flat, the retries of a download.
_OTHER_WORDS_AT_DECLARATION: Final = {
    "lease": "lease_duration",
    "retries": "retry",
    "max_retries": "retry",
    "max_attempts": "retry",
    "misfire_grace_time": "misfire_grace",
    "coalesce": "catch_up",
}
_WITH_UNIT: Final = re.compile(
    r"(?P<word>lease|interval|lease_duration)(?:_in)?_(?:s|secs?|seconds?|minutes?|hours?|time|timeout)"
)
_LIKENESS: Final = 0.85


def meant_among(args: Iterable[str], options: Collection[str]) -> str:
    """The end of an error: which argument was perhaps meant as one of these options."""
    for name in args:
        if (option := meant_option(name)) in options:
            if option == name:
                return f"; {option} takes {SPAN_OPTIONS[name]}" if name in SPAN_OPTIONS else ""
            return f"; did you mean '{option}' by '{printable(name)}'?"
    return ""


@lru_cache(maxsize=1024)
def meant_option(name: str, *, declaring: bool = False) -> str | None:
    """The option that the name of an argument looks like; None if it looks like none.

    Args:
        name: The name of the argument.
        declaring: Whether it was given where a task is declared, not to an instance.
    """
    folded = name.lower()
    if folded in SPAN_OPTIONS or (folded == "force" and not declaring):
        return folded
    if declaring and folded in _OTHER_WORDS_AT_DECLARATION:
        return _OTHER_WORDS_AT_DECLARATION[folded]
    if folded in _OTHER_WORDS:
        return _OTHER_WORDS[folded]
    if match := _WITH_UNIT.fullmatch(folded):
        return "interval" if match["word"] == "interval" else "lease_duration"
    close = difflib.get_close_matches(folded, _HINTS, 1, _LIKENESS)
    return close[0] if close else None
