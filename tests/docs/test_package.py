"""What is published: the wheel that users install, the sdist, and the page on a package index."""

from __future__ import annotations

import email
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from html import unescape
from pathlib import Path

import pytest
from tests.docs.named_tests import ROOT
from tests.docs.test_dashboard_mounted import TASKS, Visitor
from tests.docs.test_frameworks import program

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "src" / "pyncette"

pytestmark = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None for name in ("hatchling", "hatch_fancy_pypi_readme")
    ),
    reason="hatchling is not installed; the dependency group docs has it",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("*.whl")
    assert path.stat().st_size < 850_000
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_has_the_package_its_types_and_its_licence_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    parts = {name.partition("/")[0] for name in wheel.namelist()}
    # The plugin is a module of its own, so that pytest does not import the package at each start.
    assert parts == {
        *("pyncette", "pyncette_pytest.py"),
        f"pyncette-{wheel_version(wheel)}.dist-info",
    }
    names = set(wheel.namelist())
    assert "pyncette/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = {f"pyncette/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == {*sources, "pyncette_pytest.py"}


def test_the_wheel_has_what_the_dashboard_shows_with_the_licence_of_htmx(
    wheel: zipfile.ZipFile,
) -> None:
    names = set(wheel.namelist())
    for part in ("assets", "templates"):
        there = {f"pyncette/web/{part}/{path.name}" for path in (PACKAGE / "web" / part).iterdir()}
        assert there == {name for name in names if name.startswith(f"pyncette/web/{part}/")}
    assert {"pyncette/web/assets/htmx.min.js", "pyncette/web/assets/htmx.LICENSE"} <= names


def test_the_dashboard_of_the_wheel_shows_every_screen_and_asset(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    wheel.extractall(installed)
    located = "import pyncette; print(pyncette.__file__)\n"
    (work / "tasks.py").write_text(located + TASKS.format(url="sqlite:///tasks.db"))
    command = ["-P", "-m", "pyncette", "--app", "tasks:app", "web", "--port", "PORT"]
    with program(command, work, PYTHONPATH=str(installed)) as served:
        visitor = Visitor(served, "")
        served.says(str(installed / "pyncette" / "__init__.py"))
        first, _ = visitor.send("")
        screens = re.findall(r'<li><a href="([^"]+)"', first)
        assert len(screens) == 7
        for screen in (*screens, "task?name=refresh"):
            page, _ = visitor.send(screen)
            assert "</html>" in page
        assets = re.findall(r'(?:href|src)="(assets/[^"]+)"', first)
        assert len(assets) == 5
        for asset in assets:
            assert visitor.send(unescape(asset))[0]


def wheel_version(wheel: zipfile.ZipFile) -> str:
    [name] = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    return name.removeprefix("pyncette-").removesuffix(".dist-info")


def test_of_the_tools_for_tests_the_wheel_has_clocks_and_the_suite_for_stores(
    wheel: zipfile.ZipFile,
) -> None:
    tools = {name for name in wheel.namelist() if name.startswith("pyncette/testing/")}
    assert {"pyncette/testing/clocks.py", "pyncette/testing/conformance.py"} <= tools
    for word in ("fault", "explorer", "simulation", "mutate"):
        assert not [name for name in wheel.namelist() if word in name]


def test_the_sdist_has_what_a_build_needs_and_not_the_tests(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]
    assert {name for name in names if not name.startswith("src/pyncette/")} == {
        *(".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"),
        "src/pyncette_pytest.py",
    }


def test_a_bare_installation_needs_one_package_and_each_extra_its_driver(metadata: Message) -> None:
    needed = metadata.get_all("Requires-Dist") or []
    assert [one for one in needed if "extra ==" not in one] == ["tzdata>=2024.1"]
    extras = dict(PROJECT["optional-dependencies"])
    [everything] = extras.pop("all")
    assert everything == f"pyncette[{','.join(sorted(extras))}]"
    for name, packages in extras.items():
        assert 1 <= len(packages) <= 3, name


def test_no_link_on_the_page_of_a_package_index_leads_nowhere(metadata: Message) -> None:
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# Pyncette")
    for target in re.findall(r"\]\(([^)]*)\)", page):
        assert target.startswith("https://"), target
