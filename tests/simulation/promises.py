"""What is promised, and what is seen of it in a history."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from tests.simulation.history import Event
from tests.simulation.world import LATE_MAX_S

SECOND: Final = 1_000_000


class Promise(StrEnum):
    """What is promised."""

    NOT_EARLY = "nothing starts before it is planned, by the clock of the store"
    LEASE_RESPECTED = "a lease that is alive is not taken over"
    IN_LEASE = "a body starts only while its lease holds"
    AT_MOST_ONCE = "an at-most-once occurrence never starts twice"
    AT_LEAST_ONCE = "every occurrence that is not taken away is run to its end"
    ON_GRID = "an interval does not drift, and skips nothing"
    UNSCHEDULED = "what was unscheduled or replaced is claimed no more"
    GONE = "what was unscheduled, or is done, is gone"
    OUTCOME = "a failure leads to what its failure mode says"
    ONCE_WHEN_CALM = "without a fault, every occurrence is run once"
    PUNCTUAL = "without a fault, a due record starts at once"
    SOONER = "what was scheduled runs at its time, or at the sooner one that it had"
    RESTS = "what is paused starts nothing"
    TRIGGERED = "what is triggered runs once more, and no more than that"
    CLOSES = "closing ends in time"
    RETURNS = "run() returns soon after shutdown()"
    CANCELLED = "who cancels a worker cancels what runs in it"
    FIXTURES = "fixtures outlive the bodies that use them"
    SILENT_AFTER = "nothing of a closed worker runs"
    NO_STRAYS = "no task is left behind, and no exception is lost"
    HEALTHY = "a worker lives until it is told to stop"
    FRUGAL = "the number of calls to the store is bounded"
    FRESH = "last_tick is fresh"
    AGAIN = "a body that outlives its lease is started again when the lease ends"
    LIMITED = "a task runs no more often at once in a worker than its limit says"
    ALONE = "a large write travels alone, and few of them at once"
    BEHIND = "what is minutes behind is said to be, and that it has caught up"
    APART = "runs do not see each other, nor who called first"
    CONTRACT = "the contract of the store is kept"
    ATTEMPTS = "an occurrence is started at most as often as its policy says"
    TRACE = "an occurrence is never dropped without a trace"
    KEPT = "what is parked starts nothing until a user asks for it"
    BACKOFF = "a retry waits as long as its policy says"
    TIMEOUT = "a body that takes too long is cancelled"
    BEATS = "a body that sends heartbeats keeps its lease"
    IN_GRACE = "what is too late is not started"
    OVERLAP = "what comes due while the record runs is skipped"
    COUNTED = "what was not run is counted"
    PLANNED = "a schedule plans its own instants, and all of them"
    SPREAD = "jitter spreads the runs, and no further than it says"
    BOUNDED = "after its end, a schedule is gone or finished"
    OWNED = "a shared partition is claimed from by one worker, while none comes or goes"
    SEEN = "all workers that run are listed, and no other"
    ONE_PLACE = "an instance lies in one partition only"
    ANSWERED = "every call of a user is answered"
    ENDS = "the simulation ends"


class Violation(NamedTuple):
    """A promise that did not hold."""

    promise: Promise
    time: float
    what: str

    def __str__(self) -> str:
        return f"{self.time:.4f}  {self.promise}: {self.what}"


class Run(NamedTuple):
    """An execution of a body."""

    start: Event
    end: Event | None

    @property
    def occurrence(self) -> int:
        return int(self.start.details["planned"])

    @property
    def call(self) -> int:
        return int(self.start.details["call"])

    def claim(self, claims: Iterable[Event]) -> Event | None:
        """The claim that it came from, of those of its record.

        Not simply the last one of its process before it: a run whose lease had to be extended
        first may begin after one that was claimed later.
        """
        mine = [
            claim
            for claim in claims
            if claim.process == self.start.process
            and claim.time <= self.start.time
            and claim.details["token"] == self.start.details["token"]
        ]
        return mine[-1] if mine else None

    @property
    def triggered(self) -> bool:
        """Whether a user has asked for this run, and no schedule."""
        return bool(self.start.details.get("triggered"))


class Call(NamedTuple):
    """A call of a user, or of a body."""

    begun: Event
    ended: Event | None

    @property
    def number(self) -> int:
        return int(self.begun.details["call"])

    @property
    def what(self) -> str:
        return self.begun.kind.rstrip("…")

    @property
    def answer(self) -> str:
        return "?" if self.ended is None else str(self.ended.details["answer"])

    @property
    def over(self) -> float:
        """When it can have no effect any more."""
        if self.ended is None:
            return float("inf")
        if self.answer not in ("?", "unknown"):
            return self.ended.time
        return self.ended.time + LATE_MAX_S + 12
