"""What cannot be read on this machine, though another one may be able to read it."""

from __future__ import annotations


class UnreadableHere(ValueError):  # noqa: N818 (a state of the text, which callers tell from errors)
    """A text is well formed, but this worker does not know what it names.

    For example a time zone that the tz data of this machine lack. Another worker may know it, so
    a record with such a text is left to others, not parked. A text that no worker can read is a
    plain ``ValueError``.
    """


class NewerFormat(UnreadableHere):
    """A text was written by a newer release: its format or its kind is not known here."""
