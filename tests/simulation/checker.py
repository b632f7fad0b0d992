"""The promises, held against a history.

Knows what is promised to users (and that a claim is a lease in the store), and nothing of how the
engine keeps it. A promise that does not hold is a ``Violation``; what the faults of a plan excuse
is not one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.simulation.history import Event, History
from tests.simulation.plan import Death, Kind, Manner, Plan, TaskPlan, What
from tests.simulation.powered import Known, powered
from tests.simulation.promises import SECOND, Call, Promise, Run, Violation

from pyncette import FailureMode

__all__ = ["Checker", "Promise", "Violation", "check"]

BEHIND_S: Final = 60.0
"""What is later than this is behind."""

MEMBER_LEASE_MIN_S: Final = 2.0
"""The shortest time for which a worker counts as alive after it has told of itself."""

_SHUTDOWNS: Final = (Death.SHUTDOWN, Death.CANCEL_CLOSING)

_CANCELS: Final = (Death.CANCEL, Death.CANCEL_TWICE, "cancel while it closes")
"""What the main of a program learns of, as ``CancelledError``."""


class Checker:
    """Holds the promises against one history."""

    def __init__(self, plan: Plan, history: History) -> None:
        self._plan = plan
        self._events = history.events
        self._runs: dict[str, list[Run]] = defaultdict(list)
        self._claims: dict[str, list[Event]] = defaultdict(list)
        self._writes: dict[str, list[Event]] = defaultdict(list)
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._steers: dict[str, list[Call]] = defaultdict(list)
        self._kinds: dict[str, list[Event]] = defaultdict(list)
        ends = {
            event.details["run"]: event
            for event in self._events
            if event.kind in ("end", "raise", "cancelled")
        }
        answers = {
            event.details["call"]: event for event in self._events if "answer" in event.details
        }
        for event in self._events:
            self._kinds[event.kind].append(event)
            if event.kind == "start":
                run = Run(event, ends.get(event.details["run"]))
                self._runs[event.subject].append(run)
            elif event.kind == "claimed":
                self._claims[event.subject].append(event)
            elif event.kind == "written":
                self._writes[event.subject].append(event)
            elif event.kind.endswith("…"):
                answer = answers.get(event.details["call"])
                steers = What(event.kind.rstrip("…")).steers
                calls = self._steers if steers else self._calls
                calls[event.subject].append(Call(event, answer))
        closing = self._kinds["closing"]
        self._counted = closing[0].time if closing else plan.end
        self._counted_store = closing[0].store_time if closing else 0
        self._frozen = [fault for fault in plan.faults if fault.kind is Kind.FREEZE]
        self._stepped = any(fault.kind is Kind.STEP_STORE for fault in plan.faults) or (
            not plan.store_clock and any(fault.kind is Kind.STEP_WALL for fault in plan.faults)
        )
        self._steps_back = [
            fault.start
            for fault in plan.faults
            if self._stepped
            and fault.strength < 0
            and fault.kind in (Kind.STEP_STORE, Kind.STEP_WALL)
        ]
        self._edited = {
            f"{task.name}/{fault.only}"
            for task in plan.tasks
            for fault in plan.faults
            if fault.kind is Kind.EDIT
            and not any(
                action.instance == fault.only and action.at > fault.end for action in plan.actions
            )
        }
        self._restored = any(fault.kind is Kind.RESTORE for fault in plan.faults)
        self._calm = not plan.faults and all(
            life.how is Death.SHUTDOWN for life in plan.lives if life.end is not None
        )
        self._calm = self._calm and not self._kinds["crash"] and not plan.bytes_per_s

    def violations(self) -> list[Violation]:
        """All that did not hold, in the order in which it came about."""
        found = [
            *self._simple(),
            *self._contract(),
            *self._life(),
            *self._cancelled(),
            *self._frugal(),
            *self._limits(),
            *self._members(),
        ]
        if not self._stepped:
            found += self._time()
        for subject in {**self._runs, **self._calls}:
            task = self._task(subject)
            if task is not None and subject not in self._edited:
                found += self._record(subject, task)
        return sorted(found, key=lambda violation: violation.time)

    def _task(self, subject: str) -> TaskPlan | None:
        name = subject.partition("/")[0]
        versions = [task for task in self._plan.tasks if task.name == name]
        # Of several versions, the one that is left at the end.
        versions.sort(key=lambda task: not "last".startswith(task.declared_by))
        return versions[0] if versions else None

    # What must never be seen.

    def _simple(self) -> Iterator[Violation]:
        for kind, promise in (
            ("broken contract", Promise.CONTRACT),
            ("unretrieved", Promise.NO_STRAYS),
            ("unhandled", Promise.NO_STRAYS),
            ("left behind", Promise.NO_STRAYS),
            ("crossed", Promise.APART),
            ("never closed", Promise.CLOSES),
            ("crowded", Promise.ALONE),
            ("stuck", Promise.ENDS),
            ("two places", Promise.ONE_PLACE),
        ):
            for event in self._kinds[kind]:
                yield Violation(promise, event.time, event.line().strip())
        for calls in (*self._calls.values(), *self._steers.values()):
            for call in calls:
                if call.answer.startswith("error"):
                    yield Violation(Promise.ANSWERED, call.begun.time, call.begun.line().strip())
                crashed = self._crashed(call.begun.process)
                if call.ended is None and crashed is None:
                    yield Violation(Promise.ANSWERED, call.begun.time, call.begun.line().strip())
        for event in self._kinds["last tick"]:
            if not -1.0 <= event.details["age"] <= 2 * self._plan.poll_s + 1:
                yield Violation(Promise.FRESH, event.time, event.line().strip())

    def _crashed(self, process: str) -> float | None:
        for event in self._kinds["crash"]:
            if event.process == process:
                return event.time
        return None

    def _contract(self) -> Iterator[Violation]:
        closed: dict[str, float] = {}
        undone: set[str] = set()
        for event in self._events:
            if event.kind == "fixture closed":
                undone.add(event.process)
            elif event.process in undone and event.kind in ("start", "end", "raise", "cancelled"):
                yield Violation(Promise.FIXTURES, event.time, event.line().strip())
            if event.kind == "closed":
                closed[event.process] = event.time
            elif event.process in closed and (
                event.kind in ("start", "end", "raise", "cancelled", "heartbeat")
                or (event.kind == "call" and event.subject in ("claim", "now", "watch"))
            ):
                yield Violation(Promise.SILENT_AFTER, event.time, event.line().strip())

    # Life of a worker.

    def _thawed(self, process: str, time: float) -> float:
        """When a process that may be frozen goes on."""
        for fault in self._frozen:
            if fault.process == process and fault.start <= time <= fault.end:
                time = fault.end
        return time

    def _life(self) -> Iterator[Violation]:
        told: dict[str, Event] = {}
        crashed = {event.process for event in self._kinds["crash"]}
        processes = {event.process for event in self._kinds["opening"]}
        by_process: dict[str, list[Event]] = defaultdict(list)
        for event in self._events:
            by_process[event.process].append(event)
        for process in sorted(processes - crashed):
            events = by_process[process]
            told.clear()
            cancelled = False
            frozen_s = sum(fault.length for fault in self._frozen if fault.process == process)
            bodies = [event for event in events if event.kind in ("end", "raise", "cancelled")]
            for event in events:
                if event.kind == "told to stop":
                    told.setdefault("", event)
                    cancelled = cancelled or event.details["how"] in _CANCELS
                elif event.kind == "run returned":
                    if "" not in told:
                        yield Violation(Promise.HEALTHY, event.time, f"{process}: run() returned")
                    elif not self._plan.synchronous and told[""].details["how"] in _SHUTDOWNS:
                        took = event.time - told[""].time - frozen_s
                        # A store call that is under way may take its deadline.
                        if took > (0.1 + 12 * self._plan.latency_s if self._calm else 24):
                            yield Violation(
                                Promise.RETURNS, event.time, f"{process}: after {took:.1f} s"
                            )
                elif event.kind == "closed":
                    how = str(event.details["how"])
                    if how not in ("cancelled", "'ok'", "ok") or "" not in told:
                        yield Violation(Promise.HEALTHY, event.time, event.line().strip())
                    if how == "cancelled" and "" in told and told[""].details["how"] == "shutdown":
                        yield Violation(Promise.HEALTHY, event.time, event.line().strip())
                    # Run in the loop's own task, a body may swallow what was meant for that.
                    if how != "cancelled" and cancelled and not self._plan.synchronous:
                        yield Violation(
                            Promise.CANCELLED, event.time, f"{process}: closed as if it were not"
                        )
                    leaving = [other for other in events if other.kind == "leaving"]
                    if leaving:
                        since = (
                            max(leaving[-1].time, *(other.time for other in bodies), 0.0)
                            if bodies
                            else leaving[-1].time
                        )
                        took = event.time - since - frozen_s
                        if took > (1.0 if self._calm else 35):
                            yield Violation(
                                Promise.CLOSES, event.time, f"{process}: after {took:.1f} s"
                            )

    def _cancelled(self) -> Iterator[Violation]:
        told = {
            event.process: event.time
            for event in self._kinds["told to stop"]
            if event.details["how"].startswith("cancel")
        }
        for subject, runs in self._runs.items():
            for run in runs:
                start = run.start
                since = told.get(start.process)
                if since is None:
                    continue
                if start.time > since:
                    if start.time > self._thawed(start.process, since) + 0.5 and not (
                        self._plan.synchronous
                    ):
                        yield Violation(
                            Promise.CANCELLED,
                            start.time,
                            f"{subject} starts at {start.process}, cancelled at {since:.4f}",
                        )
                    continue
                since = self._thawed(start.process, since)
                if since + 1.0 < self._thawed(start.process, since + 1.0):
                    continue
                ended = self._counted if run.end is None else run.end.time
                slow = start.details["manner"] in ("swallow cancellation", "kill its process")
                if ended > since + (2.0 if slow else 0.5):
                    crashed = self._crashed(start.process)
                    if crashed is None:
                        yield Violation(
                            Promise.CANCELLED,
                            since,
                            f"{subject} at {start.process} goes on until {ended:.4f}",
                        )

    # Calls.

    def _frugal(self) -> Iterator[Violation]:
        calls: Counter[tuple[str, int]] = Counter()
        work: Counter[int] = Counter()
        waits: Counter[int] = Counter()
        for event in self._events:
            second = int(event.time)
            if event.kind == "call":
                calls[event.process, second] += 1
            elif event.kind in ("start", "heartbeat", "lease lost"):
                work[second] += 1
            elif event.kind.endswith("…"):
                work[second] += 1
                task = self._task(event.subject)
                # A caller looks again and again, for a second at most, until it has moved on.
                waits[second] += task is not None and task.at_most_once
        for (process, second), number in calls.items():
            busy = sum(work[second + delta] for delta in (-1, 0, 1))
            waiting = sum(waits[second + delta] for delta in (-2, -1, 0))
            if number > 60 + 10 / self._plan.poll_s + 6 * busy + 200 * waiting:
                yield Violation(
                    Promise.FRUGAL, second, f"{process}: {number} calls in a second, work {busy}"
                )

    # Workers that know each other.

    def _members(self) -> Iterator[Violation]:
        if not self._calm:
            return
        told = {event.process: event.time for event in self._kinds["told to stop"]}
        for event in self._kinds["workers"]:
            running = sorted(
                other.process
                for other in self._kinds["opened"]
                if other.process != "users" and told.get(other.process, event.time) >= event.time
            )
            if event.details["names"] != running:
                yield Violation(
                    Promise.SEEN, event.time, f"{event.details['names']}, not {running}"
                )
        changes = [
            event.time
            for kind in ("opened", "told to stop", "leaving")
            for event in self._kinds[kind]
            if event.process != "users"
        ]
        shared = [task for task in self._plan.tasks if task.shared and task.dynamic]
        for subject, claims in self._claims.items():
            task = self._task(subject)
            if task not in shared:
                continue
            # Each worker tells of itself three times per lease, the shortest of all it shares.
            lease_s = max(min(task.lease_s for task in shared), MEMBER_LEASE_MIN_S)
            known_s = lease_s / 3 + self._plan.poll_s + 1
            late = 2 * self._plan.poll_s * SECOND
            # What is late may be claimed by any worker; then its owner claims it again.
            punctual = [
                claim
                for claim in claims
                if (due := claim.details["was_due"]) is not None and claim.store_time < due + late
            ]
            for first, second in pairwise(punctual):
                if first.process != second.process and not any(
                    first.time - known_s <= at <= second.time for at in changes
                ):
                    where = f"{subject} is claimed by {first.process} and by {second.process}"
                    yield Violation(Promise.OWNED, second.time, where)

    # Time.

    def _time(self) -> Iterator[Violation]:
        for subject, claims in self._claims.items():
            for claim in claims if subject not in self._edited else ():
                was_due = claim.details["was_due"]
                if was_due is not None and was_due > claim.store_time + 1:
                    promise = (
                        Promise.LEASE_RESPECTED
                        if claim.details["was"] == "running"
                        else Promise.NOT_EARLY
                    )
                    ahead = (was_due - claim.store_time) / SECOND
                    yield Violation(
                        promise,
                        claim.time,
                        f"{subject} is claimed by {claim.process} {ahead:.6f} s early",
                    )
        for subject, runs in self._runs.items():
            task = self._task(subject)
            for run in runs if subject not in self._edited else ():
                start = run.start
                if run.occurrence > start.store_time:
                    early = (run.occurrence - start.store_time) / SECOND
                    yield Violation(
                        Promise.NOT_EARLY, start.time, f"{subject} starts {early:.6f} s early"
                    )
                own = self._claim_of(run)
                if own is None:
                    yield Violation(
                        Promise.CONTRACT, start.time, f"{subject} starts without a claim"
                    )
                elif (
                    task is not None
                    and not task.at_most_once
                    and start.store_time
                    > self._lease_end(own, run) + SECOND * task.lease_s * 0.001 + 1
                ):
                    late = (start.store_time - self._lease_end(own, run)) / SECOND
                    yield Violation(
                        Promise.IN_LEASE,
                        start.time,
                        f"{subject} starts at {start.process} {late:.6f} s after its lease",
                    )

    def _claim_of(self, run: Run) -> Event | None:
        """The claim that a run came from."""
        return run.claim(self._claims[run.start.subject])

    def _lease_end(self, claim: Event, run: Run) -> int:
        """The end of the lease at the start of the body: it may have been extended before."""
        end = int(claim.details["lease_end"])
        for event in self._writes[claim.subject]:
            if (
                claim.time <= event.time <= run.start.time
                and event.process == claim.process
                and event.details["was_token"] == claim.details["token"]
                and event.details["state"] == "running"
            ):
                end = max(end, int(event.details["due"] or 0))
        return end

    # One record.

    def _record(self, subject: str, task: TaskPlan) -> Iterator[Violation]:
        runs = self._runs[subject]
        if task.powers is not None:
            if not self._restored:
                yield from self._superseded(subject, runs)
                yield from self._paused(subject, task, runs)
                yield from powered(self._known(subject, task, runs))
            return
        if task.at_most_once and not self._restored:
            seen: dict[tuple[int, int], Run] = {}
            for run in runs:
                first = seen.setdefault((run.call, run.occurrence), run)
                if first is not run:
                    yield Violation(
                        Promise.AT_MOST_ONCE,
                        run.start.time,
                        f"{subject} of call {run.call} starts again at {run.start.process}, "
                        f"after {first.start.process} at {first.start.time:.4f}",
                    )
        if not self._restored:
            yield from self._superseded(subject, runs)
            yield from self._complete(subject, task, [run for run in runs if not run.triggered])
            yield from self._paused(subject, task, runs)
            yield from self._triggered(subject, task, runs)
        longest = max(
            ((self._counted if run.end is None else run.end.time) - run.start.time for run in runs),
            default=0.0,
        )
        # A pause and a run that was asked for move what comes after them.
        if self._steered(subject):
            return
        if self._calm and not task.at_most_once:
            yield from self._outlived(subject, task, runs)
        if self._calm:
            yield from self._economy(subject, task, runs)
            yield from self._behind(subject, task, runs)
        if self._calm and longest < task.lease_s - 0.1 - 12 * self._plan.latency_s:
            yield from self._calm_record(subject, task, runs)
            if task.dynamic:
                yield from self._sooner(subject, task, runs)

    def _known(self, subject: str, task: TaskPlan, runs: list[Run]) -> Known:
        record = [event for event in self._kinds["record"] if event.subject == subject]
        return Known(
            self._plan,
            subject,
            task,
            runs,
            self._claims[subject],
            self._writes[subject],
            self._calls[subject],
            self._steered(subject),
            record[0] if record else None,
            self._counted,
            self._counted_store,
            self._stepped,
            self._calm,
            {event.process: event.time for event in self._kinds["crash"]},
            {event.process: event.time for event in reversed(self._kinds["told to stop"])},
        )

    def _superseded(self, subject: str, runs: list[Run]) -> Iterator[Violation]:
        """Nothing of a call is claimed once a later one was acknowledged."""
        calls = self._calls[subject]
        by_number = {call.number: call for call in calls}
        for run in runs:
            mine, claim = by_number.get(run.call), self._claim_of(run)
            if mine is None or claim is None:
                continue
            for other in calls:
                if (
                    other.answer == "ok"
                    and other.ended is not None
                    # A replacement waits for the end of a run, also where another worker begins
                    # that again.
                    and (other.what != What.REPLACE or self._calm)
                    and other.begun.time > mine.over
                    and claim.time > other.ended.time
                ):
                    yield Violation(
                        Promise.UNSCHEDULED,
                        run.start.time,
                        f"{subject} of call {run.call} is claimed at {claim.time:.4f} after "
                        f"{other.what} {other.number} was acknowledged at {other.ended.time:.4f}",
                    )
                    break

    def _steered(self, subject: str) -> list[Call]:
        """The calls that steer a record, or its whole template."""
        template = subject.partition("/")[0]
        whole = self._steers[template] if template != subject else []
        return [*self._steers[subject], *whole]

    def _paused(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """Nothing of it starts between a pause and what ends it."""
        if self._stepped:
            return
        others = [*self._calls[subject], *self._steered(subject)]
        for pause in self._steered(subject):
            if pause.what != What.PAUSE or pause.answer != "ok" or pause.ended is None:
                continue
            since, until = pause.ended.time, self._counted
            whole = pause.begun.subject != subject
            if whole:
                # Whoever has not heard of it looks within a poll interval.
                since += self._plan.poll_s + (0.1 + 12 * self._plan.latency_s if self._calm else 24)
            end = pause.begun.details.get("at")
            if end is not None:
                until = min(until, pause.ended.time + (end - pause.ended.store_time) / SECOND - 0.1)
            if any(other.begun.time <= pause.ended.time < other.over for other in others):
                continue  # which of them came first is not known
            for other in others:
                ends = other.what in (What.RESUME, What.PAUSE) or not whole
                # Anything else leaves the pause of a whole template alone.
                if ends and other is not pause and other.begun.time > pause.ended.time:
                    until = min(until, other.begun.time)
            if not whole and not self._calm and self._ran_at(subject, pause.ended.time):
                continue  # should its worker die, the run is begun again before it rests
            begun = {
                (run.call, run.occurrence) for run in runs if run.start.time <= pause.ended.time
            }
            held = {
                event.details["token"]
                for event in self._claims[subject]
                if event.time <= pause.ended.time
            }
            # What was triggered while it ran comes first.
            ran = not whole and self._ran_at(subject, pause.ended.time)
            for run in runs:
                if ran and run.triggered:
                    continue
                claim = self._claim_of(run)
                if (
                    since < run.start.time < until
                    and (claim is None or whole or claim.details["token"] not in held)
                    and (whole or (run.call, run.occurrence) not in begun)
                ):
                    yield Violation(
                        Promise.RESTS,
                        run.start.time,
                        f"{subject} starts although call {pause.number} has paused it at "
                        f"{pause.ended.time:.4f}",
                    )
                    break

    def _ran_at(self, subject: str, time: float) -> bool:
        """Whether the record was claimed, and not settled, at that time."""
        events = [*self._claims[subject], *self._writes[subject]]
        last = max(
            (event for event in events if event.time <= time),
            key=lambda event: event.time,
            default=None,
        )
        return last is not None and (
            last.kind == "claimed" or last.details.get("state") == "running"
        )

    def _triggered(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """Each run that was asked for was asked for, and is there."""
        asked = [call for call in self._steered(subject) if call.what == What.TRIGGER]
        mine = [run for run in runs if run.triggered]
        occurrences = {(run.call, run.occurrence) for run in mine}
        if len({occurrence for _, occurrence in occurrences}) > len(asked):
            yield Violation(
                Promise.TRIGGERED,
                mine[-1].start.time,
                f"{subject} was triggered {len(asked)} times, and ran for {sorted(occurrences)}",
            )
        if not self._calm or self._may_wait(task):
            return
        slack = 0.1 + 12 * self._plan.latency_s
        others = [*self._calls[subject], *self._steered(subject)]
        for call in asked:
            if call.answer != "ok" or call.ended is None or call.begun.subject != subject:
                continue
            if not call.ended.details.get("added"):
                continue
            due = call.ended.time
            before = call.begun.time - task.lease_s - self._plan.poll_s - 1
            for run in runs:
                if run.start.time <= due + slack and run.end is not None:
                    due = max(due, run.end.time)
            until = due + slack
            disturbed = until > self._counted or any(
                other is not call
                and (other.what == What.PAUSE or other.over > before)
                and other.begun.time < until
                for other in others
            )
            failed = any(
                run.end is None or run.end.kind != "end"
                for run in runs
                if before < run.start.time < until
            )
            if disturbed or failed or not self._served(call.begun.time, until):
                continue
            ran = [
                run
                for run in mine
                if call.begun.store_time - SECOND <= run.occurrence <= call.ended.store_time
                and run.start.time <= until + self._left(call.begun.time) + self._owner_s(task)
            ]
            if len(ran) != 1:
                yield Violation(
                    Promise.TRIGGERED,
                    until,
                    f"{subject} was triggered by call {call.number} and ran {len(ran)} times",
                )

    def _done(self, task: TaskPlan, run: Run) -> bool:
        """Whether the occurrence of this run counts as done."""
        if run.end is None:
            return False
        if run.end.kind == "end" or task.at_most_once:
            return True
        return run.end.kind in ("raise", "cancelled") and task.failure_mode is FailureMode.COMMIT

    def _complete(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        by_call: dict[int, list[Run]] = defaultdict(list)
        for run in runs:
            by_call[run.call].append(run)
        calls = {call.number: call for call in self._calls[subject]}
        for number, mine in by_call.items():
            interval = task.interval_s
            if task.dynamic:
                call = calls.get(number)
                if call is None:
                    yield Violation(
                        Promise.CONTRACT, mine[0].start.time, f"{subject}: call {number}?"
                    )
                    continue
                interval = call.begun.details.get("interval", 0.0)
            yield from self._grid(subject, task, mine, interval, number)
        last = self._last_call(subject) if task.dynamic else None
        if not "last".startswith(task.declared_by) or (task.lease_s > 60 and self._leased(subject)):
            return
        if not task.dynamic:
            yield from self._still_runs(subject, task, by_call.get(0, []), task.interval_s, 0)
        elif last is not None:
            yield from self._last(subject, task, last, by_call.get(last.number, []))

    def _grid(
        self, subject: str, task: TaskPlan, runs: list[Run], interval: float, number: int
    ) -> Iterator[Violation]:
        versions = [other for other in self._plan.tasks if other.name == task.name]
        if len(versions) > 1:
            # Each version plans for itself, but their starts must not put a run off for ever.
            longest = 2 * max(version.interval_s for version in versions) + 2
            opened = min(event.time for event in self._kinds["opened"])
            times = [opened, *(run.start.time for run in runs), self._counted]
            for before, after in pairwise(times):
                if after - before > longest:
                    yield Violation(
                        Promise.AT_LEAST_ONCE,
                        after,
                        f"{subject} was not run for {after - before:.1f} s, whatever its version",
                    )
            return
        occurrences = sorted({run.occurrence for run in runs})
        step = round(interval * SECOND)
        if not step:
            if len(occurrences) > 1:
                yield Violation(
                    Promise.ON_GRID,
                    runs[-1].start.time,
                    f"{subject}: the one-off of call {number} has occurrences {occurrences}",
                )
            return
        for before, after in pairwise(occurrences):
            distance = after - before
            # A clock that was wrong has planned it, and the plan was mended.
            whole = distance % step == 0 or self._stepped
            # With fast_forward occurrences collapse; one that is at most once may be lost.
            if not whole or (
                distance != step
                and not task.fast_forward
                and not (task.at_most_once and not self._calm)
                and not self._stepped
            ):
                time = min(run.start.time for run in runs if run.occurrence == after)
                yield Violation(
                    Promise.ON_GRID,
                    time,
                    f"{subject} of call {number}: {distance / SECOND:.6f} s between two "
                    f"occurrences, the interval is {interval} s",
                )
        # A plan that was mended takes the place of what was in hand.
        if task.at_most_once or self._steps_back:
            return
        done = {run.occurrence for run in runs if self._done(task, run)}
        for occurrence in occurrences[:-1]:
            if occurrence not in done:
                begun = [run.start.time for run in runs if run.occurrence == occurrence]
                yield Violation(
                    Promise.AT_LEAST_ONCE,
                    self._counted,
                    f"{subject} of call {number}: an occurrence was begun, never ended, and "
                    f"the next one ran: {begun}",
                )

    def _leased(self, subject: str) -> bool:
        """Whether a lease still holds at the end."""
        return any(
            event.subject == subject
            and event.details["state"] == "running"
            and event.details["due"] > self._counted_store
            for event in self._kinds["record"]
        )

    def _late_by_a_step(self, subject: str) -> bool:
        """Whether a lease or a retry ends late, because it began before a step was noticed.

        The step is measured within ten seconds and a poll, if the store answers.
        """
        states = {"running", "retrying"}
        if any(call.what == What.TRIGGER for call in self._steered(subject)):
            states.add("scheduled")  # for the instant at which it was triggered
        if not any(
            event.subject == subject
            # What is behind waits between two runs, from the instant at which one ended.
            and (event.details["state"] in states or self._paced(event))
            and event.details["due"] > self._counted_store
            for event in self._kinds["record"]
        ):
            return False
        events = (*self._claims[subject], *self._writes[subject])
        given = max(event.time for event in events)
        noticed_s = 12.0 + self._plan.poll_s
        return any(given - noticed_s <= step for step in self._steps_back)

    def _is_excused_by_a_step(self, subject: str) -> bool:
        """Whether a static task may be late by a step.

        It may not if all workers from before the step had crashed when another one started: this
        one has seen what they had left.
        """
        if not self._late_by_a_step(subject):
            return False
        step = max(self._steps_back)
        before = [life for life in self._plan.lives if life.start <= step]
        after = max((life.start for life in self._plan.lives if life.start > step), default=None)
        return after is None or not all(
            life.how is Death.CRASH and life.end is not None and life.end < after for life in before
        )

    def _paced(self, record: Event) -> bool:
        planned = record.details.get("planned")
        return (
            record.details["state"] == "scheduled"
            and planned is not None
            and record.details["due"] > planned
        )

    def _last_call(self, subject: str) -> Call | None:
        """The call that has the last word about a record, if there is one."""
        calls = [call for call in self._calls[subject] if call.answer != "locked"]
        for call in calls:
            if call.answer != "ok" or call.begun.time > self._counted - 5:
                continue
            if all(other is call or other.over < call.begun.time for other in calls):
                return call
        return None

    def _last(
        self, subject: str, task: TaskPlan, call: Call, runs: list[Run]
    ) -> Iterator[Violation]:
        there = {event.subject for event in self._kinds["record"]}
        if call.what == "unschedule":
            if subject in there:
                yield Violation(
                    Promise.GONE, self._counted, f"{subject} was unscheduled by call {call.number}"
                )
            return
        interval = call.begun.details.get("interval")
        if interval:
            yield from self._still_runs(subject, task, runs, interval, call.number)
            return
        due = int(call.begun.details["at"])
        late_s = 5 + self._owner_s(task)
        if due > self._counted_store - late_s * SECOND or self._late_by_a_step(subject):
            return
        if subject in there:
            yield Violation(
                Promise.GONE, self._counted, f"the one-off {subject} of call {call.number} is there"
            )
        if not any(self._done(task, run) for run in runs) and (self._calm or not task.at_most_once):
            yield Violation(
                Promise.AT_LEAST_ONCE,
                self._counted,
                f"the one-off {subject} of call {call.number} was never run to its end",
            )

    def _still_runs(
        self, subject: str, task: TaskPlan, runs: list[Run], interval: float, number: int
    ) -> Iterator[Violation]:
        # What a wrong clock has planned is planned anew when a worker starts, notices that the
        # clock was set back, or settles it: of static tasks. (Not at most once: what is planned
        # now may have been run by the clock that was ahead.)
        mended = not task.dynamic and not task.at_most_once
        if self._stepped and (not mended or self._is_excused_by_a_step(subject)):
            return
        done = [run for run in runs if self._done(task, run)]
        last = max((run.occurrence for run in done), default=0)
        behind = (self._counted_store - last) / SECOND
        idle = self._counted - max((run.start.time for run in done), default=0.0)
        grace_s = interval + 3 + self._owner_s(task)
        if (behind > grace_s and not self._stepped) or idle > grace_s:
            yield Violation(
                Promise.AT_LEAST_ONCE,
                self._counted,
                f"{subject} of call {number}: its last occurrence that was run lies {behind:.1f} s "
                f"back, and ran {idle:.1f} s ago; the interval is {interval} s",
            )

    # When nothing goes wrong.

    def _economy(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """A plain run costs one write."""
        if 30 * self._plan.latency_s > task.lease_s or any(
            # Of a suspect the lease is extended first.
            "heartbeat" in run.start.details["manner"] or run.start.details["attempt"] > 2
            for run in runs
        ):
            return
        writes = Counter(
            (event.process, event.details["was_token"])
            for event in self._writes[subject]
            if event.details["change"] == "Patch" and event.details["was_token"] is not None
        )
        for claim in self._claims[subject]:
            number = writes[claim.process, claim.details["token"]]
            if number > 1:
                yield Violation(
                    Promise.FRUGAL, claim.time, f"{subject}: {number} writes after one claim"
                )

    def _behind(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """A minute late is told of each run of a static task, and that it has caught up."""
        if task.dynamic or task.fast_forward:
            return
        told = [event for event in self._kinds["behind"] if event.subject == subject]
        for event in told:
            if event.details["count"] and event.details["age"] < BEHIND_S:
                yield Violation(Promise.BEHIND, event.time, f"{event.line().strip()}: too early")
        was_behind = False
        for run in runs:
            start = run.start
            late_s = (start.store_time - run.occurrence) / SECOND
            if BEHIND_S - 1 < late_s < BEHIND_S + 1:
                continue
            near = [
                event
                for event in told
                if event.process == start.process and start.time - 0.2 < event.time <= start.time
            ]
            if late_s > BEHIND_S:
                was_behind = True
                count = int(late_s // task.interval_s) + 1
                if not any(
                    abs(event.details["age"] - late_s) < 0.3
                    and abs(event.details["count"] - count) <= 1
                    for event in near
                ):
                    yield Violation(
                        Promise.BEHIND, start.time, f"{subject} is {late_s:.1f} s late, untold"
                    )
            elif was_behind:
                was_behind = False
                if not any(event.details["count"] == 0 for event in near):
                    yield Violation(Promise.BEHIND, start.time, f"{subject} has caught up, untold")

    def _outlived(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """A lease that ends while its body runs is taken over, once for each lease."""
        slack = 0.1 + 12 * self._plan.latency_s
        for number, run in enumerate(runs):
            if run.start.details["manner"] != Manner.OUTLIVE:
                continue
            again = run.start.time + task.lease_s
            ended = any(
                other.occurrence == run.occurrence
                and other.end is not None
                and other.end.time < again + slack
                for other in runs
            )
            if ended or again + slack > self._counted or not self._served(again, again + slack):
                continue
            until = again + slack + self._owner_s(task)
            if until > self._counted:
                continue
            if not any(again - slack < other.start.time < until for other in runs[number:]):
                yield Violation(
                    Promise.AGAIN, again, f"{subject} is not started again at {again:.4f}"
                )

    def _calm_record(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        plan = self._plan
        slack = 0.1 + 12 * plan.latency_s
        by_number = {call.number: call for call in self._calls[subject]}
        opened = min(event.time for event in self._kinds["opened"] if event.process != "users")
        previous: Run | None = None
        for run in runs:
            start, lease = run.start, task.lease_s
            attempt = start.details["attempt"]
            ready = max(
                start.time - (start.store_time - run.occurrence) / SECOND,
                opened,
                by_number[run.call].over if run.call in by_number else 0.0,
            )
            if attempt > 1:
                failed: Event | None = previous.end if previous is not None else None
                if (
                    previous is None
                    or failed is None
                    or (previous.call, previous.occurrence) != (run.call, run.occurrence)
                ):
                    previous = run
                    continue
                if failed.kind == "end" or task.at_most_once:
                    yield Violation(
                        Promise.ONCE_WHEN_CALM, start.time, f"{subject} runs again though done"
                    )
                elif task.failure_mode is FailureMode.COMMIT:
                    yield Violation(
                        Promise.OUTCOME, start.time, f"{subject} runs again though COMMIT"
                    )
                elif task.failure_mode is FailureMode.UNLOCK:
                    ready = failed.time + plan.poll_s
                else:
                    ready = previous.start.time + lease - slack
                if start.time < ready - 1e-3:
                    yield Violation(
                        Promise.OUTCOME,
                        start.time,
                        f"{subject} is retried {ready - start.time:.4f} s too early",
                    )
                ready += slack
            elif previous is not None and previous.end is not None and not task.at_most_once:
                ready = max(ready, previous.end.time)
                if previous.end.kind != "end" and task.failure_mode is FailureMode.UNLOCK:
                    ready += plan.poll_s
                if previous.end.kind != "end" and task.failure_mode is FailureMode.NONE:
                    ready = max(ready, previous.start.time + lease + slack)
            elif previous is not None:
                ready = max(ready, previous.start.time)
            late = start.time - ready
            # What a worker that has left wrote last, others find when they poll.
            claim = self._claim_of(run)
            claimed = start.time if claim is None else claim.time
            writer = [other for other in self._writes[subject] if other.time < claimed]
            if writer and not self._lives(writer[-1], start.time):
                late -= plan.poll_s
            if start.store_time - run.occurrence > BEHIND_S * SECOND:
                # What is behind does not run all at once.
                late -= task.interval_s / 10
            late -= self._owner_s(task)
            if late > slack and not self._may_wait(task) and self._served(ready, start.time):
                yield Violation(Promise.PUNCTUAL, start.time, f"{subject} starts {late:.4f} s late")
            previous = run

    def _sooner(self, subject: str, task: TaskPlan, runs: list[Run]) -> Iterator[Violation]:
        """What was scheduled runs in time, where no failure, and no later call, intervenes."""
        slack = 0.1 + 12 * self._plan.latency_s
        if self._may_wait(task):
            return
        calls = self._calls[subject]
        for call in calls:
            details, ended = call.begun.details, call.ended
            if call.what == "unschedule" or call.answer != "ok" or ended is None:
                continue
            wanted = details.get(
                "at", ended.store_time + round(details.get("interval", 0) * SECOND)
            )
            due = max(ended.time + (wanted - ended.store_time) / SECOND, ended.time)
            for run in runs:
                # A body that still runs then comes first.
                if run.start.time < due and run.end is not None and run.end.time > due:
                    due = run.end.time
            until = due + slack
            disturbed = until > self._counted or any(
                call.begun.time <= other.over and other.begun.time < until
                for other in calls
                if other is not call
            )
            failed = any(
                run.end is None or run.end.kind != "end"
                for run in runs
                if run.start.time < until and run.start.time > call.begun.time - task.lease_s - 1
            )
            if disturbed or failed or not self._served(call.begun.time, until):
                continue
            grace_s = self._left(due) + self._owner_s(task)
            if not any(
                run.call == call.number and run.start.time <= until + grace_s for run in runs
            ):
                yield Violation(
                    Promise.SOONER,
                    until,
                    f"{subject} of call {call.number} was to run at {due:.4f}",
                )

    def _owner_s(self, task: TaskPlan) -> float:
        """For how long others leave what is due in a partition to its owner, who may be dead."""
        return 3 * self._plan.poll_s if task.shared else 0.0

    def _may_wait(self, task: TaskPlan) -> bool:
        """Whether what is due may have to wait until something else has run."""
        plan = self._plan
        few = plan.synchronous or plan.own_executor or plan.concurrency_limit < 100
        return few or task.limit is not None

    def _limits(self) -> Iterator[Violation]:
        """A task runs no more often at once in a worker than its limit says."""
        limits = {task.name: task.limit for task in self._plan.tasks if task.limit is not None}
        running: dict[tuple[str, str], set[int]] = defaultdict(set)
        for event in self._events:
            name = event.subject.partition("/")[0]
            if name not in limits or "run" not in event.details:
                continue
            runs = running[event.process, name]
            if event.kind != "start":
                runs.discard(event.details["run"])
                continue
            runs.add(event.details["run"])
            if len(runs) > limits[name]:
                yield Violation(
                    Promise.LIMITED,
                    event.time,
                    f"{name} runs {len(runs)} times at once in {event.process}, and not "
                    f"{limits[name]} times",
                )

    def _left(self, time: float) -> float:
        """What may come on top where a worker has left, or come, a moment ago."""
        near = self._plan.poll_s + 1
        moved = (*self._kinds["told to stop"], *self._kinds["opened"])
        return near if any(abs(event.time - time) < near for event in moved) else 0.0

    def _lives(self, event: Event, until: float) -> bool:
        return all(
            told.process != event.process or told.time > until
            for told in self._kinds["told to stop"]
        )

    def _served(self, since: float, until: float) -> bool:
        """Whether one worker was open all the time."""
        plan = self._plan
        told = {event.process: event.time for event in self._kinds["told to stop"]}
        return any(
            life.start + 0.1 + 12 * plan.latency_s < since
            and told.get(life.process, until + 1) > until
            for life in plan.lives
        )


def check(plan: Plan, history: History) -> list[Violation]:
    """The promises that did not hold in a history."""
    return Checker(plan, history).violations()
