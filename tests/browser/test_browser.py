"""The dashboard in a real browser; `tox -e browser` runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from tests.browser.aside import aside
from tests.browser.company import SCREENS, Company, served
from tests.stores.every_store import place_of

pytestmark = pytest.mark.browser

AXE: Final = (Path(__file__).parent / "axe.min.js").read_text()

# Where reading takes long, as on a busy machine, a live page is read again every 30 s only.
PATIENCE_MS: Final = 90_000
expect.set_options(timeout=PATIENCE_MS)

TABS_MAX: Final = 80

VIOLATIONS: Final = """
addEventListener("securitypolicyviolation", (event) =>
    console.error(`the policy forbids ${event.violatedDirective}: ${event.blockedURI}`));
"""

AXE_RUN: Final = """
async () => (await axe.run({resultTypes: ["violations"]})).violations
    .filter((found) => ["serious", "critical"].includes(found.impact))
    .map((found) => `${found.id}: ${found.nodes.map((node) => node.html).join(" ")}`)
"""


@pytest.fixture(scope="module")
def looked_at() -> Iterator[Company]:
    """The company, for tests that change nothing."""
    with served() as company:
        yield company


@pytest.fixture(params=["sqlite-file", "postgres"])
def company(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Company]:
    with aside(place_of(request.param, tmp_path)) as place, served(place) as company:
        yield company


def viewer(chromium: Browser, company: Company, user: str = "ada", **options: Any) -> Page:
    context = chromium.new_context(timezone_id="Europe/Berlin", **options)
    context.set_default_timeout(PATIENCE_MS)
    context.add_cookies([{"name": "user", "value": user, "url": company.url}])
    return context.new_page()


# Contrast hangs on the scheme, and what can be reached on the width: each is looked into once.
@pytest.mark.parametrize(
    ("width", "scheme", "accessible"),
    [(1280, "light", True), (400, "dark", True), (1280, "dark", False), (400, "light", False)],
)
def test_every_screen_is_shown_without_errors_and_is_accessible(
    width: int, scheme: Any, accessible: bool, chromium: Browser, looked_at: Company
) -> None:
    page = viewer(
        chromium,
        looked_at,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    faults: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.context.add_init_script(VIOLATIONS)
    for name, address in SCREENS.items():
        page.goto(looked_at.url + address)
        if name == "missing":
            assert "404" in faults.pop()
        else:
            expect(page.locator("#live")).to_have_text("live")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if accessible:
            page.evaluate(AXE)
            assert page.evaluate(AXE_RUN) == [], name
        assert not faults, name
    page.context.close()


def test_a_task_is_paused_by_the_keyboard_alone(chromium: Browser, company: Company) -> None:
    page = viewer(chromium, company)
    page.goto(f"{company.url}task?name=refresh_rates")

    def tab_to(tag: str, text: str) -> None:
        for _ in range(TABS_MAX):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "[document.activeElement.tagName, document.activeElement.innerText]"
            )
            if focused[0] == tag and text in focused[1]:
                return
        raise AssertionError(f"the key Tab leads to no {tag} {text}")

    tab_to("SUMMARY", "Pause…")
    page.keyboard.press("Enter")
    tab_to("SELECT", "in an hour")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("the bank is closed")
    tab_to("BUTTON", "Pause")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Paused refresh_rates.")
    expect(page.locator("main")).to_contain_text("by ada, until 2026-01-05 14:0")
    expect(page.locator("main")).to_contain_text("the bank is closed")
    page.context.close()


def test_viewers_see_at_once_what_others_do(chromium: Browser, company: Company) -> None:
    ada, bob = viewer(chromium, company, "ada"), viewer(chromium, company, "bob")
    for page in (ada, bob):
        page.goto(f"{company.url}task?name=close_books")
        expect(page.locator("#live")).to_have_text("live")
    expect(bob.locator("h1")).to_contain_text("paused")
    ada.get_by_role("button", name="Resume").click()
    expect(bob.locator("h1")).to_contain_text("scheduled")
    bob.get_by_text("Pause…").click()
    bob.get_by_role("button", name="Pause").click()
    expect(ada.locator("h1")).to_contain_text("paused")
    expect(ada.locator("main")).to_contain_text("by bob")
    for page in (ada, bob):
        page.context.close()


@pytest.mark.parametrize("script", ["htmx", "hx-sse", "dashboard"])
def test_a_page_becomes_live_whichever_script_comes_late(
    script: str, chromium: Browser, looked_at: Company
) -> None:
    page = viewer(chromium, looked_at)

    def hold(route: Route) -> None:
        page.wait_for_timeout(1_000)
        route.continue_()

    page.route(f"**/{script}.*", hold)
    with page.expect_request("**/live"):
        page.goto(looked_at.url)
    expect(page.locator("#live")).to_have_text("live")
    page.context.close()


def test_an_answer_that_comes_late_does_not_close_what_a_viewer_has_opened(
    chromium: Browser, company: Company
) -> None:
    page = viewer(chromium, company)
    under_way: list[Route] = []

    def hold(route: Route) -> None:
        if "hx-request" in route.request.headers:
            under_way.append(route)
        else:
            route.continue_()

    page.route("**/task?*", hold)
    page.goto(f"{company.url}task?name=refresh_rates")
    while not under_way:
        page.wait_for_timeout(20)
    page.get_by_text("Pause…").click()
    under_way.pop().continue_()
    expect(page.locator("#live")).to_have_text("held while you select")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def test_a_worker_that_dies_while_two_look_becomes_silent_then_dead_until_it_is_replaced(
    chromium: Browser, company: Company
) -> None:
    ada, bob = viewer(chromium, company, "ada"), viewer(chromium, company, "bob")
    ada.goto(f"{company.url}workers")
    bob.goto(company.url)
    row = ada.get_by_role("row", name="worker-berlin-2").first
    notices = bob.locator(".notices")
    expect(row).to_contain_text("alive")
    company.call(company.silence("worker-berlin-2"))
    expect(row).to_contain_text("silent")
    expect(notices).to_contain_text("Silent: worker-berlin-2")
    company.call(company.clock.advance(timedelta(seconds=30)))
    expect(row).to_contain_text("died")
    expect(notices).to_contain_text(re.compile("Died: worker-berlin-2 on .*, worker-berlin-3 on "))
    # One of its name takes its place; otherwise it is shown for an hour.
    company.call(company.bring_back("worker-berlin-2"))
    expect(row).to_contain_text("alive")
    expect(notices).not_to_contain_text("worker-berlin-2")
    for page in (ada, bob):
        page.context.close()


@pytest.mark.parametrize(
    ("screen", "forms"),
    [
        ("static", ["Run now", "Pause"]),
        ("paused", ["Pause", "Resume", "Run now"]),
        ("parked", ["Give up…", "Remove…", "Retry"]),
        ("partitioned", ["Filter", "Pause", "Resume", "Run all now…"]),
        ("template", ["for the selected", "for all instances…"]),
        ("failures", ["Retry all parked…", "Give up all parked…"]),
        ("unknown", ["Purge…"]),
    ],
)
def test_without_javascript_every_form_works(
    screen: str, forms: list[str], chromium: Browser, company: Company
) -> None:
    page = viewer(chromium, company, java_script_enabled=False)
    # In this order: what has run, or was resumed, has no such form any more.
    for form in forms:
        page.goto(company.url + SCREENS[screen])
        button = page.locator("main form button", has_text=form).first
        if screen == "parked" and not button.count():
            continue  # what was parked runs again, or is removed
        if form == "Pause":
            page.locator("main summary", has_text="Pause…").first.click()
        if form == "for the selected":
            page.locator("input[name=selected]").first.check()
        button.click()
        if form == "Filter":
            assert "state=" in page.url
            continue
        if page.locator(".confirm").count():
            page.locator(".confirm button").click()
        expect(page.get_by_role("status")).not_to_be_empty()
    page.context.close()
