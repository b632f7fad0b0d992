"""Work that one thread does for coroutines in the event loop of another one.

What belongs to a thread (a connection, an iterator) is used by that thread alone, while a coroutine
decides what is done with it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeVar

from pyncette.errors import StoreUnavailableError

_T = TypeVar("_T")
_Item = TypeVar("_Item")

PAGE: Final = 1_000
"""Items that are handed from one thread to the other together."""


def result_of(future: concurrent.futures.Future[_T]) -> _T:
    """Returns the result of a call that another thread makes.

    Raises:
        StoreUnavailableError: It was ended from there.
    """
    try:
        return future.result()
    except concurrent.futures.CancelledError as error:
        raise StoreUnavailableError(
            "The app was closed while the call was under way: what it has done is not known"
        ) from error


class Desk:
    """Serves one call that runs in an event loop: what is the caller's is done by the caller."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._asked.put(None)

    def serve(self, loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, _T]) -> _T:
        """Makes the call, and does what it asks for until it has ended."""
        future: concurrent.futures.Future[_T] = asyncio.run_coroutine_threadsafe(call, loop)
        future.add_done_callback(lambda _: self._asked.put(None))
        try:
            while (wanted := self._asked.get()) is not None:
                wanted()
            return result_of(future)
        finally:
            future.cancel()

    async def do(self, work: Callable[[], _T]) -> _T:
        """Lets the caller do this; called in the event loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def do() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(settle, None, error)
            else:
                loop.call_soon_threadsafe(settle, result, None)

        self._asked.put(do)
        return await answer

    async def read(self, items: Iterable[_Item]) -> AsyncIterator[_Item]:
        """Goes through these items, which the caller reads."""
        iterator = iter(items)
        while page := await self.do(lambda: list(islice(iterator, PAGE))):
            for item in page:
                yield item

    def told(self, callback: Callable[[_Item], object]) -> Callable[[_Item], None]:
        """Returns a callback that lets the caller call this one."""
        return lambda item: self._asked.put(partial(callback, item))
