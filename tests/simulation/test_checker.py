"""The checker itself: histories written by hand, that it lets pass or not."""

from __future__ import annotations

import pytest
from tests.simulation.checker import Promise, check
from tests.simulation.history import EPOCH, Event, History
from tests.simulation.plan import Plan, TaskPlan

PLAN = Plan(0, "rough", 10.0, tasks=(TaskPlan("d0", dynamic=True),))


def history(*events: tuple[float, str, dict[str, object]]) -> History:
    made = History()
    for time, kind, details in events:
        made.note(Event(time, EPOCH + round(time * 1e6), "w", kind, "d0/i0", details))
    return made


def claimed(time: float, token: str) -> tuple[float, str, dict[str, object]]:
    return time, "claimed", {"token": token, "was": "scheduled", "was_due": EPOCH, "lease_end": 0}


def start(time: float, call: int, token: str) -> tuple[float, str, dict[str, object]]:
    details = {"run": time, "call": call, "planned": EPOCH, "attempt": 1, "manner": "return"}
    return time, "start", {**details, "token": token}


def scheduled(time: float, call: int) -> list[tuple[float, str, dict[str, object]]]:
    asked: dict[str, object] = {"call": call, "at": EPOCH}
    return [(time, "schedule…", asked), (time + 0.1, "schedule", {"call": call, "answer": "ok"})]


@pytest.mark.parametrize("again", [False, True])
def test_a_run_belongs_to_its_own_claim_also_if_a_later_one_began_before_it(again: bool) -> None:
    # The first run had to extend its lease before it began, and the answer took its time.
    events = [
        *scheduled(1.0, 1),
        claimed(2.0, "a"),
        *scheduled(3.0, 2),
        claimed(4.0, "b"),
        start(4.1, 2, "b"),
        start(4.2, 1, "b" if again else "a"),
    ]
    found = [violation.promise for violation in check(PLAN, history(*events))]
    assert (Promise.UNSCHEDULED in found) is again
