"""Prints a line for each test report in a directory: python tools/summarise.py DIRECTORY SINCE."""

import sys
from pathlib import Path
from xml.etree import ElementTree


def main() -> None:
    """Summarises the reports that were written since an instant, in seconds since the epoch."""
    directory, since = Path(sys.argv[1]), float(sys.argv[2])
    for report in sorted(directory.glob("*.xml")):
        if report.stat().st_mtime < since:
            continue
        suite = ElementTree.parse(report).getroot().find("testsuite")
        if suite is None:
            continue
        count = {
            name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        }
        passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
        told = [f"{passed} passed"] + [
            f"{number} {word}"
            for word, number in (
                ("failed", count["failures"]),
                ("errors", count["errors"]),
                ("skipped", count["skipped"]),
            )
            if number
        ]
        print(f"  {report.stem:16} {', '.join(told)} in {float(suite.get('time', 0)):.0f} s")


if __name__ == "__main__":
    main()
