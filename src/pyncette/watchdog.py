"""Names what blocks the event loop, and measures by how much the event loop lags.

A body that computes, or that calls a function that blocks, stops everything else in its process:
other tasks, heartbeats, the web server beside it. A thread asks the event loop for a sign of life
now and then. If that is late, it tells which task runs, and where it is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Final

from pyncette.clock import realtime
from pyncette.events import Detail, LoopAnswered, LoopBlocked, LoopGoesOn, LoopTimeStopped
from pyncette.observers import Reporter

logger: Final = logging.getLogger(__name__)

PAUSE_MAX_S: Final = 0.5
"""Longest pause between two questions. At this pace they take 0.05 % of a processor."""

SILENCE_INITIAL_S: Final = 60.0
"""How long a body is not named again after it was; doubles each time."""

SILENCE_MAX_S: Final = 3_600.0
STILL_AFTER_S: Final = 10.0
"""When the log says that the event loop is still blocked; then at each doubling."""

NAMES_MAX: Final = 1_000
FRAMES_MAX: Final = 12


class Watchdog:
    """Watches one event loop."""

    def __init__(
        self,
        threshold_s: float,
        name_of: Callable[[asyncio.Task[Any]], str | None],
        reporter: Reporter,
    ) -> None:
        """Watches nothing yet.

        Args:
            threshold_s: For how long something may block the event loop before it is named.
            name_of: Returns the name of the body that a task of asyncio runs; None: it runs none.
                Called in another thread.
            reporter: Tells the observers, in another thread.
        """
        self._threshold_s = threshold_s
        self._pause_s = min(threshold_s / 2, PAUSE_MAX_S)
        self._name_of = name_of
        self._reporter = reporter
        # When each was named last, and for how long it is not named again.
        self._named: dict[str, tuple[float, float]] = {}
        # The event loop's own time at its last answer.
        self._loop_time: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the running event loop, which runs in this thread."""
        ended = threading.Event()
        loop = asyncio.get_running_loop()
        thread = threading.Thread(
            target=self._watch,
            args=(loop, threading.get_ident(), ended),
            name="pyncette watchdog",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def _watch(
        self, loop: asyncio.AbstractEventLoop, thread_id: int, ended: threading.Event
    ) -> None:
        try:
            while not ended.wait(self._pause_s):
                self._ask(loop, thread_id, ended)
        except RuntimeError:
            # The event loop is closed: this app was not.
            logger.debug("The watchdog ends with its event loop", exc_info=True)

    def _ask(self, loop: asyncio.AbstractEventLoop, thread_id: int, ended: threading.Event) -> None:
        answer = _Answer(loop)
        asked_at = realtime.monotonic()
        loop.call_soon_threadsafe(answer.give)
        patience_s, named = self._threshold_s, False
        while not answer.given.wait(patience_s) and not ended.is_set():
            lag_s = realtime.monotonic() - asked_at
            self._on_lag(lag_s)
            named = self._name(loop, thread_id, lag_s, still=named) or named
            patience_s = max(STILL_AFTER_S, lag_s)
        if not ended.is_set():
            lag_s = answer.given_at - asked_at
            self._on_lag(lag_s)
            if named:
                self._tell(LoopGoesOn(**self._reporter.here(), lag=timedelta(seconds=lag_s)))
            self._notice_frozen(answer.loop_time)

    def _notice_frozen(self, loop_time: float) -> None:
        """Between two answers, time has passed: the event loop must know of it."""
        if loop_time == self._loop_time and not self._is_silent("frozen time"):
            self._tell(LoopTimeStopped(**self._reporter.here()))
        self._loop_time = loop_time

    def _name(
        self, loop: asyncio.AbstractEventLoop, thread_id: int, lag_s: float, still: bool
    ) -> bool:
        frame = sys._current_frames().get(thread_id)
        if frame is None:
            return False
        try:
            task = asyncio.current_task(loop)
            body = None if task is None else self._name_of(task)
        except Exception:  # the event loop goes on meanwhile
            body = None
        name = f"task {body}" if body else f"code that is no task of Pyncette ({_place(frame)})"
        if not still and self._is_silent(name):
            return False
        self._tell(
            LoopBlocked(
                **self._reporter.here(),
                lag=timedelta(seconds=lag_s),
                still=still,
                task=body,
                what=name,
                stack=_stack(frame),
            )
        )
        return True

    def _on_lag(self, lag_s: float) -> None:
        if self._reporter.observers.watch_details:
            event = LoopAnswered(**self._reporter.here(), lag=timedelta(seconds=lag_s))
            self._reporter.observers.tell_detail(event)

    def _tell(self, event: Detail) -> None:
        self._reporter.observers.tell_logged_detail(event)

    def _is_silent(self, name: str) -> bool:
        now = realtime.monotonic()
        named_at, silence_s = self._named.get(name, (now, 0.0))
        if now < named_at + silence_s:
            return True
        if len(self._named) >= NAMES_MAX:
            self._named.clear()
        following_s = min(2 * silence_s, SILENCE_MAX_S) or SILENCE_INITIAL_S
        self._named[name] = now, following_s
        return False


class _Answer:
    """The sign of life of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.given = threading.Event()
        self.given_at = self.loop_time = 0.0
        self._loop = loop

    def give(self) -> None:
        self.given_at, self.loop_time = realtime.monotonic(), realtime.of(self._loop)
        self.given.set()


def _stack(frame: FrameType) -> str:
    """The innermost frames; if a body is among them, from there on."""
    frames: list[tuple[FrameType, int]] = []
    following: FrameType | None = frame
    while following is not None and len(frames) < FRAMES_MAX:
        if frames and following.f_globals.get("__name__", "").startswith("pyncette."):
            break
        frames.append((following, following.f_lineno))
        following = following.f_back
    return "".join(traceback.StackSummary.extract(reversed(frames)).format()).rstrip()


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"
