"""The store that the documentation writes, proven in the five lines that it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "writing-a-store.md"


def test_the_example_store_passes_the_suite_as_the_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_store.py").write_text(blocks[0])
    (tmp_path / "test_my_store.py").write_text(blocks[1])
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        # pytest alone: a plugin that is installed may warn about its own configuration.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"\b\d{2,} passed", run.stdout), run.stdout
