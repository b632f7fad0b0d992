"""Breaks each condition of the engine and of the simulated store in turn, and sees what notices.

    python -m tests.simulation.mutate --results FILE               every condition
    python -m tests.simulation.mutate --results FILE --only rules.py
    python -m tests.simulation.mutate --results FILE --part 1/4    every fourth mutant
    python -m tests.simulation.mutate --results FILE --again       the unexplained survivors again
    python -m tests.simulation.mutate --results FILE --report      only print the table
    python -m tests.simulation.mutate --tests small_queue --only writes.py     while you write one

``tests.simulation.mutants`` says what is changed. What may notice it are *pieces*: histories of the
simulation, and single tests of the explorer (with the small records) and of the conformance suite
on the simulated store. One process has imported all of them. It runs every piece once without a
mutation, to learn how long it takes and which lines it reaches. Then each mutant gets a child of
its own by a fork, which runs the pieces that reach the changed line, until one fails: those first
that have killed its neighbours, and the shortest.

A mutant survives after so many seconds (``--budget``) of pieces, counted by what they take without
a mutation, so that the same pieces are run on every machine. A piece that never ends counts as one
that fails: a history is ended after a number of callbacks, all others by the time of the processor.

The results are kept in a file: a run that was stopped goes on where it was, and only mutants of
functions that have changed since are tried again. With ``--units``, what survives is shown to unit
tests as well, which count apart.

The survivors that are known have a reason in ``tests/simulation/survivors.py``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn

import pytest
from tests.simulation import event_loop
from tests.simulation.catching import Reached, known_plans, names, plan_of
from tests.simulation.checker import check
from tests.simulation.mutants import ENGINE, ROOT, STORE, Mutant, all_mutants, put_in
from tests.simulation.simulation import simulate
from tests.simulation.survivors import reason_of

CALLBACKS_MAX: Final = 50_000
"""A history with more callbacks than this is endless. Without a mutation none has half of it."""

MEMORY_MAX_BYTES: Final = 3 << 30
"""A mutant may loop for ever and keep what it makes: no more than this."""

EXPLORER: Final = (
    "tests/simulation/test_small_records.py",
    "tests/simulation/test_small_rules.py",
    "tests/simulation/test_small_parts.py",
    "tests/simulation/test_small_entries.py",
    "tests/simulation/test_small_dispatch.py",
    "tests/simulation/test_small_loop.py",
    "tests/simulation/test_small_members.py",
    "tests/simulation/test_small_moves.py",
    "tests/simulation/test_small_openings.py",
    "tests/simulation/test_small_timeouts.py",
    "tests/simulation/test_small_runs.py",
    "tests/simulation/test_small_turns.py",
    "tests/simulation/test_small_queue.py",
    "tests/simulation/test_small_transactions.py",
    "tests/simulation/test_explorer_moves.py",
    "tests/simulation/test_explorer.py",
    "tests/simulation/test_explorer_model.py",
)
CONFORMANCE: Final = (
    "tests/simulation/test_world.py",
    "tests/simulation/test_small_world.py",
)
NO_PIECES: Final = (
    "test_the_search_finds_what_each_rule_prevents",
    "test_long_histories_meet_broken_rules_too",
)
"""Tests that break something themselves."""

SEARCH: Final = "test_no_interleaving_breaks_a_promise"
"""The searches to a stated depth: the longest pieces."""

UNIT: Final = (
    *("backlog", "bodies", "body", "bulk", "closing", "context", "executor", "execution"),
    *("failures", "heartbeats", "inventory", "large_records", "log_lines", "loop", "moves"),
    *("on_existing", "per_worker", "polling", "rebalance", "retry", "rules", "run_until_idle"),
    *("shared_partitions", "steering", "task", "templates", "timeouts", "virtual_clock"),
    *("workers", "writes", "clock_of_the_store"),
)
"""The unit tests of the engine."""

COPIED: Final = "PYNCETTE_MUTATE_COPIED"

KILLERS: Final = ("simulation", "explorer", "conformance")


class Result(NamedTuple):
    """What became of a mutant.

    Attributes:
        id, path, line, function, condition, what, before: See ``Mutant``.
        killer: What has killed it; None if nothing has.
        how: The history or test, and what it said.
        pieces: How many pieces reach the line.
        seconds: How long it took, of the processor.
        tried: The pieces that a survivor has survived, by their keys.
    """

    id: str
    path: str
    line: int
    function: str
    condition: bool
    what: str
    before: str
    killer: str | None
    how: str
    pieces: int
    seconds: float
    tried: Sequence[str] = ()


class Piece(NamedTuple):
    """What may notice a mutant.

    Attributes:
        name: The history, or the id of the test.
        killer: What it is a part of.
        seconds: What it takes without a mutation, of the processor.
        lines: Which lines it reaches, by file.
        key: Changes with what it is.
    """

    name: str
    killer: str
    seconds: float
    lines: dict[str, frozenset[int]]
    key: str

    @property
    def family(self) -> str:
        """Those of one test with other parameters, or of one profile; each scenario alone."""
        return self.name.partition("[")[0].partition(", seed ")[0]


class Bench:
    """Tries out one mutant after the other, each in a child process that is made by a fork."""

    def __init__(self, session: pytest.Session, options: argparse.Namespace) -> None:
        """Surveys which pieces reach which lines, if that is not known already."""
        self._items = {
            item.nodeid: item
            for item in session.items
            if not any(name in item.nodeid for name in NO_PIECES)
            and not (options.quick and SEARCH in item.nodeid)
            and options.tests in item.nodeid
        }
        self._session = session
        self._plans = known_plans()
        self._budget_s: float = options.budget
        self._partial = bool(options.tests)
        self._failed: list[str] = []
        histories = [] if options.tests else names(options.seeds, options.scenario_seeds)
        wanted = [*histories, *self._items]
        self.pieces = [
            Piece(name, self._killer(name), one["seconds"], _sets(one["lines"]), key[:8])
            for name, (key, one) in self._known(wanted, options.results).items()
        ]
        # How many mutants each piece has killed, of a file and of a function.
        self._kills: Counter[tuple[str, str]] = Counter()

    def _killer(self, name: str) -> str:
        if name not in self._items:
            return "simulation"
        path = name.partition("::")[0]
        if path in EXPLORER:
            return "explorer"
        return "conformance" if path in CONFORMANCE else "unit"

    def _known(self, wanted: list[str], results: Path | None) -> dict[str, Any]:
        """The survey; kept beside the results, and made again for what has changed since.

        What a piece reaches depends on more than is compared here. That is no matter: it decides
        which pieces are run, and in which order.
        """
        sources = [*sorted(ROOT.glob(ENGINE)), *(ROOT / path for path in STORE)]
        world = b"".join(path.read_bytes() for path in sources)
        of = {name: _digest(world, self._origin(name)) for name in wanted}
        kept = None if results is None else results.with_suffix(".survey")
        known: dict[str, Any] = {}
        if kept is not None and kept.exists():
            known = json.loads(kept.read_text())
        missing = [name for name in wanted if of[name] not in known]
        if missing:
            place = Path(os.environ[COPIED]) / "survey"
            failed = in_child(None, partial(self._survey, missing, place))
            if failed:
                pytest.exit(f"Without a mutation, too: {failed}", 2)
            known |= {of[name]: one for name, one in json.loads(place.read_text()).items()}
            if not self._partial:
                known = {one: known[one] for one in of.values()}
            if kept is not None:
                kept.write_text(json.dumps(known))
        return {name: (of[name], known[of[name]]) for name in wanted}

    def _origin(self, name: str) -> bytes:
        """What a piece is: the file of a test, the plan of a history."""
        item = self._items.get(name)
        if item is None:
            return f"{name}: {plan_of(name, self._plans)!r}".encode()
        return name.encode() + item.path.read_bytes()

    def _survey(self, wanted: list[str], place: Path) -> str | None:
        """Runs pieces: what each of them takes, and the lines that it reaches."""
        event_loop.CALLBACKS_MAX = CALLBACKS_MAX // 2  # type: ignore[misc]
        paths = [*(str(path.relative_to(ROOT)) for path in ROOT.glob(ENGINE)), *STORE]
        reached = Reached({str(ROOT / path): path for path in paths})
        found: dict[str, Any] = {}
        for name in wanted:
            said: list[str | None] = []
            began = time.process_time()
            lines = reached.of(lambda name=name, said=said: said.append(self._run(name)))  # type: ignore[misc]
            if said != [None]:
                return f"{name}: {said}"
            found[name] = {"seconds": round(time.process_time() - began, 3), "lines": lines}
        place.write_text(json.dumps(found))
        return None

    def learn(self, result: Result) -> None:
        """What has killed one mutant is likely to kill its neighbours."""
        name = result.how.partition("\t")[0]
        if result.killer is not None:
            self._kills[name, result.path] += 1
            self._kills[name, f"{result.path}:{result.function}"] += 1

    def _reaching(self, mutant: Mutant) -> list[Piece]:
        """The pieces that reach the changed line, the most promising first; unit tests last."""
        wanted, none = set(mutant.lines), frozenset[int]()
        function, kills = f"{mutant.path}:{mutant.function}", self._kills

        def promise(piece: Piece) -> float:
            name = piece.name
            killed = 1 + 10 * kills[name, function] + kills[name, mutant.path]
            return killed / (piece.seconds + 0.02)

        reaching = [piece for piece in self.pieces if wanted & piece.lines.get(mutant.path, none)]
        reaching.sort(key=promise, reverse=True)
        # Those of a family see the same: the second is half as promising as the first.
        families: Counter[str] = Counter()
        ranks = {}
        for piece in reaching:
            families[piece.family] += 1
            ranks[piece.name] = promise(piece) / families[piece.family]
        reaching.sort(key=lambda piece: (piece.killer != "unit", ranks[piece.name]), reverse=True)
        return reaching

    def try_out(self, mutant: Mutant, before: Result | None) -> Result:
        """Runs what may notice a mutant, and has not been run yet, until one does."""
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        reaching = self._reaching(mutant)
        tried = [] if before is None else [*before.tried]
        spent_s, pieces = {True: 0.0, False: 0.0}, []
        for piece in reaching:
            is_unit = piece.killer == "unit"
            if piece.key not in tried and spent_s[is_unit] + piece.seconds <= self._budget_s:
                spent_s[is_unit] += piece.seconds
                pieces.append(piece)
        how = in_child(mutant, partial(self._run_all, pieces)) if pieces else None
        killer = None if how is None else self._killer(how.partition("\t")[0])
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        if before is not None:
            took += before.seconds
        tried = [*tried, *(piece.key for piece in pieces)] if killer is None else []
        about = _about(mutant)
        return Result(*about, killer, how or "", len(reaching), round(took, 2), tried)

    def _run_all(self, pieces: Sequence[Piece]) -> str | None:
        event_loop.CALLBACKS_MAX = CALLBACKS_MAX  # type: ignore[misc]
        for piece in pieces:
            with _ending(piece):
                said = self._run(piece.name)
            if said is not None:
                return f"{piece.name}\t{said}"
        return None

    def _run(self, name: str) -> str | None:
        """Runs a piece; returns what fails in it."""
        item = self._items.get(name)
        if item is None:
            plan = plan_of(name, self._plans)
            try:
                violations = check(plan, simulate(plan))
            except Exception as error:
                return repr(error)
            return str(violations[0]) if violations else None
        self._failed.clear()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self._failed[0] if self._failed else None

    def failed(self, report: pytest.TestReport) -> None:
        """Takes down why a test has failed."""
        self._failed.append((report.longreprtext.strip().splitlines() or ["failed"])[-1])


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _sets(lines: dict[str, list[int]]) -> dict[str, frozenset[int]]:
    return {path: frozenset(numbers) for path, numbers in lines.items()}


class _ending:  # noqa: N801
    """Ends the process if a piece is endless: nothing in it may catch that."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece

    def __enter__(self) -> None:
        def ended(number: int, frame: FrameType | None) -> None:
            _tell(f"{self._piece.name}\tdoes not end")

        signal.signal(signal.SIGVTALRM, ended)
        signal.setitimer(signal.ITIMER_VIRTUAL, 1.5 + 8 * self._piece.seconds)
        # One that waits for what never comes takes no time of the processor.
        signal.signal(signal.SIGALRM, ended)
        signal.setitimer(signal.ITIMER_REAL, 5 + 15 * self._piece.seconds)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


_telling: Final[list[int]] = []
"""Where a child process says what it has found."""


def _tell(said: str | None) -> NoReturn:
    os.write(_telling[0], (said or "")[:400].encode())
    os._exit(int(said is not None))


def in_child(mutant: Mutant | None, run: Callable[[], str | None]) -> str | None:
    """What a function says in a child process in which the mutant is in force."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        said: str | None = "does not start"
        try:
            os.close(receiving)
            _telling.append(sending)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
            if mutant is not None:
                put_in(mutant)
            said = run()
        except BaseException as error:
            said = f"the tool\t{error!r}"
        finally:
            _tell(said)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answers:
        answer = answers.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if answer.startswith("the tool"):
        pytest.exit(f"{mutant}: {answer}", 2)
    return None if status == 0 else answer or "its process\tdied"


def _about(mutant: Mutant) -> tuple[str, str, int, str, bool, str, str]:
    one = mutant
    return one.id, one.path, one.line, one.function, one.condition, one.what, one.before


class _Plugin:
    """Does the work where pytest has collected the tests, and would run them."""

    def __init__(self, found: list[Mutant], results: dict[str, Result], options: Any) -> None:
        self._found = found
        self._results = results
        self._options = options
        self._bench: Bench | None = None

    def pytest_configure(self) -> None:
        # Not at the top: pytest must see the import.
        from hypothesis import Phase, settings

        # A failing example need not be the smallest, and the same ones are tried always.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile(
            "mutate", phases=phases, database=None, derandomize=True, deadline=None
        )
        settings.load_profile("mutate")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self._bench is not None:
            self._bench.failed(report)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        options, results = self._options, self._results
        bench = self._bench = Bench.__new__(Bench)
        bench.__init__(session, options)  # type: ignore[misc]
        for result in results.values():
            bench.learn(result)
        gc.collect()
        gc.freeze()
        found = self._found
        for number, mutant in enumerate(found, 1):
            before = results.get(mutant.id)
            if before is not None and not (
                options.again and before.killer not in KILLERS and reason_of(mutant) is None
            ):
                continue
            result = results[mutant.id] = bench.try_out(mutant, before)
            bench.learn(result)
            if options.results is not None:
                with options.results.open("a") as kept:
                    kept.write(json.dumps(result) + "\n")
            said = "SURVIVES" if result.killer is None else f"killed by {result.killer}"
            print(
                f"{number}/{len(found)} {mutant.path}:{mutant.line}: {mutant.what}: {said} "
                f"{result.how} ({result.seconds} s)",
                file=sys.stderr,
                flush=True,
            )
        return True


def main() -> int:
    """Returns 1 where more than a twentieth of the mutants survive."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, help="the file that keeps the results")
    parser.add_argument("--only", default="", help="files whose path ends with this")
    parser.add_argument("--function", default="", help="functions whose name contains this")
    parser.add_argument("--line", type=int, help="only the mutants of this line")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth mutant, from the Kth")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for a survivor")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each profile")
    parser.add_argument("--scenario-seeds", type=int, default=2, help="seeds of each scenario")
    parser.add_argument("--statements", action="store_true", help="not only conditions")
    parser.add_argument("--quick", action="store_true", help="without the searches of the explorer")
    parser.add_argument(
        "--tests", default="", help="no histories, and only the tests whose name contains this"
    )
    parser.add_argument("--units", action="store_true", help="unit tests for the survivors")
    parser.add_argument("--again", action="store_true", help="the survivors without a reason again")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    parser.add_argument("--report", action="store_true", help="only print the table")
    options = parser.parse_args()
    found = [
        mutant
        for mutant in all_mutants(options.statements)
        if mutant.path.endswith(options.only)
        and options.function in mutant.function
        and options.line in (None, mutant.line)
    ]
    first, _, step = options.part.partition("/")
    found = found[int(first) - 1 :: int(step)]
    if options.list:
        for mutant in found:
            print(f"{mutant.path}:{mutant.line}: {mutant.what}: {mutant.before}")
        return 0
    if not options.report and COPIED not in os.environ:
        if options.results is not None and not options.results.is_absolute():
            parser.error("--results needs an absolute path")
        _in_a_copy()
    results = _kept(options.results)
    if not options.report:
        try:
            _try_all(found, results, options)
        finally:
            shutil.rmtree(os.environ[COPIED], ignore_errors=True)
    shown = [results[mutant.id] for mutant in found if mutant.id in results]
    print(table(found, results))
    missed = sum(result.killer not in KILLERS for result in shown)
    return int(missed * 20 > len(shown))


def _kept(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    kept = [Result(*json.loads(line)) for line in path.read_text().splitlines()]
    return {result.id: result for result in kept}


def _try_all(found: list[Mutant], results: dict[str, Result], options: argparse.Namespace) -> None:
    units = [f"tests/unit/test_{name}.py" for name in UNIT] if options.units else []
    without = ("cacheprovider", "xdist", "randomly", "timeout", "asyncio")
    arguments = [
        *("-q", "-s", "--tb=line"),
        *(part for name in without for part in ("-p", f"no:{name}")),
    ]
    # Shuffled within a file, so that a run that is stopped has seen some of every function.
    order = {path: number for number, path in enumerate(dict.fromkeys(one.path for one in found))}
    found = sorted(Random(0).sample(found, len(found)), key=lambda one: order[one.path])
    pytest.main(
        [*arguments, *EXPLORER, *CONFORMANCE, *units], plugins=[_Plugin(found, results, options)]
    )


def _in_a_copy() -> NoReturn:
    """Goes on with a copy of the sources, which nobody edits meanwhile."""
    place = Path(tempfile.mkdtemp(prefix="mutate-"))
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{place / 'src'}{os.pathsep}{place}",
        "PYTHONHASHSEED": "0",
        COPIED: str(place),
    }
    os.chdir(place)
    command = [sys.executable, "-m", "tests.simulation.mutate", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


def _became(mutant: Mutant, result: Result) -> str:
    if result.killer is not None:
        return result.killer
    return "left" if reason_of(mutant) is None else "explained"


def table(found: list[Mutant], results: dict[str, Result]) -> str:
    """What killed how many of which file, and the survivors, in Markdown."""
    shown = [(mutant, results[mutant.id]) for mutant in found if mutant.id in results]
    titles = [*KILLERS, "caught", "only by unit tests", "explained", "left"]
    lines = [
        "| file | conditions | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for path in [*sorted({mutant.path for mutant, _ in shown}), ""]:
        became = Counter(
            _became(mutant, result) for mutant, result in shown if path in ("", mutant.path)
        )
        caught = sum(became[killer] for killer in KILLERS)
        cells = [
            f"simulated store: {Path(path).name}" if path in STORE else Path(path).name,
            str(became.total()),
            *(str(became[killer]) for killer in KILLERS),
            f"{100 * caught / max(became.total(), 1):.1f} %",
            *(str(became[other]) for other in ("unit", "explained", "left")),
        ]
        if not path:
            cells[0] = "**all**"
        lines.append("| " + " | ".join(cells) + " |")
    seconds = sum(result.seconds for _, result in shown)
    lines += [
        "",
        f"{len(shown)} of {len(found)} mutants were tried, in {seconds / 60:.0f} minutes of the "
        "processor.",
        "",
        "| not caught | function | change | line | unit tests | reason |",
        "|---|---|---|---|---|---|",
    ]
    for mutant, result in sorted(shown, key=lambda one: (one[0].path, one[0].line)):
        if result.killer in KILLERS:
            continue
        unit = "yes" if result.killer == "unit" else "no"
        reason = reason_of(mutant) or ""
        columns = (mutant.function, mutant.what, f"`{mutant.before}`", unit, reason)
        said = " | ".join(cell.replace("|", "\\|") for cell in columns)
        lines.append(f"| {mutant.path}:{mutant.line} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
