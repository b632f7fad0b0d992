"""What a recipe works with: directories, ports, programs, and processes that are remembered."""

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision import ports, probes, processes
from provision.account import Account
from provision.errors import UnavailableError
from provision.packages import find_program
from provision.processes import Identity
from provision.state import ProcessRecord, StateFile

READY_TIMEOUT_S = 60.0
LOG_LINES_SHOWN = 5


class PortPool:
    """Hands out each port once."""

    def __init__(self, taken: Iterable[int]) -> None:
        """Args:
        taken: ports that servers of this directory already use.
        """
        self._taken = set(taken)
        self._guard = threading.Lock()

    def take(self, start: int) -> int:
        """The first port from `start` on that nobody uses."""
        with self._guard:
            port = ports.choose(start, self._taken)
            self._taken.add(port)
            return port


def last_words(log: Path) -> str:
    """The end of a server's log, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    except FileNotFoundError:
        lines = []
    return f"{log}:\n" + "\n".join(f"    {line}" for line in lines)


def await_ready(
    process: ProcessRecord, aborted: threading.Event, timeout_s: float = READY_TIMEOUT_S
) -> None:
    """Wait until a process serves.

    Raises:
        UnavailableError: it ended, does not serve in time, or the command was interrupted.
    """
    deadline = time.monotonic() + timeout_s
    while not probes.is_ready(process.probe, process.port):
        if aborted.is_set():
            raise UnavailableError("interrupted")
        if not processes.is_alive(process.identity):
            raise UnavailableError(f"{process.name} ended; {last_words(Path(process.log))}")
        if time.monotonic() >= deadline:
            waited = f"{process.name} does not serve after {timeout_s:.0f} s"
            raise UnavailableError(f"{waited}; {last_words(Path(process.log))}")
        time.sleep(processes.POLL_INTERVAL_S)


def launch(process: ProcessRecord, account: Account) -> Identity:
    """Start a process from its record.

    Raises:
        UnavailableError: another program sits on its port, or it cannot be executed.
    """
    if not ports.is_free(process.port):
        raise UnavailableError(
            f"another program uses port {process.port}; stop and start the server"
        )
    try:
        return processes.spawn(process.argv, Path(process.data_dir), Path(process.log), account)
    except OSError as error:
        raise UnavailableError(f"cannot execute {process.argv[0]}: {error}") from None


@dataclass
class Site:
    """The place where one server is set up.

    Attributes:
        name: the server's name.
        data_dir: an empty directory of its own, owned by `account`.
        log_dir: where its processes' output goes.
        cache: where downloads are kept, shared by all checkouts.
        account: whom the servers run as.
        first_port: where to look for ports.
        upstream_url: the URL of the server that this one stands in front of, if any.
    """

    name: str
    data_dir: Path
    log_dir: Path
    cache: Path
    account: Account
    state: StateFile
    port_pool: PortPool
    first_port: int
    aborted: threading.Event
    upstream_url: str = ""

    def program(self, name: str) -> str:
        """The path of an installed program.

        Raises:
            UnavailableError: it is not there.
        """
        found = find_program(name)
        if found is None:
            raise UnavailableError(f"the program {name} is not installed")
        return found

    def port(self) -> int:
        """A free port, the same one at each set-up unless another program took it."""
        return self.port_pool.take(self.first_port)

    def directory(self, name: str) -> Path:
        """Make a directory for one process's data."""
        path = self.data_dir / name
        path.mkdir(mode=0o700)
        self.account.own(path)
        return path

    def write(self, path: Path, content: str) -> Path:
        """Write a file that only the account can read."""
        path.touch(mode=0o600)
        path.write_text(content)
        self.account.own(path)
        return path

    def run(self, argv: Sequence[str], stdin: str = "") -> str:
        """Run a set-up command as the account to its end and return what it printed.

        Raises:
            UnavailableError: it failed.
        """
        # Should this program be killed, its set-up command must not go on in the data directory
        # that the next one makes anew.
        setpriv = shutil.which("setpriv")
        leash = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        done = subprocess.run(
            [*leash, *argv],
            cwd=self.data_dir,
            env=processes.environment(self.data_dir),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
            **self.account.popen_options(),
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()[-LOG_LINES_SHOWN:]
            raise UnavailableError(f"{Path(argv[0]).name} failed:\n    " + "\n    ".join(said))
        return done.stdout

    def describe(self, url: str, version: str) -> None:
        """Say where the server will be and what it is."""
        with self.state.change() as state:
            record = state.servers[self.name]
            record.url = url
            record.version = version

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        port: int,
        probe: str,
        data_dir: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> ProcessRecord:
        """Start a process and remember it at once, so that no crash of ours leaves it behind."""
        process = ProcessRecord(
            name=name,
            pid=0,
            started="",
            port=port,
            argv=[*argv],
            data_dir=str(data_dir),
            log=str(self.log_dir / f"{name}.log"),
            probe=probe,
            stop_signal=stop_signal.name,
        )
        identity = launch(process, self.account)
        process.pid, process.started = identity.pid, identity.started
        with self.state.change() as state:
            state.servers[self.name].processes.append(process)
        return process

    def await_ready(self, process: ProcessRecord, probe: str | None = None) -> None:
        """Wait until a process serves; `probe` replaces the one that it has from now on."""
        if probe is not None:
            process.probe = probe
            with self.state.change() as state:
                for member in state.servers[self.name].processes:
                    if member.name == process.name:
                        member.probe = probe
        await_ready(process, self.aborted)


def remove_tree(path: Path) -> None:
    """Remove a directory that may not be there."""
    shutil.rmtree(path, ignore_errors=True)
