"""A server that is not there: what is raised is of a class that users know."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from tests.stores.dynamodb_place import set_credentials
from tests.stores.listening import listening

from pyncette import Pyncette
from pyncette.errors import StoreError, StoreUnavailableError

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://{NOBODY}",
        f"redis+sentinel://{NOBODY}/service",
        f"redis+cluster://{NOBODY}",
        f"postgresql://u:p@{NOBODY}/d",
        f"mysql://u:p@{NOBODY}/d",
    ],
)
def test_a_server_out_of_reach_raises_a_public_class(url: str) -> None:
    async def main() -> None:
        async with Pyncette(url=url, open_timeout=0).create():
            pass

    with pytest.raises(StoreUnavailableError) as caught:
        asyncio.run(main())
    assert type(caught.value) is StoreUnavailableError


def test_dynamodb_out_of_reach_raises_a_public_class(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")

    async def main() -> None:
        url = "dynamodb://eu-west-1/table"
        app = Pyncette(url=url, dynamodb_endpoint=f"http://{NOBODY}", open_timeout=0)
        async with app.create():
            pass

    with pytest.raises(StoreUnavailableError) as caught:
        asyncio.run(main())
    assert type(caught.value) is StoreUnavailableError


def test_a_file_that_cannot_be_opened_raises_a_public_class(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "missing" / "tasks.db"
        async with Pyncette(url=f"sqlite:///{path}", open_timeout=0).create():
            pass

    with pytest.raises(StoreError) as caught:
        asyncio.run(main())
    assert type(caught.value).__module__ == "pyncette.errors"


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "redis", "dynamodb"])
def test_a_server_that_accepts_connections_and_is_silent_is_given_up_in_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)

    async def main() -> None:
        async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.CancelledError):
                while await reader.read(65536):
                    pass
            writer.close()

        async with listening(stay_silent) as port:
            url = f"{kind}://user:word@127.0.0.1:{port}/0"
            if kind == "dynamodb":
                url = f"dynamodb://us-east-1/tasks?endpoint=http://127.0.0.1:{port}"
            with pytest.raises(StoreUnavailableError, match=r"not opened within 0\.7 s"):
                async with Pyncette(url=url, open_timeout=0.7).create():
                    pass

    asyncio.run(main())
