"""Tables of their own for tests on DynamoDB, and requests made beside the store."""

from __future__ import annotations

import http.client
import json
import secrets
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from pyncette.dynamodb import dynamodb_repository
from pyncette.store import Identity
from pyncette.testing.conformance import Place

REGION = "eu-west-1"

_HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    # DynamoDB Local wants a signature, and looks at none.
    "Authorization": f"AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/dynamodb/aws4_request, "
    "SignedHeaders=host, Signature=none",
}


RESTING_MIN = 8
"""So many tables were deleted after one before its name is used again."""

_resting: deque[str] = deque()
"""Names of tables that were deleted. DynamoDB Local forgets no name: with a thousand of them, to
create and delete a table takes it twenty times as long."""


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that DynamoDB Local takes, as it does any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def new_table() -> str:
    """A name that no other test has; with all that such a name may hold."""
    return f"test-{secrets.token_hex(6)}_a.B"


def request(url: str, operation: str, **parameters: Any) -> Any:
    """The answer to a request made without a client, which would take a tenth of a second."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        headers = {**_HEADERS, "X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        connection.request("POST", "/", json.dumps(parameters), headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def edit(url: str, place: Place, identity: Identity, column: str, value: Any) -> bool:
    """Sets an attribute of an item; False where DynamoDB refuses the value."""
    group, key = identity
    change: dict[str, Any] = {
        "TableName": place.configuration["dynamodb_table_name"],
        "Key": {"group": {"S": f":{group}"}, "key": {"S": key}},
        "ExpressionAttributeNames": {"#column": column},
        "UpdateExpression": "REMOVE #column",
    }
    if value is not None:
        change["UpdateExpression"] = "SET #column = :value"
        change["ExpressionAttributeValues"] = {":value": _attribute(value)}
    answer = request(url, "UpdateItem", **change)
    assert "__type" not in answer or "ValidationException" in answer["__type"], answer
    return "__type" not in answer


def _attribute(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int | float):
        return {"N": str(value)}
    if isinstance(value, bytes):
        return {"B": b64encode(value).decode()}
    return {"S": value}


@contextmanager
def place_at(url: str, behind: str | None = None, **more: Any) -> Iterator[Place]:
    """An empty place; its table is dropped afterwards.

    Args:
        url: Of the service.
        behind: What to connect to in its place.
        more: Options.
    """
    table = _resting.popleft() if len(_resting) >= RESTING_MIN else new_table()
    options = {
        "dynamodb_endpoint": behind or url,
        "dynamodb_region_name": REGION,
        "dynamodb_table_name": table,
    }
    yield Place(dynamodb_repository, {**options, **more})
    for name in (f"{table}-runs", table):
        answer = request(url, "DeleteTable", TableName=name)
    if "TableDescription" in answer:
        _resting.append(table)
