"""Faults that were mended, put back one by one: each is still found by a history.

python -m tests.simulation.faults             prints the table of docs/explanation/simulation.md
python -m tests.simulation.faults --search    for each fault, every history that finds it
python -m tests.simulation.faults --search --only ab --seeds 300

A fault is put back by editing the source of a function. If the function has changed so that the
text to be replaced is not in it any more, putting the fault back fails: then look how the fault
would be made in the code as it is now.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple

from tests.simulation.catching import known_plans, names, plan_of
from tests.simulation.checker import Promise, Violation, check
from tests.simulation.simulation import simulate


class Edit(NamedTuple):
    """A change of the source of a function.

    Attributes:
        function: As ``module:Class.function``; a property stands for its getter.
        old: A text that is in it once.
        new: What takes its place.
    """

    function: str
    old: str
    new: str


class Fault(NamedTuple):
    """A fault that was mended.

    Attributes:
        letter: In the list of faults; a name for those that the simulation itself has found.
        what: What happens with the fault.
        edits: Put it back.
        history: What finds it, as ``tests.simulation.catching`` names it.
        promise: Which promise is broken then.
        since: The first Python that has what the fault is about.
    """

    letter: str
    what: str
    edits: tuple[Edit, ...]
    history: str
    promise: Promise
    since: tuple[int, int] = (3, 11)


_WRITES: Final = "pyncette.engine.writes:"
_LOOP: Final = "pyncette.engine.loop:Loop."
_DISPATCHER: Final = "pyncette.engine.dispatch:Dispatcher."
_EXECUTION: Final = "pyncette.engine.execution:Execution."
_BACKGROUND: Final = "pyncette.engine.background:Background.start"

_SHARED: Final = """queue = self.__dict__.setdefault("_queue", [])
        start = _starter(loop, self._keep)

        async def shared():
            await asyncio.sleep(0)
            while queue:
                await queue[0]
                queue.pop(0)

        def add(work):
            queue.append(work)
            if len(queue) == 1:
                start(shared())

        return add"""

_RULES: Final = "pyncette.engine.rules:"
_FAILURES: Final = "pyncette.engine.failures:"

FAULTS: Final = (
    Fault(
        "a",
        "an instance that cannot be read here is parked for everybody, for good",
        (
            Edit(
                f"{_DISPATCHER}_execution",
                "self._release(parts.task, record, error)",
                "self.park(record, describe(error))",
            ),
        ),
        "scenario: 40: an instance in a zone that no worker knows for a while, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "c",
        "runs share an asyncio task",
        (
            Edit(
                "pyncette.executor:DefaultExecutor.starter",
                "return _starter(loop, self._keep)",
                _SHARED,
            ),
        ),
        "scenario: 21: one-second recurrences and several workers, seed 0",
        Promise.APART,
    ),
    Fault(
        "e",
        "internal tasks are made by the loop's task factory, which may be eager",
        (
            Edit(
                _BACKGROUND,
                "asyncio.Task(coroutine, loop=self.loop,",
                "self.loop.create_task(coroutine,",
            ),
            Edit(f"{_WRITES}WriteQueue._start", "self._writing = True", "pass"),
            Edit(
                f"{_WRITES}WriteQueue._start",
                'self._background.start(self._write_all(), "pyncette writes")',
                'self._background.start(self._write_all(), "pyncette writes")\n'
                "    self._writing = True",
            ),
        ),
        "scenario: 42: tasks are begun eagerly where the interpreter can, and a lease is lost, "
        "seed 0",
        Promise.ONCE_WHEN_CALM,
        (3, 12),
    ),
    Fault(
        "f (suspects)",
        "suspects are claimed and given back, again and again, while one of them runs",
        (
            Edit(
                f"{_DISPATCHER}unfinished_max",
                "None if self.suspect is None else rules.SUSPECT_ATTEMPTS - 1",
                "None",
            ),
            Edit(
                f"{_DISPATCHER}_once_more", "give_back(record, SUSPECT_DELAY)", "give_back(record)"
            ),
        ),
        "scenario: 11: a few suspects, and a slow body, seed 0",
        Promise.FRUGAL,
    ),
    Fault(
        "f (long bodies)",
        "a body that outlives its lease becomes a suspect, and is not started again",
        (Edit(f"{_DISPATCHER}_once_more", "if self._runs(record):", "if False:"),),
        "scenario: 45: a body outlives five leases, seed 0",
        Promise.AGAIN,
    ),
    Fault(
        "g",
        "a store returns too few answers: a call is never answered, closing never returns",
        (
            Edit(f"{_WRITES}WriteQueue._send", "if len(answers) != len(writes):", "if False:"),
            Edit(f"{_WRITES}WriteQueue._send", "strict=True", "strict=False"),
        ),
        "scenario: a store gives too few answers, seed 0",
        Promise.CLOSES,
    ),
    Fault(
        "i",
        "closing with the store down waits as long as the longest lease",
        (Edit(f"{_WRITES}WriteQueue.close", "timeout(patience_s)", "timeout(None)"),),
        "scenario: 47: a worker is closed (shutdown) while this holds: store refuses all calls, "
        "seed 0",
        Promise.CLOSES,
    ),
    Fault(
        "j",
        "a write carries the context variables of the caller that queued first",
        (Edit(_BACKGROUND, "self._context.copy()", "contextvars.copy_context()"),),
        "calm, seed 0",
        Promise.APART,
    ),
    Fault(
        "k",
        "run() is cancelled and the app left at once: bodies are awaited to their end",
        (
            Edit("pyncette.context:PyncetteContext._loop", "if self._closing:", "if False:"),
            Edit("pyncette.context:PyncetteContext._end_runs", "if self._cancelled:", "if False:"),
        ),
        "scenario: 46: a worker is closed while bodies run: cancel run() and leave, seed 0",
        Promise.CANCELLED,
    ),
    Fault(
        "l (swallowed)",
        "a cancellation while the app closes is swallowed",
        (Edit("pyncette.opening:_Closing.go_on", "if self._cancelled:", "if False:"),),
        "scenario: 46: a worker is closed while bodies run: shutdown, then cancel while it closes, "
        "seed 0",
        Promise.CANCELLED,
    ),
    Fault(
        "l (second)",
        "a cancellation ends a step of closing, and bodies go on",
        (
            Edit(
                "pyncette.opening:_Closing.see_through",
                "await finished(task, on_cancel)",
                "await asyncio.wait([task]) is None",
            ),
        ),
        "scenario: 46: a worker is closed while bodies run: shutdown, then cancel while it closes, "
        "seed 0",
        Promise.CANCELLED,
    ),
    Fault(
        "n",
        "str(error) raises: the outcome of the run is not recorded",
        (
            Edit("pyncette.errors:describe", 'text = "(its text cannot be shown)"', "raise"),
            Edit(
                "pyncette.engine.failures:failure_of",
                "except BaseException as",
                "except OSError as",
            ),
        ),
        "scenario: 48: exceptions that cannot be printed, or are no Exception, seed 0",
        Promise.OUTCOME,
    ),
    Fault(
        "o",
        "a BaseException of a body has no outcome",
        (
            Edit(
                f"{_EXECUTION}run",
                "if not issubclass(type(ended)",
                "if True or not issubclass(type(ended)",
            ),
        ),
        "scenario: 48: exceptions that cannot be printed, or are no Exception, seed 0",
        Promise.OUTCOME,
    ),
    Fault(
        "p",
        "arguments of static tasks are shared between runs",
        (Edit(f"{_EXECUTION}arguments", "copy.deepcopy(", "dict("),),
        "scenario: somebody holds locks for long, seed 0",
        Promise.APART,
    ),
    Fault(
        "q",
        "a static task that was planned by a clock far ahead sleeps for years",
        (Edit("pyncette.engine.rules:contradicts", "if record.state", "if True or record.state"),),
        "scenario: 49: a clock was far ahead when a task was planned, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "q (lease)",
        "a lease that a clock far ahead has counted keeps a static task asleep for years",
        (
            Edit(
                "pyncette.engine.rules:lease_in_time", "if record.state", "if True or record.state"
            ),
        ),
        "scenario: 49: a clock was far ahead when the worker of a task was killed, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "aa (early)",
        "a slow measurement of the store's clock makes runs early",
        (
            Edit(
                "pyncette.clock:StoreClock.observe",
                "self._aim(lowest, refines)",
                "self._aim((lowest + highest) // 2, refines)",
            ),
            Edit(
                f"{_LOOP}_send",
                "bounded=isinstance(worker.clock, StoreClock) and worker.clock.is_measured",
                "bounded=False",
            ),
        ),
        "scenario: 50: the store's clock is measured by slow calls, and all others are quick, "
        "seed 0",
        Promise.NOT_EARLY,
    ),
    Fault(
        "ab",
        "a claim that cannot be answered in time is repeated at the same size for ever",
        (Edit(f"{_LOOP}_ask_for_less", "if self._claim_max == 1:", "return\n    if False:"),),
        "scenario: 51: a claim is too large to be answered in time, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "ag",
        "the machine's clock is set back while the store fails: the loop sleeps for as long",
        (
            Edit(
                f"{_LOOP}_monotonic",
                "round(self._worker.clock.monotonic() * 1_000_000)",
                "self._worker.clock.microseconds()",
            ),
        ),
        "scenario: the machine's clock is set back while the store fails, seed 0",
        Promise.FRESH,
    ),
    Fault(
        "ah",
        "two versions with different intervals plan each other's runs off for ever",
        (
            Edit(
                "pyncette.engine.rules:_brought_up_to_date",
                "soonest = None if first is None else _soonest(progress.planned, first)",
                "soonest = first",
            ),
        ),
        "scenario: two versions of an app with different intervals, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    # What the simulation has found, and nobody had listed.
    Fault(
        "locked record",
        "a record that a transaction holds makes the write queue spin",
        (
            Edit(
                f"{_WRITES}again",
                "Next.BACK_OFF if expectation_holds(write, refused.current) else Next.RETRY",
                "Next.RETRY",
            ),
        ),
        "scenario: somebody holds locks for long, seed 1",
        Promise.FRUGAL,
    ),
    Fault(
        "slow store",
        "records of usual size are parked as too large while the store is slow",
        (Edit(f"{_LOOP}_park_too_large", "if size < TOO_LARGE_CHARACTERS_MIN:", "if False:"),),
        "scenario: 51: slow claims, and quick calls else, do not make records too large, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "claim grows",
        "small claims that succeed let the next large one exceed its deadline again",
        (
            Edit(
                f"{_LOOP}_ask_for_more",
                "elif len(claimed.records) >= question.limit and",
                "elif",
            ),
            Edit(f"{_LOOP}_ask_for_less", "// 4", "// 2"),
        ),
        "scenario: 51: a claim is too large to be answered in time, seed 0",
        Promise.AT_LEAST_ONCE,
    ),
    Fault(
        "attempts",
        "a policy allows one attempt too many",
        (
            Edit(
                f"{_FAILURES}_by_policy",
                "attempt.number >= retry.attempts",
                "attempt.number > retry.attempts",
            ),
            Edit(
                f"{_RULES}too_many",
                "attempts < policy.attempts and",
                "attempts <= policy.attempts and",
            ),
        ),
        "scenario: a task with a policy kills its process each time, and is parked, seed 0",
        Promise.ATTEMPTS,
    ),
    Fault(
        "parked",
        "a one-off that has failed for good vanishes",
        (
            Edit(
                f"{_RULES}exhausted",
                "return Patch(None, State.PARKED, 0, dump_progress(progress))",
                "return DELETE",
            ),
        ),
        "scenario: a task with a policy kills its process each time, and is parked, seed 0",
        Promise.TRACE,
    ),
    Fault(
        "backoff",
        "a failed attempt is repeated at once",
        (Edit(f"{_RULES}failed", "return Patch(now + failure.delay,", "return Patch(now,"),),
        "calm, seed 27",
        Promise.BACKOFF,
    ),
    Fault(
        "grace",
        "what is too late is started all the same",
        (
            Edit(
                f"{_RULES}too_late",
                "now - due_at <= policy.misfire_grace",
                "now - due_at <= 10 * policy.misfire_grace",
            ),
        ),
        "scenario: no worker is there for a while, and what is too late is skipped, seed 0",
        Promise.IN_GRACE,
    ),
    Fault(
        "skips",
        "what overlaps is skipped and not counted",
        (
            Edit(
                f"{_RULES}_skipping",
                "skipped=progress.skipped + count",
                "skipped=progress.skipped",
            ),
        ),
        "scenario: a task that takes longer than its interval skips what overlaps, seed 0",
        Promise.COUNTED,
    ),
    Fault(
        "jitter",
        "the jitter of a schedule is forgotten when a run has ended",
        (Edit(f"{_RULES}_next_due", "if schedule.jitter:", "if False:"),),
        "scenario: a schedule with an anchor and jitter, seed 0",
        Promise.SPREAD,
    ),
    Fault(
        "end",
        "a schedule goes on after its end",
        (
            Edit(
                "pyncette.schedule.base:Bounded.following",
                "self._ended(self._inner.following(planned))",
                "self._inner.following(planned)",
            ),
        ),
        "calm, seed 21",
        Promise.PLANNED,
    ),
)

ELSEWHERE: Final = {
    "b": "src/pyncette/testing/suite/editing.py::test_an_edited_version_stops_nothing_else",
    "d": "tests/unit/test_cas.py::test_each_write_has_an_answer_of_its_own",
    "h": "tests/stores/test_mysql_postgres_sessions.py::test_a_closed_store_opens_nothing",
    "m": "tests/unit/test_closing.py::test_closing_says_who_sleeps_on_a_clock_that_nobody_moves",
    "r": "tests/unit/test_zone.py::test_a_zone_object_is_stored_by_its_name_or_offset",
    "s": "tests/unit/test_body.py::test_a_task_may_not_be",
    "t": "tests/unit/test_task.py::test_an_argument_that_looks_like_an_option_is_warned_about_once",
    "u": "tests/unit/test_closing.py::test_shutdown_is_heard_at_once_from_a_thread_too",
    "v": "tests/unit/test_cron.py::"
    "test_an_expression_with_the_second_first_is_refused_with_that_hint",
    "w": "tests/unit/test_backlog.py::"
    "test_a_task_that_was_off_for_a_day_is_said_to_be_behind_and_to_have_caught_up",
    "x": "tests/unit/test_healthcheck.py::test_head_is_answered_as_get_without_a_body",
    "y": "tests/unit/test_cas.py::test_a_claim_that_fails_leaves_nothing_running",
    "ac": "tests/unit/test_templates.py::test_instances_are_never_left_behind_by_a_change_of_kind",
    "ad": "tests/stores/test_mysql_postgres_sessions.py::"
    "test_calls_given_up_on_a_locked_table_never_have_more_sessions_than_the_pool",
    "ae": "tests/stores/test_mysql_postgres_sessions.py::"
    "test_closing_that_is_cancelled_leaves_no_session",
    "af": "tests/unit/test_bodies.py::test_names_cannot_write_lines_of_their_own_into_the_log",
    "ai": "tests/unit/test_large_records.py::"
    "test_a_large_value_does_not_hold_up_the_calls_beside_it",
    "aj": "tests/unit/test_large_records.py::test_each_call_has_a_deadline_of_its_own",
}
"""The faults that one process without a real store cannot show, each with a test that finds it."""


def rows() -> list[str]:
    """The table of docs/explanation/simulation.md, a line each."""
    found = [
        *(f"| {fault.letter} | {fault.what} | {fault.history} |" for fault in FAULTS),
        *(f"| {letter} | not in a simulation | `{test}` |" for letter, test in ELSEWHERE.items()),
    ]
    head = ["| fault | what happens when it is put back | found by |", "|---|---|---|"]
    return [*head, *found]


@contextmanager
def put_back(fault: Fault) -> Iterator[None]:
    """Has the fault inside the block.

    Raises:
        LookupError: A function does not have the text that is to be replaced.
    """
    edits: dict[str, list[Edit]] = {}
    for edit in fault.edits:
        edits.setdefault(edit.function, []).append(edit)
    before: list[tuple[Any, Any]] = []
    try:
        for name, ours in edits.items():
            function = _function(name)
            source = textwrap.dedent(inspect.getsource(function))
            for edit in ours:
                if source.count(edit.old) != 1:
                    raise LookupError(f"{name} has no {edit.old!r}, or has it more than once")
                source = source.replace(edit.old, edit.new)
            made = dict(function.__globals__)
            exec(compile(f"from __future__ import annotations\n{source}", name, "exec"), made)
            made_function: Any = made[function.__name__]
            made_function = getattr(made_function, "fget", made_function)
            before.append((function, function.__code__))
            function.__code__ = made_function.__code__
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def _function(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    return getattr(found, "fget", found)


def found_by(fault: Fault, history: str) -> list[Violation]:
    """What a history shows of the fault."""
    plan = plan_of(history)
    with put_back(fault):
        return check(plan, simulate(plan))


def main() -> int:
    """Prints the table, or searches."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--search", action="store_true", help="run every history")
    parser.add_argument("--only", default="", help="faults whose letter begins with this")
    parser.add_argument("--seeds", type=int, default=30, help="of each profile")
    options = parser.parse_args()
    if not options.search:
        print("\n".join(rows()))
        return 0
    known = known_plans()
    for fault in FAULTS:
        if not fault.letter.startswith(options.only):
            continue
        print(fault.letter, fault.what, flush=True)
        found = 0
        for history in names(options.seeds, 2):
            plan = plan_of(history, known)
            with put_back(fault):
                violations = check(plan, simulate(plan))
            if violations:
                found += 1
                print(f"    {history}: {violations[0]}"[:200], flush=True)
            if found >= 12:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
