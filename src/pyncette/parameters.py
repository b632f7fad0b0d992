"""The parameters of a task's function that take arguments of the task, by their names.

They are read from the signature once, where the task is declared. The record of an instance, and
``context.args``, hold the arguments as JSON. The function gets the values that its annotations ask
for, see ``pyncette.conversion``.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, formatannotation
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from pyncette.body import name_of, signature_of
from pyncette.errors import ArgumentError, printable

if TYPE_CHECKING:
    from pyncette.conversion import Converter, Mismatch

_Convert = Callable[[Any], Any]

_WRAPPERS_MAX: Final = 100
_SIGNATURE_MAX: Final = 300


class Parameters:
    """The parameters of one function.

    Attributes:
        names: The names of those that take arguments, in order.
        required: Those of them without a default.
        lenient: Whether arguments that no parameter takes are left to ``context.args``. So it is
            if every parameter has a default and none an annotation, as functions could have in
            1.x: ``lambda context, n=n: …``.
    """

    __slots__ = (
        "_closed",
        "_mismatch",
        "_name",
        "_read_rest",
        "_readers",
        "_shown",
        "_write_rest",
        "_writers",
        "lenient",
        "names",
        "required",
    )

    def __init__(
        self,
        converters: Mapping[str, Converter],
        required: frozenset[str],
        rest: Converter | None,
        closed: Mapping[str, str],
        lenient: bool,
        shown: str,
    ) -> None:
        """Describes the parameters of a function.

        Args:
            converters: The converter of each parameter that takes an argument.
            required: Those of them that have no default.
            rest: The converter of all other arguments, which the function takes by ``**``.
            closed: The parameters that take no argument, and why.
            lenient: See the attribute.
            shown: The signature, for messages.
        """
        from pyncette.conversion import Mismatch

        self._mismatch: type[Mismatch] = Mismatch
        self._writers: dict[str, _Convert | None] = {
            **dict.fromkeys(closed),
            **{name: converter.write for name, converter in converters.items()},
        }
        self._readers: dict[str, _Convert | None] = {
            **dict.fromkeys(closed),
            **{name: converter.read for name, converter in converters.items()},
        }
        self._write_rest: _Convert | None = None if rest is None else rest.write
        self._read_rest: _Convert | None = None if rest is None else rest.read
        self._closed = closed
        self._shown = shown
        self.names: tuple[str, ...] = tuple(converters)
        self.required: frozenset[str] = required
        self.lenient: bool = lenient

    def written(
        self, args: Mapping[str, Any], label: Callable[[], str], hint: Callable[[str], str]
    ) -> dict[str, Any]:
        """Returns arguments as the record keeps them.

        Args:
            args: The arguments: values, or what is their JSON already.
            label: Returns the name of the task or instance, for messages.
            hint: Returns the end of a message about an argument that no parameter takes.

        Raises:
            ArgumentError: No parameter takes one of them, or it cannot be converted.
        """
        found: dict[str, Any] = {}
        writers, rest = self._writers, self._write_rest
        for name, value in args.items():
            write = writers.get(name, rest)
            if write is None:
                if not self.lenient:
                    raise self._not_taken(name, label(), hint(name))
                found[name] = value
                continue
            try:
                found[name] = write(value)
            except (self._mismatch, RecursionError) as error:
                raise _unfit(name, label(), error) from None
        return found

    def fits(self, name: str, value: Any) -> bool:
        """Returns whether the parameter of this name takes a value."""
        write = self._writers.get(name, self._write_rest)
        try:
            if write is not None:
                write(value)
        except (self._mismatch, RecursionError):
            return False
        return True

    def check_complete(
        self, names: Iterable[str], label: Callable[[], str], hint: str = ""
    ) -> None:
        """Refuses a task or instance without an argument that the function needs.

        Raises:
            ArgumentError: It is missing.
        """
        missing = self.required.difference(names)
        if missing:
            listed = ", ".join(name for name in self.names if name in missing)
            raise ArgumentError(
                f"'{label()}' needs the argument{'s' * (len(missing) > 1)} {listed}: its function "
                f"is {self._shown}{hint}"
            )

    def values(self, args: Mapping[str, Any], label: Callable[[], str]) -> dict[str, Any]:
        """Returns the arguments of a run, as the function takes them.

        Raises:
            ArgumentError: They do not fit the function.
        """
        found: dict[str, Any] = {}
        readers, rest = self._readers, self._read_rest
        name = ""
        try:
            for name, value in args.items():
                read = readers.get(name, rest)
                if read is not None:
                    found[name] = read(value)
                elif not self.lenient:
                    raise self._not_taken(name, label())
            if not self.required <= found.keys():
                self.check_complete(found, label)
        except (self._mismatch, RecursionError) as error:
            raise _of_earlier(_unfit(name, label(), error)) from None
        except ArgumentError as error:
            raise _of_earlier(error) from None
        return found

    def _not_taken(self, name: str, label: str, hint: str = "") -> ArgumentError:
        reason = self._closed.get(name)
        return ArgumentError(
            f"'{label}' takes no argument '{printable(name[:100])}'"
            + (f" ({reason})" if reason else "")
            + f": its function is {self._shown}{hint}"
        )


def _unfit(name: str, label: str, error: Mismatch | RecursionError) -> ArgumentError:
    name = printable(name[:100])
    about = f"The argument '{name}' of '{label}'"
    if isinstance(error, RecursionError):
        return ArgumentError(f"{about} is nested too deeply")
    where = f", at {name}{error.path}" if error.path else ""
    return ArgumentError(f"{about} must be {error.expected}, not {error.found}{where}")


def _of_earlier(error: ArgumentError) -> ArgumentError:
    return ArgumentError(
        f"{error}. If it was scheduled for an earlier version of the function, schedule it again, "
        "or let the function take these arguments too"
    )


def parameters_of(func: Callable[..., Any]) -> Parameters | None:
    """Returns the parameters of a task's function; None if it takes a context and nothing else.

    Raises:
        TypeError: It does not take a context by position, has a parameter that cannot be given by
            name, or one whose annotation has no converter, and that has no default.
    """
    try:
        signature = signature_of(func)
        further = _Further(func)
    except (TypeError, ValueError):
        return None  # a builtin without a signature
    context = next(iter(signature.parameters.values()), None)
    if context is None or context.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD):
        raise _refused(func, signature, "it takes no context by position")
    _check_positions(func, signature, further)
    converters: dict[str, Converter] = {}
    required: set[str] = set()
    closed: dict[str, str] = {}
    annotated = False
    bound = _bound_by_partial(func)
    for name, (parameter, source) in further.named.items():
        needed = parameter.default is Parameter.empty
        if name in bound:
            closed[name] = "functools.partial has set it"
            continue
        try:
            converters[name] = _converter(parameter, source)
        except _NoConverter as error:
            if needed:
                raise _refused(func, signature, f"'{name}' {error}") from error.__cause__
            closed[name] = f"it {error}"
            continue
        annotated = annotated or parameter.annotation is not Parameter.empty
        if needed:
            required.add(name)
    rest: Converter | None = None
    if further.rest is not None:
        parameter, source = further.rest
        try:
            rest = _converter(parameter, source)
        except _NoConverter as error:
            raise _refused(func, signature, f"'{parameter}' {error}") from error.__cause__
        if context.kind is Parameter.POSITIONAL_OR_KEYWORD:
            closed[context.name] = "it is the context"
    if not converters and rest is None:
        return None
    return Parameters(
        converters,
        frozenset(required),
        rest,
        closed,
        not annotated and not required and rest is None,
        _shown(
            func,
            [
                *(
                    parameter
                    for name, (parameter, _) in further.named.items()
                    if name in converters
                ),
                *([] if further.rest is None else [further.rest[0]]),
            ],
        ),
    )


def _check_positions(
    func: Callable[..., Any], signature: inspect.Signature, further: _Further
) -> None:
    for parameter in further.by_position:
        if parameter.default is Parameter.empty:
            raise _refused(
                func,
                signature,
                f"'{parameter.name}' can only be given by position, and arguments of tasks are "
                "given by name: remove the '/'",
            )
    needed = any(one.default is Parameter.empty for one, _ in further.named.values())
    if further.many is not None and (needed or further.rest is not None):
        raise _refused(
            func,
            signature,
            f"'*{further.many.name}' is given by position, and arguments of tasks are given by "
            "name: take a list instead",
        )


class _Further:
    """The parameters of a function after its context.

    Attributes:
        named: Those that can be given by name, each with the function that it is of.
        rest: The one that takes all other names.
        by_position: Those that can only be given by position.
        many: The one that takes all other positions.
    """

    def __init__(self, func: Callable[..., Any], depth: int = 0) -> None:
        own = list(signature_of(func).parameters.values())
        self.named: dict[str, tuple[Parameter, Callable[..., Any]]] = {}
        self.rest: tuple[Parameter, Callable[..., Any]] | None = None
        self.by_position: list[Parameter] = []
        self.many: Parameter | None = None
        passes_on = bool(own) and own[0].kind is Parameter.VAR_POSITIONAL
        for parameter in own[1:]:
            match parameter.kind:
                case Parameter.VAR_KEYWORD:
                    self.rest = (parameter, func)
                case Parameter.VAR_POSITIONAL:
                    self.many = parameter
                case Parameter.POSITIONAL_ONLY:
                    self.by_position.append(parameter)
                case _:
                    self.named[parameter.name] = (parameter, func)
        if self.rest is None:
            return
        inner = _wrapped_by(func)
        if inner is not None and depth < _WRAPPERS_MAX:
            self._add_passed_on(inner, depth)
        elif passes_on:
            self.rest = None  # it may pass on anything, to anything: it is called as in 1.x

    def _add_passed_on(self, inner: Callable[..., Any], depth: int) -> None:
        """A decorator passes on what it does not take itself."""
        self.rest = self.many = None
        try:
            further = _Further(inner, depth + 1)
        except (TypeError, ValueError):
            return
        for name, found in further.named.items():
            self.named.setdefault(name, found)
        self.by_position += further.by_position
        self.rest = further.rest


class _NoConverter(Exception):  # noqa: N818 - a fact about a parameter
    pass


def _refused(func: object, signature: inspect.Signature, why: str) -> TypeError:
    return TypeError(
        f"{name_of(func)} cannot be a task: it is called with (context) and the arguments of the "
        f"task by name, but its parameters are {str(signature)[:_SIGNATURE_MAX]} ({why})"
    )


def _shown(func: object, parameters: Iterable[Parameter]) -> str:
    parts = ["context"]
    for parameter in parameters:
        annotation, text = parameter.annotation, parameter.name
        if parameter.kind is Parameter.VAR_KEYWORD:
            text = f"**{text}"
        if annotation is not Parameter.empty:
            spelt = annotation if isinstance(annotation, str) else formatannotation(annotation)
            text += f": {spelt}"
        if parameter.default is not Parameter.empty:
            text += " = …"
        parts.append(text)
    return f"{name_of(func)[1:-1]}({', '.join(parts)})"[:_SIGNATURE_MAX]


def _bound_by_partial(func: object) -> frozenset[str]:
    bound: set[str] = set()
    for _ in range(_WRAPPERS_MAX):
        if not isinstance(func, functools.partial):
            break
        bound.update(func.keywords)
        func = func.func
    return frozenset(bound)


def _wrapped_by(func: object) -> Callable[..., Any] | None:
    """What a decorator that was made with ``functools.wraps`` wraps."""
    while isinstance(func, functools.partial):
        func = func.func
    found = getattr(func, "__wrapped__", None)
    return found if callable(found) else None


def _converter(parameter: Parameter, source: Callable[..., Any]) -> Converter:
    # Loaded by the first function that has parameters.
    from pyncette.conversion import ANYTHING, Unconvertible, converter_of

    annotation = parameter.annotation
    if annotation is Parameter.empty:
        return ANYTHING
    try:
        annotation = _resolved(annotation, source)
    except Exception as error:
        raise _NoConverter(
            f"has the annotation {parameter.annotation!r:.100}, which cannot be read "
            f"({type(error).__name__}: {str(error)[:100]}). Define or import its names at the top "
            "of the module, outside of functions and of 'if TYPE_CHECKING'"
        ) from error
    if parameter.default is None:
        annotation = typing.Optional[annotation]  # noqa: UP045 - of any annotation
    try:
        return converter_of(annotation)
    except Unconvertible as error:
        raise _NoConverter(
            f"has an annotation that no value in a record can be converted to: {error}. A record "
            "holds values of the standard library's types, and classes made of them (dataclasses, "
            "enumerations, models of pydantic)"
        ) from error


def _resolved(annotation: Any, source: Callable[..., Any]) -> Any:
    """Evaluates an annotation that is text: only this one, since others may name anything."""

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    return typing.get_type_hints(holder, _globals_of(source), include_extras=True)["it"]


def _globals_of(func: Any) -> dict[str, Any]:
    for _ in range(_WRAPPERS_MAX):
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, MethodType):
            func = func.__func__
        elif hasattr(func, "__globals__"):
            found: dict[str, Any] = func.__globals__
            return found
        elif hasattr(type(func), "__call__") and not isinstance(func, type):  # noqa: B004
            func = type(func).__call__
        else:
            break
    module = sys.modules.get(getattr(func, "__module__", ""))
    return vars(module) if module is not None else {}
