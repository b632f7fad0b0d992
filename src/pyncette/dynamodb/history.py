"""The run history in DynamoDB: a table of its own, whose items expire.

It is beside the table of the records, so that neither capacity, nor backups, nor the time to live
of one has to do with the other. The key of an item is (``in``, ``at``). The first says of what it
is a part, the second is a place in time, as bytes. An attempt is there several times:

=========================== ====================================
``a:`` part                 each attempt
``t:`` part ``:`` task      those of a task
``i:`` task NUL instance    those of an instance
``f:`` part                 those that have not succeeded
``g:`` part ``:`` task      the same of a task
``m:`` part                 totals, by minute and task
``n:`` task                 totals of a task, by minute
=========================== ====================================

The parts spread what ends at the same time over partitions of the service: one accepts a thousand
writes a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from pyncette.clock import realtime
from pyncette.dynamodb.requests import REFUSED, THROTTLED, Patience, Requests, error_of
from pyncette.errors import StoreMisconfiguredError
from pyncette.store.history import (
    KEEP,
    SUCCEEDED,
    TOTALS_MAX,
    RowsPage,
    RunFilter,
    RunRow,
    TotalRow,
    examined,
    page_of,
)
from pyncette.store.packed_history import (
    number_bytes,
    place_bytes,
    place_in,
    row_of,
    text_of,
    unreadable,
)
from pyncette.store.sql.history import RunIndex, Selection, selected
from pyncette.store.together import together

SUFFIX: Final = "-runs"
"""What the name of the table adds to that of the table of the records."""

TABLE_NAME_CHARACTERS_MAX: Final = 250

PARTS: Final = 4

ITEMS_MAX: Final = 25
"""Maximum items of one request that writes."""

TOTALS_OF_TRANSACTION_MAX: Final = 40

READY_PAUSE_S: Final = 0.2

_EXPIRES: Final = "expires_at"
_KINDS: Final = {
    RunIndex.ALL: "a",
    RunIndex.TASK: "t",
    RunIndex.INSTANCE: "i",
    RunIndex.FAILED: "f",
    RunIndex.TASK_FAILED: "g",
}
_COUNTS: Final = ("succeeded", "failed", "other", "took")
_NOT_HIGHER: Final = "ConditionalCheckFailedException"
_CANCELLED: Final = "TransactionCanceledException"

Item = Mapping[str, Mapping[str, Any]]


def history_definition(table_name: str) -> dict[str, Any]:
    """The table of the history, as the parameters of ``CreateTable``."""
    return {
        "TableName": table_name + SUFFIX,
        "AttributeDefinitions": [
            {"AttributeName": "in", "AttributeType": "S"},
            {"AttributeName": "at", "AttributeType": "B"},
        ],
        "KeySchema": [
            {"AttributeName": "in", "KeyType": "HASH"},
            {"AttributeName": "at", "KeyType": "RANGE"},
        ],
        "BillingMode": "PAY_PER_REQUEST",
    }


class DynamoHistory:
    """See ``pyncette.store.history.History``.

    Args:
        requests: Makes the requests.
        table_name: The name of the table of the records.
        prefix: Prepended to each name, with a colon between.
        creates: Whether a missing table may be created.
    """

    def __init__(self, requests: Requests, table_name: str, prefix: str, creates: bool) -> None:
        self._requests = requests
        self._definition = history_definition(table_name)
        self._table = table_name + SUFFIX
        self._prefix = prefix.replace("%", "%25").replace(":", "%3A") + ":"
        self._creates = creates
        self._keep = KEEP

    async def prepare(self, keep: int = KEEP) -> None:
        self._keep = keep
        if len(self._table) > TABLE_NAME_CHARACTERS_MAX + len(SUFFIX):
            raise StoreMisconfiguredError(
                f"Table name '{self._table.removesuffix(SUFFIX)}' (dynamodb_table_name) is too "
                f"long for a run history: it may have {TABLE_NAME_CHARACTERS_MAX} characters then"
            )
        described = await self._described()
        if described is None:
            if not self._creates:
                raise StoreMisconfiguredError(
                    f"There is no table '{self._table}' for the run history, and "
                    "dynamodb_skip_table_create is set. "
                    "pyncette.dynamodb.history_table_definition() tells how to make it."
                )
            # Another worker may create it at the same time.
            await self._requests.make(
                "create_table", tolerated=("ResourceInUseException",), **self._definition
            )
        elif described["KeySchema"] != self._definition["KeySchema"]:
            raise StoreMisconfiguredError(
                f"Table '{self._table}' in DynamoDB is not one of ours: its key is "
                f"{described['KeySchema']}; expected is {self._definition['KeySchema']}. Name "
                "another table with dynamodb_table_name. Nothing was changed."
            )
        while described is None or described["TableStatus"] not in ("ACTIVE", "UPDATING"):
            if described is not None:
                await realtime.sleep(READY_PAUSE_S)
            described = await self._described()
        if self._creates:
            await self._expire()

    async def _described(self) -> dict[str, Any] | None:
        answer = await self._requests.make(
            "describe_table", tolerated=("ResourceNotFoundException",), TableName=self._table
        )
        described: dict[str, Any] | None = answer.get("Table")
        return described

    async def _expire(self) -> None:
        """Has the service remove items whose time is over."""
        answer = await self._requests.make("describe_time_to_live", TableName=self._table)
        status = answer.get("TimeToLiveDescription", {}).get("TimeToLiveStatus", "DISABLED")
        if status == "DISABLED":
            # Another worker may do it at the same time.
            await self._requests.make(
                "update_time_to_live",
                tolerated=("ValidationException",),
                TableName=self._table,
                TimeToLiveSpecification={"Enabled": True, "AttributeName": _EXPIRES},
            )

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        if not runs:
            return
        items = [item for row in runs for item in self._items(row)]
        first = place_bytes(*runs[0][:2])
        await together(
            self._put(items[start : start + ITEMS_MAX]) for start in range(0, len(items), ITEMS_MAX)
        )
        ordered = sorted(totals)
        for start in range(0, len(ordered), TOTALS_OF_TRANSACTION_MAX):
            part = ordered[start : start + TOTALS_OF_TRANSACTION_MAX]
            await self._add(part, first + number_bytes(start))
        await together(
            self._raise_lateness(key, total)
            for total in ordered
            if total.lateness_max
            for key in self._keys_of(total)
        )

    async def _write(
        self, operation: str, *, tolerated: Collection[str] = (), **parameters: Any
    ) -> dict[str, Any]:
        """As ``Requests.make``, for a request that writes.

        Raises:
            ValueError: The service refuses a value.
        """
        answer = await self._requests.make(
            operation, tolerated={*REFUSED, *tolerated}, **parameters
        )
        error = answer.get("Error", {})
        if error.get("Code") in REFUSED:
            raise self._refusal(error)
        return answer

    def _refusal(self, reason: Mapping[str, Any]) -> ValueError:
        return ValueError(
            f"{self._requests.place} cannot keep a value of the run history: "
            f"{reason.get('Code')}: {reason.get('Message')}"
        )

    def _items(self, row: RunRow) -> Iterator[dict[str, Any]]:
        """The items of an attempt."""
        part, task = row.id % PARTS, row.task
        names = [f"a:{part}", f"t:{part}:{task}"]
        if row.instance is not None:
            names.append(f"i:{task}\0{row.instance}")
        if row.outcome != SUCCEEDED:
            names += [f"f:{part}", f"g:{part}:{task}"]
        at = {"B": place_bytes(*row[:2])}
        rest = {"run": {"S": text_of(row)}, _EXPIRES: self._expiry(row.ended_at)}
        for name in names:
            yield {"in": {"S": self._prefix + name}, "at": at, **rest}

    def _expiry(self, instant: int) -> dict[str, str]:
        return {"N": str((instant + self._keep) // 1_000_000 + 1)}

    async def _put(self, items: Sequence[dict[str, Any]]) -> None:
        asked: Any = {self._table: [{"PutRequest": {"Item": item}} for item in items]}
        patience = Patience(self._requests.place)
        while asked:
            answer = await self._write("batch_write_item", RequestItems=asked)
            left = answer.get("UnprocessedItems")
            if left:
                await patience.wait("items were left unprocessed")
            asked = left

    def _keys_of(self, total: TotalRow) -> list[dict[str, Any]]:
        minute, task = number_bytes(total.minute), total.task
        # A hash, as a task is only told from others here.
        part = int.from_bytes(_digest(task)[:2], "big") % PARTS
        return [
            {"in": {"S": f"{self._prefix}m:{part}"}, "at": {"B": minute + _digest(task)}},
            {"in": {"S": f"{self._prefix}n:{task}"}, "at": {"B": minute}},
        ]

    async def _add(self, totals: Sequence[TotalRow], batch: bytes) -> None:
        """Adds to totals; nothing if the same was added in the last ten minutes."""
        updates = [
            {
                "Update": {
                    "TableName": self._table,
                    "Key": key,
                    "UpdateExpression": "ADD #s :s, #f :f, #o :o, #t :t "
                    "SET #task = :task, #expires = :expires",
                    "ExpressionAttributeNames": {
                        **{f"#{name[0]}": name for name in _COUNTS},
                        "#task": "task",
                        "#expires": _EXPIRES,
                    },
                    "ExpressionAttributeValues": {
                        ":s": {"N": str(total.succeeded)},
                        ":f": {"N": str(total.failed)},
                        ":o": {"N": str(total.other)},
                        ":t": {"N": str(total.took)},
                        ":task": {"S": total.task},
                        ":expires": self._expiry(total.minute),
                    },
                }
            }
            for total in totals
            for key in self._keys_of(total)
        ]
        # The service knows tokens of all tables.
        place = f"{self._table}\0{self._prefix}\0".encode()
        token = hashlib.sha256(place + batch).hexdigest()[:36]
        patience = Patience(self._requests.place)
        while True:
            answer = await self._write(
                "transact_write_items",
                tolerated=(_CANCELLED, "TransactionInProgressException"),
                TransactItems=updates,
                ClientRequestToken=token,
            )
            if "Error" not in answer:
                return
            reasons = [
                reason
                for reason in answer.get("CancellationReasons", ())
                if reason.get("Code") not in {"None", *THROTTLED}
            ]
            for reason in reasons:
                if reason.get("Code") in REFUSED:
                    raise self._refusal(reason)
            if reasons:
                code, message = str(reasons[0].get("Code")), str(reasons[0].get("Message"))
                raise error_of(code, message, self._requests.place)
            await patience.wait("totals are written by others")

    async def _raise_lateness(self, key: dict[str, Any], total: TotalRow) -> None:
        await self._write(
            "update_item",
            tolerated=(_NOT_HIGHER,),
            TableName=self._table,
            Key=key,
            UpdateExpression="SET lateness_max = :late",
            ConditionExpression="attribute_not_exists(lateness_max) OR lateness_max < :late",
            ExpressionAttributeValues={":late": {"N": str(total.lateness_max)}},
        )

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        selection, most = selected(where, cursor), examined(where, limit)
        first = number_bytes(selection.since) + bytes(8)
        last = _before(place_bytes(*selection.end))
        parts = await together(self._query(name, first, last, most) for name in _names(selection))
        found = [_row(item) for part in parts for item in part]
        found.sort(key=lambda row: row[:2], reverse=True)
        return page_of(found[:most], where, limit, most)

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        names = [f"m:{part}" for part in range(PARTS)] if task is None else [f"n:{task}"]
        first, last = number_bytes(since), _before(number_bytes(until))
        if task is None:
            last += b"\xff" * 32
        parts = await together(self._query(name, first, last, TOTALS_MAX) for name in names)
        found = [total for part in parts for item in part if (total := _total(item)) is not None]
        found.sort(key=lambda total: total[:2], reverse=True)
        return found[:TOTALS_MAX]

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        """Nothing: the service removes what has expired."""
        return 0

    async def _query(self, name: str, first: bytes, last: bytes, most: int) -> list[Item]:
        """The last items of a range; none if there is no table."""
        found: list[Item] = []
        start: dict[str, Any] = {}
        while first <= last and len(found) < most:
            answer = await self._requests.make(
                "query",
                tolerated=("ResourceNotFoundException",),
                TableName=self._table,
                KeyConditionExpression="#in = :in AND #at BETWEEN :first AND :last",
                ExpressionAttributeNames={"#in": "in", "#at": "at"},
                ExpressionAttributeValues={
                    ":in": {"S": self._prefix + name},
                    ":first": {"B": first},
                    ":last": {"B": last},
                },
                ScanIndexForward=False,
                Limit=most - len(found),
                **start,
            )
            found += answer.get("Items", ())
            after = answer.get("LastEvaluatedKey")
            if not after:
                break
            start = {"ExclusiveStartKey": after}
        return found


def _names(selection: Selection) -> list[str]:
    kind, task = _KINDS[selection.by], selection.task
    if selection.by is RunIndex.INSTANCE:
        return [f"{kind}:{task}\0{selection.instance}"]
    return [f"{kind}:{part}" + ("" if task is None else f":{task}") for part in range(PARTS)]


def _digest(task: str) -> bytes:
    return hashlib.sha256(task.encode()).digest()


def _before(place: bytes) -> bytes:
    """The greatest place before another one."""
    return max(int.from_bytes(place, "big") - 1, 0).to_bytes(len(place), "big")


def _row(item: Item) -> RunRow:
    place = place_in(item["at"]["B"])
    return row_of(place, item.get("run", {}).get("S", "")) or unreadable(place)


def _total(item: Item) -> TotalRow | None:
    """The total of an item; None if it is none."""
    try:
        numbers = [int(item[name]["N"]) for name in _COUNTS]
        lateness_max = int(item.get("lateness_max", {"N": "0"})["N"])
        minute, _ = place_in(item["at"]["B"])
        return TotalRow(
            minute,
            item["task"]["S"],
            numbers[0],
            numbers[1],
            numbers[2],
            numbers[3],
            lateness_max,
        )
    except (KeyError, ValueError):
        return None
