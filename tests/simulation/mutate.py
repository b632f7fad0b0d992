"""Breaks each condition of the engine and of the simulated store in turn, and sees what notices.

    python -m tests.simulation.mutate --results FILE                  every condition
    python -m tests.simulation.mutate --results FILE --statements     and every statement, too
    python -m tests.simulation.mutate --results FILE --part 1/4       a quarter, spread evenly
    python -m tests.simulation.mutate --results FILE --report         only print the table

A mutant is the engine, or the simulated store, with one change. The conditions: a comparison
negated, or shifted by one where time is a few whole numbers; a condition inverted; ``and`` and
``or`` exchanged, one side of them left out; ``not`` left out; ``min`` and ``max`` exchanged. With
``--statements``, too: a statement left out, a number moved, a boolean flipped, ``+`` and ``-``
exchanged.

A mutant is killed by the first that fails, in the order of cost: a few histories of the simulation
that reach the changed line; the conformance suite (the simulated store); the search through all
interleavings (the rules); the other histories. What all of these miss is shown to the unit tests,
which count apart. The results are kept in a file: a run that was stopped goes on where it was, and
only mutants of files that have changed since are tried again. ``--again`` tries the survivors
again, after a new scenario.

The survivors that are known have a reason in ``tests/simulation/survivors.py``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import inspect
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any, Final, NamedTuple, NoReturn

import pytest
from tests.simulation.catching import catch, names, survey
from tests.simulation.survivors import SURVIVORS

ROOT: Final = Path(__file__).resolve().parents[2]

ENGINE: Final = "src/pyncette/engine/*.py"
STORE: Final = ("tests/simulation/world.py", "tests/simulation/model.py")
IN_STORE: Final = frozenset(
    {"Server", "claimable", "taken", "taken_before", "written", "next_version"}
)
"""Of the modules of the simulated store, the parts that are the store."""

CPU_MAX_S: Final = 120
"""Seconds of the processor that each of a mutant's runs may take."""

MEMORY_MAX_BYTES: Final = 1 << 30
"""A mutant may loop for ever and keep what it makes: no more than this."""

FIRST: Final = 12
"""So many histories are run before the search through all interleavings."""

PYTEST: Final = ("-xq", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly")
EXPLORER: Final = (
    "tests/simulation/test_small_records.py",
    "tests/simulation/test_explorer.py",
)
CONFORMANCE: Final = ("tests/simulation/test_world.py",)

UNIT: Final = {
    "alarm": ("loop", "virtual_clock"),
    "background": ("closing", "writes", "execution"),
    "backlog": ("backlog",),
    "dispatch": ("loop", "execution", "executor", "closing"),
    "execution": ("execution", "bodies", "body", "closing"),
    "loop": ("loop", "large_records", "closing"),
    "polling": ("polling", "loop"),
    "rules": ("rules",),
    "static_tasks": ("loop", "task", "clock_of_the_store"),
    "templates": ("templates",),
    "worker": ("loop", "closing", "executor"),
    "writes": ("writes", "large_records", "closing"),
}
"""The unit tests of each module of the engine."""

COPIED: Final = "PYNCETTE_MUTATE_COPIED"

KILLERS: Final = ("simulation", "explorer", "conformance")

_SHIFTED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_NEGATED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Mutant(NamedTuple):
    """One change.

    Attributes:
        path: The file, relative to the root.
        line: Where.
        function: In which function; empty: in none.
        lines: The lines that run when the change has an effect.
        condition: Whether it is about a condition.
        what: The change in words.
        before: The line as it was.
        text: The whole file, changed.
    """

    path: str
    line: int
    function: str
    lines: range
    condition: bool
    what: str
    before: str
    text: str

    @property
    def id(self) -> str:
        """Identifies the mutant, as long as its file does not change."""
        return hashlib.sha256(f"{self.path}\0{self.text}".encode()).hexdigest()[:20]


class Result(NamedTuple):
    """What became of a mutant.

    Attributes:
        id, path, line, function, condition, what, before: See ``Mutant``.
        killer: What has killed it; None if nothing has.
        how: The history or test, and what it said.
        histories: How many histories of the survey reach the line.
        seconds: How long it took.
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
    histories: int
    seconds: float


# What is changed.


class _Place(NamedTuple):
    """A node, and where it stands."""

    node: ast.AST
    parents: list[ast.AST]
    field: str
    position: int | None

    def replace(self, other: ast.AST) -> None:
        if self.position is None:
            setattr(self.parents[-1], self.field, other)
        else:
            getattr(self.parents[-1], self.field)[self.position] = other


def mutants(path: Path, root: Path, statements: bool) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = path.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    store = path.name in ("world.py", "model.py")
    # Elsewhere instants are drawn from so many that two of them are never equal.
    small = path.name in ("rules.py", "polling.py", "model.py", "world.py")
    for place in list(_places(tree)):
        node, parents = place.node, place.parents
        if _is_talk(node, parents) or (store and not _in_store(parents)):
            continue
        for condition, what, replacement in _changes(node):
            if (not condition and not statements) or (what == "comparison shifted" and not small):
                continue
            place.replace(ast.copy_location(replacement, node))
            text = ast.unparse(ast.fix_missing_locations(tree))
            place.replace(node)
            line = getattr(node, "lineno", 0)
            names = [getattr(one, "name", "") for one in parents if isinstance(one, _SCOPES)]
            yield Mutant(
                str(path.relative_to(root)),
                line,
                ".".join(names),
                _running_lines([*parents, node]),
                condition,
                what,
                lines[line - 1].strip(),
                text,
            )


_SCOPES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _places(tree: ast.AST) -> Iterator[_Place]:
    def visit(node: ast.AST, parents: list[ast.AST]) -> Iterator[_Place]:
        around = [*parents, node]
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                yield _Place(value, around, field, None)
                yield from visit(value, around)
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.AST):
                        yield _Place(item, around, field, index)
                        yield from visit(item, around)

    yield from visit(tree, [])


def _running_lines(chain: list[ast.AST]) -> range:
    """The lines of the innermost statement; of one with a body, those before it.

    Outside of functions: none, since they run when the module is imported.
    """
    if not any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in chain):
        return range(0)
    statement = next(node for node in reversed(chain) if isinstance(node, ast.stmt))
    end = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if body:
        end = max(body[0].lineno - 1, statement.lineno)
    return range(statement.lineno, end + 1)


def _in_store(parents: list[ast.AST]) -> bool:
    return any(getattr(parent, "name", None) in IN_STORE for parent in parents)


def _is_talk(node: ast.AST, parents: list[ast.AST]) -> bool:
    """Whether it is only about what is said: logs, errors, docstrings, annotations, slots."""
    for inner in (*parents, node):
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
            return True
        if isinstance(inner, (ast.Raise, ast.JoinedStr, ast.AnnAssign, ast.arguments)) and not (
            isinstance(inner, ast.AnnAssign) and inner.value is not None and inner is not node
        ):
            return True
        if isinstance(inner, ast.Call):
            name = ast.unparse(inner.func)
            if name.startswith("logger.") or name.endswith(".note"):
                return True
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and (
            inner.name in TALK or inner.name == "__str__"
        ):
            return True
        if isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING":
            return True
    return False


TALK: Final = frozenset(
    {"_some_names", "_log_not_started", "_log_lost", "_left_behind", "_look_for_static_records"}
)
"""Functions that only say something."""


def _changes(node: ast.AST) -> Iterator[tuple[bool, str, ast.AST]]:
    """The changes of a node: about a condition or not, in words, and what takes its place."""
    match node:
        case ast.Compare(ops=[operator]):
            for kind, table in (("negated", _NEGATED), ("shifted", _SHIFTED)):
                if type(operator) in table:
                    changed = copy.copy(node)
                    changed.ops = [table[type(operator)]()]
                    yield True, f"comparison {kind}", changed
        case ast.BoolOp():
            changed_bool = copy.copy(node)
            changed_bool.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield True, "and/or exchanged", changed_bool
            for index, value in enumerate(node.values):
                if isinstance(value, ast.Constant):  # a default, and no condition
                    continue
                left = [value for at, value in enumerate(node.values) if at != index]
                yield (
                    True,
                    f"without '{ast.unparse(node.values[index])}'",
                    left[0] if len(left) == 1 else ast.BoolOp(node.op, left),
                )
        case ast.UnaryOp(op=ast.Not()):
            yield True, "without not", node.operand
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(
            test, (ast.Compare, ast.UnaryOp)
        ):
            inverted = copy.copy(node)
            inverted.test = ast.UnaryOp(ast.Not(), test)
            yield True, "condition inverted", inverted
        case ast.Call(func=ast.Name(id=("min" | "max") as name)):
            other = copy.copy(node)
            other.func = ast.Name("max" if name == "min" else "min", ast.Load())
            yield True, "min/max exchanged", other
        case ast.Constant(value=bool() as flag):
            yield False, "flag flipped", ast.Constant(not flag)
        case ast.Constant(value=int() as number):
            yield False, f"{number} + 1", ast.Constant(number + 1)
        case ast.BinOp(op=(ast.Add() | ast.Sub()) as operator):
            swapped = copy.copy(node)
            swapped.op = ast.Sub() if isinstance(operator, ast.Add) else ast.Add()
            yield False, "+/- exchanged", swapped
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Delete():
            yield False, f"without '{ast.unparse(node)[:60]}'", ast.Pass()
        case ast.Return(value=ast.expr()) | ast.Continue() | ast.Break():
            yield False, f"without '{ast.unparse(node)[:60]}'", ast.Pass()


# Trying out.


class Bench:
    """Tries out one mutant after the other, each in a child process that is made by a fork.

    The child has all modules already; it gives the functions of one of them the changed code.
    """

    def __init__(self, seeds: int, scenario_seeds: int, units: bool) -> None:
        """Surveys which histories reach which lines."""
        self._units = units
        paths = [*(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(ENGINE))), *STORE]
        found = survey(names(seeds, scenario_seeds), ROOT, paths)
        self._seconds = {name: one["seconds"] for name, one in found.items()}
        self._reached: dict[str, dict[str, frozenset[int]]] = {
            name: {path: frozenset(lines) for path, lines in one["lines"].items()}
            for name, one in found.items()
        }
        # How many mutants each history has killed, of a file and of a function.
        self._kills: Counter[tuple[str, str]] = Counter()

    def learn(self, result: Result) -> None:
        """What has killed one mutant is likely to kill its neighbours."""
        name = result.how.partition("\t")[0]
        if result.killer == "simulation":
            self._kills[name, result.path] += 1
            self._kills[name, f"{result.path}:{result.function}"] += 1

    def histories(self, mutant: Mutant) -> list[str]:
        """Those that reach the changed line, the most promising first."""
        wanted, none = set(mutant.lines), frozenset[int]()
        reaching = [
            name
            for name, files in self._reached.items()
            if not wanted or wanted & files.get(mutant.path, none)
        ]
        function = f"{mutant.path}:{mutant.function}"
        kills, seconds = self._kills, self._seconds
        return sorted(
            reaching,
            key=lambda name: (-kills[name, function], -kills[name, mutant.path], seconds[name]),
        )

    def try_out(self, mutant: Mutant) -> Result:
        """Runs what may notice a mutant, until one does."""
        began = time.monotonic()
        histories = self.histories(mutant)
        name = Path(mutant.path).stem
        runs: list[tuple[str, Callable[[], str | None]]] = [
            ("simulation", partial(_simulated, histories[:FIRST]))
        ]
        if mutant.path in STORE:
            runs.append(("conformance", partial(_tested, CONFORMANCE)))
        if name in ("rules", "model"):
            runs.append(("explorer", partial(_tested, EXPLORER)))
        runs.append(("simulation", partial(_simulated, histories[FIRST:])))
        if name in UNIT and self._units:
            files = [f"tests/unit/test_{unit}.py" for unit in UNIT[name]]
            runs.append(("unit", partial(_tested, files)))
        killer, how = None, ""
        for one, run in runs:
            found = in_child(mutant, run)
            if found is not None:
                killer, how = one, found
                break
        took = round(time.monotonic() - began, 1)
        return Result(mutant.id, *_about(mutant), killer, how, len(histories), took)


def _simulated(histories: Sequence[str]) -> str | None:
    caught = catch(histories)
    return None if caught is None else "\t".join(caught)


def _tested(files: Sequence[str]) -> str | None:
    said = io.StringIO()
    with redirect_stdout(said):
        code = pytest.main([*PYTEST, *files])
    return None if code == 0 else said.getvalue().strip().splitlines()[-1]


def in_child(mutant: Mutant | None, run: Callable[[], str | None]) -> str | None:
    """What a function says in a child process in which the mutant is in force."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        said: str | None = "does not start"
        try:
            os.close(receiving)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
            if mutant is not None:
                put_in(mutant)
            said = run()
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(sending, (said or "")[:250].encode())
            os._exit(int(said is not None))
    os.close(sending)
    with os.fdopen(receiving, "rb") as answers:
        answer = answers.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return None if status == 0 else answer or "does not end"


def put_in(mutant: Mutant) -> None:
    """Gives the functions of the mutant's module the changed code."""
    path = mutant.path.removeprefix("src/").removesuffix(".py")
    module = import_module(path.replace("/", "."))
    changed: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(mutant.text, str(module.__file__), "exec"), changed)
    _take_code(vars(module), changed, module.__name__)


def _take_code(old: Mapping[str, Any], new: Mapping[str, Any], module: str) -> None:
    for name, item in list(old.items()):
        mine, changed = _plain(item), _plain(new.get(name))
        if getattr(mine, "__module__", None) != module:
            continue
        if isinstance(mine, FunctionType) and isinstance(changed, FunctionType):
            mine.__code__ = changed.__code__
        elif isinstance(mine, type) and isinstance(changed, type):
            _take_code(vars(mine), vars(changed), module)


def _plain(item: Any) -> Any:
    """The function behind a property, a static method or a decorator."""
    item = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
    return inspect.unwrap(item) if callable(item) else item


def _about(mutant: Mutant) -> tuple[str, int, str, bool, str, str]:
    path, line, function, _, condition, what, before, _ = mutant
    return path, line, function, condition, what, before


def main() -> int:
    """Returns 1 where more than a twentieth of the mutants survive."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, help="the file that keeps the results")
    parser.add_argument("--only", default="", help="files whose path ends with this")
    parser.add_argument("--line", type=int, help="only the mutants of this line")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth mutant, from the Kth")
    parser.add_argument("--seeds", type=int, default=30, help="seeds of each profile")
    parser.add_argument("--scenario-seeds", type=int, default=2, help="seeds of each scenario")
    parser.add_argument("--statements", action="store_true", help="not only conditions")
    parser.add_argument("--no-units", action="store_true", help="without the unit tests")
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    parser.add_argument("--report", action="store_true", help="only print the table")
    options = parser.parse_args()
    paths = [*sorted(ROOT.glob(ENGINE)), *(ROOT / path for path in STORE)]
    found = [
        mutant
        for path in paths
        if str(path).endswith(options.only)
        for mutant in mutants(path, ROOT, options.statements)
        if options.line in (None, mutant.line)
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
    print(table(shown, len(found)))
    missed = sum(result.killer not in KILLERS for result in shown)
    return int(missed * 20 > len(shown))


def _kept(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    kept = [Result(*json.loads(line)) for line in path.read_text().splitlines()]
    return {result.id: result for result in kept}


def _try_all(found: list[Mutant], results: dict[str, Result], options: argparse.Namespace) -> None:
    for name, files in (("explorer", EXPLORER), ("conformance", CONFORMANCE)):
        failed = in_child(None, partial(_tested, files))
        if failed is not None:
            raise SystemExit(f"Without a mutation the {name} fails, too: {failed}")
    bench = Bench(options.seeds, options.scenario_seeds, not options.no_units)
    for result in results.values():
        bench.learn(result)
    # Shuffled, so that a run that is stopped has seen some of every module.
    for number, mutant in enumerate(Random(0).sample(found, len(found)), 1):
        before = results.get(mutant.id)
        if before is not None and not (options.again and before.killer not in KILLERS):
            continue
        result = results[mutant.id] = bench.try_out(mutant)
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


def table(results: list[Result], wanted: int) -> str:
    """What killed how many of which file, and the survivors, in Markdown."""
    killers = (*KILLERS, "unit", None)
    titles = ["simulation", "explorer", "conformance", "only unit tests", "nothing"]
    lines = [
        "| file | mutants | " + " | ".join(titles) + " | caught without unit tests |",
        "|---" * (len(titles) + 3) + "|",
    ]
    paths = sorted({result.path for result in results})
    for path in [*paths, ""]:
        mine = [result for result in results if path in ("", result.path)]
        counts = [sum(result.killer == killer for result in mine) for killer in killers]
        caught = f"{100 * sum(counts[:3]) / max(len(mine), 1):.1f} %"
        row = [path or "**all**", str(len(mine)), *map(str, counts), caught]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        f"{len(results)} of {wanted} mutants were tried.",
        "",
        "| not caught | function | change | line | unit tests | reason |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda one: one[1:3]):
        if result.killer in KILLERS:
            continue
        reason = SURVIVORS.get((Path(result.path).stem, result.function, result.what), "")
        reason = reason or SURVIVORS.get((Path(result.path).stem, result.function, "*"), "")
        unit = "yes" if result.killer == "unit" else "no"
        cells = (result.function, result.what, f"`{result.before}`", unit, reason)
        shown = " | ".join(cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| {result.path}:{result.line} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
