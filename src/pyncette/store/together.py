"""Makes calls at the same time, and leaves none of them running when one fails.

``asyncio.gather`` raises as soon as one call fails, and leaves the others running. A retry would
then run at the same time as these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


async def together(calls: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """Makes calls at the same time, and returns their answers in the order of the calls.

    Returns or raises when all calls have ended. A cancellation cancels all of them.

    Raises:
        BaseException: The error of the first call, in this order, that failed.
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
