"""Group commit: what leaves together, what waits, and what becomes of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from tests.support import logged, run

from pyncette.engine.background import Background
from pyncette.engine.writes import (
    LARGE_CHARACTERS,
    LARGE_WRITES_MAX,
    Call,
    Next,
    Waker,
    WriteQueue,
)
from pyncette.errors import StoreUnavailableError
from pyncette.store import Applied, Failed, Refused, Result, Unknown, Write
from pyncette.store.record import ABSENT, ANY, DELETE, Put, State


def write(key: str) -> Write:
    return Write("group", key, DELETE, 1)


class Commits:
    """Takes batches, and answers when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.errors: list[Exception] = []

    async def __call__(self, batch: Sequence[Write], now: int) -> list[Result]:
        self.batches.append([write.key for write in batch])
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        return [Applied(2)] * len(batch)


class Wish:
    """An entry that notes what became of it."""

    def __init__(self, key: str, again: int = 0, broken: bool = False) -> None:
        self.key = key
        self.again = again
        self.broken = broken
        self.events: list[str] = []

    def build(self, now: int) -> Write | None:
        if self.broken:
            raise RuntimeError("a defect")
        return write(self.key) if self.key else None

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        self.again -= 1
        if isinstance(answer, (Failed, Unknown)):
            self.events.append(f"failed: {answer.error}")
            return Next.BACK_OFF if self.again >= 0 else Next.DONE
        self.events.append("answered")
        return Next.RETRY if self.again >= 0 else Next.DONE

    def abandon(self, error: Exception) -> None:
        self.events.append(f"abandoned: {error}")


def test_what_is_asked_for_while_a_flight_is_out_leaves_with_the_next() -> None:
    async def main() -> None:
        commits = Commits()
        commits.open.clear()
        queue = WriteQueue(commits, lambda: 0, Background())
        queue.add(Wish("a"))
        await asyncio.sleep(0)
        for key in "bcd":
            queue.add(Wish(key))
        assert len(queue) == 3
        commits.open.set()
        await queue.drained()
        assert commits.batches == [["a"], ["b", "c", "d"]]
        assert len(queue) == 0

    run(main())


def test_urgent_entries_leave_first() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        queue.add(Wish("a"))
        queue.add(Wish("b"), urgent=True)
        await queue.drained()
        assert commits.batches == [["b", "a"]]

    run(main())


def test_of_two_writes_to_one_record_the_second_waits_and_order_is_kept() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        for key in "abab":
            queue.add(Wish(key))
        await queue.drained()
        assert commits.batches == [["a", "b"], ["a", "b"]]

    run(main())


def test_a_write_does_not_overtake_a_large_one_to_its_record_that_waits() -> None:
    async def main() -> None:
        commits = Commits()
        commits.open.clear()
        queue = WriteQueue(commits, lambda: 0, Background())
        keys = [str(number) for number in range(LARGE_WRITES_MAX)]
        large = Put(1, State.SCHEDULED, None, 0, "", "x" * (LARGE_CHARACTERS + 1), "")
        for key in [*keys, "last"]:
            queue.add(Call(Write("group", key, large, ABSENT)))
        queue.add(Call(Write("group", "last", DELETE, ANY)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert commits.batches == [[key] for key in keys]
        commits.open.set()
        await queue.drained()
        assert commits.batches[len(keys) :] == [["last"], ["last"]]

    run(main())


def test_a_flight_is_bounded() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        for number in range(2_500):
            queue.add(Wish(str(number)))
        await queue.drained()
        assert [len(batch) for batch in commits.batches] == [1_000, 1_000, 500]

    run(main())


def test_an_entry_that_wants_nothing_any_more_is_not_written() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        queue.add(Wish(""))
        await queue.drained()
        assert commits.batches == []

    run(main())


def test_an_entry_that_was_refused_may_write_again_before_what_came_later() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        wish = Wish("a", again=2)
        queue.add(wish)
        await queue.drained()
        assert commits.batches == [["a"], ["a"], ["a"]]
        assert wish.events == ["answered"] * 3

    run(main())


def test_a_flight_that_failed_is_repeated_for_those_that_want_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        commits = Commits()
        commits.errors = [RuntimeError("down"), RuntimeError("down")]
        queue = WriteQueue(commits, lambda: 0, Background())
        patient, impatient = Wish("a", again=5), Wish("b")
        queue.add(patient)
        queue.add(impatient)
        await queue.drained()
        assert commits.batches[:3] == [["a", "b"], ["a"], ["a"]]
        assert patient.events[:3] == ["failed: down", "failed: down", "answered"]
        assert impatient.events == ["failed: down"]

    monkeypatch.setattr("pyncette.engine.writes.RETRY_DELAY_INITIAL_S", 0.001)
    run(main())
    assert logged(caplog, "Writing 2 records to the store failed", "down")


def test_an_entry_that_cannot_decide_takes_no_other_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        broken = Wish("a", broken=True)
        queue.add(broken)
        queue.add(Wish("b"))
        await queue.drained()
        assert commits.batches == [["b"]]
        assert broken.events == ["abandoned: a defect"]

    run(main())
    assert logged(caplog, "could not be decided")


def test_a_queue_that_is_closed_tells_what_was_not_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        commits = Commits()
        commits.open.clear()
        background = Background()
        queue = WriteQueue(commits, lambda: 0, background)
        sent, queued, late = Wish("a"), Wish("b"), Wish("c")
        queue.add(sent)
        await asyncio.sleep(0)
        queue.add(queued)
        await queue.close(0.01)
        queue.add(late)
        assert [len(wish.events) for wish in (sent, queued, late)] == [0, 1, 1]
        assert "closed before this was written" in queued.events[0]
        await background.close()
        assert "closed while this was being written" in sent.events[0]

    run(main())
    assert logged(caplog, "1 writes were not made when the app closed", "'b'")


def test_a_call_has_the_answer_of_its_write() -> None:
    async def main() -> None:
        commits = Commits()
        queue = WriteQueue(commits, lambda: 0, Background())
        call = Call(write("a"))
        queue.add(call)
        assert await call.answer == Applied(2)
        assert call.answered(Refused(None), call.write, 0) is Next.DONE
        call.abandon(RuntimeError())
        assert await call.answer == Applied(2)

    run(main())


class Told:
    """Notes which groups' watchers were told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.groups: list[list[str]] = []
        self.error = error

    async def __call__(self, groups: Collection[str]) -> Any:
        self.groups.append(sorted(groups))
        if self.error is not None:
            raise self.error


def test_groups_that_are_told_of_too_often_are_told_of_together_a_little_later() -> None:
    async def main() -> None:
        told = Told()
        waker = Waker(told, Background())
        assert waker.take() == ()
        waker.add("a")
        assert waker.take() == {"a"}
        for group in "bcb":
            waker.add(group)
            assert waker.take() == ()
        await waker.close()
        assert told.groups == [["b", "c"]]
        await waker.close()

    run(main())


def test_what_is_told_along_with_a_write_is_not_told_again() -> None:
    async def main() -> None:
        told = Told()
        waker = Waker(told, Background())
        waker.add("a")
        waker.take()
        waker.add("b")
        waker.take()
        waker._notified -= 1  # as if a while had passed: the next write takes it along
        assert waker.take() == {"b"}
        await waker.close()
        assert told.groups == []

    run(main())


def test_a_waker_that_fails_is_no_error() -> None:
    async def main() -> None:
        told = Told(RuntimeError("down"))
        waker = Waker(told, Background())
        for _ in range(2):
            waker.add("a")
            waker.take()
        await waker.close()
        assert told.groups == [["a"]]

    run(main())


def test_a_record_that_somebody_holds_fails_its_own_call_and_no_other() -> None:
    async def main() -> None:
        async def commit(batch: Sequence[Write], now: int) -> list[Result]:
            held = Failed(StoreUnavailableError("held"))
            return [held if write.key == "a" else Applied(1) for write in batch]

        queue = WriteQueue(commit, lambda: 0, Background())
        calls = {key: Call(Write("group", key, DELETE, ANY)) for key in "abc"}
        for call in calls.values():
            queue.add(call)
        await queue.drained()
        with pytest.raises(StoreUnavailableError, match="held"):
            await calls["a"].answer
        assert [await calls[key].answer for key in "bc"] == [Applied(1), Applied(1)]

    run(main())
