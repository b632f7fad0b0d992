"""The context with which a unit test calls the function of a task."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from pyncette import ArgumentError, Context, Pyncette, PyncetteException
from pyncette.testing import VirtualClock, context_for

app = Pyncette()
seen: list[Any] = []


@app.dynamic_task(email="default@example.org")
async def invoice(context: Context, email: str, day: date | None = None) -> None:
    await context.heartbeat()
    seen.append((str(context.task), context.attempt, email, context.upcoming(), context.args))


@app.task(schedule="0 9 * * *", timezone="Europe/Berlin")
def report(context: Context) -> None:
    seen.append((context.scheduled_at, context.deadline, context.previous_error, context.database))


def test_a_task_is_called_with_a_context_that_has_what_a_run_has() -> None:
    seen.clear()
    asyncio.run(invoice(context_for(invoice), email="a"))
    asyncio.run(invoice(context_for(invoice, "ann", attempt=2), email="b"))
    defaults = {"email": "default@example.org"}
    assert seen == [
        ("invoice", 1, "a", [], defaults),
        ("invoice:ann", 2, "b", [], defaults),
    ]


def test_the_planned_time_is_in_the_zone_of_the_task() -> None:
    seen.clear()
    instant = datetime(2026, 7, 1, 7, tzinfo=UTC)
    context = context_for(
        report, scheduled_at=instant, deadline=instant, previous_error="no", database="it"
    )
    asyncio.run(_awaited(report(context)))
    [(planned, deadline, error, database)] = seen
    assert (planned.isoformat(), deadline) == ("2026-07-01T09:00:00+02:00", instant)
    assert (error, database) == ("no", "it")
    assert context.execution_id == "0" * 32
    assert context.fencing_token == 1


async def _awaited(result: Any) -> None:
    if result is not None:
        await result


def test_arguments_are_written_as_a_record_has_them_and_checked() -> None:
    for name in (None, "ann"):
        context = context_for(invoice, name, args={"day": date(2026, 1, 2)})
        assert context.args == {"email": "default@example.org", "day": "2026-01-02"}
        with pytest.raises(ArgumentError, match="nobody"):
            context_for(invoice, name, args={"nobody": 1})


def test_what_it_does_not_have_is_refused_with_an_advice() -> None:
    context = context_for(report)
    with pytest.raises(AttributeError, match=r"context_for\(task, database=…\)"):
        context.database  # noqa: B018
    with pytest.raises(PyncetteException, match="belongs to no run"):
        context.transaction()
    with pytest.raises(ValueError, match="must be aware"):
        context_for(report, scheduled_at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="report"):
        context_for(report, "an instance")


def test_a_clock_may_be_given_in_place_of_an_app() -> None:
    async def main() -> None:
        async with Pyncette(clock=VirtualClock()).create() as opened:
            context = context_for(report, app_context=opened)
            assert context.app_context.clock.now() - context.scheduled_at == timedelta()

    asyncio.run(main())
