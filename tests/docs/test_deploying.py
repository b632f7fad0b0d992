"""The files in examples/deploy agree with the worker that they deploy.

No container is started: the command of the image and the probes are run here.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
import yaml
from tests.ports import reserved_port

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "deploy"
PATIENCE_S = 60
MARGIN_S = 5
"""What a stop takes besides the time that running tasks are given."""


class Worker:
    """What the program says about itself."""

    def __init__(self) -> None:
        self.text = (FOLDER / "worker.py").read_text()
        program = runpy.run_path(str(FOLDER / "worker.py"), run_name="worker")
        self.shutdown_s: float = program["app"]._shutdown_timeout.total_seconds()
        self.opening_s: float = program["app"]._open_timeout.total_seconds()
        self.ready: int = program["ready"].port
        self.live: int = program["live"].port
        self.variables = set(re.findall(r'environ\.get\("(\w+)"', self.text))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    for name in ("READY_PORT", "LIVE_PORT", "PYNCETTE_URL"):
        monkeypatch.delenv(name, raising=False)
    return Worker()


def container() -> dict[str, Any]:
    [deployment] = yaml.safe_load_all((FOLDER / "kubernetes.yml").read_text())
    assert (
        deployment["spec"]["selector"]["matchLabels"]
        == (deployment["spec"]["template"]["metadata"]["labels"])
    )
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    [only] = pod.pop("containers")
    return {**pod, **only}


def composed() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())[
        "services"
    ]["worker"]
    return service


def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / "pyncette-worker@.service")
    return parser


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_every_grace_period_is_longer_than_the_shutdown_timeout(worker: Worker) -> None:
    graces = (
        container()["terminationGracePeriodSeconds"],
        seconds(composed()["stop_grace_period"]),
        seconds(unit()["Service"]["TimeoutStopSec"]),
    )
    for grace in graces:
        assert grace >= worker.shutdown_s + MARGIN_S


def test_probes_wait_until_a_database_that_starts_later_is_there(worker: Worker) -> None:
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= worker.opening_s + MARGIN_S
    assert seconds(composed()["healthcheck"]["start_period"]) >= worker.opening_s


def test_probes_ask_the_ports_that_the_worker_serves(worker: Worker) -> None:
    spec = container()
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert ports == {"ready": worker.ready, "live": worker.live}
    for probe, port in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
        assert spec[f"{probe}Probe"]["httpGet"]["port"] == port
    exposed = re.search(r"^EXPOSE (.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(worker.ready), str(worker.live)]
    assert f":{worker.ready}/" in composed()["healthcheck"]["test"][-1]


def test_the_files_set_variables_that_the_worker_reads(worker: Worker) -> None:
    assert {one["name"] for one in container()["env"]} <= worker.variables
    assert set(composed()["environment"]) <= worker.variables
    set_by_unit = unit()["Service"]["Environment"].split()
    assert {part.partition("=")[0] for part in set_by_unit} <= worker.variables


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    service = unit()["Service"]
    interpreter, program = service["ExecStart"].split()
    assert (FOLDER / program).exists()
    assert service["KillSignal"] == "SIGTERM"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return  # read above; only systemd itself can say more
    text = (FOLDER / "pyncette-worker@.service").read_text()
    # It asks for the file that is started.
    (tmp_path / "pyncette-worker@1.service").write_text(text.replace(interpreter, sys.executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "pyncette-worker@1.service")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "pyncette-worker" not in done.stdout, done.stdout


def test_the_command_of_the_image_answers_its_probes_and_stops(tmp_path: Path) -> None:
    command = re.search(r"^CMD (\[.*\])$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert command is not None
    python, *arguments = json.loads(command[1])
    assert python == "python"
    shutil.copy(FOLDER / "worker.py", tmp_path)
    ready, live = reserved_port(), reserved_port()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**_environment(), "READY_PORT": str(ready), "LIVE_PORT": str(live)},
    )
    try:
        for port, path in ((live, "/live"), (ready, "/ready")):
            _until_it_answers(process, f"http://127.0.0.1:{port}{path}")
        probe, *rest = composed()["healthcheck"]["test"][1:]
        assert probe == "python"
        asked = [part.replace(":8080/", f":{ready}/") for part in rest]
        assert subprocess.run([sys.executable, *asked], check=False).returncode == 0
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        refused = subprocess.run([sys.executable, *asked], stderr=subprocess.DEVNULL, check=False)
        assert refused.returncode != 0
    finally:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYNCETTE_URL"}


def _until_it_answers(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(url, timeout=PATIENCE_S) as answer:
                assert answer.status == 200
                return
        except HTTPError:
            pass
        except URLError:
            assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
