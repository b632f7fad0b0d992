"""The one error that the tool reports by name instead of with a traceback."""


class UnavailableError(Exception):
    """A server cannot be had; the message says what is missing and what to do about it."""
