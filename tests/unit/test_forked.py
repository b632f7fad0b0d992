"""What a forked program sees is what it sees in a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests import forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PROGRAM = """
import os, sys, time
print(__name__, sys.argv, os.getcwd(), os.environ["WORD"], time.strftime("%H", time.gmtime(0)))
print(time.strftime("%H", time.localtime(0)), sys.stdin.read() == "", sys.modules["__main__"].PART)
print("an error", file=sys.stderr)
import helper
sys.exit(3)
"""


def run(program: str, directory: Path, deadline_s: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WORD": "a word", "TZ": "Asia/Tokyo"}
    return forked.run(["-c", program, "one", "two"], directory, environment, deadline_s)


def test_a_program_has_its_own_arguments_directory_environment_and_output(tmp_path: Path) -> None:
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "helper.py").write_text(f"print('helper {number}')")
        done = run(f"PART = {number}\n{PROGRAM}", directory)
        assert done.returncode == 3
        assert done.stdout == (
            f"__main__ ['-c', 'one', 'two'] {directory} a word 00\n"
            f"09 True {number}\n"
            f"helper {number}\n"
        )
        assert done.stderr == "an error\n"


def test_what_a_program_changes_is_gone_in_the_next_one(tmp_path: Path) -> None:
    change = (
        "import pyncette, random; pyncette.changed = 1; print(random.random(), pyncette.__file__)"
    )
    first, second = run(change, tmp_path), run(change, tmp_path)
    assert first.stdout.split()[0] != second.stdout.split()[0], "chance is new in each of them"
    assert run("import pyncette; pyncette.changed", tmp_path).returncode == 1


def test_an_error_is_printed_with_its_traceback(tmp_path: Path) -> None:
    done = run("1 / 0", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run("import os; os.kill(os.getpid(), 9)", tmp_path).returncode == -9


def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time; print('begun', flush=True); time.sleep(600)", tmp_path, 0.3)
    assert run("print(1)", tmp_path).stdout == "1\n"


def test_a_command_runs_and_has_loaded_what_it_needs_before(tmp_path: Path) -> None:
    asked = [
        ["-m", "pyncette", "--version"],
        ["-c", "import sys; print('argparse' in sys.modules)"],
    ]
    version, loaded = (forked.run(each, tmp_path, os.environ, 60).stdout for each in asked)
    assert version.startswith("pyncette ")
    assert loaded == "True\n"
    if "coverage" not in sys.modules:
        fresh = {**os.environ, "PYTHONNOUSERSITE": "1"}
        assert forked.run(asked[1], tmp_path, fresh, 60).stdout == "False\n"


def test_a_program_that_goes_on_is_signalled_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, pathlib, sys, time\n"
        "print('begun', __name__, __file__, sys.argv, file=sys.stderr, flush=True)\n"
        "pathlib.Path('begun').touch()\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
    )
    (tmp_path / "errors").touch()
    errors = tmp_path / "errors"
    program = forked.Process(["program.py", "one"], tmp_path, os.environ, errors)
    other = forked.Process(["program.py", "two"], tmp_path, os.environ)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (program.poll(), other.poll()) == (None, None)
        assert program.pid != other.pid
        other.kill()
        assert other.wait() == -signal.SIGKILL
        assert program.poll() is None
        (tmp_path / "go").touch()
        assert program.wait() == 0
        program.send_signal(signal.SIGTERM)  # nobody is there any more
        assert errors.read_text() == "begun __main__ program.py ['program.py', 'one']\n"
    finally:
        program.kill()
        other.kill()
