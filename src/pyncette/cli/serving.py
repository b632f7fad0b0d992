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
from pyncette.errors import describe, printable

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
    if text.isascii() and text.isdecimal() and int(text[:6]) <= 65_535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{printable(text)!r} is no port: 0 to 65535")


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
    await _check_port(server.config.host, server.config.port)
    serving = asyncio.create_task(_serve(server))
    while not server.started and not serving.done():
        await realtime.sleep(0.01)
    if server.started:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"pyncette: the dashboard is at http://{shown}:{port}/", file=sys.stderr, flush=True)
    await serving


async def _check_port(host: str, port: int) -> None:
    """Refuses a port that is in use: uvicorn would log it, and end the process out of its task.

    Raises:
        CommandError: Nothing can listen there.
    """
    loop = asyncio.get_running_loop()
    try:
        probe = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        raise CommandError(
            f"The dashboard cannot listen on port {port} of {printable(host)} ({describe(error)}): "
            "is another one running? Pass another --port; 0 picks one that is free"
        ) from error
    probe.close()
    await probe.wait_closed()


async def _serve(server: uvicorn.Server) -> None:
    try:
        await server.serve()
    except SystemExit as error:  # raised out of a task, it would be a traceback
        raise CommandError("The dashboard did not start: the log says why") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "local"
