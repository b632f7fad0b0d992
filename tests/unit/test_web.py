"""The dashboard: what its screens show, and what its forms do."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount
from tests.support import after, run, seconds
from tests.unit.web_site import EVERYTHING, SAME_ORIGIN, Browser, Site, ada, said, text

from pyncette import Context, Exhausted, Pyncette, Retry, Where, acting_as
from pyncette.clock import realtime
from pyncette.events import Steered
from pyncette.history import use_history
from pyncette.memory import MemoryStore
from pyncette.showing import cron_words, duration_text
from pyncette.testing import VirtualClock
from pyncette.web import Access, Action, dashboard
from pyncette.web.actions import digest_of
from pyncette.web.application import SAID_COOKIE
from pyncette.web.opened import OpenedApp
from pyncette.web.poller import Poller
from pyncette.web.view import SECRET

SCREENS = ["", "tasks", "failures", "runs", "next", "workers", "unknown"]
EVIL = '"><script>alert(1)</script><b onload=x> \u202e&amp;'


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0)


async def every_page(site: Site) -> dict[str, str]:
    """All screens, those of single tasks and of questions included."""
    browser = site.browser
    pages = {screen: await browser.get(screen) for screen in SCREENS}
    pages["static"] = await browser.get("task", name="report")
    pages["template"] = await browser.get("task", name="send")
    page = await site.context.list_tasks(site.send)
    for state in page.tasks:
        pages[state.task.name] = await browser.get("task", name="send", instance=state.task.name)
    asked = await browser.post(
        {"action": "unschedule", "task": "send", "scope": "matching", "prefix": EVIL}
    )
    pages["asked"] = asked.text
    pages["missing"] = await browser.get("task", 404, name=EVIL)
    pages["missing instance"] = await browser.get("task", 404, name="send", instance=f"{EVIL}?")
    return pages


class TestScreens:
    def test_every_screen_shows_what_is_there(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.context.schedule_task(
                    site.send, "alice", execute_in=timedelta(minutes=3), to="a@example.org"
                )
                await site.parked("bob")
                pages = {name: text(page) for name, page in (await every_page(site)).items()}
                assert "send: 1 instance parked" in pages[""]
                assert "report" in pages["tasks"]
                assert "at 09:00, Monday to Friday (Europe/Berlin)" in pages["static"]
                assert "ValueError: no address for bob" in pages["failures"]
                assert "send:alice in 3 min" in pages["next"]
                assert "No worker is alive" in pages["workers"]
                assert "There are none." in pages["unknown"]
                assert "alice scheduled" in pages["template"]
                assert 'to "a@example.org"' in pages["alice"]
                assert "ValueError: no address for bob" in pages["bob"]
                assert "Traceback (most recent call last)" in pages["bob"]

        run(main())

    def test_the_next_occurrences_are_shown_in_both_zones_with_changes_of_the_clocks(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.clock.advance_to(after(79 * 86_400))
                site.browser.http.cookies.set("pyncette_zone", "Asia%2FTokyo")
                page = text(await site.browser.get("task", name="report"))
                assert "Europe/Berlin Asia/Tokyo" in page
                assert "Fri 2026-03-27 09:00:00 2026-03-27 17:00:00" in page
                assert "clocks forward by 1:00:00 before this" in page
                assert "Mon 2026-03-30 09:00:00 2026-03-30 16:00:00" in page

        run(main())

    def test_past_runs_are_shown_where_a_history_is_kept(self) -> None:
        async def main() -> None:
            site = Site()
            use_history(site.app)
            async with site.opened():
                await site.context.schedule_task(site.send, "anna", execute_in=timedelta(0))
                await site.context.run_until_idle()
                await site.parked("bob")
                overview = await site.browser.get()
                assert "Runs in each minute of the last hour: 1 done, 1 failed" in overview
                page = text(await site.browser.get("runs"))
                assert "bob send failed" in page
                assert "anna send succeeded" in page
                page = text(await site.browser.get("runs", name="send", outcome="failed"))
                assert "bob failed" in page
                assert "anna" not in page
                page = text(await site.browser.get("task", name="send", instance="bob"))
                assert "2026-01-05 12:00:00 failed" in page
                await site.browser.get("runs", 400, after="nonsense")
                await site.browser.get("runs", 404, name="nothing")

        run(main())

    def test_where_no_history_is_kept_the_screens_say_how_to_turn_it_on(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                for page in ("", "runs", "task?name=report"):
                    assert "use_history(app)" in await site.browser.get(page)

        run(main())

    def test_whatever_the_cookie_with_the_zone_holds_the_page_is_shown(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                for zone in ("../etc/passwd", "Nowhere/Land", "%00", "x" * 5_000, ""):
                    site.browser.http.cookies.set("pyncette_zone", zone)
                    assert "times in UTC" in await site.browser.get("tasks")

        run(main())

    def test_nothing_that_comes_from_users_becomes_markup(self) -> None:
        async def main() -> None:
            site = Site()

            @site.app.task(name=f"static{EVIL}", interval=timedelta(hours=1))
            async def static(context: Context) -> None:
                raise ValueError(EVIL)

            async with site.opened():
                context = site.context
                args = {EVIL: EVIL, "nested": {EVIL: [EVIL]}}
                await context.schedule_task(
                    site.send, EVIL, execute_in=timedelta(0), args={"args": args, EVIL: EVIL}
                )
                site.failing = True
                await context.run_until_idle()
                await context.pause(static, reason=EVIL)
                await context.pause(site.send, reason=EVIL)
                old = Pyncette(site.app._repository_factory, clock=site.clock)
                assert old is not site.app
                for name, page in (await every_page(site)).items():
                    assert "<script>alert" not in page, name
                    assert "<b onload" not in page, name
                    assert "\u202e" not in re.sub(r' value="[^"]*"', "", page), name
                assert "&lt;script&gt;alert(1)" in await site.browser.get("tasks")

        run(main())

    def test_no_page_has_inline_scripts_or_styles_and_all_have_the_headers(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("bob")
                for name, page in (await every_page(site)).items():
                    tags = "".join(re.findall(r"<[^>]*>", re.sub(r'"[^"]*"', '""', page)))
                    assert not re.search(r"<style|\sstyle=|\son\w+=", tags), name
                    assert all(" src=" in tag for tag in re.findall(r"<script[^>]*>", tags)), name
                    assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", page), name
                for path in (*SCREENS, "nowhere", "assets/dashboard.css", "assets/nowhere"):
                    headers = (await site.browser.http.get(f"http://localhost/{path}")).headers
                    policy = headers["content-security-policy"]
                    assert "script-src 'self'" in policy
                    assert "unsafe" not in policy
                    assert headers["x-content-type-options"] == "nosniff"
                    assert headers["x-frame-options"] == "DENY"
                    if not path.startswith("assets/dash"):
                        assert headers["cache-control"] == "no-store"

        run(main())

    def test_a_page_of_instances_is_followed_by_the_next_one(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                for number in range(120):
                    await site.context.schedule_task(site.poll, f"feed-{number:03}")
                seen: list[str] = []
                page = await site.browser.get("task", name="poll")
                assert "120 instances." in text(page)
                for _ in range(10):
                    seen += re.findall(r'name="selected" value="([^"]+)"', page)
                    following = re.search(r'<a href="([^"]+)" rel="next"', page)
                    if following is None:
                        break
                    page = await site.browser.get(following[1].replace("&amp;", "&"))
                assert sorted(seen) == [f"feed-{number:03}" for number in range(120)]

        run(main())

    def test_instances_are_found_by_state_prefix_due_time_and_error(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("bob", "bill")
                for name, delay in (("anna", 60), ("amy", 7_200)):
                    await site.context.schedule_task(site.send, name, execute_in=seconds(delay))

                async def found(**chosen: str) -> set[str]:
                    page = await site.browser.get("task", 200, name="send", **chosen)
                    return set(re.findall(r'name="selected" value="([^"]+)"', page))

                assert await found() == {"anna", "amy", "bob", "bill"}
                assert await found(state="parked") == {"bob", "bill"}
                assert await found(state="failing") == {"bob", "bill"}
                assert await found(prefix="a") == {"anna", "amy"}
                assert await found(due_before=after(600).isoformat()) == {"anna"}
                assert await found(error=digest_of("ValueError: no address for bob")) == {"bob"}
                page = text(await site.browser.get("task", name="send", prefix="a"))
                assert "2 instances match: name begins with 'a'." in page
                await site.browser.get("task", 400, name="send", state="nonsense")
                await site.browser.get("task", 400, name="send", due_before="soon")
                await site.browser.get("task", 400, name="send", after="nonsense")

        run(main())

    def test_very_many_are_not_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyncette.web.reading.COUNT_LIMIT", 5)

        async def main() -> None:
            async with Site().opened() as site:
                for number in range(9):
                    await site.context.schedule_task(site.poll, f"feed-{number}")
                assert "more than 5" in text(await site.browser.get("tasks"))
                assert "more than 5 instances" in text(await site.browser.get("task", name="poll"))

        run(main())

    def test_secret_arguments_are_never_shown_and_others_as_the_service_says(self) -> None:
        async def main() -> None:
            async with Site(redact={"card"}).opened() as site:
                await site.context.schedule_task(
                    site.send,
                    "alice",
                    execute_in=timedelta(hours=1),
                    args={
                        "card": "4242",
                        "API_KEY": "k1",
                        "to": "alice",
                        "more": {"card": "4343", "password": "p1", "text": ["fine"]},
                    },
                )
                page = text(await site.browser.get("task", name="send", instance="alice"))
                for secret in ("4242", "k1", "4343", "p1"):
                    assert secret not in page
                assert '"alice"' in page
                assert '["fine"]' in page

        run(main())

    @pytest.mark.parametrize(
        "name",
        [
            "password",
            "passwords",
            "password1",
            "password_hash",
            "pwd",
            "passphrase",
            "access_key",
            "apiKey",
            "api-key",
            "client_secret",
            "refreshToken",
            "jwt",
            "bearer",
            "dsn",
            "pin",
            "card_pin",
            "otp",
        ],
    )
    def test_a_name_that_says_that_it_is_secret_hides_the_value(self, name: str) -> None:
        assert SECRET.search(name)

    @pytest.mark.parametrize("name", ["shopping", "pinned", "passenger", "option", "keyword"])
    def test_a_name_that_only_looks_secret_hides_nothing(self, name: str) -> None:
        assert not SECRET.search(name)

    @pytest.mark.parametrize("said", ["\ud800", ["a"], 3])
    def test_a_cookie_that_somebody_made_up_is_no_error(self, said: object) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                text = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
                site.browser.http.cookies.set(SAID_COOKIE, text)
                await site.browser.get()

        run(main())

    def test_a_function_may_say_which_arguments_are_hidden(self) -> None:
        async def main() -> None:
            site = Site(redact=lambda task, argument: (task, argument) == ("send", "to"))
            async with site.opened():
                await site.context.schedule_task(
                    site.send, "alice", execute_in=timedelta(hours=1), to="a@example.org", n=7
                )
                page = text(await site.browser.get("task", name="send", instance="alice"))
                assert "a@example.org" not in page
                assert "n 7" in page

        run(main())

    def test_a_viewer_without_arguments_sees_no_errors_either(self) -> None:
        def authorize(request: Request) -> Access:
            return Access("eve", EVERYTHING, arguments=False)

        async def main() -> None:
            async with Site(authorize=authorize).opened() as site:
                await site.context.schedule_task(
                    site.send, "alice", execute_in=timedelta(hours=1), to="a@example.org"
                )
                await site.parked("bob")
                for page in (await every_page(site)).values():
                    assert "a@example.org" not in page
                    assert "no address" not in page

        run(main())

    @pytest.mark.parametrize("hidden", [False, True])
    def test_the_reason_of_a_pause_is_an_error_unless_a_person_wrote_it(self, hidden: bool) -> None:
        def authorize(request: Request) -> Access:
            return Access("eve", EVERYTHING, arguments=not hidden)

        async def main() -> None:
            site = Site(authorize=authorize)
            options: dict[str, Any] = {"retry": Retry(attempts=1), "exhausted": Exhausted.PAUSE}

            async def fails(context: Context) -> None:
                raise ValueError("no address a@example.org")

            rests = site.app.dynamic_task(name="rests", interval=0.01, **options)(fails)
            site.app.task(name="static", interval=0.01, **options)(fails)
            async with site.opened():
                await site.context.schedule_task(rests, "alice")
                await site.context.run_until_idle()
                await site.clock.advance(timedelta(seconds=1))
                await site.context.run_until_idle()
                with acting_as("ada"):
                    await site.context.schedule_task(site.send, "bob", execute_in=timedelta(days=1))
                    await site.context.pause(site.send, "bob", reason="on leave")
                pages = await every_page(site)
                of_instance = await site.browser.get("task", name="rests", instance="alice")
                for page in (
                    of_instance,
                    await site.browser.get("task", name="rests"),
                    await site.browser.get("task", name="static"),
                ):
                    assert ("a@example.org" in page) is not hidden, text(page)
                assert ("a@example.org" in "".join(pages.values())) is not hidden
                assert "on leave" in pages["bob"]

        run(main())

    def test_a_store_that_fails_is_said(self) -> None:
        async def main() -> None:
            app = Pyncette(url="sqlite:////nowhere/at/all.db", open_timeout=0)
            browser = Browser(dashboard(app, ada))
            page = text(await browser.get("", 503))
            assert "The store does not answer" in page
            assert "/nowhere/at/all.db" in page

        run(main())


class TestAccess:
    def test_without_a_hook_nothing_can_be_changed_and_only_this_machine_is_let_in(self) -> None:
        async def main() -> None:
            with pytest.raises(ValueError, match="must know who may"):
                dashboard(Pyncette())
            async with Site(authorize=None, read_only=True).opened() as site:
                assert "read only" in await site.browser.get()
                assert '<form method="post"' not in await site.browser.get("task", name="report")
                response = await site.browser.post({"action": "pause", "task": "report"})
                assert response.status_code == 403
                elsewhere = Browser(site.board, client="192.0.2.1")
                renamed = Browser(site.board, base="http://rebound.example.com/")
                for browser in (elsewhere, renamed):
                    for path in (*SCREENS, "task?name=report", "live", "job"):
                        await browser.get(path, 403)
                proxied = await site.browser.http.get(
                    "http://localhost/", headers={"x-forwarded-for": "192.0.2.1"}
                )
                assert proxied.status_code == 403

        run(main())

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_whom_the_hook_refuses_sees_and_does_nothing(self, asynchronous: bool) -> None:
        async def later(request: Request) -> Access | None:
            return None

        async def main() -> None:
            hook = later if asynchronous else lambda request: None
            async with Site(authorize=hook).opened() as site:
                for path in (*SCREENS, "task?name=report", "live", "job", "nowhere"):
                    page = await site.browser.get(path, 403)
                    assert "report" not in page
                response = await site.browser.post({"action": "pause", "task": "report"})
                assert response.status_code == 403
                assert await site.context.get_task(site.report) is None

        run(main())

    def test_the_hook_may_answer_with_a_response(self) -> None:
        async def main() -> None:
            async with Site(authorize=lambda request: RedirectResponse("/login")).opened() as site:
                for path in ("", "live"):
                    response = await site.browser.http.get(f"http://localhost/{path}")
                    assert response.headers["location"] == "/login"

        run(main())

    def test_an_answer_of_another_type_is_an_error_and_not_an_admission(self) -> None:
        async def main() -> None:
            async with Site(authorize=lambda request: True).opened() as site:
                with pytest.raises(TypeError, match="authorize must return"):
                    await site.browser.get()

        run(main())

    def test_what_the_viewer_may_do_is_what_is_offered_and_what_is_done(self) -> None:
        def authorize(request: Request) -> Access:
            return Access("ada", {Action.PAUSE})

        async def main() -> None:
            async with Site(authorize=authorize).opened() as site:
                page = await site.browser.get("task", name="report")
                assert 'value="pause"' in page
                assert 'value="trigger"' not in page
                await site.browser.act("pause", "report")
                for action in EVERYTHING - {Action.PAUSE}:
                    response = await site.browser.post({"action": action, "task": "report"})
                    assert response.status_code in (400, 403), action
                state = await site.context.get_task(site.report)
                assert state is not None
                assert state.state == "paused"

        run(main())

    def test_a_viewer_of_some_tasks_sees_and_does_nothing_about_the_others(self) -> None:
        def authorize(request: Request) -> Access:
            return Access("ada", EVERYTHING, tasks={"poll"})

        async def main() -> None:
            async with Site(authorize=authorize).opened() as site:
                await site.parked("bob")
                await site.context.pause(site.send, reason="hush")
                for screen in SCREENS[:-1]:
                    page = text(await site.browser.get(screen))
                    for word in ("report", "send", "bob", "hush"):
                        assert word not in page, screen
                assert "poll" in text(await site.browser.get("tasks"))
                await site.browser.get("unknown", 404)
                await site.browser.get("task", 404, name="send")
                await site.browser.get("task", 404, name="send", instance="bob")
                for action, status in (("retry", 404), ("purge", 403)):
                    response = await site.browser.post(
                        {"action": action, "task": "send", "instance": "bob"}
                    )
                    assert response.status_code == status
                assert await site.state("bob") == "parked"

        run(main())

    def test_read_only_holds_whatever_the_hook_answers(self) -> None:
        async def main() -> None:
            async with Site(read_only=True).opened() as site:
                assert '<form method="post"' not in await site.browser.get("task", name="report")
                response = await site.browser.post({"action": "pause", "task": "report"})
                assert response.status_code == 403
                assert await site.context.get_task(site.report) is None

        run(main())

    @pytest.mark.parametrize(
        ("values", "error"),
        [
            ({"user": ""}, ValueError),
            ({"user": None}, ValueError),
            ({"user": "ada", "actions": ["destroy"]}, ValueError),
            ({"user": "ada", "actions": "pause"}, TypeError),
            ({"user": "ada", "tasks": "send"}, TypeError),
        ],
    )
    def test_an_access_is_checked(self, values: dict[str, object], error: type[Exception]) -> None:
        with pytest.raises(error):
            Access(**values)  # type: ignore[arg-type]

    def test_wrong_options_are_refused(self) -> None:
        app = Pyncette()
        for options in ({"authorize": 1}, {"redact": "card"}, {"origins": "https://x.example"}):
            with pytest.raises(TypeError):
                dashboard(app, **{"authorize": ada, **options})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"takes a pyncette\.Pyncette"):
            dashboard("app", ada)  # type: ignore[arg-type]


class TestForms:
    @pytest.mark.parametrize(
        ("headers", "token"),
        [
            (SAME_ORIGIN, None),
            (SAME_ORIGIN, ""),
            (SAME_ORIGIN, "0" * 64),
            ({"sec-fetch-site": "cross-site"}, "kept"),
            ({"sec-fetch-site": "same-site"}, "kept"),
            ({"sec-fetch-site": "none"}, "kept"),
            ({"origin": "https://evil.example.com"}, "kept"),
            ({"origin": "null"}, "kept"),
        ],
    )
    def test_a_forged_form_changes_nothing(
        self, headers: dict[str, str], token: str | None
    ) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.browser.get()
                response = await site.browser.post(
                    {"action": "pause", "task": "report"}, headers, token
                )
                assert response.status_code == 403
                assert "Nothing was changed" in response.text
                assert await site.context.get_task(site.report) is None

        run(main())

    def test_a_form_of_a_browser_without_the_cookie_changes_nothing(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                response = await site.browser.post({"action": "pause", "task": "report"}, token="x")
                assert response.status_code == 403
                assert await site.context.get_task(site.report) is None

        run(main())

    @pytest.mark.parametrize(
        "headers",
        [SAME_ORIGIN, {"origin": "http://localhost"}, {"origin": "https://ops.example"}, {}],
    )
    def test_a_form_of_its_own_is_accepted(self, headers: dict[str, str]) -> None:
        async def main() -> None:
            async with Site(origins={"https://ops.example"}).opened() as site:
                await site.browser.get()
                response = await site.browser.post({"action": "pause", "task": "report"}, headers)
                assert response.status_code == 303
                assert await site.context.get_task(site.report) is not None

        run(main())

    def test_the_cookies_are_for_no_script_and_no_other_site(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                response = await site.browser.http.get("https://localhost/")
                cookie = response.headers["set-cookie"].lower()
                for part in ("httponly", "samesite=strict", "secure"):
                    assert part in cookie
                assert "path=" not in cookie

        run(main())

    def test_what_is_no_form_of_the_dashboard_is_refused(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.browser.get()
                for fields in (
                    {},
                    {"action": "explode", "task": "report"},
                    {"action": "pause", "task": "report", "lasting": "ever"},
                    {"action": "pause", "task": "report", "instance": "x"},
                    {"action": "pause", "task": "report", "partition": "1"},
                    {"action": "pause", "task": "poll", "partition": "3"},
                    {"action": "unschedule", "task": "report"},
                    {"action": "unschedule", "task": "send"},
                    {"action": "retry", "task": "send"},
                    {"action": "retry", "task": "send", "scope": "selected"},
                    {
                        "action": "retry",
                        "task": "send",
                        "selected": ["x"] * 3,
                        "scope": "matching",
                        "state": "odd",
                    },
                ):
                    response = await site.browser.post(fields)
                    assert response.status_code == 400, fields
                response = await site.browser.post({"action": "pause", "task": "nothing"})
                assert response.status_code == 404
                response = await site.browser.post({"action": "pause", "reason": "x" * 1_100_000})
                assert response.status_code == 400
                response = await site.browser.http.post("http://localhost/act", json={})
                assert response.status_code == 400
                response = await site.browser.http.get("http://localhost/act")
                assert response.status_code == 404

        run(main())

    def test_the_page_to_go_back_to_is_never_another_site(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.browser.get()
                for back in (
                    "https://evil.example",
                    "//evil.example",
                    "../x",
                    "\\\\evil",
                    "task\r\nX: y",
                    "tasks?\u0436",
                ):
                    response = await site.browser.post(
                        {"action": "pause", "task": "report", "back": back}
                    )
                    assert response.headers["location"] == "./"

        run(main())


class TestActions:
    def test_one_static_task_is_paused_resumed_and_run(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                browser = site.browser
                done = await browser.act("pause", "report", lasting="1h", reason="a move")
                assert done == "Paused report."
                state = await site.context.get_task(site.report)
                assert state is not None
                assert (state.state, state.reason) == ("paused", "a move")
                assert state.paused_until == after(3_600)
                assert await browser.act("resume", "report") == "Resumed report."
                assert await browser.act("trigger", "report") == "report runs now, once more."
                await site.context.run_until_idle()
                assert site.ran == ["report"]

        run(main())

    def test_one_instance_is_retried_given_up_and_removed(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                browser = site.browser
                await site.parked("bob", "bill", "beth")
                done = await browser.act("retry", "send", instance="bob")
                assert done == "send:bob runs again."
                assert (
                    "given up for good"
                    in (
                        await browser.post({"action": "drop", "task": "send", "instance": "bill"})
                    ).text
                )
                assert await site.state("bill") == "parked"
                done = await browser.confirm("drop", "send", instance="bill")
                assert done == "Gave up the parked run of send:bill."
                done = await browser.confirm("unschedule", "send", instance="beth")
                assert done == "Removed send:beth."
                await site.context.run_until_idle()
                assert site.ran == ["bob"]
                assert await site.state("bill") is None
                assert await site.state("beth") is None
                done = await browser.act("retry", "send", instance="nobody")
                assert "is not parked" in done

        run(main())

    def test_what_cannot_be_done_is_said(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.browser.get()
                response = await site.browser.post(
                    {"action": "pause", "task": "send", "instance": "nobody"}
                )
                assert response.status_code == 409
                assert "nobody" in response.text
                await site.context.schedule_task(site.send, "x", execute_in=timedelta(hours=1))
                await site.context.pause(site.send)
                response = await site.browser.post(
                    {"action": "trigger", "task": "send", "instance": "x"}
                )
                assert response.status_code == 409
                assert "TaskPausedError" in response.text

        run(main())

    def test_a_template_and_a_partition_are_paused_resumed_and_run(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                for name in "abc":
                    await site.context.schedule_task(site.poll, name)
                await site.browser.act("pause", "poll", reason="all")
                await site.browser.act("pause", "poll", partition="2", reason="one")
                pauses = {pause.partition: pause.reason for pause in await site.context.pauses()}
                assert pauses == {None: "all", 2: "one"}
                page = text(await site.browser.get("task", name="poll"))
                assert "The whole template is paused" in page
                assert "Partition 2 is paused" in page
                await site.browser.act("resume", "poll")
                await site.browser.act("resume", "poll", partition="2")
                assert not await site.context.pauses()
                assert await site.browser.confirm("trigger", "poll") == "3 runs of poll added."
                await site.context.run_until_idle()
                assert sorted(site.ran) == ["a", "b", "c"]

        run(main())

    @pytest.mark.parametrize("scope", [{"scope": "selected"}, {"scope": "matching", "prefix": "a"}])
    def test_several_instances_are_paused_with_an_end_and_a_reason(
        self, scope: dict[str, str]
    ) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                for name in ("a1", "a2", "b1"):
                    await site.context.schedule_task(site.send, name, execute_in=timedelta(days=1))
                wish: dict[str, Any] = dict(scope)
                if scope["scope"] == "selected":
                    wish["selected"] = ["a1", "a2"]
                await site.browser.get()
                asked = await site.browser.post({"action": "pause", "task": "send", **wish})
                assert '<select name="lasting">' in asked.text
                assert '<input name="reason"' in asked.text
                done = await site.browser.confirm(
                    "pause", "send", **wish, lasting="7d", reason="moves"
                )
                assert "2 changed" in done
                state = await site.context.get_task(site.send, "a1")
                assert state is not None
                assert (state.reason, state.paused_by) == ("moves", "ada")
                assert state.paused_until == site.clock.now() + timedelta(days=7)
                assert await site.state("b1") == "scheduled"

        run(main())

    @pytest.mark.parametrize(
        ("action", "asked", "result"),
        [
            ("retry", False, "2 changed"),
            ("drop", True, "2 changed"),
            ("unschedule", True, "2 removed"),
            ("pause", True, "2 changed"),
            ("trigger", False, "2 changed"),
        ],
    )
    def test_the_selected_instances_are_acted_on(
        self, action: str, asked: bool, result: str
    ) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("b1", "b2", "b3")
                send = site.browser.confirm if asked else site.browser.act
                done = await send(action, "send", scope="selected", selected=["b1", "b3"])
                assert result in done
                assert await site.state("b2") == "parked"
                if action != "pause":  # what is parked stays so
                    assert await site.state("b1") != "parked"

        run(main())

    @pytest.mark.parametrize("action", ["retry", "drop", "unschedule", "trigger"])
    @pytest.mark.parametrize(
        ("chosen", "count"),
        [
            ({"prefix": "b"}, "2"),
            ({"state": "parked", "error": digest_of("ValueError: no address for b1")}, "1"),
            ({"state": "parked"}, "3"),
        ],
    )
    def test_all_that_match_are_acted_on_after_a_question_that_says_how_many(
        self, action: str, chosen: dict[str, str], count: str
    ) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("a1", "b1", "b2")
                await site.browser.get()
                asked = await site.browser.post(
                    {"action": action, "task": "send", "scope": "matching", **chosen}
                )
                assert f"<strong>{count}</strong>" in asked.text
                done = await site.browser.confirm(action, "send", scope="matching", **chosen)
                word = "removed" if action == "unschedule" else "changed"
                if action != "drop":
                    assert f"{count} {word}" in done
                left = await site.context.count_tasks(site.send, Where(states={"parked"}))
                assert left.count == 3 - int(count)

        run(main())

    def test_an_unknown_task_is_purged_after_a_question(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.context.schedule_task(site.send, "x", execute_in=timedelta(hours=1))
                site.app._tasks.remove(site.send)
                page = text(await site.browser.get("unknown"))
                assert "send template 1" in page
                assert "1 removed" in await site.browser.confirm("purge", "send")
                assert "There are none." in text(await site.browser.get("unknown"))

        run(main())

    def test_long_work_shows_its_progress_and_its_failures_on_a_page_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyncette.web.jobs.PATIENCE_S", 0.0)

        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("b1", "b2")
                await site.browser.get()
                response = await site.browser.post(
                    {
                        "action": "trigger",
                        "task": "send",
                        "scope": "selected",
                        "selected": ["b1", "nobody"],
                        "back": "failures",
                    }
                )
                address = response.headers["location"]
                assert address.startswith("job?id=")
                page = await site.browser.get(address)
                while "Under way" in page:
                    await asyncio.sleep(0)
                    page = await site.browser.get(address)
                assert said(page) == "1 changed, 1 failed"
                assert "nobody" in page
                other = Browser(dashboard(site.app, lambda request: Access("eve")))
                await other.get(address, 404)
                await site.browser.get("job", 404, id="nonsense")

        run(main())

    def test_each_action_is_logged_with_who_has_done_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", logger="pyncette")

        async def main() -> None:
            async with Site().opened() as site:
                await site.browser.act("pause", "report")

        run(main())
        assert "ada: pause of report, in the dashboard" in caplog.messages

    def test_the_events_of_each_action_name_the_viewer(self) -> None:
        async def main() -> None:
            site = Site()
            told: list[tuple[str, str | None]] = []

            def note(event: Steered) -> None:
                told.append((event.action, event.by))

            site.app.on_event(note, Steered)
            async with site.opened():
                await site.parked("b1", "b2", "b3")
                await site.browser.act("pause", "report")
                await site.browser.act("retry", "send", scope="selected", selected=["b1"])
                await site.browser.confirm("drop", "send", scope="matching", prefix="b2")
                await site.browser.confirm("unschedule", "send", scope="matching", prefix="b3")
                await site.browser.confirm("trigger", "poll")
            assert {by for _, by in told} == {"ada"}
            assert {"pause", "retry", "drop", "unschedule"} <= {action for action, _ in told}

        run(main())

    def test_the_screens_show_who_has_paused_what(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.context.schedule_task(site.send, "anna", execute_in=seconds(60))
                await site.browser.act("pause", "report", reason="moving house")
                await site.browser.act("pause", "send", instance="anna")
                await site.browser.act("pause", "poll", partition="1")
                overview = text(await site.browser.get())
                assert "report was paused 0 s ago by ada (moving house)" in overview
                assert "poll partition 1 was paused 0 s ago by ada" in overview
                page = text(await site.browser.get("task", name="report"))
                assert "Paused since 2026-01-05 12:00:00 by ada, until it is resumed" in page
                page = text(await site.browser.get("task", name="send", instance="anna"))
                assert "Paused since 2026-01-05 12:00:00 by ada, until it is resumed" in page
                page = text(await site.browser.get("task", name="poll"))
                assert "Partition 1 is paused since 2026-01-05 12:00:00 by ada" in page
                site.app._tasks.remove(site.poll)
                assert "by ada" in text(await site.browser.get("unknown"))

        run(main())

    def test_without_scripts_every_form_works_with_what_the_page_has(self) -> None:
        # The fields come from the page itself, and not from the test.
        async def main() -> None:
            async with Site().opened() as site:
                await site.parked("bob")
                page = await site.browser.get("task", name="send", instance="bob")
                forms = re.findall(r'<form method="post" action="act".*?</form>', page, re.S)
                assert len(forms) == 3
                [retry] = [form for form in forms if 'value="retry"' in form]
                found = re.findall(r'name="([^"]+)" value="([^"]*)"', retry)
                fields = {name: unescape(value) for name, value in found}
                response = await site.browser.post(fields, token=None)
                assert response.headers["location"] == "task?name=send&instance=bob"
                assert await site.state("bob") != "parked"

        run(main())


class TestMounting:
    def test_it_looks_through_the_context_that_the_program_has_open(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                await site.context.pause(site.report)  # in memory: no other context knows of it
                assert "paused" in text(await site.browser.get("tasks"))
                assert site.app._opened.here() == [site.context]

        run(main())

    def test_otherwise_it_opens_one_and_closes_it_after_a_while(self) -> None:
        async def main() -> None:
            app = Pyncette(clock=VirtualClock())
            opened = OpenedApp(app, idle_s=0.0)
            async with opened.lent() as context:
                assert app._opened.here() == [context]
                async with opened.lent() as again:
                    assert again is context
            await until(lambda: not app._opened.here())
            async with opened.lent() as other:
                assert other is not context
            await opened.close()
            assert not app._opened.here()

        run(main())

    def test_its_end_waits_for_a_context_that_is_being_closed(self) -> None:
        async def main() -> None:
            leaving: list[asyncio.Event] = []

            @asynccontextmanager
            async def slow(**options: Any) -> AsyncIterator[MemoryStore]:
                leaving.append(asyncio.Event())
                mine = leaving[-1]
                yield MemoryStore()
                await mine.wait()

            app = Pyncette(slow, clock=VirtualClock())
            opened = OpenedApp(app, idle_s=0.0)
            for _ in range(2):
                async with opened.lent():
                    pass
                await until(lambda: not app._opened.here())
            leaving[1].set()
            closing = asyncio.ensure_future(opened.close())
            for _ in range(50):
                await asyncio.sleep(0)
            assert not closing.done()
            leaving[0].set()
            await closing
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())

    def test_the_end_of_the_event_loop_closes_it(self) -> None:
        app = Pyncette(clock=VirtualClock())
        opened = OpenedApp(app)
        held = []

        async def main() -> None:
            async with opened.lent() as context:
                held.append(context)

        for _ in range(2):  # and the next event loop has one of its own
            asyncio.run(main())
            assert not app._opened._contexts
        assert held[0] is not held[1]

    def test_two_dashboards_of_an_app_do_not_rely_on_the_context_of_each_other(self) -> None:
        async def main() -> None:
            app = Pyncette(clock=VirtualClock())
            one, other = OpenedApp(app), OpenedApp(app)
            async with one.lent() as first, other.lent() as second:
                assert first is not second
            await one.close()
            async with other.lent() as still:
                assert still is second
            await other.close()

        run(main())

    @pytest.mark.parametrize("prefix", ["", "/ops", "/deep/ly/mounted"])
    def test_it_works_wherever_it_is_mounted(self, prefix: str) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                service = Starlette(routes=[Mount(prefix, site.board)])
                browser = Browser(service, base=f"http://localhost{prefix}/")
                assert await browser.act("pause", "report") == "Paused report."
                page = await browser.get("task", name="report")
                for address in re.findall(r'(?:href|src|action|hx-get)="([^"#]+)"', page):
                    assert not address.startswith("/")
                    if address != "act":
                        await browser.get(address.replace("&amp;", "&"))

        run(main())

    def test_the_directory_without_its_slash_leads_to_it(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:

                async def litestar(scope: Any, receive: Any, send: Any) -> None:
                    # It takes its prefix away, and adds a slash at the end.
                    path = scope["path"].removeprefix("/ops").rstrip("/") + "/"
                    await site.board({**scope, "path": path}, receive, send)

                browser = Browser(litestar, base="http://localhost/ops/")
                response = await browser.http.get("http://localhost/ops")
                assert response.headers["location"] == "ops/"
                assert "Overview" in await browser.get()
                page = await browser.get("task", name="report")
                assert 'hx-get="task?name=report"' in page
                assert await browser.act("pause", "report") == "Paused report."

        run(main())

    def test_a_proxy_may_take_the_prefix_away(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                browser = Browser(site.board, root_path="/ops")
                assert "Overview" in await browser.get()
                await browser.get("task", name="report")

        run(main())

    def test_assets_are_kept_by_browsers_until_they_change(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                page = await site.browser.get()
                [address] = re.findall(r'href="(assets/dashboard.css\?[^"]+)"', page)
                response = await site.browser.http.get(f"http://localhost/{address}")
                assert "immutable" in response.headers["cache-control"]
                for bad in (
                    "assets/../__init__.py",
                    "assets/htmx.LICENSE",
                    "assets/%2e%2e/view.py",
                ):
                    await site.browser.get(bad, 404)

        run(main())


class TestLive:
    def test_ten_viewers_of_a_screen_cost_what_one_costs(self) -> None:
        async def main() -> None:
            reads = 0
            poller = Poller(60.0)

            async def read() -> int:
                nonlocal reads
                reads += 1
                await asyncio.sleep(0)
                return reads

            assert set(await asyncio.gather(*(poller.get("key", read) for _ in range(10)))) == {1}
            assert await poller.get("key", read) == 1
            poller.forget()
            assert await poller.get("key", read) == 2

        run(main())

    def test_what_failed_is_read_again(self) -> None:
        async def main() -> None:
            poller = Poller(60.0)

            async def fail() -> int:
                raise ValueError("no")

            async def read() -> int:
                return 1

            with pytest.raises(ValueError, match="no"):
                await poller.get("key", fail)
            assert await poller.get("key", read) == 1

        run(main())

    def test_a_bounded_number_of_answers_is_kept(self) -> None:
        async def main() -> None:
            poller = Poller(60.0)

            async def read() -> None: ...

            for number in range(1_000):
                await poller.get(number, read)
            assert len(poller._kept) <= 256

        run(main())

    def test_what_was_read_before_anybody_looked_makes_no_tick_rarer(self) -> None:
        async def main() -> None:
            poller = Poller(0.001)
            poller._took_s = 1_000_000.0
            with poller.watching() as ticked:
                async with realtime.timeout(30.0):
                    await ticked.wait()
            poller._took_before_s = 1_000_000.0
            assert poller.interval_s == 30.0

        run(main())

    def test_it_ticks_only_while_a_viewer_looks(self) -> None:
        async def main() -> None:
            poller = Poller(0.001)
            with poller.watching() as first:
                with poller.watching() as second:
                    await asyncio.gather(first.wait(), second.wait())
                    assert poller.viewers == 2
                ticking = poller._ticking
                assert ticking is not None
                first.clear()
                await first.wait()
            assert poller.viewers == 0
            await asyncio.wait([ticking])
            assert ticking.cancelled()

        run(main())

    def test_a_page_is_told_at_once_of_what_a_viewer_has_done(self) -> None:
        async def main() -> None:
            async with Site(refresh=timedelta(hours=1)).opened() as site:
                ticks = site.board._ticks()
                first = asyncio.ensure_future(anext(ticks))
                await until(lambda: site.board._poller.viewers > 0)
                await site.browser.act("pause", "report")
                assert await first == 1
                await ticks.aclose()

        run(main())

    def test_the_stream_ends_when_the_server_stops(self) -> None:
        async def main() -> None:
            async with Site().opened() as site:
                site.board.stop()
                page = await site.browser.get("live")
                assert page.startswith("retry: ")

        run(main())


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 9 * * 1-5", "at 09:00, Monday to Friday"),
        ("*/15 * * * *", "every 15 minutes"),
        ("*/7 * * * *", "cron */7 * * * *"),
        ("* * * * * */10", "every 10 seconds"),
        ("* * * * *", "every minute"),
        ("0 * * * *", "every hour"),
        ("@hourly", "every hour"),
        ("5 */2 * * *", "every 2 hours at minute 5"),
        ("0 9-17 * * *", "every hour from 09:00 to 17:00"),
        ("*/5 9-17 * * MON-FRI", "every 5 minutes, from 09:00 to 17:59, Monday to Friday"),
        ("30 8,17 * * mon,fri", "at 08:30 and 17:30, on Monday and Friday"),
        ("0 0 1 * *", "at 00:00, on day 1 of the month"),
        ("0 0 L * *", "at 00:00, on the last day of the month"),
        ("0 0 1 1,7 *", "at 00:00, on day 1 of the month, in January and July"),
        ("0 0 13 * 5", "at 00:00, on day 13 of the month or on Friday"),
        ("0 0 * NOV-FEB *", "at 00:00, from November to February"),
        ("@daily", "at 00:00, every day"),
        ("0 0 * * MON#2", "cron 0 0 * * MON#2"),
        ("0 0 * * * 0 2030", "cron 0 0 * * * 0 2030"),
        ("15 10 * * * 30", "at 10:15:30, every day"),
    ],
)
def test_a_cron_expression_is_said_in_words(expression: str, words: str) -> None:
    assert cron_words(expression) == words


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (0, "0 s"),
        (0.0042, "4.2 ms"),
        (1.234, "1.23 s"),
        (59.9, "1 min"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (3_661, "1 h 1 min"),
        (86_400 + 60, "1 d"),
        (10 * 86_400 + 7_200, "10 d 2 h"),
        (-5, "-5 s"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(duration: float, words: str) -> None:
    assert duration_text(seconds(duration)) == words
