"""The checker itself: histories written by hand, that it lets pass or not."""

from __future__ import annotations

from typing import Final

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


SHARED: Final = TaskPlan("d0", dynamic=True, lease_s=2.0, partitions=4, shared=True)


@pytest.mark.parametrize(
    ("claims", "broken"),
    [
        ("a1 a2 a3", False),
        ("a1 b2 a3", True),
        ("a1 b9 a2", False),  # what is late may be claimed by any worker
        ("b9 a1 a2", False),
        ("a1 b9 b2", True),  # but does not become its own
    ],
)
def test_a_record_has_one_owner_and_others_claim_it_only_when_it_is_late(
    claims: str, broken: bool
) -> None:
    made = History()
    for number, claim in enumerate(claims.split()):
        process, late = claim[0], claim[1]
        time = 20.0 + number
        due = EPOCH + round((time - int(late) / 4) * 1e6)
        details = {"token": f"{process}{number}", "was": "scheduled", "was_due": due}
        at = EPOCH + round(time * 1e6)
        made.note(Event(time, at, process, "claimed", "d0/i0", {**details, "lease_end": 0}))
    plan = Plan(0, "calm", 40.0, tasks=(SHARED,))
    found = [violation.promise for violation in check(plan, made)]
    assert (Promise.OWNED in found) is broken
