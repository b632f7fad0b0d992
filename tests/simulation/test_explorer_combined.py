"""Options in any combination, against the model: scenarios that nobody has thought of."""

from __future__ import annotations

import os
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.explorer import Explorer
from tests.simulation.model import Ask
from tests.simulation.workers import Scenario, at, every

from pyncette.model import Exhausted, FailureMode
from pyncette.schedule import Schedule
from pyncette.store.record import STATIC_GROUP

pytestmark = pytest.mark.exhaustive

DEEPER = int(os.environ.get("PYNCETTE_TEST_EXPLORER_DEEPER", "0"))
"""So many times ten times as many examples as usual, and others each time."""

ALWAYS = (Ask.PAUSE, Ask.PAUSE_UNTIL, Ask.RESUME, Ask.TRIGGER)
OF_INSTANCES = (*ALWAYS, Ask.SOONER, Ask.REPLACE, Ask.FORCE, Ask.UNSCHEDULE)
OF_STATIC_TASKS = (*ALWAYS, Ask.REPLAN)


INTERVALS = st.integers(1, 4).map(every)
ONCE = st.integers(1, 5).map(at)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A scenario whose options do not contradict each other."""
    static = draw(st.booleans())
    at_most_once = draw(st.booleans())
    schedule: Schedule = draw(INTERVALS if static else st.one_of(ONCE, INTERVALS))
    attempts = None if at_most_once else draw(st.none() | st.integers(1, 3))
    plain = attempts is None and not at_most_once
    asks = draw(st.sets(st.sampled_from(OF_STATIC_TASKS if static else OF_INSTANCES), min_size=1))
    exhausted = None
    if attempts is not None:
        exhausted = draw(st.sampled_from((None, *Exhausted)))
        asks |= draw(st.sets(st.just(Ask.RERUN)))
    grace = draw(st.none() | st.integers(0, 3))
    if grace is not None:
        asks -= {Ask.REPLAN}  # the model does not know which of two schedules was skipped
        asks |= {Ask.PAUSE}
    if grace is None and attempts is None and draw(st.booleans()):
        schedule = schedule.with_jitter(timedelta(microseconds=draw(st.integers(1, 4))))
    begin = draw(st.integers(1, 6))
    return Scenario(
        schedule,
        begin=begin,
        end=begin + draw(st.integers(4, 12)),
        depth=0,
        workers=draw(st.integers(1, 3)),
        asks=tuple(sorted(asks)),
        asks_max=draw(st.integers(1, 6)),
        faults_max=draw(st.integers(0, 5)),
        outcomes=(True,) if at_most_once else draw(st.sampled_from(((True,), (True, False)))),
        at_most_once=at_most_once,
        fast_forward=draw(st.booleans()),
        failure_mode=draw(st.sampled_from(FailureMode)) if plain else FailureMode.NONE,
        attempts=attempts,
        exhausted=exhausted,
        misfire_grace=grace,
        asked_plan=draw(st.none() | st.integers(1, 4)),
        lease=draw(st.integers(1, 3)),
        heartbeats=not at_most_once and draw(st.booleans()),
        gives_back=draw(st.booleans()),
        lagging=draw(st.booleans()),
        group=STATIC_GROUP if static else "g",
    )


# The same examples each time, unless it looks deeper: the model may not know of each combination.
@settings(max_examples=60 * (1 + 10 * DEEPER), derandomize=not DEEPER, deadline=None)
@given(scenarios(), st.integers(0, 1 << 32))
def test_no_history_of_any_combination_of_options_breaks_a_promise(
    scenario: Scenario, seed: int
) -> None:
    explorer = Explorer(scenario)
    random = Random(seed)
    for _ in range(4):
        report = explorer.wander(random, 40)
        assert report.violation is None, "\n".join(report.trace)
