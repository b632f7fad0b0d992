"""The transaction of a run, in small histories: each statement of it is lost in each way.

What must hold whatever happens: the effects of an occurrence are there once, and only if the record
says so; no run, and no worker that closes, waits for ever; every connection that was lent comes
back; nothing stays open at the server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import pairwise, product
from typing import Any, Final

import pytest
from tests.simulation.joined import (
    SILENT,
    Connection,
    Database,
    DriverError,
    Fault,
    LoopClock,
    Lost,
    in_virtual_time,
)
from tests.simulation.places import HELD, LEASE_END, NOW
from tests.simulation.test_small_entries import (
    FAILURES,
    MOVED_ON,
    OTHERS,
    PAUSED,
    _in_lease,
    held_by,
)

from pyncette import Context, Pyncette, Retry, Task, events
from pyncette.clock import realtime
from pyncette.engine.transaction import _Probe
from pyncette.engine.writes import Next
from pyncette.errors import (
    DeadlineExceededError,
    LeaseLostException,
    PyncetteException,
    StoreUnavailableError,
)
from pyncette.model import ExecutionMode
from pyncette.store import Applied, Refused
from pyncette.store.record import DELETE

pytestmark = pytest.mark.exhaustive

LEASE_S: Final = 4.0
DEADLINE_S: Final = LEASE_S / 2
STATEMENTS: Final = (
    *("BEGIN", "CHECK", "SAVEPOINT", "INSERT", "FLUSH", "RELEASE", "GET", "MAKE", "COMMIT"),
    "ROLLBACK",
)

Body = Callable[["Bank", Context], Awaitable[None]]


class Bank:
    """An app whose task has an effect in a transaction of its run.

    Attributes:
        database: Its store.
        errors: What each run has ended with: its time, and what it raised, if anything.
        told: The events.
    """

    def __init__(self, database: Database, body: Body | None = None, **options: Any) -> None:
        self.database = database
        self.errors: list[tuple[float, BaseException | None]] = []
        self.begun: list[float] = []
        self.told: list[Any] = []
        body = body or pay

        @asynccontextmanager
        async def opened(**configuration: Any) -> Any:
            yield database

        self.app = Pyncette(opened, clock=LoopClock(), poll_interval=0.5, worker_name="me")
        self.app.on_event(self.told.append)
        given = {
            "lease_duration": timedelta(seconds=LEASE_S),
            "retry": Retry(initial=timedelta(seconds=1)),
            **options,
        }

        @self.app.dynamic_task(name="t", **given)
        async def task(context: Context) -> None:
            self.begun.append(now())
            try:
                await body(self, context)
            except BaseException as error:
                self.errors.append((now(), error))
                raise
            self.errors.append((now(), None))

        self.task: Task = task
        self.block: Any = None
        self.later: Any = None
        self.context: Any = None

    @property
    def kinds(self) -> list[type[BaseException | None]]:
        """What each run has raised."""
        return [type(error) for _, error in self.errors]

    @property
    def ended(self) -> list[float]:
        return [when for when, _ in self.errors]

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    async def run(
        self, seconds: float = 30, recurs: bool = False, meanwhile: Body | None = None
    ) -> None:
        """Schedules an instance, and lets the worker run for so long; then it closes."""
        async with self.app.running() as self.context:
            when = {"interval": timedelta(days=1)} if recurs else {"execute_in": timedelta()}
            await self.context.schedule_task(self.task, "a", **when)
            if recurs:
                await self.context.trigger(self.task, "a")
            if meanwhile is not None:
                await meanwhile(self, self.context)
            await asyncio.sleep(seconds)
            closing = now()
        assert now() - closing < LEASE_S + 6 * DEADLINE_S
        await asyncio.sleep(20)

    def check(self, effects: int = 1) -> None:
        """What must hold at the end."""
        assert len(self.database.effects) == effects
        assert self.database.lent_now == 0
        assert self.database.open_sessions == 0
        assert not self.database.turns.locked()


def now() -> float:
    return asyncio.get_running_loop().time()


async def pay(bank: Bank, context: Context) -> None:
    async with context.transaction() as connection:
        await connection.insert("paid")


async def pay_by_own(bank: Bank, context: Context) -> None:
    own = Connection(bank.database)
    try:
        async with context.transaction(own) as connection:
            assert connection is own
            await connection.insert("paid")
    finally:
        own.close()


def run(
    bank: Bank,
    seconds: float = 30,
    recurs: bool = False,
    effects: int = 1,
    left: bool | None = None,
    meanwhile: Body | None = None,
) -> Bank:
    """Runs a bank, and checks what must hold; ``left``: whether the record is there at the end."""

    async def main() -> None:
        await bank.run(seconds, recurs, meanwhile)
        record = bank.database.record("t", "a")
        assert (record is not None) is (recurs if left is None else left)
        bank.check(effects)

    in_virtual_time(main)
    return bank


# Whatever is lost.


@pytest.mark.parametrize("recurs", [False, True], ids=["once", "recurring"])
@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_effect_happens_once_whatever_is_lost(statement: str, lost: Lost, recurs: bool) -> None:
    for body, notices_s, seconds_max in (
        (pay, 0.5, None),
        (pay, 9.0, 2.5),
        (pay_by_own, 9.0, None),
        (pay_by_own, 0.5, 2.5),
    ):
        database = Database(Fault(statement, lost), notices_s=notices_s, seconds_max=seconds_max)
        bank = Bank(database, body, timeout=timedelta(seconds=3))
        run(bank, recurs=recurs)
        assert bank.kinds[-1] is type(None) or lost in SILENT
        # What the run itself waits for: two statements, and the lease.
        assert all(
            ended - begun < LEASE_S + 4 * DEADLINE_S
            for begun, ended in zip(bank.begun, bank.ended, strict=True)
        )


@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name)
def test_a_rollback_that_is_lost_changes_nothing(lost: Lost) -> None:
    bank = run(Bank(Database(Fault("ROLLBACK", lost), notices_s=9.0), fails_once))
    assert bank.kinds == [ValueError, type(None)]
    assert bank.ended[0] - bank.begun[0] < DEADLINE_S + 0.1
    assert (bank.ended[0] - bank.begun[0] > DEADLINE_S - 0.1) is (lost in SILENT)
    # What was collected is sent before a commit only.
    kinds = [kind for _, kind in bank.database.calls]
    assert [after for kind, after in pairwise(kinds) if kind == "FLUSH"] == ["RELEASE"]


async def fails_once(bank: Bank, context: Context) -> None:
    async with context.transaction() as connection:
        await connection.insert("paid")
        if len(bank.begun) == 1:
            raise ValueError("no")


TOLD: Final[dict[tuple[str, Lost], type[BaseException | None]]] = {
    **{
        (statement, lost): DeadlineExceededError
        for statement in ("BEGIN", "CHECK", "SAVEPOINT", "RELEASE", "MAKE")
        for lost in SILENT
    },
    ("COMMIT", Lost.SILENT_REQUEST): LeaseLostException,
    ("COMMIT", Lost.SILENT_ANSWER): type(None),
    ("COMMIT", Lost.LATE): type(None),
    ("COMMIT", Lost.ANSWER): type(None),
    ("COMMIT", Lost.REQUEST): DriverError,
    ("BEGIN", Lost.REFUSED): DriverError,
    ("SAVEPOINT", Lost.REQUEST): DriverError,
    ("RELEASE", Lost.REFUSED): PyncetteException,
    ("RELEASE", Lost.REQUEST): PyncetteException,
    ("MAKE", Lost.REFUSED): DriverError,
}
"""What a run is told of a statement that is lost."""


@pytest.mark.parametrize("recurs", [False, True], ids=["once", "recurring"])
@pytest.mark.parametrize("case", TOLD, ids=lambda case: f"{case[0]}-{case[1].name}")
def test_a_run_is_told_what_became_of_a_statement(case: tuple[str, Lost], recurs: bool) -> None:
    bank = run(Bank(Database(Fault(*case), notices_s=9.0)), recurs=recurs)
    assert bank.kinds[0] is TOLD[case]
    assert len(bank.kinds) == 1 + (TOLD[case] is not type(None))
    took = bank.ended[0] - bank.begun[0]
    if case == ("COMMIT", Lost.SILENT_REQUEST):
        # The record is asked for until the lease ends, and not for longer.
        assert LEASE_S - 0.1 < took < LEASE_S + 2.0
        [lost] = bank.events(events.LeaseLost)
        assert "was locked until its lease ended" in lost.reason
        assert bank.begun[1] > 9.0  # when the server has noticed
    elif case[1] in SILENT:
        assert took > DEADLINE_S
    else:
        assert took < 0.2
        assert not bank.events(events.LeaseLost)


def test_a_commit_that_is_made_after_the_lease_has_ended_is_not_repeated() -> None:
    database = Database(Fault("COMMIT", Lost.LATE), notices_s=9.0)
    database.late_s = LEASE_S + 3
    assert run(Bank(database)).kinds == [LeaseLostException]


def test_a_timeout_of_the_driver_is_raised_as_it_is() -> None:
    class Impatient(Connection):
        async def commit(self) -> None:
            raise TimeoutError("out of the driver")

    async def body(bank: Bank, context: Context) -> None:
        own = (Impatient if len(bank.begun) == 1 else Connection)(bank.database)
        try:
            async with context.transaction(own):
                await own.insert("paid")
        finally:
            own.close()

    # Its session holds the record, until the rollback.
    bank = run(Bank(Database(seconds_max=2.5), body))
    assert [str(error) for _, error in bank.errors] == ["out of the driver", "None"]


def test_a_worker_closes_though_a_commit_has_no_answer() -> None:
    bank = Bank(Database(Fault("COMMIT", Lost.SILENT_REQUEST), notices_s=9.0))
    run(bank, seconds=0.2, effects=0, left=True)
    assert bank.kinds == [LeaseLostException]


def test_a_write_of_the_outcome_that_fails_undoes_everything_at_once() -> None:
    bank = run(Bank(Database(Fault("MAKE", Lost.REFUSED))))
    kinds = [kind for _, kind in bank.database.calls]
    assert kinds[kinds.index("MAKE") + 1] == "ROLLBACK"


# The end of the body, and cancellations.


async def leaves(bank: Bank, context: Context) -> None:
    block = context.transaction()
    connection = await block.__aenter__()
    await connection.insert("paid")
    bank.block = block
    if len(bank.begun) > 1:
        await block.__aexit__(None, None, None)


@pytest.mark.parametrize("seconds_max", [None, 2.5])
@pytest.mark.parametrize("fails", [False, True])
def test_a_block_that_is_left_open_is_undone_at_the_end(
    seconds_max: float | None, fails: bool
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        await leaves(bank, context)
        if fails and len(bank.begun) == 1:
            raise ValueError("no")

    bank = run(Bank(Database(seconds_max=seconds_max), body))
    [failed] = bank.events(events.Failed)
    assert ("no" if fails else "in the middle of its transaction") in failed.error
    assert len(bank.begun) == 2
    assert "ROLLBACK" in [kind for _, kind in bank.database.calls]


def test_a_block_that_ends_after_its_body_is_told_so() -> None:
    told: list[BaseException] = []

    async def later(bank: Bank) -> None:
        await asyncio.sleep(0.5)
        for error in (None, ValueError("ignored")):
            try:
                await bank.block.__aexit__(None, error, None)
            except PyncetteException as said:
                assert error is None
                told.append(said)

    async def body(bank: Bank, context: Context) -> None:
        await leaves(bank, context)
        if len(bank.begun) == 1:
            bank.later = bank.later or asyncio.ensure_future(later(bank))

    bank = run(Bank(Database(Fault("ROLLBACK", Lost.SILENT_ANSWER)), body))
    assert bank.later.exception() is None
    assert len(told) == 1
    assert "was rolled back when its function ended" in str(told[0])


def test_a_run_that_has_ended_has_no_transaction() -> None:
    told: list[str] = []

    async def later(context: Context) -> None:
        await asyncio.sleep(0.2)
        try:
            await context.transaction().__aenter__()
        except PyncetteException as error:
            told.append(str(error))

    async def body(bank: Bank, context: Context) -> None:
        bank.later = asyncio.ensure_future(later(context))

    run(Bank(Database(), body), effects=0)
    assert len(told) == 1
    assert "has ended already" in told[0]


def test_a_run_that_is_lost_has_no_transaction() -> None:
    async def body(bank: Bank, context: Context) -> None:
        if len(bank.begun) > 1:
            return
        await bank.context.schedule_task(bank.task, "a", execute_in=timedelta(0), force=True)
        with pytest.raises(LeaseLostException):
            await context.heartbeat()
        calls = len(bank.database.calls)
        with pytest.raises(LeaseLostException):
            await context.transaction().__aenter__()
        assert len(bank.database.calls) == calls

    assert len(run(Bank(Database(), body), effects=0).begun) == 2


def test_a_run_that_is_lost_while_its_transaction_begins_has_none() -> None:
    async def body(bank: Bank, context: Context) -> None:
        if len(bank.begun) > 1:
            return
        execution = context._execution

        class Slow(Connection):
            async def begin(self) -> None:
                await super().begin()
                execution.rarely().loss = "somebody took it"

        own = Slow(bank.database)
        with pytest.raises(LeaseLostException):
            await context.transaction(own).__aenter__()
        assert bank.database.open_sessions == 0
        assert "SAVEPOINT" not in [kind for _, kind in bank.database.calls]
        own.close()

    assert len(run(Bank(Database(), body), effects=0).begun) == 2


def test_a_run_has_one_transaction_and_another_one_if_that_failed() -> None:
    async def body(bank: Bank, context: Context) -> None:
        with suppress(ValueError):
            async with context.transaction() as connection:
                await connection.insert("not paid")
                with pytest.raises(PyncetteException, match="has had its transaction"):
                    await context.transaction().__aenter__()
                raise ValueError("no")
        await pay(bank, context)
        with pytest.raises(PyncetteException, match="has had its transaction"):
            await context.transaction().__aenter__()

    assert run(Bank(Database(), body)).kinds == [type(None)]


def test_a_task_that_runs_at_most_once_has_no_transaction() -> None:
    bank = Bank(Database(), execution_mode=ExecutionMode.AT_MOST_ONCE, retry=None)
    run(bank, effects=0)
    assert "is at most once" in str(bank.errors[0][1])


@pytest.mark.parametrize("lost", [Lost.SILENT_ANSWER, Lost.SILENT_REQUEST])
def test_a_run_that_is_cancelled_while_it_is_committed_learns_what_became_of_it(lost: Lost) -> None:
    made = lost is Lost.SILENT_ANSWER
    bank = Bank(Database(Fault("COMMIT", lost)), timeout=timedelta(seconds=1))
    run(bank)
    assert bank.kinds == [asyncio.CancelledError, *([] if made else [type(None)])]
    assert bank.ended[0] - bank.begun[0] > DEADLINE_S


def test_a_cancellation_while_it_is_undone_is_not_forgotten() -> None:
    async def body(bank: Bank, context: Context) -> None:
        await leaves(bank, context)

    database = Database(Fault("ROLLBACK", Lost.SILENT_ANSWER))
    bank = Bank(database, body, retry=None)

    async def main() -> None:
        async with bank.app.running() as context:
            await context.schedule_task(bank.task, "a", execute_in=timedelta(0))
            await asyncio.sleep(0.5)
            [execution] = context._worker.dispatcher.executions
            execution.cancel()
            await asyncio.sleep(3)
        assert len(bank.events(events.Cancelled)) == 1
        assert not bank.events(events.Failed)

    in_virtual_time(main)


def test_a_block_that_takes_too_long_where_nobody_else_can_write_is_cancelled() -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.insert("paid")
            if len(bank.begun) == 1:
                await asyncio.sleep(60)

    bank = run(Bank(Database(seconds_max=2.5), body))
    assert bank.kinds == [TimeoutError, type(None)]
    assert "was open for more than 2.5 s" in str(bank.errors[0][1])
    assert 2.4 < bank.ended[0] - bank.begun[0] < 2.6
    slow = Bank(Database(), body, timeout=timedelta(seconds=3))
    assert run(slow).kinds == [asyncio.CancelledError, type(None)]


CANCELLED: Final[dict[str, tuple[float | None, float | None]]] = {
    "it takes too long": (2.5, None),
    "its worker closes while that is undone": (2.5, 2.5),
    "its worker closes while it goes on after that": (2.5, 2.7),
    "its worker closes before": (2.5, 1.0),
    "its worker closes": (None, 1.0),
}
"""How long a block may take, and when the run is cancelled."""


@pytest.mark.parametrize("case", CANCELLED)
def test_a_block_without_an_end_may_be_cancelled(case: str) -> None:
    seconds_max, cancelled_s = CANCELLED[case]

    async def body(bank: Bank, context: Context) -> None:
        await leaves(bank, context)
        if len(bank.begun) == 1:
            if cancelled_s is not None:
                [execution] = bank.context._worker.dispatcher.executions
                asyncio.get_running_loop().call_later(cancelled_s, execution.cancel)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if "goes on" in case:
                    await asyncio.sleep(0.5)
                raise

    bank = run(Bank(Database(seconds_max=seconds_max), body))
    assert len(bank.begun) == 2
    failed = [event.error for event in bank.events(events.Failed)]
    assert ["was open for more than" in error for error in failed] == [True] * (not cancelled_s)
    assert len(bank.events(events.Cancelled)) == (cancelled_s is not None)


def test_a_body_may_go_on_after_a_block_that_it_has_left_open_for_long() -> None:
    async def slow(bank: Bank, context: Context) -> None:
        await leaves(bank, context)
        if len(bank.begun) == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("its own") from None

    bank = run(Bank(Database(seconds_max=2.5), slow))
    assert bank.kinds == [ValueError, type(None)]
    assert "its own" in bank.events(events.Failed)[0].error


# What others do with the record meanwhile.


@pytest.mark.parametrize("held_s", [0.3, 2.0, 60.0])
def test_an_outcome_waits_for_who_holds_the_record_until_the_lease_ends(held_s: float) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.insert("paid")
            if len(bank.begun) == 1:
                other = bank.database.start()
                other.changes["t", "a"] = bank.database.record("t", "a")
                asyncio.get_running_loop().call_later(held_s, other.forget)
                if held_s > 10:
                    asyncio.get_running_loop().call_later(6.0, other.forget)

    bank = run(Bank(Database(), body))
    took = bank.ended[0] - bank.begun[0]
    tries = [when for when, kind in bank.database.calls if kind == "MAKE"]
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses[0] < 0.02
    assert max(pauses[:5]) < 0.22
    if held_s > 10:
        assert bank.kinds == [StoreUnavailableError, type(None)]
        assert "was locked by an open transaction until its lease ended" in str(bank.errors[0][1])
        assert LEASE_S - 0.1 < took < LEASE_S + 0.5
        assert max(pauses[:18]) > 0.19
    else:
        assert bank.kinds == [type(None)]
        assert held_s < took < held_s + 0.3


def test_a_change_meanwhile_is_taken_in() -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.insert("paid")
            await context.heartbeat()
            await bank.context.pause(bank.task, "a")
            await bank.context.resume(bank.task, "a")

    bank = run(Bank(Database(), body), recurs=True)
    assert bank.kinds == [type(None)]


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_that_was_replaced_or_removed_leaves_nothing(removed: bool) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.insert("paid")
            await asyncio.sleep(1)

    async def meanwhile(bank: Bank, context: Any) -> None:
        await asyncio.sleep(0.5)
        if removed:
            await context.unschedule_task(bank.task, "a")
        else:
            await context.schedule_task(bank.task, "a", execute_in=timedelta(days=1), force=True)

    bank = Bank(Database(), body, cancel_on_lease_lost=False)
    run(bank, effects=0, left=not removed, meanwhile=meanwhile)
    assert bank.kinds == [LeaseLostException]


@pytest.mark.parametrize("lost", [None, *Lost], ids=str)
def test_a_body_may_replace_its_own_run_in_its_transaction(lost: Lost | None) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await connection.insert("paid")
            await bank.context.schedule_task(
                bank.task, "a", execute_in=timedelta(days=1), force=True, connection=connection
            )

    faults = [] if lost is None else [Fault("COMMIT", lost)]

    async def main() -> None:
        bank = Bank(Database(*faults), body)
        await bank.run()
        assert bank.database.record("t", "a") is not None
        bank.check()
        # Nothing tells what became of it: the run fails, and its outcome is refused.
        made = lost in (Lost.ANSWER, Lost.SILENT_ANSWER)
        assert bank.kinds[0] is (type(None) if lost is None else bank.kinds[0])
        assert len(bank.kinds) == 1 + (lost is not None and not made)

    in_virtual_time(main)


def test_a_record_that_was_removed_after_a_commit_was_not_made_is_lost() -> None:
    async def body(bank: Bank, context: Context) -> None:
        await pay(bank, context)

    database = Database(Fault("COMMIT", Lost.SILENT_REQUEST), notices_s=9.0)
    bank = Bank(database, body)

    async def meanwhile(bank: Bank, context: Any) -> None:
        await asyncio.sleep(1)
        # As if the session had ended, and a user had been quicker than the worker.
        for session in database._sessions:
            session.forget()
        await context.unschedule_task(bank.task, "a")

    run(bank, recurs=True, effects=0, left=False, meanwhile=meanwhile)
    assert bank.kinds == [DeadlineExceededError]


# Turns.


@pytest.mark.parametrize("taken_s", [1.0, 6.0])
def test_a_run_waits_for_its_turn_until_its_lease_ends(taken_s: float) -> None:
    bank = Bank(Database(seconds_max=2.5))

    async def main() -> None:
        await bank.database.turns.acquire()
        asyncio.get_running_loop().call_later(taken_s, bank.database.turns.release)
        await bank.run()
        bank.check()

    in_virtual_time(main)
    if taken_s > LEASE_S:
        assert bank.kinds == [StoreUnavailableError, type(None)]
        assert "waited for those of other runs until its lease ended" in str(bank.errors[0][1])
        assert LEASE_S - 0.1 < bank.ended[0] - bank.begun[0] < LEASE_S + 0.2
    else:
        assert bank.kinds == [type(None)]


# The probe, by itself.


@pytest.mark.parametrize("once", [False, True])
def test_the_record_tells_what_became_of_a_commit(once: bool) -> None:
    async def main() -> None:
        for now_, (name, answer) in product(
            (NOW, LEASE_END - 1, LEASE_END), {**OTHERS_AS_REFUSED, **ANSWERS}.items()
        ):
            async with held_by() as place:
                execution = place.execution
                outcome = execution.outcome(NOW)
                probe = _Probe(execution, outcome._replace(change=DELETE) if once else outcome)
                write = probe.build(now_)
                assert write is not None
                following = probe.answered(answer, write, now_)
                said = probe.fate.result().name if probe.fate.done() else following.name
                assert said == _said(name, answer, once, now_), (name, now_)
                assert (following is Next.DONE) is probe.fate.done()
                assert (execution.rarely().loss or "").startswith("whether its") is (said == "OPEN")
                # Only the first word counts.
                probe.abandon(StoreUnavailableError("closed"))
                if following is Next.DONE:
                    assert probe.fate.result().name == said
                else:
                    assert probe.fate.result().name == "ROLLED_BACK"

    asyncio.run(main())


ANSWERS: Final[dict[str, Any]] = {
    "applied": Applied(9),
    "locked": Refused(HELD),
    "changed": Refused(PAUSED),
    "settled": Refused(MOVED_ON),
    **{f"failed {number}": answer for number, answer in enumerate(FAILURES)},
}
OTHERS_AS_REFUSED: Final = {name: Refused(record) for name, record in OTHERS.items()}


def _said(name: str, answer: Any, once: bool, now: int) -> str:
    if name in OTHERS:
        return "COMMITTED" if answer.current is None and once else "ROLLED_BACK"
    if name == "locked":
        return "BACK_OFF" if now < LEASE_END else "OPEN"
    if name.startswith("failed"):
        return "BACK_OFF" if _in_lease(answer, now) else "ROLLED_BACK"
    return {"applied": "ROLLED_BACK", "changed": "RETRY", "settled": "COMMITTED"}[name]


# In a thread.


def test_a_plain_function_does_it_in_its_thread_and_what_it_leaves_open_is_undone() -> None:
    database = Database()
    said: list[str] = []

    @asynccontextmanager
    async def opened(**configuration: Any) -> Any:
        yield database

    app = Pyncette(opened, poll_interval=0.05, worker_name="me")

    async def gone(context: Any, task: Task, name: str) -> None:
        while await context.get_task(task, name) is not None:
            await realtime.sleep(0.01)

    @app.dynamic_task(retry=Retry(initial=timedelta(0)))
    def task(context: Context) -> None:
        kind = context.task.name
        said.append(f"{kind}: {threading.current_thread().name}")
        block = context.transaction()
        first = sum(one.startswith(kind) for one in said) == 1
        if kind == "leaves" and first:
            block.__enter__()
            return
        with block:
            if kind == "fails" and first:
                raise ValueError("no")

    @app.dynamic_task(retry=Retry(attempts=1))
    async def wrong(context: Context) -> None:
        try:
            context.transaction().__enter__()
        except PyncetteException as error:
            said.append(str(error))

    async def main() -> None:
        async with asyncio.timeout(30), app.running() as context:
            for kind in ("pays", "fails", "leaves"):
                await context.schedule_task(task, kind, execute_in=timedelta(0))
                await gone(context, task, kind)
            await context.schedule_task(wrong, "a", execute_in=timedelta(0))
            await gone(context, wrong, "a")

    asyncio.run(main())
    kinds = [one.partition(":")[0] for one in said]
    assert kinds[:5] == ["pays", "fails", "fails", "leaves", "leaves"]
    assert "async with" in said[5]
    mine = [one.partition(": ")[2] for one in said[:5]]
    made, closed = zip(*database.places, strict=True)
    assert [*made] == mine
    # What was left open is closed after the function, in some other thread than the loop's.
    assert [closed[0], closed[1], closed[2], closed[4]] == [*mine[:3], mine[4]]
    assert closed[3] not in ("MainThread",)
    flushes = [kind for _, kind in database.calls].count("FLUSH")
    assert flushes == 3
    assert database.lent_now == 0
