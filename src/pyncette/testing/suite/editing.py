"""Conformance: a row that was edited by hand affects only itself.

Each test sets one column of several rows to absurd values, without the store, and then uses the
other records. The edited records may be claimed, refused or ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pytest

from pyncette.store import Applied, Filter, Identity, Source, Store, Write
from pyncette.store.record import ANY, Delete, Patch, Record, State
from pyncette.testing.suite.harness import (
    LEASE,
    NOW,
    Place,
    Suite,
    a_group,
    a_key,
    keys_of,
    new,
    on_place,
    pages_of,
    put,
    version_of,
)

NUMBERS: Final[Sequence[Any]] = (
    None,
    -1,
    0,
    2**30 - 1,
    2**31 - 2,
    2**31 - 1,
    2**62 - 1,
    2**63 - 1,
    -(2**63),
    10**38 - 1,
    1 - 10**38,
    1.5,
    -1e100,
    True,
    "",
    "x",
    "NaN",
    b"\xff\x00",
)
"""The values for a column of numbers. Every database refuses some of them; the largest value that
each database accepts is among them."""

TEXTS: Final[Sequence[Any]] = (
    None,
    "",
    "running ",
    "1 - \x01",
    "a\0b\0c",
    "😀" * 5_000,
    -1.5,
    True,
    b"",
    b"\xff\xfe\x00",
)
"""The values for a column of texts."""

KEYS: Final[Sequence[Any]] = (" ", "\x01", "x" * 900, "😀", b"\xff\xfe")
"""The values for the key."""


class Editing(Suite):
    """Tests that edit rows with ``edit``."""

    @on_place
    async def test_an_edited_instant_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "due_at", NUMBERS)

    @on_place
    async def test_an_edited_version_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "version", NUMBERS)

    @on_place
    async def test_an_edited_count_of_attempts_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "unfinished_attempts", NUMBERS)

    @on_place
    async def test_an_edited_token_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "token", TEXTS)

    @on_place
    async def test_an_edited_state_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "state", TEXTS)

    @on_place
    async def test_an_edited_schedule_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "schedule", TEXTS)

    @on_place
    async def test_edited_arguments_stop_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "args", TEXTS)

    @on_place
    async def test_an_edited_progress_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "progress", TEXTS)

    @on_place
    async def test_an_edited_key_stops_nothing_else(self, place: Place) -> None:
        await self._edit_all(place, "key", KEYS)

    async def _edit_all(self, place: Place, column: str, values: Sequence[Any]) -> None:
        if not self.edits:
            pytest.skip("this test class has no edit(): see pyncette.testing.suite.harness.Suite")
        async with place.open() as store:
            spoiled = [await self._spoil(store, place, column, value) for value in values]
            groups = [group for group in spoiled if group is not None]
            if groups:
                await self.index_catches_up(store)
                await self._use(store, groups)
                await self._free(store, [(group, "edited") for group in groups])

    async def _spoil(self, store: Store, place: Place, column: str, value: Any) -> str | None:
        """A group with an edited row, which is due first; None if the database refused that."""
        group = f"{column} {value!r:.30}"
        keys = [new(f"{group} keys", key) for key in ("edited", "sound")]
        rows = [new(group, key) for key in ("a", "z")]
        await store.write([new(group, "edited", due_at=NOW - 1), *rows, *keys], NOW)
        taken = await self.edit(place, (group, "edited"), column, value)
        # If the key was edited, the record cannot be found by it.
        if taken and column != "key":
            await self.edit(place, (f"{group} keys", "edited"), column, value)
        return group if taken else None

    async def _use(self, store: Store, groups: Sequence[str]) -> None:
        """Claims, reads and writes the records around the edited rows, several times."""
        held = await self._claim_sound(store, groups, NOW, "first")
        await self._read(store, groups, held)
        await self._settle(store, groups, held)
        await self._claim_sound(store, groups, NOW, "second")
        more: list[dict[str, Any]] = [{}, {"unfinished_max": 1_000}, {"repeated": True}]
        for turn, options in enumerate(more):
            now = NOW + (turn + 3) * LEASE
            await self._claim_sound(store, groups, now, f"later {turn}", **options)

    async def _claim_sound(
        self, store: Store, groups: Sequence[str], now: int, token: str, **options: Any
    ) -> list[Record]:
        """Claims from all these groups and keys at once: all other records are returned."""
        sources: list[Source] = []
        for group in groups:
            sources.append(a_group(group, before=now))
            sources += [a_key(key, f"{group} keys") for key in ("edited", "sound")]
        records, next_due = await self.claim(store, sources, 1_000, now, token, **options)
        assert len(next_due) == len(sources)
        _check_types(records)
        sound = [record for record in records if record.key in ("a", "z", "sound")]
        expected = [
            identity
            for group in groups
            for identity in ((group, "a"), (group, "z"), (f"{group} keys", "sound"))
        ]
        assert sorted(record[:2] for record in sound) == sorted(expected)
        assert {(record.token, record.due_at) for record in sound} == {(token, now + LEASE)}
        return sound

    async def _read(self, store: Store, groups: Sequence[str], held: list[Record]) -> None:
        assert await store.get([record[:2] for record in held]) == held
        edited = [(name, "edited") for group in groups for name in (group, f"{group} keys")]
        _check_types(await store.get(edited))
        for group in groups:
            found = await pages_of(store, group)
            _check_types(found)
            assert [key for key in keys_of(found) if key in "az"] == ["a", "z"]
            assert len(found) <= 3
            where = Filter(frozenset([State.RUNNING]), "", NOW + 2 * LEASE)
            found = await pages_of(store, group, where, limit=1)
            assert [key for key in keys_of(found) if key in "az"] == ["a", "z"]

    async def _settle(self, store: Store, groups: Sequence[str], held: Sequence[Record]) -> None:
        """Writes the outcomes of claimed records, in a batch with changes of edited rows."""
        edited = await store.get([(group, "edited") for group in groups])
        soon = Patch(NOW, State.SCHEDULED, 0)
        batch = [
            Write(*record[:2], soon, record.version, record.token)
            for record in [*held, *edited]
            # Never ABSENT or ANY, whatever was read.
            if record is not None and record.version > 0
        ]
        batch.sort()
        results = await store.write(batch, NOW)
        assert len(results) == len(batch)
        sound = {record[:2] for record in held}
        for write, result in zip(batch, results, strict=True):
            assert write[:2] not in sound or isinstance(result, Applied), (write, result)

    async def _free(self, store: Store, edited: Sequence[Identity]) -> None:
        """A user can replace an edited record, and remove it."""
        results = await store.write([Write(*identity, put(), ANY) for identity in edited], NOW)
        assert await store.get(edited) == [
            Record(*identity, version=version_of(result), **put()._asdict())
            for identity, result in zip(edited, results, strict=True)
        ]
        results = await store.write([Write(*identity, Delete(), ANY) for identity in edited], NOW)
        assert results == [Applied(0)] * len(edited)
        assert await store.get(edited) == [None] * len(edited)


def _check_types(records: Iterable[Record | None]) -> None:
    """The fields of a record have their declared types, whatever the row contains."""
    for record in records:
        if record is None:
            continue
        assert type(record.version) is int, record
        assert type(record.unfinished_attempts) is int, record
        assert record.due_at is None or type(record.due_at) is int, record
        assert record.token is None or isinstance(record.token, str), record
        for text in (record.group, record.key, record.state, record.schedule, record.args):
            assert isinstance(text, str), record
        assert isinstance(record.progress, str), record
