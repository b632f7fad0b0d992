"""What ``app.create()`` and ``app.running()`` return: opens the app when it is entered."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext


class Opening(AbstractAsyncContextManager["PyncetteContext"]):
    """What opens an app when it is entered: until then, there is nothing to call."""

    def __init__(
        self, method: str, manager: AbstractAsyncContextManager[PyncetteContext, bool | None]
    ) -> None:
        """Opens nothing yet.

        Args:
            method: The method of the app that has returned it.
            manager: Opens and closes the app.
        """
        self._method = method
        self._manager = manager

    async def __aenter__(self) -> PyncetteContext:
        return await self._manager.__aenter__()

    async def __aexit__(self, *exception: Any) -> bool | None:
        return await self._manager.__aexit__(*exception)

    def __enter__(self) -> NoReturn:
        raise TypeError(f"app.{self._method}() is entered with 'async with', in a coroutine")

    def __exit__(self, *exception: Any) -> None:
        """Never called: without it, ``with`` would not get as far as ``__enter__``."""

    def __await__(self) -> NoReturn:
        raise TypeError(
            f"app.{self._method}() is not awaited but entered: write 'async with "
            f"app.{self._method}() as context:'"
        )

    def __getattr__(self, name: str) -> NoReturn:
        from pyncette.context import PyncetteContext

        if hasattr(PyncetteContext, name) and not name.startswith("_"):
            raise AttributeError(
                f"app.{self._method}() opens the app when it is entered: write 'async with "
                f"app.{self._method}() as context:' and call context.{name} inside"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
