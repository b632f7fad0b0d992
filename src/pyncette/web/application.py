"""The dashboard as an ASGI app: routes, forms, live pages, and how it opens and closes."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pyncette.acting import acting_as
from pyncette.app import Pyncette
from pyncette.clock import realtime
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException, StoreError, describe
from pyncette.web import actions, screens
from pyncette.web.access import Access, Action, Authorize, ask
from pyncette.web.actions import BadFormError, MissingError, Wish
from pyncette.web.jobs import Job, Jobs
from pyncette.web.opened import OpenedApp
from pyncette.web.poller import Poller
from pyncette.web.protection import (
    TOKEN_FIELD,
    SecurityHeaders,
    form_token,
    keep_token,
    refusal,
    set_cookie,
)
from pyncette.web.reading import Reader
from pyncette.web.view import ASSET_VERSIONS, ASSETS, SECRET, Redact, View, link, more_than

logger: Final = logging.getLogger(__name__)

FORM_BYTES_MAX: Final = 1_000_000
FORM_FIELDS_MAX: Final = 2_000

REFUSAL: Final = "Not allowed: the authorize hook of this dashboard has refused the request.\n"

ZONE_COOKIE: Final = "pyncette_zone"
SAID_COOKIE: Final = "pyncette_said"
SAID_CHARACTERS_MAX: Final = 1_000

STREAM_S: Final = 30.0
"""How long one stream of ticks lasts; browsers ask for another one. A server that stops waits for
its open responses."""

STOP_LOOK_S: Final = 0.5
"""How often a stream looks whether the server stops."""

_ASSET_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

Screen = Callable[[PyncetteContext, View, Mapping[str, str]], Awaitable[tuple[str, dict[str, Any]]]]


class Refused(Exception):  # noqa: N818 - it ends a request, and is no fault
    """A request is answered by this, and nothing else is done."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class Dashboard:
    """An ASGI app that shows an app and steers it; see ``pyncette.web.dashboard``."""

    def __init__(
        self,
        app: Pyncette,
        authorize: Authorize,
        read_only: bool = False,
        redact: Collection[str] | Redact = (),
        origins: Collection[str] = (),
        refresh: timedelta = timedelta(seconds=2),
    ) -> None:
        """Opens nothing yet."""
        self._app = app
        self._authorize = authorize
        self._read_only = read_only
        self._redact = _redaction(redact)
        self._origins = frozenset(origins)
        self._opened = OpenedApp(app)
        self._poller = Poller(refresh.total_seconds())
        self._reader = Reader(app)
        self._jobs = Jobs()
        self._screens = screens.Screens(app, self._poller, self._reader, self._jobs)
        self._stopping = False
        shown = self._screens
        self._asgi = Starlette(
            routes=[
                Route("/", self._page(shown.overview)),
                Route("/tasks", self._page(shown.tasks)),
                Route("/task", self._page(shown.task)),
                Route("/failures", self._page(shown.failures)),
                Route("/runs", self._page(shown.runs)),
                Route("/next", self._page(shown.soon)),
                Route("/workers", self._page(shown.workers)),
                Route("/unknown", self._page(shown.unknown)),
                Route("/job", self._page(self._job)),
                Route("/act", self._act, methods=["POST"]),
                Route("/live", self._live),
                Route("/assets/{name}", _asset),
                Route("/{rest:path}", self._page(_missing)),
            ],
            middleware=[Middleware(SecurityHeaders)],
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or takes part in the lifespan of the server."""
        if scope["type"] == "http":
            asked = scope.get("raw_path") or scope["path"].encode()
            inside = scope["path"].removeprefix(scope.get("root_path", ""))
            if inside in ("", "/") and asked and not asked.endswith(b"/"):
                # Links are relative to the directory, which this address does not name.
                name = asked.rpartition(b"/")[2].decode("ascii", "replace")
                await _redirect(f"{name}/")(scope, receive, send)
                return
            if inside not in ("", "/") and inside.endswith("/") and not asked.endswith(b"/"):
                # As Litestar tells of a mounted app's path.
                scope = {**scope, "path": scope["path"].rstrip("/")}
        await self._asgi(scope, receive, send)

    def stop(self) -> None:
        """Ends the streams of live pages soon, because the server stops."""
        self._stopping = True

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        self._stopping = False
        try:
            yield
        finally:
            self._stopping = True
            await self._jobs.close()
            await self._opened.close()

    # Pages.

    def _page(self, screen: Screen) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                access = await self._access(request)
            except Refused as refused:
                return refused.response
            view = self._view(request, access, self._app.clock.now())
            try:
                async with self._opened.lent() as context:
                    view = self._view(request, access, context.clock.now())
                    template, values = await screen(context, view, request.query_params)
            except MissingError as error:
                return self._error(request, view, 404, "Not found", str(error))
            except BadFormError as error:
                return self._error(request, view, 400, "This cannot be shown", str(error))
            except (PyncetteException, ValueError) as error:
                status = 503 if isinstance(error, StoreError) else 400
                title = "The store does not answer" if status == 503 else "This cannot be shown"
                return self._error(request, view, status, title, describe(error))
            return self._rendered(request, view, template, values)

        return answer

    async def _access(self, request: Request) -> Access:
        answer = await ask(self._authorize, request)
        if isinstance(answer, Response):
            raise Refused(answer)
        if answer is None:
            raise Refused(
                Response(
                    "Not allowed: authorize has refused the request.\n",
                    403,
                    media_type="text/plain",
                )
            )
        if self._read_only:
            return Access(answer.user, (), answer.tasks, answer.arguments)
        return answer

    def _view(self, request: Request, access: Access, now: datetime) -> View:
        zone = unquote(request.cookies.get(ZONE_COOKIE, ""))
        return View(access, now, zone, self._redact)

    def _rendered(
        self,
        request: Request,
        view: View,
        template: str,
        values: dict[str, Any],
        status: int = 200,
    ) -> Response:
        token = form_token(request)
        said = _said(request)
        text = view.render(
            template,
            **{
                "refresh_s": None,
                "here": _here(request),
                "token": token,
                "token_field": TOKEN_FIELD,
                "said": said,
                "jobs": self._jobs.of(view.access.user),
                "live": status == 200,
                "titles": actions.TITLES,
                **values,
            },
        )
        response = Response(text, status, media_type="text/html")
        keep_token(request, response, token)
        if said is not None and request.headers.get("hx-request") is None:
            set_cookie(request, response, SAID_COOKIE, "", max_age=0)
        return response

    def _error(self, request: Request, view: View, status: int, title: str, text: str) -> Response:
        values = {"page": None, "title": title, "text": text, "status": status}
        return self._rendered(request, view, "error.html", values, status)

    async def _job(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        job = self._jobs.get(given.get("id", ""))
        if job is None or job.user != view.access.user:
            raise MissingError(
                "This process knows no such job. It may have been begun in another process of the "
                "service, or before a restart: what it has done is done."
            )
        return "job.html", {
            "page": None,
            "job": job,
            "words": actions.done_words(job.result) if job.result else "nothing yet",
            "refresh_s": 3 if job.running else None,
        }

    # Forms.

    async def _act(self, request: Request) -> Response:
        try:
            access = await self._access(request)
        except Refused as refused:
            return refused.response
        view = self._view(request, access, self._app.clock.now())
        try:
            fields = await _form(request)
            refused_why = refusal(request, dict(fields).get(TOKEN_FIELD), self._origins)
            if refused_why is not None:
                return self._error(request, view, 403, "Nothing was changed", refused_why)
            wish = actions.wish_of(fields, self._app.tasks)
            _check_allowed(access, wish)
            async with self._opened.lent() as context:
                view = self._view(request, access, context.clock.now())
                if wish.needs_confirmation() and dict(fields).get("confirmed") != "yes":
                    return await self._confirmation(request, view, context, wish, fields)
                return await self._do(request, view, context, wish)
        except MissingError as error:
            return self._error(request, view, 404, "Nothing was changed", str(error))
        except PermissionError as error:
            return self._error(request, view, 403, "Nothing was changed", str(error))
        except BadFormError as error:
            return self._error(request, view, 400, "Nothing was changed", str(error))
        except (PyncetteException, ValueError, TypeError) as error:
            status = 503 if isinstance(error, StoreError) else 409
            return self._error(request, view, status, "This was not done", describe(error))

    async def _confirmation(
        self,
        request: Request,
        view: View,
        context: PyncetteContext,
        wish: Wish,
        fields: list[tuple[str, str]],
    ) -> Response:
        count = await actions.affected(context, wish)
        return self._rendered(
            request,
            view,
            "confirm.html",
            {
                "page": None,
                "wish": wish,
                "title": actions.TITLES[wish.action],
                "target": actions.target(wish),
                "count": count,
                "count_text": more_than(count),
                "consequence": actions.CONSEQUENCES[wish.action],
                "fields": [field for field in fields if field[0] not in (TOKEN_FIELD, "confirmed")],
                "live": False,
            },
        )

    async def _do(
        self, request: Request, view: View, context: PyncetteContext, wish: Wish
    ) -> Response:
        user, what = view.access.user, actions.target(wish)
        logger.info("%s: %s of %s, in the dashboard", user, wish.action, what)
        if wish.one and not (wish.whole and wish.action is Action.TRIGGER):
            with acting_as(user):
                said = await actions.do_one(context, wish)
            self._changed()
            return self._back(request, wish.back, said)
        job = Job(f"{actions.TITLES[wish.action]}: {what}", user, context.clock.now(), wish.back)

        async def work(job: Job) -> Any:
            async with self._opened.lent() as context:
                try:
                    with acting_as(user):
                        if wish.whole:
                            said = await actions.do_one(context, wish)
                            job.said = said
                            return None
                        return await actions.do_many(context, wish, job)
                finally:
                    self._changed()

        if not await self._jobs.begin(job, work):
            raise BadFormError("Too many actions run already: wait until one has ended.")
        if job.running or job.error or job.failures:
            return _redirect(link("job", id=job.id))
        if job.said is not None:
            return self._back(request, wish.back, job.said)
        words = actions.done_words(job.result) if job.result else "nothing"
        return self._back(request, wish.back, f"{job.title}: {words}.")

    def _changed(self) -> None:
        self._screens.forget()

    def _back(self, request: Request, page: str, said: str) -> Response:
        response = _redirect(page)
        text = base64.urlsafe_b64encode(json.dumps(said[:SAID_CHARACTERS_MAX]).encode()).decode()
        set_cookie(request, response, SAID_COOKIE, text, max_age=60)
        return response

    # Live pages.

    async def _live(self, request: Request) -> Response:
        try:
            await self._access(request)
        except Refused as refused:
            return refused.response

        async def stream() -> AsyncIterator[str]:
            yield "retry: 500\n\n"
            async for number in self._ticks():
                yield f"event: tick\ndata: {number}\n\n"

        return StreamingResponse(
            stream(),
            media_type="text/event-stream",
            # Proxies would collect the events.
            headers={"X-Accel-Buffering": "no", "Cache-Control": "no-cache"},
        )

    async def _ticks(self) -> AsyncGenerator[int]:
        """Yields at each tick, until the stream has lasted long enough or the server stops."""
        until = realtime.monotonic() + STREAM_S
        number = 0
        with self._poller.watching() as ticked:
            while not self._stops() and realtime.monotonic() < until:
                try:
                    async with realtime.timeout(STOP_LOOK_S):
                        await ticked.wait()
                except TimeoutError:
                    continue
                ticked.clear()
                number += 1
                yield number

    def _stops(self) -> bool:
        """Whether the server stops: it waits for open responses, and does not tell them.

        uvicorn's handler of signals is a method of the server that knows.
        """
        if self._stopping:
            return True
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        return getattr(server, "should_exit", False) is True


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    kind = _ASSET_TYPES.get(name[name.rfind(".") :])
    if name not in ASSET_VERSIONS or kind is None:
        return Response("Not found\n", 404, media_type="text/plain")
    versioned = request.query_params.get("v") == ASSET_VERSIONS[name]
    caching = "public, max-age=31536000, immutable" if versioned else "no-cache"
    return FileResponse(ASSETS / name, media_type=kind, headers={"Cache-Control": caching})


async def _missing(
    context: PyncetteContext, view: View, given: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    raise MissingError("The dashboard has no such page.")


def _check_allowed(access: Access, wish: Wish) -> None:
    """Refuses what the viewer may not do.

    Raises:
        MissingError: The viewer may not see the task.
        PermissionError: The viewer may not do this.
    """
    if wish.task is None:
        if access.tasks is not None:
            raise PermissionError("You may not do this.")
    elif not access.sees(wish.task.template.name):
        raise MissingError(f"The app declares no task {wish.task.template.name!r}.")
    if not access.may(wish.action):
        raise PermissionError(f"You may not {actions.TITLES[wish.action].lower()} here.")


async def _form(request: Request) -> list[tuple[str, str]]:
    """Reads the fields of a form.

    Raises:
        BadFormError: It is too large, or it is no form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadFormError("This is not a form of the dashboard.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise BadFormError("The form is too large.")
    try:
        return parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError as error:
        raise BadFormError("The form cannot be read.") from error


def _redirect(page: str) -> Response:
    return Response(status_code=303, headers={"Location": page})


def _said(request: Request) -> str | None:
    """What the action before this page has done."""
    kept = request.cookies.get(SAID_COOKIE)
    if not kept:
        return None
    try:
        said = json.loads(base64.urlsafe_b64decode(kept))
    except (ValueError, binascii.Error, RecursionError):
        return None
    if not isinstance(said, str):
        return None
    # Whoever may set cookies could put into it what no page can be written with.
    return said[:SAID_CHARACTERS_MAX].encode(errors="replace").decode()


def _here(request: Request) -> str:
    """The address of this page, relative to its directory."""
    page = request.url.path.rpartition("/")[2]
    query = request.url.query
    return f"{page or './'}?{query}" if query else page or "./"


def _redaction(redact: Collection[str] | Redact) -> Redact:
    if callable(redact):
        asked = redact

        def redacts(task: str, argument: str) -> bool:
            return SECRET.search(argument) is not None or bool(asked(task, argument))

        return redacts
    if isinstance(redact, (str, bytes)):
        raise TypeError(f"redact must be a collection of names of arguments, not {redact!r}")
    names = frozenset(redact)
    return lambda task, argument: argument in names or SECRET.search(argument) is not None
