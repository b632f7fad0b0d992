"""Breaks each condition of the engine and of the simulated store in turn, and sees who notices.

    python -m tests.simulation.mutate                          the engine of this tree, all mutants
    python -m tests.simulation.mutate --only rules.py --sample 50
    python -m tests.simulation.mutate --tests-too              after the simulation: explorer, unit

A mutant is a copy of the sources with one change: a comparison negated or shifted by one, a
condition inverted, ``and`` and ``or`` exchanged, a number moved, a boolean flipped, a statement
left out. It is killed by the first of these that fails: the scenarios and some seeds of the
simulation; the exhaustive search over the rules; the unit tests of the engine. The survivors are
printed as a table, each with its line before and after.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]

ENGINE: Final = "src/pyncette/engine/*.py"
STORE: Final = ("tests/simulation/world.py", "tests/simulation/model.py")
IN_STORE: Final = frozenset(
    {"Server", "claimable", "taken", "taken_before", "written", "next_version"}
)
"""Of the modules of the simulated store, the parts that are the store."""

TIMEOUT_S: Final = 120.0

MEMORY_MAX_BYTES: Final = 1 << 30
"""A mutant may loop for ever and keep what it makes: no more than this."""

SIMULATION: Final = ("-m", "tests.simulation", "--any")
EXPLORER: Final = (
    "-m",
    "pytest",
    "-xq",
    "-p",
    "no:cacheprovider",
    "tests/simulation/test_explorer.py",
)
CONFORMANCE: Final = (
    "-m",
    "pytest",
    "-xq",
    "-p",
    "no:cacheprovider",
    "tests/simulation/test_world.py",
)
UNIT: Final = (
    *("-m", "pytest", "-xq", "-p", "no:cacheprovider"),
    *(f"tests/unit/test_{name}.py" for name in ("rules", "loop", "execution", "writes", "polling")),
)

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
        what: The change in words.
        before: The line as it was.
        text: The whole file, changed.
    """

    path: str
    line: int
    what: str
    before: str
    text: str


class Result(NamedTuple):
    """What became of a mutant: who killed it, or None."""

    mutant: Mutant
    killer: str | None
    how: str


def mutants(path: Path, root: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = path.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    for number, (node, parents) in enumerate(_nodes(tree)):
        if path.name in ("world.py", "model.py") and not _in_store(parents):
            continue
        if _is_talk(node, parents):
            continue
        for what, replacement in _changes(node):
            changed = _replaced(tree, number, replacement)
            line = getattr(node, "lineno", 0)
            yield Mutant(
                str(path.relative_to(root)),
                line,
                what,
                lines[line - 1].strip() if line else "",
                ast.unparse(ast.fix_missing_locations(changed)),
            )


def _nodes(tree: ast.AST) -> list[tuple[ast.AST, list[ast.AST]]]:
    """All nodes with those around them, in an order that is the same for a copy."""
    found: list[tuple[ast.AST, list[ast.AST]]] = []

    def visit(node: ast.AST, parents: list[ast.AST]) -> None:
        found.append((node, parents))
        for child in ast.iter_child_nodes(node):
            visit(child, [*parents, node])

    visit(tree, [])
    return found


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
    return False


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=[operator]):
            for kind, table in (("negated", _NEGATED), ("shifted", _SHIFTED)):
                if type(operator) in table:
                    changed = copy.deepcopy(node)
                    changed.ops = [table[type(operator)]()]
                    yield f"comparison {kind}", changed
        case ast.BoolOp():
            changed_bool = copy.deepcopy(node)
            changed_bool.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and/or exchanged", changed_bool
            for index in range(len(node.values)):
                left = [value for at, value in enumerate(node.values) if at != index]
                yield (
                    f"without '{ast.unparse(node.values[index])}'",
                    left[0] if len(left) == 1 else ast.BoolOp(node.op, left),
                )
        case ast.UnaryOp(op=ast.Not()):
            yield "without not", node.operand
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(
            test, (ast.Compare, ast.UnaryOp)
        ):
            inverted = copy.deepcopy(node)
            inverted.test = ast.UnaryOp(ast.Not(), test)
            yield "condition inverted", inverted
        case ast.Constant(value=bool() as flag):
            yield "flag flipped", ast.Constant(not flag)
        case ast.Constant(value=int() as number):
            yield f"{number} + 1", ast.Constant(number + 1)
        case ast.BinOp(op=(ast.Add() | ast.Sub()) as operator):
            swapped = copy.deepcopy(node)
            swapped.op = ast.Sub() if isinstance(operator, ast.Add) else ast.Add()
            yield "+/- exchanged", swapped
        case ast.Call(func=ast.Name(id=("min" | "max") as name)):
            other = copy.deepcopy(node)
            other.func = ast.Name("max" if name == "min" else "min", ast.Load())
            yield "min/max exchanged", other
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Delete():
            yield f"without '{ast.unparse(node)[:60]}'", ast.Pass()
        case ast.Return(value=ast.expr()) | ast.Continue() | ast.Break():
            yield f"without '{ast.unparse(node)[:60]}'", ast.Pass()


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST) -> None:
        self._target = target
        self._replacement = replacement

    def visit(self, node: ast.AST) -> Any:
        return self._replacement if node is self._target else super().visit(node)


def _replaced(tree: ast.Module, number: int, replacement: ast.AST) -> ast.AST:
    changed = copy.deepcopy(tree)
    return _Replace(_nodes(changed)[number][0], copy.deepcopy(replacement)).visit(changed)  # type: ignore[no-any-return]


def try_out(mutant: Mutant, place: Path, options: argparse.Namespace) -> Result:
    """Writes the mutant into a copy of the sources, and runs what may notice."""
    target = place / mutant.path
    original = target.read_text()
    target.write_text(mutant.text)
    try:
        runs: list[tuple[str, tuple[str, ...]]] = [("simulation", _simulation(options))]
        if options.tests_too:
            if mutant.path in STORE:
                runs.append(("conformance", CONFORMANCE))
            if mutant.path.endswith(("rules.py", "model.py")):
                runs.append(("explorer", EXPLORER))
            if mutant.path not in STORE:
                runs.append(("unit", UNIT))
        for name, command in runs:
            how = _fails(place, command)
            if how is not None:
                return Result(mutant, name, how)
        return Result(mutant, None, "")
    finally:
        target.write_text(original)


def _simulation(options: argparse.Namespace) -> tuple[str, ...]:
    return (*SIMULATION, "--seeds", options.seeds, "--skip", options.skip)


def _fails(place: Path, command: tuple[str, ...]) -> str | None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{place / 'src'}{os.pathsep}{place}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            preexec_fn=_limit_memory,
        )
    except subprocess.TimeoutExpired:
        return "takes too long"
    if done.returncode == 0:
        return None
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return said[-1][:160] if said else f"exit {done.returncode}"


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))


def main() -> int:
    """Returns 1 where more than a twentieth of the mutants survive."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="files whose path ends with this")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn")
    parser.add_argument("--seeds", default="0-29", help="seeds of each profile for a mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests-too", action="store_true", help="explorer, unit, conformance too")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    parser.add_argument("--skip", default="", help="a scenario that fails without a mutation")
    parser.add_argument("--source", type=Path, default=ROOT, help="the root of another tree")
    options = parser.parse_args()
    root = options.source.resolve()
    paths = [
        *((root, path) for path in sorted(root.glob(ENGINE))),
        *((ROOT, ROOT / path) for path in STORE),
    ]
    found = [
        mutant
        for base, path in paths
        if str(path).endswith(options.only)
        for mutant in mutants(path, base)
    ]
    if options.sample and options.sample < len(found):
        found = sorted(Random(0).sample(found, options.sample), key=lambda one: one[:2])
    if options.list:
        for mutant in found:
            print(f"{mutant.path}:{mutant.line}: {mutant.what}: {mutant.before}")
        return 0
    began = time.monotonic()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        places = [_copy(root, Path(directory) / str(job)) for job in range(options.jobs)]
        commands = [_simulation(options)]
        if options.tests_too:
            commands += [EXPLORER, CONFORMANCE, UNIT]
        for command in commands:
            if (how := _fails(places[0], command)) is not None:
                print(f"Without a mutation it fails, too: {' '.join(command)}: {how}")
                return 2
        shares = [found[job :: options.jobs] for job in range(options.jobs)]

        def work(job: int) -> None:
            for mutant in shares[job]:
                result = try_out(mutant, places[job], options)
                results.append(result)
                said = "SURVIVES" if result.killer is None else f"killed by {result.killer}"
                print(
                    f"{len(results)}/{len(found)} {mutant.path}:{mutant.line}: {mutant.what}: "
                    f"{said} {result.how}",
                    file=sys.stderr,
                    flush=True,
                )

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work, range(options.jobs)))
    print(table(results))
    print(f"\nin {time.monotonic() - began:.0f} s")
    survivors = sum(result.killer is None for result in results)
    return int(survivors * 20 > len(results))


def _copy(root: Path, place: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(root / "src", place / "src", ignore=ignored)
    shutil.copytree(ROOT / "tests", place / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def table(results: list[Result]) -> str:
    """Who killed how many of which file, and the survivors, in Markdown."""
    killers = ("simulation", "explorer", "conformance", "unit")
    lines = [
        "| file | mutants | " + " | ".join(killers) + " | survive |",
        "|---" * (len(killers) + 3) + "|",
    ]
    for path in sorted({result.mutant.path for result in results}):
        mine = [result for result in results if result.mutant.path == path]
        counts = [sum(result.killer == killer for result in mine) for killer in (*killers, None)]
        lines.append(f"| {path} | {len(mine)} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "| survivor | change | line |", "|---|---|---|"]
    for result in sorted(results, key=lambda one: one.mutant[:2]):
        mutant = result.mutant
        if result.killer is None:
            lines.append(f"| {mutant.path}:{mutant.line} | {mutant.what} | `{mutant.before}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
