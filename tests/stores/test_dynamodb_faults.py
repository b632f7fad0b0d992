"""What DynamoDB may do on a bad day, which no server here does on demand: through a proxy."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from tests.servers import url
from tests.stores.dynamodb_place import place_at, set_credentials
from tests.stores.dynamodb_proxy import (
    Answer,
    Call,
    LaggingIndex,
    Proxy,
    error,
    honest,
    proxy_before,
)

from pyncette import Context, Pyncette
from pyncette.clock import realtime
from pyncette.dynamodb.table import RefusedValueError
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.store import EVERYTHING, Applied, Failed, Refused, Store, Unknown, Write
from pyncette.store.record import ANY, DELETE, Patch, Record, State
from pyncette.testing import VirtualClock
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, a_group, a_key, new, record_of

STATEMENTS = "BatchExecuteStatement"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxy_before(url("dynamodb")) as proxy:
        yield proxy


@pytest.fixture
def place(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    set_credentials(monkeypatch)
    with place_at(url("dynamodb"), proxy.url) as place:
        yield place


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses before what was throttled is repeated last no time."""
    monkeypatch.setattr("pyncette.dynamodb.requests.PAUSE_INITIAL_S", 0.0)


def on(place: Place, test: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with realtime.timeout(60), place.open() as store:
            await test(store)

    asyncio.run(main())


class Turns:
    """Treats some of the requests of one operation, and passes the others on."""

    def __init__(
        self, operation: str, treatment: Callable[[Call], Awaitable[Answer | None]], *turns: int
    ) -> None:
        self.turn = 0
        self._operation = operation
        self._treatment = treatment
        self._turns = turns

    async def __call__(self, call: Call) -> Answer | None:
        if call.operation != self._operation:
            return await call.forward()
        self.turn += 1
        return await (self._treatment(call) if self.turn in self._turns else call.forward())


async def lose_answer(call: Call) -> Answer | None:
    await call.forward()
    return None


async def lose_request(call: Call) -> Answer | None:
    return None


def turned_away(code: str) -> Callable[[Call], Awaitable[Answer | None]]:
    async def treatment(call: Call) -> Answer | None:
        return error(code)

    return treatment


def some_statements_fail(code: str) -> Callable[[Call], Awaitable[Answer | None]]:
    """Every second statement is not executed, the others are."""

    async def treatment(call: Call) -> Answer | None:
        statements = call.body["Statements"]
        passed: list[Any] = []
        if statements[1::2]:
            answer = await call.forward({**call.body, "Statements": statements[1::2]})
            passed = answer.body["Responses"]
        executed = iter(passed)
        failed = {"Error": {"Code": code, "Message": "not now"}}
        responses = [next(executed) if n % 2 else failed for n in range(len(statements))]
        return Answer(200, {"Responses": responses}, "")

    return treatment


@pytest.mark.parametrize(
    "code",
    ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"],
)
@pytest.mark.usefixtures("impatient")
def test_a_request_that_was_throttled_is_made_again(place: Place, proxy: Proxy, code: str) -> None:
    async def test(store: Store) -> None:
        for operation in (STATEMENTS, "Query", "BatchGetItem"):
            proxy.behaviour = Turns(operation, turned_away(code), 1, 2, 3)
            [result] = await store.write([new("reports", operation)], NOW)
            assert result == Applied(NOW)
            [claimed], _ = await store.claim([a_group()], 9, NOW, operation)
            assert claimed == await record_of(store, "reports", operation)
            assert (claimed.unfinished_attempts, claimed.token) == (1, operation)

    on(place, test)


@pytest.mark.parametrize(
    "code", ["ThrottlingError", "ProvisionedThroughputExceeded", "TransactionConflict"]
)
@pytest.mark.usefixtures("impatient")
def test_statements_that_were_throttled_are_made_again_and_no_other(
    place: Place, proxy: Proxy, code: str
) -> None:
    async def test(store: Store) -> None:
        keys = [f"{number:02}" for number in range(20)]
        proxy.behaviour = Turns(STATEMENTS, some_statements_fail(code), 1, 2)
        results = await store.write([new("reports", key) for key in keys], NOW)
        assert results == [Applied(NOW)] * 20
        proxy.behaviour = Turns(STATEMENTS, some_statements_fail(code), 1, 2)
        records, _ = await store.claim([a_group()], 100, NOW, "mine")
        assert sorted(record.key for record in records) == keys
        assert {record.unfinished_attempts for record in records} == {1}
        proxy.behaviour = Turns(STATEMENTS, some_statements_fail(code), 1)
        patch = Patch(None, State.PAUSED, 0)
        batch = [
            Write(*record[:2], patch, record.version - n % 3) for n, record in enumerate(records)
        ]
        results = await store.write(batch, NOW)
        assert [isinstance(result, Refused) for result in results] == [n % 3 > 0 for n in range(20)]

    on(place, test)


@pytest.mark.usefixtures("impatient")
def test_what_is_throttled_without_end_is_unavailable(place: Place, proxy: Proxy) -> None:
    async def test(store: Store) -> None:
        proxy.behaviour = Turns(STATEMENTS, turned_away("ThrottlingException"), *range(100))
        with pytest.raises(StoreUnavailableError, match=r"turned away 12 times.*Throttling"):
            await store.write([new("reports", "a")], NOW)
        proxy.behaviour = Turns(STATEMENTS, some_statements_fail("ThrottlingError"), *range(100))
        with pytest.raises(StoreUnavailableError, match=r"turned away 12 times.*Throttling"):
            await store.write([new("reports", "a")], NOW)

    on(place, test)


@pytest.mark.usefixtures("impatient")
def test_keys_that_were_left_unprocessed_are_asked_for_again(place: Place, proxy: Proxy) -> None:
    async def get_three(call: Call) -> Answer | None:
        [(table, asked)] = call.body["RequestItems"].items()
        some = {table: {**asked, "Keys": asked["Keys"][:3]}}
        answer = await call.forward({"RequestItems": some})
        if left := asked["Keys"][3:]:
            answer.body["UnprocessedKeys"] = {table: {**asked, "Keys": left}}
        return answer

    async def get_none(call: Call) -> Answer | None:
        return Answer(200, {"Responses": {}, "UnprocessedKeys": call.body["RequestItems"]}, "")

    async def test(store: Store) -> None:
        keys = [f"{number:02}" for number in range(40)]
        await store.write([new("reports", key) for key in keys], NOW)
        for treatment, turns in ((get_three, range(100)), (get_none, range(1, 4))):
            proxy.behaviour = Turns("BatchGetItem", treatment, *turns)
            records = await store.get([("reports", key) for key in keys])
            assert [record and record.key for record in records] == keys

    on(place, test)


@pytest.mark.parametrize(
    "treatment", [lose_answer, lose_request, turned_away("InternalServerError")]
)
def test_the_driver_repeats_nothing(
    place: Place, proxy: Proxy, treatment: Callable[[Call], Awaitable[Answer | None]]
) -> None:
    """History 9: one call that failed was made eleven times."""

    async def test(store: Store) -> None:
        for operation, call in (
            (STATEMENTS, lambda: store.write([new("reports", "a")], NOW)),
            ("Query", lambda: store.claim([a_group()], 9, NOW, "t")),
            ("BatchGetItem", lambda: store.get([("reports", "a")])),
        ):
            proxy.calls.clear()
            proxy.behaviour = Turns(operation, treatment, *range(100))
            with pytest.raises(StoreUnavailableError):
                await call()
            assert proxy.calls.count(operation) == 1

    on(place, test)


def test_a_statement_whose_outcome_is_unknown_is_not_repeated(place: Place, proxy: Proxy) -> None:
    async def test(store: Store) -> None:
        proxy.behaviour = turns = Turns(
            STATEMENTS, some_statements_fail("InternalServerError"), *range(100)
        )
        unknown, applied = await store.write([new("reports", "a"), new("reports", "b")], NOW)
        assert isinstance(unknown, Unknown)
        assert "InternalServerError" in str(unknown.error)
        assert applied == Applied(NOW)
        assert turns.turn == 1

    on(place, test)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("InternalServerError", StoreUnavailableError),
        ("AccessDenied", StoreMisconfiguredError),
        ("ResourceNotFound", StoreMisconfiguredError),
    ],
)
def test_a_write_of_which_nothing_is_known_raises(
    place: Place, proxy: Proxy, code: str, error: type[Exception]
) -> None:
    async def test(store: Store) -> None:
        proxy.behaviour = Turns(STATEMENTS, some_statements_fail(code), 1)
        with pytest.raises(error, match=code):
            await store.write([new("reports", "c")], NOW)

    on(place, test)


def test_a_value_that_is_refused_fails_alone(place: Place, proxy: Proxy) -> None:
    """A statement of its own tells it on AWS; here the item grows too large for DynamoDB Local."""

    async def test(store: Store) -> None:
        keys = [f"{number:02}" for number in range(60)]
        await store.write([new("reports", key) for key in keys], NOW)
        records, _ = await store.claim([a_group()], 100, NOW, "mine")
        patch = Patch(None, State.FINISHED, 0, "x" * 10)
        batch = [Write(*record[:2], patch, record.version, "mine") for record in records]
        large = patch._replace(progress="x" * 420_000)
        refused = {3, 40}
        batch = [
            write._replace(change=large) if number in refused else write
            for number, write in enumerate(batch)
        ]
        results = await store.write(batch, NOW)
        for number, result in enumerate(results):
            if number in refused:
                assert isinstance(result, Failed)
                assert isinstance(result.error, RefusedValueError)
                assert result.error.identity == batch[number][:2]
            else:
                assert isinstance(result, Applied)
        states = Counter(record.state for record in await _all(store, keys))
        assert states == {"finished": 58, "running": 2}

    on(place, test)


def test_what_is_too_large_is_known_also_when_the_service_is_down(
    place: Place, proxy: Proxy
) -> None:
    async def test(store: Store) -> None:
        await store.write([new("reports", "held")], NOW)
        [held], _ = await store.claim([a_group()], 9, NOW, "mine")
        settle = Write(*held[:2], Patch(None, State.FINISHED, 0), held.version, "mine")
        batch = [new("reports", "a", args="x" * 200_000), settle]
        proxy.behaviour = Turns(STATEMENTS, lose_request, 1)
        failed, unknown = await store.write(batch, NOW)
        assert isinstance(failed, Failed)
        assert isinstance(unknown, Unknown)
        failed, applied = await store.write(batch, NOW)
        assert isinstance(failed, Failed)
        assert isinstance(applied, Applied)

    on(place, test)


def refusing(bad: str, code: str, whole: bool) -> Callable[[Call], Awaitable[Answer | None]]:
    """Refuses each statement that names this key; with ``whole``, any request that holds one."""

    async def treatment(call: Call) -> Answer | None:
        if call.operation != STATEMENTS:
            return await call.forward()
        statements = call.body["Statements"]
        sound = [statement for statement in statements if bad not in str(statement)]
        if len(sound) == len(statements):
            return await call.forward()
        if whole:
            return error(code)
        passed: list[Any] = []
        if sound:
            answer = await call.forward({**call.body, "Statements": sound})
            passed = answer.body["Responses"]
        executed = iter(passed)
        failed = {"Error": {"Code": code, "Message": "no"}}
        responses = [failed if bad in str(each) else next(executed) for each in statements]
        return Answer(200, {"Responses": responses}, "")

    return treatment


@pytest.mark.parametrize(
    ("code", "whole", "answer"),
    [
        ("ValidationError", False, Failed),
        ("ItemCollectionSizeLimitExceeded", False, Failed),
        ("ValidationException", True, Failed),
        ("SerializationException", True, Failed),
        ("InternalServerError", False, Unknown),
        ("AccessDenied", False, Failed),
        ("ThrottlingError", False, Failed),
        ("TransactionConflict", False, Failed),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_what_one_write_meets_is_answered_for_that_one(
    place: Place, proxy: Proxy, code: str, whole: bool, answer: type
) -> None:
    async def test(store: Store) -> None:
        keys = [f"{number:02}" for number in range(40)]
        keys[17] = "bad"
        proxy.behaviour = refusing("'bad'", code, whole)
        results = await store.write([new("reports", key) for key in keys], NOW)
        assert isinstance(results.pop(17), answer)
        assert results == [Applied(NOW)] * 39

    on(place, test)


@pytest.mark.parametrize("treatment", [lose_answer, lose_request])
def test_a_request_that_fails_leaves_the_others_their_answers(
    place: Place, proxy: Proxy, treatment: Callable[[Call], Awaitable[Answer | None]]
) -> None:
    async def test(store: Store) -> None:
        keys = [f"{number:03}" for number in range(100)]
        proxy.behaviour = Turns(STATEMENTS, treatment, 2)
        results = await store.write([new("reports", key) for key in keys], NOW)
        unknown = [key for key, result in zip(keys, results, strict=True) if result != Applied(NOW)]
        assert len(unknown) == 25
        assert {type(result) for result in results} == {Applied, Unknown}
        there = await store.get([("reports", key) for key in unknown])
        assert (None in there) is (treatment is lose_request)

    on(place, test)


def test_a_refusal_that_cannot_be_read_is_unknown(place: Place, proxy: Proxy) -> None:
    async def test(store: Store) -> None:
        await store.write([new("reports", "a"), new("reports", "b")], NOW)
        proxy.behaviour = Turns("BatchGetItem", lose_request, 1)
        patch = Patch(None, State.PAUSED, 0)
        applied, unknown = await store.write(
            [Write("reports", "a", patch, NOW), Write("reports", "b", patch, NOW - 1)], NOW
        )
        assert applied == Applied(NOW + 1)
        assert isinstance(unknown, Unknown)

    on(place, test)


@pytest.mark.parametrize(
    ("code", "whole"),
    [
        ("ValidationError", False),
        ("ValidationException", True),
        ("ThrottlingError", False),
        ("AccessDenied", False),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_record_that_cannot_be_claimed_stops_no_other(
    place: Place, proxy: Proxy, code: str, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(store: Store) -> None:
        await store.write([new("reports", "bad", due_at=NOW - 1)], NOW)
        await store.write([new("reports", key) for key in "abc"], NOW)
        proxy.behaviour = refusing("'bad'", code, whole)
        for turn in range(3):
            now = NOW + turn * LEASE
            records, next_due = await store.claim([a_group(before=now)], 9, now, f"{turn}")
            assert sorted(record.key for record in records) == ["a", "b", "c"]
            assert next_due == [NOW - 1]

    on(place, test)
    said = [record for record in caplog.records if "cannot be claimed" in record.message]
    assert len(said) == ("Validation" in code)


def test_a_record_whose_claim_is_never_answered_stops_no_other(place: Place, proxy: Proxy) -> None:
    """Nobody knows whether it was taken: the claim is repeated, and leaves it then."""

    async def test(store: Store) -> None:
        await store.write([new("reports", "bad", due_at=NOW - 1)], NOW)
        await store.write([new("reports", key) for key in "abc"], NOW)
        proxy.behaviour = refusing("'bad'", "InternalServerError", whole=False)
        with pytest.raises(StoreUnavailableError, match="InternalServerError"):
            await store.claim([a_group()], 9, NOW, "mine")
        records, _ = await store.claim([a_group()], 9, NOW, "mine", repeated=True)
        assert sorted(record.key for record in records) == ["a", "b", "c"]
        await store.write([new("reports", "d")], NOW)
        with pytest.raises(StoreUnavailableError, match="InternalServerError"):
            await store.claim([a_group()], 9, NOW, "other")
        records, _ = await store.claim([a_group()], 9, NOW, "other", repeated=True)
        assert [record.key for record in records] == ["d"]

    on(place, test)


async def _all(store: Store, keys: Sequence[str]) -> list[Record]:
    records = await store.get([("reports", key) for key in keys])
    return [record for record in records if record is not None]


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_claim_whose_answers_were_lost_in_part_is_found_again(
    place: Place, proxy: Proxy, lost: int
) -> None:
    """History 10: the records waited for a whole lease."""

    async def test(store: Store) -> None:
        keys = [f"{number:02}" for number in range(100)]
        await store.write([new("reports", key) for key in keys], NOW)
        await store.write([new(":static", "a")], NOW)
        sources = [a_group(), a_key("a", ":static")]
        proxy.behaviour = Turns(STATEMENTS, lose_answer, lost)
        with pytest.raises(StoreUnavailableError):
            await store.claim(sources, 200, NOW, "mine")
        records, next_due = await store.claim(sources, 200, NOW, "mine", repeated=True)
        assert len({record[:2] for record in records}) == len(records) == 101
        assert {(record.unfinished_attempts, record.token) for record in records} == {(1, "mine")}
        assert next_due == [NOW + LEASE] * 2

    on(place, test)


def test_a_lost_heartbeat_and_a_lagging_index_start_no_second_body(
    place: Place, proxy: Proxy
) -> None:
    """History 8: the index shows the old lease end as due."""

    async def test(store: Store) -> None:
        await store.write([new("reports", "a")], NOW)
        [held], _ = await store.claim([a_group()], 9, NOW, "mine")
        proxy.behaviour = LaggingIndex(queries=1_000)
        await store.claim([a_group()], 0, NOW, "looks")
        beat = Patch(NOW + 2 * LEASE, State.RUNNING, held.unfinished_attempts)
        [beaten] = await store.write([Write("reports", "a", beat, held.version, "mine")], NOW)
        assert isinstance(beaten, Applied)
        end = NOW + LEASE
        for turn in range(5):
            records, _ = await store.claim([a_group(before=end)], 9, end, f"other {turn}")
            assert records == []
        assert (await record_of(store, "reports", "a")).token == "mine"

    on(place, test)


def test_what_was_unscheduled_a_moment_ago_is_not_brought_back_by_a_claim(
    place: Place, proxy: Proxy
) -> None:
    async def test(store: Store) -> None:
        await store.write([new("reports", "a"), new("reports", "b")], NOW)
        proxy.behaviour = LaggingIndex(queries=1_000)
        await store.claim([a_group()], 0, NOW, "looks")
        await store.write([Write("reports", "a", DELETE, ANY)], NOW)
        records, _ = await store.claim([a_group()], 9, NOW, "t")
        assert [record.key for record in records] == ["b"]
        assert await store.get([("reports", "a")]) == [None]

    on(place, test)


def test_a_record_made_again_while_time_stood_still_is_not_taken_for_the_old_one(
    place: Place, proxy: Proxy
) -> None:
    """It has the version that the index shows, and is not due."""

    async def test(store: Store) -> None:
        await store.write([new("reports", "a")], NOW)
        proxy.behaviour = LaggingIndex(queries=1_000)
        await store.claim([a_group()], 0, NOW, "looks")
        await store.write([Write("reports", "a", DELETE, ANY)], NOW)
        await store.write([new("reports", "a", due_at=NOW + 1)], NOW)
        records, _ = await store.claim([a_group()], 9, NOW, "t")
        assert records == []
        assert (await record_of(store, "reports", "a")).state == State.SCHEDULED

    on(place, test)


def test_a_change_of_what_is_gone_is_refused_also_where_removing_nothing_succeeds(
    place: Place, proxy: Proxy
) -> None:
    """On AWS it does, whatever the condition; on DynamoDB Local the condition fails."""

    async def as_on_aws(call: Call) -> Answer | None:
        answer = await call.forward()
        if call.operation == STATEMENTS:
            statements = call.body["Statements"]
            for response, statement in zip(answer.body["Responses"], statements, strict=True):
                # All that is removed in this test is gone already, or at another version.
                if statement["Statement"].startswith("DELETE") and "gone" in str(statement):
                    assert response.pop("Error")["Code"] == "ConditionalCheckFailed"
        return answer

    async def test(store: Store) -> None:
        proxy.behaviour = as_on_aws
        await store.write([new("reports", "changed")], NOW)
        batch = [
            Write("reports", "gone", DELETE, NOW, "mine"),
            Write("reports", "gone too", DELETE, NOW),
            Write("reports", "changed", DELETE, NOW - 1),
            Write("reports", "gone three", DELETE, ANY),
        ]
        gone, gone_too, changed, forced = await store.write(batch, NOW)
        assert (gone, gone_too, forced) == (Refused(None), Refused(None), Applied(0))
        assert changed == Refused(await record_of(store, "reports", "changed"))

    on(place, test)


def test_groups_are_asked_in_parallel_and_no_more_is_leased_than_can_start(
    place: Place, proxy: Proxy
) -> None:
    """History 18: leases on a share of every group, with ten slots free."""
    groups = [f"reports:{partition}" for partition in range(30)]
    at_once: list[int] = []
    under_way = 0

    async def count(call: Call) -> Answer | None:
        nonlocal under_way
        under_way += call.operation == "Query"
        at_once.append(under_way)
        await asyncio.sleep(0.005)
        answer = await call.forward()
        under_way -= call.operation == "Query"
        return answer

    async def test(store: Store) -> None:
        await store.write([new(group, key) for group in groups for key in "abcde"], NOW)
        proxy.behaviour = count
        sources = [a_group(group, share=1) for group in groups]
        records, next_due = await store.claim(sources, 10, NOW, "mine")
        assert len(records) == 10
        assert next_due == [NOW] * 30
        assert 2 < max(at_once) <= 10
        pages = [await store.scan(group, EVERYTHING, None, 9) for group in groups]
        states = Counter(record.state for page in pages for record in page.records)
        assert states == {"running": 10, "scheduled": 140}

    on(place, test)


def test_claims_and_outcomes_do_not_wait_behind_what_users_ask_for(
    place: Place, proxy: Proxy
) -> None:
    """History 19: bodies that schedule hold every connection, and the worker stops."""
    stuck = asyncio.Event()

    async def hold(call: Call) -> Answer | None:
        if call.operation == "BatchGetItem":
            await stuck.wait()
        return await call.forward()

    async def test(store: Store) -> None:
        await store.write([new("reports", "a")], NOW)
        proxy.behaviour = hold
        users = [asyncio.ensure_future(store.get([("reports", "a")])) for _ in range(500)]
        await asyncio.sleep(0)
        [held], _ = await store.claim([a_group()], 9, NOW, "mine")
        patch = Patch(None, State.FINISHED, 0)
        [result] = await store.write([Write("reports", "a", patch, held.version, "mine")], NOW)
        assert isinstance(result, Applied)
        assert not any(call.done() for call in users)
        for call in users:
            call.cancel()
        await asyncio.wait(users)

    on(place, test)


def test_a_cancelled_call_drops_its_connection_and_no_other(place: Place, proxy: Proxy) -> None:
    """History 20: a connection that answers nothing any more."""
    arrived = threading.Semaphore(0)

    async def hang(call: Call) -> Answer | None:
        arrived.release()
        await asyncio.sleep(3_600)
        return None

    async def test(store: Store) -> None:
        for operation in (STATEMENTS, "Query", "BatchGetItem"):
            proxy.behaviour = Turns(operation, hang, 1)
            call = asyncio.ensure_future(_each(store, operation))
            await asyncio.to_thread(arrived.acquire, timeout=30)
            call.cancel()
            await asyncio.wait([call])
            await _each(store, operation)

    on(place, test)


async def _each(store: Store, operation: str) -> Any:
    if operation == STATEMENTS:
        return await store.write([new("reports", "a")], NOW)
    if operation == "Query":
        return await store.claim([a_group()], 0, NOW, "t")
    return await store.get([("reports", "a")])


def test_the_servers_clock_is_followed_also_when_it_is_moved(place: Place, proxy: Proxy) -> None:
    ahead = timedelta(minutes=5)

    async def move(call: Call) -> Answer | None:
        answer = await call.forward()
        return answer._replace(date=format_datetime(parsedate_to_datetime(answer.date) + ahead))

    async def test(store: Store) -> None:
        before = await store.now()
        assert before is not None
        proxy.behaviour = move
        await store.now()
        after = await store.now()
        assert after is not None
        assert abs(after - before - 300_000_000) < 10_000_000

    on(place, test)


@pytest.mark.parametrize("behaviour", [honest, lose_request], ids=["up", "down"])
def test_the_servers_clock_is_looked_at_in_the_background_and_not_for_ever(
    place: Place,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Callable[[Call], Awaitable[Answer | None]],
) -> None:
    monkeypatch.setattr("pyncette.dynamodb.clock.DateClock.next_telling", lambda clock: 0.0)
    monkeypatch.setattr("pyncette.dynamodb.WIDTH_GOOD", -1)

    async def test(store: Store) -> None:
        assert await store.now() is not None
        proxy.calls.clear()
        proxy.behaviour = behaviour
        [looking] = [task for task in asyncio.all_tasks() if "clock" in task.get_name()]
        await looking
        assert proxy.calls == ["BatchGetItem"] * (12 if behaviour is honest else 1)

    on(place, test)


def test_an_answer_that_is_no_answer_is_an_outage(place: Place, proxy: Proxy) -> None:
    async def gateway(call: Call) -> Answer | None:
        return Answer(502, "<html>Bad Gateway</html>", "not a date")

    async def test(store: Store) -> None:
        proxy.behaviour = gateway
        for operation in (STATEMENTS, "Query", "BatchGetItem"):
            with pytest.raises(StoreUnavailableError):
                await _each(store, operation)

    on(place, test)


@pytest.mark.usefixtures("impatient")
def test_every_run_is_made_once_while_much_is_throttled_and_the_index_lags(
    place: Place, proxy: Proxy
) -> None:
    index = LaggingIndex(queries=3)
    calls = 0

    async def hard_times(call: Call) -> Answer | None:
        nonlocal calls
        calls += 1
        if call.operation == STATEMENTS and calls % 3 == 0:
            return await some_statements_fail("ThrottlingError")(call)
        if calls % 5 == 0:
            return error("ThrottlingException")
        return await index(call)

    clock = VirtualClock()
    app = Pyncette(place.factory, clock=clock, **place.configuration)
    ran: list[str] = []

    @app.dynamic_task()
    async def report(context: Context) -> None:
        ran.append(context.task.name)
        if len(ran) == 150:
            context.app_context.shutdown()

    async def main() -> None:
        async with app.create() as context:
            at = clock.now() + timedelta(seconds=1)
            await asyncio.gather(
                *(
                    context.schedule_task(report, f"user {number}", execute_at=at)
                    for number in range(150)
                )
            )
            proxy.behaviour = hard_times
            running = asyncio.ensure_future(context.run())
            while not running.done():
                await clock.advance(timedelta(seconds=1))
            await running
        async with place.open() as store:
            assert (await store.scan("report", EVERYTHING, None, 9)).records == []

    asyncio.run(main())
    assert sorted(ran) == sorted(f"user {number}" for number in range(150))
