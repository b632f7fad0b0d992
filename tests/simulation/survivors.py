"""Mutants that are known to survive the simulation, the explorer and the conformance suite.

``python -m tests.simulation.mutate --report`` prints the reasons beside the survivors.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.simulation.mutants import Mutant


class Survivor(NamedTuple):
    """Mutants that survive for one reason.

    Attributes:
        module: The module.
        function: The function, with its class.
        line: The line, or a part of it; empty: every line of the function.
        what: The change, or the beginning of its description; empty: every change.
        reason: Why it is not caught.
    """

    module: str
    function: str
    line: str
    what: str
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        """Whether a mutant is one of these."""
        return (
            (mutant.module, mutant.function) == (self.module, self.function)
            and self.line in mutant.before
            and mutant.what.startswith(self.what)
        )


SURVIVORS: Final[tuple[Survivor, ...]] = (
    Survivor(
        "rules",
        "_occurrence_done",
        "if planned > now + CLOCK_ERROR_MAX and not at_most_once",
        "without 'planned >",
        "After a triggered run: what is later than the first occurrence after that instant is "
        "later than that instant, too. It only spares the search for that occurrence, which may "
        "ask a calendar.",
    ),
    Survivor(
        "rules",
        "_occurrence_done",
        "if planned > now + CLOCK_ERROR_MAX and not at_most_once",
        "comparison shifted",
        "After a triggered run, for the same reason: no occurrence follows that instant and is "
        "sooner than it.",
    ),
    Survivor(
        "rules",
        "_due",
        "if schedule is None or planned is None or not schedule.jitter",
        "without 'not schedule.jitter'",
        "Without a jitter, an occurrence is due when it is planned: it only spares a call.",
    ),
    Survivor(
        "rules",
        "replaced",
        "if new.due_at is None or current.due_at is None",
        "without 'current.due_at is None'",
        "A record whose lease lasts has a due time. For the type checker.",
    ),
    Survivor(
        "rules",
        "_held_back",
        "if pending is not None and pending.triggered is not None",
        "without 'pending is not None'",
        "Whatever is held back has a pending pause. For the type checker.",
    ),
    Survivor(
        "rules",
        "_go_on",
        "if not schedule.inherited or not isinstance(change, Patch)",
        "without 'not schedule.inherited'",
        "The text of a schedule that was read from the record is the text of the record: nothing "
        "is written that was not there. It only spares to make that text again.",
    ),
    Survivor(
        "partitions",
        "Partitions.fresh",
        "if not self.tasks or self._is_fresh()",
        "without 'self._is_fresh()'",
        "It is asked again where the lock is held: it only spares to take the lock.",
    ),
    Survivor(
        "partitions",
        "Partitions.places",
        "if task is None or not task.relocated",
        "without 'not task.relocated'",
        "A task whose instances lie, and have always lain, where it says has one place for each: "
        "the group that was asked for. It only spares to ask the selector.",
    ),
    Survivor(
        "failures",
        "failure_of",
        "if plain is None or attempt.number >= retry.attempts",
        "without 'plain is None'",
        "The plain policy always says a delay; only those of users may say None. For the type "
        "checker.",
    ),
    Survivor(
        "loop",
        "Loop._claim",
        "if claimed.records and worker.reporter.observers.watch_runs()",
        "without 'worker.reporter",
        "An event that no handler wants reaches none. It only spares to make it.",
    ),
    Survivor(
        "loop",
        "Loop._ask",
        "if worker.sources.limited and free",
        "without 'worker.sources.limited'",
        "Without a task that has a limit, nothing is left out of a claim: it only spares to ask "
        "for each source.",
    ),
    Survivor(
        "loop",
        "Loop._within_limits",
        "if not slots and dispatcher.room([task], free)[task]",
        "without 'not slots'",
        "A task that has slots is asked at once, before this is looked at. It only spares to "
        "count its slots again.",
    ),
    Survivor(
        "polling",
        "Sources._push",
        "if source.next_ask >= NEVER",
        "comparison shifted",
        "A source at NEVER that lies in the heap is reached after all others, that is never; it "
        "is taken out when the heap is made anew.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if parts.selective and",
        "without 'parts.selective'",
        "A task without a policy and without a grace refuses no record: it only spares two calls.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._new_parts",
        "task.executor is None and runs_in_thread(task.task_func)",
        "without 'task.executor is None'",
        "Only Dispatcher._places reads it, which looks at the processes of a task first.",
    ),
    Survivor(
        "execution",
        "Execution._cancelled_from_outside",
        "return runner is not None",
        "without 'runner is not None'",
        "A run is always an asyncio task. For the type checker.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher.dispatch",
        "if worker.stopping or (paused and pauses.holds(group, now))",
        "without 'paused'",
        "Pauses.holds looks at the same first. It only spares the call for each record.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._spawn",
        "if loop is not None and loop.cancelling() > before",
        "without 'loop is not None'",
        "The loop of a worker is always an asyncio task. For the type checker.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._bound",
        "if schedule.calendars and progress.planned is not None",
        "without 'schedule.calendars'",
        "A schedule without calendars always has an answer. It only spares the question.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if planned is not None and (",
        "without 'behind or",
        "Backlogs.note leaves alone what is neither late nor was. It only spares the call.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if planned is not None and (",
        "without 'type(schedule) is not At'",
        "The same, and one late occurrence: a one-off has no other.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if planned is not None and (",
        "without 'now - planned >=",
        "The same, and one late occurrence: a one-off has no other.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if planned is not None and (",
        "and/or exchanged",
        "The same, and one late occurrence: a one-off has no other.",
    ),
    Survivor(
        "dispatch",
        "Dispatcher._execution",
        "if planned is not None and planned > now and",
        "without 'planned > now'",
        "rules.early looks at the same, and later. It only spares the call.",
    ),
    Survivor(
        "execution",
        "Execution.run",
        "if not issubclass(type(ended), Exception) and",
        "without 'not issubclass",
        "An Exception is an outcome whatever else holds. It only spares the call.",
    ),
    Survivor(
        "execution",
        "Execution._alone_cancelled",
        "if runner is None or coroutine is None",
        "without 'runner is None'",
        "A run is always an asyncio task. For the type checker.",
    ),
    Survivor(
        "execution",
        "Execution._alone_cancelled",
        "if runner is None or coroutine is None",
        "without 'coroutine is None'",
        "An asyncio task has a coroutine, so what is compared next differs. For the type checker.",
    ),
    Survivor(
        "templates",
        "check_templates",
        "elif count is not None and isinstance(result, Applied)",
        "without 'isinstance(result",
        "What is neither failed nor refused is applied. For the type checker.",
    ),
    Survivor(
        "templates",
        "check_templates",
        "elif count is not None and isinstance(result, Applied)",
        "without 'count is not None'",
        "What is known of a template without partitions is not read.",
    ),
    Survivor(
        "templates",
        "check_templates",
        "elif count is not None and isinstance(result, Applied)",
        "and/or exchanged",
        "The same two reasons.",
    ),
    Survivor(
        "templates",
        "check_templates",
        "if isinstance(task, PartitionedTask) and task.name in opened",
        "without 'isinstance(task",
        "What was opened with a number of partitions has some. For the type checker.",
    ),
    Survivor(
        "rules",
        "put_back",
        "if isinstance(change, Patch) and change.state == State.SCHEDULED",
        "without 'isinstance(change",
        "A replacement has a progress of its own, which is looked at, too. For the type checker.",
    ),
    Survivor(
        "rules",
        "put_back",
        "if isinstance(change, Patch) and change.state == State.SCHEDULED",
        "without 'change.progress is None'",
        "Of what is given back, only what rests or is replaced gets another progress.",
    ),
    Survivor(
        "execution",
        "Execution._advanced",
        "if may_run and self.runner is not None",
        "without 'self.runner is not None'",
        "A run is always an asyncio task. For the type checker.",
    ),
    Survivor(
        "execution",
        "_Advance.is_decided",
        "return self.done.done() and not self.done.cancelled()",
        "without 'self.done.done()'",
        "It is asked when a wait for it has ended: then it is done, or cancelled.",
    ),
    Survivor(
        "execution",
        "Execution._end_interruption",
        "if self._interrupted and self.runner is not None",
        "without 'self.runner is not None'",
        "It is called while the run has its asyncio task. For the type checker.",
    ),
    Survivor(
        "execution",
        "Execution.compare",
        "if found is Verdict.HELD and current is not None",
        "without 'current is not None'",
        "Only a record that is there can be held. For the type checker.",
    ),
    Survivor(
        "transaction",
        "Transaction.leave",
        "if runner is not None and not runner.uncancel()",
        "without 'runner is not None'",
        "A run is always an asyncio task. For the type checker.",
    ),
    Survivor(
        "writes",
        "WriteQueue._write_large",
        "if len(self) and not self._writing",
        "without 'len(self)'",
        "It only spares an internal task that finds nothing to write.",
    ),
    Survivor(
        "upcoming",
        "after_current",
        "record = record._replace(progress=change.progress or record.progress)",
        "without 'record.progress'",
        "What follows a success always says the progress. For the type checker.",
    ),
    Survivor(
        "world",
        "Server.write",
        "if draw < 0.2",
        "comparison shifted",
        "A drawn number is never exactly this one.",
    ),
    Survivor(
        "world",
        "Server.write",
        "if draw < 0.6",
        "comparison shifted",
        "A drawn number is never exactly this one.",
    ),
    Survivor(
        "world",
        "Server.write",
        "if draw < 0.4",
        "comparison shifted",
        "A drawn number is never exactly this one.",
    ),
    Survivor(
        "world",
        "Server._shown",
        "if time <= until",
        "comparison shifted",
        "A drawn instant is never exactly that of a write.",
    ),
    Survivor(
        "world",
        "Server._locked",
        "< fault.strength",
        "comparison shifted",
        "A drawn number is never exactly the strength of a fault.",
    ),
    Survivor(
        "world",
        "Server._wake",
        "< fault.strength",
        "comparison shifted",
        "A drawn number is never exactly the strength of a fault.",
    ),
    Survivor(
        "world",
        "Server.write",
        "if draw < 0.4",
        "comparison negated",
        "Half of the writes with an unknown end are made: which half is a matter of the draw.",
    ),
    Survivor(
        "world",
        "Server._look_for_another",
        'if record is None or in_transit(record) or ":" not in record.group[1:]',
        "without '':' not in",
        "A template without partitions has one group, so no second record has its name. It only "
        "spares the search.",
    ),
    Survivor(
        "world",
        "Server._look_for_another",
        "key == record.key",
        "without 'key == record.key'",
        "The name that is compared next has the key in it. It only spares to make that name.",
    ),
)


def reason_of(mutant: Mutant) -> str | None:
    """Why a mutant survives, if that is known."""
    return next((one.reason for one in SURVIVORS if one.covers(mutant)), None)


def rows() -> list[str]:
    """The survivors as a table in Markdown."""
    lines = [
        "| module | function | line | change | why it is not caught |",
        "|---|---|---|---|---|",
    ]
    for module, function, line, what, reason in SURVIVORS:
        cells = (module, function, f"`{line}`" if line else "", what or "any", reason)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines
