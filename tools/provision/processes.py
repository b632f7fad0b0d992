"""Spawn, recognise, signal and end server processes (Linux: it reads /proc).

A process is known by its id *and* the moment that it started, so that an id which the kernel has
given to somebody else since is never signalled.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.account import Account

POLL_INTERVAL_S = 0.02
# For children to follow a parent that has ended in order; servers wait for theirs.
ORPHAN_TIMEOUT_S = 1.0
# For a process that waits for a disk, and so does not see the signal yet.
FREEZE_TIMEOUT_S = 5.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for another: its id and its birth.

    Attributes:
        pid: the process id.
        started: boot id and start time in clock ticks, opaque.
    """

    pid: int
    started: str


def parse_stat(text: str) -> tuple[str, int, int]:
    """Read `/proc/PID/stat`.

    Returns:
        State letter, parent's id, and start time in clock ticks after boot. The second field is
        the program's name in parentheses and may itself hold blanks and parentheses, so what
        counts is what follows the last one (proc(5)).
    """
    fields = text[text.rindex(")") + 1 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def _stat(pid: int) -> tuple[str, int, int] | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (OSError, ValueError):
        return None


def _birth(ticks: int) -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}:{ticks}"


def identify(pid: int) -> Identity | None:
    """The identity of a process that runs now, None for one that does not (or is a zombie)."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    return Identity(pid, _birth(stat[2]))


def is_alive(identity: Identity) -> bool:
    """Whether that very process still runs; a paused one does, a zombie does not."""
    return identify(identity.pid) == identity


def is_paused(identity: Identity) -> bool:
    """Whether the process was stopped by SIGSTOP."""
    stat = _stat(identity.pid)
    return stat is not None and stat[0] == "T" and is_alive(identity)


def descendants(root: int, parents: Mapping[int, int]) -> list[int]:
    """All processes below `root`, given each process's parent; parents come before children."""
    found: list[int] = []
    level = {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level} - {root, *found}
        found.extend(sorted(level))
    return found


def tree(identity: Identity) -> list[Identity]:
    """The process and everything below it; PostgreSQL's backends are in groups of their own,
    so a process group would miss them."""
    if not is_alive(identity):
        return []
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            parents[int(entry.name)] = stat[1]
    below = (identify(pid) for pid in descendants(identity.pid, parents))
    return [identity, *(found for found in below if found is not None)]


def send(identities: Iterable[Identity], number: signal.Signals) -> None:
    """Signal those of the processes that still run."""
    for identity in identities:
        if is_alive(identity):
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, number)


def _freeze(identities: Sequence[Identity]) -> None:
    """Stop processes and wait until they have stopped, for the signal takes effect later."""
    send(identities, signal.SIGSTOP)
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    while any(is_alive(one) and not is_paused(one) for one in identities):
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL_INTERVAL_S)


def pause(identity: Identity) -> None:
    """Freeze a server: first the parent, so that it cannot fork behind our back."""
    _freeze([identity])
    _freeze(tree(identity))


def resume(identity: Identity) -> None:
    """Undo `pause`."""
    send(reversed(tree(identity)), signal.SIGCONT)


def kill(identity: Identity) -> None:
    """End a server and all its processes as a crash of the machine would, without a farewell."""
    _freeze([identity])
    family = tree(identity)
    send(family, signal.SIGKILL)
    wait_for_end(family, timeout_s=10)


def stop(identity: Identity, number: signal.Signals, timeout_s: float) -> None:
    """Ask a server to end and see to it that it and its children do.

    Args:
        identity: the server's main process.
        number: the signal that asks for an orderly end.
        timeout_s: patience before SIGKILL.
    """
    resume(identity)
    family = tree(identity)
    send([identity], number)
    orderly = wait_for_end([identity], timeout_s)
    if not orderly or not wait_for_end(family, ORPHAN_TIMEOUT_S):
        send({*family, *tree(identity)}, signal.SIGKILL)
        wait_for_end(family, timeout_s=10)


def wait_for_end(identities: Sequence[Identity], timeout_s: float) -> bool:
    """Wait until none of the processes runs; False when one still does after the timeout."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(identity) for identity in identities):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    for identity in identities:
        # Reaps those that this very process has spawned; for others it is not ours to do.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(identity.pid, os.WNOHANG)
    return True


def environment(home: Path) -> dict[str, str]:
    """What a server sees: nothing of the caller's, whose PG* or MYSQL_* would change it."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": str(home), "DDB_LOCAL_TELEMETRY": "0"}


def spawn(argv: Sequence[str], home: Path, log: Path, account: Account) -> Identity:
    """Start a server in a session of its own, so that Ctrl-C at the terminal does not reach it.

    Raises:
        OSError: the program cannot be executed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            cwd=home,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=0o077,
            **account.popen_options(),
        )
    # The server outlives this program: without this, Popen would warn that it still runs.
    process.returncode = 0
    stat = _stat(process.pid)
    return Identity(process.pid, _birth(stat[2]) if stat else "gone")
