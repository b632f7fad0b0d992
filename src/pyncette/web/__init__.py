"""A web dashboard: what runs, what is due, what fails and why; and pause, resume, run now, retry.

It is an ASGI app, to be mounted in a service or served by itself (``pyncette web``). It needs the
extra ``pyncette[web]``.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from pyncette.app import Pyncette
from pyncette.task_options import duration

try:
    from pyncette.web.access import Access, Action, Answer, Authorize, local_only
    from pyncette.web.application import Dashboard
    from pyncette.web.view import Redact
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("starlette", "jinja2", "markupsafe"):
        raise
    raise ImportError(
        "The dashboard needs Starlette and Jinja2: pip install 'pyncette[web]'"
    ) from error

__all__ = ["Access", "Action", "Answer", "Authorize", "Dashboard", "dashboard"]


def dashboard(
    app: Pyncette,
    authorize: Authorize | None = None,
    *,
    read_only: bool = False,
    redact: Collection[str] | Redact = (),
    origins: Collection[str] = (),
    refresh: timedelta | float = timedelta(seconds=2),
) -> Dashboard:
    """Returns the dashboard of an app, as an ASGI app to mount in a service.

    It uses the context that the service has open in its event loop (``app.running()`` or
    ``app.create()``), and opens one of its own otherwise, with the first request.

    Args:
        app: The app.
        authorize: Gets each request, and returns what its viewer may see and do: an ``Access``; or
            None, which refuses; or a response that is sent instead, such as a redirect to a login.
            It may be asynchronous. Without it, only this machine is let in (straight, under the
            name ``localhost`` or an address of it), and ``read_only`` must be set.
        read_only: Whether nothing can be changed, whatever ``authorize`` answers.
        redact: Names of arguments whose values are not shown, also inside of other arguments; or a
            function that takes the names of a task and an argument. Those whose names say that
            they are secret (``password``, ``token``, ``api_key`` and the like) are never shown.
        origins: Origins (``https://ops.example.org``) from which forms are accepted besides the
            server's own: where a proxy changes the name of the host.
        refresh: How often live pages read again; at the same time, how old what they show may be.

    Raises:
        ValueError: Neither ``authorize`` nor ``read_only`` is given.
        TypeError: A value is of a wrong type.
    """
    if not isinstance(app, Pyncette):
        raise TypeError(f"dashboard takes a pyncette.Pyncette, not {app!r}")
    if authorize is None:
        if not read_only:
            raise ValueError(
                "A dashboard that can change things must know who may: pass authorize=…, a "
                "function that gets the request and returns a pyncette.web.Access; or pass "
                "read_only=True, which lets in this machine only"
            )
        authorize = local_only((), "local")
    elif not callable(authorize):
        raise TypeError(f"authorize must be a function that takes a request, not {authorize!r}")
    if isinstance(origins, (str, bytes)):
        raise TypeError(f"origins must be a collection of origins, not {origins!r}")
    return Dashboard(app, authorize, read_only, redact, origins, duration("refresh", refresh))
