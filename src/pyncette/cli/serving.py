"""``web``: the dashboard, served by itself."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pyncette.app import Pyncette
from pyncette.cli.failures import DONE, FAILED, CommandError, usage
from pyncette.cli.loading import load_function
from pyncette.clock import realtime

if TYPE_CHECKING:
    import uvicorn

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

PORT: Final = 8_765

PATIENCE_S: Final = 5
"""How long the end of the server waits for responses."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--host", default=LOOPBACK[0], help=f"where to listen ({LOOPBACK[0]})")
    parser.add_argument("--port", type=_port, default=PORT, help=f"({PORT}); 0: any that is free")
    parser.add_argument("--read-only", action="store_true", help="nothing can be changed")
    parser.add_argument(
        "--authorize",
        metavar="MODULE:FUNCTION",
        help="who may see and do what; without it, this machine only is let in",
    )
    parser.add_argument(
        "--redact",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="an argument of tasks whose values are not shown; may be repeated",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="an origin that a proxy shows to browsers; may be repeated",
    )


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise ValueError(text)
    return number


def serve(given: argparse.Namespace, app: Pyncette) -> int:
    """Serves the dashboard until SIGINT or SIGTERM.

    Raises:
        CommandError: It may not listen there without a hook, or the extra is not installed.
    """
    if given.authorize is None and given.host not in LOOPBACK:
        raise usage(
            f"Without --authorize the dashboard listens on this machine only: --host may be "
            f"{', '.join(LOOPBACK)}, not {given.host}"
        )
    try:
        import uvicorn

        from pyncette.web import Action, Dashboard
        from pyncette.web.access import local_only
    except ImportError as error:
        raise CommandError("pyncette web needs an extra: pip install 'pyncette[web]'") from error
    authorize: Callable[..., Any] = (
        local_only(Action, _user()) if given.authorize is None else load_function(given.authorize)
    )
    board = Dashboard(app, authorize, given.read_only, given.redact, given.origin)
    config = uvicorn.Config(
        board,
        host=given.host,
        port=given.port,
        log_level="warning",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=PATIENCE_S,
    )
    server = uvicorn.Server(config)
    asyncio.run(_serving(server))
    return DONE if server.started else FAILED


async def _serving(server: uvicorn.Server) -> None:
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await realtime.sleep(0.01)
    if server.started:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"pyncette: the dashboard is at http://{shown}:{port}/", file=sys.stderr, flush=True)
    await serving


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "local"
