"""Calls that are made at the same time, and leave nothing running when one of them fails.

``asyncio.gather`` raises as soon as one call fails, and leaves the others running: a call that is
then repeated meets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


async def together(calls: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """The answers to calls made at the same time, in their order.

    Returns or raises when all calls have ended. A cancellation cancels all of them.

    Raises:
        BaseException: What the first call in order raised that failed.
    """
    made = list(calls)
    if len(made) == 1:
        return [await made[0]]
    outcomes = await asyncio.gather(*made, return_exceptions=True)
    answers: list[_Answer] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        answers.append(outcome)
    return answers
