"""Every interleaving of the moves of one instance from its partition to another one.

Two processes move it (``rebalance``, or a call that meets it on its way). Each reads one place
after the other, writes, and acts on the answer. Each may lose an answer, or crash; what it has sent
may arrive at any time later, or never. Meanwhile a user changes the instance, or it runs and is
gone, also by a worker that counts as dead and writes its outcome late.

At every moment one place at most holds the instance, and it never runs twice. And whatever has
happened: a process that moves it without being disturbed ends the move, and what a user has said
last is then at the target, and nothing else is left anywhere.

The clock of the store stands still meanwhile, so that versions are equal as often as they can be.
The search is complete: it ends where nothing new is left.

What a process knows, records and writes are interned, so that a state is a few small integers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

import pytest
from tests.simulation.explorer import Interned

from pyncette import chance
from pyncette.engine.moves import (
    EXPIRED_FOR,
    Pair,
    Step,
    copy_of,
    in_transit,
    next_step,
    record_after,
)
from pyncette.store import Write, expectation_holds, next_version
from pyncette.store.record import DELETE, Delete, Put, Record, State

ORIGIN: Final = "t:1"
TARGET: Final = "t:5"
NOW: Final = 1_000_000_000
CLOCK: Final = 10
"""What the store's clock says all the time."""

COMPLETION_STEPS_MAX: Final = 40
SCHEDULED: Final = Record(
    ORIGIN, "x", 5, 10, None, State.SCHEDULED, 0, "1 at 5", '1 {"n":0}', "1 5 inc"
)
RECORDS: Final = {
    "scheduled": SCHEDULED,
    "retrying, with the token of its last run": SCHEDULED._replace(
        token="w:1", state=State.RETRYING
    ),
    "a failure has left its lease": SCHEDULED._replace(
        token="w:1", state=State.RUNNING, due_at=NOW + 7
    ),
    "its worker counts as dead": SCHEDULED._replace(
        token="w:1", state=State.RUNNING, due_at=NOW - EXPIRED_FOR, unfinished_attempts=1
    ),
}


class Broken(Exception):  # noqa: N818
    """A promise is broken."""


class Limits(NamedTuple):
    """How often each may happen in one history."""

    changes: int = 1
    crashes: int = 1
    lost_answers: int = 1


class Mover(NamedTuple):
    """What a process knows that moves the instance.

    Attributes:
        pair: What it has read; None: nothing yet.
        asks: The place that it reads next; empty: none.
        sent: The write that it waits for.
    """

    pair: Pair | None = None
    asks: str = ""
    sent: Write | None = None


class World(NamedTuple):
    """The two places, the processes, and what is on its way; of all but counts the numbers.

    Attributes:
        origin, target: What the places hold.
        movers: The processes that move the instance.
        late: Writes whose answer reaches no process.
        runs: How often the instance has run to its end.
        changes: How often a user has changed it.
        copies: How many ids were given out.
        crashes, lost: How many there were.
    """

    origin: int
    target: int
    movers: tuple[int, ...]
    late: tuple[int, ...]
    runs: int = 0
    changes: int = 0
    copies: int = 0
    crashes: int = 0
    lost: int = 0


class _Numbered(Random):
    """Gives out the id that is next in a history, so that equal histories are equal."""

    def __init__(self, number: int) -> None:
        super().__init__(0)
        self.number = number
        self.given = False

    def randbytes(self, n: int) -> bytes:
        self.given = True
        return self.number.to_bytes(n, "big")


def _told(mover: Mover, group: str, record: Record | None) -> Mover:
    assert mover.pair is not None
    if group == ORIGIN:
        return Mover(mover.pair._replace(newer="origin", origin=record))
    return Mover(mover.pair._replace(newer="target", target=record))


def _scanned(record: Record | None, group: str) -> Mover | None:
    """A process that has found the instance in a listing of one place, if anything is there."""
    if record is None:
        return None
    if group == ORIGIN and copy_of(record) is None:
        return Mover(Pair("x", ORIGIN, TARGET, record, None), "target")
    if group == TARGET and copy_of(record) is not None:
        return Mover(Pair("x", ORIGIN, TARGET, None, record), "origin")
    return None


class Search:
    """Looks at all histories of one record."""

    def __init__(self, first: Record, limits: Limits) -> None:
        self.first = first
        self.limits = limits
        self._records: Interned[Record | None] = Interned()
        self._movers: Interned[Mover] = Interned()
        self._writes: Interned[Write] = Interned()
        self._idle = self._movers(Mover())
        self._writing: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._deciding: dict[tuple[int, str, int, int], tuple[int, int]] = {}
        self._completed: set[tuple[int, ...]] = set()

    def run(self, late: tuple[Write, ...] = ()) -> int:
        """Searches, and returns how many different states there are."""
        writes = tuple(map(self._writes, late))
        movers = (self._idle, self._idle)
        first = World(self._records(self.first), self._records(None), movers, writes)
        parents: dict[World, tuple[str, World | None]] = {first: ("", None)}
        left = deque([first])
        while left:
            world = left.popleft()
            name = ""
            try:
                for name, after in self._successors(world):
                    if after not in parents:
                        self._check(after)
                        self._check_completion(after)
                        parents[after] = (name, world)
                        left.append(after)
            except Broken as broken:
                history = [f"{name}: {broken}"]
                at: World | None = world
                while at is not None:
                    before, at = parents[at]
                    history.append(before)
                pytest.fail("\n".join(reversed(history)), pytrace=False)
        return len(parents)

    # What may happen.

    def _successors(self, world: World) -> Iterator[tuple[str, World]]:
        for index, mover in enumerate(world.movers):
            if mover not in world.movers[:index]:  # else interchangeable
                yield from self._of_mover(world, index)
        for index, write in enumerate(world.late):
            left = world._replace(late=world.late[:index] + world.late[index + 1 :])
            yield "what was sent arrives late", self._after(left, write)
        for record in self._live(world):
            if record.state != State.RUNNING:
                write = self._writes(Write(*record[:2], DELETE, record.version))
                yield "it runs and is gone", self._after(world, write)
            if world.changes < self.limits.changes:
                number = world.changes + 1
                version = next_version(record.version, CLOCK)
                changed = record._replace(version=version, args=f'1 {{"n":{number}}}')
                done = self._holding(world, record.group, self._records(changed))
                yield "a user changes it", done._replace(changes=number)

    def _of_mover(self, world: World, index: int) -> Iterator[tuple[str, World]]:
        number = world.movers[index]
        mover = self._movers.values[number]
        if mover.pair is None:
            for group in (ORIGIN, TARGET):
                scanned = _scanned(self._at(world, group), group)
                if scanned is not None:
                    yield f"{index} lists {group}", self._with(world, index, self._movers(scanned))
            return
        if mover.asks:
            group = ORIGIN if mover.asks == "origin" else TARGET
            yield f"{index} reads {group}", self._decided(world, index, group)
            return
        write = mover.sent
        assert write is not None
        sent = self._writes(write)
        arrived = self._after(world, sent)
        step = "writes to" if isinstance(write.change, Put) else "removes from"
        name = f"{index} {step} {write.group}"
        yield name, self._decided(arrived, index, write.group)
        if world.lost < self.limits.lost_answers:
            lost = arrived._replace(lost=world.lost + 1)
            yield f"{name}, and is not told", self._with(lost, index, self._idle)
        if world.crashes < self.limits.crashes:
            late = tuple(sorted((*world.late, sent)))
            crashed = world._replace(late=late, crashes=world.crashes + 1)
            yield f"{name}, and crashes", self._with(crashed, index, self._idle)

    def _decided(self, world: World, index: int, group: str) -> World:
        """A process has read, or been told, what a place holds: it decides what is next."""
        record = world.origin if group == ORIGIN else world.target
        known = (world.movers[index], group, record, world.copies)
        if known not in self._deciding:
            told = _told(self._movers.values[known[0]], group, self._records.values[record])
            assert told.pair is not None
            source = _Numbered(world.copies)
            with chance.use(source):
                step = next_step(told.pair, NOW)
            match step:
                case Write():
                    told = told._replace(sent=step)
                case Step.READ_ORIGIN:
                    told = told._replace(asks="origin")
                case Step.READ_TARGET:
                    told = told._replace(asks="target")
                case Step.BROKEN:
                    raise Broken(f"taken for broken: {told.pair}")
                case _:
                    told = Mover()
            self._deciding[known] = (self._movers(told), int(source.given))
        mover, given = self._deciding[known]
        if given:
            world = world._replace(copies=world.copies + 1)
        return self._with(world, index, mover)

    def _with(self, world: World, index: int, mover: int) -> World:
        others = world.movers[:index] + world.movers[index + 1 :]
        return world._replace(movers=tuple(sorted((*others, mover))))

    # The store.

    def _at(self, world: World, group: str) -> Record | None:
        return self._records.values[world.origin if group == ORIGIN else world.target]

    def _live(self, world: World) -> list[Record]:
        found = (self._at(world, ORIGIN), self._at(world, TARGET))
        return [record for record in found if record is not None and not in_transit(record)]

    def _holding(self, world: World, group: str, record: int) -> World:
        return world._replace(origin=record) if group == ORIGIN else world._replace(target=record)

    def _after(self, world: World, sent: int) -> World:
        """The world after a write has arrived."""
        known = (sent, world.origin, world.target)
        if known not in self._writing:
            write = self._writes.values[sent]
            current = self._at(world, write.group)
            runs, after = 0, current
            if expectation_holds(write, current):
                if isinstance(write.change, Delete):
                    runs, after = int(current is not None and not in_transit(current)), None
                else:
                    assert isinstance(write.change, Put)
                    version = next_version(0 if current is None else current.version, CLOCK)
                    empty = Record(*write[:2], None, 0, None, "", 0, "", "", "")
                    after = record_after(current or empty, write.change, version)
            done = self._holding(world, write.group, self._records(after))
            self._writing[known] = (done.origin, done.target, runs)
        origin, target, runs = self._writing[known]
        return world._replace(origin=origin, target=target, runs=world.runs + runs)

    # What is promised.

    def _check(self, world: World) -> None:
        live = len(self._live(world))
        if live > 1:
            raise Broken("both places hold it")
        if world.runs + live > 1:
            raise Broken("it has run, and is there again")

    def _check_completion(self, world: World) -> None:
        """Without any disturbance, one process ends the move."""
        known = (world.origin, world.target, world.runs, world.changes, world.copies)
        if known in self._completed:
            return
        self._completed.add(known)
        limits = self.limits
        alone = world._replace(
            movers=(self._idle,), late=(), crashes=limits.crashes, lost=limits.lost_answers
        )
        for _ in range(COMPLETION_STEPS_MAX):
            steps = list(self._of_mover(alone, 0))
            if not steps:
                break
            alone = steps[0][1]
            self._check(alone)
        origin, target = self._at(alone, ORIGIN), self._at(alone, TARGET)
        if origin is not None:
            raise Broken(f"left at the origin: {origin}")
        if world.runs:
            if target is not None:
                raise Broken(f"left at the target: {target}")
            return
        if target is None:
            raise Broken("it is lost")
        token = None if self.first.state == State.RUNNING else self.first.token
        args = f'1 {{"n":{world.changes}}}'
        expected = self.first._replace(group=TARGET, token=token, args=args, version=0)
        if target._replace(version=0) != expected:
            raise Broken(f"{target} is not {expected}")


@pytest.mark.parametrize("name", RECORDS)
def test_no_interleaving_loses_or_doubles_an_instance_that_moves(name: str) -> None:
    record = RECORDS[name]
    late: tuple[Write, ...] = ()
    if name == "its worker counts as dead":
        late = (Write(ORIGIN, "x", DELETE, record.version, record.token),)
    # The token makes no difference until a run has ended.
    limits = Limits(lost_answers=0) if name == "scheduled" else Limits()
    assert Search(record, limits).run(late) > 1_000
