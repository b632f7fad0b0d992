"""``python -m pyncette``: commands for those who operate a store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pyncette.migrate import command as migrate


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pyncette")
    commands = parser.add_subparsers(dest="command", required=True)
    migrate.add_to(commands)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
