"""Protects the dashboard in a browser: forged forms, foreign sites, and what a page may load."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_COOKIE: Final = "pyncette_form"
TOKEN_FIELD: Final = "form_token"
_TOKEN_BYTES: Final = 32

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer, with which browsers send no origin with a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Adds the headers to every response. What was sent as such stays, for example by a login."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def form_token(request: HTTPConnection) -> str:
    """Returns the token that the forms of a page carry: that of the cookie, or a new one."""
    token = request.cookies.get(TOKEN_COOKIE, "")
    if len(token) == 2 * _TOKEN_BYTES and token.isascii() and token.isalnum():
        return token
    return secrets.token_hex(_TOKEN_BYTES)


def keep_token(request: HTTPConnection, response: Response, token: str) -> None:
    """Sets the cookie, unless the browser has it.

    It has no path, so that browsers return it below the directory of the page, wherever the
    dashboard is mounted.
    """
    if request.cookies.get(TOKEN_COOKIE) != token:
        set_cookie(request, response, TOKEN_COOKIE, token)


def set_cookie(
    request: HTTPConnection, response: Response, name: str, value: str, max_age: int | None = None
) -> None:
    """Sets a cookie for the directory of the page, which no script and no other site can use."""
    response.set_cookie(
        name,
        value,
        max_age=max_age,
        path=None,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def refusal(request: Request, token: object, origins: Collection[str]) -> str | None:
    """Returns why a form is not accepted; None: it is.

    Args:
        request: The request that brings it.
        token: The token in the form.
        origins: Origins that are accepted besides the one of the request.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if origin in origins:
        pass
    elif site is not None:
        if site != "same-origin":
            return "This form comes from another site."
    elif origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return (
            f"This form comes from {origin}, and this server is called "
            f"{request.headers.get('host')}. If a proxy changes the name, give "
            "dashboard(…, origins=…) the origin that browsers see."
        )
    kept = request.cookies.get(TOKEN_COOKIE, "")
    if not isinstance(token, str) or not kept:
        return "The form has expired, or the browser keeps no cookies: load the page again."
    if not secrets.compare_digest(token.encode(), kept.encode()):
        return "The form has expired: load the page again."
    return None
