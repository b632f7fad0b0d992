"""The command line of tools/servers, as far as it goes without starting a server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from provision.recipes import RECIPES

PROGRAM = Path(__file__).resolve().parents[2] / "tools/servers"
GIVEN = {recipe.variable: f"given://{name}" for name, recipe in RECIPES.items()}


def servers(
    *words: str, directory: Path, given: dict[str, str] = GIVEN
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in GIVEN}
    before, border, after = words, [], []
    if "--" in words:
        place = words.index("--")
        before, border, after = words[:place], ["--"], list(words[place + 1 :])
    argv = [sys.executable, str(PROGRAM), *before, "--dir", str(directory), *border, *after]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**kept, **given}, timeout=60
    )


def test_run_gives_the_urls_to_the_command_and_returns_its_exit_code(tmp_path: Path) -> None:
    done = servers(
        "run", "--", "sh", "-c", "echo $PYNCETTE_TEST_REDIS_URL; exit 7", directory=tmp_path
    )
    assert done.stdout == "given://redis\n"
    assert done.returncode == 7


def test_run_reports_a_command_that_a_signal_ended_as_shells_do(tmp_path: Path) -> None:
    done = servers("run", "--", "sh", "-c", "kill -TERM $$", directory=tmp_path)
    assert done.returncode == 128 + signal.SIGTERM


def test_run_of_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    done = servers("run", "--", "no-such-command", directory=tmp_path)
    assert done.returncode == 1
    assert "cannot run no-such-command" in done.stderr


def test_start_leaves_servers_with_a_url_alone_and_says_so(tmp_path: Path) -> None:
    done = servers("start", "mysql", directory=tmp_path)
    assert done.returncode == 0
    assert "mysql: not started, PYNCETTE_TEST_MYSQL_URL is set" in done.stderr


def test_env_prints_lines_that_a_shell_can_evaluate(tmp_path: Path) -> None:
    done = servers("env", directory=tmp_path, given={"PYNCETTE_TEST_REDIS_URL": "redis://a b"})
    assert "export PYNCETTE_TEST_REDIS_URL='redis://a b'\n" in done.stdout


def test_env_fails_where_nothing_runs(tmp_path: Path) -> None:
    done = servers("env", directory=tmp_path, given={})
    assert done.returncode == 1
    assert done.stdout == ""


def test_status_fails_for_a_named_server_that_does_not_run(tmp_path: Path) -> None:
    assert servers("status", "redis", directory=tmp_path, given={}).returncode == 1
    assert servers("status", directory=tmp_path, given={}).returncode == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("start", "oracle"), "no server is called 'oracle'"),
        (("kill", "oracle/main"), "no server is called 'oracle/main'"),
        (("run", "redis"), "run needs a command after --"),
        (("start", "--", "true"), "only run takes one"),
    ],
)
def test_a_wrong_command_line_is_refused(
    words: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    done = servers(*words, directory=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_disturbing_a_server_that_was_not_started_is_an_error(tmp_path: Path) -> None:
    done = servers("kill", "redis", directory=tmp_path)
    assert done.returncode == 1
    assert "redis was not started in" in done.stderr
