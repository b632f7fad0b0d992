"""A dashboard to be looked at by tests: an app on a clock that is moved by hand, and a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import urlencode, urljoin

import httpx2
from tests.support import START, seconds

from pyncette import Context, Exhausted, Pyncette, PyncetteContext, Retry
from pyncette.testing import VirtualClock
from pyncette.web import Access, Action, Dashboard, dashboard

EVERYTHING = frozenset(Action)
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def ada(request: object) -> Access:
    return Access("ada", EVERYTHING)


class Browser:
    """Sends requests to an ASGI app as a browser does, cookies and forms included."""

    def __init__(
        self,
        asgi: Any,
        base: str = "http://localhost/",
        client: str = "127.0.0.1",
        root_path: str = "",
    ) -> None:
        transport = httpx2.ASGITransport(app=asgi, client=(client, 1), root_path=root_path)
        self.base = base
        self.http = httpx2.AsyncClient(transport=transport)

    async def get(self, page: str = "", status: int = 200, **parameters: str) -> str:
        if parameters:
            page = f"{page}?{urlencode(parameters)}"
        response = await self.http.get(urljoin(self.base, page))
        assert response.status_code == status, response.text
        return response.text

    async def post(
        self,
        fields: Mapping[str, str | Sequence[str]],
        headers: Mapping[str, str] | None = None,
        token: str | None = "kept",
    ) -> httpx2.Response:
        """Sends a form as the pages have them. Redirects are not followed."""
        if token == "kept":
            token = self.http.cookies.get("pyncette_form") or ""
        sent: list[tuple[str, str]] = [] if token is None else [("form_token", token)]
        for name, value in fields.items():
            sent += [(name, one) for one in ([value] if isinstance(value, str) else value)]
        return await self.http.post(
            urljoin(self.base, "act"),
            content=urlencode(sent),
            headers={
                "content-type": "application/x-www-form-urlencoded",
                **(SAME_ORIGIN if headers is None else headers),
            },
        )

    async def act(self, action: str, task: str, **fields: str | Sequence[str]) -> str:
        """Sends a form that is to be done, and returns what the next page says was done."""
        await self.get()
        response = await self.post({"action": action, "task": task, **fields})
        assert response.status_code == 303, response.text
        page = await self.get(response.headers["location"])
        return said(page)

    async def confirm(self, action: str, task: str, **fields: str | Sequence[str]) -> str:
        """Sends a form that is asked about first; confirms with the form of that page."""
        await self.get()
        asked = await self.post({"action": action, "task": task, **fields})
        assert asked.status_code == 200, asked.text
        form = hidden_fields(asked.text)
        assert form["confirmed"] == ["yes"]
        token = form.pop("form_token")[0]
        done = await self.post(form, token=token)
        assert done.status_code == 303, done.text
        return said(await self.get(done.headers["location"]))


def said(page: str) -> str:
    found = re.search(
        r'<p (?:class="said" role="status"|role="status" class="said")>(.*?)</p>', page, re.S
    )
    return unescape(found[1]) if found else ""


def text(page: str) -> str:
    """What a page shows, without its tags."""
    body = page.partition("<main")[2]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def hidden_fields(page: str) -> dict[str, list[str]]:
    """The hidden fields of the first form of a page."""
    form = re.findall(r"<form method=\"post\".*?</form>", page, re.S)[0]
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form):
        fields.setdefault(unescape(name), []).append(unescape(value))
    return fields


class Site:
    """An app with a static task and two templates, open, and its dashboard.

    Attributes:
        ran: The labels of what has run.
        failing: Whether ``send`` fails.
    """

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock(START)
        self.app = Pyncette(clock=self.clock)
        self.options = options
        self.ran: list[str] = []
        self.failing = False
        self.context: PyncetteContext
        self.board: Dashboard
        self.browser: Browser

        @self.app.task(schedule="0 9 * * 1-5", timezone="Europe/Berlin")
        async def report(context: Context) -> None:
            self.ran.append("report")

        @self.app.dynamic_task(
            retry=Retry(attempts=1, initial=seconds(1)), exhausted=Exhausted.PARK
        )
        async def send(context: Context) -> None:
            self.ran.append(context.task.name)
            if self.failing:
                raise ValueError(f"no address for {context.task.name}")

        @self.app.partitioned_task(partition_count=3, interval=timedelta(hours=1))
        async def poll(context: Context) -> None:
            self.ran.append(context.task.name)

        self.report, self.send, self.poll = report, send, poll

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Site]:
        options = {"authorize": ada, "refresh": timedelta(microseconds=1), **self.options}
        self.board = dashboard(self.app, **options)
        self.browser = Browser(self.board)
        async with self.app.create() as self.context:
            yield self

    async def parked(self, *names: str) -> None:
        """Parks instances of ``send``, with their error."""
        for name in names:
            await self.context.schedule_task(self.send, name, execute_in=timedelta(0))
        self.failing = True
        await self.context.run_until_idle()
        self.failing = False
        self.ran.clear()

    async def state(self, name: str) -> str | None:
        found = await self.context.get_task(self.send, name)
        return None if found is None else found.state
