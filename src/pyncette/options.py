"""How a store, or an executor, reads its own options.

A factory names its options as keywords and hands them to a frozen dataclass, whose
``__post_init__`` refuses with these helpers what makes no sense. So an option is checked once, in
one place, and every message names the option and the value.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def one_of(option: str, value: Any, allowed: Collection[str]) -> str:
    """The allowed word that ``value`` is, in any case.

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
