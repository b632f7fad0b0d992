"""Redis servers of a test's own, to be stopped, killed and configured at will."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from tests.ports import reserved_port

PATIENCE_S = 20.0


class RedisServer:
    """One process of ``redis-server``.

    Args:
        directory: Of its data.
        options: Of its command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = reserved_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """How it is started."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        return [*command, "--dir", str(self.directory), "--save", "", *self.options]

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)
        until = monotonic() + PATIENCE_S
        while True:
            try:
                with closing(socket.create_connection(("127.0.0.1", self.port), 1)):
                    return
            except OSError:
                assert self._process.poll() is None, "redis-server has ended"
                assert monotonic() < until, "redis-server does not start"
                sleep(0.02)

    def signal(self, number: int) -> None:
        """Sends it a signal, such as SIGSTOP."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Sentinel(RedisServer):
    """A sentinel; ``options`` are lines of its configuration."""

    def command(self) -> list[str]:
        configuration = self.directory / "sentinel.conf"
        here = (f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}")
        configuration.write_text("\n".join((*here, *self.options)) + "\n")
        return ["redis-server", str(configuration), "--sentinel"]


@contextmanager
def started(server: RedisServer) -> Iterator[RedisServer]:
    """Starts a server; it is gone afterwards."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def a_server(directory: Path, *options: str) -> AbstractContextManager[RedisServer]:
    """A server that keeps nothing on disk, unless its options say so."""
    return started(RedisServer(directory, *options))
