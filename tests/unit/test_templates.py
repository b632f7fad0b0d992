"""A name that is declared as something else than the store was filled with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support import Bench, logged, run

from pyncette import Pyncette
from pyncette.errors import PyncetteException

pytestmark = pytest.mark.every_poll

KINDS: dict[str, Callable[[Pyncette, Any], Any]] = {
    "static": lambda app, body: app.task(name="job", interval=1_000)(body),
    "dynamic": lambda app, body: app.dynamic_task(name="job")(body),
    "partitioned": lambda app, body: app.partitioned_task(3, name="job")(body),
    "partitioned otherwise": lambda app, body: app.partitioned_task(4, name="job")(body),
}


@pytest.mark.parametrize("before", ["dynamic", "partitioned"])
@pytest.mark.parametrize("then", KINDS)
def test_instances_are_never_left_behind_by_a_change_of_kind(before: str, then: str) -> None:
    async def main() -> None:
        bench = Bench()
        job = KINDS[before](bench.app, bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", interval=1)
        other = bench.another_app()
        KINDS[then](other, bench.note)
        if then == before:
            async with other.create():
                return
        with pytest.raises(PyncetteException, match=r"Task 'job' is declared as a .* never run"):
            async with other.create():
                pass
        async with bench.app.create() as context:
            await context.unschedule_task(job, "x")
        async with other.create():
            pass
        if then != "static":
            async with bench.another_app().create():
                pass

    run(main())


@pytest.mark.parametrize("then", ["dynamic", "partitioned"])
def test_a_static_task_that_becomes_a_template_is_said(
    then: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        KINDS["static"](bench.app, bench.note)
        async with bench.running():
            pass
        other = bench.another_app()
        KINDS[then](other, bench.note)
        async with other.create():
            pass

    run(main())
    assert logged(caplog, "Task 'job' was a static task")


def test_an_empty_template_may_change_its_partitions_which_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        KINDS["partitioned"](bench.app, bench.note)
        async with bench.app.create():
            pass
        other = bench.another_app()
        job = KINDS["partitioned otherwise"](other, bench.note)
        async with other.create() as context:
            await context.schedule_task(job, "x", interval=1)
        with pytest.raises(PyncetteException, match=r"3 partitions.*4 partitions"):
            async with bench.app.create():
                pass

    run(main())
    assert logged(caplog, "Task 'job' becomes a dynamic task with 4 partitions")
