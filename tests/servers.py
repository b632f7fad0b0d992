"""Where the servers are that tests need: `tools/servers` starts them and sets the variables."""

from __future__ import annotations

import os

import pytest


def url(name: str) -> str:
    """The URL of a server, such as `postgres`, from its variable (`PYNCETTE_TEST_POSTGRES_URL`).

    Without it a test is skipped; where `CI` is set it fails, so that none is left out unnoticed.
    """
    variable = f"PYNCETTE_TEST_{name.upper().replace('-', '_')}_URL"
    found = os.environ.get(variable)
    if found:
        return found
    reason = f"{variable} is not set: no {name} server (see tools/servers)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
