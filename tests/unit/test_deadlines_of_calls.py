"""Calls that wait for the store end in their own time, though they share a timer."""

from __future__ import annotations

import asyncio

import pytest

from pyncette.calls import requests
from pyncette.calls.requests import Deadlines
from pyncette.engine.writes import Call
from pyncette.errors import StoreUnavailableError
from pyncette.store import Applied, Write
from pyncette.store.record import ABSENT, DELETE

WRITE = Write("g", "k", DELETE, ABSENT)


async def ended(call: Call) -> str:
    try:
        await call.answer
    except StoreUnavailableError:
        return "expired"
    return "answered"


def test_each_call_ends_when_its_own_deadline_has_passed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(lambda: 0.02)
        first, answered, last = Call(WRITE), Call(WRITE), Call(WRITE)
        began = loop.time()
        deadlines.add(first)
        deadlines.add(answered)
        answered.answer.set_result(Applied(1))
        assert await ended(first) == "expired"
        assert loop.time() - began >= 0.02
        began = loop.time()
        deadlines.add(last)
        assert await ended(last) == "expired"
        assert loop.time() - began >= 0.02
        assert await ended(answered) == "answered"
        deadlines.close()

    asyncio.run(main())


def test_a_call_that_is_made_while_another_waits_outlives_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(lambda: 0.05)
        first, second = Call(WRITE), Call(WRITE)
        deadlines.add(first)
        made: list[float] = []

        def make() -> None:
            made.append(loop.time())
            deadlines.add(second)

        loop.call_later(0.02, make)
        assert await ended(first) == "expired"
        assert not second.answer.done()
        assert await ended(second) == "expired"
        assert loop.time() >= made[0] + 0.05
        deadlines.close()

    asyncio.run(main())


def test_calls_that_were_answered_are_forgotten_although_an_earlier_one_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "CALLS_MAX", 5)

    async def main() -> None:
        deadlines = Deadlines(lambda: 60)
        stuck = Call(WRITE)
        deadlines.add(stuck)
        for _ in range(1_000):
            call = Call(WRITE)
            deadlines.add(call)
            call.answer.set_result(Applied(1))
        assert len(deadlines) <= 22
        stuck.answer.set_result(Applied(1))
        deadlines.add(Call(WRITE))
        assert len(deadlines) == 1
        deadlines.close()

    asyncio.run(main())
