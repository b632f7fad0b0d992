"""The layout of records in Redis: the names of keys and channels, and the text of a record.

A group has three keys with the same hash tag, so that on a cluster they are in one slot: a sorted
set of records that will come due, a hash of the records, and a sorted set of names for scans. This
holds ``:key`` of every record, and also ``state:key`` of a record in a rare state
(``pyncette.store.rare``). A key of Redis of its own for the rare states would mostly not exist, and
in a slot that moves, scripts with a key that does not exist are refused.
A record is one value of the hash, with its columns separated by NUL: version, instant, state,
unfinished attempts, token, progress, schedule, args. The scripts (``*.lua``) use the same form. The
columns that a claim changes come first.
"""

from __future__ import annotations

import json
import re
from binascii import crc_hqx
from collections.abc import Collection
from typing import Final

from pyncette.store import Write
from pyncette.store.record import (
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    Delete,
    Patch,
    Record,
    State,
    record_of,
)

SLOTS: Final = 16_384
FORMAT: Final = b"1"
"""The version of keys and values. A release that changes them must change this, too."""

VALUE_BYTES_MAX: Final = 64 * 1_024 * 1_024
"""Maximum length of all texts of one record. By default Redis accepts eight times as much."""

LARGE: Final = 256 * 1_024
"""A change of at least this many characters is sent by itself. A server may be configured to accept
no more than a megabyte (``proto-max-bulk-len``); if it gets more, it closes the connection."""

_CHANNEL_BYTES_MAX: Final = 8_000
_NO_TOKEN: Final = "-"

# The head of a valid value, and the numbers in it; the same as in ``*.lua``.
_HEAD: Final = re.compile(
    r"([1-9]\d{0,15})\0(-\d{1,17}|\d{0,18})\0[a-z]+\0\d{1,9}\0[^\0]*\0", re.ASCII
)
_VERSION_MAX: Final = 9_007_199_254_740_000
_COLUMNS: Final = 8

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_ESCAPES_OF_NAMESPACES: Final = {**_ESCAPES, ord(":"): "%3A"}


def encoded(text: str) -> bytes:
    """Text as bytes; the reverse of ``decoded``, also for bytes that are not text."""
    return text.encode("utf-8", "surrogateescape")


def decoded(value: bytes) -> str:
    """The reverse of ``encoded``."""
    return value.decode("utf-8", "surrogateescape")


class Names:
    """The keys of one namespace. None begins with ``pyncette:``, as the keys of 1.x do.

    Args:
        namespace: The namespace; characters that would end a hash tag are escaped.
        database: The number of the database. Channels, unlike keys, are shared by all databases.
    """

    def __init__(self, namespace: str, database: int = 0) -> None:
        self._namespace = namespace.translate(_ESCAPES_OF_NAMESPACES)
        self._groups: dict[str, tuple[bytes, bytes, bytes]] = {}
        self.layout: bytes = encoded(f"pyncette2:{{{self._namespace}:}}:layout")
        self.channel: bytes = encoded(f"pyncette2:{{{self._namespace}:}}:wake:{database}")
        self.legacy_static: bytes = encoded(f"pyncette:{namespace}:index")
        self.legacy_tasks: bytes = encoded(f"pyncette:{_literal(namespace)}:task:*")

    def history(self, part: int) -> bytes:
        """The key of a part of the run history, in a slot of its own."""
        return encoded(f"pyncette2:{{{self._namespace}:{part}}}:history")

    def of(self, group: str) -> tuple[bytes, bytes, bytes]:
        """The keys of a group: its due records, its records, its sorted names."""
        names = self._groups.get(group)
        if names is None:
            tag = f"pyncette2:{{{self._namespace}:{group.translate(_ESCAPES)}}}"
            names = (encoded(f"{tag}:due"), encoded(f"{tag}:records"), encoded(f"{tag}:names"))
            self._groups[group] = names
        return names


def slot_of(key: bytes) -> int:
    """The slot of a key with a hash tag (Redis Cluster Specification)."""
    start = key.index(b"{") + 1
    return crc_hqx(key[start : key.index(b"}", start)], 0) % SLOTS


def _literal(text: str) -> str:
    """A pattern of SCAN that matches only this text."""
    return "".join(f"\\{character}" if character in "*?[]\\^-" else character for character in text)


def token_text(token: str | None) -> str:
    """A token as part of a value; None and the empty text differ."""
    return _NO_TOKEN if token is None else f"={token}"


def record_from(group: str, key: str, value: bytes, sound: bool = False) -> Record:
    """Reads the record from a value of the hash.

    A value that was edited by hand is returned as the schedule, so that the worker finds it
    unreadable and parks it.

    Args:
        group: The group of the record.
        key: The key of the record.
        value: The value in the hash.
        sound: Whether a script has just written its beginning, so that it is valid.
    """
    text = value.decode("utf-8", "replace")
    if not sound and not _is_ours(text):
        schedule = text.replace("\0", " ")
        return Record(group, key, None, 1, None, State.PARKED, 0, schedule, "", "")
    texts = text.split("\0", _COLUMNS - 1)
    if len(texts) < _COLUMNS:
        texts += [""] * (_COLUMNS - len(texts))
    version, due_at, state, unfinished_attempts, token, progress, schedule, args = texts
    return record_of(
        (
            group,
            key,
            int(due_at) if due_at else None,
            int(version),
            token[1:] if token != _NO_TOKEN else None,
            state,
            int(unfinished_attempts),
            schedule,
            args,
            progress,
        )
    )


def _is_ours(text: str) -> bool:
    head = _HEAD.match(text)
    if head is None or int(head[1]) > _VERSION_MAX:
        return False
    # Compared as numbers of Lua, so that this code and the scripts agree.
    return not head[2] or EARLIEST_INSTANT <= float(head[2]) <= LATEST_INSTANT


def change_texts(write: Write) -> tuple[str, ...]:
    """Returns a change in the form that ``write.lua`` expects: the kind and the new columns.

    Raises:
        ValueError: Redis cannot keep it: it has a NUL or a lone surrogate, or is too long.
    """
    change = write.change
    if not write.key.isascii():
        encoded(write.key)
    if isinstance(change, Delete):
        return ("D",)
    due_at = "" if change.due_at is None else str(change.due_at)
    if isinstance(change, Patch):
        _, state, unfinished_attempts, progress = change
        head = f"{state}\0{unfinished_attempts}"
        texts = ("p", due_at, head) if progress is None else ("P", due_at, head, progress)
        divided = head if progress is None else f"{head}{progress}"
        divisions = 1
    else:
        _, state, token, unfinished_attempts, schedule, args, progress = change
        divided = f"{token_text(token)}\0{progress}\0{schedule}\0{args}"
        divisions = 3
        texts = ("U", due_at, f"{state}\0{unfinished_attempts}", divided)
    if divided.count("\0") != divisions:
        raise ValueError(f"A text of the record {write.key!r} holds a NUL character")
    if not divided.isascii() or len(divided) > LARGE:
        try:
            size = len(divided.encode())
        except UnicodeEncodeError:
            raise ValueError(f"A text of the record {write.key!r} holds a lone surrogate") from None
        if size > VALUE_BYTES_MAX:
            raise ValueError(
                f"The texts of the record {write.key!r} have {size} bytes; the store in Redis "
                f"keeps at most {VALUE_BYTES_MAX}"
            )
    return texts


def wake_payload(groups: Collection[str]) -> bytes:
    """Returns the groups as a message; if it is too long, the message for any group."""
    payload = json.dumps(sorted(groups)).encode()
    return payload if len(payload) <= _CHANNEL_BYTES_MAX else b""


def woken_groups(payload: object) -> frozenset[str] | None:
    """The groups of a message; None for any group, or if another program sent it."""
    if not isinstance(payload, bytes):
        return None
    try:
        groups = json.loads(payload)
        return frozenset(groups) if isinstance(groups, list) else None
    except (ValueError, TypeError):
        return None
