"""Lets tox find every interpreter that pyenv has installed, not only those it has selected."""

import os
import shutil
import sys
from pathlib import Path

from tox.config.sets import ConfigSet
from tox.plugin import impl
from tox.session.state import State


def pyenv_interpreters() -> list[str]:
    """The supported CPythons under pyenv's root; none where there is no pyenv."""
    roots = [Path(root) for root in [os.environ.get("PYENV_ROOT")] if root]
    if command := shutil.which("pyenv"):
        roots.append(Path(command).resolve().parents[1])
    roots.append(Path("~/.pyenv").expanduser())
    for root in roots:
        if found := sorted(root.glob("versions/3.1[1-4].*/bin/python")):
            return [str(interpreter) for interpreter in found]
    return []


@impl
def tox_add_core_config(core_conf: ConfigSet, state: State) -> None:
    # Behind what the command line names, which tox tries first, and the one that runs tox.
    this = str(Path(sys.executable).resolve())
    state.conf.options.discover.extend([this, *pyenv_interpreters()])
