"""What runs in one directory: written as JSON after every change, readable by test fixtures.

The layout of `state.json` carries a version; docs/contributing/development-servers.md has it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provision import processes
from provision.errors import UnavailableError
from provision.processes import Identity

LAYOUT_VERSION = 1


@dataclass
class ProcessRecord:
    """One process of a server, with all that it takes to start it again.

    Attributes:
        name: unique within the server, such as `node-3`.
        pid: process id of the last start.
        started: its birth, see `processes.Identity`.
        port: the port on 127.0.0.1 where it serves.
        argv: its command line.
        data_dir: its data and working directory.
        log: what it printed.
        probe: the name of the readiness probe, see `probes.PROBES`.
        stop_signal: the signal that asks for an orderly end, such as `SIGTERM`.
    """

    name: str
    pid: int
    started: str
    port: int
    argv: list[str]
    data_dir: str
    log: str
    probe: str
    stop_signal: str

    @property
    def identity(self) -> Identity:
        """The process of the last start."""
        return Identity(self.pid, self.started)

    @property
    def signal(self) -> signal.Signals:
        """`stop_signal` as the enum."""
        return signal.Signals[self.stop_signal]


@dataclass
class ServerRecord:
    """One server of the list, such as `postgres` or the whole of `redis-cluster`.

    Attributes:
        variable: the environment variable that carries its URL.
        url: where tests connect, credentials included.
        version: what the program calls its version.
        data_dir: holds the data of all its processes.
        complete: False while it is set up for the first time; such a server is made anew.
        holders: the `run` commands that need it and will stop it, None when `start` started it.
        processes: in the order of their start.
    """

    variable: str
    url: str
    version: str
    data_dir: str
    complete: bool = False
    holders: list[Identity] | None = None
    processes: list[ProcessRecord] = field(default_factory=list)

    @property
    def condition(self) -> str:
        """`running`, `paused`, `partly down`, `down`, or `unfinished` while it is set up."""
        alive = [processes.is_alive(process.identity) for process in self.processes]
        if not self.complete:
            return "unfinished"
        if not any(alive):
            return "down"
        if not all(alive):
            return "partly down"
        if any(processes.is_paused(process.identity) for process in self.processes):
            return "paused"
        return "running"


@dataclass
class State:
    """The contents of the state file.

    Attributes:
        data_root: the directory made for data outside of the state directory, where servers
            cannot reach the latter; else None.
        servers: by name.
    """

    data_root: str | None = None
    servers: dict[str, ServerRecord] = field(default_factory=dict)


def encode(state: State) -> str:
    """The state as JSON text."""
    content = {"version": LAYOUT_VERSION, **dataclasses.asdict(state)}
    return json.dumps(content, indent=2) + "\n"


def decode(text: str) -> State:
    """The reverse of `encode`.

    Raises:
        UnavailableError: the text was not written by this version of the tool.
    """
    try:
        content = json.loads(text)
        if content["version"] != LAYOUT_VERSION:
            raise ValueError(f"layout {content['version']}, expected {LAYOUT_VERSION}")
        servers = {name: _server(entry) for name, entry in content["servers"].items()}
        return State(content["data_root"], servers)
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"the state file cannot be read ({error}); remove it by hand"
        ) from None


def _server(entry: dict[str, Any]) -> ServerRecord:
    holders = entry.pop("holders")
    members = entry.pop("processes")
    return ServerRecord(
        **entry,
        holders=None if holders is None else [Identity(**holder) for holder in holders],
        processes=[ProcessRecord(**member) for member in members],
    )


class StateFile:
    """The state of one directory, guarded against other threads and other invocations."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: where `state.json` and the lock lie; made when first needed.
        """
        self.directory = directory
        self.path = directory / "state.json"
        self._lock = directory / "lock"
        self._guard = threading.RLock()

    @contextlib.contextmanager
    def exclusive(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other invocations away from this directory; calls `waiting` when one is there."""
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), self._lock.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(lock, fcntl.LOCK_EX)
                # Whoever was here before may have removed the file that we have locked.
                if os.path.samestat(os.fstat(lock.fileno()), self._lock.stat()):
                    yield
                    return

    def remove(self) -> None:
        """Remove the files, and the directory if nothing else is in it; needs `exclusive`."""
        self.path.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def read(self) -> State:
        """The state now; an empty one when there is no file."""
        with self._guard:
            try:
                return decode(self.path.read_text())
            except FileNotFoundError:
                return State()

    @contextlib.contextmanager
    def change(self) -> Iterator[State]:
        """Read, let the caller change, and write in one step; readers never see half a file."""
        with self._guard:
            state = self.read()
            yield state
            draft = self.path.with_suffix(".new")
            draft.write_text(encode(state))
            os.replace(draft, self.path)
