"""Tracebacks in the log: as usual if they are short, and bounded whatever a task raises."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from tests.support import Bench, run

from pyncette import Context
from pyncette.errors import TRACEBACK_CHARACTERS_MAX, describe, describe_traceback
from pyncette.logs import CHARACTERS_MAX, log_exception
from pyncette.store.record import load_progress

MEGABYTES = "many words\n" * 100_000

logger = logging.getLogger("pyncette.test")


def _raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def _long_text() -> None:
    raise ValueError("begins: " + MEGABYTES)


def _long_cause() -> None:
    try:
        _long_text()
    except ValueError as error:
        raise KeyError("short") from error


def _long_note() -> None:
    error = ValueError("short")
    error.add_note(MEGABYTES)
    raise error


def _ping(depth: int) -> None:
    if depth:
        _pong(depth - 1)
    raise ValueError("at the end")


def _pong(depth: int) -> None:
    _ping(depth)


def _many_causes() -> None:
    error: Exception = ValueError("the first one")
    for number in range(500):
        after = KeyError(f"number {number}")
        after.__context__ = error
        error = after
    raise error


def _group() -> None:
    raise ExceptionGroup("several", [ValueError(MEGABYTES) for _ in range(30)])


class Unshowable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no words for it")

    __repr__ = __str__


def _unshowable() -> None:
    raise Unshowable from _raised(_long_text)


LONG: list[Any] = [
    pytest.param(_long_text, "ValueError: begins: many words", id="text"),
    pytest.param(_long_cause, "KeyError: 'short'", id="cause"),
    pytest.param(_long_note, "ValueError: short", id="note"),
    pytest.param(lambda: _ping(450), "ValueError: at the end", id="recursion"),
    pytest.param(_many_causes, "KeyError: 'number 499'", id="many causes"),
    pytest.param(_group, "ExceptionGroup: several (30 sub-exceptions)", id="group"),
    pytest.param(_unshowable, "Unshowable", id="cannot be shown"),
]


@pytest.mark.parametrize(("act", "words"), LONG)
def test_a_very_long_traceback_is_logged_in_part(
    act: Callable[[], object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = _raised(act)
    log_exception(logger, logging.ERROR, error, "Task %s failed", "job")
    [record] = caplog.records
    assert (record.getMessage(), record.levelname) == ("Task job failed", "ERROR")
    assert (record.funcName, record.filename) == (
        "test_a_very_long_traceback_is_logged_in_part",
        "test_logs.py",
    )
    assert record.exc_info is None, "a formatter of another kind would show all of it"
    assert record.exc_text is not None
    assert "Traceback (most recent call last)" in record.exc_text
    assert words in record.exc_text
    assert len(caplog.text) < CHARACTERS_MAX + 500


class UntrueError(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def test_an_exception_of_which_no_traceback_can_be_made_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(traceback.TracebackException):
        def __init__(self, kind: Any, value: Any, *arguments: Any, **options: Any) -> None:
            bool(value)  # as the traceback module of some versions does
            super().__init__(kind, value, *arguments, **options)

    monkeypatch.setattr(traceback, "TracebackException", Asked)
    log_exception(logger, logging.ERROR, UntrueError(MEGABYTES), "failed")
    [record] = caplog.records
    assert record.exc_text == "UntrueError that cannot be shown"


def test_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    log_exception(logger, logging.ERROR, _raised(_group), "failed")
    assert " characters are left out …" in caplog.text


def test_a_usual_traceback_is_logged_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    error = _raised(lambda: _ping(5))
    log_exception(logger, logging.ERROR, error, "failed")
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.funcName == "test_a_usual_traceback_is_logged_as_usual"
    assert caplog.text.count("in _pong") == 5


def test_nothing_is_made_of_a_line_that_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "pyncette"):
        log_exception(logger, logging.ERROR, _raised(_long_text), "failed")
        log_exception(logger, logging.ERROR, _raised(lambda: _ping(1)), "failed")
    assert caplog.records == []


def test_the_end_of_a_traceback_and_an_error_in_one_line_are_bounded_too() -> None:
    error = _raised(_long_text)
    text = describe_traceback(error)
    assert len(text) <= TRACEBACK_CHARACTERS_MAX
    assert "in _long_text" in text, "the text leaves room for the frames"
    assert describe(error).startswith("ValueError: begins: many words\\nmany")
    assert len(describe(error)) == 2_000


def test_a_task_that_raises_megabytes_writes_some_thousand_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=5)
        async def job(context: Context) -> None:
            _long_text()

        async with bench.running():
            await bench.advance(6)
        record = await bench.record(job)
        assert record is not None
        assert len(record.progress) < 10_000
        progress = load_progress(record.progress)
        assert progress.error is not None
        assert "begins: many words" in progress.error
        assert progress.traceback is not None
        assert "in _long_text" in progress.traceback

    run(main())
    [line] = caplog.records
    assert "Task job failed in attempt 1" in line.getMessage()
    assert "in _long_text" in caplog.text
    assert len(caplog.text) < CHARACTERS_MAX
