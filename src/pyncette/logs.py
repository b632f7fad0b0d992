"""Lines of the log that carry the traceback of an exception which others have raised.

The text of an exception may have megabytes, and its traceback a thousand frames: a line of the log
stays bounded, as a record does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Final

from pyncette.errors import class_name, traceback_parts

CHARACTERS_MAX: Final = 16_000
"""What is kept of a long traceback: its begin and its end, which names the exception."""

_BEGIN_CHARACTERS: Final = 4_000

TEXT_CHARACTERS_MAX: Final = 8_000
FRAMES_MAX: Final = 200
CHAIN_MAX: Final = 20
"""An exception with a longer text, more frames, or more causes is shortened."""


def log_exception(
    logger: logging.Logger, level: int, error: BaseException, message: str, *args: object
) -> None:
    """Logs a line with the traceback of an exception.

    If that is very long, a part of it is logged, as text: then handlers find no exception in the
    record of the log.
    """
    if not is_long(error):
        # An exception itself would be asked whether it is true.
        exc_info = (type(error), error, error.__traceback__)
        logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
        return
    if not logger.isEnabledFor(level):
        return
    path, line, function, _ = logger.findCaller(stacklevel=2)
    record = logger.makeRecord(logger.name, level, path, line, message, args, None, function)
    record.exc_text = shortened(error)
    logger.handle(record)


def is_long(error: BaseException) -> bool:
    """Returns whether the traceback of an exception would be very long, or cannot be shown."""
    try:
        return _is_long(error)
    except BaseException:  # whatever it raises when it is looked at
        return True


def _is_long(error: BaseException) -> bool:
    frames = characters = 0
    for number, each in enumerate(_chain(error)):
        if not _can_be_asked(each):
            return True  # what formats tracebacks asks for its truth, and for its class
        frame = each.__traceback__
        while frame is not None and frames <= FRAMES_MAX:
            frames, frame = frames + 1, frame.tb_next
        characters += _length(each)
        if number >= CHAIN_MAX or frames > FRAMES_MAX or characters > TEXT_CHARACTERS_MAX:
            return True
    return False


def shortened(error: BaseException) -> str:
    """Returns the begin and the end of a traceback, with the end of its frames and texts."""
    try:
        text = "".join(traceback_parts(error)).rstrip("\n")
    except BaseException:
        return f"{class_name(error)} that cannot be shown"
    left_out = len(text) - CHARACTERS_MAX
    if left_out <= 0:
        return text
    end = text[_BEGIN_CHARACTERS + left_out :]
    return f"{text[:_BEGIN_CHARACTERS]}\n… {left_out:,} characters are left out …\n{end}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions that a traceback shows, the last one first; a bounded number of them."""
    seen: set[int] = set()
    waiting = [error]
    while waiting and len(seen) <= CHAIN_MAX:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting.append(None if each.__suppress_context__ else each.__context__)
        waiting.append(each.__cause__)
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(islice(each.exceptions, CHAIN_MAX))


def _can_be_asked(error: BaseException) -> bool:
    try:
        bool(error)
        return isinstance(type(error).__qualname__, str) and bool(type(error).__module__)
    except BaseException:
        return False


def _length(error: BaseException) -> int:
    try:
        notes = getattr(error, "__notes__", ())
        return len(str(error)) + sum(map(len, notes))
    except BaseException:
        return 0  # it cannot be shown, so it is short
