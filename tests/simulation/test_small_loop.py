"""What the loop decides between two claims, and when heartbeats are sent, in small cases."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from datetime import timedelta
from itertools import product
from random import Random
from typing import Any, Final

import pytest
from tests.simulation.places import HELD, NOW, SECOND, Place, place_of

from pyncette import Context, Heartbeat, PerWorker, chance
from pyncette.engine.dispatch import Claim
from pyncette.engine.loop import (
    BACKLOG_MAX,
    CAREFUL_CLAIMS,
    OVERDUE_POLLS,
    STORE_RETRY_DELAY_MAX_S,
    SUSPICION_INTERVAL_S,
    TOO_LARGE_CHARACTERS_MIN,
    YIELD_MAX,
    _Question,
)
from pyncette.engine.polling import BACKOFF_INITIAL, NEVER
from pyncette.errors import DeadlineExceededError, LeaseLostException, StoreUnavailableError
from pyncette.store import Claimed, Group
from pyncette.store.record import State
from pyncette.task import Task

POLL: Final = 1 * SECOND
OPTIONS: Final[dict[str, Any]] = {"poll_interval": timedelta(seconds=1), "batch_size": 8}


async def _body(context: Context) -> None: ...


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _question(place: Place, limit: int = 4, share: int = 4) -> _Question:
    sources = place.worker.sources.all()
    groups = [Group(source.group, 20 * SECOND, share, NOW) for source in sources]
    return _Question(sources, [*groups], limit, NOW, "token", place.clock.monotonic())


# How much is claimed.


def test_a_claim_that_was_full_and_quick_lets_the_next_be_larger() -> None:
    async def main() -> None:
        async with place_of(app_options=OPTIONS) as place:
            one, deadline_s = place.worker.loop, place.worker.store.deadline_s
            for found, took, largest in product(
                (3, 4, 5), (0, deadline_s / 2, deadline_s), (1, 4, 8)
            ):
                one._claim_max, one._careful = largest, 0
                claimed = Claimed([HELD] * found, [None])
                one._ask_for_more(_question(place), claimed, took)
                grows = found >= 4 and took < deadline_s / 2
                assert one._claim_max == (min(2 * largest, 8) if grows else largest)
                one._careful = 2
                one._claim_max = 1
                one._ask_for_more(_question(place), claimed, 0)
                assert (one._claim_max, one._careful) == (1, 1)

    _run(main)


def test_a_claim_that_exceeds_its_deadline_is_repeated_with_fewer_records() -> None:
    error = DeadlineExceededError("claim", 1.0)

    async def main() -> None:
        async with place_of(app_options=OPTIONS) as place:
            one = place.worker.loop
            sizes = []
            for _ in range(4):
                one._unanswered = _question(place, limit=3)
                one._store_failed(error)
                sizes.append((one._claim_max, one._unanswered.limit, one._careful))
            assert sizes == [
                *((2, 2, 0), (1, 1, 0)),
                *((1, 1, CAREFUL_CLAIMS), (1, 1, CAREFUL_CLAIMS)),
            ]
            one._claim_max = 8
            for other in (StoreUnavailableError("down"), DeadlineExceededError("write", 1.0)):
                one._unanswered = _question(place)
                one._store_failed(other)
                assert (one._claim_max, one._unanswered.limit) == (8, 4)

    _run(main)


def test_a_claim_that_may_have_lasted_longer_than_its_leases_is_made_anew() -> None:
    async def main() -> None:
        for after_s, forgotten in ((0, False), (19.9, False), (20, True), (21, True)):
            async with place_of() as place:
                one = place.worker.loop
                shorter = _question(place)
                longer = Group("u", 60 * SECOND, 1, NOW)
                one._unanswered = shorter._replace(sources=[longer, *shorter.sources])
                await place.clock.advance(timedelta(seconds=after_s))
                one._store_failed(StoreUnavailableError("down"))
                assert (one._unanswered is None) is forgotten

    _run(main)


def test_pauses_after_failures_grow_to_their_longest() -> None:
    async def main() -> None:
        async with place_of() as place:
            one = place.worker.loop
            longest = []
            for _ in range(14):
                with chance.use(Random(1)):
                    part = chance.current().random()
                with chance.use(Random(1)):
                    one._store_failed(StoreUnavailableError("down"))
                longest.append((one._poll_at - one._monotonic()) / SECOND / part)
            assert [round(pause, 3) for pause in longest[:4]] == [0.2, 0.4, 0.8, 1.6]
            assert max(longest) == pytest.approx(STORE_RETRY_DELAY_MAX_S, rel=1e-4)
            assert longest[-1] == pytest.approx(STORE_RETRY_DELAY_MAX_S, rel=1e-4)
            one._succeeded()
            assert one._failures == 0
            assert one.last_tick == NOW

    _run(main)


def test_slots_are_what_the_limit_leaves_and_none_while_outcomes_pile_up() -> None:
    async def main() -> None:
        async with place_of(app_options={"concurrency_limit": 3, "batch_size": 2}) as place:
            worker = place.worker
            assert (worker.loop._free_slots(), worker.loop.starved) == (2, False)
            place.enter()
            worker.loop._claim_max = 9
            assert worker.loop._free_slots() == 2
            for number in range(BACKLOG_MAX):
                assert worker.loop._free_slots() == 2
                worker.dispatcher.give_back(HELD._replace(key=f"{number}"))
            assert (worker.loop._free_slots(), worker.loop.starved) == (0, True)

    _run(main)


def test_only_what_is_large_is_parked_as_too_large() -> None:
    async def main() -> None:
        async with place_of() as place:
            sizes = [0, TOO_LARGE_CHARACTERS_MIN - 1, TOO_LARGE_CHARACTERS_MIN]
            records = [
                HELD._replace(key=f"{size}", schedule="", progress="", args="x" * size)
                for size in sizes
            ]
            small = place.worker.loop._park_too_large(records, 3.0)
            assert [record.key for record in small] == ["0", f"{TOO_LARGE_CHARACTERS_MIN - 1}"]
            [entry] = place.worker.writes._queue
            write = entry.build(NOW)
            assert write is not None
            assert (write.key, write.change.state) == (  # type: ignore[union-attr]
                f"{TOO_LARGE_CHARACTERS_MIN}",
                State.PARKED,
            )

    _run(main)


# What is asked next.


def test_a_source_is_asked_again_when_its_next_record_is_due_or_others_hold_it() -> None:
    async def main() -> None:
        for next_due, found, share, limit in product(
            (None, NOW - 1, NOW, NOW + 1), (0, 1, 2), (1, 2), (1, 2, 3)
        ):
            async with place_of(app_options=OPTIONS) as place:
                one, [source] = place.worker.loop, place.worker.sources.all()
                source.backoff = BACKOFF_INITIAL
                measure_at = one._measure_at
                question = _question(place, limit, share)
                one._note_next_asks(question, Claimed([HELD] * found, [next_due]))
                held_off = False
                if next_due is None:
                    expected = NEVER
                elif next_due > NOW:
                    expected = next_due
                elif found >= limit or found >= share:
                    expected = NOW
                else:
                    expected, held_off = NOW + 2 * BACKOFF_INITIAL, True
                assert source.next_ask == expected
                if next_due is not None and not held_off:
                    assert source.backoff == 0
                soon = place.clock.monotonic() + SUSPICION_INTERVAL_S
                assert one._measure_at == (soon if held_off else measure_at)
                one._measure_at = math.inf
                one._note_next_asks(question, Claimed([], [NOW]))
                assert one._measure_at == math.inf

    _run(main)


def test_what_others_should_claim_first_is_claimed_once_it_is_late() -> None:
    async def main() -> None:
        for poll_s in (1, 5):
            poll = poll_s * SECOND
            app_options = {"poll_interval": timedelta(seconds=poll_s)}
            async with place_of(app_options=app_options) as place:
                one, [source] = place.worker.loop, place.worker.sources.all()
                assert one._claims_before(source, NOW) == NOW
                source.own = False
                assert one._claims_before(source, NOW) == NOW - OVERDUE_POLLS * poll
                source.own = True
                place.worker.dispatcher.yields["t"] = place.clock.monotonic() + 3
                await place.clock.advance(timedelta(seconds=2))
                assert one._claims_before(source, NOW) == NOW - min(poll, YIELD_MAX)
                await place.clock.advance(timedelta(seconds=1))
                assert one._claims_before(source, NOW) == NOW
                assert not place.worker.dispatcher.yields

    _run(main)


def test_a_claim_keeps_to_the_limits_of_its_tasks() -> None:
    async def main() -> None:
        for most, free in product((1, 2, 3), (1, 2, 5)):
            async with place_of(limit=PerWorker(most)) as place:
                worker = place.worker
                assert worker.sources.limited
                question = worker.loop._ask(NOW, free, True)
                [group] = question.sources
                assert isinstance(group, Group)
                assert (question.limit, group.share) == (free, min(most, free))
                # As many run as may: the source is left out until one of them ends.
                runs = []
                for _ in range(most):
                    batch = worker.dispatcher._batch(place.template, Claim(0.0, 0.0, NOW))
                    execution = worker.dispatcher._execution(batch, HELD, NOW)
                    assert execution is not None
                    worker.dispatcher.executions[execution] = run = execution.run()
                    runs.append(run)
                full = worker.loop._ask(NOW, free, True)
                assert (full.asked, full.sources) == ([], [])
                assert place.template in worker.sources.held
                for run in runs:
                    run.close()
                worker.dispatcher.executions.clear()

    _run(main)


def test_pauses_are_read_where_there_are_groups_to_claim_from() -> None:
    async def main() -> None:
        async with place_of() as place:
            one = place.worker.loop
            assert await one._read_pauses(NOW)
            place.template.enabled = False
            assert not await one._read_pauses(NOW)

    _run(main)


def test_a_change_of_a_pause_is_looked_at_at_once_unless_the_store_fails() -> None:
    async def main() -> None:
        async with place_of() as place:
            one = place.worker.loop
            for failures in (0, 1):
                one._failures, one._poll_at = failures, 7
                one.look_at_pauses()
                assert (one._poll_at == 7) is (failures > 0)

    _run(main)


def test_only_static_tasks_that_are_enabled_have_records_of_their_own() -> None:
    async def main() -> None:
        async with place_of() as place:
            one = place.worker.loop
            static = [Task(name=name, func=_body, interval=timedelta(seconds=1)) for name in "ab"]
            static[1].enabled = False
            place.worker.declared = lambda: [place.template, *static]
            assert one._static_tasks() == static[:1]

    _run(main)


# Heartbeats.


def test_heartbeats_are_sent_at_their_pauses_while_a_run_lasts() -> None:
    async def main() -> None:
        async with place_of(heartbeat=Heartbeat(every=timedelta(seconds=3))) as place:
            worker, clock = place.worker, place.clock
            place.enter(begun=True)
            plan = place.execution.beats
            assert plan is not None
            worker.heartbeats.begin(place.execution, plan)
            sent = []
            for second in range(1, 13):
                await clock.advance(timedelta(seconds=1))
                if worker.writes._queue:
                    worker.writes._queue.clear()
                    place.execution.rarely().beating = False
                    sent.append(second)
            assert sent == [3, 6, 9, 12]
            assert worker.heartbeats._beating
            place.leave()
            await clock.advance(timedelta(seconds=3))
            assert not worker.heartbeats._beating
            assert not worker.writes._queue

    _run(main)


def test_a_run_that_needs_heartbeats_more_often_is_not_late() -> None:
    async def main() -> None:
        async with place_of(heartbeat=Heartbeat(every=timedelta(seconds=9))) as place:
            worker, clock = place.worker, place.clock
            place.enter(begun=True)
            slow = place.execution.beats
            assert slow is not None
            worker.heartbeats.begin(place.execution, slow)
            await clock.advance(timedelta(seconds=1))
            worker.heartbeats.begin(place.execution, slow._replace(every_s=2.0))
            assert place.execution.rarely().beat_at == place.execution.claimed_at + 2.0
            await clock.advance(timedelta(seconds=1))
            assert len(worker.writes._queue) == 1
            place.leave()
            await clock.advance(timedelta(seconds=10))

    _run(main)


@pytest.mark.parametrize("cancels", [False, True])
def test_only_a_lost_lease_cancels_a_body_and_only_if_it_asks_for_that(
    cancels: bool, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeat = Heartbeat(every=timedelta(seconds=3), cancel_on_lease_lost=cancels)

    async def main() -> None:
        for error, ended, said in (
            (None, False, ""),
            (StoreUnavailableError("down"), False, "A heartbeat of t:k failed"),
            (StoreUnavailableError("down"), True, ""),
            ("by body", False, ""),
            ("lost", True, ""),
            ("lost", False, "it is cancelled" if cancels else "it goes on"),
        ):
            async with place_of(heartbeat=heartbeat) as place:
                execution = place.execution
                place.enter(begun=True)
                place.begin_body()
                plan = execution.beats
                assert plan is not None
                if ended:
                    place.leave()
                lost: Exception | None = (
                    LeaseLostException(execution.task(), "gone", error == "by body")
                    if isinstance(error, str)
                    else error
                )
                caplog.clear()
                place.worker.heartbeats._answered(execution, plan, lost)
                warnings = [record for record in caplog.records if record.levelname == "WARNING"]
                assert (said in warnings[0].getMessage()) if said else not warnings
                assert execution._interrupted is (error == "lost" and not ended and cancels)

    _run(main)
