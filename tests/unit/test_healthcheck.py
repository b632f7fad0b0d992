"""The health check, asked over real connections."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from tests.faulty_store import Faults, faulty

from pyncette import Pyncette, PyncetteContext, healthcheck
from pyncette.healthcheck import HealthcheckServer, default_healthcheck, use_healthcheck_server
from pyncette.memory import MemoryRepository
from pyncette.testing import VirtualClock, isolated

HERE = "127.0.0.1"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def well(app_context: PyncetteContext) -> bool:
    return True


async def unwell(app_context: PyncetteContext) -> bool:
    return False


@asynccontextmanager
async def serving(
    handler: Callable[[PyncetteContext], Awaitable[Any]] = well,
) -> AsyncIterator[HealthcheckServer]:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reported.append(report))
    app = Pyncette(MemoryRepository(), clock=VirtualClock())
    server = use_healthcheck_server(app, 0, HERE, handler)
    # A task that failed reports it when it is collected. All that a test makes stays young without
    # other collections, and one of the young does not walk through what all tests have made.
    gc.disable()
    try:
        async with app.create():
            yield server
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect(0)
    finally:
        gc.enable()
    assert reported == []


async def ask(port: int, request: bytes = GET, host: str = HERE) -> bytes:
    """The whole answer, up to where the server closes the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def answers(request: bytes, handler: Callable[[PyncetteContext], Awaitable[Any]] = well) -> bytes:
    async def main() -> bytes:
        async with serving(handler) as server:
            return await ask(server.port, request)

    return asyncio.run(main())


@pytest.mark.parametrize("path", [b"/", b"/health", b"/a/b?c=d%20e", b"*", b"http://h:1/"])
def test_get_of_any_path_is_ok_while_the_handler_says_so(path: bytes) -> None:
    answer = answers(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Length: 2" in head.splitlines()
    assert b"Connection: close" in head.splitlines()
    assert body == b"OK"


def test_it_answers_a_request_line_that_ends_in_a_bare_newline() -> None:
    assert answers(b"GET / HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 ")


def test_it_is_500_when_the_handler_says_no() -> None:
    assert answers(GET, unwell).startswith(b"HTTP/1.1 500 ")


def test_it_is_500_when_the_handler_raises_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def raising(app_context: PyncetteContext) -> bool:
        raise KeyError("no such thing")

    answer = answers(GET, raising)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"no such thing" not in answer
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


class Aborted(BaseException):
    pass


@pytest.mark.parametrize("outcome", [asyncio.CancelledError, GeneratorExit, Aborted])
def test_it_is_500_whatever_comes_out_of_the_handler(outcome: type[BaseException]) -> None:
    async def raising(app_context: PyncetteContext) -> bool:
        raise outcome

    assert answers(GET, raising).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get", b"BREW"])
def test_any_other_method_is_not_allowed(method: bytes) -> None:
    answer = answers(method + b" / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody")
    head, _, _ = answer.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 405 Method Not Allowed"
    assert b"Allow: GET, HEAD" in head.splitlines()


async def all_is_well(app_context: PyncetteContext) -> bool:
    return True


async def nothing_is_well(app_context: PyncetteContext) -> bool:
    return False


@pytest.mark.parametrize("handler", [all_is_well, nothing_is_well])
def test_head_is_answered_as_get_without_a_body(handler: Any) -> None:
    head = answers(b"HEAD / HTTP/1.1\r\n\r\n", handler)
    get = answers(b"GET / HTTP/1.1\r\n\r\n", handler)
    fields, blank, body = get.partition(b"\r\n\r\n")
    assert body
    assert head == fields + blank


@pytest.mark.parametrize(
    "request_line",
    [
        b"\r\n",
        b"GET /\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET /\xff HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\n",
    ],
)
def test_what_is_no_request_is_a_bad_one(request_line: bytes) -> None:
    assert answers(request_line).startswith(b"HTTP/1.1 400 ")


def test_a_request_that_ends_within_its_first_line_is_a_bad_one() -> None:
    async def main() -> bytes:
        async with serving() as server:
            reader, writer = await asyncio.open_connection(HERE, server.port)
            writer.write(b"GET / HT")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    assert asyncio.run(main()).startswith(b"HTTP/1.1 400 ")


def test_a_request_line_of_8_kb_is_read_and_a_longer_one_is_a_bad_request() -> None:
    def request(length: int) -> bytes:
        return b"GET /" + b"x" * (length - len(b"GET / HTTP/1.1\r\n")) + b" HTTP/1.1\r\n"

    assert answers(request(8 * 1024) + b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert answers(request(8 * 1024 + 2) + b"\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_client_that_takes_too_long_for_its_request_line_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(healthcheck, "REQUEST_LINE_DEADLINE_S", 0.02)
    assert answers(b"GET / HTT").startswith(b"HTTP/1.1 408 ")


async def write_more(writer: asyncio.StreamWriter, times: int) -> None:
    """To a connection that the other side has closed; that answers with a reset."""
    for _ in range(times):
        writer.write(b"more")
        await writer.drain()
        await asyncio.sleep(0.001)


async def still_sending_after_the_answer(times: int) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HERE, server.port)
        writer.write(GET)
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        try:
            await write_more(writer, times)
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


def test_a_client_that_still_sends_is_not_reset_before_it_has_read_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(healthcheck, "CLOSING_DEADLINE_S", 1_000)
    asyncio.run(still_sending_after_the_answer(times=10))


@pytest.mark.parametrize(
    ("bound", "value"), [("CLOSING_DEADLINE_S", 0.02), ("DISCARDED_BYTES_MAX", 40)]
)
def test_a_client_that_sends_for_ever_is_closed(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: float
) -> None:
    monkeypatch.setattr(healthcheck, "CLOSING_DEADLINE_S", 1_000)
    monkeypatch.setattr(healthcheck, bound, value)
    with pytest.raises(ConnectionError):
        asyncio.run(still_sending_after_the_answer(times=1_000))


def test_a_connection_that_sends_nothing_is_closed_without_an_answer() -> None:
    async def main() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection(HERE, server.port)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def uvloop_or_skip() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


async def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


def test_a_client_that_resets_the_connection_within_its_request_disturbs_nobody() -> None:
    async def main() -> bytes:
        async with serving() as server:
            _, writer = await asyncio.open_connection(HERE, server.port)
            writer.write(b"GET / HT")
            answer = await ask(server.port)  # by now the server reads the first connection
            await reset(writer)
            return answer + await ask(server.port)

    assert asyncio.run(main()).count(b"HTTP/1.1 200 ") == 2


# uvloop's transports raise where asyncio's shrug.
@pytest.mark.parametrize("loop_factory", [None, uvloop_or_skip], ids=["asyncio", "uvloop"])
def test_a_client_that_resets_the_connection_before_its_answer_disturbs_nobody(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    async def main() -> bytes:
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def waiting(app_context: PyncetteContext) -> bool:
            entered.set()
            await go_on.wait()
            return True

        async with serving(waiting) as server:
            _, writer = await asyncio.open_connection(HERE, server.port)
            writer.write(GET)
            await entered.wait()
            await reset(writer)
            go_on.set()
            return await ask(server.port)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()).startswith(b"HTTP/1.1 200 ")


def test_requests_are_answered_at_once_and_do_not_wait_for_each_other() -> None:
    async def main() -> list[bytes]:
        here = 0
        all_here = asyncio.Event()

        async def meeting(app_context: PyncetteContext) -> bool:
            nonlocal here
            here += 1
            if here == 20:
                all_here.set()
            await all_here.wait()
            return True

        async with serving(meeting) as server:
            return await asyncio.gather(*(ask(server.port) for _ in range(20)))

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in asyncio.run(main()))


def test_a_crowd_of_clients_that_hang_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "CONNECTIONS_MAX", 2)

    async def main() -> None:
        entered = asyncio.Semaphore(0)
        go_on = asyncio.Event()

        async def waiting(app_context: PyncetteContext) -> bool:
            entered.release()
            await go_on.wait()
            return True

        async with serving(waiting) as server:
            asking = [asyncio.create_task(ask(server.port)) for _ in range(2)]
            for _ in asking:
                await entered.acquire()
            with suppress(ConnectionError):
                assert await ask(server.port) == b""
            go_on.set()
            for answer in await asyncio.gather(*asking):
                assert answer.startswith(b"HTTP/1.1 200 ")
            answer = b""
            while not answer:  # their places become free soon, not at once
                with suppress(ConnectionError):
                    answer = await ask(server.port)
            assert answer.startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


def test_closing_the_app_drops_clients_that_hang() -> None:
    async def main() -> None:
        entered = asyncio.Event()
        endings: list[str] = []

        async def hanging(app_context: PyncetteContext) -> bool:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                endings.append("handler")
            return True

        async with serving(hanging) as server:
            silent, silent_writer = await asyncio.open_connection(HERE, server.port)
            waiting, waiting_writer = await asyncio.open_connection(HERE, server.port)
            waiting_writer.write(GET)
            await entered.wait()
        assert endings == ["handler"]
        for reader, writer in ((silent, silent_writer), (waiting, waiting_writer)):
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        with pytest.raises(ConnectionError):
            await ask(server.port)

    asyncio.run(main())


# After two passes asyncio has accepted the connection and not yet told its server, which then
# refuses it; asyncio leaves the socket to the garbage collector, and warns. Not ours to mend.
@pytest.mark.parametrize("passes", [0, 1, 3, 4, 5, 6, 7])
def test_a_connection_that_arrives_while_the_app_closes_leaves_nothing_behind(
    passes: int,
) -> None:
    async def main() -> None:
        async with serving() as server:
            client = socket.create_connection((HERE, server.port))
            for _ in range(passes):
                await asyncio.sleep(0)
        client.close()

    asyncio.run(main())


def test_the_port_is_that_of_the_latest_opening() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), clock=VirtualClock())
        server = use_healthcheck_server(app, port=0, bind_address=HERE, healthcheck_handler=well)
        assert server.port == 0
        async with app.create():
            first = server.port
            async with app.create():
                second = server.port
                assert first != second
                for port in (first, second):
                    assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
            assert server.port == second
            assert (await ask(first)).startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


def test_a_given_port_is_used() -> None:
    async def main() -> None:
        async with serving() as before:
            port = before.port
        app = Pyncette(MemoryRepository(), clock=VirtualClock())
        server = use_healthcheck_server(app, port, HERE, well)
        async with app.create():
            assert server.port == port
            assert (await ask(server.port)).startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


def test_an_app_that_a_test_has_isolated_leaves_its_port_to_the_worker_beside_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as worker:
        taken = worker.getsockname()[1]
        app = Pyncette()
        server = use_healthcheck_server(app, taken, "127.0.0.1")
        with isolated(app) as world:
            world.advance(timedelta(minutes=1))
            assert server.port != taken

        async def opened() -> None:
            async with app.running():
                pass

        with pytest.raises(OSError, match="cannot listen"):
            asyncio.run(opened())


async def by_run(app: Pyncette) -> None:
    async with app.create() as context:
        await context.run()


async def by_running(app: Pyncette) -> None:
    async with app.running():
        pytest.fail("The worker runs without its health check")


async def by_run_until_idle(app: Pyncette) -> None:
    async with app.create() as context:
        await context.run_until_idle()


@pytest.mark.parametrize("way", [by_run, by_running, by_run_until_idle])
def test_a_worker_whose_port_is_taken_does_not_start_and_its_error_says_what_to_do(
    way: Callable[[Pyncette], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with serving() as taken:
            app = Pyncette(MemoryRepository(), clock=VirtualClock())
            use_healthcheck_server(app, taken.port, HERE, well)
            with pytest.raises(OSError, match="address already in use") as raised:
                await way(app)
            assert f"The health check cannot listen on port {taken.port}" in str(raised.value)
            assert "port=0" in str(raised.value)
            assert raised.value.errno == errno.EADDRINUSE

    asyncio.run(main())


def test_a_program_that_runs_nothing_opens_the_app_of_a_worker_on_its_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with serving() as taken:
            app = Pyncette(MemoryRepository(), clock=VirtualClock())
            use_healthcheck_server(app, taken.port, HERE, unwell)
            async with app.create() as context:
                assert await context.static_tasks() == []
            [warning] = caplog.records
            assert f"cannot listen on port {taken.port}" in warning.getMessage()
            caplog.clear()
            async with app.create(fixtures=False) as context:
                assert await context.static_tasks() == []
            assert caplog.records == []
            assert (await ask(taken.port)).startswith(b"HTTP/1.1 200 ")

    caplog.set_level(logging.WARNING, "pyncette")
    asyncio.run(main())


def test_the_blocking_calls_leave_the_port_to_the_worker() -> None:
    app = Pyncette(MemoryRepository())
    server = use_healthcheck_server(app, 0, HERE, well)
    with app.sync() as calls:
        assert calls.static_tasks() == []
        assert server.port == 0


def addresses_of_this_machine() -> list[str]:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return [HERE]
    return [HERE, "::1"]


def test_without_an_address_it_listens_on_all_of_them_at_one_port() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), clock=VirtualClock())
        server = use_healthcheck_server(app, port=0, healthcheck_handler=well)
        async with app.create():
            for host in addresses_of_this_machine():
                answer = await ask(server.port, host=host)
                assert answer.startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


@pytest.mark.parametrize("port", [-1, 65_536, "8080", None, True])
def test_what_is_no_port_is_refused(port: Any) -> None:
    with pytest.raises(ValueError, match="port must be a whole number from 0 to 65535"):
        use_healthcheck_server(Pyncette(), port)


def test_one_app_may_have_two_of_them() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), clock=VirtualClock())
        alive = use_healthcheck_server(app, 0, HERE, well)
        ready = use_healthcheck_server(app, 0, HERE, unwell)
        async with app.create():
            assert (await ask(alive.port)).startswith(b"HTTP/1.1 200 ")
            assert (await ask(ready.port)).startswith(b"HTTP/1.1 500 ")

    asyncio.run(main())


def test_by_default_it_is_well_while_the_last_tick_is_younger_than_two_poll_intervals() -> None:
    async def main() -> None:
        clock = VirtualClock()
        app = Pyncette(MemoryRepository(), poll_interval=timedelta(seconds=10), clock=clock)
        async with app.create() as context:
            assert await default_healthcheck(context)
            await clock.advance(timedelta(seconds=20) - timedelta(microseconds=1))
            assert await default_healthcheck(context)
            await clock.advance(timedelta(microseconds=1))
            assert not await default_healthcheck(context)

    asyncio.run(main())


def test_a_loop_that_runs_is_well_and_one_whose_store_is_down_is_not() -> None:
    async def main() -> None:
        clock = VirtualClock()
        faults = Faults()
        app = Pyncette(faulty(MemoryRepository(), faults), clock=clock)
        server = use_healthcheck_server(app, 0, HERE)
        async with app.create() as context:
            running = asyncio.create_task(context.run())
            await clock.advance(timedelta(hours=1))
            assert (await ask(server.port)).startswith(b"HTTP/1.1 200 ")
            with faults.down():
                await clock.advance(timedelta(seconds=10))
                assert (await ask(server.port)).startswith(b"HTTP/1.1 500 ")
            await clock.advance(timedelta(seconds=10))
            assert (await ask(server.port)).startswith(b"HTTP/1.1 200 ")
            context.shutdown()
            await running

    asyncio.run(main())
