"""The options of the Redis store, and the parsing of its URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, SSLConnection, parse_url

from pyncette.options import whole_number
from pyncette.redis.connection import Dialer

POOL_SIZE_MIN: Final = 3
POOL_SIZE: Final = 10
NAMESPACE_BYTES_MAX: Final = 500
_TIMEOUT_MAX_S: Final = 3_600.0

_SCHEMES: Final = re.compile(r"(redis|rediss|unix)(?:\+(sentinel|cluster))?://", re.ASCII)
_SCHEMES_TOLD: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or "
    "rediss+cluster://"
)
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\[\]:,\s]+)(?::(?P<port>\d{1,5}))?")
# Options of redis-py's pools that a URL may contain. The pools are not used.
_OF_POOLS: Final = ("max_connections", "timeout")


class Target(NamedTuple):
    """Where to connect, and how.

    Attributes:
        kind: ``single``, ``sentinel`` or ``cluster``.
        addresses: Keyword arguments of a connection: of the server, the sentinels, some nodes.
        dialer: Opens connections to servers.
        sentinel_dialer: Opens connections to sentinels.
        service: The name of the service at the sentinels.
        database: The number of the database.
        pool_size: Maximum connections to one server.
        remap: Translates a node's own address to the address that reaches it from here.
    """

    kind: str
    addresses: list[dict[str, Any]]
    dialer: Dialer
    sentinel_dialer: Dialer
    service: str
    database: int
    pool_size: int
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None


@dataclass(frozen=True)
class RedisOptions:
    """The options of the store.

    Attributes:
        url: The address of the server, the sentinels or the nodes of a cluster.
        namespace: Separates applications on one server.
        timeout_s: Seconds within which a connection is opened and a call is answered.
        pool_size: Maximum connections to one server, besides one that listens.
        wait_replicas: How many replicas must confirm each write.
        client: A client of the application, instead of a URL.

    Raises:
        ValueError: An option is not valid.
    """

    url: str | None = field(repr=False)
    namespace: str = ""
    timeout_s: float | None = None
    pool_size: int | None = None
    wait_replicas: int = 0
    client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_namespace(self.namespace)
        if self.timeout_s is not None:
            seconds = self.timeout_s
            if (
                not isinstance(seconds, int | float)
                or isinstance(seconds, bool)
                or not 0 < seconds <= _TIMEOUT_MAX_S
            ):
                raise ValueError(
                    "redis_timeout must be a number of seconds greater than 0 and at most "
                    f"{_TIMEOUT_MAX_S:g}, or a timedelta, not {seconds!r}"
                )
        if self.pool_size is not None:
            whole_number("redis_pool_size", self.pool_size, POOL_SIZE_MIN, 1_000)
        whole_number("redis_wait_replicas", self.wait_replicas, 0, 100)
        self.target()

    def target(self) -> Target:
        """Returns where to connect, and how.

        Raises:
            ValueError: The URL or the client is not valid.
        """
        return self._target_of_client() if self.client is not None else self._target_of_url()

    def _target_of_client(self) -> Target:
        client = self.client
        if isinstance(client, RedisCluster):
            arguments = dict(client.connection_kwargs)
            nodes = client.nodes_manager.startup_nodes.values()
            addresses = [{"host": node.host, "port": node.port} for node in nodes]
            connection_class = arguments.pop("connection_class", Connection)
            for name in (*_OF_POOLS, "response_callbacks", "host", "port"):
                arguments.pop(name, None)
            dialer = Dialer(connection_class, arguments, self.timeout_s)
            made = self._made("cluster", addresses, dialer, dialer, "", 0)
            return made._replace(remap=getattr(client.nodes_manager, "address_remap", None))
        pool = getattr(client, "connection_pool", None)
        connection_class = getattr(pool, "connection_class", None)
        if pool is None or connection_class is None or not hasattr(client, "aclose"):
            raise ValueError(
                "redis_client must be a redis.asyncio.Redis or a redis.asyncio.RedisCluster, not "
                f"{type(client).__module__}.{type(client).__qualname__}"
            )
        arguments = dict(pool.connection_kwargs)
        address: dict[str, Any] = {
            name: arguments.pop(name) for name in ("host", "port", "path") if name in arguments
        }
        dialer = Dialer(connection_class, arguments, self.timeout_s)
        return self._made("single", [address], dialer, dialer, "", arguments.get("db") or 0)

    def _target_of_url(self) -> Target:
        url = self.url
        scheme = _SCHEMES.match(url) if isinstance(url, str) else None
        if not isinstance(url, str) or scheme is None:
            # The message does not quote the URL, because it may contain a password.
            raise ValueError(
                f"redis_url must be a URL that begins with {_SCHEMES_TOLD}"
                + ("" if isinstance(url, str) else f", not {url!r}")
            )
        try:
            return self._read_url(scheme[1], scheme[2], url[scheme.end() :])
        except (ValueError, TypeError) as error:
            # Raised from None, with its own text: messages of libraries quote the URL.
            reason = error.args[0] if type(error) is _UrlError else "it cannot be read"
            raise ValueError(f"redis_url makes no sense: {reason}") from None

    def _read_url(self, scheme: str, kind: str | None, rest: str) -> Target:
        if kind is None:
            named = unquote(rest.partition("?")[0].partition("/")[2].strip("/"))
            if scheme != "unix" and not re.fullmatch("[0-9]*", named):
                raise _UrlError("its database is not a number")  # else it would be database 0
            arguments: dict[str, Any] = dict(parse_url(f"{scheme}://{rest}"))
            address: dict[str, Any] = {
                name: arguments.pop(name) for name in ("host", "port", "path") if name in arguments
            }
            connection_class = arguments.pop("connection_class", Connection)
            return self._from_arguments("single", [address], connection_class, arguments, "")
        if scheme == "unix":
            raise _UrlError(f"there is no {kind} behind a unix socket")
        # Not urlsplit: newer releases of Python refuse an IPv6 address behind another host.
        location, _, query = rest.partition("#")[0].partition("?")
        network, _, names = location.partition("/")
        credentials, at, hosts = network.rpartition("@")
        path = [unquote(part) for part in names.strip("/").split("/") if part]
        service = ""
        if kind == "sentinel":
            if not path:
                raise _UrlError(
                    "it does not name the service: redis+sentinel://host,host/service/database"
                )
            service = path.pop(0)
        if len(path) > 1 or (path and not re.fullmatch("[0-9]+", path[0])):
            raise _UrlError("its database is not a number")
        database = path[0] if path else "0"
        if kind == "cluster" and int(database):
            raise _UrlError("a cluster has no other database than 0")
        options = f"?{query}" if query else ""
        arguments = dict(parse_url(f"{scheme}://{credentials}{at}host/{database}{options}"))
        arguments.pop("host")
        connection_class = arguments.pop("connection_class", Connection)
        port = 26_379 if kind == "sentinel" else 6_379
        addresses = [_address(text, port) for text in hosts.split(",")]
        return self._from_arguments(kind, addresses, connection_class, arguments, service)

    def _from_arguments(
        self,
        kind: str,
        addresses: list[dict[str, Any]],
        connection_class: type[Any],
        arguments: dict[str, Any],
        service: str,
    ) -> Target:
        size = arguments.pop("max_connections", None)
        for name in _OF_POOLS:
            arguments.pop(name, None)
        of_sentinels = {
            name: arguments.pop(f"sentinel_{name}", None) for name in ("username", "password")
        }
        if connection_class is SSLConnection:
            arguments.setdefault("ssl_check_hostname", True)
        dialer = Dialer(connection_class, arguments, self.timeout_s)
        common = {
            name: value
            for name, value in arguments.items()
            if name not in ("username", "password", "db")
        }
        sentinel_dialer = Dialer(connection_class, {**common, **of_sentinels}, self.timeout_s)
        try:
            dialer.make(addresses[0])
        except TypeError as error:
            found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            raise _UrlError(
                f"there is no option '{found[1]}'" if found else "its options do not fit"
            ) from None
        return self._made(
            kind, addresses, dialer, sentinel_dialer, service, arguments.get("db") or 0, size
        )

    def _made(
        self,
        kind: str,
        addresses: list[dict[str, Any]],
        dialer: Dialer,
        sentinel_dialer: Dialer,
        service: str,
        database: int,
        size: int | None = None,
    ) -> Target:
        size = self.pool_size or max(size or POOL_SIZE, POOL_SIZE_MIN)
        return Target(kind, addresses, dialer, sentinel_dialer, service, int(database), size)


class _UrlError(ValueError):
    """An error whose text is Pyncette's own and contains no secret."""


def _address(text: str, port: int) -> dict[str, Any]:
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"] or port) > 65_535:
        raise _UrlError("its hosts must be host:port, divided by commas")
    return {"host": found["host"].strip("[]"), "port": int(found["port"] or port)}


def place_of(address: Mapping[str, Any]) -> str:
    """The name of a server for messages, without secrets."""
    if not address:
        return "Redis"
    if "path" in address:
        return f"Redis at {address['path']}"
    return f"Redis at {address.get('host', 'localhost')}:{address.get('port', 6379)}"


def seconds_of(value: timedelta | float | None) -> float | None:
    """A duration as seconds; any other value is returned as it is, and checked later."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def _check_namespace(namespace: Any) -> None:
    if not isinstance(namespace, str):
        raise ValueError(f"redis_namespace must be a text, not {namespace!r}")
    try:
        size = len(namespace.encode())
    except UnicodeEncodeError:
        raise ValueError(f"redis_namespace {namespace!r} must not hold a lone surrogate") from None
    if "\0" in namespace or size > NAMESPACE_BYTES_MAX:
        raise ValueError(
            f"redis_namespace {namespace[:40]!r} must have at most {NAMESPACE_BYTES_MAX} bytes in "
            "UTF-8, and no NUL character"
        )
