"""Ports for servers that a test starts."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

# Below the range from which the system chooses ports for outgoing connections, so that none of
# these takes the port before the server does.
_FIRST: Final = 20_000
_LAST: Final = 32_000

_locks: list[int] = []


def reserved_port() -> int:
    """A free port that no other test of this machine gets while this process lives.

    A port that is only found free may be taken before the server listens on it: by another
    process of tests, or by an outgoing connection. The test would then talk to another server.
    """
    directory = Path(tempfile.gettempdir()) / f"pyncette-test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    while True:
        # Not from the seed of the test: other processes have the same one.
        port = random.SystemRandom().randint(_FIRST, _LAST)
        lock = os.open(directory / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with closing(socket.socket()) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _locks.append(lock)
        return port
