"""The dashboard in the frameworks that its page names, served by uvicorn, and by itself."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import suppress
from html import unescape
from http.client import HTTPException
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest
from tests.docs.test_frameworks import UVICORN, Program, program

TASKS = """
from contextlib import asynccontextmanager
from datetime import timedelta
from pyncette import Pyncette
from pyncette.web import Access, Action, dashboard

app = Pyncette(url={url!r})

@app.task(interval=timedelta(hours=1))
async def refresh(context): ...

def authorize(request):
    return Access("ada", Action)
"""

SERVICES = {
    "starlette": """
from starlette.applications import Starlette
from starlette.routing import Mount

@asynccontextmanager
async def lifespan(service):
    async with app.running():
        yield

service = Starlette(routes=[Mount("/ops", dashboard(app, authorize))], lifespan=lifespan)
""",
    "fastapi": """
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(service):
    async with app.running():
        yield

service = FastAPI(lifespan=lifespan)
service.mount("/ops", dashboard(app, authorize))
""",
    "litestar": """
from litestar import Litestar, asgi

@asynccontextmanager
async def lifespan(service):
    async with app.running():
        yield

board = asgi("/ops", is_mount=True, copy_scope=True)(dashboard(app, authorize))
service = Litestar([board], lifespan=[lifespan])
""",
    "django": """
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"])
from django.core.asgi import get_asgi_application
from starlette.applications import Starlette
from starlette.routing import Mount

service = Starlette(
    routes=[
        Mount("/ops", dashboard(app, authorize)),
        Mount("/", get_asgi_application()),
    ]
)
""",
}


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


class Visitor:
    """A browser without JavaScript."""

    def __init__(self, served: Program, prefix: str) -> None:
        served.answers("GET", f"{prefix}/")
        self._base = f"http://127.0.0.1:{served.port}{prefix}/"
        self._opener = build_opener(_Stay)
        self._cookies: dict[str, str] = {}

    def send(self, page: str, fields: dict[str, str] | None = None) -> tuple[str, str | None]:
        """Returns the page, and where it redirects to."""
        data = None if fields is None else urlencode(fields).encode()
        cookie = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        request = Request(urljoin(self._base, page), data, headers={"Cookie": cookie})
        try:
            answer = self._opener.open(request, timeout=60)
        except HTTPError as error:
            if error.code != 303:
                raise AssertionError(f"{error}: {error.read()!r}") from error
            answer = error
        for header in answer.headers.get_all("set-cookie") or []:
            self._cookies |= {name: one.value for name, one in SimpleCookie(header).items()}
        return answer.read().decode(), answer.headers.get("location")

    def act(self, page: str, action: str) -> str:
        """Sends the form of a page that has this action, and returns the next page."""
        shown, _ = self.send(page)
        forms = re.findall(r"<form method=\"post\".*?</form>", shown, re.S)
        [form] = [form for form in forms if f'value="{action}"' in form]
        found = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form)
        _, following = self.send("act", {name: unescape(value) for name, value in found})
        assert following is not None
        return self.send(following)[0]


@pytest.mark.parametrize("framework", SERVICES)
def test_it_shows_acts_and_ends_where_it_is_mounted(framework: str, tmp_path: Path) -> None:
    # Without a lifespan of the app there, the store must be one that two contexts can share.
    url = "sqlite:///tasks.db" if framework == "django" else "sqlite://"
    (tmp_path / "urls.py").write_text("urlpatterns = []\n")
    (tmp_path / "service.py").write_text(TASKS.format(url=url) + SERVICES[framework])
    with program([*UVICORN, "service:service"], tmp_path) as served:
        visitor = Visitor(served, "/ops")
        page, _ = visitor.send("tasks")
        assert "refresh" in page
        assert "Paused refresh." in visitor.act("task?name=refresh", "pause")
        page, _ = visitor.send("tasks")
        assert "paused" in page
        for address in re.findall(r'(?:href|src)="([^"#]+)"', page):
            assert not address.startswith("/")
            visitor.send(unescape(address))

        def watch() -> None:
            with suppress(OSError, HTTPException):  # it may be cut off
                visitor.send("live")

        watching = threading.Thread(target=watch)
        watching.start()
        # The open stream of a live page does not keep the server from stopping.
        served.stop()
        watching.join(60)
        assert not watching.is_alive()


def test_it_is_served_by_itself_to_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS.format(url="sqlite:///tasks.db"))
    command = ["-m", "pyncette", "--app", "tasks:app", "web", "--port", "PORT"]
    with program(command, tmp_path, LOGNAME="ada") as served:
        visitor = Visitor(served, "")
        served.says(f"the dashboard is at http://127.0.0.1:{served.port}/")
        assert "Paused refresh." in visitor.act("task?name=refresh", "pause")
        assert ">ada<" in visitor.send("")[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "Without --authorize the dashboard listens on this machine only"),
        (["--authorize", "tasks"], "--authorize must be module:function"),
        (["--authorize", "tasks:nothing"], "'tasks' has no 'nothing'"),
        (["--authorize", "tasks:url"], "'tasks:url' is no function, but str"),
        (["--port", "x"], "'x' is no port: 0 to 65535"),
        (["--port", "65536"], "'65536' is no port: 0 to 65535"),
    ],
)
def test_wrong_options_of_the_command_are_refused(
    options: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS.format(url="sqlite:///tasks.db") + "\nurl = 'x'\n")
    done = subprocess.run(
        [sys.executable, "-m", "pyncette", "--app", "tasks:app", "web", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
