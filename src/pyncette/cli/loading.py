"""Finds the app that ``--app module:attribute`` names, as other command lines of this kind do."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    nullcontext,
    redirect_stdout,
)
from importlib import import_module
from pathlib import Path
from typing import Any

from pyncette.app import Pyncette
from pyncette.cli.failures import CommandError, usage
from pyncette.errors import StoreMisconfiguredError, describe, printable
from pyncette.parts import loading
from pyncette.store.absent import NothingThereError


def load_app(name: str, quiet: bool = False) -> Pyncette:
    """Returns the app of this name; a module of the current directory is found.

    The attribute is an app, or a function without parameters that returns one. Without an
    attribute, it is ``app``.

    Args:
        name: Its name, as ``module:attribute``.
        quiet: Whether what the module prints goes to the standard error, because programs read the
            standard output.

    Raises:
        CommandError: There is no such app; the message says what is wrong.
        KeyboardInterrupt: The user has interrupted it.
    """
    with redirect_stdout(sys.stderr) if quiet else nullcontext():
        return _load(name)


def _load(name: str) -> Pyncette:
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith(".") or "/" in module_name:
        raise usage(f"--app must be module:attribute, for example tasks:app, not {printable(name)}")
    found = _found(module_name, attribute or "app")
    if not isinstance(found, Pyncette) and callable(found):
        try:
            with loading():
                found = found()
        except KeyboardInterrupt:
            raise
        except SystemExit as error:
            raise CommandError(
                f"'{printable(name)}' is called to make the app, and {_ended(error)}"
            ) from error
        except BaseException as error:
            raise CommandError(
                f"'{printable(name)}' is called to make the app, and failed: {describe(error)}"
            ) from error
    if not isinstance(found, Pyncette):
        raise usage(
            f"'{printable(name)}' is no app, but {printable(type(found).__name__)}: name a "
            f"pyncette.Pyncette, or a function that returns one{_apps_in(module_name)}"
        )
    return found


def load_function(name: str) -> Callable[..., Any]:
    """Returns the function of this name, ``module:function``.

    Raises:
        CommandError: There is none; the message says what is wrong.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith(".") or "/" in module_name:
        raise usage(
            f"--authorize must be module:function, for example ops:authorize, not {printable(name)}"
        )
    found = _found(module_name, attribute)
    if not callable(found):
        raise usage(f"'{printable(name)}' is no function, but {printable(type(found).__name__)}")
    return found


def _found(module_name: str, attribute: str) -> object:
    """What a module has under a name; a module of the current directory is found.

    Raises:
        CommandError: The module cannot be imported, or it has nothing of this name.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with loading():
            found: object = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == module_name or module_name.startswith(f"{missing}."):
            raise usage(
                f"There is no module '{printable(missing)}' in {printable(here)} nor installed; "
                "go to the directory of your program, or set PYTHONPATH"
            ) from error
        raise CommandError(
            f"'{printable(module_name)}' imports '{printable(missing)}', which is not installed "
            "in this environment"
        ) from error
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise CommandError(
            f"'{printable(module_name)}' {_ended(error)} while it was imported"
        ) from error
    except BaseException as error:
        raise CommandError(
            f"Importing '{printable(module_name)}' failed: {describe(error)} (--debug shows where)"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise usage(
                f"'{printable(module_name)}' has no '{printable(part)}'{_apps_in(module_name)}"
            ) from error
    return found


def app_of_url(url: str, table: str | None = None) -> Pyncette:
    """An app without tasks on the store of this URL. Opening it creates nothing.

    Args:
        url: Names the store.
        table: The name of its table, or in Redis its namespace; by default the store's own.

    Raises:
        CommandError: It names a file that does not exist, or one without the table; or the table
            is named twice.
        ValueError: It names no store, or the name of the table is not valid.
        ImportError: The driver is not installed.
    """
    # Not at the top: what reads URLs takes longer to import than it is worth without one.
    from pyncette.store_url import store_named_by

    factory, options = store_named_by(url)
    store = factory.__name__.removesuffix("_repository")
    if store == "sqlite":
        _check_file(options["sqlite_database"], table)
    name = "redis_namespace" if store == "redis" else f"{store}_table_name"
    if table is not None:
        if name in options:
            raise usage("The URL of a DynamoDB table names it: leave out --table")
        options[name] = table
    if store not in ("sqlite", "redis"):
        options[f"{store}_skip_table_create"] = True
    if store == "redis":
        from pyncette.redis import existing_namespace

        factory = existing_namespace
    opens = factory if store == "sqlite" else _told_in_words(factory)
    return Pyncette(opens, **options)


def _told_in_words(
    factory: Callable[..., AbstractAsyncContextManager[Any]],
) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """A factory whose error says what the command line can do where nothing is kept."""

    @asynccontextmanager
    async def looked_at(**options: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            try:
                store = await stack.enter_async_context(factory(**options))
            except NothingThereError as error:
                raise StoreMisconfiguredError(_nothing(error.what)) from error
            yield store

    return looked_at


def _nothing(what: str) -> str:
    return (
        f"{what}, and nothing is created for a look: name the table with --table (in Redis the "
        "namespace), or pass --app"
    )


def _check_file(path: str, table: str | None) -> None:
    if path == ":memory:":
        raise usage("A store in memory cannot be looked at from another process")
    if not Path(path).exists():
        raise CommandError(f"There is no file {printable(path)}")
    import sqlite3

    wanted = "pyncette_tasks" if table is None else table
    try:
        with closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        ) as file:
            found = file.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (wanted,)
            ).fetchone()
    except sqlite3.Error:
        return  # opening it says in words what is wrong with it
    if found is None:
        raise CommandError(
            _nothing(f"There is no table '{printable(wanted)}' in {printable(path)}")
        )


def _ended(error: SystemExit) -> str:
    code = "" if error.code is None else repr(error.code)[:200]
    return (
        f"called sys.exit({printable(code)}), so there is no app to look at: call it only below "
        "if __name__ == '__main__' (--debug shows where)"
    )


def _apps_in(module_name: str) -> str:
    names = [
        name
        for name, value in vars(sys.modules[module_name]).items()
        if isinstance(value, Pyncette)
    ]
    return f"; it has {', '.join(f'{module_name}:{name}' for name in names[:5])}" if names else ""
