"""The index of the records in a rare state: parked, paused, retrying, finished.

An item in such a state has an attribute with the same name as the index, which DynamoDB keys the
index by; other items have none, and are not in the index. So it is almost empty, and costs a write
only where a record enters or leaves such a state.

The value is the state, a shard, and the group: ``parked:2::report``. A group of the table writes at
most about 1,000 units a second, and one key of the index no more. A change from one rare state to
another costs two units of the index, and DynamoDB slows down the table when its index cannot
follow. With one key for each state and group, pausing or parking 100,000 records at once could
therefore be slower than without the index. With four, the index always has room. More would not
help, and each of them is one more request for a page.

The index lags behind the items, usually by milliseconds. It has the state and the instant of each
item, so an item whose attribute was edited is found at most where its state fits, and counted at
most once. What a page returns is read from the table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final
from zlib import crc32

from pyncette.dynamodb.requests import Requests
from pyncette.store import Counted, Filter
from pyncette.store.rare import RARE_STATES
from pyncette.store.together import together

logger: Final = logging.getLogger("pyncette.dynamodb")

LOOK_AT_ALL: Final = (
    "lists and counts of parked, paused or retrying instances look at all instances"
)
"""What happens where the index cannot be used."""

INDEX: Final = "rare"

SHARDS: Final = 4
"""Into how many keys the index divides each state of a group."""

PAGE_MAX: Final = 1_000
"""Maximum records of one page."""

DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})
"""Errors of a request that the privileges do not allow."""

_UNUSABLE: Final = DENIED | {"ResourceNotFoundException", "ValidationException"}
"""Errors of a query if there is no such index, if it is being filled, or must not be read."""


def definition() -> dict[str, Any]:
    """The index, as in the parameters of ``CreateTable``."""
    return {
        "IndexName": INDEX,
        "KeySchema": [
            {"AttributeName": INDEX, "KeyType": "HASH"},
            {"AttributeName": "key", "KeyType": "RANGE"},
        ],
        "Projection": {
            "ProjectionType": "INCLUDE",
            "NonKeyAttributes": ["state", "due_at"],
        },
    }


def addition(described: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of ``UpdateTable`` that add the index to a table.

    Args:
        described: The table, as described by the service.
    """
    index = definition()
    mode = described.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    if mode == "PROVISIONED":
        units = described.get("ProvisionedThroughput", {})
        index["ProvisionedThroughput"] = {
            name: max(units.get(name, 1), 1) for name in ("ReadCapacityUnits", "WriteCapacityUnits")
        }
    return {
        "TableName": described["TableName"],
        "AttributeDefinitions": [
            {"AttributeName": INDEX, "AttributeType": "S"},
            {"AttributeName": "key", "AttributeType": "S"},
        ],
        "GlobalSecondaryIndexUpdates": [{"Create": index}],
    }


def mark_of(state: object, group: str, key: str) -> str | None:
    """The attribute of an item; None if its state is not rare.

    Args:
        state: Its state.
        group: Its group, with the prefix.
        key: Its key.
    """
    if state not in RARE_STATES:
        return None
    shard = crc32(key.encode(errors="surrogatepass")) % SHARDS
    return _mark(str(state), shard, group)


def _mark(state: str, shard: int, group: str) -> str:
    return f"{state}:{shard}:{group}"


class RareIndex:
    """Counts and lists records in rare states.

    Args:
        requests: Makes the requests.
        table_name: The name of the table.
    """

    def __init__(self, requests: Requests, table_name: str) -> None:
        self._requests = requests
        self._table_name = table_name
        self._said = False

    async def count(
        self, group: str, where: Filter, limit: int, examined_max: int
    ) -> Counted | None:
        """See ``pyncette.store.Store.count``.

        Args:
            group: The group, with the prefix.
            where: Only with rare states.
            limit: Up to how many are counted.
            examined_max: Maximum entries that are looked at, about.

        Returns:
            None if the index cannot be used.
        """
        queries = self._queries(group, where)
        count = examined = 0
        while queries:
            share = (examined_max - examined) // len(queries) + 1
            answers = await self._ask([{**q, "Select": "COUNT", "Limit": share} for q in queries])
            if answers is None:
                return None
            count += sum(answer["Count"] for answer in answers)
            examined += sum(answer["ScannedCount"] for answer in answers)
            queries = [
                {**query, "ExclusiveStartKey": answer["LastEvaluatedKey"]}
                for query, answer in zip(queries, answers, strict=True)
                if "LastEvaluatedKey" in answer
            ]
            if count > limit or (queries and examined > examined_max):
                return Counted(min(count, limit), False)
        return Counted(count, True)

    async def keys(
        self, group: str, where: Filter, cursor: str | None, limit: int
    ) -> tuple[list[str], str | None] | None:
        """The first keys after a cursor, in order, and the next cursor (None at the end).

        Args:
            group: The group, with the prefix.
            where: Only with rare states.
            cursor: The last key of the page before.
            limit: Maximum keys.

        Returns:
            None if the index cannot be used.
        """
        limit = min(limit, PAGE_MAX)
        queries = self._queries(group, where, cursor)
        names = {"#key": "key", "#group": "group"}
        for query in queries:
            query["ExpressionAttributeNames"].update(names)
            query.update(ProjectionExpression="#group, #key", Limit=limit + 1)
        answers = await self._ask(queries)
        if answers is None:
            return None
        found = {
            item["key"]["S"]
            for answer in answers
            for item in answer["Items"]
            if item["group"]["S"] == group
        }
        # Beyond the point up to which every query has looked, some key may be missing.
        ends = [answer["LastEvaluatedKey"] for answer in answers if "LastEvaluatedKey" in answer]
        end = min((last["key"]["S"] for last in ends), key=_in_order, default=None)
        keys = sorted(found, key=_in_order)
        if end is not None:
            keys = [key for key in keys if _in_order(key) <= _in_order(end)]
        if len(keys) > limit:
            return keys[:limit], keys[limit - 1]
        return keys, end

    async def error(self) -> str | None:
        """Why the index cannot be used, for people; None if it can."""
        query = self._query("", "parked", 0, Filter(), None)
        answer = await self._requests.make("query", tolerated=_UNUSABLE, **query, Limit=1)
        return _in_words(answer["Error"]) if "Error" in answer else None

    def _queries(
        self, group: str, where: Filter, cursor: str | None = None
    ) -> list[dict[str, Any]]:
        """One query for each state and shard."""
        return [
            self._query(group, state, shard, where, cursor)
            for state in sorted(where.states or ())
            for shard in range(SHARDS)
        ]

    def _query(
        self, group: str, state: str, shard: int, where: Filter, cursor: str | None
    ) -> dict[str, Any]:
        mark = {"S": _mark(state, shard, group)}
        names = {"#rare": INDEX, "#state": "state"}
        values: dict[str, Any] = {":rare": mark, ":state": {"S": state}}
        condition, matches = "#rare = :rare", "#state = :state"
        if where.prefix:
            condition += " AND begins_with(#key, :prefix)"
            names["#key"] = "key"
            values[":prefix"] = {"S": where.prefix}
        if where.due_before is not None:
            matches += " AND due_at < :due_before"
            values[":due_before"] = {"N": str(where.due_before)}
        query = {
            "TableName": self._table_name,
            "IndexName": INDEX,
            "KeyConditionExpression": condition,
            "FilterExpression": matches,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }
        if cursor is not None:
            query["ExclusiveStartKey"] = {INDEX: mark, "group": {"S": group}, "key": {"S": cursor}}
        return query

    async def _ask(self, queries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """The answers; None if the index cannot be used."""
        answers = await together(
            self._requests.make("query", tolerated=_UNUSABLE, **query) for query in queries
        )
        for answer in answers:
            if "Error" in answer:
                self._say(answer["Error"])
                return None
        return answers

    def _say(self, error: Mapping[str, str]) -> None:
        if self._said:
            return
        self._said = True
        logger.warning(
            "%s: the index '%s' cannot be used (%s). Until it can, %s. The documentation of the "
            "store tells how to add it, and which privileges it needs",
            self._requests.place,
            INDEX,
            _in_words(error),
            LOOK_AT_ALL,
        )


def _in_words(error: Mapping[str, str]) -> str:
    """An error of the service, in one line."""
    return f"{error.get('Code', '')}: {error.get('Message', '').partition(chr(10))[0]}"


def _in_order(key: str) -> bytes:
    """What keys are sorted by."""
    return key.encode(errors="surrogatepass")
