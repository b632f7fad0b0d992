"""The writes that move one instance, in any order of two movers, late writes, crashes and runs."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest

from pyncette import PyncetteException, chance
from pyncette.engine.moves import (
    Mark,
    Pair,
    Step,
    arriving,
    copy_of,
    in_transit,
    mark_of,
    marked,
    next_step,
    record_after,
)
from pyncette.engine.partitions import read_fact
from pyncette.store import Write, expectation_holds, next_version
from pyncette.store.record import Delete, Put, Record, dump_args

ORIGIN: Final = "t:1"
TARGET: Final = "t:5"
NOW: Final = 1_000_000_000


class Mover:
    """A process that moves the instance, as ``Places`` does: it knows what it has read."""

    def __init__(self) -> None:
        self.pair: Pair | None = None
        self.asks: str | None = None
        self.sent: Write | None = None

    def forget(self) -> None:
        self.pair = self.asks = self.sent = None


class World:
    """Two places of one instance, and all that may happen to them."""

    def __init__(self, random: Random, *, runs: bool) -> None:
        self.random = random
        self.version = 10
        record = Record(ORIGIN, "x", 5, 10, None, "scheduled", 0, "1 at 5", '1 {"n":0}', "1 5 inc")
        self.records: dict[str, Record] = {ORIGIN: record}
        self.movers = [Mover(), Mover()]
        self.flying: list[tuple[Mover, Write]] = []
        self.runs_allowed = runs
        self.runs = 0
        self.changes = 0

    def apply(self, write: Write) -> tuple[bool, Record | None]:
        """Makes a write if its condition holds; returns the record afterwards."""
        current = self.records.get(write.group)
        if not expectation_holds(write, current):
            return False, current
        version = next_version(0 if current is None else current.version, self.version)
        self.version += self.random.choice((0, 0, 1))  # the clock may stand still
        if isinstance(write.change, Delete):
            del self.records[write.group]
            return True, None
        assert isinstance(write.change, Put)
        empty = Record(write.group, write.key, None, 0, None, "", 0, "", "", "")
        record = record_after(current or empty, write.change, version)
        self.records[write.group] = record
        assert len(self.live()) <= 1, "the instance lies in two places"
        return True, record

    def live(self) -> list[Record]:
        return [record for record in self.records.values() if not in_transit(record)]

    # What may happen.

    def scan(self, mover: Mover) -> None:
        group = self.random.choice((ORIGIN, TARGET))
        record = self.records.get(group)
        mover.forget()
        if record is None:
            return
        if group == ORIGIN and copy_of(record) is None:
            mover.pair, mover.asks = Pair("x", ORIGIN, TARGET, record, None), "target"
        elif group == TARGET and copy_of(record) is not None:
            mover.pair, mover.asks = Pair("x", ORIGIN, TARGET, None, record), "origin"

    def go_on(self, mover: Mover) -> None:
        if mover.pair is None:
            self.scan(mover)
        elif mover.asks is not None:
            group = ORIGIN if mover.asks == "origin" else TARGET
            self.learn(mover, mover.asks, self.records.get(group))
            mover.asks = None
        elif mover.sent is None:
            match next_step(mover.pair, NOW):
                case Write() as write:
                    mover.sent = write
                    self.flying.append((mover, write))
                case Step.READ_ORIGIN:
                    mover.asks = "origin"
                case Step.READ_TARGET:
                    mover.asks = "target"
                case _:
                    mover.forget()

    def learn(self, mover: Mover, side: str, record: Record | None) -> None:
        assert mover.pair is not None
        if side == "origin":
            mover.pair = mover.pair._replace(newer=side, origin=record)
        else:
            mover.pair = mover.pair._replace(newer=side, target=record)

    def arrive(self) -> None:
        mover, write = self.flying.pop(self.random.randrange(len(self.flying)))
        _, record = self.apply(write)
        if mover.sent is write:
            if self.random.random() < 0.2:
                mover.forget()  # the answer is lost
            else:
                mover.sent = None
                self.learn(mover, "origin" if write.group == ORIGIN else "target", record)

    def disturb(self) -> None:
        live = self.live()
        if not live:
            return
        [record] = live
        if self.runs_allowed and self.random.random() < 0.3:
            del self.records[record.group]  # a one-off that was run
            self.runs += 1
        else:
            version = next_version(record.version, self.version)
            self.changes += 1
            args = f'1 {{"n":{self.changes}}}'
            self.records[record.group] = record._replace(version=version, args=args)

    def happen(self) -> None:
        for _ in range(self.random.randrange(80)):
            draw = self.random.random()
            if draw < 0.5:
                self.go_on(self.random.choice(self.movers))
            elif draw < 0.8:
                if self.flying:
                    self.arrive()
            elif draw < 0.9:
                self.disturb()
            else:
                self.random.choice(self.movers).forget()  # it crashes; what it sent may arrive
        while self.flying:
            self.arrive()

    def end(self) -> None:
        """One more mover, to which nothing happens."""
        mover = Mover()
        for _ in range(200):
            self.go_on(mover)
            while self.flying:
                mover, write = self.flying.pop()
                _, record = self.apply(write)
                mover.sent = None
                self.learn(mover, "origin" if write.group == ORIGIN else "target", record)


@pytest.mark.parametrize("seeds", [200, pytest.param(4_000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("runs", [False, True])
def test_an_instance_is_never_lost_and_never_doubled_whatever_happens_to_its_move(
    runs: bool, seeds: int
) -> None:
    moved = 0
    for seed in range(seeds):
        random = Random(seed)
        with chance.use(random):
            world = World(random, runs=runs)
            world.happen()
            assert world.runs <= 1, seed
            assert len(world.live()) + world.runs <= 1, seed
            world.end()
        left = [*world.records.values()]
        assert len(left) + world.runs == 1, seed
        if not world.runs:
            [record] = left
            assert record.group == TARGET, seed
            args = f'1 {{"n":{world.changes}}}'
            kept = (5, None, "scheduled", 0, "1 at 5", args, "1 5 inc")
            assert (record.due_at, *record[4:]) == kept, seed
            moved += 1
    assert moved == seeds if not runs else moved > seeds / 10


def test_a_mark_that_points_elsewhere_is_left_for_later() -> None:
    record = Record(ORIGIN, "x", 5, 10, None, "scheduled", 0, "1 at 5", "1 {}", "1 5 inc")
    mark = record_after(record, marked(record, Mark("id", "t:9")), 11)
    assert next_step(Pair("x", ORIGIN, TARGET, mark, None, "target"), NOW) is Step.WAIT


def test_a_copy_of_another_origin_is_not_touched() -> None:
    record = Record(ORIGIN, "x", 5, 10, None, "scheduled", 0, "1 at 5", "1 {}", "1 5 inc")
    elsewhere = record._replace(group="t:7")
    copy = record_after(record._replace(group=TARGET), arriving(elsewhere), 11)
    assert next_step(Pair("x", ORIGIN, TARGET, record, copy, "origin"), NOW) is Step.ELSEWHERE
    assert next_step(Pair("x", ORIGIN, TARGET, None, copy, "origin"), NOW) is Step.DONE


@pytest.mark.parametrize(
    "progress",
    [
        "2 moving x",
        "2 moving 5",
        "2 moving []",
        '2 moving ["copy"]',
        '2 moving ["mark",1,2]',
        '2 moving ["copy","i","g",1,null,null,"lost",null,"1 5 inc"]',
        "2 moving " + "[" * 100_000,
    ],
)
def test_a_copy_or_mark_that_was_edited_is_an_unreadable_record_and_stops_its_move(
    progress: str,
) -> None:
    record = Record(ORIGIN, "x", None, 10, None, "finished", 0, "1 at 5", "1 {}", progress)
    assert not in_transit(record)
    assert copy_of(record) is None
    assert mark_of(record) is None
    assert next_step(Pair("x", ORIGIN, TARGET, record, None, "target"), NOW) is Step.BROKEN
    target = record._replace(group=TARGET)
    assert next_step(Pair("x", ORIGIN, TARGET, None, target, "target"), NOW) is Step.BROKEN


@pytest.mark.parametrize("count", [0, -1, 10_001, 10**30, True, "4", None])
def test_a_control_record_with_an_absurd_count_is_refused(count: object) -> None:
    for args in ({"partition_count": count}, {"partition_count": 4, "from": [count]}):
        text = dump_args(args)
        record = Record(":control", "partitions:t", None, 1, None, "finished", 0, "", text, "")
        with pytest.raises(PyncetteException, match="does not say how many partitions"):
            read_fact(record)
