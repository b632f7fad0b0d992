"""The browser: Debian's Chromium, driven by Playwright.

Without either the tests are skipped, but where `CI` is set, they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")

if importlib.util.find_spec("playwright") is None and not os.environ.get("CI"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("PYNCETTE_TEST_CHROMIUM")
    program = program or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = f"none of {', '.join(PROGRAMS)} is installed (tools/chromium installs it)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()
