"""The model store behaves as the store in memory does, so that what holds on it says something."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulation.model import ModelStore

from pyncette.memory import MemoryStore
from pyncette.store import Group, Key, Source, Write
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, State

GROUPS = ("g", "h")
KEYS = ("a", "b", "c")
INSTANTS = st.none() | st.integers(0, 8)
STATES = st.sampled_from([State.SCHEDULED, State.PAUSED, State.RETRYING])
TOKENS = st.sampled_from(["t0", "t1", "t2"])

CHANGES = st.one_of(
    st.builds(
        Put,
        due_at=INSTANTS,
        state=STATES,
        token=st.none() | TOKENS,
        unfinished_attempts=st.integers(0, 2),
        schedule=st.just("schedule"),
        args=st.just("args"),
        progress=st.just("progress"),
    ),
    st.builds(
        Patch,
        due_at=INSTANTS,
        state=STATES,
        unfinished_attempts=st.integers(0, 2),
        progress=st.none() | st.just("further"),
    ),
    st.just(Delete()),
)
WRITES = st.lists(
    st.builds(
        Write,
        group=st.sampled_from(GROUPS),
        key=st.sampled_from(KEYS),
        change=CHANGES,
        expect=st.sampled_from([ABSENT, ANY]) | st.integers(1, 10),
        token=st.none() | TOKENS,
    ),
    max_size=4,
    unique_by=lambda write: (write.group, write.key),
)


class Batch(NamedTuple):
    writes: list[Write]
    now: int


class Claim(NamedTuple):
    sources: list[Source]
    limit: int
    now: int
    token: str
    repeated: bool


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    now = draw(st.integers(0, 8))
    sources: list[Source] = []
    for group in draw(st.permutations(GROUPS)):
        lease = draw(st.integers(1, 3))
        if draw(st.booleans()):
            sources.append(Key(group, draw(st.sampled_from(KEYS)), lease))
        else:
            before = draw(st.integers(0, now))
            sources.append(Group(group, lease, draw(st.integers(1, 3)), before))
    return Claim(sources, draw(st.integers(0, 6)), now, draw(TOKENS), False)


BATCHES = st.builds(Batch, writes=WRITES, now=st.integers(0, 8))
FILLED = st.tuples(*[INSTANTS] * (len(GROUPS) * len(KEYS)))


@settings(deadline=None)
@given(FILLED, st.lists(BATCHES | claims() | st.just("again"), max_size=20))
def test_the_model_store_answers_as_the_store_in_memory(
    instants: tuple[int | None, ...], steps: list[Batch | Claim | str]
) -> None:
    async def both() -> None:
        model, memory = ModelStore(), MemoryStore()
        identities = [(group, key) for group in GROUPS for key in KEYS]
        filled = [
            Write(*identity, Put(instant, State.SCHEDULED, None, 0, "", "", ""), ABSENT)
            for identity, instant in zip(identities, instants, strict=True)
        ]
        claim = Claim([], 0, 0, "t0", False)
        for step in [Batch(filled, 0), *steps]:
            if isinstance(step, Batch):
                assert model.write(*step) == await memory.write(*step)
                continue
            claim = step if isinstance(step, Claim) else claim._replace(repeated=True)
            due = {identity: record.due_at for identity, record in model.records.items()}
            told, asked = model.claim(*claim), await memory.claim(*claim)
            assert told.next_due == asked.next_due
            if {record.key for record in told.records} == {record.key for record in asked.records}:
                assert sorted(told.records) == sorted(asked.records)
            # Of records that come due at one instant a store may take any.
            assert sorted((record.group, due[record[:2]]) for record in told.records) == sorted(
                (record.group, due[record[:2]]) for record in asked.records
            )
            found = await memory.get(identities)
            model.records = {record[:2]: record for record in found if record is not None}

    asyncio.run(both())
