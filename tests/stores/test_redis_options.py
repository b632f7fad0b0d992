"""Opening the store in Redis: options, URLs, privileges, what is there already, errors."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, SSLConnection
from tests.ports import reserved_port
from tests.servers import url
from tests.stores.listening import listening
from tests.stores.redis_place import client_at, keys_in, new_namespace, place_at
from tests.stores.redis_server import a_server

from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis import RedisOptions, redis_repository
from pyncette.redis.layout import Names, slot_of
from pyncette.store import EVERYTHING, Applied, Failed, Store, Write
from pyncette.store.record import ANY
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, new, put

DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "stores"
SECRET = "s3cret"


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("redis")) as place:
        yield place


def opening(**configuration: Any) -> None:
    async def main() -> None:
        async with redis_repository(**configuration):
            pass

    asyncio.run(main())


async def use(store: Store) -> None:
    """Writes, claims, reads and removes a record."""
    assert await store.write([new("reports", "a")], NOW) == [Applied(NOW)]
    [record] = (await store.claim([a_group()], 10, NOW, "mine")).records
    assert await store.get([("reports", "a")]) == [record]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "redis_url must be a URL"),
        ({"redis_url": 7}, "redis_url must be .* not 7"),
        ({"redis_url": "http://host"}, "redis_url must be a URL"),
        ({"redis_url": "redis+other://host"}, "redis_url must be a URL"),
        ({"redis_url": "redis://host:port"}, "redis_url makes no sense"),
        ({"redis_url": "redis://host?no_such=1"}, "there is no option 'no_such'"),
        ({"redis_url": "redis://host?db=x"}, "redis_url makes no sense"),
        ({"redis_url": "redis+sentinel://host"}, "does not name the service"),
        ({"redis_url": "redis+sentinel://host/service/x"}, "database is not a number"),
        ({"redis_url": "redis://host/abc"}, "database is not a number"),
        ({"redis_url": "rediss://host:1/-1?health_check_interval=1"}, "database is not a number"),
        ({"redis_url": "redis://host/0/1"}, "database is not a number"),
        ({"redis_url": "redis+sentinel://host/service/0/1"}, "database is not a number"),
        ({"redis_url": "redis+cluster://host,,host"}, "hosts must be host:port"),
        ({"redis_url": "redis+cluster://host:99999"}, "hosts must be host:port"),
        ({"redis_url": "redis+cluster://host/1"}, "no other database than 0"),
        ({"redis_url": "unix+cluster:///socket"}, "no cluster behind a unix socket"),
        ({"redis_namespace": None}, "redis_namespace must be a text, not None"),
        ({"redis_namespace": "a\0b"}, "no NUL character"),
        ({"redis_namespace": "a\ud800"}, "lone surrogate"),
        ({"redis_namespace": "n" * 501}, "at most 500 bytes"),
        ({"redis_timeout": 0}, "redis_timeout must be .* not 0"),
        ({"redis_timeout": timedelta(seconds=-1)}, "redis_timeout must be .* not -1"),
        ({"redis_timeout": "5"}, "redis_timeout must be .* not '5'"),
        ({"redis_timeout": float("nan")}, "redis_timeout must be .* not nan"),
        ({"redis_pool_size": 2}, "redis_pool_size must be .* from 3 to 1000, not 2"),
        ({"redis_wait_replicas": -1}, "redis_wait_replicas must be .* from 0 to 100, not -1"),
        ({"redis_client": object()}, "redis_client must be a redis.asyncio.Redis"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    configuration = {"redis_url": "redis://127.0.0.1:1/0", **options} if options else {}
    with pytest.raises(ValueError, match=message):
        opening(**configuration)


@pytest.mark.parametrize(
    "address",
    [
        f"redis://user:{SECRET}@host:port/0",
        f"http://user:{SECRET}@host",
        f"redis+sentinel://user:{SECRET}@host",
        f"redis+cluster://user:{SECRET}@host:99999",
        f"redis://user:{SECRET}@host?no_such=1",
        f"redis://user:{SECRET}@[host",
    ],
)
def test_a_password_in_a_url_that_makes_no_sense_is_not_told(address: str) -> None:
    with pytest.raises(ValueError) as raised:
        opening(redis_url=address)
    error: BaseException | None = raised.value
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__
    assert SECRET not in repr(RedisOptions(f"redis://user:{SECRET}@host"))


def test_hosts_of_sentinels_and_of_a_cluster_are_read() -> None:
    target = RedisOptions(
        "redis+sentinel://user:p%40ss@one:1,[::1]:2,three/service/4"
        "?sentinel_username=watch&sentinel_password=word"
    ).target()
    # Newer releases of Python refuse to split such a URL.
    assert target.addresses == [
        {"host": "one", "port": 1},
        {"host": "::1", "port": 2},
        {"host": "three", "port": 26_379},
    ]
    assert (target.kind, target.service, target.database) == ("sentinel", "service", 4)
    server = target.dialer.make({"host": "master", "port": 5})
    assert (server.username, server.password, server.db) == ("user", "p@ss", 4)
    sentinel = target.sentinel_dialer.make(target.addresses[0])
    assert (sentinel.username, sentinel.password, sentinel.db) == ("watch", "word", 0)
    target = RedisOptions("rediss+cluster://one,two:7").target()
    assert target.addresses == [{"host": "one", "port": 6_379}, {"host": "two", "port": 7}]
    assert isinstance(target.dialer.make(target.addresses[0]), SSLConnection)


def test_options_of_tls_reach_the_driver() -> None:
    address = "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_ca_certs=/ca.pem"
    for scheme in ("rediss://", "rediss+cluster://"):
        target = RedisOptions(address.replace("rediss://", scheme)).target()
        context = target.dialer.make(target.addresses[0]).ssl_context
        assert (context.cert_reqs, context.ca_certs) == (ssl.CERT_NONE, "/ca.pem")
        assert context.check_hostname is False


def test_a_pool_size_in_the_url_is_taken_unless_the_option_is_given() -> None:
    address = "redis://host?max_connections=25&timeout=3"
    assert RedisOptions(address).target().pool_size == 25
    assert RedisOptions(address, pool_size=5).target().pool_size == 5


def test_encrypted_connections_work(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with a_server(tmp_path) as server:
        encrypted = reserved_port()

        async def main() -> None:
            async with client_at(server.url) as client:
                await client.config_set("tls-cert-file", str(certificate))
                await client.config_set("tls-key-file", str(key))
                await client.config_set("tls-ca-cert-file", str(certificate))
                await client.config_set("tls-auth-clients", "no")
                await client.config_set("tls-port", encrypted)
            address = f"rediss://127.0.0.1:{encrypted}/0"
            async with redis_repository(redis_url=f"{address}?ssl_ca_certs={certificate}") as store:
                await use(store)
            with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
                async with redis_repository(redis_url=address):
                    pass

        asyncio.run(main())


def test_a_wrong_password_is_an_error_that_does_not_tell_it(tmp_path: Path) -> None:
    with a_server(tmp_path, "--requirepass", "right") as server:
        for credentials in (f":{SECRET}@", f"user:{SECRET}@", ""):
            address = server.url.replace("//", f"//{credentials}")
            with pytest.raises(StoreMisconfiguredError, match="does not let us in") as raised:
                opening(redis_url=address)
            assert SECRET not in str(raised.value)
        opening(redis_url=server.url.replace("//", "//:right@"))


def test_the_privileges_in_the_documentation_are_enough(tmp_path: Path) -> None:
    page = (DOCS / "redis.md").read_text()
    [rules] = [line for line in page.splitlines() if line.startswith("ACL SETUSER")]
    with a_server(tmp_path) as server:

        async def main() -> None:
            async with client_at(server.url) as client:
                await client.execute_command(*rules.split())
            address = server.url.replace("//", "//pyncette:secret@")
            heard = asyncio.Event()
            async with redis_repository(redis_url=address, redis_namespace="reports") as store:
                await store.watch(["reports"], lambda groups: heard.set())
                await heard.wait()
                heard.clear()
                paused = new("reports", "woken", due_at=None)
                await store.write([paused], NOW, ["reports"])
                await heard.wait()
                await use(store)
                assert await store.now() is not None
                assert len((await store.scan("reports", EVERYTHING, None, 10)).records) == 2
            with pytest.raises(StoreMisconfiguredError, match="does not let us in"):
                async with redis_repository(redis_url=address, redis_namespace="other"):
                    pass

        asyncio.run(main())


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError, match=r"Redis at 127\.0\.0\.1:1"):
        opening(redis_url="redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailableError, match="No sentinel knows"):
        opening(redis_url="redis+sentinel://127.0.0.1:1,127.0.0.1:2/service/0")
    with pytest.raises(StoreUnavailableError, match="No node of the cluster"):
        opening(redis_url="redis+cluster://127.0.0.1:1,127.0.0.1:2")


def test_a_service_that_no_sentinel_knows_is_named() -> None:
    address = url("redis-sentinel").replace("/pyncette/", "/absent/")
    with pytest.raises(StoreMisconfiguredError, match="no service 'absent'"):
        opening(redis_url=address)


def test_a_cluster_needs_a_url_that_says_so_and_a_single_server_one_that_does_not() -> None:
    node = url("redis-cluster").replace("redis+cluster", "redis").partition(",")[0]
    with pytest.raises(StoreMisconfiguredError, match=r"redis\+cluster://"):
        opening(redis_url=node)
    single = url("redis").replace("redis:", "redis+cluster:")
    with pytest.raises(StoreMisconfiguredError, match="cluster support disabled"):
        opening(redis_url=single)


def test_an_old_server_is_refused() -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            for _ in range(data.count(b"*")):
                text = b"redis_version:6.0.16\r\nredis_mode:standalone\r\n"
                writer.write(b"$%d\r\n%b\r\n" % (len(text), text))
        writer.close()
        await writer.wait_closed()
        gone.set()

    async def main() -> None:
        async with listening(answer) as port:
            with pytest.raises(
                StoreMisconfiguredError, match=r"6\.0\.16 is too old: at least 6\.2"
            ):
                async with redis_repository(redis_url=f"redis://127.0.0.1:{port}"):
                    pass
            await gone.wait()

    asyncio.run(main())


def test_a_replica_is_not_written_to(tmp_path: Path) -> None:
    with a_server(tmp_path, "--replicaof", "127.0.0.1 1") as server:

        async def main() -> None:
            async with client_at(server.url) as client:
                await client.config_set("replica-serve-stale-data", "yes")
            with pytest.raises(StoreUnavailableError, match="read only replica"):
                async with redis_repository(redis_url=server.url):
                    pass

        asyncio.run(main())


def test_a_memory_that_evicts_tasks_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_server(tmp_path, "--maxmemory-policy", "allkeys-lru") as server:
        opening(redis_url=server.url)
        assert "maxmemory-policy allkeys-lru" in caplog.text
    caplog.clear()
    with a_server(tmp_path, "--maxmemory-policy", "volatile-lru") as server:
        opening(redis_url=server.url)
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_full_memory_is_an_outage(tmp_path: Path) -> None:
    with a_server(tmp_path) as server:

        async def main() -> None:
            async with redis_repository(redis_url=server.url) as store:
                await use(store)
                async with client_at(server.url) as client:
                    await client.config_set("maxmemory", "1mb")
                    with pytest.raises(StoreUnavailableError, match="maxmemory"):
                        await store.write([new("reports", "b")], NOW)
                    await client.config_set("maxmemory", "0")
                assert await store.write([new("reports", "b")], NOW) == [Applied(NOW)]

        asyncio.run(main())


@pytest.mark.parametrize("namespace", ["", "web", "a:b", "*", "[x]", "a?\\", "index"])
def test_a_namespace_in_which_1x_keeps_tasks_is_refused(namespace: str, tmp_path: Path) -> None:
    with a_server(tmp_path) as server:

        async def main(kind: str, refused: bool) -> None:
            async with client_at(server.url) as client:
                await client.flushall()
                if kind == "dynamic":
                    await client.mset({f"other:{number}": "" for number in range(3_000)})
                    name = f"pyncette:{namespace}:task:reports:7"
                    await client.hset(name, mapping={"version": 1})
                elif kind == "static":
                    await client.zadd(f"pyncette:{namespace}:index", {"2026_x": 0})
                else:
                    await client.hset(f"pyncette:{namespace}x:task:reports:7", "version", 1)
                before = sorted(await client.keys())
                if refused:
                    with pytest.raises(StoreMisconfiguredError, match=r"1\.x.*pyncette migrate"):
                        async with redis_repository(
                            redis_url=server.url, redis_namespace=namespace
                        ):
                            pass
                    assert sorted(await client.keys()) == before
                else:
                    async with redis_repository(redis_url=server.url, redis_namespace=namespace):
                        pass

        asyncio.run(main("dynamic", refused=True))
        asyncio.run(main("static", refused=True))
        asyncio.run(main("another namespace", refused=False))


def test_data_of_a_later_format_is_refused(place: Place) -> None:
    async def main() -> None:
        async with client_at(url("redis")) as client:
            await client.set(Names(place.configuration["redis_namespace"]).layout, "2")
        with pytest.raises(StoreMisconfiguredError, match=r"format '2'; this release reads .* '1'"):
            async with place.open():
                pass

    asyncio.run(main())


def test_a_key_of_somebody_else_is_told_of_and_left_alone(place: Place) -> None:
    async def main() -> None:
        _, records, *_ = Names(place.configuration["redis_namespace"]).of("reports")
        async with client_at(url("redis")) as client, place.open() as store:
            await client.set(records, "mine")
            [result] = await store.write([new("reports", "a")], NOW)
            assert isinstance(result, Failed)
            assert isinstance(result.error, StoreMisconfiguredError)
            assert "something that is not Pyncette's" in str(result.error)
            with pytest.raises(StoreMisconfiguredError, match="something that is not ours"):
                await store.get([("reports", "a")])
            assert await client.get(records) == b"mine"

    asyncio.run(main())


@pytest.mark.parametrize("server", ["redis", "redis-cluster"])
def test_namespaces_are_kept_apart_whatever_they_are_called(server: str) -> None:
    base = new_namespace()
    endings = ["", ":", "::", "{", "}", "{x}", "}{", "%", "%7B", "*", "é😀", " ", "\n", "a:b"]

    async def main() -> None:
        async with client_at(url(server)) as client:
            try:
                for number, ending in enumerate(endings):
                    async with redis_repository(
                        redis_url=url(server), redis_namespace=base + ending
                    ) as store:
                        groups = ["g", ":g", "{g}", "}"]
                        batch = [Write(group, "a", put(args=f"{number}"), 0) for group in groups]
                        assert await store.write(batch, NOW) == [Applied(NOW)] * 4
                        records = await store.get([(group, "a") for group in groups])
                        assert [r and r.args for r in records] == [f"{number}"] * 4
            finally:
                for key in [key async for key in client.scan_iter(match=f"pyncette2:{{{base}*")]:
                    await client.unlink(key)

    asyncio.run(main())


def test_the_keys_of_a_group_lie_in_one_slot() -> None:
    for namespace in ("", "{", "}", "a{b}c", "é"):
        names = Names(namespace)
        for group in ("reports", ":static", "reports:17", "{}", "}{", "%7B"):
            assert len({slot_of(key) for key in names.of(group)}) == 1
            assert all(key.count(b"{") == key.count(b"}") == 1 for key in names.of(group))


@pytest.mark.parametrize("server", ["redis", "redis-sentinel", "redis-cluster"])
def test_a_client_of_the_application_tells_where_to_connect_and_stays_open(server: str) -> None:
    namespace = new_namespace()

    async def main() -> None:
        async with client_at(url(server)) as client:
            await client.ping()
            async with redis_repository(redis_client=client, redis_namespace=namespace) as store:
                await use(store)
                woken = asyncio.Event()
                await store.watch(["reports"], lambda groups: woken.set())
                await woken.wait()
            assert await client.ping()
            keys = await keys_in(client, namespace)
            assert keys
            for key in keys:
                await client.unlink(key)

    asyncio.run(main())


def test_a_client_that_decodes_answers_is_taken_too(tmp_path: Path) -> None:
    with a_server(tmp_path, "--requirepass", "right") as server:

        async def main() -> None:
            client: Any = Redis(
                port=server.port, password="right", decode_responses=True, protocol=3, db=2
            )
            async with redis_repository(redis_client=client) as store:
                await use(store)
            assert await client.dbsize() == 4
            await client.aclose()

        asyncio.run(main())


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with a_server(tmp_path, "--unixsocket", str(socket)):

        async def main() -> None:
            async with redis_repository(redis_url=f"unix://{socket}?db=1") as store:
                await use(store)

        asyncio.run(main())


def test_texts_with_a_nul_are_refused_before_anything_is_sent(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            for broken in (put(args="1 \0"), put(token="\0"), put(progress="a\0b")):
                [result] = await store.write([Write("reports", "a", broken, ANY)], NOW)
                assert isinstance(result, Failed)
                assert isinstance(result.error, ValueError)
                assert "NUL" in str(result.error)
            assert await store.get([("reports", "a")]) == [None]

    asyncio.run(main())


def test_a_missing_driver_is_an_error_that_names_the_extra() -> None:
    program = (
        "import sys, pyncette\n"
        "assert 'redis' not in sys.modules and 'pyncette.redis' not in sys.modules\n"
        "sys.modules['redis'] = None\n"
        "try:\n    import pyncette.redis\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "pip install 'pyncette[redis]'" in done.stdout
