"""Rows whose due_at was edited: nothing runs early, and what never comes due is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import START, Bench, after, logged, micros, run, seconds
from tests.unit.test_control_records import Edited

from pyncette import ExecutionMode, Pyncette
from pyncette.cli import doctor
from pyncette.cli.printing import Printer
from pyncette.engine import rules
from pyncette.schedule import At, Schedule, dumps
from pyncette.sqlite import sqlite_repository
from pyncette.store.record import (
    Patch,
    Pending,
    Progress,
    Reading,
    Record,
    State,
    dump_progress,
)
from pyncette.task import Task

EARLY = (0, -1, -(2**63), micros(1))
NEVER = (None, 2**63 - 1, micros(40 * 86_400))
MODES = (ExecutionMode.AT_LEAST_ONCE, ExecutionMode.AT_MOST_ONCE)


class Minutes(Edited):
    """An app whose tasks run some minutes later."""

    def __init__(self, path: Path, mode: ExecutionMode = ExecutionMode.AT_LEAST_ONCE) -> None:
        self.path = path / "tasks.db"
        self.bench = Bench()
        self.mode = mode
        self.app, self.pulse, self.once = self.tasks()

    def tasks(self) -> tuple[Pyncette, Task, Task]:
        """The app, as a process has it that was started again."""
        app = Pyncette(
            sqlite_repository,
            sqlite_database=str(self.path),
            clock=self.bench.clock,
            poll_interval=30,
        )
        pulse: Task = app.task(name="pulse", interval=600, execution_mode=self.mode)(
            self.bench.note
        )
        once: Task = app.dynamic_task(name="once", execution_mode=self.mode)(self.bench.note)
        return app, pulse, once


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("due_at", EARLY)
def test_nothing_runs_before_its_planned_time_whatever_its_row_says(
    due_at: int, mode: ExecutionMode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        minutes = Minutes(tmp_path, mode)
        async with minutes.bench.running(minutes.app) as context:
            await context.schedule_task(minutes.once, "x", execute_at=after(500))
            await context.schedule_task(
                minutes.once, "y", interval=600, jitter=seconds(60), start_at=after(500)
            )
            await minutes.bench.advance(1)
            for key in ("pulse", "x", "y"):
                minutes.edit(key, "due_at", due_at)
            await minutes.bench.advance(60)
            assert minutes.bench.runs == []
            assert logged(caplog, "was due before its planned time")
            for task, name in ((minutes.pulse, None), (minutes.once, "x"), (minutes.once, "y")):
                state = await context.get_task(task, name)
                assert state is not None
                assert (state.state, state.attempt) == ("scheduled", 1)
            await minutes.bench.advance(620)
            assert {run.name for run in minutes.bench.runs} == {"pulse", "once:x", "once:y"}
            assert all(run.at >= run.scheduled_at for run in minutes.bench.runs)
            assert minutes.bench.planned.count(500) <= 2

    run(main())


@pytest.mark.parametrize("due_at", NEVER)
def test_what_never_comes_due_is_shown_as_parked_and_is_mended(
    due_at: int | None, tmp_path: Path
) -> None:
    async def main() -> None:
        minutes = Minutes(tmp_path)
        async with minutes.app.create() as context:
            for name in ("again", "trigger"):
                await context.schedule_task(minutes.once, name, execute_at=after(500))
        async with minutes.bench.running(minutes.app) as context:
            await minutes.bench.advance(1)
        for key in ("pulse", "again", "trigger"):
            minutes.edit(key, "due_at", due_at)
        app, pulse, once = minutes.tasks()
        async with app.create() as context:
            found = [await context.get_task(pulse), await context.get_task(once, "again")]
            found += [state async for state in context.iter_tasks(once)]
            found += await context.static_tasks()
            for state in found:
                assert state is not None
                assert state.state == "parked"
                assert state.reason is not None
                assert "due_at" in state.reason
        async with minutes.bench.running(app) as context:
            await context.schedule_task(once, "again", execute_at=after(500))
            await context.trigger(once, "trigger")
            await minutes.bench.advance(650)
            ran = {run.name for run in minutes.bench.runs}
            assert ran == {"pulse", "once:again", "once:trigger"}

    run(main())


def test_the_doctor_names_a_static_task_that_never_comes_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes = Minutes(tmp_path)

    async def prepare() -> None:
        async with minutes.bench.running(minutes.app):
            await minutes.bench.advance(1)

    run(prepare())
    minutes.edit("pulse", "due_at", None)
    assert run(doctor.examine(lambda: (minutes.tasks()[0], True), Printer())) == 0
    assert "warn  parked: pulse" in capsys.readouterr().out


def reading(state: State, due_at: int | None, planned: int | None, **progress: object) -> Reading:
    """A record of which a rule decides."""
    schedule: Schedule = At(START)
    known = Progress(planned, "i", **progress)  # type: ignore[arg-type]
    record = Record("g", "k", due_at, 5, "t", state, 0, dumps(schedule), "", dump_progress(known))
    return Reading(record, schedule, known)


def test_what_the_rules_themselves_make_is_neither_early_nor_stranded() -> None:
    now = micros(0)
    for state in (State.PAUSED, State.PARKED, State.FINISHED):
        assert not rules.stranded(reading(state, None, now + 9), now)
    assert not rules.stranded(reading(State.SCHEDULED, now - 9, now - 9), now)
    assert not rules.stranded(reading(State.RETRYING, now + 10**9, now - 9), now)
    early = reading(State.RUNNING, now, now + 10**9)
    assert rules.early(early, now)
    # A clock that was ahead, a user, or an attempt explains it.
    assert not rules.early(reading(State.RUNNING, now, now + 10**9, triggered=now), now)
    assert not rules.early(reading(State.RUNNING, now, now + 10**9, renewed=now), now)
    assert not rules.early(reading(State.RUNNING, now, now + 10**9, failures=1), now)
    twice = early.record._replace(unfinished_attempts=2)
    assert not rules.early(early._replace(record=twice), now)
    assert not rules.early(reading(State.RUNNING, now, now + 10**6), now)


def test_a_record_that_was_asked_to_rest_meanwhile_rests_when_it_is_put_back() -> None:
    now = micros(0)
    asked = reading(State.RUNNING, now, now + 10**9, pending=Pending(paused=True))
    put_back = rules.put_back(asked, now)
    assert isinstance(put_back, Patch)
    assert (put_back.state, put_back.due_at) == (State.PAUSED, None)


@pytest.mark.parametrize("state", [State.RUNNING, State.RETRYING])
def test_what_never_comes_due_while_it_runs_or_waits_is_tried_again_at_once(state: State) -> None:
    now = micros(0)
    again = rules.due_again(reading(state, None, now - 9), now)
    assert (again.state, again.due_at) == (State.RETRYING, now)
