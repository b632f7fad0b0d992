"""Opening the store in DynamoDB: options, credentials, tables, clients; and what items may hold."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from tests.servers import url
from tests.stores.dynamodb_place import REGION, place_at, request, set_credentials
from tests.stores.dynamodb_proxy import Answer, Call, error, proxy_before

from pyncette import Context, Pyncette
from pyncette.dynamodb import (
    DynamoDBOptions,
    RecordTooLargeError,
    dynamodb_repository,
    table_definition,
)
from pyncette.dynamodb.clock import DateClock
from pyncette.dynamodb.requests import error_of
from pyncette.dynamodb.table import PROGRESS_BYTES_MAX, TEXTS_BYTES_MAX
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.store import EVERYTHING, Applied, Failed, Write
from pyncette.store.record import State
from pyncette.testing import VirtualClock
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, a_key, new, put, record_of


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("dynamodb")) as place:
        yield place


def opening(place: Place, **more: Any) -> None:
    async def main() -> None:
        async with place.factory(**{**place.configuration, **more}):
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table_name": None}, "Table name None .dynamodb_table_name."),
        ({"table_name": "ab"}, "3 to 255 letters"),
        ({"table_name": "tasks/1"}, "Table name 'tasks/1'"),
        ({"region_name": ""}, "dynamodb_region_name must be a name"),
        ({"endpoint": "localhost:8000"}, "dynamodb_endpoint must be a URL .* 'localhost:8000'"),
        ({"endpoint": "http://u:hidden@host"}, "dynamodb_endpoint must not hold credentials"),
        ({"partition_prefix": "ä" * 129}, "dynamodb_partition_prefix must be .* 256 bytes"),
        ({"pool_size": 2}, "dynamodb_pool_size must be .* from 3 to 1000, not 2"),
        ({"client": "client"}, "dynamodb_client must be .* aiobotocore, not str"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        DynamoDBOptions(**{"table_name": "tasks", **options})
    assert "hidden" not in str(refused.value)


def test_certificates_are_read_where_one_is_verified_and_only_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    opening(place)
    monkeypatch.setenv("http_proxy", "https://127.0.0.1:1")  # it has a certificate
    with pytest.raises(StoreUnavailableError, match="No such file"):
        opening(place)
    with pytest.raises(StoreUnavailableError, match="No such file"):
        opening(place, dynamodb_endpoint=url("dynamodb").replace("http:", "https:"))


def test_a_table_name_is_required() -> None:
    with pytest.raises(ValueError, match="dynamodb_table_name"):
        opening(Place(dynamodb_repository))


def test_the_package_does_not_load_the_driver() -> None:
    program = "import sys, pyncette; print([m for m in sys.modules if 'botocore' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_missing_driver_names_the_extra() -> None:
    program = "import sys; sys.modules['aiobotocore'] = None; import pyncette.dynamodb"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert b"pip install 'pyncette[dynamodb]'" in done.stderr


def test_missing_credentials_are_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with (
        place_at(url("dynamodb")) as place,
        pytest.raises(StoreMisconfiguredError, match="no AWS credentials were found"),
    ):
        opening(place)


def test_a_missing_region_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with (
        place_at(url("dynamodb")) as place,
        pytest.raises(StoreMisconfiguredError, match="dynamodb_region_name"),
    ):
        opening(place, dynamodb_region_name=None)


def test_wrong_credentials_are_an_error_that_shows_none() -> None:
    server = url("dynamodb")
    with proxy_before(server) as proxy, place_at(server, proxy.url) as place:

        async def refuse(call: Call) -> Answer | None:
            return error("UnrecognizedClientException")

        proxy.behaviour = refuse
        with pytest.raises(StoreMisconfiguredError, match="UnrecognizedClient") as refused:
            opening(place)
    assert "test-secret" not in str(refused.value)


def test_a_complaint_about_a_signature_does_not_show_the_signed_request() -> None:
    told = "It does not match.\n\nThe Canonical String was\n'POST\nx-amz-security-token:hidden'"
    shown = error_of("InvalidSignatureException", told, "DynamoDB")
    assert isinstance(shown, StoreMisconfiguredError)
    assert "It does not match." in str(shown)
    assert "hidden" not in str(shown)


def test_a_service_that_cannot_be_reached_is_unavailable(place: Place) -> None:
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
        opening(place, dynamodb_endpoint="http://127.0.0.1:9")


def test_a_missing_table_that_is_not_to_be_made_is_missed(place: Place) -> None:
    with pytest.raises(StoreMisconfiguredError, match=r"does not exist.*table_definition"):
        opening(place, dynamodb_skip_table_create=True)


def test_a_table_that_somebody_else_made_is_taken(place: Place) -> None:
    table = place.configuration["dynamodb_table_name"]
    request(url("dynamodb"), "CreateTable", **table_definition(table))
    opening(place, dynamodb_skip_table_create=True)


def _keys(hash_key: str, range_key: str) -> dict[str, Any]:
    return {
        "KeySchema": [
            {"AttributeName": hash_key, "KeyType": "HASH"},
            {"AttributeName": range_key, "KeyType": "RANGE"},
        ],
        "AttributeDefinitions": [
            {"AttributeName": hash_key, "AttributeType": "S"},
            {"AttributeName": range_key, "AttributeType": "S"},
        ],
    }


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (_keys("partition_id", "task_id"), "made by pyncette 1.x.*migrate.*Nothing was changed"),
        (_keys("customer", "order"), "not one of ours.*customer.*Nothing was changed"),
        (_keys("group", "key"), "not one of ours.*an index 'due'"),
    ],
    ids=["1.x", "another", "without index"],
)
def test_a_foreign_table_is_refused(place: Place, layout: dict[str, Any], message: str) -> None:
    table = place.configuration["dynamodb_table_name"]
    request(
        url("dynamodb"), "CreateTable", TableName=table, BillingMode="PAY_PER_REQUEST", **layout
    )
    with pytest.raises(StoreMisconfiguredError, match=message):
        opening(place)


def test_opening_waits_until_the_table_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.dynamodb.READY_PAUSE_S", 0.001)
    server = url("dynamodb")
    with proxy_before(server) as proxy, place_at(server, proxy.url) as place:

        async def slow(call: Call) -> Answer | None:
            answer = await call.forward()
            if call.operation == "DescribeTable" and answer.status == 200:
                described = proxy.calls.count("DescribeTable")
                if described < 4:
                    answer.body["Table"]["TableStatus"] = "CREATING"
                elif described < 6:
                    for index in answer.body["Table"]["GlobalSecondaryIndexes"]:
                        index["IndexStatus"] = "CREATING"
            return answer

        proxy.behaviour = slow
        opening(place)
    assert proxy.calls == ["DescribeTable", "CreateTable", *["DescribeTable"] * 5]


def test_applications_with_prefixes_of_their_own_do_not_see_each_other(place: Place) -> None:
    prefixes = ("", "a", "a:", "a%3A", ":", "%")

    async def main() -> None:
        for prefix in prefixes:
            async with place.open(dynamodb_partition_prefix=prefix) as store:
                groups = ("b", ":b", "a:b", "::b")
                await store.write(
                    [new(group, "k", args=f"{prefix} {group}") for group in groups], 1
                )
        for prefix in prefixes:
            async with place.open(dynamodb_partition_prefix=prefix) as store:
                for group in groups:
                    record = await record_of(store, group, "k")
                    assert (record.group, record.args) == (group, f"{prefix} {group}")
                    [found] = (await store.scan(group, EVERYTHING, None, 9)).records
                    [claimed], _ = await store.claim([a_group(group)], 9, NOW, "t")
                    assert found.args == claimed.args == record.args

    asyncio.run(main())


def test_a_client_of_the_application_is_used_and_left_open(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pyncette")
    table = place.configuration["dynamodb_table_name"]
    config = AioConfig(retries={"total_max_attempts": 1}, max_pool_connections=1)

    async def main() -> None:
        async with get_session().create_client(
            "dynamodb", REGION, endpoint_url=url("dynamodb"), config=config
        ) as client:
            async with dynamodb_repository(
                dynamodb_table_name=table, dynamodb_client=client
            ) as store:
                await store.write([new("reports", "a")], NOW)
                assert len((await store.claim([a_group()], 9, NOW, "t")).records) == 1
            assert (await client.describe_table(TableName=table))["Table"]["ItemCount"] == 1

    asyncio.run(main())
    assert not caplog.records


def test_a_client_that_repeats_calls_by_itself_is_warned_about(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    table = place.configuration["dynamodb_table_name"]

    async def main() -> None:
        async with (
            get_session().create_client("dynamodb", REGION, endpoint_url=url("dynamodb")) as client,
            dynamodb_repository(dynamodb_table_name=table, dynamodb_client=client),
        ):
            pass

    asyncio.run(main())
    assert "repeats calls by itself" in caplog.text


def test_five_hundred_calls_at_once_schedule_their_tasks(place: Place) -> None:
    app = Pyncette(place.factory, clock=VirtualClock(), **place.configuration)

    @app.dynamic_task()
    async def report(context: Context) -> None: ...

    async def main() -> int:
        async with app.create() as context:
            at = context.clock.now()
            await asyncio.gather(
                *(
                    context.schedule_task(report, f"user {number}", execute_at=at)
                    for number in range(500)
                )
            )
            return len((await context.list_tasks(report, limit=1_000)).tasks)

    assert asyncio.run(main()) == 500


def test_arguments_that_do_not_fit_are_refused_where_they_are_made(place: Place) -> None:
    app = Pyncette(place.factory, clock=VirtualClock(), **place.configuration)

    @app.dynamic_task()
    async def report(context: Context) -> None: ...

    async def main() -> None:
        async with app.create() as context:
            at = context.clock.now()
            with pytest.raises(ValueError, match=r"'big' in 'report' has 200,.* at most 180,000"):
                await context.schedule_task(report, "big", execute_at=at, text="x" * 200_000)
            assert await context.get_task(report, "big") is None

    asyncio.run(main())


EAGER: Any = getattr(asyncio, "eager_task_factory", None)


@pytest.mark.skipif(EAGER is None, reason="tasks are never started eagerly before Python 3.12")
def test_the_store_works_where_tasks_are_started_eagerly(place: Place) -> None:
    keys = [f"{number:03}" for number in range(120)]

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(EAGER)
        async with place.open() as store:
            results = await store.write([new("reports", key) for key in keys], NOW)
            assert results == [Applied(NOW)] * 120
            sources = [a_group(), a_group("others"), a_key("a", ":static")]
            records, _ = await store.claim(sources, 200, NOW, "mine")
            assert sorted(record.key for record in records) == keys
            assert await store.get([record[:2] for record in records]) == records
            assert await store.now() is not None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_the_task_that_reads_the_clock_does_not_inherit_the_callers_context(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = ContextVar("trace", default="none")
    seen: set[str] = set()

    def next_telling(clock: DateClock) -> float:
        seen.add(trace.get())
        return 0.0

    monkeypatch.setattr("pyncette.dynamodb.clock.DateClock.next_telling", next_telling)

    async def main() -> None:
        async with place.open() as store:
            trace.set("of a caller")
            await store.now()
            [reading] = [task for task in asyncio.all_tasks() if "clock" in task.get_name()]
            await reading

    asyncio.run(main())
    assert seen == {"none"}


def test_a_record_that_is_too_large_fails_alone(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            made, failed, made_too = await store.write(
                [new("reports", "a"), new("reports", "b", args="ä" * 99_000), new("reports", "c")],
                NOW,
            )
            assert (made, made_too) == (Applied(NOW), Applied(NOW))
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, RecordTooLargeError)
            assert failed.error.identity == ("reports", "b")
            assert await store.get([("reports", "b")]) == [None]

    asyncio.run(main())


def test_the_largest_record_has_room_for_what_its_run_adds(place: Place) -> None:
    """Also with a replacement that waits, and a name of a thousand bytes."""

    async def main() -> None:
        async with place.open(dynamodb_partition_prefix="p" * 256) as store:
            largest = put(
                schedule="p" * 100,
                args="a" * (TEXTS_BYTES_MAX - 100),
                progress="x" * PROGRESS_BYTES_MAX,
            )
            await store.write([Write("g" * 500, "k" * 500, largest, 0)], NOW)
            [held], _ = await store.claim([a_group("g" * 500)], 9, NOW, "t" * 300)
            failed = largest._replace(token="t" * 300, progress="x" * (PROGRESS_BYTES_MAX + 13_000))
            results = await store.write([Write(*held[:2], failed, held.version, held.token)], NOW)
            assert results == [Applied(NOW + 2)]

    asyncio.run(main())


def test_an_item_that_somebody_spoiled_is_parked_and_the_others_run(place: Place) -> None:
    app = Pyncette(place.factory, clock=VirtualClock(), **place.configuration)
    table = place.configuration["dynamodb_table_name"]
    ran: list[str] = []

    @app.dynamic_task()
    async def report(context: Context) -> None:
        ran.append(context.task.name)
        context.app_context.shutdown()

    spoiled: list[dict[str, Any]] = [
        {},
        {"version": {"S": "x"}, "unfinished_attempts": {"S": "x"}, "state": {"N": "1"}},
        {"version": {"N": "1.5"}, "unfinished_attempts": {"N": "-7"}, "token": {"BOOL": True}},
        {"version": {"N": "-1"}, "schedule": {"NULL": True}},
        {"version": {"N": "9" * 38}},
        {"unfinished_attempts": {"N": "9" * 38}},
        {"due_at": {"N": "-" + "9" * 38}},
        {"due_at": {"N": "-1E+125"}, "version": {"N": f"{2**62}"}},
        {"due_at": {"N": "1.5"}, "version": {"BOOL": True}},
    ]

    async def main() -> None:
        async with app.create() as context:
            at = context.clock.now()
            await context.schedule_task(report, "sound", execute_at=at)
            for number, attributes in enumerate(spoiled):
                item = {
                    "group": {"S": ":report"},
                    "key": {"S": f"spoiled {number}"},
                    "due_at": {"N": "-5"},
                    **attributes,
                }
                await asyncio.to_thread(
                    request, url("dynamodb"), "PutItem", TableName=table, Item=item
                )
            await context.run()
        async with place.open() as store:
            records = (await store.scan("report", EVERYTHING, None, 10)).records
            assert {record.key: record.state for record in records} == {
                f"spoiled {number}": State.PARKED for number in range(len(spoiled))
            }

    asyncio.run(main())
    assert ran == ["sound"]
