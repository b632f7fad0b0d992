"""How a store, or an executor, reads its own options.

The options of a store are the fields of a frozen dataclass, under the names that users write:
name, type and default of an option are stated there and nowhere else. ``store_factory`` makes the
factory of the store from it, with these options as its keywords, for an editor and a type checker
too. The ``__post_init__`` of the dataclass refuses a bad value with the helpers below, so that
every message names the option and the value.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from functools import update_wrapper
from typing import Any, ParamSpec, Protocol, TypeVar


class Openable(Protocol):
    """A store that is created first and opened afterwards."""

    async def open(self) -> None:
        """Connects to the store."""

    async def close(self) -> None:
        """Closes everything that was opened, also if opening failed or closing is cancelled."""


_Options = TypeVar("_Options")
_Store = TypeVar("_Store", bound=Openable)
_Given = ParamSpec("_Given")


def options_from(options: Callable[..., _Options], configuration: Mapping[str, Any]) -> _Options:
    """Reads those options of a configuration that the dataclass defines; it ignores the others.

    Raises:
        ValueError: A value is not valid.
    """
    names = {field.name for field in fields(options)}  # type: ignore[arg-type]
    return options(**{name: value for name, value in configuration.items() if name in names})


def store_factory(
    options: Callable[_Given, _Options],
) -> Callable[
    [Callable[[_Options], _Store]], Callable[_Given, AbstractAsyncContextManager[_Store]]
]:
    """Decorates the function that makes a store from its options: it becomes the store's factory.

    The factory takes the fields of the dataclass as keywords, and ignores other keywords when it
    runs: an app hands all of its configuration to its store. It opens the store and closes it.

    Args:
        options: A dataclass, ``frozen`` and ``kw_only``.
    """

    def decorate(
        make: Callable[[_Options], _Store],
    ) -> Callable[_Given, AbstractAsyncContextManager[_Store]]:
        @asynccontextmanager
        async def opened(**configuration: Any) -> AsyncIterator[_Store]:
            store = make(options_from(options, configuration))
            try:
                await store.open()
                yield store
            finally:
                await store.close()

        update_wrapper(opened, make)
        opened.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
        return opened  # type: ignore[return-value]

    return decorate


def check_flag(option: str, value: Any) -> None:
    """Refuses what is neither True nor False: a word such as "no" would count as true.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{option} must be True or False, not {value!r}")


def one_of(option: str, value: Any, allowed: Collection[str]) -> str:
    """Returns the allowed word that ``value`` is, in any case.

    Raises:
        ValueError: It is none of them.
    """
    if isinstance(value, str):
        for word in allowed:
            if value.casefold() == word.casefold():
                return word
    raise ValueError(f"{option} must be one of {', '.join(allowed)}, not {value!r}")


def whole_number(option: str, value: Any, minimum: int, maximum: int) -> int:
    """``value``, if it is a whole number within the bounds, both included.

    Raises:
        ValueError: It is not.
    """
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(
            f"{option} must be a whole number from {minimum} to {maximum}, not {value!r}"
        )
    return value


def at_least_one(option: str, value: Any) -> int:
    """``value``, if it is a whole number of at least 1.

    Raises:
        ValueError: It is not.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"{option} must be a whole number of at least 1, not {value!r}")
    return value
