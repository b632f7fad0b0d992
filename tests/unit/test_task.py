"""What is declared: options with their errors, instances, partitions, names."""

from __future__ import annotations

import functools
import math
import pydoc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.support import START, after, seconds

from pyncette import Context, ExecutionMode, FailureMode, Pyncette
from pyncette.store.record import load_args
from pyncette.task import FOR_THE_ENGINE, PartitionedTask, Task, default_partition_selector

AMO = ExecutionMode.AT_MOST_ONCE


async def body(context: Context) -> None:
    """Does nothing."""


def template(**options: Any) -> Task:
    return Task(name="job", func=body, dynamic=True, **options)


def partitioned(**options: Any) -> PartitionedTask:
    return PartitionedTask(
        **{"partition_count": 4, "name": "job", "func": body, "dynamic": True, **options}
    )


# Names.


@pytest.mark.parametrize("name", [None, ""])
def test_a_task_needs_a_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^Unable to determine name for the task$"):
        Task(name=name, func=body, interval=seconds(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"schedule": "nonsense"},
        {"interval": -1},
        {"schedule": "* * * * *", "interval": 1},
        {"interval": 1, "timezone": "Nowhere"},
        {"interval": 1, "lease_duration": 0},
        {"interval": 1, "when": START},
        {"interval": 1, "failure_mode": FailureMode.COMMIT, "execution_mode": AMO},
    ],
    ids=str,
)
def test_the_name_is_checked_before_any_other_option(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Unable to determine name for the task$"):
        Task(name=None, func=body, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"schedule": "nonsense"},
        {"interval": -1},
        {"schedule": "* * * * *", "interval": 1},
        {"interval": 1, "timezone": "Nowhere"},
        {"interval": 1, "lease_duration": 0},
        {"interval": 1, "when": START},
    ],
    ids=str,
)
@pytest.mark.parametrize("failure_mode", [FailureMode.UNLOCK, FailureMode.COMMIT])
def test_the_failure_mode_is_checked_before_any_other_option(
    wrong: dict[str, Any], failure_mode: FailureMode
) -> None:
    with pytest.raises(
        ValueError,
        match=r"^failure_mode is not applicable when execution_mode is AT_MOST_ONCE$",
    ):
        Task(name="x", func=body, execution_mode=AMO, failure_mode=failure_mode, **wrong)


def test_the_name_and_the_failure_mode_are_checked_before_the_partition_count() -> None:
    with pytest.raises(ValueError, match="Unable to determine name"):
        partitioned(name=None, partition_count=0)
    with pytest.raises(ValueError, match="failure_mode is not applicable"):
        partitioned(partition_count=0, execution_mode=AMO, failure_mode=FailureMode.COMMIT)


def test_failure_mode_none_is_applicable_to_at_most_once() -> None:
    task = Task(name="x", func=body, interval=1, execution_mode=AMO, failure_mode=FailureMode.NONE)
    assert task.execution_mode is AMO


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b", "NUL"),
        ("a\ud800b", "surrogate"),
        ("x" * 1_001, "too long"),
        ("ä" * 501, "too long"),
    ],
)
def test_names_that_some_store_cannot_keep_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Task(name=name, func=body, interval=1)
    with pytest.raises(ValueError, match=words):
        template().instantiate(name, interval=1)


@pytest.mark.parametrize("name", ["a b", "a:b", "a%b", "ünï", "🦆", "x" * 900, ":", "%3A", "'\"\\"])
def test_any_other_name_will_do(name: str) -> None:
    assert Task(name=name, func=body, interval=1).name == name
    assert template().instantiate(name, interval=1).name == name


@pytest.mark.parametrize("name", [7, b"x", ("x",)])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match="name"):
        Task(name=name, func=body, interval=1)
    with pytest.raises(TypeError, match="name"):
        template().instantiate(name, interval=1)


# Attributes.


def test_a_task_has_the_attributes_that_it_was_declared_with() -> None:
    args: dict[str, Any] = {"color": "blue", "timeout": 30}
    task = Task(
        name="x",
        func=body,
        schedule="0 9 * * MON",
        timezone="Europe/Berlin",
        fast_forward=True,
        failure_mode=FailureMode.UNLOCK,
        lease_duration=seconds(5),
        enabled=False,
        **args,
    )
    assert task.name == "x"
    assert task.task_func is body
    assert task.schedule == "0 9 * * MON"
    assert task.timezone == "Europe/Berlin"
    assert task.interval is None
    assert task.execute_at is None
    assert task.fast_forward is True
    assert task.failure_mode is FailureMode.UNLOCK
    assert task.execution_mode is ExecutionMode.AT_LEAST_ONCE
    assert task.lease_duration == seconds(5)
    assert task.enabled is False
    assert task.dynamic is False
    assert task.parent_task is None
    assert task.extra_args == {"color": "blue", "timeout": 30}


def test_the_defaults_of_the_options() -> None:
    task = Task(name="x", func=body, interval=1)
    assert task.lease_duration == seconds(60)
    assert task.fast_forward is False
    assert task.failure_mode is FailureMode.NONE
    assert task.execution_mode is ExecutionMode.AT_LEAST_ONCE
    assert task.enabled is True
    assert task.timezone is None
    assert task.extra_args == {}


def test_an_option_that_is_set_later_is_checked_and_holds_for_new_instances() -> None:
    job = template(interval=1)
    job.lease_duration = seconds(5)
    job.fast_forward = True
    assert (job.lease_duration, job.fast_forward) == (seconds(5), True)
    assert job.instantiate("a").lease_duration == seconds(5)
    with pytest.raises(ValueError, match="lease_duration must be longer than zero"):
        job.lease_duration = timedelta()
    with pytest.raises(TypeError, match="failure_mode must be a FailureMode"):
        job.failure_mode = 1  # type: ignore[assignment]
    assert (job.lease_duration, job.failure_mode) == (seconds(5), FailureMode.NONE)


def test_an_option_of_a_partitioned_task_that_is_set_later_holds_in_every_partition() -> None:
    job = partitioned(interval=1)
    job.lease_duration = seconds(5)
    assert job.instantiate("a").lease_duration == seconds(5)
    assert {partition.lease_duration for partition in job.get_partitions()} == {seconds(5)}


def test_an_option_cannot_be_set_on_an_instance_or_a_partition() -> None:
    for job in (template(interval=1), partitioned(interval=1)):
        with pytest.raises(ValueError, match=r"lease_duration of 'job:.*' .* on the task 'job'"):
            job.instantiate("a").lease_duration = seconds(5)
    with pytest.raises(ValueError, match=r"failure_mode of 'job:0' .* on the task 'job'"):
        partitioned(interval=1).get_partitions()[0].failure_mode = FailureMode.COMMIT


def test_when_a_task_runs_cannot_be_set_later() -> None:
    with pytest.raises(AttributeError):
        Task(name="x", func=body, interval=1).interval = seconds(2)  # type: ignore[misc]


def test_an_instance_is_enabled_as_its_template_is_at_that_moment() -> None:
    for job in (template(interval=1), partitioned(interval=1)):
        instance = job.instantiate("a")
        job.enabled = False
        assert instance.enabled is False
        job.enabled = True
        assert instance.enabled is True
        with pytest.raises(ValueError, match="set enabled of the task 'job'"):
            instance.enabled = False


def test_the_options_of_a_task_are_frozen() -> None:
    options = Task(name="x", func=body, interval=1)._options
    with pytest.raises(AttributeError):
        options.fast_forward = True  # type: ignore[misc]


def test_the_modes_have_the_values_of_1x() -> None:
    assert [(mode.name, mode.value) for mode in ExecutionMode] == [
        ("AT_LEAST_ONCE", 0),
        ("AT_MOST_ONCE", 1),
    ]
    assert [(mode.name, mode.value) for mode in FailureMode] == [
        ("NONE", 0),
        ("UNLOCK", 1),
        ("COMMIT", 2),
    ]


def test_calling_a_task_calls_its_function() -> None:
    seen: list[Any] = []

    async def remember(context: Context) -> None:
        seen.append(context)

    context = Context()
    coroutine: Any = Task(name="x", func=remember, interval=1)(context)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == [context]


def test_any_callable_with_a_given_name_will_do() -> None:
    func = functools.partial(body)
    assert Task(name="x", func=func, interval=1).task_func is func


def test_a_function_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="not callable"):
        Task(name="x", func="body", interval=1)  # type: ignore[arg-type]


# When it runs.


def test_numbers_are_taken_as_seconds() -> None:
    task = Task(name="x", func=body, interval=1.5, lease_duration=90)
    assert task.interval == seconds(1.5)
    assert task.lease_duration == seconds(90)
    assert template().instantiate("a", interval=2).interval == seconds(2)


@pytest.mark.parametrize(
    "given",
    [
        {"schedule": "* * * * *", "interval": 1},
        {"schedule": "* * * * *", "execute_at": START},
        {"interval": 1, "execute_at": START},
        {"schedule": "* * * * *", "interval": 1, "execute_at": START},
    ],
    ids="+".join,
)
def test_more_than_one_way_to_say_when_is_refused(given: dict[str, Any]) -> None:
    words = "more than one of schedule, interval and execute_at"
    with pytest.raises(ValueError, match=words):
        Task(name="x", func=body, **given)
    with pytest.raises(ValueError, match=words):
        template(**given)
    with pytest.raises(ValueError, match=words):
        template().instantiate("a", **given)


def test_a_static_task_must_say_when() -> None:
    with pytest.raises(ValueError, match="exactly one of schedule and interval"):
        Task(name="x", func=body)


def test_an_instance_must_say_when_if_its_template_does_not() -> None:
    with pytest.raises(
        ValueError, match="exactly one of schedule, interval, execute_at and execute_in"
    ):
        template().instantiate("a")


@pytest.mark.parametrize("dynamic", [False, True])
def test_execute_at_is_for_instances_only(dynamic: bool) -> None:
    with pytest.raises(ValueError, match="execute_at"):
        Task(name="x", func=body, dynamic=dynamic, execute_at=START)


@pytest.mark.parametrize("interval", [0, timedelta(), -1, seconds(-1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_interval_is_longer_than_zero(interval: Any, dynamic: bool) -> None:
    with pytest.raises(ValueError, match="longer than zero"):
        Task(name="x", func=body, dynamic=dynamic, interval=interval)


@pytest.mark.parametrize(
    "interval", [timedelta.max, timedelta(days=365 * 300), 1e300, math.inf, math.nan]
)
def test_an_absurdly_long_interval_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval"):
        Task(name="x", func=body, interval=interval)


@pytest.mark.parametrize("lease", [0, -5, timedelta(), timedelta(days=4_000), math.inf, math.nan])
def test_a_lease_is_longer_than_zero_and_not_absurdly_long(lease: Any) -> None:
    with pytest.raises(ValueError, match="lease_duration"):
        Task(name="x", func=body, interval=1, lease_duration=lease)


@pytest.mark.parametrize("option", ["interval", "lease_duration"])
@pytest.mark.parametrize("value", ["10", True, [1], START])
def test_a_length_of_time_is_a_timedelta_or_a_number(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=option):
        Task(name="x", func=body, **{"interval": 1, option: value})


def test_a_zero_interval_makes_a_handle_that_cannot_be_scheduled() -> None:
    handle = template().instantiate("a", interval=timedelta())
    assert handle.name == "a"
    assert str(handle) == "job:a"
    with pytest.raises(ValueError, match="interval must be longer than zero"):
        handle.plan  # noqa: B018


def test_a_schedule_is_a_string() -> None:
    with pytest.raises(TypeError, match="cron expression"):
        Task(name="x", func=body, schedule=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", ["2026-01-01", 1767225600, START.date()])
def test_execute_at_is_a_datetime(at: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="datetime"):
        template().instantiate("a", execute_at=at)


def test_execute_at_in_another_zone_is_told_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    instance = template().instantiate("a", execute_at=START.astimezone(east))
    assert instance.execute_at == START
    assert instance.execute_at.tzinfo is UTC


def test_a_naive_execute_at_means_local_time_of_the_machine() -> None:
    naive = datetime(2026, 7, 1, 12)  # noqa: DTZ001
    instance = template().instantiate("a", execute_at=naive)
    assert instance.execute_at == naive.astimezone()
    assert instance.execute_at.tzinfo is UTC


@pytest.mark.parametrize("mode", [0, "AT_MOST_ONCE", None])
def test_modes_are_members_of_their_enumerations(mode: Any) -> None:
    with pytest.raises(TypeError, match="execution_mode must be a ExecutionMode"):
        Task(name="x", func=body, interval=1, execution_mode=mode)
    with pytest.raises(TypeError, match="failure_mode must be a FailureMode"):
        Task(name="x", func=body, interval=1, failure_mode=mode)


# Time zones.


@pytest.mark.parametrize(
    "zone",
    ["Europe/Berlin", "Etc/GMT+3", "UTC+6", "GMT+3", "UTC6", "UTC+5:30", "UTC+0530", "+05:30"],
)
def test_a_zone_goes_with_a_schedule(zone: str) -> None:
    task = Task(name="x", func=body, schedule="0 12 * * *", timezone=zone)
    assert task.timezone == zone


def test_a_zone_object_is_known_by_its_name_afterwards() -> None:
    task = Task(name="x", func=body, schedule="0 9 * * *", timezone=ZoneInfo("Europe/Berlin"))
    assert task.timezone == "Europe/Berlin"
    instance = template().instantiate("a", schedule="0 9 * * *", timezone=UTC)
    assert instance.timezone == "UTC"


@pytest.mark.parametrize(
    "zone", ["Nowhere/Land", "EST5EDT,M3.2.0,M11.1.0", "", "UTC+99", "Europe/", "../etc/passwd"]
)
def test_a_bad_zone_is_refused_by_name(zone: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid timezone specifier '"):
        Task(name="x", func=body, schedule="0 12 * * *", timezone=zone)
    with pytest.raises(ValueError, match=r"^Invalid timezone specifier '"):
        template(timezone=zone)


def test_a_zone_without_a_schedule_is_refused_on_what_runs() -> None:
    with pytest.raises(ValueError, match="timezone may only be given together with schedule"):
        Task(name="x", func=body, interval=1, timezone="UTC")
    with pytest.raises(ValueError, match="timezone may only be given together with schedule"):
        template().instantiate("a", interval=1, timezone="UTC")
    with pytest.raises(ValueError, match="timezone may only be given together with schedule"):
        template().instantiate("a", execute_at=START, timezone="UTC")


def test_a_template_may_have_a_zone_for_the_schedules_of_its_instances() -> None:
    instance = template(timezone="Europe/Berlin").instantiate("a", schedule="0 9 * * *")
    assert instance.timezone == "Europe/Berlin"


def test_a_zone_of_the_template_is_dropped_where_the_instance_is_not_cron() -> None:
    job = template(schedule="0 9 * * *", timezone="Europe/Berlin")
    assert job.instantiate("a", interval=5).timezone is None
    assert job.instantiate("a", execute_at=START).timezone is None


def test_an_instance_may_have_a_zone_of_its_own() -> None:
    job = template(schedule="0 9 * * *", timezone="Europe/Berlin")
    instance = job.instantiate("a", timezone="Asia/Tokyo")
    assert (instance.schedule, instance.timezone) == ("0 9 * * *", "Asia/Tokyo")


# Instances.


@pytest.mark.parametrize("default", [{"schedule": "0 9 * * *"}, {"interval": seconds(5)}])
@pytest.mark.parametrize(
    "own", [{"schedule": "0 7 * * *"}, {"interval": seconds(9)}, {"execute_at": START}]
)
def test_what_an_instance_says_replaces_a_default_of_another_kind(
    default: dict[str, Any], own: dict[str, Any]
) -> None:
    instance = template(**default).instantiate("a", **own)
    assert {
        option: getattr(instance, option)
        for option in ("schedule", "interval", "execute_at")
        if getattr(instance, option) is not None
    } == own


def test_an_instance_that_says_nothing_has_the_defaults_of_its_template() -> None:
    instance = template(schedule="0 9 * * *", timezone="Europe/Berlin").instantiate("a")
    assert (instance.schedule, instance.timezone) == ("0 9 * * *", "Europe/Berlin")
    assert template(interval=5).instantiate("a").interval == seconds(5)


def test_an_instance_has_the_other_options_of_its_template() -> None:
    job = template(interval=1, fast_forward=True, failure_mode=FailureMode.COMMIT, lease_duration=7)
    instance = job.instantiate("a")
    assert instance.parent_task is job
    assert instance.dynamic is False
    assert instance.task_func is body
    assert instance.fast_forward is True
    assert instance.failure_mode is FailureMode.COMMIT
    assert instance.lease_duration == seconds(7)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fast_forward", True),
        ("failure_mode", FailureMode.COMMIT),
        ("execution_mode", AMO),
        ("lease_duration", seconds(5)),
        ("enabled", False),
        ("dynamic", True),
        ("func", body),
        ("parent_task", None),
    ],
)
def test_an_option_of_the_template_is_refused_on_an_instance_by_name(
    option: str, value: Any
) -> None:
    with pytest.raises(TypeError, match=f"^{option} "):
        template(interval=1).instantiate("a", **{option: value})


def test_a_static_task_has_no_instances() -> None:
    with pytest.raises(ValueError, match="not a dynamic task"):
        Task(name="x", func=body, interval=1).instantiate("a")
    with pytest.raises(ValueError, match="not a dynamic task"):
        template(interval=1).instantiate("a").instantiate("b")


# Arguments.


class Opaque:
    """Something that JSON does not know."""


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (START, r"when\.isoformat\(\)"),
        (START.date(), r"when\.isoformat\(\)"),
        (Opaque(), r"str\(when\)"),
        ({1, 2}, r"str\(when\)"),
        (b"x", r"str\(when\)"),
        ([Opaque()], r"str\(when\)"),
        ({"a": Opaque()}, r"str\(when\)"),
        ({(1, 2): 3}, r"str\(when\)"),
    ],
)
def test_an_argument_that_json_cannot_hold_is_refused_with_its_name(value: Any, hint: str) -> None:
    words = f"^Extra parameters must be JSON serializable.*'when'.*{hint}"
    with pytest.raises(ValueError, match=words):
        Task(name="x", func=body, interval=1, when=value)
    with pytest.raises(ValueError, match=words):
        template().instantiate("a", interval=1, when=value)


def test_an_argument_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"^Extra parameters must be JSON serializable"):
        Task(name="x", func=body, interval=1, when=endless)


@pytest.mark.parametrize(
    "name", ["timeout", "retry", "jitter", "heartbeat", "start_at", "misfire_grace", "group", "key"]
)
def test_a_json_value_under_the_name_of_a_new_option_stays_an_argument(name: str) -> None:
    args: dict[str, Any] = {name: 30}
    assert template().instantiate("a", interval=1, **args).extra_args == {name: 30}


def test_the_arguments_of_an_instance_go_before_those_of_its_template() -> None:
    instance = template(color="blue", size=1).instantiate("a", interval=1, color="red")
    assert instance.extra_args == {"color": "red", "size": 1}
    assert load_args(instance.args_text) == {"color": "red"}


# Names for people.


@pytest.mark.parametrize(
    ("name", "instance", "canonical"),
    [
        ("job", "a", "job:a"),
        ("a:b", "c", "a::b:c"),
        ("a", "b:c", "a:b::c"),
        (":", ":", ":::::"),
    ],
)
def test_a_canonical_name_doubles_colons(name: str, instance: str, canonical: str) -> None:
    job = Task(name=name, func=body, dynamic=True)
    made = job.instantiate(instance, interval=1)
    assert made.canonical_name == str(made) == canonical
    assert canonical in repr(made)


def test_the_canonical_name_of_an_instance_names_its_partition() -> None:
    job = partitioned(name="a:b", partition_selector=lambda count, name: 2)
    assert job.instantiate("c", interval=1).canonical_name == "a::b:2:c"


def test_names_that_look_alike_when_joined_are_kept_apart() -> None:
    one = Task(name="a:", func=body, dynamic=True).instantiate("b", interval=1)
    two = Task(name="a", func=body, dynamic=True).instantiate(":b", interval=1)
    assert (one.group, one.key) != (two.group, two.key)


# Next executions.


def test_the_first_execution_of_an_interval_is_one_interval_away() -> None:
    task = Task(name="x", func=body, interval=10)
    assert task.get_next_execution(START, None) == after(10)


def test_the_next_execution_of_an_interval_follows_the_planned_time() -> None:
    task = Task(name="x", func=body, interval=10)
    assert task.get_next_execution(after(35), after(10)) == after(20)


def test_the_next_execution_of_an_interval_with_fast_forward_lies_on_its_grid() -> None:
    task = Task(name="x", func=body, interval=10, fast_forward=True)
    assert task.get_next_execution(after(35), after(10)) == after(40)
    assert task.get_next_execution(after(40), after(10)) == after(50)


def test_the_next_execution_of_a_schedule_follows_the_planned_time_or_now() -> None:
    every_minute: dict[str, Any] = {"name": "x", "func": body, "schedule": "* * * * *"}
    assert Task(**every_minute).get_next_execution(START, None) == after(60)
    assert Task(**every_minute).get_next_execution(after(600), after(60)) == after(120)
    task = Task(**every_minute, fast_forward=True)
    assert task.get_next_execution(after(600), after(60)) == after(660)


def test_a_one_off_is_executed_once() -> None:
    instance = template().instantiate("a", execute_at=after(-5))
    assert instance.get_next_execution(START, None) == after(-5)
    assert instance.get_next_execution(START, after(-5)) is None


def test_the_next_execution_is_told_in_utc_whatever_the_zone() -> None:
    task = Task(name="x", func=body, schedule="30 8 * * *", timezone="Asia/Kolkata")
    found = task.get_next_execution(START, None)
    assert found == datetime(2026, 1, 6, 3, 0, tzinfo=UTC)
    assert found.tzinfo is UTC


def test_the_next_execution_of_a_template_that_does_not_say_when_is_an_error() -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        template().get_next_execution(START, None)


# Partitions.


def test_the_default_selector_is_stable_for_ever() -> None:
    assert default_partition_selector(10**12, "Lorem ipsum dolor sit amet") == 222413034928
    assert default_partition_selector(1, "anything") == 0


@pytest.mark.parametrize("count", [0, -1])
def test_a_partitioned_task_has_at_least_one_partition(count: int) -> None:
    with pytest.raises(ValueError, match=r"^Partition count must be greater than or equal to 1$"):
        partitioned(partition_count=count)


def test_partition_count_and_selector_are_readable() -> None:
    def selector(count: int, name: str) -> int:
        return 3

    job = partitioned(partition_selector=selector)
    assert job.partition_count == 4
    assert job.partition_selector is selector
    assert partitioned().partition_selector is default_partition_selector
    assert job.dynamic is True


def test_an_instance_belongs_to_the_partition_that_the_selector_says() -> None:
    job = partitioned(partition_selector=lambda count, name: len(name) % count)
    assert job.instantiate("xyz", interval=1).canonical_name == "job:3:xyz"
    assert job.instantiate("xyz", interval=1).group == job.locate("xyz") == "job:3"
    assert sorted(job.groups()) == ["job:0", "job:1", "job:2", "job:3"]


def test_the_parent_of_an_instance_of_a_partitioned_task_has_the_templates_name() -> None:
    parent = partitioned().instantiate("a", interval=1).parent_task
    assert parent is not None
    assert parent.name == "job"


@pytest.mark.parametrize("number", [-1, 4, 1.5, None])
def test_a_selector_that_gives_no_partition_is_told_so(number: Any) -> None:
    job = partitioned(partition_selector=lambda count, name: number)
    with pytest.raises(ValueError, match=r"partition_selector of 'job'.*0 to 3"):
        job.instantiate("a", interval=1)


def test_get_partitions_lists_the_partitions() -> None:
    partitions = partitioned().get_partitions()
    assert [partition.partition_id for partition in partitions] == [0, 1, 2, 3]


def test_all_partitions_are_enabled_unless_some_are() -> None:
    assert [partition.enabled for partition in partitioned().get_partitions()] == [True] * 4
    job = partitioned(enabled_partitions=[1, 3])
    assert [partition.enabled for partition in job.get_partitions()] == [False, True, False, True]


def test_enabled_partitions_may_be_set_at_run_time() -> None:
    job = partitioned()
    job.enabled_partitions = [0]
    assert job.active_groups() == ["job:0"]
    job.enabled_partitions = {1, 2}
    assert job.active_groups() == ["job:1", "job:2"]
    job.enabled_partitions = []
    assert job.active_groups() == []
    job.enabled_partitions = None
    assert len(job.active_groups()) == 4
    job.enabled = False
    assert job.active_groups() == []
    assert [partition.enabled for partition in job.get_partitions()] == [False] * 4


@pytest.mark.parametrize("wrong", [[4], [-1], ["0"], [None]])
def test_a_partition_that_there_is_not_cannot_be_enabled(wrong: Any) -> None:
    with pytest.raises(ValueError, match="enabled_partitions of 'job'"):
        partitioned(enabled_partitions=wrong)
    job = partitioned(enabled_partitions=[0])
    with pytest.raises(ValueError, match="enabled_partitions of 'job'"):
        job.enabled_partitions = wrong
    assert job.enabled_partitions == [0]


@pytest.mark.parametrize(
    "wrong", [True, 3, "", "0", b"0", iter([0])], ids=lambda wrong: type(wrong).__name__
)
def test_enabled_partitions_are_a_collection_of_numbers(wrong: Any) -> None:
    with pytest.raises(TypeError, match="enabled_partitions of 'job' must be a collection"):
        partitioned(enabled_partitions=wrong)


@pytest.mark.parametrize("wrong", [None, 3, "name"])
def test_a_partition_selector_is_callable(wrong: Any) -> None:
    with pytest.raises(TypeError, match="partition_selector is not callable"):
        partitioned(partition_selector=wrong)


@pytest.mark.parametrize("value", [True, False])
def test_setting_enabled_on_a_partition_is_an_error(value: bool) -> None:
    [partition, *_] = partitioned().get_partitions()
    with pytest.raises(ValueError, match="enabled_partitions"):
        partition.enabled = value


# Declaring.


def test_the_decorators_return_tasks_with_the_functions_name() -> None:
    app = Pyncette()

    @app.task(interval=seconds(1))
    async def one(context: Context) -> None: ...

    @app.dynamic_task()
    async def two(context: Context) -> None: ...

    @app.partitioned_task(3)
    async def three(context: Context) -> None: ...

    assert [type(task) for task in (one, two, three)] == [Task, Task, PartitionedTask]
    assert [task.name for task in (one, two, three)] == ["one", "two", "three"]
    assert [task.dynamic for task in (one, two, three)] == [False, True, True]


def test_a_name_of_none_means_the_functions_name() -> None:
    assert Pyncette().task(name=None, interval=1)(body).name == "body"


@pytest.mark.parametrize("declare", ["task", "dynamic_task"])
def test_a_name_that_is_taken_is_refused(declare: str) -> None:
    app = Pyncette()
    app.task(interval=1)(body)
    decorator: Callable[..., Any] = getattr(app, declare)
    with pytest.raises(ValueError, match=r"^Duplicate task name"):
        decorator(interval=1)(body)
    with pytest.raises(ValueError, match=r"^Duplicate task name"):
        app.partitioned_task(3, interval=1)(body)


def test_a_function_without_a_name_needs_one() -> None:
    with pytest.raises(ValueError, match=r"^Unable to determine name for the task$"):
        Pyncette().task(interval=1)(functools.partial(body))


def test_decorators_may_be_stacked() -> None:
    app = Pyncette()

    @app.task(name="hourly", schedule="@hourly")
    @app.task(name="daily", schedule="@daily")
    @app.dynamic_task(name="on demand")
    @app.partitioned_task(2, name="in parts")
    async def report(context: Context) -> None: ...

    assert report.name == "hourly"
    assert [task.name for task in app._tasks] == ["in parts", "on demand", "daily", "hourly"]
    assert len({task.task_func for task in app._tasks}) == 1
    assert not isinstance(report.task_func, Task)


def test_a_decorator_that_is_given_a_task_of_another_app_takes_its_function() -> None:
    one = Pyncette().task(interval=1)(body)
    two = Pyncette().task(interval=2)(one)
    assert two.task_func is body
    assert two.name == "body"


def test_a_declaration_that_fails_leaves_nothing_behind() -> None:
    app = Pyncette()
    with pytest.raises(ValueError, match="cron expression"):
        app.task(schedule="nonsense")(body)
    assert app.task(interval=1)(body).name == "body"


def test_more_partitions_than_a_worker_can_ask_about_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 10,000, not 1,000,000,000"):
        PartitionedTask(name="x", func=body, partition_count=1_000_000_000)


# Mistakes.


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        ({"time_zone": "Europe/Berlin"}, "timezone"),
        ({"timeZone": "Europe/Berlin"}, "timezone"),
        ({"tz": "Europe/Berlin"}, "timezone"),
        ({"fast_foward": True}, "fast_forward"),
        ({"lease_seconds": 5}, "lease_duration"),
        ({"lease_duration_s": 5}, "lease_duration"),
        ({"interval_seconds": 5}, "interval"),
        ({"enable": False}, "enabled"),
        ({"executed_at": "2026-01-01"}, "execute_at"),
        ({"run_at": "2026-01-01"}, "execute_at"),
    ],
    ids=str,
)
def test_an_argument_that_looks_like_an_option_is_warned_about_once(
    argument: dict[str, Any], option: str, caplog: pytest.LogCaptureFixture
) -> None:
    [name] = argument
    words = f"'{name}' is an argument of the task, not an option: did you mean '{option}'?"
    task = Pyncette().dynamic_task(name="declared", **argument)(body)
    assert task.extra_args == argument
    job = template()
    for instance in ("a", "b"):
        assert job.instantiate(instance, execute_at=START, **argument).extra_args == argument
    expected = [f"Task declared: {words}", f"Task job: {words}"]
    if option == "execute_at":  # it was given by its right name, too
        expected = expected[:1]
    assert caplog.messages == expected


@pytest.mark.parametrize(
    "name", ["names", "user_timezone", "schedule_id", "lease_id", "lease", "timeout", "at", "day"]
)
def test_an_argument_with_a_name_of_its_own_is_not_warned_about(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    args: dict[str, Any] = {name: 1}
    template().instantiate("a", interval=1, **args)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        ({"lease": 30}, "lease_duration"),
        ({"retries": 3}, "retry"),
        ({"max_retries": 3}, "retry"),
    ],
    ids=str,
)
def test_a_word_that_means_an_option_where_a_task_is_declared_is_warned_about_there(
    argument: dict[str, Any], option: str, caplog: pytest.LogCaptureFixture
) -> None:
    [name] = argument
    app = Pyncette()
    app.task(name="static", interval=60, **argument)(body)
    template = app.dynamic_task(name="dynamic", **argument)(body)
    template.instantiate("a", interval=60, **argument)
    assert caplog.messages == [
        f"Task {task}: '{name}' is an argument of the task, not an option: did you mean '{option}'?"
        for task in ("static", "dynamic")
    ]


def test_an_option_that_was_given_is_not_what_an_argument_means(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template().instantiate("a", schedule="0 9 * * *", timezone="Asia/Tokyo", tz="Asia/Tokyo")
    assert caplog.messages == []


def test_the_number_of_partitions_of_a_task_without_any_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Pyncette().dynamic_task(name="job", partition_count=4)(body)
    assert caplog.messages == [
        "Task job: 'partition_count' is an argument of the task, not an option of this kind of task"
    ]


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        ({"schedul": "@hourly"}, "schedule"),
        ({"cron": "@hourly"}, "schedule"),
        ({"every": 60}, "interval"),
        ({"intervall": 60}, "interval"),
    ],
    ids=str,
)
def test_the_error_about_a_missing_schedule_names_the_argument_that_was_perhaps_meant(
    argument: dict[str, Any], option: str
) -> None:
    [name] = argument
    words = f"; did you mean '{option}' by '{name}'\\?$"
    with pytest.raises(ValueError, match=r"exactly one of schedule and interval" + words):
        Pyncette().task(color="blue", **argument)(body)
    with pytest.raises(ValueError, match=r"schedule, interval, execute_at and execute_in" + words):
        template().instantiate("a", **argument)


def test_only_an_instance_is_told_that_execute_at_was_perhaps_meant() -> None:
    with pytest.raises(ValueError, match=r"exactly one of schedule and interval$"):
        Task(name="x", func=body, run_at="2026-01-01")
    with pytest.raises(ValueError, match="did you mean 'execute_at' by 'run_at'"):
        template().instantiate("a", run_at="2026-01-01")


def test_a_misspelt_option_that_json_cannot_hold_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="did you mean the option 'lease_duration'"):
        Task(name="x", func=body, interval=1, lease_duratoin=seconds(5))  # type: ignore[arg-type]


def test_a_schedule_that_runs_every_second_of_some_minutes_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = template()
    for _ in range(2):
        job.instantiate("a", schedule="7 8 12 * *  *")
        job.instantiate("a", schedule="7 8 12 * * 0")
        job.instantiate("a", schedule="7 */2 * * * *")
    assert caplog.messages == [
        "The schedule '7 8 12 * * *' runs at every second of the minutes '7' of the hours '8'. If "
        "the first field was meant to be the second: it stands last here, as in '8 12 * * * 7'",
        "The schedule '7 */2 * * * *' runs at every second of the minutes '7' of the hours '*/2'. "
        "If the first field was meant to be the second: it stands last here, as in '*/2 * * * * 7'",
    ]


def test_a_single_run_of_a_template_with_defaults_has_both_arguments_and_knows_when() -> None:
    template = Task(
        name="job", func=body, dynamic=True, interval=timedelta(seconds=5), colour="red", size=1
    )
    at = datetime(2030, 1, 1, tzinfo=UTC)
    instance = template.instantiate("x", execute_at=at, size=2)
    assert instance.args_text == '1 {"size":2}'
    assert instance.extra_args == {"colour": "red", "size": 2}
    assert (instance.execute_at, instance.interval, instance.schedule) == (at, None, None)
    assert (instance.start_at, instance.end_at, instance.jitter) == (None, None, None)


def test_the_jitter_of_a_template_holds_for_a_single_run_too() -> None:
    wait = timedelta(seconds=5)
    template = Task(name="job", func=body, dynamic=True, jitter=wait)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    instance = template.instantiate("x", execute_at=at)
    assert (instance.execute_at, instance.jitter) == (at, wait)


def test_arguments_that_hold_themselves_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="must be JSON serializable, but 'value' is list"):
        template().instantiate("a", interval=5, value=value)


def test_help_shows_what_programs_need_and_not_what_the_engine_needs() -> None:
    every = {name for kind in (Task, PartitionedTask) for name in type.__dir__(kind)}
    assert every >= FOR_THE_ENGINE
    for kind in (Task, PartitionedTask):
        text = pydoc.plain(pydoc.render_doc(kind))
        for name in FOR_THE_ENGINE:
            assert f"\n |  {name}(" not in text
            assert f"\n |  {name}\n" not in text
        for name in ("args(", "instantiate(", "get_next_execution(", "canonical_name\n"):
            assert f"\n |  {name}" in text
        assert "<object object at" not in text


HOSTILE = "bob\n2026-11-28 CRITICAL audit: root logged in\x1b[2K"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda task: task.instantiate(HOSTILE, interval=5, schedule="* * * * *"),
        lambda task: task.instantiate(HOSTILE, interval=5, timezone="UTC"),
        lambda task: task.instantiate(HOSTILE, schedule="* * * * *", timezone="Nowhere/Else"),
        lambda task: task.instantiate(HOSTILE).instantiate("x"),
        lambda task: task.instantiate("x", interval=5, **{HOSTILE: object()}),
        lambda task: task.identify(HOSTILE + "\0"),
        lambda task: task.identify(HOSTILE * 100),
        lambda task: setattr(task.instantiate(HOSTILE, interval=5), "enabled", False),
    ],
)
def test_names_cannot_write_lines_of_their_own_into_an_error(
    mistake: Callable[[Task], object],
) -> None:
    task = Task(name=HOSTILE, func=body, dynamic=True)
    with pytest.raises((ValueError, AttributeError)) as refused:
        mistake(task)
    assert str(refused.value).isprintable()


def test_names_cannot_write_lines_of_their_own_into_the_warning_of_a_misspelt_option(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Task(name=HOSTILE, func=body, interval=5, time_zone="UTC")
    [message] = caplog.messages
    assert message.isprintable()
    assert "did you mean 'timezone'" in message
