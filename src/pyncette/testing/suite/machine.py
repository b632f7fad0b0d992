"""Conformance: a store and the store in memory, driven with the same random operations.

A Hypothesis state machine. After each step both stores must have given the same answers, and have
the same records. If a claim may choose (a limit cuts ties, or several groups share a limit), the
choice of the store is checked against the due records, and then made in the model, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyncette.clock import realtime
from pyncette.memory import MemoryStore
from pyncette.store import (
    Filter,
    Group,
    Key,
    Source,
    Store,
    Write,
)
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, Record, State
from pyncette.testing.suite.harness import DEADLINE_S, NOW, Place, Suite, pages_of

T = TypeVar("T")

KEYS: Final = ("a", "A", "b", "ba", "%", "😀")
GROUPS: Final = ("one", "two", ":static")
OFFSETS: Final = (-50, -2, -1, 0, 1, 2, 50)
"""Few instants, close together, so that ties and boundaries are frequent."""

SETTINGS: Final = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    stateful_step_count=25,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

texts = st.sampled_from(["", "1 x", "1 ' \\ \" %s ä😀", "1 " + "long" * 500])
states = st.sampled_from([state.value for state in State])
tokens = st.sampled_from([None, "t-1", "t-2", "T-1"])
offsets = st.sampled_from(OFFSETS)
instants = st.one_of(st.none(), offsets)
identities = st.tuples(st.sampled_from(GROUPS), st.sampled_from(KEYS))
puts = st.builds(Put, instants, states, tokens, st.integers(0, 3), texts, texts, texts)
patches = st.builds(Patch, instants, states, st.integers(0, 3), st.one_of(st.none(), texts))
changes = st.one_of(puts, patches, st.just(Delete()))


class Expectation(NamedTuple):
    """How a write chooses its expected version and token, before these are known."""

    version: str
    token: str


expectations = st.builds(
    Expectation,
    st.sampled_from(["right", "right", "right", "any", "absent", "wrong"]),
    st.sampled_from(["none", "none", "right", "wrong"]),
)


class Asked(NamedTuple):
    """A claim, to be repeated."""

    sources: list[Source]
    limit: int
    now: int
    token: str
    unfinished_max: int | None

    def admits(self, unfinished_attempts: int) -> bool:
        """Whether a record with this count may be claimed."""
        return self.unfinished_max is None or unfinished_attempts <= self.unfinished_max


class StoreMachine(RuleBasedStateMachine):
    """Set ``runner``, ``store``, ``suite`` and ``example`` (a number, its own for each) first."""

    runner: asyncio.Runner
    store: Store
    suite: Suite
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        # All examples use one store; each example has its own groups.
        type(self).examples += 1
        self.prefix = f"{type(self).examples}-"
        self.model = MemoryStore()
        self.now = NOW
        self.claims = 0
        self.asked: Asked | None = None
        self.changed = True

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def in_time() -> T:
            async with realtime.timeout(DEADLINE_S):
                return await coroutine

        return self.runner.run(in_time())

    @rule(by=st.sampled_from([0, 1, 2, 49, 60, -1]))
    def time_moves(self, by: int) -> None:
        self.now += by

    @rule(batch=st.dictionaries(identities, st.tuples(changes, expectations), max_size=6))
    def write(self, batch: dict[tuple[str, str], tuple[Put | Patch | Delete, Expectation]]) -> None:
        self.run(self._write(batch))

    @rule(
        asked=st.lists(
            st.tuples(st.sampled_from(GROUPS), st.integers(0, 4), st.sampled_from((0, 0, -1, -2))),
            max_size=2,
            unique_by=lambda source: source[0],
        ),
        keys=st.lists(identities, max_size=3, unique=True),
        limit=st.integers(0, 6),
        lease=st.sampled_from((1, 2, 50)),
        unfinished_max=st.sampled_from((None, None, 0, 1, 2)),
    )
    def claim(
        self,
        asked: list[tuple[str, int, int]],
        keys: list[tuple[str, str]],
        limit: int,
        lease: int,
        unfinished_max: int | None,
    ) -> None:
        groups = {group for group, _, _ in asked}
        sources: list[Source] = [
            Group(self.prefix + group, lease, share, self.now + before)
            for group, share, before in asked
        ]
        sources += [
            Key(self.prefix + group, key, lease) for group, key in keys if group not in groups
        ]
        self.claims += 1
        token = f"t-{self.prefix}{self.claims}"
        self.asked = Asked(sources, limit, self.now, token, unfinished_max)
        self.run(self._claim(self.asked, repeated=False))

    @precondition(lambda self: self.asked is not None)
    @rule()
    def claim_again(self) -> None:
        assert self.asked is not None
        self.run(self._claim(self.asked, repeated=True))

    @rule(asked=st.lists(identities, max_size=5))
    def get(self, asked: list[tuple[str, str]]) -> None:
        named = [(self.prefix + group, key) for group, key in asked]
        found = self.run(self.store.get(named))
        assert found == self.run(self.model.get(named))

    @rule(
        group=st.sampled_from(GROUPS),
        wanted=st.one_of(st.none(), st.frozensets(st.sampled_from(list(State)))),
        prefix=st.sampled_from(["", "a", "b", "%", "😀", "A"]),
        due_before=instants,
        limit=st.integers(1, 4),
    )
    def scan(
        self,
        group: str,
        wanted: frozenset[State] | None,
        prefix: str,
        due_before: int | None,
        limit: int,
    ) -> None:
        where = Filter(wanted, prefix, None if due_before is None else self.now + due_before)
        found = self.run(pages_of(self.store, self.prefix + group, where, limit))
        expected = self.run(pages_of(self.model, self.prefix + group, where, limit))
        assert sorted(found, key=_identity) == sorted(expected, key=_identity)

    @invariant()
    def both_hold_the_same(self) -> None:
        if not self.changed:
            return
        self.changed = False
        # One call, where a scan of each group would be three.
        self.get([(group, key) for group in GROUPS for key in KEYS])

    def teardown(self) -> None:
        for group in GROUPS:
            found = self.run(pages_of(self.store, self.prefix + group))
            expected = self.run(pages_of(self.model, self.prefix + group))
            assert sorted(found, key=_identity) == sorted(expected, key=_identity)

    async def _write(
        self, batch: dict[tuple[str, str], tuple[Put | Patch | Delete, Expectation]]
    ) -> None:
        writes = []
        for (group, key), (change, expectation) in batch.items():
            identity = self.prefix + group, key
            [current] = await self.model.get([identity])
            version = _version(current, expectation.version)
            if version == ABSENT and not isinstance(change, Put):
                version = ANY
            writes.append(
                Write(
                    *identity,
                    self._placed(change),
                    version,
                    _token(current, expectation.token),
                )
            )
        self.changed = True
        results = await self.store.write(writes, self.now)
        assert results == await self.model.write(writes, self.now)

    def _placed(self, change: Put | Patch | Delete) -> Put | Patch | Delete:
        if isinstance(change, Delete) or change.due_at is None:
            return change
        return change._replace(due_at=self.now + change.due_at)

    async def _claim(self, asked: Asked, repeated: bool) -> None:
        self.changed = True
        sources, limit, now, token, unfinished_max = asked
        claimed = await self.suite.claim(
            self.store, sources, limit, now, token, repeated, unfinished_max=unfinished_max
        )
        chosen = {_identity(record): record for record in claimed.records}
        assert len(chosen) == len(claimed.records), "a record was claimed twice"
        held = await self._held(asked) if repeated else []
        expected_count, fresh = len(held), {}
        for source in sources:
            due = await self._due(source)
            room = (source.share if isinstance(source, Group) else 1) - sum(
                _belongs(record, source) for record in held
            )
            taken = [record for record in due if _identity(record) in chosen]
            assert len(taken) <= max(room, 0), "a share was exceeded"
            left = [record for record in due if _identity(record) not in chosen]
            if taken and left:
                assert max(map(_due_at, taken)) <= min(map(_due_at, left)), "not soonest first"
            fresh.update({_identity(record): source for record in taken})
            expected_count += max(min(room, len(due)), 0)
        assert set(chosen) == {_identity(record) for record in held} | set(fresh)
        assert len(chosen) == min(expected_count, limit)
        keys = [Key(*identity, source.lease) for identity, source in fresh.items()]
        records, _ = await self.model.claim(keys, len(keys), now, token)
        assert sorted([*records, *held]) == sorted(claimed.records)
        _, next_due = await self.model.claim(sources, 0, now, token)
        assert claimed.next_due == next_due

    async def _held(self, asked: Asked) -> list[Record]:
        """The records that a repeated claim must return first; the limits here never cut them."""
        sources, _, now, token, _ = asked
        return [
            record
            for source in sources
            for record in await pages_of(self.model, source.group)
            if _belongs(record, source)
            and record.token == token
            and record.due_at == now + source.lease
            and asked.admits(record.unfinished_attempts - 1)
        ]

    async def _due(self, source: Source) -> Sequence[Record]:
        assert self.asked is not None
        before = source.before if isinstance(source, Group) else self.asked.now
        return [
            record
            for record in await pages_of(self.model, source.group)
            if _belongs(record, source)
            and record.due_at is not None
            and record.due_at <= before
            and self.asked.admits(record.unfinished_attempts)
        ]


def _identity(record: Record) -> tuple[str, str]:
    return record.group, record.key


def _due_at(record: Record) -> int:
    assert record.due_at is not None
    return record.due_at


def _belongs(record: Record, source: Source) -> bool:
    return record.group == source.group and (isinstance(source, Group) or record.key == source.key)


def _version(current: Record | None, expectation: str) -> int:
    version = ABSENT if current is None else current.version
    return {"right": version, "any": ANY, "absent": ABSENT, "wrong": version + 1}[expectation]


def _token(current: Record | None, expectation: str) -> str | None:
    if expectation == "none":
        return None
    if expectation == "wrong" or current is None:
        return "wrong"
    return current.token


class Agreeing(Suite):
    """Runs the state machine."""

    def test_it_does_what_the_store_in_memory_does(self, place: Place) -> None:
        with asyncio.Runner() as runner:
            opened: Any = place.open()
            machine = type(
                "Machine",
                (StoreMachine,),
                {"runner": runner, "store": runner.run(opened.__aenter__()), "suite": self},
            )
            try:
                run_state_machine_as_test(machine, settings=SETTINGS)
            finally:
                runner.run(opened.__aexit__(None, None, None))
