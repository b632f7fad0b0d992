"""The store that fails on demand."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.faulty_store import (
    AnswerWrites,
    Delay,
    Fail,
    Faults,
    Gate,
    LoseAnswer,
    Truncate,
    faulty,
)

from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.memory import MemoryRepository
from pyncette.store import EVERYTHING, Applied, Failed, Group, Store, Unknown, Write
from pyncette.store.record import ABSENT, Put
from pyncette.testing import VirtualClock

CREATION = [Write("reports", "a", Put(5, "scheduled", None, 0, "p", "a", "s"), ABSENT)]
IDENTITY = [("reports", "a")]


def on(faults: Faults, test: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with faulty(MemoryRepository(), faults)() as store:
            await test(store)

    asyncio.run(main())


def test_without_faults_every_call_passes() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        assert await store.write(CREATION, 1) == [Applied(1)]
        [record] = (await store.claim([Group("reports", 10, 1, 5)], 1, 5, "t")).records
        assert await store.get(IDENTITY) == [record]
        assert (await store.scan("reports", EVERYTHING, None, 10)).records == [record]
        assert await store.now() is None
        watch = await store.watch(["reports"], lambda groups: None)
        assert watch is not None
        watch.close()

    on(faults, check)
    assert [call.name for call in faults.calls] == ["write", "claim", "get", "scan", "now", "watch"]
    assert faults.calls[0].arguments == (CREATION, 1, ())
    assert {call.fault for call in faults.calls} == {None}


def test_a_call_that_fails_is_not_made() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("write", Fail())
        with pytest.raises(StoreUnavailableError, match="did not arrive"):
            await store.write(CREATION, 1)
        assert await store.get(IDENTITY) == [None]

    on(faults, check)


def test_a_call_whose_answer_is_lost_is_made() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("write", LoseAnswer())
        with pytest.raises(StoreUnavailableError, match="answer was lost"):
            await store.write(CREATION, 1)
        assert await store.get(IDENTITY) != [None]

    on(faults, check)


def test_an_error_of_ones_own_is_raised() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("get", Fail(StoreMisconfiguredError("a")), LoseAnswer(OSError("b")))
        with pytest.raises(StoreMisconfiguredError, match="a"):
            await store.get(IDENTITY)
        with pytest.raises(OSError, match="b"):
            await store.get(IDENTITY)

    on(faults, check)


def test_planned_faults_strike_one_call_each_in_order() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("now", Fail(), LoseAnswer())
        await store.get(IDENTITY)
        for words in ("did not arrive", "answer was lost"):
            with pytest.raises(StoreUnavailableError, match=words):
                await store.now()
        assert await store.now() is None

    on(faults, check)
    assert [type(call.fault) for call in faults.made("now")] == [Fail, LoseAnswer, type(None)]


def test_a_fault_waits_for_the_call_that_matches() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("get", Fail(), matches=lambda identities: len(identities) == 2)
        await store.get(IDENTITY)
        with pytest.raises(StoreUnavailableError):
            await store.get(IDENTITY * 2)

    on(faults, check)


def test_a_store_is_down_within_a_block() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        with faults.down():
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    await store.now()
            with pytest.raises(StoreUnavailableError):
                await store.get(IDENTITY)
        with faults.down("get"):
            await store.now()
            with pytest.raises(StoreUnavailableError):
                await store.get(IDENTITY)
        await store.get(IDENTITY)

    on(faults, check)


@pytest.mark.parametrize("answer", [False, True])
def test_a_gate_holds_a_call_or_its_answer(answer: bool) -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        gate = Gate(answer=answer)
        faults.next("write", gate)
        write = asyncio.ensure_future(store.write(CREATION, 1))
        await gate.reached()
        assert (await store.get(IDENTITY) != [None]) is answer
        assert not write.done()
        gate.release()
        assert await write == [Applied(1)]

    on(faults, check)


@pytest.mark.parametrize("answer", [False, True])
def test_a_delay_passes_on_the_clock(answer: bool) -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        clock = VirtualClock()
        faults.next("write", Delay(clock, 5, answer=answer))
        write = asyncio.ensure_future(store.write(CREATION, 1))
        await clock.advance(timedelta(seconds=4))
        assert (await store.get(IDENTITY) != [None]) is answer
        assert not write.done()
        await clock.advance(timedelta(seconds=1))
        assert await write == [Applied(1)]

    on(faults, check)


THREE = [
    Write("reports", key, Put(5, "scheduled", None, 0, "p", "a", "s"), ABSENT) for key in "abc"
]
UNKNOWN = Unknown(StoreUnavailableError("this node did not answer"))
FAILED = Failed(ValueError("too large"))


async def keys_in(store: Store) -> str:
    page = await store.scan("reports", EVERYTHING, None, 10)
    return "".join(record.key for record in page.records)


@pytest.mark.parametrize("answer", [UNKNOWN, FAILED])
def test_chosen_writes_are_answered_with_an_error_and_the_others_are_made(
    answer: Failed | Unknown,
) -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("write", AnswerWrites(answer, lambda write: write.key == "b"))
        assert await store.write(THREE, 1) == [Applied(1), answer, Applied(1)]
        assert await keys_in(store) == "ac"

    on(faults, check)


def test_chosen_writes_may_be_made_though_nobody_can_tell() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        faults.next("write", AnswerWrites(UNKNOWN, lambda write: write.key != "b", made=True))
        assert await store.write(THREE, 1) == [UNKNOWN, Applied(1), UNKNOWN]
        assert await keys_in(store) == "abc"

    on(faults, check)
    with pytest.raises(ValueError, match="not Failed"):
        AnswerWrites(FAILED, made=True)


def test_all_writes_are_chosen_where_nothing_is_said_and_other_calls_pass() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        with faults.down(fault=AnswerWrites(UNKNOWN)):
            assert await store.write(THREE, 1) == [UNKNOWN] * 3
            assert await keys_in(store) == ""

    on(faults, check)


def test_a_store_may_answer_too_little() -> None:
    faults = Faults()

    async def check(store: Store) -> None:
        with faults.down(fault=Truncate(1)):
            assert await store.write(THREE, 1) == [Applied(1)]
            assert len(await store.get([("reports", key) for key in "abc"])) == 1
            assert len((await store.scan("reports", EVERYTHING, None, 10)).records) == 1
            assert await store.now() is None
            sources = [Group("reports", 10, 9, 5), Group("others", 10, 9, 5)]
            claimed = await store.claim(sources, 9, 5, "t")
            assert (len(claimed.records), claimed.next_due) == (3, [15])
        assert await keys_in(store) == "abc"

    on(faults, check)


def struck(seed: int, probability: float = 0.3) -> list[str]:
    faults = Faults(seed, probability)

    async def check(store: Store) -> None:
        for _ in range(200):
            await asyncio.gather(store.now(), return_exceptions=True)

    on(faults, check)
    return [type(call.fault).__name__ for call in faults.calls]


def test_chance_strikes_the_same_calls_for_the_same_seed() -> None:
    assert struck(1) == struck(1)
    assert struck(1) != struck(2)
    assert set(struck(1)) == {"Fail", "LoseAnswer", "NoneType"}


def test_chance_strikes_as_often_as_it_is_told() -> None:
    assert set(struck(1, 0.0)) == {"NoneType"}
    assert "NoneType" not in struck(1, 1.0)


def test_no_more_calls_are_remembered_than_asked() -> None:
    faults = Faults(calls_max=3)

    async def check(store: Store) -> None:
        for _ in range(5):
            await store.now()
        await store.get(IDENTITY)

    on(faults, check)
    assert [call.name for call in faults.calls] == ["now", "now", "get"]


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="no call 'poll'"):
        Faults().next("poll", Fail())
    with pytest.raises(ValueError, match=r"not 1\.5"):
        Faults(probability=1.5)


def test_the_test_tools_load_neither_pytest_nor_hypothesis() -> None:
    program = (
        "import sys, pyncette.testing, tests.faulty_store\n"
        "sys.exit(bool({'pytest', 'hypothesis', '_pytest'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
