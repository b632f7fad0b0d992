"""Conformance: get and scan, and that every key, text and instant comes back as written."""

from __future__ import annotations

from pyncette.store import EVERYTHING, Counted, Filter, Key, Store, Write
from pyncette.store.record import ABSENT, ANY, LATEST_INSTANT, Delete, Patch, State
from pyncette.testing.suite.harness import (
    ENDLESS,
    NOW,
    SECOND,
    Place,
    Suite,
    a_group,
    keys_of,
    new,
    on_place,
    on_store,
    pages_of,
    put,
    record_of,
    version_of,
    without_repetition,
)

AWKWARD = [
    "a",
    "A",
    "á",
    "a\u0301",
    "á ",
    "a ",
    " a",
    "a  ",
    "\ta\n",
    "\r\n",
    "a:b",
    "::",
    ":",
    "%",
    "%%",
    "_",
    "a%",
    "a_",
    "[a]",
    "*",
    "?",
    "a*",
    "\\",
    "\\\\",
    "\\%",
    "'",
    "''",
    '"',
    "`",
    "'; DROP TABLE pyncette_tasks; --",
    "{a}",
    "${a}",
    "$1",
    ":1",
    "%s",
    "{0}",
    "null",
    "NULL",
    "0",
    "00",
    "-1",
    "1e3",
    "ß",
    "ss",
    "ẞ",
    "İ",
    "i",
    "ı",
    "I",
    "ｉ",
    "日本語",
    "مرحبا",
    "👩‍👩‍👧‍👦",
    "😀",
    "\uffff",
    "\ufffd",
    "\ufeff",
    "\U0010ffff",
    "\x01",
    "\x7f",
    "\x80",
    "\u200b",
    "\u2028",
]
"""Names that some store has confused with each other, or with something else."""

TEXTS = {
    "empty": "",
    "plain": "1 {}",
    "spaces": "  1  ",
    "unicode": "1 ÄÖÜ 日本語 😀 \U0010ffff a\u0301",
    "quotes": "1 ' '' \" ` \\ \\\\ \\' \\n",
    "lines": "1 \r\n\t\n\x01\x1f\x7f\u2028\ufeff",
    "placeholders": "1 $1 :a %s %(a)s ? {0} {a}",
    "number": "0012",
    "digits": "1764000000000000123457.0",
    "JSON": '1 {"a":[1.0,12345678901234567890,"\\u0000",null],"b":"</script>"}',
    "long": "1 " + "ä😀x" * 12_500,
}

INSTANTS = [
    LATEST_INSTANT,
    LATEST_INSTANT - 1,
    2**52 + 1,
    2**52,
    NOW,
    1_764_000_000_000_001,
    1_764_000_000_999_999,
    1_700_000_000_100_003,
    10**15,
    10**14 - 1,
    1,
    0,
    -1,
    -999_999,
    -62_135_596_800 * SECOND,
]
"""Microseconds from the year 1 to 2254; a store that formats or rounds them may lose some."""


class Reading(Suite):
    """Tests of ``get`` and ``scan``."""

    @on_store
    async def test_records_are_got_in_the_order_asked(self, store: Store) -> None:
        await self.add(store, "reports", "a", "b", "c")
        await self.add(store, "other", "b")
        asked = [
            ("reports", "c"),
            ("absent", "a"),
            ("other", "b"),
            ("reports", "x"),
            ("reports", "a"),
            ("other", "a"),
        ]
        records = await store.get(asked)
        assert [record and record[:2] for record in records] == [
            ("reports", "c"),
            None,
            ("other", "b"),
            None,
            ("reports", "a"),
            None,
        ]

    @on_store
    async def test_many_records_are_got_at_once(self, store: Store) -> None:
        keys = [f"key {number}" for number in range(1_500)]
        await self.add(store, "reports", *keys[::2])
        records = await store.get([("reports", key) for key in keys])
        assert [record and record.key for record in records] == [
            None if number % 2 else key for number, key in enumerate(keys)
        ]
        assert await store.get([]) == []

    @on_store
    async def test_what_was_written_is_read_at_once(self, store: Store) -> None:
        [version] = await self.add(store, "reports", "a")
        for turn in range(20):
            patch = Patch(NOW + turn, State.SCHEDULED, turn, f"{turn}")
            [result] = await store.write([Write("reports", "a", patch, version)], NOW)
            version = version_of(result)
            assert (await record_of(store, "reports", "a")).progress == f"{turn}"

    @on_store
    async def test_a_scan_of_an_absent_group_is_empty(self, store: Store) -> None:
        assert await pages_of(store, "absent") == []

    @on_store
    async def test_a_scan_returns_all_records_of_its_group_and_no_other(self, store: Store) -> None:
        keys = [f"key {number}" for number in range(25)]
        for group in ("reports", "reports:1", "Reports", "report"):
            await self.add(store, group, *keys, args=group)
        for limit in (1, 7, 25, 1_000):
            records = await pages_of(store, "reports", EVERYTHING, limit)
            assert without_repetition(records) == set(keys)
            assert {record.args for record in records} == {"reports"}
        assert sorted(records) == sorted([await record_of(store, "reports", key) for key in keys])

    @on_store
    async def test_a_scan_returns_records_without_an_instant(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=None, state=State.PAUSED)
        await self.add(store, "reports", "b")
        assert keys_of(await pages_of(store, "reports")) == ["a", "b"]

    @on_store
    async def test_a_scan_filters_by_state(self, store: Store) -> None:
        for state in State:
            await self.add(store, "reports", state.value, state=state.value)
        wanted = frozenset({State.PAUSED, State.PARKED})
        for limit in (1, 100):
            records = await pages_of(store, "reports", Filter(states=wanted), limit)
            assert keys_of(records) == ["parked", "paused"]
        assert await pages_of(store, "reports", Filter(states=frozenset())) == []

    @on_store
    async def test_a_scan_filters_by_instant(self, store: Store) -> None:
        await self.add(store, "reports", "before", due_at=NOW - 1)
        await self.add(store, "reports", "at", due_at=NOW)
        await self.add(store, "reports", "never", due_at=None)
        records = await pages_of(store, "reports", Filter(due_before=NOW))
        assert keys_of(records) == ["before"]
        records = await pages_of(store, "reports", Filter(due_before=NOW + 1))
        assert keys_of(records) == ["at", "before"]

    @on_store
    async def test_a_scan_filters_by_a_bytewise_prefix(self, store: Store) -> None:
        await self.add(store, "reports", *AWKWARD)
        for prefix in {key[:length] for key in AWKWARD for length in (1, 2, len(key))}:
            expected = [key for key in AWKWARD if key.encode().startswith(prefix.encode())]
            records = await pages_of(store, "reports", Filter(prefix=prefix), 3)
            assert without_repetition(records) == set(expected), f"prefix {prefix!r}"
        assert await pages_of(store, "reports", Filter(prefix="absent")) == []

    @on_store
    async def test_a_prefix_reaches_to_the_last_character_there_is(self, store: Store) -> None:
        keys = ["a", "a\uffff", "a\U0010ffff", "a\U0010ffff\U0010ffff", "a\U0010ffffb"]
        await self.add(store, "reports", "b", "A", "`", *keys)
        records = await pages_of(store, "reports", Filter(prefix="a"), 2)
        assert keys_of(records) == sorted(keys)
        records = await pages_of(store, "reports", Filter(prefix="a\U0010ffff"), 1)
        assert keys_of(records) == sorted(keys[2:])

    @on_store
    async def test_the_conditions_of_a_scan_hold_together(self, store: Store) -> None:
        for number in range(40):
            await self.add(
                store,
                "reports",
                f"{'ab'[number % 2]}{number}",
                due_at=NOW + number // 4 if number % 5 else None,
                state=[State.SCHEDULED, State.RETRYING][number % 3 == 0],
            )
        where = Filter(frozenset({State.RETRYING}), "a", NOW + 7)
        expected = [
            f"a{number}"
            for number in range(0, 28, 2)
            if number % 3 == 0 and number % 5 and number // 4 < 7
        ]
        for limit in (1, 2, 1_000):
            records = await pages_of(store, "reports", where, limit)
            assert keys_of(records) == sorted(expected)

    @on_store
    async def test_a_count_is_exact_up_to_its_limit_and_says_so_beyond(self, store: Store) -> None:
        assert await store.count("reports", EVERYTHING, 5) == Counted(0, True)
        await self.add(store, "reports", *"abcdefg")
        await self.add(store, "reports:1", "other")
        assert await store.count("reports", EVERYTHING, 100) == Counted(7, True)
        assert await store.count("reports", EVERYTHING, 7) == Counted(7, True)
        assert await store.count("reports", EVERYTHING, 6) == Counted(6, False)
        assert await store.count("reports", EVERYTHING, 1) == Counted(1, False)

    @on_store
    async def test_a_count_counts_what_a_scan_returns(self, store: Store) -> None:
        batch = [
            new("reports", f"{key}{state}{due_at}", state=state, due_at=due_at)
            for state in State
            for due_at in (NOW - 1, NOW, NOW + 1, None)
            for key in ("a%", "ab", "b", "é")
        ]
        await store.write(batch, NOW)
        await self.index_catches_up(store)
        for states in (None, [], *([state] for state in State), ["paused", "parked"], list(State)):
            for prefix in ("", "a", "a%", "é", "z"):
                for due_before in (None, NOW, NOW + 1):
                    chosen = None if states is None else frozenset(map(State, states))
                    where = Filter(chosen, prefix, due_before)
                    matching = len(await pages_of(store, "reports", where, 31))
                    assert await store.count("reports", where, 1_000) == (matching, True), where
                    if matching > 1:
                        counted = await store.count("reports", where, matching - 1)
                        assert counted == (matching - 1, False), where

    @on_store
    async def test_a_count_is_never_more_than_there_is(self, store: Store) -> None:
        for state in (State.SCHEDULED, State.PARKED):
            await self.add(store, "reports", f"{state}", state=state, due_at=None)
        await store.write([Write("reports", "parked", Delete(), ANY)], NOW)
        for states in (None, frozenset({State.PARKED}), frozenset({State.SCHEDULED})):
            counted = await store.count("reports", Filter(states), 10)
            gone = states == frozenset({State.PARKED})
            assert counted == (0 if gone else 1, True)

    @on_store
    async def test_a_scan_is_stable_while_others_write(self, store: Store) -> None:
        staying = [f"staying {number}" for number in range(40)]
        going = [f"going {number}" for number in range(20)]
        await self.add(store, "reports", *staying, *going)
        found = []
        cursor = None
        for turn in range(ENDLESS):
            page = await store.scan("reports", EVERYTHING, cursor, 3)
            assert len(page.records) <= 3
            found += page.records
            cursor = page.cursor
            if cursor is None:
                break
            await store.write(
                [
                    Write("reports", key, Patch(NOW - turn, State.RETRYING, turn), ANY)
                    for key in staying
                ]
                + [Write("reports", key, Delete(), ANY) for key in going[turn : turn + 1]]
                + [new("reports", f"coming {turn:03}"), new("reports", f"s{turn:03}")],
                NOW + turn,
            )
            if turn % 4 == 0:
                await store.claim([a_group(share=5)], 5, NOW, f"token {turn}")
        assert set(staying) <= without_repetition(found)

    @on_store
    async def test_a_cursor_outlives_the_record_that_it_stands_at(self, store: Store) -> None:
        keys = [f"{number:02}" for number in range(20)]
        await self.add(store, "reports", *keys)
        page = await store.scan("reports", EVERYTHING, None, 5)
        seen = keys_of(page.records)
        await store.write([Write("reports", key, Delete(), ANY) for key in seen], NOW)
        cursor = page.cursor
        while cursor is not None:
            page = await store.scan("reports", EVERYTHING, cursor, 5)
            seen += keys_of(page.records)
            cursor = page.cursor
        assert sorted(seen) == keys

    @on_store
    async def test_awkward_keys_are_kept_apart(self, store: Store) -> None:
        await store.write([new("reports", key, args=f"1 {key}") for key in AWKWARD], NOW)
        records = await store.get([("reports", key) for key in AWKWARD])
        assert [record and (record.key, record.args) for record in records] == [
            (key, f"1 {key}") for key in AWKWARD
        ]
        assert keys_of(await pages_of(store, "reports", limit=10)) == sorted(AWKWARD)
        await self.index_catches_up(store)
        claimed, _ = await self.claim(store, [a_group()])
        assert keys_of(claimed) == sorted(AWKWARD)

    @on_store
    async def test_awkward_keys_are_claimed_one_by_one(self, store: Store) -> None:
        await self.add(store, ":static", *AWKWARD)
        for number, key in enumerate(AWKWARD):
            answer = await store.claim([Key(":static", key, 5)], 1, NOW, f"token {number}")
            assert [record.key for record in answer.records] == [key]
            assert answer.next_due == [NOW + 5]

    @on_store
    async def test_awkward_groups_are_kept_apart(self, store: Store) -> None:
        await store.write([new(group, "a", args=f"1 {group}") for group in AWKWARD], NOW)
        await self.index_catches_up(store)
        for number, group in enumerate(AWKWARD):
            [record] = await pages_of(store, group)
            assert record[:2] == (group, "a")
            [claimed] = (await self.claim(store, [a_group(group)], token=f"{number}")).records
            assert claimed[:2] == (group, "a")
            assert claimed.args == f"1 {group}"

    @on_store
    async def test_group_and_key_are_not_run_together(self, store: Store) -> None:
        """("a:", "b") and ("a", ":b") are two records, however a store spells an identity."""
        for mark in (":", "/", "#", "|", "\x1f", "\t", " ", ",", ".", "-"):
            pairs = [(f"a{mark}", "b"), ("a", f"{mark}b"), (f"a{mark}{mark}", "b"), ("a", "b")]
            await store.write([new(*pair, args=repr(pair)) for pair in pairs], NOW)
            records = await store.get(pairs)
            assert [record and record.args for record in records] == [repr(p) for p in pairs]
            for pair in pairs:
                assert repr(pair) in [record.args for record in await pages_of(store, pair[0])]
            await store.write([Write(*pair, Delete(), ANY) for pair in pairs], NOW)

    @on_store
    async def test_identities_of_a_thousand_bytes(self, store: Store) -> None:
        identities = [
            ("g", "k" * 999),
            ("g", "k" * 998),
            ("g", "k" * 998 + "l"),
            ("g" * 999, "k"),
            ("g" * 998 + "h", "k"),
            ("ä" * 250, "😀" * 125),
            ("ä" * 250, "😀" * 124 + "😁"),
        ]
        await store.write([new(*identity, args=repr(identity)) for identity in identities], NOW)
        records = await store.get(identities)
        assert [record and record.args for record in records] == [repr(i) for i in identities]
        for group in {identity[0] for identity in identities}:
            expected = sorted(key for other, key in identities if other == group)
            assert keys_of(await pages_of(store, group, limit=1)) == expected
            records_claimed, _ = await self.claim(store, [a_group(group)])
            assert keys_of(records_claimed) == expected

    @on_store
    async def test_texts_come_back_as_they_were_written(self, store: Store) -> None:
        batch = [
            new("reports", name, schedule=text, args=text, progress=text, token=text[:60])
            for name, text in TEXTS.items()
        ]
        await store.write(batch, NOW)
        await self.index_catches_up(store)
        for name, text in TEXTS.items():
            record = await record_of(store, "reports", name)
            assert (record.schedule, record.args, record.progress) == (text, text, text)
            assert record.token == text[:60]
        for record in await pages_of(store, "reports", limit=2):
            text = TEXTS[record.key]
            assert (record.schedule, record.args, record.progress) == (text, text, text)
        for record in (await self.claim(store, [a_group()], token="wörker 😀'\"\\")).records:
            text = TEXTS[record.key]
            assert (record.schedule, record.args, record.progress) == (text, text, text)
            assert record.token == "wörker 😀'\"\\"

    @on_store
    async def test_a_patched_text_comes_back_as_it_was_written(self, store: Store) -> None:
        for name, text in TEXTS.items():
            [version] = await self.add(store, "reports", name)
            patch = Patch(NOW, State.SCHEDULED, 0, text)
            [result] = await store.write([Write("reports", name, patch, version)], NOW)
            version_of(result)
            assert (await record_of(store, "reports", name)).progress == text

    @on_store
    async def test_instants_and_versions_keep_every_microsecond(self, store: Store) -> None:
        for number, instant in enumerate(INSTANTS):
            key = f"{number}"
            [result] = await store.write(
                [Write("reports", key, put(due_at=instant), ABSENT)], instant
            )
            version = max(instant, 1)
            assert version_of(result) == version
            record = await record_of(store, "reports", key)
            assert (record.due_at, record.version) == (instant, version)
            patch = Patch(instant, State.SCHEDULED, 0)
            [result] = await store.write([Write("reports", key, patch, version)], 0)
            assert version_of(result) == version + 1
            record = await record_of(store, "reports", key)
            assert (record.due_at, record.version) == (instant, version + 1)
        found = {record.key: record.due_at for record in await pages_of(store, "reports")}
        assert [found[f"{number}"] for number in range(len(INSTANTS))] == INSTANTS

    @on_store
    async def test_claims_keep_every_microsecond(self, store: Store) -> None:
        for number, instant in enumerate(INSTANTS):
            group = f"group {number}"
            now = min(instant, LATEST_INSTANT - 1_001)
            await self.add(store, group, "due", due_at=now, now=0)
            await self.add(store, group, "not due", due_at=now + 1, now=0)
            source = a_group(group, lease=1_001, before=now)
            records, next_due = await self.claim(store, [source], now=now, token="t")
            assert keys_of(records) == ["due"]
            assert records[0].due_at == now + 1_001
            assert records[0].version == max(2, now)
            assert records[0] == await record_of(store, group, "due")
            assert next_due == [now + 1]
            again, _ = await self.claim(store, [source], now=now, token="t", repeated=True)
            assert again == records

    @on_store
    async def test_the_oldest_instants_come_first(self, store: Store) -> None:
        for instant in (-1, 0, 1, -SECOND, 10**15, -(10**15), 9 * SECOND, 10 * SECOND):
            await self.add(store, "reports", f"{instant}", due_at=instant)
        expected = [f"{-(10**15)}", f"{-SECOND}", "-1", "0", "1", f"{9 * SECOND}"]
        for turn, key in enumerate(expected):
            records, _ = await self.claim(store, [a_group(share=1)], token=f"token {turn}")
            assert [record.key for record in records] == [key]

    @on_place
    async def test_options_of_others_are_ignored(self, place: Place) -> None:
        async with place.open(poll_interval=1, batch_size=100, no_such_option="x") as store:
            await self.add(store, "reports", "a")
            assert (await record_of(store, "reports", "a")).version == NOW
