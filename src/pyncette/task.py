"""What is declared: static tasks, templates of dynamic ones, partitions, and instances.

A task knows where its record lives (``group`` and ``key``), when it runs (``plan``) and with
which arguments. Its options are in ``pyncette.task_options``. It does no I/O, and has no state of
any run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Set
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)

from pyncette.body import Declared
from pyncette.bulk import Instance
from pyncette.clock import from_microseconds
from pyncette.errors import printable
from pyncette.model import (
    UNSET,
    CatchUp,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    Json,
    OnExisting,
    Overlap,
    Partitions,
    PartitionSelector,
    PerWorker,
    Process,
    TaskFunc,
)
from pyncette.options import check_flag
from pyncette.retry import Retry
from pyncette.schedule import (
    NO_CALENDARS,
    Calendars,
    Inherited,
    Schedule,
    instant_of,
    loads,
    own,
)
from pyncette.store.record import (
    STATIC_GROUP,
    Reading,
    Record,
    check_identity,
    dump_args,
    group_of,
    is_plain_identity,
    load_args,
    read,
    reading_from,
)
from pyncette.task_options import (
    DEFAULT_LEASE_DURATION,
    NEW_OPTIONS,
    NOT_OF_INSTANCES,
    PARTITIONS_OPTION,
    SPAN_OPTIONS,
    TEMPLATE_OPTIONS,
    TaskOptions,
    check_arguments,
    drop_unsaid,
    hint_of,
    joined_arguments,
    meant_option,
    new_options_in,
    split_arguments,
    take_new_options,
)
from pyncette.when import NO_SPAN, Span, When, is_single, needs_when, single_at

logger: Final = logging.getLogger(__name__)

PARTITION_COUNT_MAX: Final = 10_000

_WARNINGS_MAX: Final = 100
"""Maximum argument names that the log warns about for one template; later ones are ignored.
Also how many names are known to be no misspelt options."""

_MICROSECOND: Final = timedelta(microseconds=1)

_UNLIKELY_ARGUMENTS: Final = frozenset({"misfire_grace", "catch_up"})
"""Options of a template of which nobody means an argument by the same name."""

_ON_EXISTING: Final = {
    word.lower(): str(member)
    for member in OnExisting
    for word in (member.value, member.name, str(member))
}
"""How a user may write a member of ``OnExisting`` that is none."""

_CHECKED_FULLY: Final = NOT_OF_INSTANCES.union(
    ("schedule", "interval", "timezone", "start_at", "end_at", "jitter")
)
"""What an instance is not given usually: it then has the template's default, or a single run."""


_T = TypeVar("_T")

if TYPE_CHECKING:
    # With a default, so that a program may write `Task` where it means any of them.
    from typing_extensions import ParamSpec as ParamSpecWithDefault

    P = ParamSpecWithDefault("P", default=...)
else:
    P = ParamSpec("P")


class _Option(Generic[_T]):
    """An attribute of a task that is read from its options.

    It can be set on a declared task, as in 1.x, also while the app runs. It is checked as in the
    declaration, and applies from the next claim on.
    """

    def __init__(self, field: str) -> None:
        self._field = field

    @overload
    def __get__(self, task: None, owner: type[Task]) -> Self: ...
    @overload
    def __get__(self, task: Task, owner: type[Task]) -> _T: ...
    def __get__(self, task: Task | None, owner: type[Task]) -> Self | _T:
        if task is None:
            return self
        value: _T = getattr(task.options, self._field)
        return value

    def __set__(self, task: Task, value: _T) -> None:
        if task.template is not task:
            raise ValueError(
                f"{self._field} of '{printable(task)}' cannot be set by itself: set it on the task "
                f"'{printable(task.template.name)}'"
            )
        task._options = task.options.replaced(self._field, value)


class Described(NamedTuple):
    """An instance as a caller describes it: all that was checked, and nothing more.

    Attributes:
        name: Its name.
        group: The group of its record.
        plan: When it runs, with names of calendars; None on a handle.
        when: The same as it was given; None: it follows from the plan.
        inherits: Whether that is the default of the template.
        args: Its own arguments.
        args_text: The same, as a record keeps them.
    """

    name: str
    group: str
    plan: Schedule | None
    when: When | None
    inherits: bool
    args: dict[str, Any]
    args_text: str


_described_of: Final[Callable[[tuple[Any, ...]], Described]] = partial(tuple.__new__, Described)


class _Shown(type):
    """Leaves what is for the engine only out of ``help()``."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in FOR_THE_ENGINE]


FOR_THE_ENGINE: Final = frozenset(
    {
        *("active_groups", "args_text", "bound", "calendars", "claims_from", "default", "describe"),
        *("described_as", "from_parts", "from_record", "groups", "identify", "key", "layout"),
        *("lease", "locate", "moved_to", "named_plan", "options", "parent_of", "places", "plan"),
        *("planned_for", "reading_of", "stored_plan", "when"),
    }
)
"""Attributes of tasks that no program needs."""


class Task(Declared, Generic[P], metaclass=_Shown):
    """A static task, the template of a dynamic one, or an instance of a template.

    Calling it calls its function. Instances share the options of their template. To a type
    checker, it is generic in the parameters of its function after the context.

    Attributes:
        name: Of a declared task unique in the app; of an instance unique in its template.
        group: The group that its record, or the records of its instances, belong to.
        parent_task: The template, on instances.
        dynamic: Whether this is a template.
        next_run: On an instance that ``schedule_task`` returned: when it runs next, as that call
            has left it (aware, UTC): its retry, if it waits for one, and with its jitter. While it
            runs, the planned time of that run, or of the replacement that waits for its end. None
            on any other, and if the instance rests: it is parked, or paused without an end.
    """

    name: str
    group: str
    parent_task: Task | None
    dynamic: bool = False
    _options: TaskOptions
    _plan: Schedule | None
    _when: When | None = None  # None: it is what the plan says
    _span: Span = Span()
    _extra_args: dict[str, Any] | None = None  # None: they are in the text, not yet read
    _args_text: str = ""
    _default: Inherited | None = None
    _next_run: int | None = None
    calendars: Calendars = NO_CALENDARS
    """The calendars of its app."""

    def __init__(
        self,
        *,
        name: str | None,
        func: TaskFunc,
        enabled: bool = True,
        dynamic: bool = False,
        parent_task: Task | None = None,
        schedule: str | Schedule | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        timezone: str | tzinfo | None = None,
        start_at: datetime = UNSET,
        end_at: datetime = UNSET,
        jitter: timedelta = UNSET,
        fast_forward: bool = False,
        failure_mode: FailureMode = FailureMode.NONE,
        execution_mode: ExecutionMode = ExecutionMode.AT_LEAST_ONCE,
        lease_duration: timedelta | float = DEFAULT_LEASE_DURATION,
        retry: Retry | None = UNSET,
        exhausted: Exhausted | None = UNSET,
        timeout: timedelta | None = UNSET,
        heartbeat: Heartbeat | bool | None = UNSET,
        misfire_grace: timedelta | None = UNSET,
        catch_up: CatchUp | None = UNSET,
        overlap: Overlap | None = UNSET,
        limit: PerWorker | None = UNSET,
        tags: Set[str] = UNSET,
        executor: Process | None = UNSET,
        args: Mapping[str, Any] = UNSET,
        **extra_args: Json,
    ) -> None:
        """Declares a task.

        A value that JSON can hold, given for one of the options from ``retry`` to ``executor``, is
        an argument of the task, as it was in 1.x. (``heartbeat=True`` is both. So is None, which
        as an option means that it is not given.)

        Args:
            name: Unique among the tasks of the app.
            func: The body: a coroutine function that takes the context.
            enabled: Whether this worker runs it; may be set later.
            dynamic: Whether this is a template.
            parent_task: The template, on instances.
            schedule: Cron expression, see ``pyncette.schedule.Cron``, or another schedule.
            interval: Distance between two runs; the first is one interval after the record is
                created, or ``start_at``.
            execute_at: The instant of the only run (instances only).
            timezone: IANA name, fixed offset or time zone object in which a cron expression holds;
                UTC if not given.
            start_at: No run is planned before it. (Of ``start_at``, ``end_at`` and ``jitter``, a
                value that JSON can hold is an argument of the task, as it was in 1.x.)
            end_at: No run is planned after it: an instance is then gone.
            jitter: Each run waits for a part of it, see ``Schedule.with_jitter``.
            fast_forward: Whether missed runs collapse into one.
            failure_mode: What happens after a failure, for at-least-once tasks.
            execution_mode: At least once or at most once.
            lease_duration: How long a worker may take before another worker may run the task
                again.
            retry: How often a failed occurrence is tried again; not together with
                ``failure_mode``.
            exhausted: What follows the last attempt; by default, a one-off is parked and a
                recurrence continues.
            timeout: How long the body may take before it is cancelled.
            heartbeat: Extends the lease while the task runs.
            misfire_grace: How late an occurrence may be at its first start; later ones are skipped.
            catch_up: What happens to missed occurrences.
            overlap: What happens to occurrences that come due while the record runs.
            limit: How many of its executions may run at once in one worker.
            tags: Only workers that have all of these run it, see ``worker_tags`` of ``Pyncette``.
                A set: a list is an argument of the task.
            executor: ``Process()`` runs the function, a plain one, in another process.
            args: The arguments of the task, as a mapping; of a template, the defaults of its
                instances, which may give the others. (What is no mapping is an argument of the
                name ``args``, as in 1.x.)
            extra_args: More of them. Each is JSON-serialisable, or of the type that the function
                asks for.

        Raises:
            ValueError: An option is invalid; the message has its name and value.
            TypeError: An option is of a wrong type, or the function cannot be a body.
            ArgumentError: The arguments do not fit the function.
        """
        if not name:
            raise ValueError("Unable to determine name for the task")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        keywords: dict[str, Any] = dict(extra_args)
        if args is not UNSET:
            keywords["args"] = args
        given_apart = split_arguments(keywords)
        given = {
            "retry": retry,
            "exhausted": exhausted,
            "timeout": timeout,
            "heartbeat": heartbeat,
            "misfire_grace": misfire_grace,
            "catch_up": catch_up,
            "overlap": overlap,
            "limit": limit,
            "tags": tags,
            "executor": executor,
        }
        keywords.update((option, value) for option, value in given.items() if value is not UNSET)
        new_options = take_new_options(keywords)
        if PARTITIONS_OPTION in new_options:
            raise TypeError(
                f"partitions={new_options[PARTITIONS_OPTION]} is an option of partitioned tasks, "
                f"and '{printable(name)}' has no partitions: declare it with "
                "@app.partitioned_task(…), with "
                "the number of partitions"
            )
        self._options = TaskOptions.checked(
            func, fast_forward, failure_mode, execution_mode, lease_duration, **new_options
        )
        self.name = name
        self.dynamic = dynamic
        self.parent_task = parent_task
        self._span = Span.given(start_at, end_at, jitter, keywords)
        when = When.checked(
            schedule,
            interval,
            execute_at,
            timezone,
            self._span,
            name=name,
            dynamic=dynamic,
            instance=parent_task is not None,
            args=keywords,
        )
        self._when, self._plan = when, when.plan
        if dynamic and when.plan is not None:
            self._default = Inherited(when.plan)
        check_flag(f"enabled of '{printable(name)}'", enabled)
        self._enabled = enabled
        self._warned: set[str] = set()
        self._unsuspicious: set[str] = set()
        if parent_task is not None:
            self.group = parent_task.identify(name)
        else:
            self.group = group_of(name) if dynamic else STATIC_GROUP
            check_identity(self.group, name, "The name of a task")
        declaring = parent_task is None
        parameters = self._options.parameters
        if parameters is not None and not parameters.lenient:
            drop_unsaid(keywords, parameters)
        own = joined_arguments(keywords, given_apart, name)
        if parameters is not None:
            own = parameters.written(own, lambda: name, partial(hint_of, declaring=declaring))
            if declaring and not dynamic:
                parameters.check_complete(own, lambda: name)
        check_arguments(own)
        self._extra_args = own
        self._warn_of_misspelt(keywords, when, declaring=declaring)

    # Options.

    @property
    def enabled(self) -> bool:
        """Whether this worker runs it, or the instances of it. May be set at any time.

        It cannot be set on an instance, which has the value of its template.
        """
        return self._enabled if self.parent_task is None else self.parent_task.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if self.parent_task is not None:
            raise ValueError(
                f"An instance cannot be enabled by itself: set enabled of the task "
                f"'{printable(self.template.name)}'"
            )
        check_flag(f"enabled of '{printable(self)}'", value)
        self._enabled = value

    task_func: _Option[TaskFunc] = _Option("func")
    """The body."""

    retry: _Option[Retry | None] = _Option("retry")
    """How often a failed occurrence is tried again; None: as ``failure_mode`` says."""

    exhausted: _Option[Exhausted | None] = _Option("exhausted")
    """What follows the last attempt; None: one-offs are parked, recurrences continue."""

    timeout: _Option[timedelta | None] = _Option("timeout")
    """How long the body may take before it is cancelled; None: no limit."""

    heartbeat: _Option[Heartbeat | Literal[False] | None] = _Option("heartbeat")
    """The automatic heartbeats; False: none; None: as the app says."""

    misfire_grace: _Option[timedelta | None] = _Option("misfire_grace")
    """How late an occurrence may be at its first start; later ones are skipped."""

    catch_up: _Option[CatchUp | None] = _Option("catch_up")
    """What happens to missed occurrences; None: as ``fast_forward`` says."""

    overlap: _Option[Overlap] = _Option("overlap")
    """What happens to occurrences that come due while the record runs."""

    tags: _Option[frozenset[str]] = _Option("tags")
    """Only workers that have all of these run it."""

    limit: _Option[PerWorker | None] = _Option("limit")
    """How many of its executions may run at once in one worker; None: no limit. If it is set while
    the app runs, it applies from the next poll on; executions that run already go on."""

    executor: _Option[Process | None] = _Option("executor")
    """The processes that the body runs in; None: it runs in the worker."""

    @property
    def fast_forward(self) -> bool:
        """Whether missed runs collapse into one."""
        return self._options.fast_forward or self._options.catch_up is CatchUp.LATEST

    @fast_forward.setter
    def fast_forward(self, value: bool) -> None:
        self._options = self._options.replaced("fast_forward", value)

    failure_mode: _Option[FailureMode] = _Option("failure_mode")
    """What happens after a failure."""

    execution_mode: _Option[ExecutionMode] = _Option("execution_mode")
    """At least once or at most once."""

    lease_duration: _Option[timedelta] = _Option("lease_duration")
    """How long a worker may take before another worker may run the task again."""

    @property
    def options(self) -> TaskOptions:
        """The options, all of them. They are replaced by others if one of them is set."""
        return self._options

    @property
    def lease(self) -> int:
        """``lease_duration`` in microseconds."""
        return self.options.lease_duration // _MICROSECOND

    # When it runs.

    @property
    def when(self) -> When:
        """When it runs, as options say it."""
        if self._when is None:
            self._when = When.of(self._plan)
        return self._when

    @property
    def schedule(self) -> str | Schedule | None:
        """The cron expression, or what else it was given as a schedule (without its bounds)."""
        return self.when.schedule

    @property
    def interval(self) -> timedelta | None:
        """The distance between two runs."""
        return self.when.interval

    @property
    def execute_at(self) -> datetime | None:
        """The instant of the only run."""
        return self.when.execute_at

    @property
    def timezone(self) -> str | None:
        """The name of the zone in which ``schedule`` holds; None where none was given."""
        return self.when.timezone

    @property
    def start_at(self) -> datetime | None:
        """The instant before which no run is planned."""
        return self.when.span.start_at

    @property
    def end_at(self) -> datetime | None:
        """The instant after which no run is planned."""
        return self.when.span.end_at

    @property
    def jitter(self) -> timedelta | None:
        """The longest time that a run waits after it is planned."""
        return self.when.span.jitter

    @property
    def plan(self) -> Schedule:
        """When it runs, as a schedule.

        Raises:
            ValueError: It does not say when: a template without a default, or a handle. Or it
                names a calendar that its app does not know (``UnreadableHere``).
        """
        if self._plan is None:
            raise ValueError(
                f"interval must be longer than zero, not {self.interval!r} (task "
                f"'{printable(self)}')"
                if self.interval is not None
                else needs_when(self)
            )
        return self.template.calendars.bind(self._plan) if self._plan.calendars else self._plan

    @property
    def named_plan(self) -> Schedule | None:
        """As ``plan``, but its calendars are names only; None: it does not say when."""
        return self._plan

    @property
    def default(self) -> Inherited | None:
        """The schedule of instances without one of their own, as their records keep it.

        Raises:
            UnreadableHere: It names a calendar that its app does not know.
        """
        template = self.template
        default = template._default
        if default is not None and default.calendars:
            bound = template.calendars.bind(default.schedule)
            if bound is not default.schedule:
                template._default = default = Inherited(bound)
        return default

    # Arguments.

    @property
    def extra_args(self) -> dict[str, Any]:
        """The arguments that it was declared with; of an instance: over those of its template."""
        if self._extra_args is None:
            self._extra_args = self._with_defaults(load_args(self._args_text))
        return self._extra_args

    def _with_defaults(self, args: dict[str, Any]) -> dict[str, Any]:
        """Own arguments of an instance, over new copies of those of its template."""
        defaults = self.template.extra_args
        # As if they had been stored, and read again.
        return {**load_args(dump_args(defaults)), **args} if defaults else args

    def args(self, /, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Arguments for an instance of this template, which a type checker checks by the function.

        ``schedule_task(report, "x", args=report.args(email="a@example.org"))``. They are checked
        when they are scheduled. Where the template has defaults and only some arguments are
        given, pass a dictionary instead, or keywords.

        Raises:
            TypeError: There are more positional arguments than the function has parameters, or one
                is given twice.
        """
        parameters = self.options.parameters
        names = [] if parameters is None else [*parameters.names]
        if len(args) > len(names):
            raise TypeError(
                f"The function of '{printable(self)}' takes {len(names)} arguments besides the "
                f"context, not {len(args)}"
            )
        return joined_arguments(dict(zip(names, args, strict=False)), kwargs, str(self))

    @property
    def args_text(self) -> str:
        """The arguments as a record keeps them: only an instance's own."""
        return self._args_text

    # Identity.

    @property
    def key(self) -> str:
        """The key of its record, within its group."""
        return self.name

    @property
    def template(self) -> Task:
        """The declared task whose options hold: itself, or the template of an instance."""
        return self if self.parent_task is None else self.parent_task.template

    @property
    def canonical_name(self) -> str:
        """For people: ``template[:partition]:instance``, each ``:`` inside a part doubled."""
        own = self.name.replace(":", "::")
        return own if self.parent_task is None else f"{self.parent_task.canonical_name}:{own}"

    def locate(self, instance_name: str) -> str:
        """The group of the instance of this name."""
        return self.group

    def identify(self, instance_name: str) -> str:
        """As ``locate``, for a name that was not checked yet.

        Raises:
            TypeError: It is not a string.
            ValueError: Not every store could keep it.
        """
        if not isinstance(instance_name, str):
            raise TypeError(f"The name of an instance must be a string, not {instance_name!r}")
        # What cannot be encoded cannot be given to a selector of partitions either.
        if not is_plain_identity(self.group, instance_name):
            check_identity(self.group, instance_name, f"The name of an instance of '{self}'")
        group = self.locate(instance_name)
        if group != self.group and not is_plain_identity(group, instance_name):
            check_identity(group, instance_name, f"The name of an instance of '{self}'")
        return group

    def groups(self) -> list[str]:
        """All groups that may hold its instances."""
        return [self.group]

    def active_groups(self) -> list[str]:
        """The groups that this worker claims from now."""
        return [group for group in self.groups() if self.claims_from(group)]

    def claims_from(self, group: str) -> bool:
        """Whether this worker claims from one of ``groups`` now."""
        return self.enabled

    # Instances.

    def instantiate(
        self,
        name: str,
        *,
        schedule: str | Schedule | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        timezone: str | tzinfo | None = None,
        start_at: datetime = UNSET,
        end_at: datetime = UNSET,
        jitter: timedelta = UNSET,
        args: Mapping[str, Any] = UNSET,
        **keywords: Json,
    ) -> Task:
        """An instance of this template. Nothing is stored.

        Args:
            name: The name of the instance.
            schedule: Cron expression, or another schedule; replaces what the template says of when.
            interval: Distance between two runs; likewise.
            execute_at: The instant of the only run; likewise.
            timezone: The zone in which a cron expression holds, the template's if not given.
            start_at: No run is planned before it; the template's if not given.
            end_at: No run is planned after it; likewise.
            jitter: Each run waits for a part of it; likewise.
            args: Arguments of the task, over the defaults of the template. One that the function
                needs may be missing.
            keywords: More of them.

        Without any option of when, the instance follows the template's default, also if that
        changes later. With one of them (if only ``timezone`` or ``jitter``) its schedule is its
        own, with what it takes from the template now.

        Raises:
            ValueError: This is no template, or an option is invalid.
            TypeError: An option that only a template can have was given.
            ArgumentError: The function takes no argument of that name, or of that type.
        """
        instance = Instance(
            name,
            schedule=schedule,
            interval=interval,
            execute_at=execute_at,
            timezone=timezone,
            start_at=start_at,
            end_at=end_at,
            jitter=jitter,
            args=args,
            **keywords,  # type: ignore[arg-type]
        )
        return self.described_as(self.describe(name, instance.options))

    def describe(
        self, name: str, options: Mapping[str, Any], *, complete: bool = False
    ) -> Described:
        """As ``instantiate``, without making the instance: many are only written.

        Args:
            name: The name of the instance.
            options: Its options and arguments.
            complete: Whether it must have all arguments that the function needs.

        Raises:
            ValueError: See ``instantiate``.
            TypeError: See ``instantiate``.
        """
        if not self.dynamic:
            raise ValueError(f"Cannot instantiate '{printable(self)}': it is not a dynamic task")
        group = self.identify(name)
        given_apart: dict[str, Any] | None = None
        if "args" in options:
            options = dict(options)
            given_apart = split_arguments(options)
        execute_at = options.get("execute_at")
        if not _CHECKED_FULLY.isdisjoint(options) or (
            self._plan is None if execute_at is None else self._span is not NO_SPAN
        ):
            return self._described(name, group, given_apart, complete, **options)
        keywords = dict(options)
        keywords.pop("execute_at", None)
        args = self._own_arguments(name, keywords, given_apart, complete)
        text = _args_text(args)
        if execute_at is None:
            plan, when, inherits = self._plan, self.when, True
        else:
            plan, when, inherits = single_at(execute_at), None, False
        if keywords and not self._unsuspicious.issuperset(keywords):
            self._warn_of_misspelt(keywords, when, plan)
        return _described_of((name, group, plan, when, inherits, args, text))

    def _own_arguments(
        self,
        name: str,
        keywords: dict[str, Any],
        given_apart: dict[str, Any] | None,
        complete: bool,
    ) -> dict[str, Any]:
        """The arguments of an instance, as its record keeps them.

        Raises:
            ArgumentError: They do not fit the function.
            TypeError: One was given twice.
        """
        parameters = self.options.parameters
        if parameters is None:
            return joined_arguments(keywords, given_apart, name)

        def label() -> str:
            return printable(f"{self.template}:{name}")

        if not parameters.lenient:
            drop_unsaid(keywords, parameters)
        args = joined_arguments(keywords, given_apart, name)
        args = parameters.written(args, label, hint_of)
        if complete and not parameters.required <= args.keys():
            parameters.check_complete({**self.template.extra_args, **args}, label)
        return args

    def _described(
        self,
        name: str,
        group: str,
        given_apart: dict[str, Any] | None,
        complete: bool,
        /,
        *,
        schedule: str | Schedule | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        timezone: str | tzinfo | None = None,
        start_at: datetime = UNSET,
        end_at: datetime = UNSET,
        jitter: timedelta = UNSET,
        **args: Json,
    ) -> Described:
        if not NOT_OF_INSTANCES.isdisjoint(args) and (
            wrong := {*TEMPLATE_OPTIONS.intersection(args), *new_options_in(args)}
        ):
            raise TypeError(
                f"{min(wrong)} is an option of the template '{printable(self)}', not of its "
                "instances"
            )
        span, inherited = Span.given(start_at, end_at, jitter, args), self._span
        inherits = False
        if schedule is None and interval is None and execute_at is None:
            inherits = self._plan is not None and timezone is None and span == NO_SPAN
            schedule, interval, execute_at = self.schedule, self.interval, self.execute_at
            inherited = self.when.span
        if timezone is None and isinstance(schedule, str):
            timezone = self.timezone
        own = self._own_arguments(name, args, given_apart, complete)
        text = _args_text(own)
        if inherits:
            when = self.when
        else:
            when = When.checked(
                schedule,
                interval,
                execute_at,
                timezone,
                span.over(inherited, single=execute_at is not None or is_single(schedule)),
                name=name,
                instance=True,
                args=args,
            )
        self._warn_of_misspelt(args, when)
        return Described(name, group, when.plan, when, inherits, own, text)

    def described_as(self, described: Described) -> Task:
        """The instance of this template that was described."""
        name, _, plan, when, _, args, text = described
        task = self.from_parts(name, plan, text)
        task._when = when
        task._extra_args = task._with_defaults(args)
        return task

    def stored_plan(self, described: Described) -> Schedule:
        """When an instance runs, as its record keeps it: a default of this template has a mark.

        Raises:
            ValueError: It does not say when: a handle. Or it names a calendar that its app does
                not know (``UnreadableHere``).
        """
        plan = described.plan
        if plan is None:
            return self.described_as(described).plan
        if described.inherits and (default := self.default) is not None:
            return default
        return self.template.calendars.bind(plan) if plan.calendars else plan

    def parent_of(self, instance_name: str) -> Task:
        """The ``parent_task`` of the instance of this name."""
        return self

    def reading_of(self, record: Record) -> Reading:
        """What a record of this task, or of an instance of it, says; see ``bound``.

        Raises:
            UnreadableHere: This worker cannot read it, or does not know one of its calendars.
            UnreadableRecord: No worker can read it.
        """
        reading = read(record)
        return self.bound(reading) if reading.schedule.needs_task else reading

    def bound(self, reading: Reading) -> Reading:
        """A reading with what only the task knows: the app's calendars, and its present default.

        A record that follows a default which has changed has the new one, with the mark, so that
        the rules store it. A template without a default any more leaves the record its old one.

        Raises:
            UnreadableHere: A calendar is not known.
        """
        record, schedule, progress = reading
        template = self.template
        if isinstance(schedule, Inherited):
            default = template._default
            if default is not None and default.text != schedule.text:
                return reading_from((record, template.default or schedule, progress))
            schedule = schedule.schedule
        if schedule.calendars:
            schedule = template.calendars.bind(schedule)
        return reading_from((record, schedule, progress))

    def from_record(self, record: Record) -> Task:
        """The instance that a record of this template stands for, as it was stored.

        If it follows a default that has changed, it shows the one by which its next occurrence was
        planned. A schedule that cannot be read gives a handle without schedule.
        """
        try:
            plan: Schedule | None = own(loads(record.schedule))
        except ValueError:
            plan = None
        return self.from_parts(record.key, plan, record.args)

    def from_parts(self, name: str, plan: Schedule | None, args_text: str) -> Task:
        """An instance that is known to be valid: nothing is checked again."""
        # Made for every run of an instance: what is seldom looked at is worked out when it is.
        task = object.__new__(Task)
        task.name = name
        task.parent_task = parent = self.parent_of(name)
        task.group = parent.group
        task._options = self.options
        task._plan = plan.schedule if isinstance(plan, Inherited) else plan
        task._args_text = args_text
        return task

    @property
    def next_run(self) -> datetime | None:
        """See the attributes of the class."""
        return None if self._next_run is None else from_microseconds(self._next_run)

    def planned_for(self, instant: int | None) -> None:
        """This instance runs next at this instant, in microseconds."""
        self._next_run = instant

    def moved_to(self, plan: Schedule) -> None:
        """This instance runs by another schedule than it was made with."""
        self._plan, self._when = plan, None

    def _warn_of_misspelt(
        self,
        args: Mapping[str, Any],
        when: When | None,
        plan: Schedule | None = None,
        *,
        declaring: bool = False,
    ) -> None:
        """Warns, once each, about arguments that were perhaps meant as options.

        Args:
            args: The arguments.
            when: When it runs, as it was given; None: it follows from the plan.
            plan: When it runs.
            declaring: Whether a task is declared, not an instance made.
        """
        parameters = self.options.parameters
        if parameters is not None and not parameters.lenient:
            return  # all of them are parameters
        for name in args:
            if parameters is not None and name in parameters.names:
                continue
            option = meant_option(name, declaring=declaring)
            if option is None:
                if not declaring and len(self._unsuspicious) < _WARNINGS_MAX:
                    self._unsuspicious.add(name)
                continue
            if getattr(when or When.of(plan), option, None) is not None:
                continue
            template = self.template
            if option == name and args[name] is None and option in {*NEW_OPTIONS, *SPAN_OPTIONS}:
                continue  # passed on from a configuration that does not say it
            if option in NEW_OPTIONS and not declaring and name not in _UNLIKELY_ARGUMENTS:
                continue  # no option of an instance, so it was not meant as one
            if option == name == "heartbeat" and template.heartbeat is not None:
                continue  # True or False: it is an option as well
            if name not in template._warned and len(template._warned) < _WARNINGS_MAX:
                template._warned.add(name)
                logger.warning(
                    "Task %s: '%s' is an argument of the task, not an option%s",
                    printable(template),
                    printable(name),
                    _hint(name, option, args[name], declaring),
                )

    def get_next_execution(self, utc_now: datetime, last: datetime | None) -> datetime | None:
        """When it runs next.

        Args:
            utc_now: The current instant.
            last: The planned time of the run that was just done, or None for the first.

        Returns:
            An aware UTC datetime, or None where there is no further run.
        """
        now = instant_of(utc_now)
        if last is None:
            found = self.plan.first(now)
        elif self.fast_forward:
            found = self.plan.skip(instant_of(last), now)
        else:
            found = self.plan.following(instant_of(last))
        return None if found is None else from_microseconds(found)

    def __call__(self, context: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Calls the body, and returns what it returns: what to await, if it is asynchronous."""
        return self.task_func(context, *args, **kwargs)

    def __str__(self) -> str:
        return self.canonical_name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.canonical_name}>"


def _args_text(args: dict[str, Any]) -> str:
    """The arguments of an instance as a record keeps them.

    Raises:
        ValueError: One of them is not JSON-serialisable; it is named, with a hint.
    """
    try:
        return dump_args(args)
    except (TypeError, ValueError, RecursionError):
        check_arguments(args)  # finds out which one
        raise


def _hint(name: str, option: str, value: object, declaring: bool) -> str:
    if option == "on_existing":
        meant = _ON_EXISTING.get(str(value).lower())
        return ": schedule_task and schedule_tasks take a pyncette.OnExisting" + (
            f"; did you mean {meant}?" if meant else ""
        )
    if option == "force":
        return (
            ": schedule_tasks has no such option; its option on_existing, with OnExisting.REPLACE, "
            "replaces instances"
        )
    if option != name:
        return f": did you mean '{option}'?"
    if option in NEW_OPTIONS and not declaring:
        return ": the option is one of the template, not of its instances"
    taken = {**NEW_OPTIONS, **SPAN_OPTIONS}.get(option)
    return " of this kind of task" if taken is None else f": the option takes {taken}"


def default_partition_selector(partition_count: int, task_id: str) -> int:
    """Spreads instances evenly by the SHA-1 of the name. Its results never change."""
    digest = hashlib.sha1(task_id.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest) * partition_count >> 160


class Layout(NamedTuple):
    """Over how many partitions the instances of a template are spread.

    Attributes:
        partition_count: The number of partitions. New instances are created in these.
        others: While instances are moved: the other numbers, by which they may lie elsewhere.
        moving: Whether instances are being moved to ``partition_count`` partitions.
    """

    partition_count: int
    others: tuple[int, ...] = ()
    moving: bool = False


class PartitionedTask(Task[P]):
    """A template whose instances are spread over partitions, which workers may share out.

    The number of partitions in force is that of the store, see ``PyncetteContext.rebalance``. It
    may differ from the declared one, and may change while the app runs.

    Attributes:
        declared_count: The number of partitions that it was declared with.
        relocated: Whether its instances may lie, or may have lain, elsewhere than declared.
        layout_version: The version of the control record that ``layout`` was read from.
        unplaced: That record, while it cannot be read; None: it can be.
        enabled_of: Among how many partitions ``enabled_partitions`` were chosen.
        enabled_partitions: The partitions that this worker claims from, or None for all of them;
            may be set at run time.
        partitions: Whether the workers that run the task share its partitions.
    """

    def __init__(
        self,
        *,
        partition_count: int,
        partition_selector: PartitionSelector = default_partition_selector,
        enabled_partitions: Collection[int] | None = None,
        partitions: Partitions = UNSET,
        **options: Any,
    ) -> None:
        """Declares a partitioned template; see ``Task`` for the other options.

        Args:
            partition_count: The number of partitions.
            partition_selector: Returns the number of the partition for the name of an instance.
            enabled_partitions: See the attribute.
            partitions: See the attribute. A value that JSON can hold is an argument of the task, as
                it was in 1.x.

        Raises:
            ValueError: ``partition_count`` is below 1, or an enabled partition does not exist, or
                partitions are enabled and shared.
            TypeError: An option is of a wrong type.
        """
        self._sharing = Partitions.ALL
        if isinstance(partitions, Partitions):
            self._sharing = partitions
        elif partitions is not UNSET:
            given = {PARTITIONS_OPTION: partitions}
            if new_options_in(given):
                raise TypeError(f"partitions must be a pyncette.Partitions, not {partitions!r}")
            options |= given
            if partitions is not None:
                logger.warning(
                    "Task %s: 'partitions' is an argument of the task, not an option: the option "
                    "takes a pyncette.Partitions",
                    options.get("name"),
                )
        super().__init__(**{**options, "dynamic": True})
        if isinstance(partition_count, bool) or not isinstance(partition_count, int):
            raise TypeError(
                f"partition_count of '{printable(self.name)}' must be a whole number, not "
                f"{partition_count!r}"
            )
        if partition_count < 1:
            advice = ValueError(f"partition_count={partition_count!r} of '{printable(self.name)}'")
            # The text is public since 1.x: the traceback shows the advice before it.
            raise ValueError("Partition count must be greater than or equal to 1") from advice
        if partition_count > PARTITION_COUNT_MAX:
            raise ValueError(
                f"Partition count must be at most {PARTITION_COUNT_MAX:,}, not "
                f"{partition_count:,}: every worker asks about each of them once per poll interval"
            )
        if not callable(partition_selector):
            raise TypeError(f"partition_selector is not callable: {partition_selector!r}")
        self.declared_count = partition_count
        self.relocated: bool = False
        self.layout_version = 0
        self.unplaced: Record | None = None
        self._layout = Layout(partition_count)
        self._partition_selector = partition_selector
        self._partitions = [_Partition(self, number) for number in range(partition_count)]
        self.enabled_partitions = enabled_partitions

    @property
    def partition_count(self) -> int:
        """The number of partitions that is in force."""
        return self._layout.partition_count

    @property
    def layout(self) -> Layout:
        """The number of partitions, and what is moved; set as the store says."""
        return self._layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        for number in range(len(self._partitions), max(layout.partition_count, *layout.others, 0)):
            self._partitions.append(_Partition(self, number))
        self.relocated = self.relocated or layout != Layout(self.declared_count)
        self._layout = layout

    @property
    def partition_selector(self) -> PartitionSelector:
        """Returns the number of the partition for the name of an instance."""
        return self._partition_selector

    @property
    def partitions(self) -> Partitions:
        """Whether the workers that run the task share its partitions."""
        return self._sharing

    @property
    def enabled_partitions(self) -> Collection[int] | None:
        """The partitions that this worker claims from; None: all.

        They are chosen among as many partitions as there are when this is set. If there are more
        of them later, the worker claims from every partition whose number, modulo that count, is
        enabled. So workers that share all partitions among themselves still claim from all.
        """
        return self._enabled_partitions

    @enabled_partitions.setter
    def enabled_partitions(self, partitions: Collection[int] | None) -> None:
        if partitions is not None and (
            not isinstance(partitions, Collection) or isinstance(partitions, (str, bytes))
        ):
            raise TypeError(
                f"enabled_partitions of '{printable(self.name)}' must be a collection of numbers, "
                f"or None, not {partitions!r}"
            )
        if partitions is not None and self._sharing is Partitions.SHARED:
            raise ValueError(
                f"enabled_partitions of '{printable(self.name)}' cannot be set: its workers share "
                "the partitions among themselves (partitions=Partitions.SHARED). Remove one of "
                "the two"
            )
        for partition in () if partitions is None else partitions:
            if not isinstance(partition, int) or not 0 <= partition < self.partition_count:
                raise ValueError(
                    f"enabled_partitions of '{printable(self.name)}' holds {partition!r}, but its "
                    f"partitions are 0 to {self.partition_count - 1}"
                )
        self._enabled_partitions = partitions
        self.enabled_of: int = self.partition_count

    def get_partitions(self) -> list[_Partition]:
        """All partitions."""
        return self._partitions[: self.partition_count]

    def locate(self, instance_name: str) -> str:
        return self.parent_of(instance_name).group

    def parent_of(self, instance_name: str) -> Task:
        return self._partition_of(instance_name, self._layout.partition_count)

    def _partition_of(self, instance_name: str, count: int) -> _Partition:
        number = self._partition_selector(count, instance_name)
        if not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(
                f"The partition_selector of '{printable(self.name)}' gave {number!r} for "
                f"'{printable(instance_name)}', "
                f"but its partitions are 0 to {count - 1}"
            )
        return self._partitions[number]

    def places(self, instance_name: str) -> list[str]:
        """The groups that may hold the instance of this name; it is created in the first one."""
        count, others, _ = self._layout
        counts = (count, *others)
        groups = [self._partition_of(instance_name, number).group for number in counts]
        return list(dict.fromkeys(groups))

    def groups(self) -> list[str]:
        count, others, _ = self._layout
        return [partition.group for partition in self._partitions[: max(count, *others, 0)]]

    def claims_from(self, group: str) -> bool:
        enabled = self._enabled_partitions
        return self.enabled and (
            enabled is None or int(group.rpartition(":")[2]) % self.enabled_of in enabled
        )


class _Partition(Task):
    """One partition of a template: the parent of the instances in it."""

    def __init__(self, template: PartitionedTask, partition_id: int) -> None:
        self._template = template
        self.partition_id = partition_id
        self.name = template.name
        self.group = group_of(template.name, partition_id)
        self.dynamic = True
        self._unsuspicious = template._unsuspicious
        self.parent_task = None
        self._plan = template._plan
        self._when = template._when
        self._span = template._span
        self._extra_args = template._extra_args

    @property
    def template(self) -> Task:
        return self._template

    @property
    def options(self) -> TaskOptions:
        return self._template.options

    @property
    def canonical_name(self) -> str:
        return f"{self._template.canonical_name}:{self.partition_id}"

    @property
    def enabled(self) -> bool:
        """Whether this worker claims from it; set through ``enabled_partitions``."""
        return self._template.claims_from(self.group)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        raise ValueError(
            "A partition cannot be enabled by itself: set enabled_partitions of the task "
            f"'{printable(self._template.name)}'"
        )
