"""How tools/servers recognises, stops and kills processes: with real ones."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from provision import processes
from provision.account import Account
from provision.processes import Identity

if not Path("/proc/self/stat").exists():
    pytest.skip("tools/servers runs on Linux only", allow_module_level=True)

Spawn = Callable[[str], tuple[Identity, str]]

IGNORES_TERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " signal.pause()"
)
HEEDS_TERM = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit('orderly'));"
    " print('up', flush=True); signal.pause()"
)
WITH_CHILD = (
    "import subprocess, sys, signal; "
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],"
    " start_new_session=True); print(child.pid, flush=True); signal.pause()"
)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    started: list[Identity] = []

    def start(program: str) -> tuple[Identity, str]:
        log = tmp_path / "log"
        identity = processes.spawn([sys.executable, "-c", program], tmp_path, log, Account())
        started.append(identity)
        alive = True
        while alive and not log.read_text():
            alive = processes.is_alive(identity)
        return identity, log.read_text()

    yield start
    for identity in started:
        processes.kill(identity)


def test_a_name_with_blanks_and_parentheses_does_not_shift_the_fields_of_stat() -> None:
    rest = " ".join(str(number) for number in range(4, 23))
    assert processes.parse_stat(f"42 (a) b (c)) S 7 {rest}") == ("S", 7, 21)


def test_descendants_come_after_their_parents_and_without_strangers() -> None:
    parents = {2: 1, 3: 2, 4: 3, 9: 8, 5: 2}
    assert processes.descendants(2, parents) == [3, 5, 4]


def test_a_process_that_took_over_the_id_of_another_is_not_mistaken_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
        stranger = Identity(child.pid, "another boot:1")
        taken_for_it = processes.is_alive(stranger)
        processes.send([stranger], signal.SIGKILL)
        ended = child.poll()
        child.kill()
    assert not taken_for_it
    assert ended is None


def test_an_ended_process_that_nobody_has_reaped_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = processes.identify(child.pid)
        assert identity is not None
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
        assert processes.wait_for_end([identity], timeout_s=30)


def test_kill_reaches_children_in_sessions_of_their_own(spawn: Spawn) -> None:
    parent, said = spawn(WITH_CHILD)
    child = processes.identify(int(said))
    assert child is not None
    processes.kill(parent)
    assert not processes.is_alive(parent)
    assert not processes.is_alive(child)


def test_pause_freezes_children_too_and_resume_wakes_all(spawn: Spawn) -> None:
    parent, said = spawn(WITH_CHILD)
    child = processes.identify(int(said))
    assert child is not None
    processes.pause(parent)
    assert processes.is_paused(parent)
    assert processes.is_paused(child)
    processes.resume(parent)
    assert not processes.is_paused(parent)
    assert not processes.is_paused(child)


def test_stop_kills_what_does_not_heed_the_polite_signal(spawn: Spawn) -> None:
    deaf, _ = spawn(IGNORES_TERM)
    processes.stop(deaf, signal.SIGTERM, timeout_s=0.1)
    assert not processes.is_alive(deaf)


def test_stop_lets_a_paused_process_end_in_order(spawn: Spawn, tmp_path: Path) -> None:
    server, _ = spawn(HEEDS_TERM)
    processes.pause(server)
    processes.stop(server, signal.SIGTERM, timeout_s=5)
    assert not processes.is_alive(server)
    assert "orderly" in (tmp_path / "log").read_text()


def test_stop_leaves_no_child_of_a_server_that_ended_in_order(spawn: Spawn) -> None:
    parent, said = spawn(WITH_CHILD)
    child = processes.identify(int(said))
    assert child is not None
    processes.stop(parent, signal.SIGTERM, timeout_s=30)
    assert not processes.is_alive(child)


def test_a_server_sees_nothing_of_the_callers_environment(
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGDATA", "/elsewhere")
    _, said = spawn("import os; print(sorted(os.environ), flush=True)")
    assert "PGDATA" not in said
    assert "LC_ALL" in said
