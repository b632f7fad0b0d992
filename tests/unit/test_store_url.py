"""``Pyncette(url=…)``: which store a URL names, and with which options."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pyncette import Context, Pyncette
from pyncette.dynamodb import dynamodb_repository
from pyncette.mysql import mysql_repository
from pyncette.postgres import postgres_repository
from pyncette.redis import redis_repository
from pyncette.sqlite import sqlite_repository
from pyncette.store_url import store_named_by


@pytest.mark.parametrize(
    ("url", "factory", "options"),
    [
        ("sqlite://", sqlite_repository, {"sqlite_database": ":memory:"}),
        ("sqlite:///", sqlite_repository, {"sqlite_database": ":memory:"}),
        ("sqlite:///tasks.db", sqlite_repository, {"sqlite_database": "tasks.db"}),
        ("sqlite:////var/a%20b.db", sqlite_repository, {"sqlite_database": "/var/a b.db"}),
        ("postgres://u@h/d", postgres_repository, {"postgres_url": "postgres://u@h/d"}),
        ("postgresql://u@h/d?x=1", postgres_repository, {"postgres_url": "postgresql://u@h/d?x=1"}),
        ("mysql://u:p@h/d", mysql_repository, {"mysql_url": "mysql://u:p@h/d"}),
        ("mariadb://u:p@h/d", mysql_repository, {"mysql_url": "mysql://u:p@h/d"}),
        ("redis://h/1", redis_repository, {"redis_url": "redis://h/1"}),
        ("rediss+cluster://h,i", redis_repository, {"redis_url": "rediss+cluster://h,i"}),
        ("redis+sentinel://h/s/1", redis_repository, {"redis_url": "redis+sentinel://h/s/1"}),
        (
            "dynamodb://eu-west-1/tasks",
            dynamodb_repository,
            {"dynamodb_region_name": "eu-west-1", "dynamodb_table_name": "tasks"},
        ),
        (
            "dynamodb:///tasks?endpoint=http://localhost:8000",
            dynamodb_repository,
            {"dynamodb_table_name": "tasks", "dynamodb_endpoint": "http://localhost:8000"},
        ),
    ],
)
def test_a_url_names_a_store_and_its_options(
    url: str, factory: object, options: dict[str, object]
) -> None:
    assert store_named_by(url) == (factory, options)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tasks.db", "url must be sqlite:///file"),
        ("mongodb://u:secret@h", "not mongodb://…"),
        ("postgresql+asyncpg://u:secret@h/d", "write postgresql://"),
        ("sqlite://tasks.db", "three slashes"),
        ("sqlite:///tasks.db?mode=ro", "no options"),
        ("dynamodb://eu-west-1", "dynamodb://region/table"),
        ("dynamodb://eu-west-1/a/b", "dynamodb://region/table"),
        ("dynamodb:///tasks?secret=1", "dynamodb://region/table"),
    ],
)
def test_a_url_that_names_no_store_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Pyncette(url=url)
    assert "secret" not in str(caught.value)


def test_a_url_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"url must be a string.*not PosixPath"):
        Pyncette(url=Path("/tmp"))  # type: ignore[arg-type]


def test_a_url_says_it_alone() -> None:
    with pytest.raises(TypeError, match="either url or repository_factory"):
        Pyncette(sqlite_repository, url="sqlite://")
    with pytest.raises(ValueError, match="url says already what sqlite_database would say"):
        Pyncette(url="sqlite:///a.db", sqlite_database="b.db")


def test_other_options_of_the_store_may_be_given_besides(tmp_path: Path) -> None:
    database = tmp_path / "tasks.db"

    async def main() -> None:
        app = Pyncette(url=f"sqlite:///{database}", sqlite_table_name="mine")

        @app.dynamic_task()
        async def job(context: Context) -> None: ...

        async with app.create() as context:
            await context.schedule_task(job, "a", interval=60)

    asyncio.run(main())
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT key FROM mine WHERE key = 'a'").fetchall() == [("a",)]


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("pyncette.postgres")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ImportError, match=r"pip install 'pyncette\[postgres\]'"):
        Pyncette(url="postgresql://u@h/d")
