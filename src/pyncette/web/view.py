"""Renders the screens: templates, times in the zone of the viewer, what is hidden of arguments."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pyncette.errors import plural, printable
from pyncette.model import TaskCount, TaskState
from pyncette.showing import (
    clock_change,
    clock_change_text,
    duration_text,
    named,
    schedule_text,
    schedule_words,
)
from pyncette.version import __version__
from pyncette.web.access import Access, Action

HERE: Final = Path(__file__).parent
ASSETS: Final = HERE / "assets"

HIDDEN: Final = "•••"

TEXT_CHARACTERS_MAX: Final = 4_000
"""Characters of an argument that are shown."""

NESTING_MAX: Final = 20

SECRET: Final = re.compile(
    r"pass(word|wd|phrase)|pass$|pwd|secret|token|credential|(api|access)[_-]?key|private|cookie"
    r"|session|auth|bearer|jwt|dsn|(^|[_-])(pin|otp)([_-]|$)",
    re.I,
)
"""Names of arguments whose values are never shown."""

Redact = Callable[[str, str], bool]
"""Takes the name of a task and of an argument; returns whether the value is hidden."""


def _versions() -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in ASSETS.iterdir()
        if path.is_file()
    }


ASSET_VERSIONS: Final = _versions()


def asset(name: str) -> str:
    """The relative address of an asset; it changes with the content, so that it may be cached."""
    return f"assets/{name}?{urlencode({'v': ASSET_VERSIONS[name]})}"


def link(page: str, **parameters: object) -> str:
    """A relative address. All pages lie in one directory, so it holds wherever that is mounted."""
    given = {name: value for name, value in parameters.items() if value not in (None, "", False)}
    return f"{page or './'}?{urlencode(given, doseq=True)}" if given else page or "./"


def more_than(count: TaskCount) -> str:
    """A count for people."""
    return f"{count.count:,}" if count.exact else f"more than {count.count:,}"


def counted(count: TaskCount, word: str = "instance") -> str:
    """A count with its noun."""
    return plural(count.count, word) if count.exact else f"{more_than(count)} {word}s"


STATE_WORDS: Final = {
    "active": "calm",
    "scheduled": "calm",
    "running": "busy",
    "retrying": "warn",
    "paused": "rest",
    "parked": "bad",
    "finished": "rest",
    "partly paused": "rest",
    "never started": "rest",
    "succeeded": "good",
    "failed": "bad",
    "timed_out": "bad",
    "cancelled": "rest",
    "skipped": "rest",
    "postponed": "rest",
}


def pill(word: object) -> Markup:
    """A state as a coloured word."""
    text = str(word)
    shown = text.replace("_", " ")
    return Markup('<span class="pill {}">{}</span>').format(STATE_WORDS.get(text, "calm"), shown)


ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.globals.update(
    Action=Action,
    asset=asset,
    clock_change=clock_change,
    clock_change_text=clock_change_text,
    counted=counted,
    duration=duration_text,
    link=link,
    more_than=more_than,
    named=named,
    pill=pill,
    plural=plural,
    schedule_text=schedule_text,
    schedule_words=schedule_words,
    version=__version__,
)
ENVIRONMENT.filters["name"] = printable
ENVIRONMENT.filters["lines"] = lambda text: "\n".join(map(printable, text.splitlines()))


class View:
    """What a page needs of its viewer.

    Attributes:
        access: What the viewer may see and do.
        now: The time of the page, by the clock of the app.
        zone: The time zone of the viewer.
        zone_name: Its name.
    """

    def __init__(
        self, access: Access, now: datetime, zone_name: str | None, redact: Redact
    ) -> None:
        self.access = access
        self.now = now
        zone = _zone(zone_name)
        self.zone: tzinfo = zone or UTC
        self.zone_name = zone_name if zone is not None else "UTC"
        self._redact = redact

    def render(self, template: str, **values: Any) -> str:
        """Renders a template."""
        return ENVIRONMENT.get_template(template).render(
            view=self,
            access=self.access,
            may=self.access.may,
            when=self.when,
            stamp=self.stamp,
            **values,
        )

    def stamp(self, instant: datetime | None) -> Markup:
        """An instant in the zone of the viewer."""
        if instant is None:
            return Markup("–")
        shown = instant.astimezone(self.zone)
        text = f"{shown:%Y-%m-%d %H:%M:%S}"
        return _time(instant, text, f"{text} {shown:%Z}")

    def when(self, instant: datetime | None) -> Markup:
        """An instant as its distance from now; the instant itself as its title."""
        if instant is None:
            return Markup("–")
        distance = timedelta(seconds=round((instant - self.now).total_seconds()))
        if not distance:
            text = "now"
        elif distance > timedelta():
            text = f"in {duration_text(distance)}"
        else:
            text = f"{duration_text(-distance)} ago"
        shown = instant.astimezone(self.zone)
        return _time(instant, text, f"{shown:%Y-%m-%d %H:%M:%S %Z}")

    def arguments(self, state: TaskState) -> list[tuple[str, str]] | None:
        """The arguments as far as they are shown, as texts; None: they cannot be read."""
        try:
            given = state.args
        except ValueError:
            return None
        task = state.task.template.name
        return [
            (printable(name), HIDDEN if self._redact(task, name) else self._text(task, value))
            for name, value in given.items()
        ]

    def _text(self, task: str, value: Any) -> str:
        shown = self._redacted(task, value, NESTING_MAX)
        text = printable(json.dumps(shown, ensure_ascii=False, default=str))
        if len(text) > TEXT_CHARACTERS_MAX:
            text = f"{text[:TEXT_CHARACTERS_MAX]}… ({len(text):,} characters)"
        return text

    def _redacted(self, task: str, value: Any, depth: int) -> Any:
        if depth == 0:
            return "…"
        if isinstance(value, Mapping):
            return {
                str(name): HIDDEN
                if self._redact(task, str(name))
                else self._redacted(task, inner, depth - 1)
                for name, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._redacted(task, inner, depth - 1) for inner in value]
        return value


def _time(instant: datetime, text: str, title: str) -> Markup:
    iso = instant.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        escape(iso), escape(title), escape(text)
    )


def _zone(name: str | None) -> tzinfo | None:
    if not name or len(name) > 100 or not re.fullmatch(r"[A-Za-z0-9_+\-/]+", name):
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        return None
    except KeyError:
        return None
