"""The write queue, in small histories of a virtual time: what is sent when, and what it is told.

The store takes as long as a seed says, and answers what it says. What must hold is said about the
history: each entry ends once, two writes to one record are never under way at once and keep their
order, nothing waits that could be sent, and pauses between retries double.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from random import Random
from typing import Any, Final

import pytest
from tests.simulation.event_loop import WORLD, SimulatedLoop

import pyncette.clock
from pyncette.engine.background import Background
from pyncette.engine.writes import (
    BATCH_MAX,
    LARGE_CHARACTERS,
    LARGE_WRITES_MAX,
    RETRY_DELAY_INITIAL_S,
    RETRY_DELAY_MAX_S,
    Next,
    Waker,
    WriteQueue,
)
from pyncette.errors import AppClosedError, StoreUnavailableError
from pyncette.store import Applied, Failed, Result, Unknown, Write
from pyncette.store.record import ANY, DELETE, Put, State

SMALL_S: Final = 0.002
"""What some callbacks take in a simulation, and no wait of the queue."""


def _run(main: Callable[[], Coroutine[Any, Any, None]], seed: int = 0) -> None:
    loop = SimulatedLoop(Random(f"queue:{seed}"))  # type: ignore[abstract]
    module: Any = pyncette.clock
    monotonic, module._monotonic = module._monotonic, loop.time
    try:
        loop.run_until_complete(loop.start(WORLD, main(), "test"))
        assert not loop.errors
    finally:
        module._monotonic = monotonic
        loop.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _put(size: int = 0, due_at: int = 0) -> Put:
    return Put(due_at, State.SCHEDULED, None, 0, "", "x" * size, "")


class Noted:
    """An entry that does what it is told, and notes it.

    Attributes:
        answers: What it says to each answer; afterwards it is done.
        ended: When it has ended, and how.
        built: How often it was asked what to write.
    """

    def __init__(self, key: str, answers: Sequence[Next] = (), change: Any = None) -> None:
        self.key = key
        self.answers = [*answers]
        self.change = _put() if change is None else change
        self.wants = True
        self.built = 0
        self.told: list[tuple[float, Result]] = []
        self.ended: list[tuple[float, Exception | None]] = []

    def build(self, now: int) -> Write | None:
        self.built += 1
        if not self.wants:
            self.ended.append((_now(), None))
            return None
        return Write("g", self.key, self.change, ANY)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        self.told.append((_now(), answer))
        following = self.answers.pop(0) if self.answers else Next.DONE
        if following is Next.DONE:
            self.ended.append((_now(), None))
        return following

    def abandon(self, error: Exception) -> None:
        self.ended.append((_now(), error))


class Store:
    """Answers as it is told.

    Attributes:
        batches: When each came and when it was answered, and its keys.
        under_way: The keys of the batches that are not answered.
    """

    def __init__(self, wait: Callable[[], float] = lambda: 1.0) -> None:
        self.wait = wait
        self.batches: list[tuple[float, list[str]]] = []
        self.under_way: list[list[str]] = []
        self.faults: list[Exception | int] = []
        self.most = 0

    async def commit(self, writes: Sequence[Write], now: int) -> list[Result]:
        keys = [write.key for write in writes]
        assert len(set(keys)) == len(keys), "two writes to one record in a batch"
        assert not set(keys) & {key for batch in self.under_way for key in batch}
        self.batches.append((_now(), keys))
        self.under_way.append(keys)
        self.most = max(self.most, len(self.under_way))
        try:
            await asyncio.sleep(self.wait())
        finally:
            self.under_way.remove(keys)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        return [Applied(1)] * (len(writes) if fault is None else fault)


def _queue(store: Store) -> WriteQueue:
    return WriteQueue(store.commit, lambda: 5, Background())


# Batches.


def test_what_comes_while_a_batch_is_under_way_leaves_with_the_next_the_urgent_first() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        assert queue.idle
        queue.add(Noted("a"))
        assert len(queue) == 1
        await asyncio.sleep(0.5)
        assert not queue.idle
        for key, urgent in (("b", False), ("c", True), ("d", False), ("e", True)):
            queue.add(Noted(key), urgent)
        assert len(queue) == 4
        await queue.drained()
        assert [keys for _, keys in store.batches] == [["a"], ["c", "e", "b", "d"]]
        assert store.batches[1][0] - store.batches[0][0] == pytest.approx(1, abs=SMALL_S)
        assert queue.idle
        assert len(queue) == 0
        # It begins anew.
        queue.add(Noted("f"))
        await queue.drained()
        assert store.batches[2][1] == ["f"]

    _run(main)


def test_a_batch_is_bounded_and_the_rest_keeps_its_order() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        keys = [f"{number}" for number in range(2 * BATCH_MAX + 1)]
        for key in keys:
            queue.add(Noted(key))
        await queue.drained()
        sent = [keys for _, keys in store.batches]
        assert list(map(len, sent)) == [BATCH_MAX, BATCH_MAX, 1]
        assert [key for batch in sent for key in batch] == keys

    _run(main)


def test_of_two_writes_to_a_record_the_second_waits() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        entries = [Noted("a"), Noted("a"), Noted("b"), Noted("a")]
        for entry in entries:
            queue.add(entry)
        queue.add(urgent := Noted("a"), urgent=True)
        await queue.drained()
        assert [keys for _, keys in store.batches] == [["a", "b"], ["a"], ["a"], ["a"]]
        ends = [entry.ended[0][0] for entry in (urgent, entries[0], entries[1], entries[3])]
        assert ends == sorted(ends)

    _run(main)


def test_an_entry_that_wants_nothing_or_cannot_decide_takes_no_place() -> None:
    class Broken(Noted):
        def build(self, now: int) -> Write | None:
            raise ValueError("cannot decide")

    async def main() -> None:
        store = Store()
        queue = _queue(store)
        nothing, broken, other = Noted("a"), Broken("a"), Noted("a")
        nothing.wants = False
        for entry in (nothing, broken, other):
            queue.add(entry)
        await queue.drained()
        assert [keys for _, keys in store.batches] == [["a"]]
        assert isinstance(broken.ended[0][1], ValueError)
        # A batch of nothing is not sent.
        queue.add(nothing)
        await queue.drained()
        assert len(store.batches) == 1

    _run(main)


@pytest.mark.parametrize("urgent", [False, True])
def test_what_is_added_while_others_are_decided_waits_for_no_pause(urgent: bool) -> None:
    async def main() -> None:
        store = Store(lambda: 0.0)
        queue = _queue(store)
        added = Noted("b")

        class Broken(Noted):
            def build(self, now: int) -> Write | None:
                queue.add(added, urgent)
                raise ValueError("cannot decide")

        queue.add(Noted("a", [Next.BACK_OFF] * 4))
        await asyncio.sleep(0.2)
        began = _now()
        queue.add(Broken("c"))
        await asyncio.sleep(0.005)
        assert added.ended
        assert added.ended[0][0] - began < SMALL_S
        await queue.drained()

    _run(main)


# Large writes.


def test_large_writes_travel_alone_and_few_of_them_at_once() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        large = [Noted(f"l{number}", change=_put(LARGE_CHARACTERS + 1)) for number in range(6)]
        just = Noted("just", change=_put(LARGE_CHARACTERS))
        for entry in (*large, just, Noted("gone", change=DELETE)):
            queue.add(entry)
        again = Noted("l0")
        queue.add(again)
        await queue.drained()
        first = [keys for at, keys in store.batches if at < 0.5]
        assert sorted(first) == [["just", "gone"], ["l0"], ["l1"], ["l2"], ["l3"]]
        assert store.most == LARGE_WRITES_MAX + 1
        # The others leave with the batches after these are answered, and so does the second write.
        later = sorted(keys for at, keys in store.batches if at >= 0.5)
        assert later == [["l0"], ["l4"], ["l5"]]
        assert store.batches[-1][0] == pytest.approx(2, abs=1.1)
        assert all(len(entry.ended) == 1 for entry in (*large, just, again))

    _run(main)


def test_a_large_write_that_ends_after_all_others_starts_what_waits_for_it() -> None:
    async def main() -> None:
        waits = iter([5.0, 1.0, 1.0])
        store = Store(lambda: next(waits))
        queue = _queue(store)
        queue.add(Noted("l", change=_put(LARGE_CHARACTERS + 1)))
        await asyncio.sleep(0.1)
        second = Noted("l")
        queue.add(second)
        await asyncio.sleep(2)
        assert len(store.batches) == 1
        assert second.built < 50, "it does not ask again and again"
        # Others do not wait.
        queue.add(Noted("b"))
        await asyncio.sleep(0.1)
        assert store.batches[-1][1] == ["b"]
        await queue.drained()
        assert [keys for _, keys in store.batches] == [["l"], ["b"], ["l"]]
        assert round(store.batches[-1][0]) == 5

    _run(main)


# What follows an answer.


def test_what_is_to_be_written_again_goes_before_what_came_later() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        first, second = Noted("a", [Next.RETRY]), Noted("b", [Next.RETRY])
        queue.add(first)
        queue.add(second)
        await asyncio.sleep(0.5)
        queue.add(Noted("c"), urgent=True)
        await queue.drained()
        assert [keys for _, keys in store.batches] == [["a", "b"], ["a", "b", "c"]]

    _run(main)


def test_pauses_of_an_entry_double_and_hold_up_no_other() -> None:
    async def main() -> None:
        store = Store(lambda: 0.0)
        queue = _queue(store)
        entry = Noted("a", [Next.BACK_OFF] * 8)
        queue.add(entry)
        await asyncio.sleep(0.01)
        assert len(queue) == 1
        other = Noted("b")
        queue.add(other)
        await asyncio.sleep(0.01)
        assert other.ended
        await queue.drained()
        pauses = [later - sooner for (sooner, _), (later, _) in pairwise(entry.told)]
        expected = [
            min(RETRY_DELAY_INITIAL_S * 2**number, RETRY_DELAY_MAX_S) for number in range(8)
        ]
        assert pauses == pytest.approx(expected, abs=SMALL_S)
        # It begins anew with the short ones.
        entry.answers, entry.told = [Next.BACK_OFF], []
        queue.add(entry)
        await queue.drained()
        assert entry.told[1][0] - entry.told[0][0] == pytest.approx(
            RETRY_DELAY_INITIAL_S, abs=SMALL_S
        )

    _run(main)


@pytest.mark.parametrize("fault", [StoreUnavailableError("down"), 0, 1, 3])
def test_a_batch_that_fails_is_unknown_to_each_of_its_entries(
    fault: Exception | int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store, told = Store(), list[str]()
        queue = _queue(store)
        queue.on_written = lambda: told.append("written")
        store.faults = [fault]
        entries = [Noted("a", [Next.RETRY]), Noted("b")]
        for entry in entries:
            queue.add(entry)
        await queue.drained()
        for entry in entries:
            answer = entry.told[0][1]
            assert isinstance(answer, Unknown)
            assert isinstance(answer.error, StoreUnavailableError)
        assert [keys for _, keys in store.batches] == [["a", "b"], ["a"]]
        assert len(told) == 2
        assert "Writing 2 records to the store failed" in caplog.text

    _run(main)


def test_an_entry_that_cannot_take_its_answer_in_ends_alone() -> None:
    class Broken(Noted):
        def answered(self, answer: Result, write: Write, now: int) -> Next:
            super().answered(answer, write, now)
            raise ValueError("cannot take it in")

        def abandon(self, error: Exception) -> None:
            super().abandon(error)
            raise ValueError("cannot even end")

    async def main() -> None:
        store = Store()
        queue = _queue(store)
        broken, other = Broken("a"), Noted("b", [Next.RETRY])
        queue.add(broken)
        queue.add(other)
        await queue.drained()
        assert isinstance(broken.ended[-1][1], ValueError)
        assert [keys for _, keys in store.batches] == [["a", "b"], ["b"]]

    _run(main)


@pytest.mark.parametrize("torn_down", [False, True])
def test_a_batch_that_is_cancelled_is_unknown_or_ended_with_its_worker(torn_down: bool) -> None:
    async def main() -> None:
        store, background = Store(), Background()
        queue = WriteQueue(store.commit, lambda: 5, background)
        entry = Noted("a")
        if not torn_down:
            store.wait = lambda: 0.0
            cancelled = asyncio.CancelledError()
            store.faults = [cancelled]  # type: ignore[list-item]

            async def commit(writes: Sequence[Write], now: int) -> list[Result]:
                raise cancelled

            queue._commit = commit
        queue.add(entry)
        await asyncio.sleep(0.1)
        if torn_down:
            await background.close()
            [(_, error)] = entry.ended
            assert isinstance(error, StoreUnavailableError)
            assert not entry.told
        else:
            [(_, answer)] = entry.told
            assert isinstance(answer, Unknown)
        assert queue.idle

    _run(main)


# Waiting for it, and its end.


def test_what_is_under_way_is_waited_for_and_nothing_else() -> None:
    async def main() -> None:
        store = Store()
        queue = _queue(store)
        began = _now()
        await queue.settled()
        assert _now() - began < SMALL_S
        queue.add(Noted("a"))
        queue.add(Noted("l", change=_put(LARGE_CHARACTERS + 1)))
        store.wait = lambda: 1.0 if len(store.batches) < 2 else 3.0
        await asyncio.sleep(0.1)
        queue.add(Noted("b"))
        for identities, until in (
            ([("g", "b")], 0.1),
            ([("g", "other")], 0.1),
            ([("g", "b"), ("g", "a")], 1),
        ):
            await queue.settled(identities)
            assert _now() - began == pytest.approx(until, abs=0.05)
        await asyncio.sleep(0.1)
        await queue.settled()
        assert _now() - began > 3
        await queue.drained()

    _run(main)


def test_a_queue_is_drained_when_large_writes_are_answered_too() -> None:
    async def main() -> None:
        for entries in (["l"], ["a"], ["a", "l"], []):
            store = Store(lambda: 2.0)
            queue = _queue(store)
            began = _now()
            for key in entries:
                queue.add(Noted(key, change=_put(LARGE_CHARACTERS + 1 if key == "l" else 0)))
            await queue.drained()
            expected = 2.0 if entries else 0.0
            assert _now() - began == pytest.approx(expected, abs=SMALL_S)

    _run(main)


@pytest.mark.parametrize("patience_s", [0.5, 9.0])
def test_closing_writes_what_it_can_in_its_time_and_tells_the_rest(
    patience_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store(lambda: 1.0)
        queue = _queue(store)
        sent, waits, again = Noted("a", [Next.RETRY]), Noted("b"), Noted("c", [Next.BACK_OFF])
        queue.add(sent)
        queue.add(again)
        await asyncio.sleep(0.1)
        queue.add(waits)
        began = _now()
        await queue.close(patience_s)
        await asyncio.sleep(3)
        said = [entry.getMessage() for entry in caplog.records]
        left = [line for line in said if "were not made" in line]
        entries = (sent, waits, again)
        assert all(len(entry.ended) == 1 for entry in entries)
        if patience_s > 1:
            assert not left
            assert all(entry.ended[0][1] is None for entry in entries)
        else:
            assert left == ["1 writes were not made when the app closed: 'g' 'b'"]
            assert all(isinstance(entry.ended[0][1], StoreUnavailableError) for entry in entries)
            assert waits.ended[0][0] - began == pytest.approx(0.5, abs=SMALL_S)
        late = Noted("d")
        queue.add(late)
        assert isinstance(late.ended[0][1], AppClosedError)
        assert len(queue) == 0
        assert "d" not in [key for _, keys in store.batches for key in keys]

    _run(main)


# All together.


@pytest.mark.parametrize("seed", range(30))
def test_every_entry_ends_once_and_in_order_whatever_the_store_answers(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    random = Random(seed)

    async def main() -> None:
        store = Store(lambda: random.choice((0.0, 0.1, 1.0)))
        queue = _queue(store)
        entries: list[Noted] = []
        for _ in range(40):
            if random.random() < 0.2:
                store.faults.append(random.choice((0, StoreUnavailableError("down"))))
            answers = random.choices([Next.RETRY, Next.BACK_OFF], k=random.choice((0, 0, 1, 3)))
            size = LARGE_CHARACTERS + 1 if random.random() < 0.2 else 0
            entry = Noted(random.choice("abcdef"), answers, _put(size))
            entries.append(entry)
            queue.add(entry, urgent=random.random() < 0.2)
            await asyncio.sleep(random.choice((0.0, 0.0, 0.05, 0.5)))
        await queue.drained()
        assert all(len(entry.ended) == 1 for entry in entries)
        assert len(queue) == 0
        assert not queue._delays
        assert not queue._busy
        # Between two batches that are not large, nothing waits.
        assert store.most <= LARGE_WRITES_MAX + 1

    _run(main, seed)


# Groups whose watchers are told.


def test_watchers_are_told_at_once_and_then_at_intervals() -> None:
    async def main() -> None:
        told: list[tuple[float, list[str]]] = []

        async def notify(groups: Any) -> None:
            told.append((_now(), sorted(groups)))

        waker = Waker(notify, Background())
        assert waker.take() == ()
        await waker.close()
        waker.add("a")
        assert waker.take() == {"a"}
        assert waker.take() == ()
        waker.add("b")
        assert waker.take() == ()
        waker.add("c")
        assert waker.take() == ()
        began = _now()
        await waker.close()
        assert [groups for _, groups in told] == [["b", "c"]]
        assert told[0][0] - began == pytest.approx(Waker.INTERVAL_S, abs=SMALL_S)
        await asyncio.sleep(1)
        waker.add("d")
        assert waker.take() == {"d"}
        assert len(told) == 1

    _run(main)


def test_failed_is_an_answer_like_any_other() -> None:
    async def main() -> None:
        answer = Failed(ValueError("no"))

        async def commit(writes: Sequence[Write], now: int) -> list[Result]:
            return [answer] * len(writes)

        queue = WriteQueue(commit, lambda: 5, Background())
        entry = Noted("a", [Next.BACK_OFF])
        queue.add(entry)
        await queue.drained()
        assert [told for _, told in entry.told] == [answer, answer]

    _run(main)
