"""The grammar of cron expressions, element by element, and every error."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from pyncette.schedule import Cron, seconds_may_be_first
from pyncette.schedule.cron import compile_cron


def occurrences(expression: str, start: datetime, end: datetime) -> list[datetime]:
    cron = Cron(expression)
    found = []
    instant: datetime | None = start - timedelta(microseconds=1)
    while instant is not None and (instant := cron.next_after(instant)) is not None:
        if instant >= end:
            break
        found.append(instant)
    return found


def days_of(expression: str, year: int, month: int) -> list[int]:
    start = datetime(year, month, 1, tzinfo=UTC)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return [found.day for found in occurrences(expression, start, end)]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ("*", range(60)),
        ("0", [0]),
        ("59", [59]),
        ("05", [5]),
        ("1,2,40", [1, 2, 40]),
        ("40,2,2", [2, 40]),
        ("10-13", [10, 11, 12, 13]),
        ("7-7", [7]),
        ("*/20", [0, 20, 40]),
        ("*/7", [0, 7, 14, 21, 28, 35, 42, 49, 56]),
        ("10-40/15", [10, 25, 40]),
        ("5/15", [5, 20, 35, 50]),
        ("0/30", [0, 30]),
        ("55-4", [0, 1, 2, 3, 4, 55, 56, 57, 58, 59]),
        ("50-10/10", [0, 10, 50]),
        ("55-5/7", [2, 55]),
        ("*/20,7", [0, 7, 20, 40]),
        ("0-5/5,30-31", [0, 5, 30, 31]),
        ("*/90", [0]),
        ("35-35/2", [35]),
        ("0-0/5", [0]),
    ],
)
def test_minutes_are_read_as(minutes: str, expected: list[int]) -> None:
    start = datetime(2026, 5, 1, 8, tzinfo=UTC)
    found = occurrences(f"{minutes} * * * *", start, start + timedelta(hours=1))
    assert [instant.minute for instant in found] == list(expected)


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ("*", range(24)),
        ("22-2", [0, 1, 2, 22, 23]),
        ("22-2/2", [0, 2, 22]),
        ("20/2", [20, 22]),
        ("9-17/4", [9, 13, 17]),
        ("0,12", [0, 12]),
    ],
)
def test_hours_are_read_as(hours: str, expected: list[int]) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    found = occurrences(f"0 {hours} * * *", start, start + timedelta(days=1))
    assert [instant.hour for instant in found] == list(expected)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ("*", range(60)),
        ("*/10", [0, 10, 20, 30, 40, 50]),
        ("7", [7]),
        ("58-1", [0, 1, 58, 59]),
    ],
)
def test_seconds_stand_last_of_six_fields(seconds: str, expected: list[int]) -> None:
    start = datetime(2026, 5, 1, 8, 30, tzinfo=UTC)
    found = occurrences(f"30 8 * * * {seconds}", start, start + timedelta(days=1))
    assert [instant.second for instant in found] == list(expected)
    assert {instant.minute for instant in found} == {30}


@pytest.mark.parametrize(
    ("months", "expected"),
    [
        ("*", range(1, 13)),
        ("3", [3]),
        ("MAR", [3]),
        ("mar,Jun", [3, 6]),
        ("nov-FEB", [1, 2, 11, 12]),
        ("NOV-2", [1, 2, 11, 12]),
        ("10-2/2", [2, 10, 12]),
        ("2/5", [2, 7, 12]),
        ("*/6", [1, 7]),
    ],
)
def test_months_are_read_as(months: str, expected: list[int]) -> None:
    found = occurrences(
        f"0 0 1 {months} *", datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    )
    assert [instant.month for instant in found] == list(expected)


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        # 1 June 2026 was a Monday: the days 1 to 7 are Monday to Sunday.
        ("*", [1, 2, 3, 4, 5, 6, 7]),
        ("0", [7]),
        ("7", [7]),
        ("SUN", [7]),
        ("mon", [1]),
        ("1,WED", [1, 3]),
        ("FRI-MON", [1, 5, 6, 7]),
        ("5-1", [1, 5, 6, 7]),
        ("5-7", [5, 6, 7]),
        ("5-7/2", [5, 7]),
        ("7-2", [1, 2, 7]),
        ("7-7", [7]),
        ("0-7", [1, 2, 3, 4, 5, 6, 7]),
        ("6-0", [6, 7]),
        ("MON-5", [1, 2, 3, 4, 5]),
        ("*/2", [2, 4, 6, 7]),
        ("5/2", [5]),
        ("1/2", [1, 3, 5]),
        ("7/3", [3, 6, 7]),
        ("FRI-TUE/2", [2, 5, 7]),
    ],
)
def test_weekdays_are_read_as(weekdays: str, expected: list[int]) -> None:
    found = occurrences(
        f"0 0 * * {weekdays}", datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 8, tzinfo=UTC)
    )
    assert [instant.day for instant in found] == expected


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        ("MON#1", [1]),
        ("1#2", [8]),
        ("MON#5", [29]),
        ("TUE#5", [30]),
        ("WED#5", []),
        ("MON#1,MON#3", [1, 15]),
        ("MON,TUE#2", [1, 8, 9, 15, 22, 29]),
        ("MON-WED#2", [8, 9, 10]),
        ("0#1", [7]),
        ("7#1", [7]),
        ("L5", [26]),
        ("5L", [26]),
        ("FRIL", [26]),
        ("lfri", [26]),
        ("7L", [28]),
        ("L0", [28]),
        ("L1", [29]),
        ("L2,SUN#1", [7, 30]),
    ],
)
def test_weekdays_are_counted_within_the_month(weekdays: str, expected: list[int]) -> None:
    assert days_of(f"0 0 * * {weekdays}", 2026, 6) == expected


@pytest.mark.parametrize(
    ("days", "year", "month", "expected"),
    [
        ("L", 2026, 2, [28]),
        ("L", 2028, 2, [29]),
        ("L", 2100, 2, [28]),
        ("L", 2000, 2, [29]),
        ("l,15", 2026, 4, [15, 30]),
        ("25-5", 2026, 2, [1, 2, 3, 4, 5, 25, 26, 27, 28]),
        ("25-5/3", 2026, 1, [3, 25, 28, 31]),
        ("31", 2026, 4, []),
        ("15W", 2026, 8, [14]),  # the 15th is a Saturday
        ("15W", 2026, 11, [16]),  # a Sunday
        ("15w", 2026, 12, [15]),  # a Tuesday
        ("1W", 2026, 8, [3]),  # a Saturday, but July is another month
        ("31W", 2026, 5, [29]),  # a Sunday, but June is another month
        ("31W", 2026, 1, [30]),  # a Saturday
        ("31W", 2026, 4, []),  # there is none
        ("1W,15W", 2026, 6, [1, 15]),
        ("LW", 2026, 5, [29]),
        ("LW", 2026, 6, [30]),
        ("?", 2026, 2, list(range(1, 29))),
    ],
)
def test_days_of_the_month_are_read_as(
    days: str, year: int, month: int, expected: list[int]
) -> None:
    assert days_of(f"0 0 {days} * *", year, month) == expected


@pytest.mark.parametrize(
    ("days", "weekdays", "expected"),
    [
        ("13", "FRI", [5, 12, 13, 19, 26]),  # both restricted: either
        ("*/2", "MON", [1, 15, 29]),  # a field that starts with * is unrestricted: both
        ("13", "*/2", [13]),  # Saturday the 13th
        ("12", "*/2", []),  # Friday the 12th
        ("?", "MON", [1, 8, 15, 22, 29]),
        ("L", "MON", [1, 8, 15, 22, 29, 30]),
        ("1-31", "MON", list(range(1, 31))),  # restricted, though it names every day
        ("*,13", "MON", [1, 8, 15, 22, 29]),
        ("1-7", "MON#2", [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_both_day_fields_together_select(days: str, weekdays: str, expected: list[int]) -> None:
    assert days_of(f"0 0 {days} * {weekdays}", 2026, 6) == expected


@pytest.mark.parametrize(
    ("alias", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("@HOURLY", "0 * * * *"),
    ],
)
def test_an_alias_stands_for(alias: str, expression: str) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
    assert occurrences(alias, start, end) == occurrences(expression, start, end)


@pytest.mark.parametrize(
    ("years", "expected"),
    [
        ("*", range(2020, 2032)),
        ("2027", [2027]),
        ("2024-2028/2", [2024, 2026, 2028]),
        ("2021,2030", [2021, 2030]),
        ("*/4", [2022, 2026, 2030]),  # counted from 1970
        ("2029/1", [2029, 2030, 2031]),
        ("2031-2254", [2031]),
    ],
)
def test_the_year_stands_seventh(years: str, expected: list[int]) -> None:
    found = occurrences(
        f"0 0 1 1 * 0 {years}",
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2032, 1, 1, tzinfo=UTC),
    )
    assert [instant.year for instant in found] == list(expected)


def test_a_year_that_is_over_is_valid_but_has_no_further_occurrence() -> None:
    cron = Cron("0 12 1 6 * 0 2020")
    assert cron.next_after(datetime(2020, 1, 1, tzinfo=UTC)) == datetime(2020, 6, 1, 12, tzinfo=UTC)
    assert cron.next_after(datetime(2020, 6, 1, 12, tzinfo=UTC)) is None
    assert cron.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_a_year_is_found_from_long_before() -> None:
    cron = Cron("0 12 29 2 * 0 2248")
    assert cron.next_after(datetime(1, 1, 1, tzinfo=UTC)) == datetime(2248, 2, 29, 12, tzinfo=UTC)
    assert cron.next_after(datetime(1971, 3, 1, tzinfo=UTC)) == datetime(
        2248, 2, 29, 12, tzinfo=UTC
    )


def test_a_leap_day_is_found_over_a_century_without_one() -> None:
    assert Cron("0 0 29 2 *").next_after(datetime(2096, 3, 1, tzinfo=UTC)) == datetime(
        2104, 2, 29, tzinfo=UTC
    )


def test_a_fifth_monday_of_february_is_found_after_28_years() -> None:
    assert Cron("0 0 * 2 MON#5").next_after(datetime(2016, 3, 1, tzinfo=UTC)) == datetime(
        2044, 2, 29, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("expression", "fixed_time"),
    [
        ("30 2 * * *", True),
        ("0-59 0-23 * * *", True),
        ("*/30 2 * * *", False),
        ("30 */2 * * *", False),
        ("* 2 * * *", False),
        ("30 * * * *", False),
        ("30 2 * * * *", True),
        ("0,*/30 2 * * *", True),
        ("@daily", True),
        ("@hourly", False),
    ],
)
def test_what_starts_with_a_star_is_a_rhythm_and_else_a_fixed_time(
    expression: str, fixed_time: bool
) -> None:
    assert compile_cron(expression).fixed_time is fixed_time


def test_whitespace_of_any_kind_separates_fields() -> None:
    assert Cron("  0\t9 *\n* *  ") == Cron("0 9 * * *")


def test_the_search_may_start_anywhere_without_regard_to_earlier_searches() -> None:
    compiled = compile_cron("15 6 3 * * 30")
    starts = [86_400 * day + second for day in range(0, 70, 3) for second in (0, 22_530, 22_531)]
    forwards = [compiled.first_at_or_after(start) for start in starts]
    backwards = [compiled.first_at_or_after(start) for start in reversed(starts)]
    assert forwards == backwards[::-1]


def test_many_months_do_not_disturb_each_other() -> None:
    start, end = datetime(1980, 1, 1, tzinfo=UTC), datetime(2010, 1, 1, tzinfo=UTC)
    found = occurrences("0 0 L * *", start, end)
    assert [instant.date() + timedelta(days=1) for instant in found] == [
        date(year + month // 12, month % 12 + 1, 1)
        for year in range(1980, 2010)
        for month in range(1, 13)
    ]
    assert len(compile_cron("0 0 L * *")._months_seen) <= 256


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("60 * * * *", "invalid minute '60': must be within 0 to 59"),
        ("* 24 * * *", "invalid hour '24': must be within 0 to 23"),
        ("* * 0 * *", "invalid day of month '0': must be within 1 to 31"),
        ("* * 32 * *", "invalid day of month '32': must be within 1 to 31"),
        ("* * * 13 *", "invalid month '13': must be within 1 to 12"),
        ("* * * 0 *", "invalid month '0': must be within 1 to 12"),
        ("* * * * 8", "invalid day of week '8': must be within 0 to 7"),
        ("* * * * * 60", "invalid second '60': must be within 0 to 59"),
        ("* * * * * 0 1969", "invalid year '1969': must be within 1970 to 2254"),
        ("* * * * * 0 2255", "invalid year '2255': must be within 1970 to 2254"),
        ("5-60 * * * *", "invalid minute '5-60': must be within 0 to 59"),
        ("1,99,2 * * * *", "invalid minute '99': must be within 0 to 59"),
        ("12345678901 * * * *", "invalid minute '12345678901': must be within 0 to 59"),
        ("*/0 * * * *", "invalid minute '*/0': the step must be a number of 1 or more"),
        ("*/9999999999 * * * *", "the step must be a number of 1 or more"),
        ("* * * * * 0 2030-2027", "invalid year '2030-2027': the range is empty"),
        ("* * * FOO *", "invalid month 'FOO': 'FOO' is not a name here, known are JAN, FEB"),
        ("* * * MON *", "invalid month 'MON': 'MON' is not a name here"),
        ("* * * * JAN", "invalid day of week 'JAN': 'JAN' is not a name here, known are SUN"),
        ("MON * * * *", "invalid minute 'MON': 'MON' is not a name here"),
        ("* * * * SUNDAY", "invalid day of week 'SUNDAY': not understood"),
        ("1,,2 * * * *", "invalid minute '': not understood"),
        ("-5 * * * *", "invalid minute '-5': not understood"),
        ("+5 * * * *", "invalid minute '+5': not understood"),
        ("1.5 * * * *", "invalid minute '1.5': not understood"),
        ("1_0 * * * *", "invalid minute '1_0': not understood"),
        ("*5 * * * *", "invalid minute '*5': not understood"),
        ("5/ * * * *", "invalid minute '5/': not understood"),
        ("?/2 * * * *", "invalid minute '?/2': not understood"),
        ("? * * * *", "invalid minute '?': '?' may stand in the two day fields only"),
        ("* ? * * *", "invalid hour '?': '?' may stand in the two day fields only"),
        ("* 1,? * * *", "invalid hour '?': '?' may stand in the two day fields only"),
        ("* * * ? *", "invalid month '?': '?' may stand in the two day fields only"),
        ("* * * * * ?", "invalid second '?': '?' may stand in the two day fields only"),
        ("* * * * * 0 ?", "invalid year '?': '?' may stand in the two day fields only"),
        ("1-2-3 * * * *", "invalid minute '1-2-3': not understood"),
        ("L * * * *", "invalid minute 'L': not understood"),
        ("* * L-3 * *", "invalid day of month 'L-3': not understood"),
        ("* * 1-5W * *", "invalid day of month '1-5W': not understood"),
        ("* * 32W * *", "invalid day of month '32W': must be within 1 to 31"),
        ("* * 0W * *", "invalid day of month '0W': must be within 1 to 31"),
        ("* * * * L", "invalid day of week 'L': not understood"),
        ("* * * * 8L", "invalid day of week '8L': must be within 0 to 7"),
        ("* * * * LFOO", "invalid day of week 'LFOO': 'FOO' is not a name here"),
        ("* * * * MON#0", "invalid day of week 'MON#0': the number after # must be within 1 to 5"),
        ("* * * * MON#6", "invalid day of week 'MON#6': the number after # must be within 1 to 5"),
        ("* * * * MON#11", "the number after # must be within 1 to 5"),
        ("* * * * 8#1", "must be within 0 to 7"),
        ("* * * * MON#", "invalid day of week 'MON#': not understood"),
        ("* * MON#1 * *", "invalid day of month 'MON#1': not understood"),
        ("@reboot", "unknown alias, known are @yearly, "),
        ("", "has 0 fields, must have 5, 6 or 7"),
        ("* * * *", "has 4 fields, must have 5, 6 or 7"),
        ("* * * * * * * *", "has 8 fields, must have 5, 6 or 7"),
        ("٣ * * * *", "only ASCII characters are understood"),
        ("* * * * ſun", "only ASCII characters are understood"),
        ("0 0 30 2 *", "never occurs: no day from 1970 to 2254 has day of month '30', month '2'"),
        ("0 0 31 2,4,6,9,11 *", "never occurs"),
        ("0 0 31W APR *", "never occurs"),
        ("0 0 29 2 * 0 2026", "never occurs"),
        ("0 0 29 2 * 0 2254", "day of month '29', month '2', day of week '*' and year '2254'"),
        ("0 0 * 2 MON#5 0 2026", "never occurs"),
        ("0," * 3000 + "0 * * * *", "longer than 4096 characters"),
    ],
)
def test_an_invalid_expression_is_refused_with_field_and_value(
    expression: str, complaint: str
) -> None:
    with pytest.raises(ValueError) as refused:
        Cron(expression)
    message = str(refused.value)
    assert message.startswith("Invalid cron expression ")
    assert complaint in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 12 * * ?",
        "0 0 0 * * *",
        "0 30 8 * * *",
        "0 15 10 ? * *",
        "0 15 10 * * ? 2026",
        "0 0/5 14,18 * * ?",
        "0 15 10 ? * MON-FRI",
        "0 15 10 ? * 6L",
        "0 0 12 1/5 * ?",
        "0 11 11 11 11 ?",
        "0 30 10 ? JAN MON#1",
    ],
)
def test_an_expression_with_the_second_first_is_refused_with_that_hint(expression: str) -> None:
    with pytest.raises(ValueError, match="reads like an expression with the second first"):
        Cron(expression)


@pytest.mark.parametrize("expression", ["61 0 12 * * ?", "0 0 30 2 * ?", "0 0 30 2 *"])
def test_what_would_be_wrong_in_either_order_gets_no_such_hint(expression: str) -> None:
    with pytest.raises(ValueError, match="Invalid cron expression") as refused:
        Cron(expression)
    assert "second first" not in str(refused.value)


@pytest.mark.parametrize(
    ("expression", "suspected"),
    [
        ("0 0 12 * * *", True),
        ("0 3 8 * * * 2026", True),
        ("* * * * * *", False),
        ("0 * * * * *", True),
        ("*/10 * * * * *", True),
        ("0 */5 * * * *", True),
        ("0 0/30 8-10 * * *", True),
        ("* 12 * * * *", False),
        ("0 0 12 * * 0", False),
        ("0 0 12 * * */10", False),
        ("*/5 0 12 * * *", True),
        ("0 0 12 * *", False),
    ],
)
def test_every_second_of_some_minutes_was_perhaps_meant_otherwise(
    expression: str, suspected: bool
) -> None:
    Cron(expression)
    assert seconds_may_be_first(expression) is suspected


def test_an_expression_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="a cron expression is a str, not int"):
        Cron(5)  # type: ignore[arg-type]
