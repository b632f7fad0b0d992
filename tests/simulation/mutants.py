"""The mutants of the engine and of the simulated store: each is the program with one change.

The conditions: a comparison negated, or shifted by one where time is a few whole numbers; a
condition inverted; ``and`` and ``or`` exchanged, one side of them left out; ``not`` left out;
``min`` and ``max`` exchanged. With ``statements``, too: a statement left out, a number moved, a
boolean flipped, ``+`` and ``-`` exchanged.

What runs only when a module is imported is not changed, and neither is what only says something:
logs, texts of errors.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]

ENGINE: Final = "src/pyncette/engine/*.py"
STORE: Final = ("tests/simulation/world.py", "tests/simulation/model.py")
IN_STORE: Final = frozenset(
    {"Server", "claimable", "taken", "taken_before", "written", "next_version"}
)
"""Of the modules of the simulated store, the parts that are the store."""

TALK: Final = frozenset(
    {"_some_names", "_log_not_started", "_log_lost", "_left_behind", "_log_what_follows"}
)
"""Functions that only say something."""

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
_SCOPES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Mutant(NamedTuple):
    """One change.

    Attributes:
        id: Identifies it, as long as its function does not change.
        path: The file, relative to the root.
        line: Where.
        function: In which function.
        lines: The lines that run when the change has an effect.
        condition: Whether it is about a condition.
        what: The change in words.
        before: The line as it was.
        place: Which node of the file, and which of its changes.
    """

    id: str
    path: str
    line: int
    function: str
    lines: range
    condition: bool
    what: str
    before: str
    place: tuple[int, int]

    @property
    def module(self) -> str:
        """The last part of the name of its module."""
        return Path(self.path).stem


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


def all_mutants(statements: bool = False) -> list[Mutant]:
    """Those of the engine and of the simulated store; those of the rules first."""
    engine = sorted(ROOT.glob(ENGINE), key=lambda path: (path.stem != "rules", path))
    paths = [*engine, *(ROOT / path for path in STORE)]
    return [mutant for path in paths for mutant in mutants(path, statements)]


def mutants(path: Path, statements: bool) -> Iterator[Mutant]:
    """All mutants of a file."""
    lines = path.read_text().splitlines()
    store = path.name in ("world.py", "model.py")
    # Elsewhere instants are drawn from so many that two of them are never equal.
    small = path.name in ("rules.py", "polling.py", "model.py", "world.py")
    name = str(path.relative_to(ROOT))
    seen: Counter[str] = Counter()
    for index, place in enumerate(_parsed(path)):
        node, parents = place.node, place.parents
        running = _running_lines([*parents, node])
        if not running or _is_talk(node, parents) or (store and not _in_store(parents)):
            continue
        scopes = [one for one in parents if isinstance(one, _SCOPES)]
        function = next(one for one in scopes if not isinstance(one, ast.ClassDef))
        qualified = ".".join(scope.name for scope in scopes)
        for number, (condition, what, replacement) in enumerate(_changes(node)):
            if (not condition and not statements) or (what == "comparison shifted" and not small):
                continue
            place.replace(ast.copy_location(replacement, node))
            text = f"{name}\0{qualified}\0{what}\0{ast.unparse(function)}"
            place.replace(node)
            seen[text] += 1
            line = getattr(node, "lineno", 0)
            yield Mutant(
                hashlib.sha256(f"{text}\0{seen[text]}".encode()).hexdigest()[:20],
                name,
                line,
                qualified,
                running,
                condition,
                what,
                lines[line - 1].strip(),
                (index, number),
            )


def _places(tree: ast.AST) -> list[_Place]:
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

    return list(visit(tree, []))


def _running_lines(chain: list[ast.AST]) -> range:
    """The lines of the innermost statement; of one with a body, those before it.

    Outside of functions: none, since they run when the module is imported.
    """
    if not any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in chain):
        return range(0)
    statement = next(node for node in reversed(chain) if isinstance(node, ast.stmt))
    if isinstance(statement, _SCOPES):
        return range(0)  # a decorator or a default
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
            inner.name in TALK or inner.name in ("__str__", "__repr__")
        ):
            return True
        if isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING":
            return True
    return False


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


# In force.


def put_in(mutant: Mutant) -> None:
    """Gives the function of the mutant the changed code, in this process.

    Raises:
        RuntimeError: No function has changed.
    """
    index, number = mutant.place
    place = _parsed(ROOT / mutant.path)[index]
    _, _, replacement = list(_changes(place.node))[number]
    place.replace(ast.copy_location(replacement, place.node))
    # Only what stands at the top of the module around it is compiled anew.
    around = ast.fix_missing_locations(place.parents[1])
    assert isinstance(around, _SCOPES)
    name = mutant.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    module = import_module(name)
    code = compile(
        ast.Module([around], []),
        str(module.__file__),
        "exec",
        annotations.compiler_flag,
        dont_inherit=True,
    )
    changed = dict(vars(module))
    exec(code, changed)
    if not _take_code({around.name: vars(module)[around.name]}, changed, module.__name__):
        raise RuntimeError(f"{mutant.path}:{mutant.line}: {mutant.what}: not in force")


@cache
def _parsed(path: Path) -> list[_Place]:
    return _places(ast.parse(path.read_text()))


def _take_code(old: Mapping[str, Any], new: Mapping[str, Any], module: str) -> int:
    """Returns how many functions have got other code."""
    count = 0
    for name, item in list(old.items()):
        mine, changed = _plain(item), _plain(new.get(name))
        if getattr(mine, "__module__", None) != module:
            continue
        if isinstance(mine, FunctionType) and isinstance(changed, FunctionType):
            if not _same(mine.__code__, changed.__code__):
                mine.__code__ = changed.__code__
                count += 1
        elif isinstance(mine, type) and isinstance(changed, type):
            count += _take_code(vars(mine), vars(changed), module)
    return count


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two pieces of code do the same, byte by byte."""
    return (
        one.co_code == other.co_code
        and one.co_names == other.co_names
        and len(one.co_consts) == len(other.co_consts)
        and all(
            _same(mine, its)
            if isinstance(mine, CodeType) and isinstance(its, CodeType)
            else (type(mine), mine) == (type(its), its)
            for mine, its in zip(one.co_consts, other.co_consts, strict=True)
        )
    )


def _plain(item: Any) -> Any:
    """The function behind a property, a static method or a decorator."""
    item = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
    return inspect.unwrap(item) if callable(item) else item
