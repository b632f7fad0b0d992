"""What becomes of one row of 1.x; how a static task that was taken over gets its schedule."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyncette.clock import to_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import UNKNOWN_SCHEDULE, Policy
from pyncette.memory import MemoryStore
from pyncette.migrate.copying import Fingerprint, copy
from pyncette.migrate.legacy import (
    Done,
    LeftBehind,
    LegacyRow,
    Parent,
    Taken,
    taken_over,
    template_of,
    undoubled,
)
from pyncette.schedule import Every, dumps
from pyncette.store import Failed, Result, Write
from pyncette.store.record import (
    STATIC_GROUP,
    Put,
    Record,
    State,
    group_of,
    load_args,
    load_progress,
    read,
)
from pyncette.testing import VirtualClock

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW = to_microseconds(NOON)
SECOND = 1_000_000
HOUR = 3_600 * SECOND


def spec(**fields: Any) -> str:
    return json.dumps({"name": "a", "interval": 60, **fields})


def a_row(**fields: Any) -> LegacyRow:
    row = LegacyRow("mail:a", "mail", "2026-05-01T13:00:00+00:00", None, None, spec())
    return row._replace(**fields)


def put_of(row: LegacyRow) -> Put:
    taken = taken_over(row, NOW)
    assert isinstance(taken, Taken)
    assert isinstance(taken.write.change, Put)
    return taken.write.change


def identity_of(row: LegacyRow) -> tuple[str, str]:
    taken = taken_over(row, NOW)
    assert isinstance(taken, Taken)
    return taken.write[:2]


def reason_of(row: LegacyRow) -> str:
    """Why it is parked."""
    taken = taken_over(row, NOW)
    assert isinstance(taken, Taken)
    assert isinstance(taken.write.change, Put)
    assert (taken.write.change.state, taken.write.change.due_at) == (State.PARKED, None)
    assert taken.reason is not None
    assert (
        load_progress(taken.write.change.progress).error == f"taken over from 1.x: {taken.reason}"
    )
    return taken.reason


# Names.

PARTS = st.text(st.sampled_from(":ab3%"), min_size=1, max_size=6)


@given(PARTS, st.none() | st.integers(0, 300), PARTS)
def test_every_name_comes_back_as_it_was(template: str, partition: int | None, key: str) -> None:
    parent = template.replace(":", "::") + ("" if partition is None else f":{partition}")
    name = f"{parent}:{key.replace(':', '::')}"
    assert template_of(parent) == (template, partition)
    assert identity_of(a_row(name=name, parent=parent)) == (group_of(template, partition), key)
    own = json.dumps({"name": key, "interval": 60})
    row = a_row(name=name, parent=Parent.UNKNOWN, task_spec=own)
    assert identity_of(row) == (group_of(template, partition), key)


@given(PARTS)
def test_the_name_of_a_static_task_comes_back_as_it_was(name: str) -> None:
    for parent in (None, Parent.UNKNOWN):
        row = a_row(name=name.replace(":", "::"), parent=parent, task_spec=None)
        assert identity_of(row) == (STATIC_GROUP, name)


@pytest.mark.parametrize("part", ["a:b", ":", ":::", "a::b:"])
def test_a_single_colon_is_no_part_of_a_name(part: str) -> None:
    with pytest.raises(ValueError, match="not doubled"):
        undoubled(part)


@pytest.mark.parametrize("parent", ["a:b", "a:b:3", "a:03", "a:-1", "", ":3"])
def test_what_names_no_template_is_refused(parent: str) -> None:
    with pytest.raises(ValueError, match="names no template"):
        template_of(parent)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": None}, "not text"),
        ({"name": b"mail:a"}, "not text"),
        ({"name": "other:a"}, "does not begin with its parent_name"),
        ({"name": "mail:a:b"}, "not doubled"),
        ({"name": "mail:"}, "must not be empty"),
        ({"name": "mail:\0"}, "NUL"),
        ({"name": "mail:\udc80"}, "lone surrogate"),
        ({"name": "mail:" + "a" * 1_000}, "too long"),
        ({"parent": 3}, "not text"),
        ({"name": "a:b", "parent": None, "task_spec": None}, "not doubled"),
        ({"name": "a:::b", "parent": Parent.UNKNOWN, "task_spec": "{"}, "apart"),
        ({"name": "a", "parent": Parent.UNKNOWN}, "apart"),
    ],
)
def test_what_has_no_usable_name_is_left_behind(fields: dict[str, Any], reason: str) -> None:
    outcome = taken_over(a_row(**fields), NOW)
    assert isinstance(outcome, LeftBehind)
    assert reason in outcome.reason
    assert outcome.name.isascii()


def test_without_a_readable_text_the_last_single_colon_divides_a_name() -> None:
    row = a_row(name="mail:3:a::b", parent=Parent.UNKNOWN, task_spec="{")
    assert identity_of(row) == ("mail:3", "a:b")


# Instants.


@pytest.mark.parametrize(
    "value",
    [
        "2026-05-01T13:00:00+00:00",
        "2026-05-01 13:00:00",
        "2026-05-01T15:00:00.000000+02:00",
        "2026-05-01T13:00:00Z",
        datetime(2026, 5, 1, 13, tzinfo=UTC),
        datetime(2026, 5, 1, 13),  # noqa: DTZ001
        1777640400.0,
    ],
)
def test_an_instant_without_a_zone_is_one_in_utc(value: object) -> None:
    assert put_of(a_row(execute_after=value)).due_at == NOW + HOUR


def test_the_time_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        put = put_of(a_row(execute_after="2026-05-01T13:00:00"))
    time.tzset()
    assert put.due_at == NOW + HOUR


def test_seconds_are_exact_to_the_microsecond() -> None:
    assert put_of(a_row(execute_after=1777640400.123457)).due_at == NOW + HOUR + 123_457


@pytest.mark.parametrize("field", ["execute_after", "locked_until"])
@pytest.mark.parametrize(
    "value", ["", "soon", "infinity", b"2026", 12, float("inf"), float("nan"), 1e300, "9999-01-01"]
)
def test_what_is_no_instant_parks_the_record(field: str, value: object) -> None:
    assert reason_of(a_row(**{field: value})).startswith(field)


def test_what_has_no_time_left_is_done() -> None:
    assert taken_over(a_row(execute_after=None), NOW) == Done("mail")
    static = a_row(name="daily", parent=None, execute_after=None, task_spec=None)
    assert taken_over(static, NOW) == Done("")


# Schedules and arguments.


@pytest.mark.parametrize(
    ("fields", "schedule"),
    [
        ({"interval": 60}, "1 every 60000000"),
        ({"interval": 0.25}, "1 every 250000"),
        ({"interval": 60, "timezone": "Europe/Berlin"}, "1 every 60000000"),
        ({"interval": None, "schedule": "0 9 * * *"}, "1 cron UTC 0 9 * * *"),
        (
            {"interval": None, "schedule": "0 9 * * * */10", "timezone": "Europe/Berlin"},
            "1 cron Europe/Berlin 0 9 * * * */10",
        ),
        ({"interval": None, "execute_at": "2026-05-01T13:00:00"}, f"1 at {NOW + HOUR}"),
    ],
)
def test_a_schedule_is_kept(fields: dict[str, Any], schedule: str) -> None:
    assert put_of(a_row(task_spec=spec(**fields))).schedule == schedule


def test_a_one_off_is_due_when_1x_had_planned_it() -> None:
    text = spec(interval=None, execute_at="2026-05-01T17:00:00")
    put = put_of(a_row(task_spec=text))
    assert put.due_at == NOW + HOUR
    assert load_progress(put.progress).planned == NOW + HOUR


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "task_spec is missing"),
        (b"{}", "task_spec is bytes"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not an object"),
        ("{}", "neither schedule nor interval"),
        (spec(schedule="0 9 * * *"), "only one can hold"),
        (spec(interval=0), "longer than zero"),
        (spec(interval=True), "not a number of seconds"),
        (spec(interval="60"), "not a number of seconds"),
        (spec(interval=1e300), "interval"),
        (spec(interval=float("nan")), "interval"),
        (spec(interval=None, schedule="0 0 30 2 *"), "schedule '0 0 30 2 *'"),
        (spec(interval=None, schedule=["0"]), "is not text"),
        (spec(interval=None, schedule="0 9 * * *", timezone="Mars/Olympus"), "timezone"),
        (spec(interval=None, execute_at="soon"), "execute_at"),
        (spec(interval=None, execute_at=5), "execute_at"),
        (spec(extra_args=[1]), "extra_args"),
    ],
)
def test_what_cannot_be_planned_is_parked_with_all_of_its_text(text: Any, reason: str) -> None:
    row = a_row(task_spec=text)
    assert reason in reason_of(row)
    put = put_of(row)
    if isinstance(text, str):
        assert put.schedule == f"1.x {text}"
    assert load_progress(put.progress).planned == NOW + HOUR
    with pytest.raises(ValueError, match="schedule"):
        read(Record("mail", "a", None, 1, None, put.state, *_rest(put)))


def test_a_parked_record_keeps_the_arguments_that_can_be_read() -> None:
    text = spec(interval=None, schedule="0 0 30 2 *", extra_args={"to": "ada"})
    assert load_args(put_of(a_row(task_spec=text)).args) == {"to": "ada"}


def test_any_text_can_be_kept_by_any_store() -> None:
    put = put_of(a_row(task_spec='{"a": "\0ž\ud800'))
    assert put.schedule.isascii()
    assert "\0" not in put.schedule
    assert put.progress.isascii()


# Leases.


def test_a_lease_is_kept_until_it_ends() -> None:
    row = a_row(execute_after="2026-05-01T11:00:00", locked_until="2026-05-01T12:01:00")
    leased = put_of(row._replace(locked_by="worker\n:ž"))
    assert (leased.due_at, leased.state, leased.unfinished_attempts) == (
        NOW + 60 * SECOND,
        State.RUNNING,
        1,
    )
    assert leased.token == "worker\n:\\u017e:1.x:0"
    assert load_progress(leased.progress).planned == NOW - HOUR
    anonymous = put_of(row)
    assert anonymous.token == "1.x:1.x:0"


def test_a_lease_that_has_ended_is_none() -> None:
    put = put_of(a_row(locked_until="2026-05-01T12:00:00", locked_by="w"))
    assert (put.due_at, put.state, put.unfinished_attempts, put.token) == (
        NOW + HOUR,
        State.SCHEDULED,
        0,
        None,
    )


# Static tasks: the schedule comes from the code of the worker that starts.

EVERY_HOUR = Every(timedelta(hours=1))


def static_record(**fields: Any) -> Record:
    row = LegacyRow("daily", None, "2026-05-01T12:20:00", None, None, None)._replace(**fields)
    put = put_of(row)
    return Record(STATIC_GROUP, "daily", put.due_at, 5, put.token, put.state, *_rest(put))


def _rest(put: Put) -> tuple[int, str, str, str]:
    return put.unfinished_attempts, put.schedule, put.args, put.progress


def replanned(record: Record) -> Record:
    change = rules.replanned(record, EVERY_HOUR, NOW)
    assert isinstance(change, Put)
    due_at, state, token, *_ = change
    return Record(STATIC_GROUP, "daily", due_at, 6, token, state, *_rest(change))


@pytest.mark.parametrize("planned", ["2026-05-01T12:20:00", "2026-05-01T11:20:00"])
def test_a_static_task_keeps_its_planned_time_and_gets_its_schedule(planned: str) -> None:
    record = static_record(execute_after=planned)
    assert (record.schedule, record.args) == (UNKNOWN_SCHEDULE, "")
    assert replanned(record)[2:] == record._replace(version=6, schedule=dumps(EVERY_HOUR))[2:]


def test_a_static_task_under_a_lease_gets_its_schedule_and_stays_leased() -> None:
    record = static_record(locked_until="2026-05-01T12:30:00")
    assert record.state == State.RUNNING
    new = replanned(record)
    assert new[2:] == record._replace(version=6, schedule=dumps(EVERY_HOUR))[2:]
    done = rules.succeeded(read(new), Policy(), NOW + 2 * HOUR)
    assert done.due_at == NOW + HOUR + 20 * 60 * SECOND


def test_a_parked_static_task_gets_its_schedule_and_is_freed() -> None:
    record = static_record(execute_after="soon")
    new = replanned(record)
    assert (new.state, new.due_at, new.schedule) == (
        State.SCHEDULED,
        NOW + HOUR,
        dumps(EVERY_HOUR),
    )


def test_a_static_task_whose_worker_has_not_restarted_runs_once_as_planned() -> None:
    record = static_record()._replace(state=State.RUNNING, unfinished_attempts=1, token="w:1:1")
    change = rules.succeeded(read(record), Policy(), NOW)
    assert change.state == State.FINISHED  # type: ignore[union-attr]


# Copying.


class Rows:
    """A source with these rows."""

    place = kept = "memory"

    def __init__(self, *rows: LegacyRow) -> None:
        self._rows = rows

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        yield list(self._rows)


class Narrow(MemoryStore):
    """A store that cannot keep large records."""

    async def write(self, batch: Any, now: int, wake: Any = ()) -> list[Result]:
        small = [write for write in batch if len(write.change.args) < 1_000]
        results = iter(await super().write(small, now, wake))
        too_large = Failed(ValueError("too large"))
        return [next(results) if write in small else too_large for write in batch]


def copied(store: Any, *rows: LegacyRow) -> Any:
    return asyncio.run(copy(Rows(*rows), store, VirtualClock(NOON), 0, None))  # type: ignore[arg-type]


def test_a_record_that_the_store_cannot_keep_does_not_stop_the_others() -> None:
    rows = [a_row(name=f"mail:{letter}") for letter in "abcde"]
    rows[3] = rows[3]._replace(task_spec=spec(extra_args={"text": "x" * 2_000}))
    result = copied(Narrow(), *rows)
    assert (result.written, result.counts.left_behind) == (4, 1)
    assert result.counts.left_behind_examples == [("d", "too large")]


def test_a_row_that_is_read_twice_is_written_once() -> None:
    assert copied(MemoryStore(), a_row(), a_row()).written == 1


def test_what_a_worker_has_had_in_hand_is_not_written_over() -> None:
    store = MemoryStore()
    copied(store, a_row())
    [before] = asyncio.run(store.get([("mail", "a")]))
    assert before is not None
    settled = Put(
        NOW + 9 * HOUR, State.SCHEDULED, "w:1:1", 0, before.schedule, before.args, before.progress
    )
    asyncio.run(store.write([Write("mail", "a", settled, before.version)], NOW))
    result = copied(store, a_row())
    assert (result.written, result.present) == (0, 1)
    [after] = asyncio.run(store.get([("mail", "a")]))
    assert after is not None
    assert after.due_at == NOW + 9 * HOUR


def test_a_lease_that_ended_since_an_interruption_is_taken_over_as_ended() -> None:
    store = MemoryStore()
    row = a_row(locked_until="2026-05-01T12:00:30", locked_by="w")
    copied(store, row)
    later = VirtualClock(NOON + timedelta(minutes=1))
    result = asyncio.run(copy(Rows(row), store, later, 0, None))  # type: ignore[arg-type]
    assert result.written == 1
    [record] = asyncio.run(store.get([("mail", "a")]))
    assert record is not None
    assert (record.state, record.token) == (State.SCHEDULED, None)


def test_equal_rows_have_equal_fingerprints_in_any_order() -> None:
    rows = [a_row(name=f"mail:{letter}") for letter in "abc"]
    first, second, third = Fingerprint(), Fingerprint(), Fingerprint()
    first.add(rows)
    second.add(rows[:1:-1])
    second.add(rows[:2])
    third.add(rows[:2])
    third.add([rows[2]._replace(execute_after="2026-05-01T13:00:01+00:00")])
    assert first == second
    assert first != third
    assert first != 3
