"""The policy itself: its delays, what it covers, and which values it refuses."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyncette import Context, ExecutionMode, Exhausted, FailureMode, Heartbeat, Overlap, chance
from pyncette.model import CatchUp
from pyncette.retry import DELAY_MAX, GiveUp, Retry, RetryIn, Skip
from pyncette.task import Task
from pyncette.task_options import NEW_OPTIONS, SPAN_OPTIONS

SECOND = timedelta(seconds=1)


async def body(context: Context) -> None: ...


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    retry = Retry(initial=SECOND, factor=3, maximum=timedelta(seconds=20), jitter=0)
    delays = [retry.delay(attempt, ValueError()) for attempt in range(1, 6)]
    assert delays == [timedelta(seconds=seconds) for seconds in (1, 3, 9, 20, 20)]


@given(
    st.integers(1, 10**6),
    st.floats(1, 1e6),
    st.floats(0, 1),
    st.timedeltas(timedelta(), timedelta(days=1)),
)
def test_no_delay_is_longer_than_the_maximum_or_shorter_than_its_jitter_allows(
    attempt: int, factor: float, jitter: float, initial: timedelta
) -> None:
    retry = Retry(factor=factor, jitter=jitter, initial=initial, maximum=timedelta(days=1))
    delay = retry.delay(attempt, ValueError())
    assert delay is not None
    whole = Retry(factor=factor, jitter=0, initial=initial, maximum=timedelta(days=1))
    longest = whole.delay(attempt, ValueError())
    assert longest is not None
    assert longest <= timedelta(days=1)
    assert longest * (1 - jitter) - SECOND / 1000 <= delay <= longest


def test_delays_are_drawn_from_the_only_source_of_randomness() -> None:
    def drawn() -> list[timedelta | None]:
        with chance.use(Random(5)):
            return [Retry().delay(attempt, ValueError()) for attempt in range(1, 9)]

    assert drawn() == drawn()


def test_exceptions_are_covered_by_their_kind() -> None:
    retry = Retry(on=(OSError, ValueError), give_up_on=(FileNotFoundError,))
    assert retry.covers(ConnectionError())
    assert retry.covers(ValueError())
    assert not retry.covers(FileNotFoundError())
    assert not retry.covers(TypeError())
    assert not retry.covers(asyncio.CancelledError())


def test_what_is_no_exception_is_covered_like_one() -> None:
    assert Retry().covers(asyncio.CancelledError())
    assert not Retry(give_up_on=(asyncio.CancelledError,)).covers(asyncio.CancelledError())


def test_one_kind_of_exception_may_be_given_alone() -> None:
    alone: Any = ValueError
    assert Retry(on=alone).on == (ValueError,)


@pytest.mark.parametrize("kind", [list, set, iter])
def test_kinds_of_exceptions_may_be_given_in_any_iterable(kind: Any) -> None:
    retry = Retry(on=kind([OSError]), give_up_on=kind([FileNotFoundError]))
    assert (retry.on, retry.give_up_on) == ((OSError,), (FileNotFoundError,))
    assert retry.covers(ConnectionError())
    assert not retry.covers(FileNotFoundError())


def test_the_longest_delay_is_at_least_the_first_one_unless_it_is_given() -> None:
    minutes = [Retry(initial=timedelta(minutes=n)).maximum / timedelta(minutes=1) for n in (1, 9)]
    assert minutes == [5, 9]
    retry = Retry(initial=timedelta(minutes=9), jitter=0)
    assert [retry.delay(attempt, ValueError()) for attempt in (1, 2)] == [retry.initial] * 2
    assert replace(Retry(), initial=timedelta(minutes=9)) == Retry(initial=timedelta(minutes=9))
    with pytest.raises(ValueError, match="maximum must be at least initial"):
        Retry(initial=timedelta(minutes=9), maximum=timedelta(minutes=5))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"attempts": 0}, ValueError, "attempts must be from 1"),
        ({"attempts": 2.5}, TypeError, "attempts must be a whole number, not 2.5"),
        ({"attempts": True}, TypeError, "attempts must be a whole number"),
        ({"attempts": 10**7}, ValueError, "attempts must be from 1 to 1,000,000"),
        ({"initial": 5}, TypeError, "initial must be a timedelta, not 5"),
        ({"initial": -SECOND}, ValueError, "initial must not be negative"),
        ({"maximum": SECOND / 2}, ValueError, "maximum must be at least initial"),
        ({"maximum": 2 * DELAY_MAX}, ValueError, "maximum must be at most 3660 days"),
        ({"factor": 0.5}, ValueError, "factor must be at least 1, not 0.5"),
        ({"factor": float("inf")}, ValueError, "factor must be at least 1"),
        ({"factor": float("nan")}, ValueError, "factor must be at least 1"),
        ({"factor": "2"}, TypeError, "factor must be a number, not '2'"),
        ({"jitter": 1.5}, ValueError, "jitter must be from 0 to 1, not 1.5"),
        ({"jitter": -0.1}, ValueError, "jitter must be from 0 to 1"),
        ({"on": (5,)}, TypeError, r"on must .* as in on=\(OSError, ValueError\), not 5"),
        ({"on": 5}, TypeError, "on must hold classes of exceptions.* not 5"),
        ({"on": "OSError"}, TypeError, "on must hold classes of exceptions.* not 'OSError'"),
        ({"on": OSError | ValueError}, TypeError, r"as in on=.* not OSError \| ValueError"),
        ({"give_up_on": (ValueError(),)}, TypeError, "give_up_on must hold classes of exceptions"),
        ({"within": 60}, TypeError, "within must be a timedelta, not 60"),
        ({"within": timedelta()}, ValueError, "within must be longer than zero"),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Retry(**wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(5, TypeError), (-SECOND, ValueError), (2 * DELAY_MAX, ValueError), (None, TypeError)],
)
def test_a_retry_in_no_time_that_can_be_is_refused_in_the_body(
    wrong: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="delay of RetryIn"):
        RetryIn(wrong)


def test_what_a_body_raises_says_why_and_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(RetryIn(SECOND, "busy", free=True)))
    assert (again.delay, again.reason, again.free) == (SECOND, "busy", True)
    assert str(again) == "busy"
    assert str(RetryIn(SECOND)) == "in 0:00:01"
    assert pickle.loads(pickle.dumps(GiveUp("gone"))).reason == "gone"
    assert str(Skip()) == ""


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"retry": b"five"}, TypeError, "retry must be a pyncette.Retry"),
        ({"exhausted": FailureMode.NONE}, TypeError, "exhausted must be a pyncette.Exhausted"),
        ({"timeout": b"five"}, TypeError, "timeout must be a timedelta"),
        ({"timeout": timedelta()}, ValueError, "timeout must be longer than zero"),
        ({"timeout": -SECOND}, ValueError, "timeout must be longer than zero"),
        ({"timeout": timedelta.max}, ValueError, "timeout must be at most 3660 days"),
        ({"heartbeat": SECOND}, TypeError, "heartbeat must be True or a pyncette.Heartbeat"),
        ({"misfire_grace": timedelta()}, ValueError, "misfire_grace must be longer than zero"),
        ({"misfire_grace": CatchUp.ALL}, TypeError, "misfire_grace must be a timedelta"),
        ({"catch_up": Overlap.SKIP}, TypeError, "catch_up must be a pyncette.CatchUp"),
        ({"overlap": CatchUp.ALL}, TypeError, "overlap must be a pyncette.Overlap"),
        (
            {"retry": Retry(), "failure_mode": FailureMode.UNLOCK},
            ValueError,
            "retry and failure_mode=UNLOCK cannot be given together",
        ),
        (
            {"retry": Retry(), "failure_mode": FailureMode.COMMIT},
            ValueError,
            "retry and failure_mode=COMMIT cannot be given together",
        ),
        (
            {"fast_forward": True, "catch_up": CatchUp.ALL},
            ValueError,
            "fast_forward=True and catch_up=CatchUp.ALL contradict each other",
        ),
        (
            {"heartbeat": Heartbeat(every=SECOND), "lease_duration": SECOND},
            ValueError,
            "must be shorter than lease_duration",
        ),
        *(
            (
                {**option, "execution_mode": ExecutionMode.AT_MOST_ONCE},
                ValueError,
                f"{next(iter(option))}.* is not applicable when execution_mode is AT_MOST_ONCE",
            )
            for option in (
                {"retry": Retry()},
                {"exhausted": Exhausted.PARK},
                {"heartbeat": True},
                {"overlap": Overlap.SKIP},
            )
        ),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_where_it_is_declared(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Task(name="job", func=body, interval=1, **wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"every": 5}, TypeError),
        ({"every": timedelta()}, ValueError),
        ({"cancel_on_lease_lost": 1}, TypeError),
    ],
)
def test_heartbeats_that_make_no_sense_are_refused(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        Heartbeat(**wrong)


@pytest.mark.parametrize(
    "option", ["retry", "exhausted", "timeout", "heartbeat", "misfire_grace", "catch_up", "overlap"]
)
def test_a_json_value_under_the_name_of_an_option_is_an_argument_and_is_warned_about_once(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    args: dict[str, Any] = {option: 30}
    task = Task(name="job", func=body, interval=1, **args)
    assert task.extra_args == args
    [line] = caplog.messages
    assert f"'{option}' is an argument of the task, not an option: the option takes" in line


@pytest.mark.parametrize("option", [*NEW_OPTIONS, *SPAN_OPTIONS])
def test_none_as_a_new_option_means_that_it_is_not_given_and_stays_an_argument_as_in_1_x(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    args: dict[str, Any] = {option: None}
    task = Task(name="job", func=body, interval=1, **args)
    template = Task(name="job", func=body, dynamic=True, **args)
    instance = template.instantiate("a", interval=1, **args)
    plain = Task(name="job", func=body, interval=1)
    assert (task.options, task.when) == (plain.options, plain.when)
    assert instance.when == plain.when
    assert task.extra_args == template.extra_args == instance.extra_args == args
    assert caplog.messages == []


@pytest.mark.parametrize("value", [True, False])
def test_heartbeat_true_is_an_option_and_stays_an_argument_as_in_1_x(
    value: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(name="job", func=body, interval=1, heartbeat=value)
    assert task.heartbeat == (Heartbeat() if value else False)
    assert task.extra_args == {"heartbeat": value}
    assert not caplog.messages


def test_heartbeat_true_is_an_argument_of_an_instance() -> None:
    template = Task(name="job", func=body, dynamic=True)
    assert template.instantiate("a", interval=1, heartbeat=True).extra_args == {"heartbeat": True}


@pytest.mark.parametrize("option", [{"retry": Retry()}, {"timeout": SECOND}])
def test_an_instance_cannot_have_them(option: dict[str, Any]) -> None:
    template = Task(name="job", func=body, dynamic=True)
    with pytest.raises(TypeError, match="is an option of the template 'job'"):
        template.instantiate("a", interval=1, **option)


def test_catching_up_with_the_latest_is_fast_forward() -> None:
    task = Task(name="job", func=body, interval=1, catch_up=CatchUp.LATEST)
    assert task.fast_forward
    assert not Task(name="job", func=body, interval=1, catch_up=CatchUp.ALL).fast_forward
