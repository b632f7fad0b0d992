"""``python -m pyncette``: the command line, see ``pyncette.cli``."""

from __future__ import annotations

import sys

from pyncette.cli.arguments import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
