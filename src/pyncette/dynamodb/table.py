"""The table in DynamoDB: its layout, its items, and the requests that read and change them.

Knows no options and no errors of the driver. Conditional changes are PartiQL statements, up to 25
in a request; each statement succeeds or fails by itself. Everything else is a plain request.

The key of an item is (group, key). An item that will come due is also in the index ``due``, by
(group, due_at); other items have no ``due_at`` and are not in the index. The index may lag behind
the items, so it only suggests what to claim; the condition on version and instant decides. The
index of the records in a rare state is in ``pyncette.dynamodb.rare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Any, Final

from pyncette.dynamodb import rare
from pyncette.dynamodb.rare import RareIndex, mark_of
from pyncette.dynamodb.requests import REFUSED, THROTTLED, Patience, Requests, error_of
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.store import Counted, Failed, Filter, Identity, Page, Unknown, Write
from pyncette.store.cas import Entry, Made, Swap, Swapped
from pyncette.store.rare import is_rare
from pyncette.store.record import ABSENT, EARLIEST_INSTANT, LATEST_INSTANT, Delete, Record
from pyncette.store.together import together

INDEX: Final = "due"

BROKEN: Final = -2
"""Stands for an invalid version. A change that expects it is made whatever the version is."""

VERSION_MAX: Final = 2**62
"""Versions from this one on are invalid. Pyncette writes much lower versions."""

UNFINISHED_MAX: Final = 2**30
"""Higher counts of unfinished attempts are read as this."""

STATEMENTS_MAX: Final = 25
"""Maximum statements in one request."""

REQUEST_BYTES_MAX: Final = 4_000_000
"""Maximum bytes of parameters in one request. DynamoDB accepts more, but is then slow."""

COUNTED_MAX: Final = 10_000
"""Maximum items that a count reads."""

EXAMINED_MAX: Final = 1_000
"""Maximum further items that a page of a filtered scan reads, if few of the first ones matched."""

KEYS_MAX: Final = 100
"""Maximum items that one request reads."""

TEXTS_BYTES_MAX: Final = 180_000
PROGRESS_BYTES_MAX: Final = 200_000
"""Maximum bytes in UTF-8 of schedule and arguments, and of progress. An item has at most 400 KiB.
This leaves room for a replacement that waits in ``progress`` until a run ends, and for what the run
itself adds."""

Item = Mapping[str, Mapping[str, Any]]

_NUMBERS: Final = frozenset({"due_at", "version", "unfinished_attempts"})
_NOT_MADE: Final = frozenset(
    {
        "ConditionalCheckFailed",
        "ConditionalCheckFailedException",
        "DuplicateItem",
        "DuplicateItemException",
    }
)
_ALL: Final = frozenset(Record._fields) - {"group", "key"}


def definition(table_name: str) -> dict[str, Any]:
    """The table and its indexes, as the parameters of ``CreateTable``."""
    return {
        "TableName": table_name,
        "AttributeDefinitions": [
            {"AttributeName": "group", "AttributeType": "S"},
            {"AttributeName": "key", "AttributeType": "S"},
            {"AttributeName": "due_at", "AttributeType": "N"},
            {"AttributeName": rare.INDEX, "AttributeType": "S"},
        ],
        "KeySchema": [
            {"AttributeName": "group", "KeyType": "HASH"},
            {"AttributeName": "key", "KeyType": "RANGE"},
        ],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": INDEX,
                "KeySchema": [
                    {"AttributeName": "group", "KeyType": "HASH"},
                    {"AttributeName": "due_at", "KeyType": "RANGE"},
                ],
                "Projection": {
                    "ProjectionType": "INCLUDE",
                    "NonKeyAttributes": ["version", "unfinished_attempts"],
                },
            },
            rare.definition(),
        ],
        "BillingMode": "PAY_PER_REQUEST",
    }


def has_layout(described: Mapping[str, Any]) -> bool:
    """Whether a table that ``DescribeTable`` has described has our keys and our index ``due``.

    The index of rare states may be missing; an index of its name must be this one.
    """
    wanted = definition("")
    indexes = {index["IndexName"]: index for index in described.get("GlobalSecondaryIndexes", ())}
    types = {
        attribute["AttributeName"]: attribute["AttributeType"]
        for attribute in described["AttributeDefinitions"]
    }
    if rare.INDEX not in indexes:
        types.setdefault(rare.INDEX, "S")
    if _keys(described) != _keys(wanted) or any(
        types.get(attribute["AttributeName"]) != attribute["AttributeType"]
        for attribute in wanted["AttributeDefinitions"]
    ):
        return False
    due, of_rare = wanted["GlobalSecondaryIndexes"]
    return (INDEX in indexes and _fits(indexes[INDEX], due)) and (
        rare.INDEX not in indexes or _fits(indexes[rare.INDEX], of_rare)
    )


def has_rare_index(described: Mapping[str, Any]) -> bool:
    """Whether a table of our layout has the index of rare states, perhaps not filled yet."""
    indexes = described.get("GlobalSecondaryIndexes", ())
    return any(index["IndexName"] == rare.INDEX for index in indexes)


def _fits(index: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an index has the keys and the attributes that are wanted."""
    projected = index["Projection"]
    return _keys(index) == _keys(wanted) and (
        projected["ProjectionType"] == "ALL"
        or {*wanted["Projection"]["NonKeyAttributes"]}.issubset(
            projected.get("NonKeyAttributes", ())
        )
    )


def describe_foreign_table(described: Mapping[str, Any], place: str) -> str:
    """The error about a table with another layout: why it cannot be used, and what to do."""
    if _keys(described) == {"HASH": "partition_id", "RANGE": "task_id"}:
        return (
            f"{place} was made by pyncette 1.x. Stop every worker and run 'python -m pyncette "
            "migrate', which copies it into a new table, or name a table for this release with "
            "dynamodb_table_name. Nothing was changed."
        )
    return (
        f"{place} is not one of ours: its key is {_keys(described)}, its indexes are "
        f"{[index['IndexName'] for index in described.get('GlobalSecondaryIndexes', ())]}; "
        f"expected are group (HASH), key (RANGE), an index '{INDEX}' by group and due_at that "
        f"holds version and unfinished_attempts, and perhaps an index '{rare.INDEX}' by "
        f"{rare.INDEX} and key that holds state and due_at. Name another table with "
        "dynamodb_table_name. Nothing was changed."
    )


def _keys(described: Mapping[str, Any]) -> dict[str, str]:
    return {key["KeyType"]: key["AttributeName"] for key in described["KeySchema"]}


class RecordTooLargeError(ValueError):
    """A record does not fit into an item.

    Attributes:
        identity: Its group and key.
    """

    def __init__(self, identity: Identity, what: str, size: int, size_max: int) -> None:
        super().__init__(
            f"{what} of {identity[1]!r} in '{identity[0]}' has {size:,} bytes; DynamoDB keeps at "
            f"most {size_max:,}. Keep what is large elsewhere, and its name in the arguments."
        )
        self.identity = identity


class RefusedValueError(ValueError):
    """DynamoDB cannot store a record as it should be written.

    Attributes:
        identity: Its group and key.
    """

    def __init__(self, identity: Identity, reason: str) -> None:
        super().__init__(
            f"DynamoDB refused to write {identity[1]!r} in '{identity[0]}': {reason}. Keep what is "
            "large elsewhere, and its name in the arguments."
        )
        self.identity = identity


def size_error(write: Write) -> RecordTooLargeError | None:
    """Why DynamoDB would refuse this, now or when a run adds to it; None if it would not."""
    change = write.change
    if isinstance(change, Delete):
        return None
    texts = getattr(change, "schedule", "") + getattr(change, "args", "")
    for what, text, size_max in (
        ("Schedule and arguments", texts, TEXTS_BYTES_MAX),
        ("Progress", change.progress or "", PROGRESS_BYTES_MAX),
    ):
        # A character has at most four bytes, so it is rarely necessary to encode the text.
        if 4 * len(text) > size_max and len(text.encode()) > size_max:
            return RecordTooLargeError(write[:2], what, len(text.encode()), size_max)
    return None


class DynamoTable:
    """See ``pyncette.store.cas.CasBackend``.

    Args:
        requests: Makes the requests.
        name: The name of the table.
        prefix: Prepended to each group, with a colon between.
    """

    def __init__(self, requests: Requests, name: str, prefix: str) -> None:
        self._requests = requests
        self._name = name
        self._rare = RareIndex(requests, name)
        # The prefix ends at the first colon, so two pairs of prefix and group never coincide.
        self._prefix = prefix.replace("%", "%25").replace(":", "%3A") + ":"

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        # A request must not contain a key twice.
        wanted = list(dict.fromkeys(identities))
        parts = await together(
            self._get(wanted[start : start + KEYS_MAX]) for start in range(0, len(wanted), KEYS_MAX)
        )
        found = {identity: record for part in parts for identity, record in part.items()}
        return [found.get((group, key)) for group, key in identities]

    async def _get(self, identities: Sequence[Identity]) -> dict[Identity, Record]:
        keys = [
            {"group": {"S": self._prefix + group}, "key": {"S": key}} for group, key in identities
        ]
        asked: dict[str, Any] = {self._name: {"Keys": keys, "ConsistentRead": True}}
        found: dict[Identity, Record] = {}
        patience = Patience(self._requests.place)
        while True:
            answer = await self._requests.make("batch_get_item", RequestItems=asked)
            for item in answer["Responses"].get(self._name, ()):
                record = _record_of(item, item["group"]["S"][len(self._prefix) :])
                found[record[:2]] = record
            left = answer.get("UnprocessedKeys")
            if not left:
                return found
            # If no key was processed, the request was throttled; else the answer was full.
            if len(left[self._name]["Keys"]) == len(asked[self._name]["Keys"]):
                await patience.wait("keys were left unprocessed")
            asked = left

    async def swap(self, batch: Sequence[Swap]) -> list[Swapped]:
        return await self._in_parts(_parts(batch))

    async def _in_parts(self, parts: Iterable[Sequence[Swap]]) -> list[Swapped]:
        return [answer for answers in await together(map(self._swap, parts)) for answer in answers]

    async def _swap(self, batch: Sequence[Swap]) -> list[Swapped]:
        """Makes the swaps of one request.

        An error of the store is not raised: it is the answer to each swap that it concerns.
        """
        answers: list[Swapped] = [None] * len(batch)
        # There is no record whose token or ``due_at`` could be compared.
        left = [
            number
            for number, swap in enumerate(batch)
            if swap.expect != ABSENT or (swap.token is None and swap.due_at is None)
        ]
        patience = Patience(self._requests.place)
        while left:
            try:
                responses = await self._execute([batch[number] for number in left])
            except StoreError as error:
                _answer_all(answers, left, Unknown(error))
                break
            if responses is None:
                # A value was refused, and with it the whole request. Halving finds the value.
                half = len(left) // 2
                parts = [[batch[n] for n in left[:half]], [batch[n] for n in left[half:]]]
                for number, swapped in zip(left, await self._in_parts(parts), strict=True):
                    answers[number] = swapped
                break
            again: list[int] = []
            reason = ""
            for number, response in zip(left, responses, strict=True):
                told = response.get("Error")
                if told is None:
                    answers[number] = _made(batch[number], response.get("Item"))
                elif told["Code"] in THROTTLED:
                    again.append(number)
                    reason = told["Code"]
                elif told["Code"] not in _NOT_MADE:
                    answers[number] = self._failed(batch[number], told)
            if again:
                try:
                    await patience.wait(reason)
                except StoreUnavailableError as error:
                    _answer_all(answers, again, Failed(error))
                    break
            left = again
        return answers

    async def _execute(self, swaps: Sequence[Swap]) -> list[dict[str, Any]] | None:
        """The answers to statements; None if the request was refused as a whole."""
        answer = await self._requests.make(
            "batch_execute_statement",
            tolerated=REFUSED,
            Statements=[self._statement(swap) for swap in swaps],
        )
        responses: list[dict[str, Any]] | None = answer.get("Responses")
        if responses is None:
            return [answer] if len(swaps) == 1 else None
        if len(responses) != len(swaps):
            raise StoreUnavailableError(
                f"{self._requests.place}: {len(swaps)} statements got {len(responses)} answers"
            )
        return responses

    def _failed(self, swap: Swap, told: Mapping[str, str]) -> Failed | Unknown:
        """The answer to a swap whose statement failed."""
        code, message = told["Code"], told.get("Message", "")
        if code in REFUSED:
            return Failed(RefusedValueError((swap.group, swap.key), f"{code}: {message}"))
        error = error_of(code, message, self._requests.place)
        # The service could not execute it, or did not finish it.
        return Failed(error) if isinstance(error, StoreMisconfiguredError) else Unknown(error)

    def _statement(self, swap: Swap) -> dict[str, Any]:
        group, key, expect, columns, token, due_at = swap
        identity = [{"S": self._prefix + group}, {"S": key}]
        if columns is not None and "state" in columns:
            mark = mark_of(columns["state"], self._prefix + group, key)
            columns = {**columns, rare.INDEX: mark}
        if expect == ABSENT:
            assert columns is not None
            given = {name: value for name, value in columns.items() if value is not None}
            return {
                "Statement": _insertion(self._name, tuple(given)),
                "Parameters": [*identity, *map(_value, given.items())],
            }
        conditions: list[str] = []
        tail = identity
        if expect != BROKEN:
            conditions.append('"version" = ?')
            tail.append({"N": str(expect)})
        if token is not None:
            conditions.append('"token" = ?')
            tail.append({"S": token})
        if due_at is not None:
            # All numbers that are read as this instant, see _instant_of.
            conditions += ['"due_at" >= ?', '"due_at" < ?']
            tail += [{"N": _lowest_read_as(due_at)}, {"N": str(due_at + 1)}]
        if columns is None:
            return {
                "Statement": _deletion(self._name, tuple(conditions)),
                "Parameters": tail,
            }
        given = {name: value for name, value in columns.items() if value is not None}
        removed = tuple(name for name in columns if name not in given)
        return {
            "Statement": _update(
                self._name,
                tuple(given),
                removed,
                tuple(conditions),
                not _ALL.issubset(columns),
            ),
            "Parameters": [*map(_value, given.items()), *tail],
        }

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        condition = "#group = :group"
        values: dict[str, Any] = {":group": {"S": self._prefix + group}}
        if since is not None:
            values[":since"] = {"N": str(since)}
        if before is not None:
            values[":before"] = {"N": str(before)}
        if since is not None and before is not None:
            condition += " AND due_at BETWEEN :since AND :before"
        elif since is not None:
            condition += " AND due_at >= :since"
        elif before is not None:
            condition += " AND due_at <= :before"
        entries: list[Entry] = []
        start: dict[str, Any] = {}
        while len(entries) < limit:
            answer = await self._requests.make(
                "query",
                TableName=self._name,
                IndexName=INDEX,
                KeyConditionExpression=condition,
                ExpressionAttributeNames={"#group": "group"},
                ExpressionAttributeValues=values,
                Limit=limit - len(entries),
                **start,
            )
            entries += [entry for item in answer["Items"] if (entry := _entry_of(item)) is not None]
            if "LastEvaluatedKey" not in answer:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return entries

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        """See ``pyncette.store.Store.count``. It reads at most 10,000 items, or ``limit``."""
        if where.states is not None and not where.states:
            return Counted(0, True)
        examined_max = max(COUNTED_MAX, limit)
        if is_rare(where):
            most = limit if where.due_before is None else examined_max
            counted = await self._rare.count(self._prefix + group, where, limit, most)
            if counted is not None:
                return counted
        query = self._query_of(group, where)
        if where == Filter(due_before=where.due_before) and where.due_before is not None:
            query = self._query_of_due(group, where.due_before)
        if "FilterExpression" not in query:
            examined_max = limit  # each item that is read is one that matches
        count = examined = 0
        start: dict[str, Any] = {}
        while True:
            answer = await self._requests.make(
                "query",
                **query,
                Select="COUNT",
                Limit=examined_max - examined + 1,
                **start,
            )
            count += answer["Count"]
            examined += answer["ScannedCount"]
            if count > limit or examined > examined_max:
                return Counted(min(count, limit), False)
            if "LastEvaluatedKey" not in answer:
                return Counted(count, True)
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def rare_index_error(self) -> str | None:
        """Why the index of rare states cannot be used, for people; None if it can."""
        return await self._rare.error()

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        if where.states is not None and not where.states:
            return Page([], None)
        if is_rare(where):
            found = await self._rare.keys(self._prefix + group, where, cursor, limit)
            if found is not None:
                keys, following = found
                # The index lags: what a record is now decides.
                there = await self.get([(group, key) for key in keys])
                return Page([r for r in there if r is not None and where.admits(r)], following)
        query = self._query_of(group, where)
        if cursor is not None:
            group_value = {"S": self._prefix + group}
            query["ExclusiveStartKey"] = {"group": group_value, "key": {"S": cursor}}
        # The limit counts items that are read, not items that match, so a page may be empty.
        answer = await self._requests.make("query", **query, Limit=limit)
        items, last = answer["Items"], answer.get("LastEvaluatedKey")
        if last is not None and 2 * len(items) < limit and "FilterExpression" in query:
            # Most do not match: with pages of this size, a large group would take many requests.
            query["ExclusiveStartKey"] = last
            answer = await self._requests.make("query", **query, Limit=EXAMINED_MAX)
            items, last = items + answer["Items"], answer.get("LastEvaluatedKey")
        records = [_record_of(item, group) for item in items[:limit]]
        if len(items) > limit:
            return Page(records, records[-1].key)
        return Page(records, None if last is None else last["key"]["S"])

    def _query_of_due(self, group: str, due_before: int) -> dict[str, Any]:
        """The query of the entries that are due before an instant, in the index, which may lag."""
        return {
            "TableName": self._name,
            "IndexName": INDEX,
            "KeyConditionExpression": "#group = :group AND due_at < :due_before",
            "ExpressionAttributeNames": {"#group": "group"},
            "ExpressionAttributeValues": {
                ":group": {"S": self._prefix + group},
                ":due_before": {"N": str(due_before)},
            },
        }

    def _query_of(self, group: str, where: Filter) -> dict[str, Any]:
        """The query of the records of a group that match, in the order of their keys."""
        group_value = {"S": self._prefix + group}
        names = {"#group": "group"}
        values: dict[str, Any] = {":group": group_value}
        condition = "#group = :group"
        if where.prefix:
            condition += " AND begins_with(#key, :prefix)"
            names["#key"] = "key"
            values[":prefix"] = {"S": where.prefix}
        filters: list[str] = []
        if where.states is not None:
            names["#state"] = "state"
            states = {f":state{n}": {"S": state} for n, state in enumerate(sorted(where.states))}
            values.update(states)
            filters.append(f"#state IN ({', '.join(states)})")
        if where.due_before is not None:
            values[":due_before"] = {"N": str(where.due_before)}
            filters.append("due_at < :due_before")
        more: dict[str, Any] = {}
        if filters:
            more["FilterExpression"] = " AND ".join(filters)
        return {
            "TableName": self._name,
            "ConsistentRead": True,
            "KeyConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            **more,
        }


# The texts of statements. A write in PartiQL must name one item by its whole key.


@lru_cache(maxsize=256)
def _insertion(table: str, columns: tuple[str, ...]) -> str:
    """Creates an item, if there is none."""
    fields = ", ".join(f"'{name}': ?" for name in ("group", "key", *columns))
    return f'INSERT INTO "{table}" VALUE {{{fields}}}'


@lru_cache(maxsize=256)
def _update(
    table: str,
    columns: tuple[str, ...],
    removed: tuple[str, ...],
    conditions: tuple[str, ...],
    returning: bool,
) -> str:
    """Changes an item, if it is as expected."""
    changes = [f'SET "{name}" = ?' for name in columns]
    changes += [f'REMOVE "{name}"' for name in removed]
    text = f'UPDATE "{table}" {" ".join(changes)} WHERE {_where(conditions)}'
    return f"{text} RETURNING ALL NEW *" if returning else text


@lru_cache(maxsize=256)
def _deletion(table: str, conditions: tuple[str, ...]) -> str:
    """Removes an item, if it is as expected.

    If there is no item, this succeeds on AWS, whatever the condition, and fails on DynamoDB Local.
    The returned item tells whether an item was removed.
    """
    return f'DELETE FROM "{table}" WHERE {_where(conditions)} RETURNING ALL OLD *'


def _where(conditions: tuple[str, ...]) -> str:
    return " AND ".join(('"group" = ?', '"key" = ?', *conditions))


def _value(column: tuple[str, Any]) -> dict[str, str]:
    name, value = column
    return {"N": str(value)} if name in _NUMBERS else {"S": value}


def _parts(batch: Sequence[Swap]) -> Iterator[list[Swap]]:
    """The batch in parts that fit into a request."""
    part: list[Swap] = []
    size = 0
    for swap in batch:
        texts = 0
        if swap.columns is not None:
            texts = sum(len(text) for text in swap.columns.values() if isinstance(text, str))
        # In JSON a character has up to twelve bytes, usually one or two.
        if part and (len(part) == STATEMENTS_MAX or size + 2 * texts > REQUEST_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(swap)
        size += 2 * texts
    if part:
        yield part


def _answer_all(answers: list[Swapped], numbers: Iterable[int], answer: Failed | Unknown) -> None:
    for number in numbers:
        answers[number] = answer


def _made(swap: Swap, item: Item | None) -> Made | None:
    """The answer to a swap whose statement succeeded."""
    if swap.columns is None:
        return None if item is None else Made(None)
    if item is None:
        return Made(Record(swap.group, swap.key, **swap.columns))
    return Made(_record_of(item, swap.group))


# An item that was edited by hand must not affect other items, so every attribute is read as some
# valid value. A record that cannot be run is then claimed, found unreadable, and parked.


def _record_of(item: Item, group: str) -> Record:
    return Record(
        group,
        _text(item, "key"),
        _instant_of(item),
        _version_of(item),
        item.get("token", {}).get("S"),
        _text(item, "state"),
        _unfinished_of(item),
        _text(item, "schedule"),
        _text(item, "args"),
        _text(item, "progress"),
    )


def _entry_of(item: Item) -> Entry | None:
    due_at = _instant_of(item)
    if due_at is None:
        return None
    return Entry(due_at, _text(item, "key"), _version_of(item), _unfinished_of(item))


def _text(item: Item, name: str) -> str:
    return str(item.get(name, {}).get("S", ""))


_BEFORE_ALL: Final = EARLIEST_INSTANT - 1
_AFTER_ALL: Final = LATEST_INSTANT + 1
_LOWEST_NUMBER: Final = "-9.9999999999999999999999999999999999999E+125"


def _instant_of(item: Item) -> int | None:
    """When it is due. A fraction is cut off; a number out of range becomes the nearest instant."""
    number = item.get("due_at", {}).get("N", "")
    if number.isdigit() and len(number) < len(str(LATEST_INSTANT)):
        return int(number)
    if not number:
        return None
    exact = min(max(Decimal(number), Decimal(_BEFORE_ALL)), Decimal(_AFTER_ALL))
    return int(exact.to_integral_value(ROUND_FLOOR))


def _lowest_read_as(due_at: int) -> str:
    """The lowest number that is read as this instant."""
    return _LOWEST_NUMBER if due_at <= _BEFORE_ALL else str(due_at)


def _version_of(item: Item) -> int:
    number = item.get("version", {}).get("N", "")
    version = int(number) if number.isdigit() else 0
    return version if 0 < version < VERSION_MAX else BROKEN


def _unfinished_of(item: Item) -> int:
    number = item.get("unfinished_attempts", {}).get("N", "")
    return min(int(number), UNFINISHED_MAX) if number.isdigit() else 0
