"""Which store a URL names: ``Pyncette(url="postgresql://…")``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

_STORE_OF: Final = {
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
    "redis": "redis",
    "rediss": "redis",
    "dynamodb": "dynamodb",
}
"""The store by the scheme of the URL, without what follows a plus sign."""

_FORMS: Final = (
    "sqlite:///file, sqlite:// (in memory), postgresql://…, mysql://…, redis://…, "
    "redis+sentinel://…, redis+cluster://… or dynamodb://region/table"
)


class NamedStore(NamedTuple):
    """The store that a URL names.

    Attributes:
        factory: Opens it.
        options: The options that the URL stands for.
    """

    factory: Callable[..., AbstractAsyncContextManager[Any]]
    options: dict[str, Any]


def store_named_by(url: str) -> NamedStore:
    """Returns the store that a URL names. The URL itself is read by that store when it opens.

    Messages do not quote the URL, because it may hold a password.

    Raises:
        ValueError: It names no store.
        TypeError: It is not a string.
        ImportError: The driver of the store is not installed.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a string such as {_FORMS}, not {type(url).__name__}")
    scheme, divided, rest = url.partition("://")
    store, _, kind = scheme.partition("+")
    name = _STORE_OF.get(store.lower())
    if name is None or not divided:
        raise ValueError(f"url must be {_FORMS}" + (f", not {scheme}://…" if divided else ""))
    if kind and name != "redis":
        raise ValueError(
            f"url names a driver ({scheme}://): each store has one driver, so write {store}://"
        )
    options = {"sqlite": _sqlite, "dynamodb": _dynamodb}.get(name, _handed_on(name))(url)
    if name == "mysql":
        options["mysql_url"] = f"mysql://{rest}"
    try:
        module = import_module(f"pyncette.{name}")
    except ImportError as error:
        raise ImportError(
            f"The driver of {name} is not installed ({error}): pip install 'pyncette[{name}]'"
        ) from error
    return NamedStore(getattr(module, f"{name}_repository"), options)


def _handed_on(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda url: {f"{name}_url": url}


def _sqlite(url: str) -> dict[str, Any]:
    """``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://``: as SQLAlchemy does."""
    rest = url.partition("://")[2]
    if rest and not rest.startswith("/"):
        raise ValueError(
            "url of a SQLite file has three slashes before a relative path and four before an "
            f"absolute one: sqlite:///tasks.db, sqlite:////var/lib/tasks.db; not sqlite://{rest}"
        )
    if "?" in rest:
        raise ValueError("url of a SQLite file has no options: pass sqlite_synchronous= instead")
    return {"sqlite_database": unquote(rest[1:]) or ":memory:"}


def _dynamodb(url: str) -> dict[str, Any]:
    """``dynamodb://region/table``; the region may be left out; ``?endpoint=http://host:port``."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint = query.pop("endpoint", None)
    table = parts.path.strip("/")
    if query or not table or "/" in table:
        raise ValueError(
            "url of a DynamoDB table must be dynamodb://region/table or dynamodb:///table, and may "
            "end in ?endpoint=http://host:port"
        )
    options: dict[str, Any] = {"dynamodb_table_name": table}
    if parts.netloc:
        options["dynamodb_region_name"] = parts.netloc
    if endpoint is not None:
        options["dynamodb_endpoint"] = endpoint
    return options
