"""A proxy before DynamoDB that does what no server here does on demand.

It can turn requests away, lose them or their answers, keep them waiting, and show an index that
lags. It runs in a thread and an event loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What is answered to a request."""

    status: int
    body: Any
    date: str


class Call(NamedTuple):
    """A request on its way.

    Attributes:
        operation: Such as ``Query``.
        body: Its parameters.
        forward: Makes it, or another one with these parameters, and returns the answer.
    """

    operation: str
    body: dict[str, Any]
    forward: Callable[..., Awaitable[Answer]]


Behaviour = Callable[[Call], Awaitable[Answer | None]]
"""What becomes of a request: its answer, or None where the connection breaks."""


async def honest(call: Call) -> Answer | None:
    """Passes everything on."""
    return await call.forward()


def error(code: str, status: int = 400) -> Answer:
    """An answer that is an error of the service."""
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "not now"}
    return Answer(status, body, "Tue, 24 Nov 2026 16:00:00 GMT")


class Proxy:
    """Set ``behaviour`` at any time.

    Attributes:
        url: Where it listens.
        behaviour: What it does with requests.
        calls: The operations that it was asked for.
        open_connections: How many clients are connected.
        closed: It has ended.
        serving: The tasks that serve connections.
    """

    def __init__(self, target: str) -> None:
        self.url = ""
        self.behaviour: Behaviour = honest
        self.calls: list[str] = []
        self.open_connections = 0
        self.closed = False
        # The event loop refers to its tasks only weakly: one whose connection has ended by then
        # could be collected while it waits.
        self.serving: set[asyncio.Task[None]] = set()
        parts = urlsplit(target)
        self._target = parts.hostname or "", parts.port or 80

    async def serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Handles one connection."""
        if self.closed:
            # Accepted before the end, and served after it: nobody would cancel this task.
            answers.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        self.open_connections += 1
        try:
            upstream = await asyncio.open_connection(*self._target)
        except BaseException:
            answers.close()
            raise
        try:
            while head := await _head(client):
                body = await client.readexactly(_length(head))
                await self._handle(head, body, upstream, answers)
        except (OSError, asyncio.IncompleteReadError, _LostError):
            pass
        finally:
            self.open_connections -= 1
            upstream[1].close()
            answers.close()

    async def _handle(
        self,
        head: bytes,
        body: bytes,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        answers: asyncio.StreamWriter,
    ) -> None:
        reader, writer = upstream

        async def forward(parameters: dict[str, Any] | None = None) -> Answer:
            sent = body if parameters is None else json.dumps(parameters).encode()
            writer.write(_with_length(head, len(sent)) + sent)
            await writer.drain()
            answered = await _head(reader)
            content = await _content(reader, answered)
            status = int(answered.split(b" ", 2)[1])
            return Answer(status, json.loads(content), _header(answered, b"date"))

        operation = _header(head, b"x-amz-target").rpartition(".")[2]
        self.calls.append(operation)
        answer = await self.behaviour(Call(operation, json.loads(body), forward))
        if answer is None:
            raise _LostError
        body_is_text = isinstance(answer.body, str)
        content = (answer.body if body_is_text else json.dumps(answer.body)).encode()
        lines = [
            f"HTTP/1.1 {answer.status} Answered",
            f"Date: {answer.date}",
            "Content-Type: application/x-amz-json-1.0",
            f"Content-Length: {len(content)}",
        ]
        answers.write("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content)
        await answers.drain()


class _LostError(Exception):
    """The connection is to break."""


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to the empty line; nothing at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def _content(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if _header(head, b"transfer-encoding") != "chunked":
        return await reader.readexactly(_length(head))
    content = b""
    while length := int(await reader.readline(), 16):
        content += await reader.readexactly(length)
        await reader.readline()
    await reader.readline()
    return content


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name + b":"):
            return line.partition(b":")[2].strip().decode()
    return ""


def _length(head: bytes) -> int:
    return int(_header(head, b"content-length") or 0)


def _with_length(head: bytes, length: int) -> bytes:
    lines = [line for line in head.split(b"\r\n") if line and not _is_length(line)]
    return b"\r\n".join([*lines, b"Content-Length: %d" % length, b"", b""])


def _is_length(line: bytes) -> bool:
    return line.lower().startswith(b"content-length:")


@contextmanager
def proxy_before(target: str) -> Iterator[Proxy]:
    """A proxy that passes everything on, until it is told otherwise."""
    proxy = Proxy(target)
    started, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 24)
        host, port = server.sockets[0].getsockname()
        proxy.url = f"http://{host}:{port}"
        loops.append(asyncio.get_running_loop())
        started.set()
        await ended.wait()
        proxy.closed = True
        server.close()
        mine = asyncio.current_task()
        # A connection that was just accepted is served by a task that is made in a later pass.
        for _ in range(10):
            await asyncio.sleep(0)
            serving = [task for task in asyncio.all_tasks() if task is not mine]
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="proxy", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(60)
        assert not thread.is_alive()


class LaggingIndex:
    """A behaviour: an index shows of each of its keys what it held some queries ago.

    Args:
        queries: So many are answered from one look at a key of an index.
    """

    def __init__(self, queries: int) -> None:
        self._queries = queries
        self._left: dict[str, int] = {}
        self._seen: dict[str, list[dict[str, Any]]] = {}

    def catch_up(self) -> None:
        """The next query of each key sees the index as it is."""
        self._left = {}

    async def __call__(self, call: Call) -> Answer | None:
        if call.operation != "Query" or "IndexName" not in call.body:
            return await call.forward()
        values = call.body["ExpressionAttributeValues"]
        name = "rare" if call.body["IndexName"] == "rare" else "group"
        place = f"{name} {values[f':{name}']['S']}"
        left = self._left.get(place, 0)
        if not left:
            self._seen[place] = await self._look(call, name)
            left = self._queries
        self._left[place] = left - 1
        if name == "rare":
            return Answer(200, _of_rare(call.body, self._seen[place]), "")
        since = int(values.get(":since", {"N": "-1" + "0" * 20})["N"])
        before = int(values.get(":before", {"N": "1" + "0" * 20})["N"])
        items = [item for item in self._seen[place] if since <= _instant(item) <= before]
        if ":due_before" in values:
            due_before = int(values[":due_before"]["N"])
            items = [item for item in items if _instant(item) < due_before]
        # What the index gave up meanwhile, DynamoDB would still list.
        items = items[: call.body["Limit"]]
        counts = {"Count": len(items), "ScannedCount": len(items)}
        return Answer(200, {"Items": items, **counts}, "")

    async def _look(self, call: Call, name: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        values = call.body["ExpressionAttributeValues"]
        while True:
            answer = await call.forward(
                {
                    "TableName": call.body["TableName"],
                    "IndexName": call.body["IndexName"],
                    "KeyConditionExpression": "#name = :name",
                    "ExpressionAttributeNames": {"#name": name},
                    "ExpressionAttributeValues": {":name": values[f":{name}"]},
                    **more,
                }
            )
            items += answer.body["Items"]
            if "LastEvaluatedKey" not in answer.body:
                return items
            more = {"ExclusiveStartKey": answer.body["LastEvaluatedKey"]}


def _of_rare(body: dict[str, Any], seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a query of the index of rare states that shows these items."""
    values = body["ExpressionAttributeValues"]
    prefix = values.get(":prefix", {"S": ""})["S"]
    before = values.get(":due_before")
    after = body.get("ExclusiveStartKey", {"key": {"S": ""}})["key"]["S"].encode()
    left = [
        item
        for item in seen
        if item["key"]["S"].startswith(prefix) and item["key"]["S"].encode() > after
    ]
    examined = left[: body["Limit"]]
    items = [
        item
        for item in examined
        if item["state"] == values[":state"]
        and (before is None or ("due_at" in item and _instant(item) < int(before["N"])))
    ]
    answer = {"Items": items, "Count": len(items), "ScannedCount": len(examined)}
    if len(left) > len(examined):
        answer["LastEvaluatedKey"] = {name: examined[-1][name] for name in ("rare", "group", "key")}
    return answer


def _instant(item: dict[str, Any]) -> Decimal:
    """When an item of the index is due; DynamoDB Local lists even what has no number there."""
    return Decimal(item["due_at"].get("N", "Infinity"))
