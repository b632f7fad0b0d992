"""Functions for ``app.calendar``: public holidays, through the ``holidays`` package (an extra)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date


def holidays(
    country: str, *, subdivision: str | None = None, categories: Iterable[str] | None = None
) -> Callable[[date], bool]:
    """The public holidays of a country, for ``app.calendar("…")(holidays("DE"))``.

    They are worked out for a year when it is first asked for. Governments change them at short
    notice: keep the package up to date on all machines.

    Args:
        country: ISO 3166-1 code, such as ``"DE"``.
        subdivision: ISO 3166-2 code of a part of it, such as ``"BY"``.
        categories: Categories of holidays that the package knows for the country, such as
            ``["public", "bank"]``; public ones if not given.

    Returns:
        A function that says of a day whether it is a holiday.

    Raises:
        ValueError: The package does not know the country, the subdivision or a category.
        ImportError: The package is not installed.
    """
    try:
        from holidays import country_holidays
    except ImportError as error:
        raise ImportError(
            "Public holidays need the holidays package: pip install 'pyncette[holidays]'"
        ) from error
    try:
        days = country_holidays(
            country,
            subdiv=subdivision,
            categories=None if categories is None else tuple(categories),
        )
    except (NotImplementedError, ValueError) as error:
        place = country if subdivision is None else f"{country}-{subdivision}"
        raise ValueError(f"No holidays are known of {place!r}: {error}") from None

    def is_holiday(day: date) -> bool:
        return day in days

    return is_holiday
