"""What the dashboard reads less often, since it hardly changes and costs more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests.support import run
from tests.unit.web_site import Browser, ada, text

from pyncette import Context, Pyncette
from pyncette.clock import SystemClock
from pyncette.history import use_history
from pyncette.web import Dashboard, dashboard, reading


class Slow(SystemClock):
    """A clock by which each question takes a while longer."""

    delay_s = 0.0
    _passed = 0.0

    def monotonic(self) -> float:
        self._passed += self.delay_s
        return super().monotonic() + self._passed


class Place:
    """An app on a file, whose store can become slow and whose task can fail."""

    def __init__(self, directory: Path) -> None:
        self.clock = Slow()
        self.well = True
        self.app = Pyncette(url=f"sqlite:///{directory / 'tasks.db'}", clock=self.clock)
        use_history(self.app)

        @self.app.task(interval=timedelta(hours=1))
        async def report(context: Context) -> None:
            if not self.well:
                raise RuntimeError("no mail today")

        self.report = report

    def board(self) -> Dashboard:
        return dashboard(self.app, ada, refresh=timedelta(microseconds=1))


SLOW = "The store is slow: it answers in "


def test_it_is_kept_for_a_while_and_read_again_after_an_action(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with place.app.create():
            browser = Browser(place.board())
            assert SLOW not in text(await browser.get())
            place.clock.delay_s = 2.0
            assert SLOW not in text(await browser.get())
            await browser.act("pause", "report")
            assert SLOW in text(await browser.get())

    run(main())


def test_it_is_read_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with place.app.create():
            browser = Browser(place.board())
            assert SLOW not in text(await browser.get())
            monkeypatch.setattr(reading, "SELDOM_S", -1)
            place.clock.delay_s = 2.0
            assert SLOW in text(await browser.get())

    run(main())


def test_what_begins_to_fail_meanwhile_is_explained_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with place.app.create() as context:
            browser = Browser(place.board())
            await context.run_until_idle()
            await context.trigger(place.report)
            await context.run_until_idle()
            assert "report has failed" not in text(await browser.get())
            place.well = False
            await context.trigger(place.report)
            await context.run_until_idle()
            await context.runs()  # writes what has run so far
            overview = text(await browser.get())
            assert "report has failed: RuntimeError: no mail today; it last succeeded" in overview

    run(main())
