"""What a task waits for: something that happens in this event loop, or something outside of it.

A clock that a test moves must not move while work waits for something outside: a socket, a thread,
a timer of the event loop. asyncio does not say what a future stands for. So the innermost function
that waits is looked at: the locks and queues of asyncio wait for other work in the process, and so
does the engine; tasks wait for what they wait for in turn. Every other future stands for something
outside.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import linecache
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from pyncette.clock import realtime

__all__ = ["OutsideWait", "outside_wait"]

_FRAMES_MAX: Final = 6
_DEPTH_MAX: Final = 100

# Modules whose futures are resolved by other work in the event loop.
_INSIDE: Final = ("asyncio.locks", "asyncio.queues", "pyncette")
# anyio reads and writes sockets with events of its own.
_ANYIO: Final = "anyio._backends._asyncio"


class OutsideWait(NamedTuple):
    """A wait for something that no clock and no work of this event loop can end.

    Attributes:
        future: Done when the wait has ended.
        ends_in: In how many seconds it ends, if that is known.
        where: The lines that wait, as in a traceback.
    """

    future: asyncio.Future[Any]
    ends_in: float | None
    where: str


def outside_wait(task: asyncio.Task[Any], depth: int = 0) -> OutsideWait | None:
    """Returns what a task of the running event loop waits for outside; None if nothing."""
    future: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    if future is None or future.done() or depth > _DEPTH_MAX:
        return None
    if future.get_loop() is not asyncio.get_running_loop():
        return None
    frames = list(_frames(task.get_coro()))
    if not frames:
        return None
    inner = frames[-1]
    awaited = list(_awaited(future, inner))
    if awaited:
        return _first_outside(awaited, frames, depth)
    module = _module(inner)
    if module.startswith("pyncette.testing"):
        return None  # a sleep on the clock
    if _is_inside(module) and not _reads_socket(frames):
        return None
    return OutsideWait(future, _ends_in(inner), _described(frames))


def _ends_in(inner: FrameType) -> float | None:
    timer = inner.f_locals.get("h")  # of asyncio.sleep
    if _module(inner) != "asyncio.tasks" or not isinstance(timer, asyncio.TimerHandle):
        return None
    return realtime.left(timer)


def _first_outside(
    awaited: Iterable[asyncio.Future[Any]], frames: list[FrameType], depth: int
) -> OutsideWait | None:
    for one in awaited:
        if one.done():
            continue
        if not isinstance(one, asyncio.Task):
            children: Any = getattr(one, "_children", None)  # of asyncio.gather
            if children is None:
                return OutsideWait(one, None, _described(frames))
            found = _first_outside(children, frames, depth + 1)
        else:
            found = outside_wait(one, depth + 1)
        if found is not None:
            return found._replace(where=f"{_described(frames)}\n{found.where}")
    return None


def _awaited(future: asyncio.Future[Any], inner: FrameType) -> Iterator[asyncio.Future[Any]]:
    """The futures and tasks for which an innermost function waits, if it is known to."""
    if isinstance(future, asyncio.Task) or hasattr(future, "_children"):
        yield future
        return
    module, names = _module(inner), inner.f_locals
    if module == "asyncio.tasks" and inner.f_code.co_name != "sleep":
        # asyncio.wait has many, asyncio.wait_for has one.
        yield from names.get("fs") or ()
        if isinstance(names.get("fut"), asyncio.Future):
            yield names["fut"]
        return
    if module in ("asyncio.taskgroups", _ANYIO):
        tasks = getattr(names.get("self"), "_tasks", ())
        yield from (task for task in tasks if isinstance(task, asyncio.Task))
        return
    for callback in getattr(future, "_callbacks", None) or ():
        # asyncio.shield: the inner future is known to a callback of the outer one only.
        function = callback[0] if isinstance(callback, tuple) else callback
        if getattr(function, "__name__", "") == "_outer_done_callback":
            known = inspect.getclosurevars(function).nonlocals.get("inner")
            if isinstance(known, asyncio.Future):
                yield known


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_inside(module: str) -> bool:
    return module.startswith(_INSIDE)


def _reads_socket(frames: list[FrameType]) -> bool:
    for frame in reversed(frames):
        module = _module(frame)
        if module == _ANYIO:
            return not frame.f_code.co_name.startswith(("wait", "acquire", "__aexit__"))
        if not _is_inside(module):
            return False
    return False


def _frames(awaiting: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, the innermost last."""
    for _ in range(_DEPTH_MAX):
        frame = _attribute(awaiting, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield frame
        following = _attribute(awaiting, "cr_await", "gi_yieldfrom", "ag_await")
        if following is None:
            following = _generator_behind(awaiting)
        if following is None:
            return
        awaiting = following


def _attribute(awaiting: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(awaiting, name, None))), None)


def _generator_behind(awaiting: Any) -> Any:
    """The generator that an ``async for`` or an ``anext()`` goes through: nothing tells it."""
    if type(awaiting).__name__ not in (
        "async_generator_asend",
        "async_generator_athrow",
        "anext_awaitable",
        "coroutine_wrapper",
    ):
        return None
    for behind in gc.get_referents(awaiting):
        if inspect.isasyncgen(behind) or inspect.iscoroutine(behind):
            return behind
    return None


def _described(frames: list[FrameType]) -> str:
    # What the user wrote: the engine around it, and the library below it, say little.
    hidden = ("asyncio.", "pyncette.")
    shown = [frame for frame in frames if not _module(frame).startswith(hidden)]
    return "\n".join(map(_line, shown[-_FRAMES_MAX:]))


def _line(frame: FrameType) -> str:
    code: CodeType = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno).strip()
    place = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}'
    return f"{place}\n    {source}" if source else place
