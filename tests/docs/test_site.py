"""The site as a reader sees it: built, and looked at in a browser where there is one."""

from __future__ import annotations

import functools
import http.server
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.named_tests import ROOT

import pyncette
from pyncette import PartitionedTask, Pyncette, PyncetteContext, Task
from pyncette.app import _STORE_OF, KNOWN_OPTIONS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE, NARROW = 1280, 400

# How far things reach out of their boxes, in pixels.
OVERFLOWS = """() => {
  const over = (element) => element.scrollWidth - element.clientWidth;
  const wide = (selector) => [...document.querySelectorAll(selector)].filter(
    (element) => over(element) > 1).map((element) => element.innerText.slice(0, 60));
  return {
    page: over(document.documentElement),
    code: wide(".md-content pre > code"),
    tables: wide(".md-typeset__scrollwrap"),
  };
}"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="mkdocs is not installed; the dependency group docs has it",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; tox has built it before, once for all processes that test it."""
    if built := os.environ.get("PYNCETTE_TEST_SITE"):
        return Path(built)
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    return {
        path.parent.relative_to(site).as_posix(): path.read_text()
        for path in site.rglob("index.html")
    }


def text_of(html: str) -> str:
    """What a reader reads of the content of a page."""
    content = html.partition('<article class="md-content__inner')[2].partition("</article>")[0]
    without_comments = re.sub(r"<!--.*?-->", "", content, flags=re.S)
    return re.sub(r"<[^>]+>", "", without_comments)


def test_snippets_and_roles_are_shown_as_what_they_stand_for(pages: dict[str, str]) -> None:
    for name, html in pages.items():
        text = text_of(html)
        assert not re.search(r"--\s*8\s*(&lt;|<)\s*--", text), name
        assert not re.search(r":(class|func|meth|mod|attr|exc):`", text), name
        assert "<object object" not in html, name
        assert "&lt;object object" not in html, name


def test_each_page_has_a_next_and_a_previous_one(pages: dict[str, str]) -> None:
    ends = [name for name, html in pages.items() if "md-footer__link--next" not in html]
    starts = [name for name, html in pages.items() if "md-footer__link--prev" not in html]
    assert (len(starts), len(ends)) == (1, 1), (starts, ends)


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("retry", "how-to/retries/"),
        ("retries", "how-to/retries/"),
        ("FastAPI", "how-to/frameworks/fastapi/"),
        ("systemd", "how-to/deploying/"),
        ("timeout", "how-to/timeouts/"),
        ("pause", "how-to/pausing/"),
        ("VirtualClock", "how-to/testing/"),
        ("sqlite_database", "reference/stores/"),
        ("APScheduler", "coming-from/apscheduler-3/"),
    ],
)
def test_a_search_for_a_word_has_its_page(site: Path, word: str, page: str) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {
        entry["location"].partition("#")[0]
        for entry in index["docs"]
        if word.lower() in f"{entry['title']} {entry['text']}".lower()
    }
    assert page in found


@pytest.mark.parametrize("public", ["VirtualClock", "SynchronousExecutor", "sqlite_repository"])
def test_the_reference_has_what_was_missing(pages: dict[str, str], public: str) -> None:
    reference = [html for name, html in pages.items() if name.startswith("reference/")]
    assert any(re.search(rf'id="pyncette\.[\w.]*{public}"', html) for html in reference)
    assert not any("DISCARDED_BYTES_MAX" in html for html in reference)


def test_the_reference_has_every_name_that_is_exported(reference: str) -> None:
    for name in set(pyncette.__all__) - {"__version__"}:
        assert re.search(rf'id="pyncette(\.\w+)?\.{name}"', reference), name


def test_the_reference_has_every_option_of_tasks_instances_stores_and_the_app(
    pages: dict[str, str],
) -> None:
    tasks, app = text_of(pages["reference/tasks"]), text_of(pages["reference/app"])
    inside = {"self", "func", "dynamic", "parent_task", "extra_args", "options"}
    for declared in (Task, PartitionedTask):
        for option in set(inspect.signature(declared.__init__).parameters) - inside:
            assert re.search(rf"^\s*{option}\s*$", tasks, re.M), option
    for option in set(inspect.signature(PyncetteContext.schedule_task).parameters):
        given = {"self", "task", "instance_name", "args"}
        assert option in given or re.search(rf"^\s*{option}\s*$", tasks, re.M), option
    for option in inspect.signature(Pyncette).parameters:
        assert re.search(rf"^\s*{option}\s*$", app, re.M), option
    stores = text_of(pages["reference/stores"])
    for option in KNOWN_OPTIONS:
        assert option in (stores if option in _STORE_OF else app), option


@pytest.fixture(scope="module")
def reference(pages: dict[str, str]) -> str:
    return "".join(html for name, html in pages.items() if name.startswith("reference/"))


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_said: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no browser (see tools/chromium)")
        pytest.skip("no browser: on Debian, apt-get install chromium")
    if os.environ.get("CI"):
        playwright = importlib.import_module("playwright.sync_api")
    else:
        playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_code_and_tables_fit_their_boxes_and_no_page_is_wider_than_its_window(
    browser: Any, address: str, pages: dict[str, str]
) -> None:
    page = browser.new_page()
    # On each page, the search would read all pages, which takes longer than to show that one.
    page.route("**/workers/search*", lambda route: route.abort())
    for name in sorted(pages):
        page.set_viewport_size({"width": WIDE, "height": 900})
        page.goto(f"{address}/{name}/", wait_until="domcontentloaded")
        assert page.evaluate(OVERFLOWS) == {"page": 0, "code": [], "tables": []}, name
        page.set_viewport_size({"width": NARROW, "height": 900})
        assert page.evaluate(OVERFLOWS)["page"] == 0, name
    page.close()


@pytest.mark.parametrize(
    ("word", "title"),
    [("retry", "Retry a failed task"), ("FastAPI", "FastAPI"), ("systemd", "Deploy workers")],
)
def test_the_search_finds_the_page_that_is_meant(
    browser: Any, address: str, word: str, title: str
) -> None:
    page = browser.new_page(viewport={"width": WIDE, "height": 900})
    page.goto(f"{address}/")
    page.click("input[name=query]")
    page.keyboard.type(word)
    first = page.locator(".md-search-result__item").first
    first.wait_for()
    assert first.inner_text().startswith(title)
    page.close()
