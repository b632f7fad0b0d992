"""Small charts as SVG. What they show is said in words as well, for people who do not see them.

Colours are classes of the style sheet. Nothing that comes from users is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup, escape

from pyncette.errors import plural

WIDTH: Final = 240
HEIGHT: Final = 40
TIMELINE_WIDTH: Final = 600


def bars(values: Sequence[tuple[float, float]], label: str) -> Markup:
    """Bars of two parts, one upon the other: of what is good, and of what is not.

    Args:
        values: The two parts of each bar.
        label: What it shows, in words.
    """
    most = max((good + bad for good, bad in values), default=0) or 1
    step = WIDTH / max(len(values), 1)
    parts = []
    for number, (good, bad) in enumerate(values):
        x, width = number * step, max(step - 1, 1)
        high_good, high_bad = HEIGHT * good / most, HEIGHT * bad / most
        if good:
            parts.append(_bar("good", x, HEIGHT - high_good, width, high_good))
        if bad:
            parts.append(_bar("bad", x, HEIGHT - high_good - high_bad, width, max(high_bad, 1.5)))
    return _svg("".join(parts), label)


def line(values: Sequence[float], label: str, kind: str = "line") -> Markup:
    """A line with the area below it.

    Args:
        values: What it shows, oldest first.
        label: The same in words.
        kind: A class of the style sheet.
    """
    most = max(values, default=0) or 1
    if len(values) == 1:
        values = [*values, *values]
    step = WIDTH / max(len(values) - 1, 1)
    points = [
        f"{number * step:.1f},{HEIGHT - 1 - (HEIGHT - 3) * value / most:.1f}"
        for number, value in enumerate(values)
    ]
    if not points:
        return _svg("", label)
    area = f'<polygon class="area" points="0,{HEIGHT} {" ".join(points)} {WIDTH},{HEIGHT}"/>'
    return _svg(f'{area}<polyline class="{kind}" points="{" ".join(points)}"/>', label)


def timeline(
    past: Sequence[tuple[datetime, bool]], upcoming: Sequence[datetime], now: datetime
) -> Markup:
    """Past runs and the next occurrences as dots on a line, and a mark for now.

    Args:
        past: When they started, and whether they failed.
        upcoming: The occurrences.
        now: What lies between.
    """
    start = min((time for time, _ in past), default=now)
    end = max((*upcoming, now))
    if upcoming and past:
        # As much of the past as of what is to come, so that neither is squeezed.
        start = max(start, now - (end - now))
    whole = (end - start).total_seconds() or 1

    def place(time: datetime) -> str:
        share = min(max((time - start).total_seconds() / whole, 0), 1)
        return f"{6 + (TIMELINE_WIDTH - 12) * share:.1f}"

    shown = [(time, failed) for time, failed in past if time >= start]
    parts = [f'<line class="axis" x1="0" y1="10" x2="{TIMELINE_WIDTH}" y2="10"/>']
    parts += [
        f'<circle class="{"bad" if failed else "good"}" cx="{place(time)}" cy="10" r="4"/>'
        for time, failed in shown
    ]
    at = place(now)
    parts.append(f'<line class="now" x1="{at}" y1="1" x2="{at}" y2="19"/>')
    parts += [f'<circle class="dot" cx="{place(time)}" cy="10" r="4"/>' for time in upcoming]
    failures = sum(failed for _, failed in shown)
    label = (
        f"{plural(len(shown), 'past run')}, {failures} of them failed; "
        f"{plural(len(upcoming), 'occurrence')} to come"
    )
    return Markup(
        f'<svg class="timeline" viewBox="0 0 {TIMELINE_WIDTH} 20" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _svg(content: str, label: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )
