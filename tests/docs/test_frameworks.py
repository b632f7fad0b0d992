"""The programs in examples/ for web frameworks, with the servers that people run them with.

Real processes throughout: what is tested is how a server starts and stops a program.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from tests.ports import reserved_port

from pyncette import Context, Pyncette

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FASTAPI_TESTS = str(EXAMPLES / "fastapi" / "test_service.py")
PATIENCE_S = 60

UVICORN = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", "PORT"]
GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:PORT", "--no-control-socket"]
ASGI_SERVERS = {
    "uvicorn": UVICORN,
    "gunicorn-uvicorn": [*GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker"],
    "gunicorn-asgi": [*GUNICORN, "--worker-class", "asgi"],
}
UNDISTURBED = {"PYNCETTE_URL": "sqlite://", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""The environment of the tests of an example: tasks in memory, and pytest alone."""

ENDED_BY_SIGTERM = {0, -signal.SIGTERM}
"""Uvicorn ends by the signal that stopped it, after it has stopped gracefully."""


class Program:
    """A process, what it has printed, and the port it may listen on."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.port = reserved_port()
        self._log = directory / f"{self.port}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(part.replace("PORT", str(self.port)) for part in command)],
                cwd=directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def says(self, words: str) -> None:
        """Waits until the program has printed these words."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.printed:
            assert time.monotonic() < deadline, self.printed
            assert self.process.poll() is None, self.printed
            time.sleep(0.02)

    def answers(self, method: str, path: str, content: object = None) -> str:
        """The answer to a request, once the server listens."""
        deadline = time.monotonic() + PATIENCE_S
        form = isinstance(content, bytes)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if content is None else data,
            headers={} if form else {"Content-Type": "application/json"},
        )
        while True:
            try:
                with urlopen(request, timeout=PATIENCE_S) as answer:
                    body: str = answer.read().decode()
                    return body
            except HTTPError as error:
                raise AssertionError(f"{error}: {error.read()!r}\n{self.printed}") from error
            except URLError:
                assert self.process.poll() is None, self.printed
                assert time.monotonic() < deadline, self.printed
                time.sleep(0.02)

    def stop(self) -> None:
        """Stops it as a process manager does; it must end by itself, and without a traceback."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) in ENDED_BY_SIGTERM, self.printed
        assert "Traceback" not in self.printed, self.printed
        assert "never awaited" not in self.printed, self.printed


@contextmanager
def program(command: list[str], directory: Path, **environment: str) -> Iterator[Program]:
    started = Program(command, directory, environment)
    try:
        yield started
        if started.process.poll() is None:
            started.stop()
    finally:
        started.process.kill()
        started.process.wait()


def from_folder(name: str) -> dict[str, str]:
    """The environment in which the modules of an example can be imported."""
    paths = [str(EXAMPLES / name), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def test_a_fastapi_service_runs_its_tasks_in_the_background(tmp_path: Path) -> None:
    with program(
        ["-W", "error", *UVICORN, "service:service"], tmp_path, **from_folder("fastapi")
    ) as service:
        service.answers("PUT", "/reminders/cake", {"what": "It is baked", "seconds": 3600})
        assert "T" in service.answers("GET", "/reminders/cake")
        service.answers("DELETE", "/reminders/cake")
        service.answers("PUT", "/reminders/tea", {"what": "It is ready", "seconds": 0})
        service.says("Reminder tea: It is ready")
    assert "claims nothing more" in service.printed


def test_a_fastapi_service_leaves_its_tasks_to_separate_workers(tmp_path: Path) -> None:
    folder = from_folder("fastapi")
    worker_of_the_service = ["-W", "error", str(EXAMPLES / "fastapi/tasks.py")]
    with (
        program([*UVICORN, "service:service"], tmp_path, RUN_TASKS="no", **folder) as service,
        program(worker_of_the_service, tmp_path) as worker,
    ):
        service.answers("PUT", "/reminders/tea", {"what": "It is ready", "seconds": 0})
        worker.says("Reminder tea: It is ready")
    assert "Reminder tea" not in service.printed


def test_a_litestar_service_runs_its_tasks_in_the_background(tmp_path: Path) -> None:
    with program([*UVICORN, "service:service"], tmp_path, **from_folder("litestar")) as service:
        service.answers("PUT", "/digests/ada", {"schedule": "0 7 * * *"})
        service.answers("POST", "/digests/ada/now")
        service.says("Digest for ada")
        with pytest.raises(AssertionError, match="400"):
            service.answers("PUT", "/digests/bob", {"schedule": "whenever"})


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_a_flask_service_schedules_and_a_worker_runs(tmp_path: Path, preload: list[str]) -> None:
    server = [*GUNICORN, "--workers", "2", *preload, "service:service"]
    worker = ["-W", "error", str(EXAMPLES / "flask/service.py")]
    with (
        program(server, tmp_path, **from_folder("flask")) as service,
        program(worker, tmp_path) as running,
    ):
        service.answers("PUT", "/invoices/1", {"customer": "Ada", "seconds": 0})
        running.says("Invoice 1 for Ada")
        service.answers("PUT", "/invoices/2", {"customer": "Bob", "seconds": 3600})
        assert json.loads(service.answers("GET", "/invoices/2"))["error"] is None


def test_a_django_website_schedules_on_commit_and_its_command_runs(tmp_path: Path) -> None:
    folder = from_folder("django")
    manage = str(EXAMPLES / "django/manage.py")
    subprocess.run(
        [sys.executable, manage, "migrate", "--verbosity=0"],
        cwd=tmp_path,
        check=True,
        timeout=2 * PATIENCE_S,
    )
    with (
        program([*GUNICORN, "website.wsgi"], tmp_path, **folder) as website,
        program([manage, "run_tasks"], tmp_path) as worker,
    ):
        website.answers("POST", "/subscribers/", urlencode({"email": "ada@example.com"}).encode())
        worker.says("A letter to ada@example.com")


@pytest.mark.parametrize(
    "command",
    [
        [str(EXAMPLES / "django/manage.py"), "test", "newsletter"],
        # Not by the configuration of this repository.
        ["-m", "pytest", "-c", os.devnull, "-W", "error", "-p", "no:cacheprovider", FASTAPI_TESTS],
    ],
    ids=["django", "fastapi"],
)
def test_the_tests_of_an_example_pass(tmp_path: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, **UNDISTURBED, **from_folder("fastapi")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout


USED_BEFORE_THE_FORK = """
import os

from pyncette import Context, Pyncette

app = Pyncette(url="sqlite:///tasks.db")


@app.dynamic_task()
async def job(context: Context) -> None: ...


app.sync().schedule_task(job, f"from {os.getpid()}", schedule="@yearly")


def service(environ, start_response):
    app.sync().schedule_task(job, f"from {os.getpid()}", schedule="@yearly")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(app.sync().count_tasks(job).count).encode()]
"""


def test_calls_that_gunicorn_preloads_are_made_in_its_workers_too(tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text(USED_BEFORE_THE_FORK)
    server = [*GUNICORN, "--preload", "--threads", "4", "preloaded:service"]
    with program(server, tmp_path) as service:
        assert service.answers("GET", "/") == "2"


SLOW_SERVICE = """
import asyncio
from datetime import timedelta

from pyncette import Context, Pyncette

app = Pyncette(url="sqlite:///tasks.db", shutdown_timeout=1)


@app.dynamic_task(lease_duration=timedelta(hours=1))
async def slow(context: Context) -> None:
    await asyncio.sleep(context.args["seconds"])
    print("ended", context.task.name, flush=True)


# What Starlette, FastAPI and Litestar do with a lifespan.
async def service(scope, receive, send):
    await receive()
    async with app.running() as pyncette:
        for name, seconds in (("short", 0.6), ("long", 3600)):
            await pyncette.schedule_task(slow, name, execute_in=timedelta(0), seconds=seconds)
        while (state := await pyncette.get_task(slow, "long")).state != "running":
            await asyncio.sleep(0.01)
        print("both run", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""


@pytest.mark.parametrize("server", ASGI_SERVERS)
def test_a_server_that_stops_waits_for_its_tasks_and_then_gives_them_back(
    tmp_path: Path, server: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_SERVICE)
    with program([*ASGI_SERVERS[server], "slow:service"], tmp_path) as service:
        service.says("both run")
        service.stop()
    assert "ended short" in service.printed
    assert "cancelled and given back: slow:long" in service.printed

    # Elsewhere it runs at once, although its lease of an hour is far from over.
    app = Pyncette(url=f"sqlite:///{tmp_path / 'tasks.db'}")

    async def main() -> None:
        ran = asyncio.Event()

        @app.dynamic_task(lease_duration=timedelta(hours=1))
        async def slow(context: Context) -> None:
            ran.set()

        async with app.running(), asyncio.timeout(PATIENCE_S):
            await ran.wait()

    asyncio.run(main())


def test_no_folder_of_examples_goes_untested() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for path in EXAMPLES.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f'"{path.name}"' in tests, path.name
