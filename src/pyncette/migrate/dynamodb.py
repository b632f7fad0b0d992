"""Reads a table of 1.x in DynamoDB; the copy goes into another table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from pyncette.clock import Clock, SystemClock
from pyncette.dynamodb import DynamoDBOptions, dynamodb_repository
from pyncette.dynamodb.clock import DateClock
from pyncette.dynamodb.requests import Requests, open_client, place_of
from pyncette.dynamodb.table import has_layout
from pyncette.migrate.copying import (
    BATCH,
    Fingerprint,
    Layout,
    MigrationError,
    mark_begun,
    mark_finished,
)
from pyncette.migrate.legacy import LegacyRow, Parent
from pyncette.store import Store

CONNECTIONS: Final = 3

_KEYS: Final = {"HASH": "partition_id", "RANGE": "task_id"}


@asynccontextmanager
async def open_source(
    *,
    dynamodb_table_name: str,
    dynamodb_region_name: str | None = None,
    dynamodb_endpoint: str | None = None,
    dynamodb_partition_prefix: str = "",
    to_table: str | None = None,
    clock: Clock,
    **_ignored: Any,
) -> AsyncIterator[DynamoDBSource]:
    """Opens a client with the AWS credentials of the environment.

    Raises:
        ValueError: An option is not valid.
        StoreError: The credentials or the region are missing.
    """
    options = DynamoDBOptions(
        dynamodb_table_name, dynamodb_region_name, dynamodb_endpoint, dynamodb_partition_prefix
    )
    if to_table is None or to_table == dynamodb_table_name:
        raise ValueError(
            "to_table must name the table that the tasks are copied to, another one than "
            f"{dynamodb_table_name!r}, which stays as it is"
        )
    new = {
        "dynamodb_table_name": to_table,
        "dynamodb_region_name": dynamodb_region_name,
        "dynamodb_endpoint": dynamodb_endpoint,
        "dynamodb_partition_prefix": dynamodb_partition_prefix,
    }
    DynamoDBOptions(to_table)
    async with open_client(dynamodb_region_name, dynamodb_endpoint, CONNECTIONS) as client:
        place = place_of(client, dynamodb_table_name)
        requests = Requests(client, place, CONNECTIONS, DateClock(SystemClock()))
        yield DynamoDBSource(options, new, place_of(client, to_table), requests, clock)


class DynamoDBSource:
    """See ``pyncette.migrate.copying.Source``."""

    def __init__(
        self,
        options: DynamoDBOptions,
        new: dict[str, Any],
        new_place: str,
        requests: Requests,
        clock: Clock,
    ) -> None:
        self.place = requests.place
        self.kept = requests.place
        self._table = options.table_name
        self._prefix = options.partition_prefix
        self._new = new
        self._new_place = new_place
        self._requests = requests
        self._clock = clock

    async def look(self) -> Layout:
        answer = await self._requests.make(
            "describe_table",
            tolerated=("ResourceNotFoundException",),
            TableName=self._table,
        )
        described = answer.get("Table")
        if described is None:
            raise MigrationError(
                f"{self.place} does not exist. Name the table of 1.x with dynamodb_table_name."
            )
        if has_layout(described):
            return Layout.TAKEN_OVER
        keys = {key["KeyType"]: key["AttributeName"] for key in described["KeySchema"]}
        if keys != _KEYS:
            raise MigrationError(
                f"{self.place} was not made by pyncette 1.x: its key is {keys}. Name the table of "
                "1.x with dynamodb_table_name."
            )
        return Layout.LEGACY

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        start: dict[str, Any] = {}
        while True:
            answer = await self._requests.make(
                "scan", TableName=self._table, ConsistentRead=True, Limit=BATCH, **start
            )
            rows = [_row(item) for item in answer["Items"] if self._is_ours(item)]
            if rows:
                yield rows
            last = answer.get("LastEvaluatedKey")
            if not last:
                return
            start = {"ExclusiveStartKey": last}

    def _is_ours(self, item: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether it has this prefix: applications with other prefixes may share the table."""
        partition = _value(item, "partition_id")
        return isinstance(partition, str) and (
            partition == self._prefix or partition.startswith(f"{self._prefix}:")
        )

    @asynccontextmanager
    async def target(self) -> AsyncIterator[Store]:
        async with dynamodb_repository(**self._new) as store:
            await mark_begun(store, self._new_place, self._clock.microseconds())
            yield store

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        now = Fingerprint()
        async for rows in self.rows():
            now.add(rows)
        if now != copied:
            return False
        async with dynamodb_repository(**self._new) as store:
            await mark_finished(store, self._clock.microseconds())
        return True

    async def drop_old(self) -> bool:
        raise MigrationError(
            f"{self.place} is not deleted from here: others may have their tasks in it. Delete it "
            "with the tools of AWS once nothing in it is needed any more."
        )


def _row(item: Mapping[str, Mapping[str, Any]]) -> LegacyRow:
    return LegacyRow(
        _value(item, "task_id"),
        Parent.UNKNOWN,
        _value(item, "execute_after"),
        _value(item, "locked_until"),
        _value(item, "locked_by"),
        _value(item, "task_spec"),
    )


def _value(item: Mapping[str, Mapping[str, Any]], name: str) -> object:
    """An attribute: a text as it is; anything else as a value that is no valid text."""
    attribute = item.get(name)
    if attribute is None or "NULL" in attribute:
        return None
    return attribute["S"] if "S" in attribute else dict(attribute)
