"""The store in an Amazon DynamoDB table.

This module reads the options, opens the client and the table, and divides the connections. Claims
and outcomes of runs have connections of their own, so that they never wait for calls of users. The
layout and the requests are in ``pyncette.dynamodb.table``, errors and retries are in
``pyncette.dynamodb.requests``, the logic of a claim in ``pyncette.store.cas``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from pyncette.clock import SystemClock, realtime
from pyncette.dynamodb.clock import WIDTH_GOOD, DateClock
from pyncette.dynamodb.history import TABLE_NAME_CHARACTERS_MAX as HISTORY_NAME_CHARACTERS_MAX
from pyncette.dynamodb.history import DynamoHistory, history_definition
from pyncette.dynamodb.rare import DENIED, LOOK_AT_ALL, addition
from pyncette.dynamodb.rare import INDEX as RARE_INDEX
from pyncette.dynamodb.requests import Requests, open_client, place_of, repeats_by_itself
from pyncette.dynamodb.table import (
    DynamoTable,
    RecordTooLargeError,
    RefusedValueError,
    definition,
    describe_foreign_table,
    has_layout,
    has_rare_index,
    size_error,
)
from pyncette.errors import StoreError, StoreMisconfiguredError
from pyncette.options import check_flag, whole_number
from pyncette.store import (
    Claimed,
    Counted,
    Failed,
    Filter,
    Identity,
    Page,
    Result,
    Source,
    Unknown,
    WakeCallback,
    Write,
)
from pyncette.store.absent import NothingThereError
from pyncette.store.cas import CasStore
from pyncette.store.record import CONTROL_GROUP, Record

logger: Final = logging.getLogger(__name__)

READY_PAUSE_S: Final = 0.2
"""Pause before the state of a table that is being created is read again."""

INDEX_WAIT_S: Final = 2.0
"""How long opening waits for an index of rare states that is added to a table. The service may take
minutes for that; until then, lists by state are made without it."""

POOL_SIZE_MIN: Final = 3
"""One connection each for claims, for the outcomes of runs, and for calls of users."""

PREFIX_BYTES_MAX: Final = 256

NARROWING_MAX: Final = 12
"""Maximum readings of the server's clock in a row; half as many are usually enough."""

_NOT_ADDED: Final = DENIED | {
    "LimitExceededException",
    "ResourceInUseException",
    "ValidationException",
}
"""Errors of a request that adds an index; without it, the store works all the same."""

_TABLE_NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}", re.ASCII)
_CLOCK: Final = (CONTROL_GROUP, ":clock")
"""A record that never exists; reading it returns the server's clock."""


@dataclass(frozen=True)
class DynamoDBOptions:
    """The options of the store.

    Attributes:
        table_name: The table; created if it is missing.
        region_name: The region; None: taken from the environment.
        endpoint: The URL of the service, if it is not that of the region.
        partition_prefix: Separates the records of several applications in one table.
        skip_table_create: Never create the table.
        pool_size: Maximum connections of Pyncette's own client.
        client: A client of the application, used in place of Pyncette's own.

    Raises:
        ValueError: An option is not valid.
    """

    table_name: str | None
    region_name: str | None = None
    endpoint: str | None = None
    partition_prefix: str = ""
    skip_table_create: bool = False
    pool_size: int = 30
    client: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.table_name, str) or not _TABLE_NAME.fullmatch(self.table_name):
            raise ValueError(
                f"Table name {self.table_name!r} (dynamodb_table_name) must be made of 3 to 255 "
                "letters, digits, underscores, hyphens and dots"
            )
        if self.region_name is not None and (
            not isinstance(self.region_name, str) or not self.region_name
        ):
            raise ValueError(
                f"dynamodb_region_name must be a name such as 'eu-west-1', not {self.region_name!r}"
            )
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        prefix = self.partition_prefix
        if not isinstance(prefix, str) or len(prefix.encode()) > PREFIX_BYTES_MAX:
            raise ValueError(
                f"dynamodb_partition_prefix must be a text of at most {PREFIX_BYTES_MAX} bytes, "
                f"not {prefix!r}"
            )
        check_flag("dynamodb_skip_table_create", self.skip_table_create)
        whole_number("dynamodb_pool_size", self.pool_size, POOL_SIZE_MIN, 1_000)
        if self.client is not None and not callable(
            getattr(self.client, "batch_execute_statement", None)
        ):
            raise ValueError(
                "dynamodb_client must be a client for 'dynamodb' made by aiobotocore, not "
                f"{type(self.client).__name__}"
            )


def _check_endpoint(endpoint: Any) -> None:
    parts = urlsplit(endpoint) if isinstance(endpoint, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"dynamodb_endpoint must be a URL such as 'http://localhost:8000', not {endpoint!r}"
        )
    if parts.username is not None:
        # The message does not quote the URL, because it may contain a password.
        raise ValueError(
            "dynamodb_endpoint must not hold credentials: they are taken from the environment, "
            "as every AWS program does"
        )


@asynccontextmanager
async def dynamodb_repository(
    *,
    dynamodb_table_name: str | None = None,
    dynamodb_region_name: str | None = None,
    dynamodb_endpoint: str | None = None,
    dynamodb_partition_prefix: str = "",
    dynamodb_skip_table_create: bool = False,
    dynamodb_pool_size: int = 30,
    dynamodb_client: Any = None,
    **_ignored: Any,
) -> AsyncIterator[DynamoDBStore]:
    """Opens a store in a DynamoDB table, with the AWS credentials of the environment.

    Args:
        dynamodb_table_name: Required. The table; created with on-demand billing if it is missing.
        dynamodb_region_name: The region; by default taken from the environment.
        dynamodb_endpoint: The URL of the service, if it is not that of the region.
        dynamodb_partition_prefix: Prepended to every group. Applications with different prefixes
            share a table without seeing each other's records.
        dynamodb_skip_table_create: You create the table yourself, see ``table_definition``.
        dynamodb_pool_size: Maximum connections; at least 3.
        dynamodb_client: An aiobotocore client for ``dynamodb``. It stays open. The options for
            region, endpoint and pool size are then ignored.

    Raises:
        ValueError: An option is not valid.
        StoreMisconfiguredError: There are no credentials or no region, the privileges are not
            sufficient, or the table is missing or has another layout.
        StoreUnavailableError: The service cannot be reached.
    """
    options = DynamoDBOptions(
        dynamodb_table_name,
        dynamodb_region_name,
        dynamodb_endpoint,
        dynamodb_partition_prefix,
        dynamodb_skip_table_create,
        dynamodb_pool_size,
        dynamodb_client,
    )
    async with AsyncExitStack() as stack:
        client = options.client
        if client is None:
            client = await stack.enter_async_context(
                open_client(options.region_name, options.endpoint, options.pool_size)
            )
        elif repeats_by_itself(client):
            logger.warning(
                "The client given as dynamodb_client repeats calls by itself, for longer than a "
                "lease may last. Make it with Config(retries={'total_max_attempts': 1})"
            )
        store = DynamoDBStore(options, client)
        stack.push_async_callback(store.close)
        await store.open()
        yield store


def table_definition(table_name: str) -> dict[str, Any]:
    """The parameters of ``CreateTable``, for those who create the table themselves."""
    return definition(DynamoDBOptions(table_name).table_name or "")


def history_table_definition(table_name: str) -> dict[str, Any]:
    """The parameters of ``CreateTable`` for the run history.

    Have items expire by the attribute ``expires_at`` (``UpdateTimeToLive``), too.

    Args:
        table_name: The name of the table of the records.

    Raises:
        ValueError: The name is not valid, or too long.
    """
    name = DynamoDBOptions(table_name).table_name or ""
    if len(name) > HISTORY_NAME_CHARACTERS_MAX:
        raise ValueError(
            f"Table name {name!r} must have at most {HISTORY_NAME_CHARACTERS_MAX} characters, so "
            "that the name of the history's table fits"
        )
    return history_definition(name)


class DynamoDBStore:
    """See ``pyncette.store.Store``. Made by ``dynamodb_repository``.

    Attributes:
        history: The run history, see ``pyncette.store.history``.
    """

    def __init__(self, options: DynamoDBOptions, client: Any) -> None:
        self._options = options
        self._clock = DateClock(SystemClock())
        self._narrowing: asyncio.Task[None] | None = None
        self._context = copy_context()
        self._table_name = options.table_name or ""
        self._place = place_of(client, self._table_name)
        size = client.meta.config.max_pool_connections
        third = max(size // 3, 1)
        aside = max(third // 4, 1)
        of_users = max(size - 2 * third - aside, 1)
        self._requests = Requests(client, self._place, of_users, self._clock)
        self._claims = CasStore(self._part(Requests(client, self._place, third, self._clock)))
        self._outcomes = CasStore(self._part(Requests(client, self._place, third, self._clock)))
        self._table = self._part(self._requests)
        self._users = CasStore(self._table)
        self.history: DynamoHistory = DynamoHistory(
            Requests(client, self._place, aside, self._clock),
            self._table_name,
            options.partition_prefix,
            not options.skip_table_create,
        )

    def _part(self, requests: Requests) -> DynamoTable:
        """The table, with connections of its own."""
        return DynamoTable(requests, self._table_name, self._options.partition_prefix)

    async def open(self) -> None:
        """Connects to the service, and creates the table, or its index, if it is missing."""
        described = await self._described()
        if described is None:
            if self._options.skip_table_create:
                raise NothingThereError(
                    f"{self._place} does not exist, and dynamodb_skip_table_create is set. "
                    "pyncette.dynamodb.table_definition() tells how to make it."
                )
            logger.info("%s is being made", self._place)
            # Another worker may create the table at the same time.
            await self._requests.make(
                "create_table",
                tolerated=("ResourceInUseException",),
                **definition(self._table_name),
            )
        elif not has_layout(described):
            raise StoreMisconfiguredError(describe_foreign_table(described, self._place))
        elif not has_rare_index(described):
            await self._add_rare_index(described)
            described = None
        waits_until: float | None = None
        while described is None or not _is_ready(described):
            if described is not None:
                if _is_ready(described, without=RARE_INDEX):
                    waits_until = waits_until or realtime.monotonic() + INDEX_WAIT_S
                    if realtime.monotonic() >= waits_until:
                        logger.info("%s: the index '%s' is being made", self._place, RARE_INDEX)
                        break
                await realtime.sleep(READY_PAUSE_S)
            described = await self._described()

    async def _add_rare_index(self, described: dict[str, Any]) -> None:
        """Adds the index of rare states to a table that has none, if that is allowed."""
        if self._options.skip_table_create:
            reason = "dynamodb_skip_table_create is set"
        else:
            logger.info("%s: the index '%s' is added", self._place, RARE_INDEX)
            answer = await self._requests.make(
                "update_table", tolerated=_NOT_ADDED, **addition(described)
            )
            error = answer.get("Error", {})
            # In use: another worker may be adding it.
            if error.get("Code", "ResourceInUseException") == "ResourceInUseException":
                return
            message = error.get("Message", "").partition("\n")[0]
            reason = f"{error['Code']}: {message}"
        logger.warning(
            "%s has no index '%s', and it was not added (%s). Without it, %s. "
            "pyncette.dynamodb.table_definition() tells how to make it",
            self._place,
            RARE_INDEX,
            reason,
            LOOK_AT_ALL,
        )

    async def _described(self) -> dict[str, Any] | None:
        answer = await self._requests.make(
            "describe_table",
            tolerated=("ResourceNotFoundException",),
            TableName=self._table_name,
        )
        described: dict[str, Any] | None = answer.get("Table")
        return described

    async def close(self) -> None:
        """Ends the background task. The client is not closed: the caller opened it."""
        if self._narrowing is not None:
            self._narrowing.cancel()
            await asyncio.wait([self._narrowing])

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        # PartiQL cannot read the server's clock, so ``bounded`` is ignored. ``now`` is never later
        # than the server's clock.
        return await self._claims.claim(
            sources, limit, now, token, repeated, unfinished_max=unfinished_max
        )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        # An outcome has a token, and may be larger: an item has room for what a run adds.
        too_large = {
            at: error
            for at, write in enumerate(batch)
            if write.token is None and (error := size_error(write)) is not None
        }
        settles = any(write.token is not None for write in batch)
        part = self._outcomes if settles else self._users
        if not too_large:
            return await part.write(batch, now)
        fitting = [write for at, write in enumerate(batch) if at not in too_large]
        try:
            written = await part.write(fitting, now)
        except StoreError as error:
            written = [Unknown(error)] * len(fitting)
        results = iter(written)
        return [
            Failed(too_large[at]) if at in too_large else next(results) for at in range(len(batch))
        ]

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._users.get(identities)

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._users.scan(group, where, cursor, limit)

    async def shortcomings(self) -> list[str]:
        """See ``pyncette.store.Store``."""
        error = await self._table.rare_index_error()
        if error is None:
            return []
        return [f"the index '{RARE_INDEX}' cannot be used ({error}): {LOOK_AT_ALL}"]

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await self._table.count(group, where, limit)

    @property
    def now_uncertainty(self) -> int:
        """How far ahead of ``now`` the server's clock may be, in microseconds."""
        return self._clock.width

    async def now(self) -> int | None:
        """The earliest instant that the server's clock may show: see ``DateClock``."""
        await self._claims.get([_CLOCK])
        if self._clock.width > WIDTH_GOOD and (self._narrowing is None or self._narrowing.done()):
            # Not in the caller's context, because this task outlives the call.
            self._narrowing = self._context.run(
                asyncio.create_task, self._narrow(), name="pyncette store's clock"
            )
        return self._clock.now()

    async def _narrow(self) -> None:
        """Reads the server's clock at the most useful moments, until it is known well enough."""
        try:
            for _ in range(NARROWING_MAX):
                if self._clock.width <= WIDTH_GOOD:
                    return
                await realtime.sleep(self._clock.next_telling())
                await self._claims.get([_CLOCK])
        except StoreError as error:
            logger.debug("The server's clock cannot be seen for now: %s", error)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> None:
        return None


def _is_ready(described: dict[str, Any], without: str | None = None) -> bool:
    """Whether table and indexes can be used; they can also be used while they are being changed.

    Args:
        described: The table, as described by the service.
        without: An index that is not looked at.
    """
    statuses = [described["TableStatus"]]
    statuses += [
        index["IndexStatus"]
        for index in described.get("GlobalSecondaryIndexes", ())
        if index["IndexName"] != without
    ]
    return all(status in ("ACTIVE", "UPDATING") for status in statuses)


__all__ = [
    "DynamoDBOptions",
    "DynamoDBStore",
    "RecordTooLargeError",
    "RefusedValueError",
    "dynamodb_repository",
    "history_table_definition",
    "table_definition",
]
