"""Public holidays as a calendar."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime

import pytest

from pyncette import Context, Pyncette
from pyncette.calendars import holidays
from pyncette.schedule import Calendar, Cron


def test_the_holidays_of_a_country_and_of_a_part_of_it_are_known() -> None:
    germany, bavaria = holidays("DE"), holidays("DE", subdivision="BY")
    unity, epiphany = date(2026, 10, 3), date(2026, 1, 6)
    assert (germany(unity), germany(epiphany)) == (True, False)
    assert (bavaria(unity), bavaria(epiphany)) == (True, True)
    assert germany(date(2026, 10, 5)) is False


def test_a_task_does_not_run_on_public_holidays() -> None:
    app = Pyncette()
    app.calendar("bavaria")(holidays("DE", subdivision="BY"))

    @app.task(schedule=Cron("0 9 * * MON-FRI", "Europe/Berlin") - Calendar("bavaria"))
    async def report(context: Context) -> None: ...

    new_year = datetime(2026, 1, 1, tzinfo=UTC)
    assert report.get_next_execution(new_year, None) == datetime(2026, 1, 2, 8, tzinfo=UTC)
    monday = datetime(2026, 1, 5, 12, tzinfo=UTC)
    assert report.get_next_execution(monday, None) == datetime(2026, 1, 7, 8, tzinfo=UTC)


def test_categories_of_holidays_can_be_chosen() -> None:
    catholic = holidays("DE", subdivision="BY", categories=["catholic"])
    assert catholic(date(2026, 8, 15))
    assert not catholic(date(2026, 10, 3))


@pytest.mark.parametrize(
    ("country", "subdivision", "complaint"),
    [
        ("XX", None, "No holidays are known of 'XX'"),
        ("DE", "QQ", "No holidays are known of 'DE-QQ'"),
    ],
)
def test_an_unknown_country_or_part_is_refused(
    country: str, subdivision: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        holidays(country, subdivision=subdivision)


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="No holidays are known of 'DE'"):
        holidays("DE", categories=["silly"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(ImportError, match=r"pip install 'pyncette\[holidays\]'"):
        holidays("DE")
