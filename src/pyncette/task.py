"""What is declared: static tasks, templates of dynamic ones, partitions, and instances.

A task knows its options, where its record lives (``group`` and ``key``) and when it runs
(``plan``). It does no I/O and keeps no state of any run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Collection, Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from pyncette.clock import from_microseconds
from pyncette.model import ExecutionMode, FailureMode, PartitionSelector, TaskFunc
from pyncette.schedule import At, Cron, Every, Schedule, instant_of, loads, name_of, parse_timezone
from pyncette.store.record import (
    STATIC_GROUP,
    Record,
    check_identity,
    dump_args,
    group_of,
    load_args,
)

DEFAULT_LEASE_DURATION: Final = timedelta(seconds=60)
DURATION_MAX: Final = timedelta(days=3_660)
"""No lease, and no wait of ours, is longer than ten years."""

PARTITION_COUNT_MAX: Final = 10_000

_INSTANCE_OPTIONS: Final = ("schedule", "interval", "execute_at", "timezone")
_TEMPLATE_OPTIONS: Final = frozenset(
    {
        "name",
        "func",
        "enabled",
        "dynamic",
        "parent_task",
        "fast_forward",
        "failure_mode",
        "execution_mode",
        "lease_duration",
    }
)


class Task:
    """A static task, the template of a dynamic one, or an instance of a template.

    Calling it calls its function. Instances share the options of their template.
    """

    def __init__(
        self,
        *,
        name: str | None,
        func: TaskFunc,
        enabled: bool = True,
        dynamic: bool = False,
        parent_task: Task | None = None,
        schedule: str | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        timezone: str | tzinfo | None = None,
        fast_forward: bool = False,
        failure_mode: FailureMode = FailureMode.NONE,
        execution_mode: ExecutionMode = ExecutionMode.AT_LEAST_ONCE,
        lease_duration: timedelta | float = DEFAULT_LEASE_DURATION,
        **extra_args: Any,
    ) -> None:
        """Declares a task.

        Args:
            name: Unique among the tasks of the app.
            func: The body: a coroutine function that takes the context.
            enabled: Whether this worker runs it; may be set later.
            dynamic: Whether this is a template.
            parent_task: The template, on instances.
            schedule: Cron expression, see ``pyncette.schedule.Cron``.
            interval: Distance between two runs; the first is one interval after the record was
                made.
            execute_at: The instant of the only run (instances only).
            timezone: IANA name, fixed offset or time zone object in which ``schedule`` holds; UTC
                if not given.
            fast_forward: Whether missed runs collapse into one.
            failure_mode: What a failure leads to, for at-least-once tasks.
            execution_mode: At least once or at most once.
            lease_duration: How long a claim keeps other workers away.
            extra_args: Arguments of the task; JSON-serialisable.

        Raises:
            ValueError: An option is invalid; it is named, with its value.
            TypeError: An option is of a wrong type.
        """
        if not name:
            raise ValueError("Unable to determine name for the task")
        if execution_mode is ExecutionMode.AT_MOST_ONCE and failure_mode is not FailureMode.NONE:
            raise ValueError("failure_mode is not applicable when execution_mode is AT_MOST_ONCE")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        if not callable(func):
            raise TypeError(f"The function of task '{name}' is not callable: {func!r}")
        for option, value, kind in (
            ("failure_mode", failure_mode, FailureMode),
            ("execution_mode", execution_mode, ExecutionMode),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{option} must be a {kind.__name__}, not {value!r}")
        self.name = name
        self.task_func = func
        self.enabled = enabled
        self.dynamic = dynamic
        self.parent_task = parent_task
        self.fast_forward = fast_forward
        self.failure_mode = failure_mode
        self.execution_mode = execution_mode
        self.lease_duration = duration("lease_duration", lease_duration)
        self._set_plan(schedule, interval, execute_at, timezone)
        _check_serializable(extra_args)
        self._extra_args: dict[str, Any] | None = extra_args
        self._args_text = ""
        if parent_task is not None:
            group = parent_task.identify(name)
        else:
            group = group_of(name) if dynamic else STATIC_GROUP
            check_identity(group, name, "The name of a task")
        self.group: str = group
        """The group that its record, or the records of its instances, belong to."""

    def _set_plan(
        self,
        schedule: str | None,
        interval: timedelta | float | None,
        execute_at: datetime | None,
        timezone: str | tzinfo | None,
    ) -> None:
        self.schedule = schedule
        self.interval = None if interval is None else duration("interval", interval, zero=True)
        self.execute_at = execute_at
        self.timezone = None if timezone is None else name_of(timezone)
        self._plan = self._make_plan()

    def _make_plan(self) -> Schedule | None:
        given = [
            option
            for option, value in (
                ("schedule", self.schedule),
                ("interval", self.interval),
                ("execute_at", self.execute_at),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"Task '{self.name}' has more than one of schedule, interval and execute_at: "
                + ", ".join(given)
            )
        if not given and not self.dynamic:
            raise ValueError(
                f"Task '{self.name}' needs exactly one of schedule, interval and execute_at"
                if self.parent_task is not None
                else f"Task '{self.name}' needs exactly one of schedule and interval"
            )
        if self.timezone is not None and self.schedule is None and (given or not self.dynamic):
            raise ValueError(
                f"timezone may only be given together with schedule, not with {given[0]} "
                f"(task '{self.name}')"
            )
        if self.schedule is not None:
            if not isinstance(self.schedule, str):
                raise TypeError(f"schedule must be a cron expression, not {self.schedule!r}")
            return Cron(self.schedule, "UTC" if self.timezone is None else self.timezone)
        if self.timezone is not None:
            parse_timezone(self.timezone)
        if self.execute_at is not None:
            if self.parent_task is None:
                raise ValueError(
                    f"execute_at is for instances of dynamic tasks, not for '{self.name}' itself"
                )
            plan = At(self.execute_at)
            self.execute_at = plan.instant
            return plan
        # A zero interval serves as a handle: it names an instance, and cannot be scheduled.
        if self.interval is not None and (self.interval or self.parent_task is None):
            return Every(self.interval)
        return None

    @property
    def key(self) -> str:
        """The key of its record, within its group."""
        return self.name

    @property
    def plan(self) -> Schedule:
        """When it runs.

        Raises:
            ValueError: It does not say when: a template without a default, or a handle.
        """
        if self._plan is None:
            raise ValueError(
                f"interval must be longer than zero, not {self.interval!r} (task '{self}')"
                if self.interval is not None
                else f"Task '{self}' needs exactly one of schedule, interval and execute_at"
            )
        return self._plan

    @property
    def extra_args(self) -> dict[str, Any]:
        """The arguments that it was declared, or stored, with."""
        if self._extra_args is None:
            self._extra_args = load_args(self._args_text)
        return self._extra_args

    @property
    def args_text(self) -> str:
        """The arguments as a record keeps them: template's defaults and the instance's own."""
        template = self.template
        if template is self:
            return ""
        return dump_args({**template.extra_args, **self.extra_args})

    @property
    def template(self) -> Task:
        """The declared task whose options hold: itself, or the template of an instance."""
        return self if self.parent_task is None else self.parent_task.template

    @property
    def lease(self) -> int:
        """``lease_duration`` in microseconds."""
        return self.lease_duration // timedelta(microseconds=1)

    @property
    def canonical_name(self) -> str:
        """For people: ``template[:partition]:instance``, each ``:`` inside a part doubled."""
        own = self.name.replace(":", "::")
        return own if self.parent_task is None else f"{self.parent_task.canonical_name}:{own}"

    def locate(self, instance_name: str) -> str:
        """The group of the instance of this name."""
        return self.group

    def identify(self, instance_name: str) -> str:
        """As ``locate``, for a name that may be none.

        Raises:
            TypeError: It is not a string.
            ValueError: Not every store could keep it.
        """
        if not isinstance(instance_name, str):
            raise TypeError(f"The name of an instance must be a string, not {instance_name!r}")
        # What cannot be encoded cannot be given to a selector of partitions either.
        check_identity(self.group, instance_name, f"The name of an instance of '{self}'")
        group = self.locate(instance_name)
        if group != self.group:
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

    def instantiate(self, name: str, **options_and_args: Any) -> Task:
        """An instance of this template. Nothing is stored.

        Args:
            name: The name of the instance.
            options_and_args: ``schedule``, ``interval``, ``execute_at`` and ``timezone`` take
                the place of the template's; everything else is an argument.

        Raises:
            ValueError: This is no template, or an option is invalid.
            TypeError: An option that only a template can have was given.
        """
        if not self.dynamic:
            raise ValueError(f"Cannot instantiate '{self}': it is not a dynamic task")
        self.identify(name)
        if wrong := _TEMPLATE_OPTIONS.intersection(options_and_args):
            raise TypeError(
                f"{min(wrong)} is an option of the template '{self}', not of its instances"
            )
        schedule, interval, execute_at, timezone = (
            options_and_args.pop(option, None) for option in _INSTANCE_OPTIONS
        )
        if schedule is None and interval is None and execute_at is None:
            schedule, interval, execute_at = self.schedule, self.interval, self.execute_at
        if timezone is None and schedule is not None:
            timezone = self.timezone
        _check_serializable(options_and_args)
        task = self._instance(name)
        task._extra_args = options_and_args
        task._set_plan(schedule, interval, execute_at, timezone)
        return task

    def parent_of(self, instance_name: str) -> Task:
        """The ``parent_task`` of the instance of this name."""
        return self

    def from_record(self, record: Record) -> Task:
        """The instance that a record of this template stands for, as it was stored.

        A plan that cannot be read gives a handle without schedule.
        """
        try:
            plan = loads(record.schedule)
        except ValueError:
            plan = None
        return self.from_parts(record.key, plan, record.args)

    def from_parts(self, name: str, plan: Schedule | None, args_text: str) -> Task:
        """An instance that is known to be valid: nothing is checked again."""
        task = self._instance(name)
        task._plan = plan
        task.schedule = plan.expression if isinstance(plan, Cron) else None
        task.timezone = plan.timezone_name if isinstance(plan, Cron) else None
        task.interval = plan.interval if isinstance(plan, Every) else None
        task.execute_at = plan.instant if isinstance(plan, At) else None
        task._extra_args = None
        task._args_text = args_text
        return task

    def _instance(self, name: str) -> Task:
        """An instance without plan and arguments; the template's options were checked with it."""
        task = object.__new__(Task)
        task.__dict__.update(self.__dict__)
        task.name = name
        task.enabled = self.enabled
        task.dynamic = False
        task.parent_task = self.parent_of(name)
        task.group = task.parent_task.group
        return task

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

    def __call__(self, context: Any) -> Awaitable[None]:
        """Calls the body."""
        return self.task_func(context)

    def __str__(self) -> str:
        return self.canonical_name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.canonical_name}>"


def default_partition_selector(partition_count: int, task_id: str) -> int:
    """Spreads instances evenly, and the same way for ever: by the SHA-1 of the name."""
    digest = hashlib.sha1(task_id.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest) * partition_count >> 160


class PartitionedTask(Task):
    """A template whose instances are spread over partitions, which workers may share out.

    Attributes:
        enabled_partitions: The partitions that this worker claims from, or None for all of them;
            may be set at run time.
    """

    def __init__(
        self,
        *,
        partition_count: int,
        partition_selector: PartitionSelector = default_partition_selector,
        enabled_partitions: Collection[int] | None = None,
        **options: Any,
    ) -> None:
        """Declares a partitioned template; see ``Task`` for the other options.

        Args:
            partition_count: How many partitions there are.
            partition_selector: Tells the partition of an instance from its name.
            enabled_partitions: See the attribute.

        Raises:
            ValueError: ``partition_count`` is below 1, or a partition is enabled that is none.
        """
        super().__init__(**{**options, "dynamic": True})
        if not isinstance(partition_count, int) or partition_count < 1:
            raise ValueError("Partition count must be greater than or equal to 1")
        if partition_count > PARTITION_COUNT_MAX:
            raise ValueError(
                f"Partition count must be at most {PARTITION_COUNT_MAX:,}, not "
                f"{partition_count:,}: every worker asks about each of them once per poll interval"
            )
        if not callable(partition_selector):
            raise TypeError(f"partition_selector is not callable: {partition_selector!r}")
        self._partition_count = partition_count
        self._partition_selector = partition_selector
        self._partitions = [_Partition(self, number) for number in range(partition_count)]
        self.enabled_partitions = enabled_partitions

    @property
    def partition_count(self) -> int:
        """How many partitions there are."""
        return self._partition_count

    @property
    def partition_selector(self) -> PartitionSelector:
        """Tells the partition of an instance from its name."""
        return self._partition_selector

    @property
    def enabled_partitions(self) -> Collection[int] | None:
        """The partitions that this worker claims from; None: all."""
        return self._enabled_partitions

    @enabled_partitions.setter
    def enabled_partitions(self, partitions: Collection[int] | None) -> None:
        if partitions is not None and (
            not isinstance(partitions, Collection) or isinstance(partitions, (str, bytes))
        ):
            raise TypeError(
                f"enabled_partitions of '{self.name}' must be a collection of numbers, or None, "
                f"not {partitions!r}"
            )
        for partition in () if partitions is None else partitions:
            if not isinstance(partition, int) or not 0 <= partition < self._partition_count:
                raise ValueError(
                    f"enabled_partitions of '{self.name}' holds {partition!r}, but its partitions "
                    f"are 0 to {self._partition_count - 1}"
                )
        self._enabled_partitions = partitions

    def get_partitions(self) -> list[_Partition]:
        """All partitions."""
        return list(self._partitions)

    def locate(self, instance_name: str) -> str:
        return self.parent_of(instance_name).group

    def parent_of(self, instance_name: str) -> Task:
        number = self._partition_selector(self._partition_count, instance_name)
        if not isinstance(number, int) or not 0 <= number < self._partition_count:
            raise ValueError(
                f"The partition_selector of '{self.name}' gave {number!r} for '{instance_name}', "
                f"but its partitions are 0 to {self._partition_count - 1}"
            )
        return self._partitions[number]

    def groups(self) -> list[str]:
        return [partition.group for partition in self._partitions]

    def claims_from(self, group: str) -> bool:
        enabled = self._enabled_partitions
        return self.enabled and (enabled is None or int(group.rpartition(":")[2]) in enabled)


class _Partition(Task):
    """One partition of a template: the parent of the instances in it."""

    def __init__(self, template: PartitionedTask, partition_id: int) -> None:
        vars(self).update(vars(template))
        self._template = template
        self.partition_id = partition_id
        self.group = group_of(template.name, partition_id)

    @property
    def template(self) -> Task:
        return self._template

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
            f"'{self._template.name}'"
        )


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


def _check_serializable(args: Mapping[str, Any]) -> None:
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
                f"; pass {name}.isoformat() instead"
                if hasattr(value, "isoformat")
                else f"; pass str({name}), or something else that JSON can hold, instead"
            )
            raise ValueError(
                f"Extra parameters must be JSON serializable, but '{name}' is "
                f"{type(value).__name__} {repr(value)[:100]} ({error}){hint}"
            ) from None
