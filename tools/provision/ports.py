"""Choose ports that are free, private to one checkout, and the same next time.

They lie below the range from which the kernel takes ports for outgoing connections (32768 and up
on Linux), so that no connection can sit on a server's port while the server restarts.
"""

import hashlib
import socket
from collections.abc import Callable, Collection
from pathlib import Path

FIRST = 20_000
LAST = 31_999
BLOCK = 40


def is_free(port: int) -> bool:
    """Whether a server could listen on that port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def first_port(directory: Path) -> int:
    """Where a checkout's ports begin: spread by the path, so that two seldom meet."""
    digest = hashlib.sha256(str(directory).encode()).digest()
    blocks = (LAST + 1 - FIRST) // BLOCK
    return FIRST + int.from_bytes(digest[:8], "big") % blocks * BLOCK


def choose(start: int, taken: Collection[int], free: Callable[[int], bool] = is_free) -> int:
    """The first port at or after `start`, around the end of the range, that is free.

    Args:
        start: where to look first.
        taken: ports that are promised already, though nobody listens yet.
        free: tells whether nobody listens.

    Raises:
        RuntimeError: every port of the range is taken.
    """
    size = LAST + 1 - FIRST
    for offset in range(size):
        port = FIRST + (start - FIRST + offset) % size
        if port not in taken and free(port):
            return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")
