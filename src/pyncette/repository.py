"""What became of the storage interface of release 1.x: another one took its place."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"pyncette.repository.{name} is gone: since 2.0 a store implements "
        "pyncette.store.Store, and stores written against 1.x need to be rewritten for it"
    )
