"""The calls of ``PyncetteContext``, one module for each kind; ``pyncette.context`` is their front.

All of them write through ``requests``: single writes of many callers are made together, and a
write whose record has changed meanwhile is decided again from the record as it is now. Which change
follows from a call is decided in ``pyncette.engine.rules``.
"""
