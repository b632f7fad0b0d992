"""Tables of their own for tests on DynamoDB, and requests made beside the store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from aiobotocore.session import get_session

from pyncette.dynamodb import dynamodb_repository
from pyncette.testing.conformance import Place

REGION = "eu-west-1"

_Answer = TypeVar("_Answer")


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that DynamoDB Local takes, as it does any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def new_table() -> str:
    """A name that no other test has; with all that such a name may hold."""
    return f"test-{secrets.token_hex(6)}_a.B"


def request(url: str, call: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
    """Does something with a client of its own."""

    async def main() -> _Answer:
        async with get_session().create_client(
            "dynamodb",
            region_name=REGION,
            endpoint_url=url,
            aws_access_key_id="test",
            aws_secret_access_key="test-secret",
        ) as client:
            return await call(client)

    return asyncio.run(main())


def drop(url: str, table: str) -> None:
    """Removes a table, if it is there."""

    async def call(client: Any) -> None:
        try:
            await client.delete_table(TableName=table)
        except client.exceptions.ResourceNotFoundException:
            return

    request(url, call)


@contextmanager
def place_at(url: str, **more: Any) -> Iterator[Place]:
    """An empty place; its table is dropped afterwards."""
    table = new_table()
    options = {
        "dynamodb_endpoint": url,
        "dynamodb_region_name": REGION,
        "dynamodb_table_name": table,
    }
    yield Place(dynamodb_repository, {**options, **more})
    drop(url, table)
