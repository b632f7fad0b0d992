"""One turn of the loop: when it waits and for how long, what it asks, and when it is idle."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, Final, NamedTuple

import pytest
from tests.faulty_store import Call, Faults, faulty
from tests.simulation.places import HELD, NOW, SECOND, START, place_of
from tests.simulation.test_small_members import shared
from tests.simulation.workers import every

from pyncette import Context, PerWorker, Process, Pyncette, events
from pyncette.clock import StoreClock
from pyncette.engine.loop import (
    _LONG_AGO,
    BACKWARD_STEP_MIN,
    CAREFUL_CLAIMS,
    MEASURE_INTERVAL_S,
    PATIENT_FACTOR,
    TOO_LARGE_CHARACTERS_MIN,
    _Question,
)
from pyncette.engine.polling import NEVER
from pyncette.engine.worker import Worker
from pyncette.errors import StoreUnavailableError
from pyncette.memory import MemoryStore
from pyncette.schedule import Calendar, dumps
from pyncette.store import Claimed, Group, Key, Page, Write
from pyncette.store.record import (
    ANY,
    CONTROL_GROUP,
    DELETE,
    STATIC_GROUP,
    Patch,
    Pause,
    Progress,
    Put,
    State,
    dump_progress,
)
from pyncette.task import Task
from pyncette.testing.clocks import VirtualClock

POLL_S: Final = 10


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


async def _body(context: Context) -> None: ...


def _in_thread(context: Context) -> None: ...


def _in_process(context: Any) -> None: ...


class Store(MemoryStore):
    """A store that may have a clock, and notes how claims are made.

    Attributes:
        told: What its clock says; None: it has none.
        watches: How often it was watched, and how many of these watches are closed.
        claims: The keywords of the claims.
        slow, slow_scan: Called by each claim, and by each listing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told: int | None = None
        self.watches = [0, 0]
        self.claims: list[dict[str, Any]] = []
        self.slow: Callable[[], None] = lambda: None
        self.slow_scan: Callable[[], None] = lambda: None

    async def now(self) -> int | None:
        return self.told

    async def claim(self, *arguments: Any, **options: Any) -> Claimed:
        self.claims.append(options)
        claimed = await super().claim(*arguments, **options)
        self.slow()
        return claimed

    async def scan(self, *arguments: Any) -> Page:
        self.slow_scan()
        return await super().scan(*arguments)

    async def watch(self, groups: Any, on_wake: Any) -> Any:
        watch = await super().watch(groups, on_wake)
        self.watches[0] += 1
        close = watch.close

        def closed() -> None:
            self.watches[1] += 1
            close()

        watch.close = closed  # type: ignore[method-assign]
        return watch


class Turn(NamedTuple):
    """A worker whose loop is called by hand."""

    worker: Worker
    clock: VirtualClock
    store: Store
    faults: Faults
    tasks: dict[str, Task]

    def made(self, name: str) -> list[Call]:
        return self.faults.made(name)

    async def turn(self, seconds_max: int = 60) -> int:
        """One turn; returns how many seconds it has waited."""
        turn = asyncio.ensure_future(self.worker.loop._pass())
        for second in range(seconds_max):
            await self.clock.settle()
            if turn.done():
                await turn
                return second
            await self.clock.advance(timedelta(seconds=1))
        turn.cancel()
        await asyncio.wait([turn])
        return seconds_max

    async def plant(self, name: str, key: str, due_at: int, **fields: Any) -> None:
        progress = dump_progress(Progress(due_at, "inc"))
        put = Put(due_at, State.SCHEDULED, None, 0, dumps(every(3600 * SECOND)), "1 {}", progress)
        group = self.tasks[name].locate(key) if key != name else STATIC_GROUP
        await MemoryStore.write(self.store, [Write(group, key, put._replace(**fields), ANY)], NOW)


@asynccontextmanager
async def turning(
    declare: Callable[[Pyncette], dict[str, Task]] | None = None, **options: Any
) -> AsyncIterator[Turn]:
    """Opens an app, with a template ``t`` unless it is said what it declares."""
    clock, store, faults = VirtualClock(START), Store(), Faults()

    @asynccontextmanager
    async def repository(**_: Any) -> AsyncIterator[Store]:
        yield store

    app = Pyncette(
        faulty(repository, faults),
        clock=clock,
        worker_name="me",
        poll_interval=timedelta(seconds=POLL_S),
        **options,
    )
    tasks = {"t": app.dynamic_task(name="t")(_body)} if declare is None else declare(app)
    async with app.create() as context:
        worker = context._worker
        one = Turn(worker, clock, store, faults, tasks)
        worker.loop.running = True
        try:
            yield one
        finally:
            worker.loop.running = False
            worker.alarm.close()
            worker.writes._take_all()


# When it waits, and for how long.


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("free", [False, True])
def test_a_turn_waits_for_whatever_comes_first(failures: int, free: bool) -> None:
    async def main() -> None:
        for beat_s, poll_s, due_s, end_s in product((0, 3), (0, 5), (0, 2, 7), (4, None)):
            async with turning() as one:
                worker, loop = one.worker, one.worker.loop
                worker.sources.refresh(worker.tasks())
                [source] = worker.sources.all()
                worker.sources.due(NEVER - 1)
                worker.sources.ask_by(source, NOW + due_s * SECOND)
                now = loop._monotonic()
                worker.membership.beat_at = now + beat_s * SECOND
                loop._poll_at = now + poll_s * SECOND
                loop._failures = failures
                loop._claim_max = 4 if free else 0
                if end_s is not None:
                    worker.pauses.known["other"] = NOW + end_s * SECOND
                worker.alarm.rung = False
                one.faults.calls.clear()
                waited = await one.turn()
                pauses = [poll_s]
                if not failures:
                    pauses.append(beat_s or 20)
                    if free:
                        pauses += [due_s, 60 if end_s is None else end_s]
                assert waited == min(pauses)
                # After a wait, the next turn looks again.
                assert len(one.made("claim")) == (min(pauses) == 0)
                if min(pauses) == 0:
                    polled = poll_s == 0
                    assert (len(one.made("scan")) > 0) is polled
                    assert (loop._poll_at > now + poll_s * SECOND) is polled
                beats = beat_s == 0 and not failures
                assert (worker.membership.beat_at > now + beat_s * SECOND) is beats

    _run(main)


@pytest.mark.parametrize("details", [False, True])
def test_a_turn_looks_who_waits_only_for_those_who_want_to_know(details: bool) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with turning() as one:
            if details:
                one.worker.reporter.observers.add(told.append, (events.Waiting,))
            one.worker.loop._poll_at = _LONG_AGO
            await one.turn()
            assert bool(told) is details

    _run(main)


def _note_into(told: list[Any], soonest: Any, now: int) -> None:
    told.extend(soonest)


def test_what_waits_for_a_limit_is_asked_when_it_is_due_and_claimed_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        for held, due_s in product((False, True), (None, -3, 5)):
            async with turning() as one:
                worker = one.worker
                worker.sources.refresh(worker.tasks())
                [source] = worker.sources.all()
                source.next_due = NOW - 60 * SECOND
                if held:
                    worker.sources.hold(source)
                if due_s is not None:
                    await one.plant("t", "k", NOW + due_s * SECOND)
                told: list[Any] = []
                monkeypatch.setattr(worker.waits, "note", partial(_note_into, told))
                one.faults.calls.clear()
                await worker.loop._look_who_waits()
                assert len(one.made("claim")) == held
                due_at = NEVER if due_s is None else NOW + due_s * SECOND
                assert source.next_due == (due_at if held else NOW - 60 * SECOND)
                assert told == [(one.tasks["t"], source.next_due)]
                assert all(call.arguments[1] == 0 for call in one.made("claim"))

    _run(main)


def test_a_turn_that_would_only_look_waits_until_something_is_due_or_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        both = (False, True)
        for failures, asked, yields, sharing in product((0, 1), both, both, both):
            async with turning() as one:
                worker, loop = one.worker, one.worker.loop
                worker.sources.refresh(worker.tasks())
                [source] = worker.sources.all()
                worker.sources.due(NEVER - 1)
                worker.sources.ask_by(source, NOW + 50 * SECOND)
                loop._poll_at = loop._monotonic() + 7 * SECOND
                worker.membership.beat_at = loop._monotonic() + 30 * SECOND
                loop._failures = failures
                if asked:
                    loop._unanswered = _Question([], [], 0, NOW, "", 0.0)
                if yields:
                    worker.dispatcher.yields["t"] = 1.0
                worker.membership.sharing = sharing
                waits: list[tuple[int, int]] = []

                async def wait_for(*given: Any, waits: Any = waits) -> None:
                    waits.append(given)

                monkeypatch.setattr(worker.alarm, "wait_for", wait_for)
                await loop._pass()
                looks = not (failures or asked or yields or sharing)
                due = NEVER if failures else 50 * SECOND
                assert waits == [(due if looks else 7 * SECOND, 7 * SECOND)]

    _run(main)


def test_a_pause_that_ends_is_polled_for() -> None:
    async def main() -> None:
        async with turning() as one:
            worker, loop = one.worker, one.worker.loop
            worker.membership.beat_at = NEVER
            loop._poll_at = loop._monotonic() + 50 * SECOND
            for end, scans in ((NOW + 1, 0), (NOW, 1)):
                worker.sources.refresh(worker.tasks())
                for source in worker.sources.all():
                    worker.sources.ask_again(source, NOW)
                worker.pauses.known = {"other": end}
                one.faults.calls.clear()
                assert await one.turn() == 0
                assert len(one.made("scan")) == scans
                assert len(one.made("claim")) == 1

    _run(main)


def test_a_claim_is_made_by_the_time_after_pauses_were_read() -> None:
    async def main() -> None:
        async with turning() as one:

            def wait() -> None:
                one.clock._now += 3 * SECOND

            one.store.slow_scan = wait
            one.worker.membership.beat_at = NEVER
            one.worker.loop._poll_at = _LONG_AGO
            await one.turn()
            [call] = one.made("claim")
            assert call.arguments[2] == NOW + 3 * SECOND

    _run(main)


def test_a_change_of_what_it_owns_is_polled_for_at_once() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        options = shared()
        count = options.pop("count")
        return {"t": app.partitioned_task(count, name="t", **options)(_body)}

    async def main() -> None:
        async with turning(declare) as one:
            loop, membership = one.worker.loop, one.worker.membership
            for changes in (True, False):
                membership.beat_at = 0
                loop._poll_at = loop._monotonic() + 50 * SECOND
                one.worker.sources.due(NEVER - 1)
                one.worker.alarm.rung = False
                one.faults.calls.clear()
                assert await one.turn() == (0 if changes else 2)
                assert len(one.made("claim")) == changes

    _run(main)


def test_a_claim_whose_answer_was_lost_is_repeated_as_it_was() -> None:
    async def main() -> None:
        async with turning() as one:
            loop = one.worker.loop
            loop._poll_at = _LONG_AGO
            with one.faults.down("claim"):
                await one.turn()
            [first] = one.made("claim")
            loop._poll_at = loop._monotonic()
            loop._failures = 0
            await one.turn()
            second = one.made("claim")[-1]
            assert first.arguments[:4] == second.arguments[:4]
            assert (first.arguments[4], second.arguments[4]) == (False, True)

    _run(main)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("down", [False, True])
def test_what_a_claim_took_that_was_cancelled_with_the_loop_is_given_back(
    asked: bool, failures: int, down: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with turning() as one:
            loop, worker = one.worker.loop, one.worker
            await one.plant("t", "k", NOW)
            worker.sources.refresh(worker.tasks())
            question = loop._ask(NOW, 5, True)
            if asked:
                claimed = await loop._send(question)
                assert [record.key for record in claimed.records] == ["k"]
                loop._unanswered = question._replace(repeated=True)
            loop._failures = failures
            worker.stopping = True
            one.faults.calls.clear()
            with one.faults.down("claim") if down else nullcontext():
                await loop.give_back_unanswered()
            asks = asked and not failures
            assert [call.arguments[4] for call in one.made("claim")] == [True] * asks
            assert loop._unanswered is None
            said = [record for record in caplog.records if "cannot be given" in record.message]
            assert len(said) == (asks and down)
            left = [write for entry in worker.writes._queue if (write := entry.build(NOW))]
            given_back = {write.key: write.change for write in left if write.group == "t"}
            back = {"k": Patch(NOW, State.SCHEDULED, 0)}
            assert given_back == (back if asks and not down else {})

    _run(main)


def test_a_worker_without_tasks_polls_and_claims_nothing() -> None:
    async def main() -> None:
        async with turning(lambda app: {}) as one:
            loop = one.worker.loop
            one.worker.membership.beat_at = NEVER
            loop._poll_at = _LONG_AGO
            assert await one.turn() == 0
            assert loop._poll_at == loop._monotonic() + POLL_S * SECOND
            [call] = one.made("claim")
            assert call.arguments[0] == []
            one.worker.alarm.rung = False
            one.faults.calls.clear()
            assert await one.turn() == POLL_S
            assert one.faults.calls == []

    _run(main)


# When it is idle.


def test_it_is_idle_when_nothing_runs_is_due_or_is_left_to_be_written() -> None:
    async def main() -> None:
        for runs, failures, asked, backoff, own, due_s, quiet in product(
            (False, True),
            (0, 1),
            (False, True),
            (0, 5),
            (False, True),
            (0, 5),
            (False, True),
        ):
            async with turning() as one:
                worker, loop = one.worker, one.worker.loop
                worker.sources.refresh(worker.tasks())
                [source] = worker.sources.all()
                worker.sources.due(NEVER - 1)
                worker.sources.ask_by(source, NOW + due_s * SECOND)
                source.backoff, source.own = backoff, own
                loop._failures, loop._quiet, loop._poll_at = failures, quiet, 7
                if asked:
                    loop._unanswered = _Question([], [], 0, NOW, "", 0.0)
                executions: Any = worker.dispatcher.executions
                if runs:
                    executions["some"] = None
                busy = runs or failures or asked or (backoff and own) or not due_s
                assert await loop._is_idle() is (quiet and not busy)
                # It polls once more to be sure.
                polls = not busy and not quiet
                assert loop._quiet is (quiet or polls)
                assert (loop._poll_at == _LONG_AGO) is polls
                executions.clear()

    _run(main)


@pytest.mark.parametrize("until_idle", [False, True])
def test_only_a_run_until_idle_ends_by_itself(until_idle: bool) -> None:
    async def main() -> None:
        async with turning() as one:
            one.worker.loop.running = False
            await one.plant("t", "x", NOW)
            run = asyncio.ensure_future(one.worker.loop.run(until_idle))
            await one.clock.advance(timedelta(seconds=30))
            assert run.done() is until_idle
            assert len(one.made("claim")) > 1
            [record] = await one.store.get([("t", "x")])
            assert record is not None
            assert record.due_at == NOW + 3600 * SECOND  # it has run
            assert one.store.watches == [1, int(until_idle)]
            one.worker.shutdown()
            await run
            assert one.store.watches == [1, 1]
            assert not one.worker.loop._watching

    _run(main)


def test_a_worker_that_was_told_to_stop_before_it_began_claims_nothing() -> None:
    async def main() -> None:
        async with turning() as one:
            one.worker.loop.running = False
            one.worker.shutdown()
            await one.worker.loop.run()
            assert one.made("claim") == []

    _run(main)


def test_a_loop_that_could_not_watch_ends_all_the_same() -> None:
    async def main() -> None:
        async with turning() as one:
            one.worker.loop.running = False
            with one.faults.down("watch"):
                run = asyncio.ensure_future(one.worker.loop.run())
                await one.clock.advance(timedelta(seconds=3))
                one.worker.shutdown()
                await run
            assert one.store.watches == [0, 0]

    _run(main)


@pytest.mark.parametrize("tasks", [False, True])
def test_a_worker_that_runs_nothing_says_so(tasks: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with turning(None if tasks else lambda app: {}) as one:
            one.worker.loop.running = False
            one.worker.shutdown()
            await one.worker.loop.run()
        said = any("runs nothing" in record.getMessage() for record in caplog.records)
        assert said is not tasks

    _run(main)


# What it watches, and its clock.


def test_a_change_of_groups_is_watched_and_polled_for_while_the_loop_runs() -> None:
    async def main() -> None:
        for running, watching in product((False, True), repeat=2):
            async with turning() as one:
                loop = one.worker.loop
                if watching:
                    await loop._watch_changes()
                loop.running, loop._poll_at = running, 7
                one.worker.alarm.rung = False
                loop.sources_changed()
                assert (loop._poll_at == _LONG_AGO) is running
                assert one.worker.alarm.rung is running
                assert one.store.watches == [watching, running and watching]
                assert loop._watching is (watching and not running)
                await loop._watch_changes()
                await loop._watch_changes()
                assert one.store.watches[0] == (1 + (running and watching))

    _run(main)


def test_pauses_are_read_only_where_there_are_templates() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        return {"s": app.task(name="s", interval=timedelta(seconds=5))(_body)}

    async def main() -> None:
        async with turning(declare) as one:
            one.faults.calls.clear()
            assert not await one.worker.loop._read_pauses(NOW)
            assert one.faults.calls == []

    _run(main)


@pytest.mark.parametrize("has_clock", [False, True])
def test_the_clock_of_the_store_is_measured_at_intervals_and_sooner_while_it_is_vague(
    has_clock: bool,
) -> None:
    async def main() -> None:
        async with turning() as one:
            loop = one.worker.loop
            one.faults.calls.clear()
            loop._measure_at = 0.0
            await loop._measure()  # the clock of the program decides
            assert one.made("now") == []
            assert loop._measure_at == 0.0
            for due, vague in product((False, True), repeat=2):
                clock = one.worker.clock = StoreClock(one.clock)
                mono = clock.monotonic()
                clock.observe(mono - vague, mono, NOW)
                assert clock.is_vague() is vague
                loop._measure_at = mono if due else mono + 1
                before = loop._measure_at
                one.store.told = NOW if has_clock else None
                one.faults.calls.clear()
                await loop._measure()
                measures = due or vague
                assert bool(one.made("now")) is measures
                after = mono + MEASURE_INTERVAL_S if has_clock else math.inf
                assert loop._measure_at == (after if measures else before)

    _run(main)


def test_only_a_clock_that_was_set_back_by_much_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        for step, noticed in (
            (BACKWARD_STEP_MIN, False),
            (BACKWARD_STEP_MIN + 1, True),
            (-BACKWARD_STEP_MIN - 1, False),
        ):
            async with turning() as one:
                loop = one.worker.loop
                await loop._notice_backward_step()  # nothing was known
                loop._offset += step
                caplog.clear()
                await loop._notice_backward_step()
                said = any("set back" in record.getMessage() for record in caplog.records)
                assert said is noticed
                caplog.clear()
                await loop._notice_backward_step()
                assert not caplog.records

    _run(main)


# What is asked.


def test_without_free_slots_it_asks_when_records_come_due_and_holds_nothing() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        return {
            "t": app.dynamic_task(name="t", limit=PerWorker(1))(_body),
            "u": app.dynamic_task(name="u")(_body),
        }

    async def main() -> None:
        async with turning(declare) as one:
            question = one.worker.loop._ask(NOW, 0, True)
            assert {source.group for source in question.asked} == {"t", "u"}
            assert question.limit == 0
            assert not one.worker.sources.held

    _run(main)


@pytest.mark.parametrize("others", [False, True])
def test_a_task_with_more_groups_than_slots_is_asked_in_a_claim_of_its_own(others: bool) -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        tasks: dict[str, Task] = {
            "t": app.partitioned_task(4, name="t", limit=PerWorker(2))(_body),
            "l": app.partitioned_task(2, name="l", limit=PerWorker(2))(_body),
        }
        if others:
            tasks["u"] = app.dynamic_task(name="u")(_body)
        return tasks

    async def main() -> None:
        alone = together = 0
        for _ in range(40):
            async with turning(declare) as one:
                question = one.worker.loop._ask(NOW, 9, True)
                groups = {source.group for source in question.asked}
                shares = {source.group: source.share for source in question.sources}  # type: ignore[union-attr]
                left = set(one.worker.sources.all()) - set(question.asked)
                if "t:0" in groups:
                    alone += 1
                    assert groups == {f"t:{number}" for number in range(4)}
                    assert question.limit == 2
                    assert set(shares.values()) == {1}
                else:
                    together += 1
                    assert groups == {"l:0", "l:1", *(["u"] if others else [])}
                    assert question.limit == 9
                    assert shares["l:0"] == shares["l:1"] == 1
                    if others:
                        assert shares["u"] == 3
                # What was left out is due at once.
                assert all(source.next_ask == NOW for source in left)
                assert not one.worker.sources.held
        assert alone
        assert together

    _run(main)


def test_free_threads_are_promised_to_one_task_and_the_others_are_asked_next() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        return {
            "a": app.dynamic_task(name="a")(_in_thread),
            "b": app.dynamic_task(name="b")(_in_thread),
            "c": app.dynamic_task(name="c", limit=PerWorker(1))(_in_thread),
        }

    async def main() -> None:
        async with turning(declare, thread_limit=1) as one:
            question = one.worker.loop._ask(NOW, 5, True)
            [asked] = question.asked
            left = [source for source in one.worker.sources.all() if source is not asked]
            assert len(left) == 2
            assert all(source.next_ask == NOW for source in left)
            assert not one.worker.sources.held
            # Without a free thread all of them wait.
            executions: Any = one.worker.dispatcher.executions

            class Running(NamedTuple):
                declared: Task

            executions[Running(one.tasks["a"])] = None
            question = one.worker.loop._ask(NOW, 5, True)
            assert question.asked == []
            assert len(one.worker.sources.held) == 3
            executions.clear()

    _run(main)


# A claim.


def test_a_claim_is_bounded_by_the_clock_of_the_store_once_that_was_measured() -> None:
    async def main() -> None:
        async with turning() as one:
            loop = one.worker.loop
            for clock, bounded in (
                (one.clock, False),
                (StoreClock(one.clock), False),
                (StoreClock(one.clock), True),
            ):
                if bounded:
                    assert isinstance(clock, StoreClock)
                    clock.observe(0.0, 0.0, NOW)
                one.worker.clock = clock
                await loop._claim(loop._ask(NOW, 1, True))
                assert one.store.claims[-1]["bounded"] is bounded
            one.worker.clock = one.clock

    _run(main)


@pytest.mark.parametrize("careful", [0, CAREFUL_CLAIMS])
@pytest.mark.parametrize("slow", [False, True])
def test_what_is_too_large_is_found_by_patient_claims(careful: int, slow: bool) -> None:
    told: list[Any] = []

    def declare(app: Pyncette) -> dict[str, Task]:
        app.on_event(told.append, events.Unreadable)
        return {"t": app.dynamic_task(name="t")(_body)}

    async def main() -> None:
        async with turning(declare) as one:
            loop, worker = one.worker.loop, one.worker
            worker.writes._writing = True
            await one.plant("t", "large", NOW, args="x" * TOO_LARGE_CHARACTERS_MIN)
            loop._careful = careful
            question = loop._ask(NOW, 1, True)

            def wait() -> None:
                if slow:
                    one.clock._now += round(2 * worker.store.deadline_s * SECOND)

            one.store.slow = wait
            one.faults.calls.clear()
            await loop._claim(question)
            patient = careful > 0
            assert bool(one.made("get")) is patient
            built = [entry.build(NOW) for entry in worker.writes._take_all()]
            parked = [
                write
                for write in built
                if write is not None and getattr(write.change, "state", None) == State.PARKED
            ]
            assert bool(parked) is (patient and slow)
            assert [(event.task, event.instance) for event in told] == [("t", "large")] * len(
                parked
            )
            worker.writes._writing = False

    _run(main)


def test_what_is_too_large_is_parked_though_its_task_was_taken_away_meanwhile() -> None:
    told: list[Any] = []

    def declare(app: Pyncette) -> dict[str, Task]:
        app.on_event(told.append, events.Unreadable)
        return {"t": app.dynamic_task(name="t")(_body)}

    async def main() -> None:
        async with turning(declare) as one:
            one.worker.writes._writing = True
            large = HELD._replace(args="x" * TOO_LARGE_CHARACTERS_MIN)
            assert one.worker.loop._park_too_large([large], 3.0) == []
            assert told == []
            [entry] = one.worker.writes._take_all()
            write = entry.build(NOW)
            assert write is not None
            assert write[:2] == ("t", "k")
            one.worker.writes._writing = False

    _run(main)


def test_while_the_store_answers_nothing_no_patient_claim_is_made() -> None:
    async def main() -> None:
        async with turning() as one:
            loop = one.worker.loop
            loop._careful = 3
            question = loop._ask(NOW, 1, True)
            with one.faults.down("get"), pytest.raises(StoreUnavailableError):
                await loop._claim(question)
            assert one.made("claim") == []
            assert loop._unanswered is None
            assert PATIENT_FACTOR > 1

    _run(main)


def test_a_static_record_that_somebody_has_removed_is_made_anew() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        return {
            "s": app.task(name="s", interval=timedelta(seconds=5))(_body),
            "t": app.dynamic_task(name="t")(_body),
        }

    async def main() -> None:
        async with turning(declare) as one:
            loop = one.worker.loop
            for removed in (True, False, True):
                if removed:
                    await one.store.write([Write(STATIC_GROUP, "s", DELETE, ANY)], NOW)
                one.faults.calls.clear()
                question = loop._ask(NOW, 1, True)
                assert any(isinstance(source, Key) for source in question.sources)
                await loop._claim(question)
                assert len(one.made("write")) == removed
                assert len(one.made("get")) == removed
                [record] = await one.store.get([(STATIC_GROUP, "s")])
                assert record is not None

    _run(main)


def test_a_claim_that_finds_something_is_not_quiet() -> None:
    async def main() -> None:
        for found in (False, True):
            async with turning() as one:
                loop = one.worker.loop
                if found:
                    await one.plant("t", "x", NOW)
                loop._quiet = True
                await loop._claim(loop._ask(NOW, 1, True))
                assert loop._quiet is not found
                await one.clock.settle()

    _run(main)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("late_s", [0, 5])
def test_what_is_left_to_others_is_overdue_later(own: bool, late_s: int) -> None:
    async def main() -> None:
        for next_due in (NOW - 6 * SECOND, NOW - 5 * SECOND, NOW - 1, NOW, NOW + 1):
            async with turning() as one:
                worker, loop = one.worker, one.worker.loop
                worker.sources.refresh(worker.tasks())
                [source] = worker.sources.all()
                worker.sources.due(NEVER - 1)
                source.own, source.backoff = own, 7
                group = Group("t", SECOND, 2, NOW - late_s * SECOND)
                question = _Question([source], [group], 3, NOW, "", 0.0)
                loop._note_next_asks(question, Claimed([], [next_due]))
                soon = next_due > NOW - late_s * SECOND
                assert (source.backoff == 0) is soon
                # Of its own the worker never forgets; others are asked at the next poll.
                assert (source.next_ask < NEVER) is own
                if own and soon:  # when it may be claimed
                    assert source.next_ask == next_due + late_s * SECOND

    _run(main)


# What the members of a worker are told.


def test_only_what_has_changed_is_asked_for_at_once_and_pauses_with_it() -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        return {name: app.dynamic_task(name=name)(_body) for name in "tu"}

    async def main() -> None:
        for groups, asked, polls in (
            (None, {"t", "u"}, False),
            (["t"], {"t"}, False),
            (["u", CONTROL_GROUP], {"u"}, True),
            (["other"], set(), False),
        ):
            async with turning(declare) as one:
                worker = one.worker
                worker.sources.refresh(worker.tasks())
                worker.sources.due(NEVER - 1)
                worker.loop._poll_at, worker.alarm.rung = 7, False
                worker.wake_groups(groups)
                assert {source.group for source in worker.sources.due(NOW)} == asked
                assert (worker.loop._poll_at == _LONG_AGO) is polls
                assert worker.alarm.rung

    _run(main)


def test_only_a_run_that_replaces_its_own_record_is_told() -> None:
    async def main() -> None:
        async with place_of() as place:
            place.enter()
            rare = place.execution.rarely()
            for mine, group, key in product((False, True), ("t", "u"), ("k", "j")):
                rare.replaced_by_body = False
                place.execution.runner = asyncio.current_task() if mine else None
                place.worker.replaced(group, key)
                assert rare.replaced_by_body is (mine and (group, key) == ("t", "k"))
            place.execution.runner = None

    _run(main)


def test_the_end_of_an_execution_frees_its_slot_and_wakes_the_loop() -> None:
    async def main() -> None:
        for held, suspect in product((False, True), repeat=2):
            async with place_of(limit=PerWorker(1)) as place:
                worker = place.worker
                [source] = worker.sources.all()
                if held:
                    worker.sources.hold(source)
                if suspect:
                    worker.dispatcher.suspect = place.execution
                place.enter()
                worker.alarm.rung = False
                worker.execution_ended(place.execution)
                assert worker.alarm.rung
                assert worker.dispatcher.suspect is None
                assert not worker.dispatcher.executions
                assert not worker.sources.held
                assert (source.next_ask == NOW) is (held or suspect)

    _run(main)


def test_an_answered_batch_wakes_a_loop_that_waits_for_the_queue() -> None:
    async def main() -> None:
        async with turning() as one:
            for starved in (False, True):
                one.worker.alarm.rung = False
                one.worker.loop.starved = starved
                one.worker._written()
                assert one.worker.alarm.rung is starved

    _run(main)


def test_a_worker_is_at_rest_when_its_loop_has_returned_and_nothing_runs() -> None:
    class Execution(NamedTuple):
        begun: bool

    async def main() -> None:
        for running, begun, queued in product((False, True), (None, False, True), (False, True)):
            async with turning() as one:
                worker = one.worker
                executions: Any = worker.dispatcher.executions
                worker.loop.running = running
                if begun is not None:
                    executions[Execution(begun)] = None
                waits = running or begun is True or (begun is False and queued)
                rest = asyncio.ensure_future(worker.at_rest(queued))
                for _ in range(5):
                    await asyncio.sleep(0)
                assert rest.done() is not waits
                worker.loop.running = False
                executions.clear()
                worker.returned()
                await rest

    _run(main)


@pytest.mark.parametrize("pause", [None, Pause(), Pause(NOW + SECOND, "why", NOW, "me")])
@pytest.mark.parametrize(("group", "label"), [("t", "t"), ("t:3", "t partition 3")])
def test_a_pause_is_told_of_the_template_or_of_its_partition(
    pause: Pause | None, group: str, label: str
) -> None:
    async def main() -> None:
        async with turning() as one:
            told: list[Any] = []
            one.worker.reporter.observers.add(
                told.append, (events.GroupPaused, events.GroupResumed)
            )
            one.worker._pause_changed(pause, group)
            [event] = told
            assert (event.task, event.label) == ("t", label)
            assert event.partition == (3 if ":" in group else None)
            assert isinstance(event, events.GroupPaused) is (pause is not None)
            if pause is not None:
                assert (event.until is None) is (pause.until is None)
                assert (event.reason, event.by) == (pause.reason, pause.by)

    _run(main)


def test_a_record_that_comes_due_sooner_wakes_the_loop() -> None:
    async def main() -> None:
        async with turning() as one:
            worker = one.worker
            worker.sources.refresh(worker.tasks())
            worker.sources.due(NEVER - 1)
            for group, due_at, sooner in (
                ("t", NOW + 9, True),
                ("t", NOW + 9, False),
                ("t", NOW + 10, False),
                ("t", NOW + 8, True),
                ("other", NOW, False),
            ):
                worker.alarm.rung = False
                worker.wake(group, "x", due_at)
                assert worker.alarm.rung is sooner

    _run(main)


# Tasks that run in threads, and schedules with calendars.


def test_tasks_share_the_threads_and_processes_of_a_worker() -> None:
    pool, other = Process(max_workers=3), Process(max_workers=1)

    def declare(app: Pyncette) -> dict[str, Task]:
        return {
            "a": app.dynamic_task(name="a")(_in_thread),
            "b": app.dynamic_task(name="b")(_in_thread),
            "c": app.dynamic_task(name="c", limit=PerWorker(1))(_body),
            "d": app.dynamic_task(name="d", executor=pool)(_in_process),
            "e": app.dynamic_task(name="e", executor=pool, limit=PerWorker(2))(_in_process),
            "f": app.dynamic_task(name="f", executor=other)(_in_process),
            "g": app.dynamic_task(name="g")(_body),
        }

    class Running(NamedTuple):
        declared: Task
        number: int

    async def main() -> None:
        for limit in (None, 2):
            async with turning(declare, thread_limit=limit) as one:
                dispatcher, tasks = one.worker.dispatcher, one.tasks
                threads = [] if limit is None else ["a", "b"]
                limited = [name for name, task in tasks.items() if dispatcher.is_limited(task)]
                assert limited == [*threads, "c", "d", "e", "f"]

                def room(*names: str, tasks: Any = tasks, dispatcher: Any = dispatcher) -> Any:
                    found = dispatcher.room([tasks[name] for name in names], 5)
                    return {task.name: slots for task, slots in found.items()}

                # The first one is promised what is free.
                in_threads = {} if limit is None else {"a": 2, "b": 0}
                assert room(*tasks) == {**in_threads, "c": 1, "d": 3, "e": 0, "f": 1}
                assert room("e", "d") == {"e": 2, "d": 1}
                executions: Any = dispatcher.executions
                for number, name in enumerate("add"):
                    executions[Running(tasks[name], number)] = None
                in_threads = {} if limit is None else {"a": 1, "b": 0}
                assert room(*tasks) == {**in_threads, "c": 1, "d": 1, "e": 0, "f": 1}
                assert room("e") == {"e": 1}
                executions[Running(tasks["e"], 9)] = None
                assert room("e") == {"e": 0}
                executions.clear()
                # When a run ends, others that wait for its place go on.
                held = [*tasks.values()]
                together = [{"a", "b"}, {"d", "e"}] if limit else [{"d", "e"}]
                for name in tasks:
                    waiting = dispatcher.wait_for(tasks[name], held)
                    expected = next((set_ for set_ in together if name in set_), {name})
                    assert {task.name for task in waiting} == expected
                    assert len(waiting) == len(expected)
                    assert dispatcher.wait_for(tasks[name], []) == [tasks[name]]

    _run(main)


@pytest.mark.parametrize("known", [False, True])
def test_a_run_whose_next_occurrence_cannot_be_planned_here_is_left_to_others(
    known: bool,
) -> None:
    def declare(app: Pyncette) -> dict[str, Task]:
        def closed(day: Any) -> bool:
            if not known:
                raise ValueError("the list of days is not here")
            return False

        app.calendar("closed")(closed)
        return {"t": app.dynamic_task(name="t")(_body)}

    async def main() -> None:
        schedule = dumps(every(3600 * SECOND) - Calendar("closed"))
        for planned, triggered in ((NOW, None), (NOW + SECOND, NOW), (None, NOW)):
            async with turning(declare) as one:
                progress = dump_progress(Progress(planned, "inc", triggered))
                await one.plant("t", "x", NOW, schedule=schedule, progress=progress)
                await one.worker.loop._claim(one.worker.loop._ask(NOW, 1, True))
                await one.clock.settle()
                [record] = await one.store.get([("t", "x")])
                if known and planned is not None:
                    assert record is not None
                    expected = NOW + 3600 * SECOND if triggered is None else planned
                    assert (record.state, record.due_at) == (State.SCHEDULED, expected)
                elif planned is not None:
                    # It is not started, and others come first.
                    assert record is not None
                    assert record.state == State.SCHEDULED
                    assert record.due_at is not None
                    assert NOW < record.due_at < NOW + 3600 * SECOND
                    assert record.unfinished_attempts == 0
                else:
                    assert record is None  # nothing follows a run without an occurrence

    _run(main)


def test_a_claim_that_finds_something_is_told_where_anybody_listens() -> None:
    told: list[Any] = []

    def declare(app: Pyncette) -> dict[str, Task]:
        app.on_event(told.append, events.Claimed)
        return {"t": app.dynamic_task(name="t")(_body)}

    async def main() -> None:
        for count in (0, 2):
            told.clear()
            async with turning(declare) as one:
                for number in range(count):
                    await one.plant("t", f"{number}", NOW)
                await one.worker.loop._claim(one.worker.loop._ask(NOW, 5, True))
                assert [event.records for event in told] == ([count] if count else [])

    _run(main)
