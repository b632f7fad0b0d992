"""Reads what is given on the command line: instants, durations, arguments of tasks."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from pyncette.cli.failures import usage
from pyncette.errors import printable
from pyncette.parameters import Parameters

OPEN_TIMEOUT_S: Final = 5.0
"""How long the doctor waits for the store, unless ``--timeout`` says otherwise."""

_UNITS: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[wdhms])")


def instant(text: str) -> datetime:
    """``2026-03-29T02:30+01:00``, ``…Z``; without an offset, the local time of this machine."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{printable(text)!r} is no time: write 2026-03-29T09:00, 2026-03-29T09:00+02:00 or "
            "2026-03-29T07:00Z"
        ) from None


def span(text: str) -> timedelta:
    """``90m``, ``1d12h``, ``1.5h``, ``250ms``; a number alone means seconds."""
    try:
        return timedelta(seconds=float(text) if _is_number(text) else _seconds(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{printable(text)!r} is no duration: write 90m, 1d12h, 45s or 250ms"
        ) from None


def moment(text: str) -> datetime | timedelta:
    """A time as ``instant`` reads it, or how long ago as ``span`` reads it."""
    try:
        return span(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return instant(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{printable(text)!r} is neither a time nor how long ago: write 2026-03-29T09:00, "
            "2026-03-29T07:00Z, 90m or 1d12h"
        ) from None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _seconds(text: str) -> float:
    parts = _PART.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def at_least(least: int) -> Any:
    """A reader of whole numbers that are not smaller than this."""

    def number(text: str) -> int:
        if re.fullmatch(r"\d{1,9}", text) is None or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{printable(text)!r} must be a whole number from {least} on"
            )
        return int(text)

    return number


def arguments_of(
    pairs: Iterable[str] | None, whole: str | None, parameters: Parameters | None
) -> dict[str, Any] | None:
    """The arguments of a task: ``--args`` as JSON, and each ``--arg name=value`` over it.

    A value that is JSON is read as JSON (``5``, ``true``, ``[1]``); any other is text. So is JSON
    that the parameter does not take, if it takes text: ``5`` for a ``str`` is ``"5"``.

    Args:
        pairs: The values of ``--arg``.
        whole: The value of ``--args``.
        parameters: The parameters of the function of the task; None: it takes a context only.

    Returns:
        None if none were given.
    """
    if whole is None and not pairs:
        return None
    found: Any = {}
    if whole is not None:
        try:
            found = json.loads(whole)
        except ValueError as error:
            raise usage(f"--args is no JSON: {error}") from None
        except RecursionError:
            raise usage("--args is nested too deeply") from None
        if not isinstance(found, dict):
            raise usage('--args must be a JSON object, for example \'{"to": "a@example.org"}\'')
    for pair in pairs or ():
        name, divided, text = pair.partition("=")
        if not name or not divided:
            raise usage(f"--arg must be name=value, not {printable(pair)!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
            continue
        except RecursionError:
            raise usage(f"--arg {printable(name)} is nested too deeply") from None
        if parameters is None or parameters.fits(name, found[name]):
            continue
        if parameters.fits(name, text):
            found[name] = text
    arguments: dict[str, Any] = found
    return arguments
