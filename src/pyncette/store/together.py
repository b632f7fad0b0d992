"""Calls that are made at the same time, and leave nothing running when one of them fails.

``asyncio.gather`` raises as soon as one call fails, and leaves the others running: a call that is
then repeated meets them. These functions wait for every call. A cancellation cancels all calls,
and returns when they have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


async def together(calls: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """The answers to calls made at the same time, in their order.

    Raises:
        BaseException: What the first call that failed raised, when all calls have ended.
    """
    answers: list[_Answer] = []
    for outcome in await outcomes(calls):
        if isinstance(outcome, BaseException):
            raise outcome
        answers.append(outcome)
    return answers


async def outcomes(
    calls: Iterable[Coroutine[Any, Any, _Answer]],
) -> list[_Answer | BaseException]:
    """The answers to calls made at the same time; for a call that failed, its exception."""
    made = list(calls)
    return list(await asyncio.gather(*made, return_exceptions=True))
