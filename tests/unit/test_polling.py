"""The table of what is asked next."""

from __future__ import annotations

from datetime import timedelta

from pyncette import Context
from pyncette.engine.polling import BACKOFF_INITIAL, NEVER, PolledSource, Sources
from pyncette.store.record import STATIC_GROUP
from pyncette.task import PartitionedTask, Task


async def body(context: Context) -> None:
    """Does nothing."""


def static(name: str) -> Task:
    return Task(name=name, func=body, interval=timedelta(seconds=1))


def template(name: str) -> Task:
    return Task(name=name, func=body, dynamic=True)


def filled(*tasks: Task) -> Sources:
    sources = Sources()
    sources.refresh(tasks)
    return sources


def found(sources: Sources, group: str, key: str = "") -> PolledSource:
    source = sources.find(group, key)
    assert source is not None
    return source


def test_a_new_source_is_to_be_asked_at_once() -> None:
    sources = filled(template("a"))
    assert sources.soonest() == 0
    assert [source.group for source in sources.due(5)] == ["a"]


def test_an_empty_table_is_never_to_be_asked() -> None:
    assert Sources().soonest() == NEVER
    assert Sources().due(10**15) == []


def test_a_source_that_was_taken_out_is_not_due_until_it_is_told_of() -> None:
    sources = filled(template("a"))
    [source] = sources.due(5)
    assert sources.soonest() == NEVER
    assert sources.due(10**15) == []
    assert sources.ask_by(source, 70)
    assert sources.due(69) == []
    assert sources.due(70) == [source]


def test_a_later_instant_changes_nothing() -> None:
    sources = filled(template("a"))
    [source] = sources.due(5)
    assert sources.ask_by(source, 70)
    assert not sources.ask_by(source, 70)
    assert not sources.ask_by(source, 80)
    assert sources.ask_by(source, 60)
    assert sources.soonest() == 60
    assert sources.due(100) == [source]
    assert sources.due(100) == []


def test_a_record_belongs_to_its_group_or_static_key() -> None:
    sources = filled(template("a"), static("a"), static("b"))
    assert len(sources) == 3
    assert found(sources, "a", "any instance").key is None
    assert found(sources, STATIC_GROUP, "b").key == "b"
    assert sources.find(STATIC_GROUP, "c") is None
    assert sources.find("b", "x") is None


def test_what_is_no_longer_active_leaves_the_table() -> None:
    tasks = [template("a"), static("b")]
    sources = filled(*tasks)
    tasks[0].enabled = False
    sources.refresh(tasks)
    assert [source.group for source in sources.all()] == [STATIC_GROUP]
    tasks[0].enabled = True
    sources.refresh(tasks)
    assert len(sources) == 2


def test_what_was_disabled_since_the_last_refresh_is_not_due() -> None:
    job = PartitionedTask(partition_count=2, name="a", func=body)
    sources = filled(job)
    job.enabled_partitions = [1]
    assert [source.group for source in sources.due(5)] == ["a:1"]


def test_a_task_declared_anew_under_the_same_name_takes_the_place_of_the_old_one() -> None:
    sources = filled(static("a"))
    task = static("a")
    sources.refresh([task])
    assert found(sources, STATIC_GROUP, "a").task is task
    assert len(sources) == 1


def test_a_source_that_holds_back_is_left_alone_for_longer_and_longer() -> None:
    sources = filled(template("a"))
    [source] = sources.due(5)
    waits = []
    for _ in range(5):
        sources.hold_off(source, 0, 50_000)
        waits.append(sources.soonest())
        sources.due(NEVER - 1)
    assert waits == [BACKOFF_INITIAL * n for n in (1, 2, 4, 8)] + [50_000]


def test_telling_the_same_instant_again_and_again_costs_no_memory() -> None:
    sources = filled(*(static(str(number)) for number in range(100)))
    for _ in range(1_000):
        for source in sources.all():
            source.next_ask = NEVER
            sources.ask_by(source, 10**15)
    assert len(sources._heap) <= 300
    assert len(sources.due(10**15)) == 100
