"""The simulated store: what its faults do to its calls, each by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from itertools import product
from random import Random
from typing import Any, Final

import pytest
from tests.simulation.event_loop import WORLD, SimulatedLoop
from tests.simulation.history import EPOCH
from tests.simulation.model import claimable, taken_before, written
from tests.simulation.plan import Fault, Kind, Plan
from tests.simulation.world import Broken, World

from pyncette.engine.moves import Mark, marked
from pyncette.store import Applied, Failed, Group, Key, Refused, Source, Write
from pyncette.store.record import (
    ABSENT,
    ANY,
    DELETE,
    STATIC_GROUP,
    Patch,
    Put,
    Record,
    State,
)

SECOND: Final = 1_000_000
NOW: Final = EPOCH


def _world(*faults: Fault, **fields: Any) -> World:
    loop = SimulatedLoop(Random(1))  # type: ignore[abstract]
    return World(Plan(0, faults=faults, **fields), loop)


def _put(due_at: int | None = NOW, **fields: Any) -> Put:
    return Put(due_at, State.SCHEDULED, None, 0, "s", "a", "p")._replace(**fields)


def _write(world: World, *writes: Write, now: int = NOW, wake: Collection[str] = ()) -> list[Any]:
    return world.store.write("w", writes, now, wake, False)


def _fill(world: World, *keys: str, group: str = "g", **fields: Any) -> None:
    _write(world, *(Write(group, key, _put(**fields), ANY) for key in keys))


def _claim(world: World, *sources: Source, **options: Any) -> list[str]:
    options = {
        "limit": 9,
        "now": NOW,
        "token": "t",
        "repeated": False,
        "bounded": False,
        "unfinished_max": None,
        **options,
    }
    return sorted(record.key for record in world.store.claim("w", sources, **options).records)


def _group(share: int = 9, before: int = NOW) -> Group:
    return Group("g", 5 * SECOND, share, before)


# Claims.


def test_a_repeated_claim_gives_what_it_has_taken_within_its_bounds() -> None:
    for share, limit, most in product((1, 2, 9), (1, 2, 9), (None, 0, 1)):
        world = _world()
        _fill(world, "a", "b", "c")
        assert len(_claim(world, _group(3), limit=3)) == 3
        again = _claim(world, _group(share), limit=limit, repeated=True, unfinished_max=most)
        assert len(again) == min(share, limit, 3)
        # Another token has taken nothing, and neither has a claim of another instant.
        assert _claim(world, _group(), token="u", repeated=True) == []
        assert _claim(world, _group(), now=NOW + 1, repeated=True) == []


def test_a_record_with_more_attempts_than_it_may_have_is_left() -> None:
    for most, attempts in product((None, 0, 1, 2), (0, 1, 2)):
        world = _world()
        _fill(world, "a", unfinished_attempts=attempts)
        found = _claim(world, _group(), unfinished_max=most)
        assert bool(found) is (most is None or attempts <= most)
        if found:
            again = _claim(world, _group(), unfinished_max=most, repeated=True)
            assert again == found


def test_a_claim_takes_what_is_due_by_its_own_bounds() -> None:
    for due, before, now in product((-1, 0, 1), repeat=3):
        world = _world()
        _fill(world, "a", due_at=NOW + due)
        assert bool(_claim(world, _group(before=NOW + before), now=NOW + now)) is (
            due <= min(before, now)
        )
    for ahead, bounded, has_clock in product((0, 5), (False, True), (False, True)):
        world = _world(store_clock=has_clock)
        _fill(world, "a", due_at=NOW + ahead)
        late = _group(before=NOW + 9)
        found = _claim(world, late, now=NOW + 9, bounded=bounded)
        assert bool(found) is (ahead == 0 or not (bounded and has_clock))


def test_a_static_record_is_claimed_by_its_key_alone() -> None:
    world = _world()
    _fill(world, "a", "b", group=STATIC_GROUP)
    assert _claim(world, Key(STATIC_GROUP, "a", SECOND)) == ["a"]
    assert _claim(world, Key(STATIC_GROUP, "c", SECOND)) == []


def test_of_what_is_due_the_oldest_is_taken_first() -> None:
    for limit, share in product((0, 1, 2, 3), (1, 2, 3)):
        world = _world()
        for number, key in enumerate("cab"):
            _fill(world, key, due_at=NOW - number)
        assert _claim(world, _group(share), limit=limit) == sorted("bac"[: min(limit, share)])
        claimed = world.store.claim("w", [_group()], 0, NOW, "x", False, False, None)
        left = 3 - min(limit, share)
        expected = NOW - 2 + min(limit, share) if left else NOW + 5 * SECOND
        assert claimed.next_due == [expected]


def test_a_claim_that_breaks_the_contract_is_refused() -> None:
    world = _world()
    with pytest.raises(Broken):
        _claim(world, _group(), _group())
    world.store.strict = False
    assert _claim(world, _group()) == []


# What faults do.


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_record_that_is_locked_is_neither_claimed_nor_written(strength: float) -> None:
    world = _world(Fault(Kind.LOCKED, 0, 10, strength=strength))
    locked = strength == 1.0
    put = Record("g", "a", NOW, 3, None, State.SCHEDULED, 0, "s", "a", "p")
    world.store._set(("g", "a"), put)
    answers = _write(
        world,
        Write("g", "a", _put(), ANY),
        Write("g", "b", _put(), ABSENT),
        Write("g", "c", _put(), 3),
    )
    if locked:
        assert [type(answer) for answer in answers] == [Failed, Failed, Refused]
        assert world.store.records == {("g", "a"): put}
        assert _write(world, Write("g", "a", _put(), 3)) == [Refused(put)]
    else:
        assert [type(answer) for answer in answers] == [Applied, Applied, Refused]
    assert bool(_claim(world, _group())) is not locked


def test_some_writes_of_a_batch_have_an_unknown_end() -> None:
    seen: dict[tuple[str, bool], int] = {}
    for number in range(60):
        world = _world()
        world._serials["partial"] = 10 * number
        writes = [Write("g", key, _put(), ABSENT) for key in "ab"]
        answers = world.store.write("w", writes, NOW, (), True)
        for write, answer in zip(writes, answers, strict=True):
            key = (type(answer).__name__, (write.group, write.key) in world.store.records)
            seen[key] = seen.get(key, 0) + 1
    assert set(seen) == {
        ("Failed", False),
        ("Unknown", True),
        ("Unknown", False),
        ("Applied", True),
    }
    # Two fifths are applied and told, and a fifth of each other kind.
    assert 35 <= seen["Applied", True] <= 61
    assert all(12 <= seen[key] <= 36 for key in seen if key != ("Applied", True))


def test_a_restart_ends_what_is_under_way_and_every_registration() -> None:
    world = _world()
    world.store.watch("w", ["g"], lambda groups: None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done, waits = loop.create_future(), loop.create_future()
        done.set_result("an answer")
        world.store.under_way = {done: "w", waits: "w"}
        world.store.restart()
        assert done.result() == "an answer"
        assert waits.exception() is not None
        assert not world.store._watches

    world.loop.run_until_complete(world.loop.start(WORLD, main()))
    world.loop.close()


@pytest.mark.parametrize(
    ("how", "value"), [("version=-7", -7), ("version=12", 12), ("args=-", "-"), ("args=x1", "x1")]
)
def test_an_edit_writes_what_it_says_into_one_record(how: str, value: Any) -> None:
    world = _world()
    _fill(world, "a", "b")
    before = dict(world.store.records)
    world.store.edit("a", how)
    column = how.partition("=")[0]
    assert getattr(world.store.records["g", "a"], column) == value
    assert world.store.records["g", "b"] == before["g", "b"]


def test_a_restored_store_has_what_was_durable_and_nothing_else() -> None:
    world = _world()
    _fill(world, "kept", "gone", "changed")
    world.store.save()
    durable = dict(world.store.records)
    _write(world, Write("g", "gone", DELETE, ANY), Write("g", "new", _put(), ANY))
    _write(world, Write("g", "changed", _put(args="other"), ANY))
    world.store.watch("w", ["g"], lambda groups: None)
    world.store.restore()
    assert world.store.records == durable
    assert not world.store._watches
    # What has not changed is not written again.
    lengths = [len(world.store._past["g", key]) for key in ("kept", "gone", "changed", "new")]
    assert lengths == [2, 4, 4, 3]


def test_an_index_that_lags_shows_what_was_there() -> None:
    world = _world(Fault(Kind.LAGGING, 5, 10, strength=3.0))
    store = world.store
    _fill(world, "a", due_at=NOW + 1)

    async def main() -> None:
        first = store.records["g", "a"]
        assert store._shown(first) == first
        await asyncio.sleep(6)
        _fill(world, "a", due_at=NOW + 2)
        now = store.records["g", "a"]
        # Shown is what it was up to three seconds ago.
        assert {store._shown(now) for _ in range(30)} == {first}
        assert store._next_due(_group()) == NOW + 1
        assert _claim(world, _group(before=NOW + 9), now=NOW + 9) == []
        await asyncio.sleep(1.5)
        assert {store._shown(now) for _ in range(60)} == {first, now}
        await asyncio.sleep(3)
        assert {store._shown(now) for _ in range(30)} == {now}
        _write(world, Write("g", "b", _put(), ABSENT))
        assert store._shown(store.records["g", "b"]) is None
        assert store._next_due(_group()) == NOW + 2
        _write(world, Write("g", "a", Patch(None, State.FINISHED, 0), ANY))
        await asyncio.sleep(3)
        assert store._next_due(_group()) == NOW

    world.loop.run_until_complete(world.loop.start(WORLD, main()))
    world.loop.close()


@pytest.mark.parametrize("deaf", [None, 0.0, 1.0])
def test_watchers_of_a_group_are_told_unless_they_are_gone(deaf: float | None) -> None:
    faults = () if deaf is None else (Fault(Kind.DEAF, 0, 10, strength=deaf),)
    world = _world(*faults)
    told: list[tuple[str, list[str]]] = []

    def watch(process: str, *groups: str) -> Any:
        def tell(named: Collection[str] | None) -> None:
            told.append((process, sorted(named or ())))

        return world.store.watch(process, groups, tell)

    async def main() -> None:
        watch("both", "g", "h")
        watch("one", "h")
        watch("crashed", "g")
        watch("closed", "g").close()
        world.loop.crash("crashed")
        _write(world, Write("g", "a", _put(), ANY), wake=())
        await asyncio.sleep(1)
        assert told == []
        _write(world, Write("g", "a", _put(), ANY), wake=["g", "h", "i"])
        await asyncio.sleep(1)
        assert sorted(told) == ([] if deaf == 1.0 else [("both", ["g", "h"]), ("one", ["h"])])
        told.clear()
        late = watch("late", "g")
        _write(world, Write("g", "a", _put(), ANY), wake=["g"])
        late.close()
        await asyncio.sleep(1)
        assert told == ([] if deaf == 1.0 else [("both", ["g"])])

    world.loop.run_until_complete(world.loop.start(WORLD, main()))
    world.loop.close()


# What it notes.


def test_an_instance_in_two_partitions_is_noted() -> None:
    def noted(*writes: Write) -> int:
        world = _world()
        _write(world, *writes)
        return sum(event.kind == "two places" for event in world.history)

    here, there = Write("t:1", "a", _put(), ANY), Write("t:2", "a", _put(), ANY)
    origin = Record("t:1", "a", NOW, 1, None, State.SCHEDULED, 0, "s", "a", "p")
    mark = Write("t:1", "a", marked(origin, Mark("c", "t:2")), ANY)
    assert noted(here, there) == 1
    assert noted(here, Write("t:2", "b", _put(), ANY)) == 0
    assert noted(here, Write("u:2", "a", _put(), ANY)) == 0
    assert noted(mark, there) == 0
    assert noted(there, mark) == 0
    assert noted(here, Write("t:2", "a", DELETE, ANY)) == 0
    assert noted(Write("t", "a", _put(), ANY), Write("u", "a", _put(), ANY)) == 0
    assert noted(here) == 0


def test_what_is_written_is_noted_once() -> None:
    world = _world()
    _fill(world, "a")
    _write(world, Write("g", "a", _put(), 99), Write("g", "b", DELETE, ANY))
    _write(world, Write("g", "a", DELETE, ANY))
    noted = [event for event in world.history if event.kind == "written"]
    assert [(event.details["state"], event.details["due"]) for event in noted] == [
        ("scheduled", NOW),
        ("gone", None),
    ]


# The model.


def test_a_claim_takes_only_what_is_due_and_as_it_was_shown() -> None:
    base = Record("g", "a", 5, 3, None, State.SCHEDULED, 0, "", "", "")
    for due, shown_due, version, before in product((None, 4, 5), (None, 4, 5), (3, 4), (4, 5)):
        record, shown = base._replace(due_at=due), base._replace(due_at=shown_due, version=version)
        expected = (
            due is not None
            and due <= before
            and shown_due is not None
            and shown_due <= before
            and version == 3
        )
        assert claimable(record, shown, before) is expected


def test_a_claim_knows_what_it_has_taken_by_its_token_and_its_instant() -> None:
    record = Record("g", "a", 9, 3, "t", State.RUNNING, 1, "", "", "")
    for token, now, lease in product(("t", "u"), (4, 5), (4, 5)):
        assert taken_before(record, lease, now, token) is (token == "t" and now + lease == 9)


def test_a_write_is_made_if_the_record_is_what_it_expects() -> None:
    there = Record("g", "a", 9, 3, "t", State.RUNNING, 1, "s", "a", "p")
    changes: list[Any] = [
        _put(),
        DELETE,
        Patch(4, State.SCHEDULED, 0),
        Patch(4, State.SCHEDULED, 0, "q"),
    ]
    for current, expect, token, change in product(
        (None, there), (ABSENT, ANY, 3, 4), (None, "t", "u"), changes
    ):
        record, answer = written(current, Write("g", "a", change, expect, token), 7)
        version = ABSENT if current is None else 3
        holds = expect in (version, ANY) and (
            token is None or (current is not None and token == "t")
        )
        if not holds:
            assert (record, answer) == (current, Refused(current))
        elif isinstance(change, Put):
            assert answer == Applied(7)
            assert record == Record("g", "a", NOW, 7, None, State.SCHEDULED, 0, "s", "a", "p")
        elif current is None or change is DELETE:
            assert (record, answer) == (None, Applied(ABSENT))
        else:
            assert answer == Applied(7)
            text = change.progress or "p"
            assert record == Record("g", "a", 4, 7, "t", State.SCHEDULED, 0, "s", "a", text)
