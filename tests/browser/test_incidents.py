"""Ten incidents, found and mended with the dashboard alone, as the person on call would.

They are those of ``tests/system/test_incidents.py``, which does the same with the command line:
real programs on SQLite or Redis, ``pyncette web``, and Chromium. ``Watch`` counts what the person
does: each screen that is opened, each link and each button. Only what no screen can do is done
elsewhere: a program is started or ended, a disk is cleared. ``pytest -rP`` shows steps and times.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from tests import incidents
from tests.browser.aside import aside
from tests.incidents import Place

pytestmark = pytest.mark.browser

# Where reading takes long, as on a busy machine, a live page is read again every 30 s only.
PATIENCE_MS: Final = 90_000
expect.set_options(timeout=PATIENCE_MS)


class Watch(Place):
    """The person on call, who looks at the dashboard, and counts the steps."""

    def __init__(self, directory: Path, chromium: Browser) -> None:
        super().__init__(directory)
        self.steps: list[str] = []
        self.began = time.monotonic()
        self._chromium = chromium
        self._page: Page | None = None

    @property
    def page(self) -> Page:
        assert self._page is not None
        return self._page

    @contextmanager
    def dashboard(self, **environment: str) -> Iterator[None]:
        """The dashboard, as it is served by a program; the person opens its first screen."""
        with self.process("web", "--port", "0", **environment) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://\S+", line)
            assert found is not None, line
            context = self._chromium.new_context()
            context.set_default_timeout(PATIENCE_MS)
            self._page = context.new_page()
            self.began = self.began if self.steps else time.monotonic()
            self.page.goto(found[0])
            self.steps.append("Overview")
            try:
                yield
            finally:
                context.close()
                self._page = None

    def sees(self, text: str | re.Pattern[str]) -> None:
        """The screen shows it, at once or as soon as it is so."""
        expect(self.page.locator("main")).to_contain_text(text)

    def sees_no(self, text: str) -> None:
        """The screen shows it no more, as soon as it is so."""
        expect(self.page.locator("main")).not_to_contain_text(text)

    def goes_to(self, screen: str) -> None:
        """Opens another screen, by the links at the top."""
        self._presses(self.page.locator("header nav").get_by_role("link", name=screen, exact=True))

    def follows(self, notice: str) -> None:
        """Follows what needs attention to the screen that mends it."""
        self._presses(self.page.locator(".notices a", has_text=notice))

    def presses(self, button: str) -> None:
        self._presses(self.page.locator("main").get_by_role("button", name=button).first)

    def is_told(self, text: str) -> None:
        """What was done is said."""
        expect(self.page.get_by_role("status")).to_contain_text(text)

    def _presses(self, what: Locator) -> None:
        self.steps.append(" ".join(what.inner_text().split()))
        what.click()


@pytest.fixture
def watch(tmp_path: Path, chromium: Browser) -> Iterator[Watch]:
    watch = Watch(tmp_path, chromium)
    yield watch
    print(f"{time.monotonic() - watch.began:.0f} s: {' > '.join(watch.steps)}")


def test_a_task_that_fails_since_noon(watch: Watch) -> None:
    now = incidents.failing_since_noon(watch)
    with watch.dashboard(**now):
        watch.sees("report has failed: OSError: the disk is full; it last succeeded 3 h")
        watch.follows("report has failed")
        watch.sees('raise OSError("the disk is full")')
        # The disk was cleared.
        with watch.process("run", **now):
            watch.presses("Run now")
            watch.sees(re.compile(r"Last outcome\s*succeeded"))
            watch.goes_to("Overview")
            watch.sees("All is well")
    assert len(watch.steps) == 4


def test_a_worker_that_is_frozen(watch: Watch) -> None:
    with watch.process("run", WORKER="frozen") as process:
        watch.until("frozen", "workers")
        process.send_signal(signal.SIGSTOP)
        with watch.dashboard(SHIFT_S="42"):
            watch.sees("Silent: frozen")
        watch.steps.clear()
        later = {"SHIFT_S": "120"}
        with watch.dashboard(**later):
            watch.sees(f"Died: frozen on {os.uname().nodename}, process {process.pid}, last seen")
            watch.follows("Died: frozen")
            row = watch.page.get_by_role("row", name=re.compile("^frozen died"))
            expect(row).to_contain_text(f"{os.uname().nodename}, {process.pid}")
            # End that process, and start the worker again.
            process.kill()
            with watch.process("run", WORKER="frozen", **later):
                expect(watch.page.get_by_role("row", name="frozen alive")).to_be_visible()
                watch.sees_no("Workers that died")
                watch.goes_to("Overview")
                watch.sees("All is well")
    assert len(watch.steps) == 3


def test_a_zone_that_was_lost(watch: Watch) -> None:
    known = incidents.lost_zone(watch)
    tomorrow = {"SHIFT_S": str(25 * incidents.HOUR_S)}
    with watch.process("run", **tomorrow) as worker, watch.dashboard(**tomorrow):
        watch.sees("reminder: 1 instance retrying")
        watch.follows("reminder: 1 instance retrying")
        watch.sees("Europe/Newtown")
        watch.sees("this machine does not know it")
        # The time-zone data were installed, and the worker was started again.
        worker.terminate()
        with watch.process("run", **known, **tomorrow):
            watch.sees("Nothing fails")
            watch.goes_to("Overview")
            watch.sees("All is well")
    assert len(watch.steps) == 3


def test_a_backlog(watch: Watch) -> None:
    later = incidents.backlog(watch)
    with watch.dashboard(**later):
        watch.sees("reminder: 3 instances overdue")
        watch.sees("No worker is alive")
        with watch.process("run", **later):
            watch.sees("All is well")
    assert len(watch.steps) == 1


def test_a_paused_template_that_was_forgotten(watch: Watch) -> None:
    later = incidents.forgotten_pause(watch)
    with watch.process("run", **later), watch.dashboard(**later):
        watch.sees("reminder was paused 3 d ago by ")
        watch.sees("(the release)")
        watch.follows("reminder was paused")
        watch.presses("Resume")
        watch.is_told("Resumed reminder")
        row = watch.page.get_by_role("row", name="alice")
        expect(row).to_contain_text("succeeded")
        watch.goes_to("Overview")
        watch.sees("All is well")
    assert len(watch.steps) == 4


def test_a_batch_that_was_parked(watch: Watch) -> None:
    incidents.parked_batch(watch)
    # The disk was cleared.
    with watch.process("run"), watch.dashboard():
        watch.sees("invoice: 3 instances parked")
        watch.follows("invoice: 3 instances parked")
        watch.sees("OSError: the disk is full")
        watch.presses("Retry all parked")
        watch.sees("3 parked instances")
        watch.presses("Retry")
        watch.is_told("3")
        watch.sees("Nothing fails")
        watch.goes_to("Overview")
        watch.sees("All is well")
    assert len(watch.steps) == 5


@pytest.fixture
def redis_store() -> Iterator[dict[str, str]]:
    with aside(incidents.redis_store()) as store:
        yield store


def test_a_clock_that_is_off(watch: Watch, redis_store: dict[str, str]) -> None:
    with watch.process("run", **redis_store):
        with watch.dashboard(SHIFT_S="90", **redis_store):
            watch.sees("The clock of this machine is +")
            watch.sees("s off the store's")
        # NTP was started again.
        with watch.dashboard(**redis_store):
            watch.sees("All is well")
    assert len(watch.steps) == 2


def test_an_unknown_group_after_a_rename(watch: Watch) -> None:
    renamed = incidents.renamed(watch)
    with watch.process("run", **renamed), watch.dashboard(**renamed):
        watch.sees("Not declared: reminder; 'reminder' is near to 'reminders', which is declared")
        watch.follows("Not declared: reminder")
        watch.sees("near to reminders, which is declared")
        # It can be deployed again with its old name. Or: what it has left is removed.
        watch.presses("Purge")
        watch.sees("1 record")
        watch.presses("Purge")
        watch.sees("There are none.")
        watch.goes_to("Overview")
        watch.sees("All is well")
    assert len(watch.steps) == 5


def test_a_partition_without_a_worker(watch: Watch) -> None:
    later = incidents.lonely_partition(watch)
    with watch.process("run", PARTITIONS="0", **later), watch.dashboard(**later):
        watch.sees("Overdue in partitions: spread:1")
        # A worker is started for the partition.
        with watch.process("run", PARTITIONS="1", **later):
            watch.sees("All is well")
    assert len(watch.steps) == 1


def test_a_store_that_is_slow(watch: Watch, redis_store: dict[str, str]) -> None:
    with watch.process("run", **redis_store):
        with incidents.slow_way(redis_store) as slow, watch.dashboard(**slow):
            watch.sees("The store is slow: it answers in ")
            watch.sees("Look at the load of the server, its disk, its locks, and the way to it")
        # The way to it is as before.
        with watch.dashboard(**redis_store):
            watch.sees("All is well")
    assert len(watch.steps) == 2
