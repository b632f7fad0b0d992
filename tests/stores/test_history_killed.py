"""The run history of a worker that is killed, and of workers of two versions on one store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.stores.every_store import place_of

from pyncette import Context, Instance, Pyncette
from pyncette.history import Run, RunTotals, use_history
from pyncette.recorder import BATCH_MAX
from pyncette.testing.conformance import Place

EVER = datetime(2026, 1, 1, tzinfo=UTC)
PAST = EVER
BATCHES = 3

# A worker that runs what is due and kills itself in the middle of it: when so many batches were
# sent, before or after the store has the last one. It writes each run that has ended to a file.
PROGRAM = """
import asyncio, json, os, signal, sys
from datetime import timedelta
from pyncette import Pyncette, events
from pyncette.history import use_history
from pyncette.store.deadline import DeadlineHistory

CONFIGURATION, MOMENT, BATCHES = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
LOG = os.open(sys.argv[4], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
URL = CONFIGURATION.pop("postgres_url", None)
sent = 0
append = DeadlineHistory.append


async def counted(self, rows, totals):
    global sent
    sent += 1
    if sent == BATCHES and MOMENT == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await append(self, rows, totals)
    if sent == BATCHES and MOMENT == "after":
        os.kill(os.getpid(), signal.SIGKILL)


DeadlineHistory.append = counted
app = Pyncette(url=URL, **CONFIGURATION)
use_history(app)


@app.dynamic_task(lease_duration=timedelta(seconds=1))
async def job(context):
    if context.task.name.endswith("7"):
        raise ValueError("broken")


@app.on_event
def note(event):
    if isinstance(event, events.AttemptEnded):
        os.write(LOG, (event.execution_id + chr(10)).encode())


app.main()
"""


def ended_in(log: Path) -> list[str]:
    return log.read_text().splitlines()


async def looked_at(place: Place) -> tuple[list[Run], list[RunTotals]]:
    app = Pyncette(place.factory, **place.configuration)
    async with app.create() as context:
        while True:
            before = await context.run_totals(EVER)
            runs: list[Run] = []
            cursor, more = None, True
            while more:
                page = await context.runs(cursor=cursor, limit=1_000)
                runs += page.runs
                cursor, more = page.cursor, page.cursor is not None
            # A server may still write what a worker sent before it was killed.
            if await context.run_totals(EVER) == before:
                return runs, before


def check_that_they_agree(runs: list[Run], totals: list[RunTotals], unlisted_max: int = 0) -> None:
    """The totals of each minute are the numbers of its attempts, and of some that are lost."""
    counted: Counter[tuple[datetime, str]] = Counter()
    for run in runs:
        minute = run.ended_at.replace(second=0, microsecond=0)
        counted[minute, "succeeded" if run.outcome == "succeeded" else "failed"] += 1
    summed: Counter[tuple[datetime, str]] = Counter()
    for total in totals:
        assert total.other == 0
        for outcome, number in (("succeeded", total.succeeded), ("failed", total.failed)):
            if number:
                summed[total.minute, outcome] += number
    assert summed >= counted
    assert summed.total() <= counted.total() + unlisted_max


@pytest.mark.parametrize("store", ["sqlite-file", "postgres"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_that_is_killed_loses_what_it_had_not_written_and_totals_agree(
    store: str, moment: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with place_of(store, tmp_path) as place:

        async def schedule() -> None:
            app = Pyncette(place.factory, **place.configuration)

            @app.dynamic_task()
            async def job(context: Context) -> None: ...

            async with app.create() as context:
                await context.schedule_tasks(
                    job,
                    [
                        Instance(f"{number}", execute_at=PAST)
                        for number in range(BATCH_MAX * BATCHES + 400)
                    ],
                )

        asyncio.run(schedule())
        worker = subprocess.run(
            [
                *(sys.executable, "-c", PROGRAM, json.dumps(place.configuration)),
                *(moment, str(BATCHES), str(log)),
            ],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert worker.returncode == -signal.SIGKILL, worker.stderr
        runs, totals = asyncio.run(looked_at(place))
        ended = ended_in(log)
        written = {run.execution_id for run in runs}
        assert written <= set(ended)
        assert len(written) == len(runs)
        # All but the last ones, in the order in which they ended: what was not yet written.
        missing = [place for place, one in enumerate(ended) if one not in written]
        assert missing == list(range(len(runs), len(ended)))
        assert runs
        # Totals go with the first batch after an attempt, which may not have room for it.
        check_that_they_agree(runs, totals, len(ended) - len(runs))


@pytest.mark.parametrize("store", ["sqlite-file", "postgres"])
def test_a_worker_that_keeps_no_history_works_beside_one_that_does(
    store: str, tmp_path: Path
) -> None:
    """As during an update: the workers of the version before know nothing of a history."""

    def app_at(place: Place, history: bool) -> Pyncette:
        app = Pyncette(place.factory, **place.configuration)
        if history:
            use_history(app)

        @app.dynamic_task(interval=timedelta(hours=1))
        async def job(context: Context) -> None: ...

        return app

    async def main(place: Place) -> None:
        old, new = app_at(place, False), app_at(place, True)
        async with old.create() as before, new.create() as after:
            await before.schedule_task(old.tasks[0], "a", execute_at=PAST)
            await before.run_until_idle()
            await before.schedule_task(old.tasks[0], "b", execute_at=PAST)
            await after.run_until_idle()
            await after.schedule_task(new.tasks[0], "c", execute_at=PAST)
            await before.run_until_idle()
            for context in (after, before):
                assert [run.instance for run in (await context.runs()).runs] == ["b"]
        runs, totals = await looked_at(place)
        check_that_they_agree(runs, totals)

    with place_of(store, tmp_path) as place:
        asyncio.run(main(place))
