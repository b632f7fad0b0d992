"""Heartbeats in the background, for tasks that may take longer than their lease.

Knows when to send a heartbeat, and what to do with a task whose lease is lost. The heartbeat itself
is in the context; the engine does not record the outcome of a run that lost its lease.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from pyncette.body import BodyResult, call_body, check_body, declared_in
from pyncette.clock import Clock
from pyncette.errors import LeaseLostException, describe, printable
from pyncette.logs import log_exception
from pyncette.options import check_flag
from pyncette.parameters import parameters_of

logger: Final = logging.getLogger(__name__)

_Context = TypeVar("_Context")
_P = ParamSpec("_P")


def with_heartbeat(
    lease_remaining_ratio: float = 0.5, cancel_on_lease_lost: bool = False
) -> Callable[
    [Callable[Concatenate[_Context, _P], BodyResult]],
    Callable[Concatenate[_Context, _P], Awaitable[Any]],
]:
    """Decorates the function of a task: the lease is extended while the function runs.

    Write it below the decorator that declares the task. A heartbeat is sent every
    ``lease_duration`` × ``lease_remaining_ratio``. If one fails, the failure is logged, and the
    next one is sent at its usual time: a small ratio allows several attempts within a lease. After
    the lease is lost, no more are sent.

    The context must have ``task.lease_duration``, ``heartbeat()`` and ``app_context.clock``.
    Heartbeats need the event loop: a function that blocks it for longer than a lease may lose
    the lease.

    Args:
        lease_remaining_ratio: The part of ``lease_duration`` between two heartbeats, more than 0
            and less than 1.
        cancel_on_lease_lost: If True, the function is cancelled when its lease is lost. It then
            raises ``LeaseLostException``, also if it catches the cancellation and returns; if it
            raises another exception, that one is raised. If False, the function continues, but its
            outcome will not be recorded, and another worker may run the same occurrence.

    Raises:
        ValueError: ``lease_remaining_ratio`` is not between 0 and 1.
        TypeError: ``lease_remaining_ratio`` is not a number, as in ``@with_heartbeat`` without
            parentheses; or the decorated function cannot be used as a task; or it is, or wraps, a
            declared task, because ``with_heartbeat`` stands above the decorator that declares it.
    """
    if callable(lease_remaining_ratio):
        raise TypeError("with_heartbeat takes options: write @with_heartbeat()")
    if not isinstance(lease_remaining_ratio, (int, float)):
        raise TypeError(f"lease_remaining_ratio must be a number, not {lease_remaining_ratio!r}")
    if not 0 < lease_remaining_ratio < 1:
        raise ValueError(
            "lease_remaining_ratio must be more than 0 and less than 1, "
            f"not {lease_remaining_ratio!r}"
        )
    check_flag("cancel_on_lease_lost", cancel_on_lease_lost)

    def decorate(
        body: Callable[Concatenate[_Context, _P], BodyResult],
    ) -> Callable[Concatenate[_Context, _P], Awaitable[Any]]:
        if (task := declared_in(body)) is not None:
            raise TypeError(
                f"with_heartbeat was given the task '{printable(task)}'. A task runs its own "
                "function, which would send no heartbeats: write @with_heartbeat() below the "
                "decorator that declares the task, directly above the function"
            )
        check_body(body)
        parameters_of(body)
        run = call_body(body)

        @functools.wraps(body)
        async def beating(context: _Context, /, *args: _P.args, **arguments: _P.kwargs) -> Any:
            call = run
            if args or arguments:
                call = call_body(functools.wraps(body)(_given(body, args, arguments)))
            async with _Beating(context, lease_remaining_ratio, cancel_on_lease_lost):
                return await call(context)

        return beating

    return decorate


def _given(
    body: Callable[..., Any], args: tuple[Any, ...], arguments: Mapping[str, Any]
) -> Callable[[Any], Any]:
    return lambda context: body(context, *args, **arguments)


class _Beating:
    """Sends heartbeats while its block runs, and cancels the block if necessary.

    The block stays in its asyncio task. It is cancelled like in ``asyncio.timeout``: each
    ``cancel()`` here is followed by one ``uncancel()``, so that a cancellation from outside is
    detected and raised again.
    """

    def __init__(self, context: Any, ratio: float, cancel_on_lease_lost: bool) -> None:
        self._context = context
        self._interval_s = context.task.lease_duration.total_seconds() * ratio
        self._clock: Clock = context.app_context.clock
        self._cancel_on_lease_lost = cancel_on_lease_lost
        self._lost: LeaseLostException | None = None
        self._ended = False

    async def __aenter__(self) -> None:
        runner = asyncio.current_task()
        if runner is None:
            raise RuntimeError("with_heartbeat needs to run in an asyncio task")
        self._runner = runner
        self._cancelling = runner.cancelling()
        self._beats = asyncio.create_task(self._beat(), name="pyncette heartbeats")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        from_outside = False
        if self._lost is not None:
            from_outside = self._runner.uncancel() > self._cancelling
        await self._stop()
        if self._lost is not None and (
            error is None or (issubclass(type(error), asyncio.CancelledError) and not from_outside)
        ):
            raise self._lost from error

    async def _beat(self) -> None:
        elapsed_s = 0.0
        while True:
            await self._clock.sleep(self._interval_s - elapsed_s)
            sent = self._clock.monotonic()
            try:
                await self._context.heartbeat()
            except LeaseLostException as error:
                self._lease_was_lost(error)
                return
            except Exception as error:
                log_exception(
                    logger,
                    logging.WARNING,
                    error,
                    "A heartbeat of %s failed, the next one is in %g s: %s",
                    printable(self._context.task),
                    self._interval_s,
                    describe(error),
                )
            # The lease runs from when a heartbeat was sent, not from when it was answered.
            elapsed_s = self._clock.monotonic() - sent

    def _lease_was_lost(self, error: LeaseLostException) -> None:
        if self._ended:
            return
        level = logging.DEBUG if error.by_body else logging.WARNING
        if not self._cancel_on_lease_lost:
            logger.log(level, "%s; it goes on, but its outcome will not be recorded", error)
            return
        logger.log(level, "%s; it is cancelled", error)
        self._lost = error
        self._runner.cancel()

    async def _stop(self) -> None:
        self._beats.cancel()
        try:
            await asyncio.wait([self._beats])
        except asyncio.CancelledError as error:
            # The block has ended and has its outcome. The cancellation is delivered at the next
            # await; the heartbeats are cancelled already and need not be awaited.
            self._runner.uncancel()
            self._runner.cancel(*error.args)
