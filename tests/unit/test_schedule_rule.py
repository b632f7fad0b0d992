"""Recurrence rules: what they mean, what is refused, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pyncette.schedule import INSTANT_LIMIT, Rule, instant_of
from pyncette.schedule import rrule as compiled

START = datetime(2026, 1, 1, 9, tzinfo=UTC)  # a Thursday


def wall(*parts: int) -> datetime:
    """A time on the clocks of the zone of a rule."""
    return datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001


def found(rule: Rule, number: int, after: datetime | None = None) -> list[str]:
    instant = rule.next_after(rule.start - timedelta(seconds=1) if after is None else after)
    shown: list[str] = []
    while instant is not None and len(shown) < number:
        shown.append(instant.astimezone(rule.timezone).strftime("%y-%m-%d %H:%M:%S"))
        instant = rule.next_after(instant)
    return shown


def days(rule: str, number: int = 5, start: datetime = START) -> list[str]:
    return [text.split()[0] for text in found(Rule(rule, start=start), number)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=DAILY;INTERVAL=10", "26-01-01 26-01-11 26-01-21 26-01-31 26-02-10"),
        ("FREQ=DAILY;BYMONTH=1;BYDAY=SU", "26-01-04 26-01-11 26-01-18 26-01-25 27-01-03"),
        ("FREQ=WEEKLY", "26-01-01 26-01-08 26-01-15 26-01-22 26-01-29"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR", "26-01-02 26-01-12 26-01-16 26-01-26 26-01-30"),
        (
            "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,FR;WKST=SU",
            "26-01-02 26-01-11 26-01-16 26-01-25 26-01-30",
        ),
        ("FREQ=WEEKLY;BYDAY=MO,WE,FR;BYSETPOS=-1", "26-01-02 26-01-09 26-01-16 26-01-23 26-01-30"),
        # The week has its first day before the start: RFC 5545 counts the whole week.
        ("FREQ=WEEKLY;BYDAY=MO,WE,FR;BYSETPOS=1", "26-01-05 26-01-12 26-01-19 26-01-26 26-02-02"),
        ("FREQ=MONTHLY", "26-01-01 26-02-01 26-03-01 26-04-01 26-05-01"),
        ("FREQ=MONTHLY;BYDAY=2TU", "26-01-13 26-02-10 26-03-10 26-04-14 26-05-12"),
        ("FREQ=MONTHLY;BYDAY=-1FR", "26-01-30 26-02-27 26-03-27 26-04-24 26-05-29"),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", "26-01-31 26-02-28 26-03-31 26-04-30 26-05-31"),
        ("FREQ=MONTHLY;BYMONTHDAY=31", "26-01-31 26-03-31 26-05-31 26-07-31 26-08-31"),
        (
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
            "26-01-30 26-02-27 26-03-31 26-04-30 26-05-29",
        ),
        ("FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13", "26-02-13 26-03-13 26-11-13 27-08-13 28-10-13"),
        # A plain day and a numbered one: either.
        ("FREQ=MONTHLY;BYDAY=SU,1TU", "26-01-04 26-01-06 26-01-11 26-01-18 26-01-25"),
        ("FREQ=YEARLY", "26-01-01 27-01-01 28-01-01 29-01-01 30-01-01"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", "28-02-29 32-02-29 36-02-29 40-02-29 44-02-29"),
        ("FREQ=YEARLY;BYMONTH=6,7", "26-06-01 26-07-01 27-06-01 27-07-01 28-06-01"),
        ("FREQ=YEARLY;BYDAY=20MO", "26-05-18 27-05-17 28-05-15 29-05-14 30-05-20"),
        ("FREQ=YEARLY;BYMONTH=11;BYDAY=4TH", "26-11-26 27-11-25 28-11-23 29-11-22 30-11-28"),
        ("FREQ=YEARLY;BYYEARDAY=100,-1", "26-04-10 26-12-31 27-04-10 27-12-31 28-04-09"),
        ("FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO", "26-05-11 27-05-17 28-05-15 29-05-14 30-05-13"),
        ("FREQ=YEARLY;BYWEEKNO=-1;BYDAY=SU", "27-01-03 28-01-02 28-12-31 29-12-30 30-12-29"),
        # 2026 has 53 weeks; its last Saturday lies in the next year.
        ("FREQ=YEARLY;BYWEEKNO=53;BYDAY=SA", "27-01-02 33-01-01 38-01-02 44-01-02 49-01-02"),
        (
            "FREQ=YEARLY;INTERVAL=4;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8",
            "26-11-03 30-11-05 34-11-07 38-11-02 42-11-04",
        ),
    ],
)
def test_the_days_of_a_rule(rule: str, expected: str) -> None:
    assert " ".join(days(rule)) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=DAILY;BYHOUR=8,17;BYMINUTE=30", "01 17:30:00, 02 08:30:00, 02 17:30:00"),
        ("FREQ=DAILY;BYHOUR=8,12,17;BYSETPOS=-1,1", "01 17:00:00, 02 08:00:00, 02 17:00:00"),
        ("FREQ=DAILY;BYSECOND=5,7", "01 09:00:05, 01 09:00:07, 02 09:00:05"),
        (
            "FREQ=WEEKLY;BYDAY=TH,FR;BYHOUR=8,9;BYSETPOS=2,3",
            "01 09:00:00, 02 08:00:00, 08 09:00:00",
        ),
        ("FREQ=HOURLY", "01 09:00:00, 01 10:00:00, 01 11:00:00"),
        ("FREQ=HOURLY;INTERVAL=9;BYMINUTE=5,35", "01 09:05:00, 01 09:35:00, 01 18:05:00"),
        ("FREQ=HOURLY;BYHOUR=8,9;BYDAY=SA", "03 08:00:00, 03 09:00:00, 10 08:00:00"),
        ("FREQ=MINUTELY;INTERVAL=700", "01 09:00:00, 01 20:40:00, 02 08:20:00"),
        ("FREQ=MINUTELY;INTERVAL=7;BYHOUR=23", "01 23:00:00, 01 23:07:00, 01 23:14:00"),
        ("FREQ=MINUTELY;BYMINUTE=59;BYSECOND=1,3", "01 09:59:01, 01 09:59:03, 01 10:59:01"),
        ("FREQ=SECONDLY;INTERVAL=50", "01 09:00:00, 01 09:00:50, 01 09:01:40"),
        (
            "FREQ=SECONDLY;INTERVAL=7;BYSECOND=0;BYMINUTE=0",
            "01 09:00:00, 01 16:00:00, 01 23:00:00",
        ),
        ("FREQ=SECONDLY;INTERVAL=86401", "01 09:00:00, 02 09:00:01, 03 09:00:02"),
    ],
)
def test_the_times_of_a_rule(rule: str, expected: str) -> None:
    shown = [text.removeprefix("26-01-") for text in found(Rule(rule, start=START), 3)]
    assert ", ".join(shown) == expected


def test_a_rule_has_nothing_before_its_start_and_may_begin_later() -> None:
    assert found(Rule("FREQ=DAILY;BYHOUR=8", start=START), 1) == ["26-01-02 08:00:00"]
    rule = Rule("FREQ=WEEKLY;BYDAY=MO", start=START)
    assert rule.next_after(datetime(1999, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 5, 9, tzinfo=UTC)


def test_count_counts_from_the_start_and_until_is_included() -> None:
    assert len(days("FREQ=DAILY;COUNT=3", 9)) == 3
    assert len(days("FREQ=WEEKLY;BYDAY=SU,MO;COUNT=5", 9)) == 5
    assert days("FREQ=DAILY;UNTIL=20260103T090000Z", 9)[-1] == "26-01-03"
    assert days("FREQ=DAILY;UNTIL=20260103T085959Z", 9)[-1] == "26-01-02"
    assert days("FREQ=DAILY;UNTIL=20260103T090000", 9)[-1] == "26-01-03"
    assert days("FREQ=DAILY;UNTIL=20260103", 9)[-1] == "26-01-03"
    tokyo = Rule(
        "FREQ=DAILY;UNTIL=20260103T000000Z", start=wall(2026, 1, 1, 9), timezone="Asia/Tokyo"
    )
    assert found(tokyo, 9)[-1] == "26-01-03 09:00:00"
    local = Rule(
        "FREQ=DAILY;UNTIL=20260103T085959", start=wall(2026, 1, 1, 9), timezone="Asia/Tokyo"
    )
    assert found(local, 9)[-1] == "26-01-02 09:00:00"
    assert local.next_after(datetime(2026, 5, 1, tzinfo=UTC)) is None
    assert tokyo.next_after(datetime(2026, 5, 1, tzinfo=UTC)) is None


def test_a_count_that_reaches_beyond_2255_does_not_end_before() -> None:
    rule = Rule("FREQ=YEARLY;COUNT=9999", start=START)
    assert rule.next_after(datetime(2254, 1, 1, tzinfo=UTC)) == datetime(2254, 1, 1, 9, tzinfo=UTC)
    assert rule.next_after(datetime(2254, 1, 2, tzinfo=UTC)) is None
    assert rule.next(INSTANT_LIMIT) is None


# When the clocks change, in Berlin on 29 March and 25 October 2026.


def in_berlin(rule: str, day: str) -> list[str]:
    start = wall(2026, 1, 1, 2, 30)
    made = Rule(rule, start=start, timezone="Europe/Berlin")
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    shown = found(made, 60, begin - timedelta(seconds=1))
    return [text[9:14] for text in shown if f"20{text[:8]}" == day]


@pytest.mark.parametrize(
    ("rule", "spring", "autumn"),
    [
        ("FREQ=DAILY", ["03:00"], ["02:30"]),
        ("FREQ=DAILY;BYHOUR=2,3", ["03:00", "03:30"], ["02:30", "03:30"]),
        ("FREQ=DAILY;BYMINUTE=0,15,30", ["03:00"], ["02:00", "02:15", "02:30"]),
        (
            "FREQ=HOURLY;BYHOUR=1,2,3",
            ["01:30", "03:30"],
            ["01:30", "02:30", "02:30", "03:30"],
        ),
        (
            "FREQ=MINUTELY;INTERVAL=30;BYHOUR=2",
            [],
            ["02:00", "02:30", "02:00", "02:30"],
        ),
    ],
)
def test_a_change_of_the_clocks_does_to_a_rule_what_it_does_to_cron(
    rule: str, spring: list[str], autumn: list[str]
) -> None:
    assert in_berlin(rule, "2026-03-29") == spring
    assert in_berlin(rule, "2026-10-25") == autumn


# The start.


def test_the_zone_of_a_rule_is_said_or_that_of_its_start() -> None:
    tokyo = timezone(timedelta(hours=9))
    for rule in (
        Rule("FREQ=DAILY", start=wall(2026, 1, 1, 9), timezone="UTC+09:00"),
        Rule("FREQ=DAILY", start=datetime(2026, 1, 1, 9, 0, 0, 123, tzinfo=tokyo)),
        Rule("FREQ=DAILY", start=datetime(2026, 1, 1, tzinfo=UTC), timezone=tokyo),
    ):
        assert rule.timezone_name == "UTC+09:00"
        assert rule.start == datetime(2026, 1, 1, tzinfo=UTC)
        assert rule == Rule("FREQ=DAILY", start=datetime(2026, 1, 1, 9, tzinfo=tokyo))
    assert Rule("FREQ=DAILY", start=wall(2026, 1, 1)).timezone_name == "UTC"


def test_a_rule_is_kept_in_its_normal_form() -> None:
    rule = Rule(
        " rrule:byday=we,MO,-1fr,+1TU;interval=01;wkst=mo;bymonth=3,1,3;freq=monthly;count=07; ",
        start=START,
    )
    assert rule.rule == "FREQ=MONTHLY;COUNT=7;BYMONTH=1,3;BYDAY=-1FR,MO,WE,1TU"
    assert rule == Rule(rule.rule, start=START)
    assert rule != Rule(rule.rule, start=START + timedelta(seconds=1))
    assert rule != Rule("FREQ=MONTHLY", start=START)
    text: object = rule.rule
    assert rule != text
    assert Rule("FREQ=WEEKLY;WKST=SU;INTERVAL=2;UNTIL=20270101", start=START).rule == (
        "FREQ=WEEKLY;INTERVAL=2;UNTIL=20270101;WKST=SU"
    )


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", "'' is not of the form NAME=VALUE"),
        ("DAILY", "'DAILY' is not of the form NAME=VALUE"),
        ("FREQ=", "'FREQ=' is not of the form"),
        ("INTERVAL=2", "FREQ must be one of YEARLY, .*, not ''"),
        ("FREQ=FORTNIGHTLY", "FREQ must be one of YEARLY, .*, not 'FORTNIGHTLY'"),
        ("FREQ=DAILY;FREQ=DAILY", "FREQ is given twice"),
        ("FREQ=DAILY;BYEASTER=0", "'BYEASTER' is not a part of a rule, known are FREQ"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL must be a number from 1 to 100,000, not '0'"),
        ("FREQ=DAILY;INTERVAL=100001", "INTERVAL must be a number from 1"),
        ("FREQ=DAILY;INTERVAL=two", "INTERVAL must be a number from 1"),
        ("FREQ=DAILY;COUNT=10001", "COUNT must be a number from 1 to 10,000, not '10001'"),
        ("FREQ=DAILY;COUNT=-1", "COUNT must be a number"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20270101", "COUNT and UNTIL exclude each other"),
        ("FREQ=DAILY;UNTIL=tomorrow", "UNTIL must be like 20261231T225959Z"),
        ("FREQ=DAILY;UNTIL=20261301", "unconverted data|does not match|month"),
        ("FREQ=DAILY;WKST=XX", "WKST must be one of MO, .*, not 'XX'"),
        ("FREQ=DAILY;BYHOUR=24", "BYHOUR must be within 0 to 23, not '24'"),
        ("FREQ=DAILY;BYHOUR=-1", "BYHOUR must be within 0 to 23, not '-1'"),
        ("FREQ=DAILY;BYMINUTE=60", "BYMINUTE must be within 0 to 59"),
        ("FREQ=DAILY;BYSECOND=60", "BYSECOND must be within 0 to 59"),
        ("FREQ=DAILY;BYMONTH=13", "BYMONTH must be within 1 to 12"),
        ("FREQ=DAILY;BYMONTH=JAN", "BYMONTH must be within 1 to 12, not 'JAN'"),
        ("FREQ=DAILY;BYMONTHDAY=0", "BYMONTHDAY must be within 1 to 31 or -31 to -1, not '0'"),
        ("FREQ=DAILY;BYMONTHDAY=-32", "BYMONTHDAY must be within 1 to 31 or -31 to -1"),
        ("FREQ=YEARLY;BYYEARDAY=367", "BYYEARDAY must be within"),
        ("FREQ=YEARLY;BYWEEKNO=54;BYDAY=MO", "BYWEEKNO must be within"),
        ("FREQ=DAILY;BYDAY=MON", "BYDAY must be days such as MO, 2MO"),
        ("FREQ=MONTHLY;BYDAY=0MO", "BYDAY must be days such as MO, 2MO"),
        ("FREQ=YEARLY;BYDAY=54MO", "BYDAY must be days"),
        ("FREQ=MONTHLY;BYSETPOS=0;BYDAY=MO", "BYSETPOS must be within"),
        ("FREQ=MONTHLY;BYSETPOS=1", "BYSETPOS chooses from other BY… parts, and there are none"),
        ("FREQ=MONTHLY;BYWEEKNO=1;BYDAY=MO", "BYWEEKNO cannot be combined with FREQ=MONTHLY: week"),
        ("FREQ=YEARLY;BYWEEKNO=1", "BYWEEKNO needs BYDAY"),
        (
            "FREQ=YEARLY;BYWEEKNO=1;BYDAY=1MO",
            "BYDAY with a number cannot be combined with BYWEEKNO",
        ),
        ("FREQ=DAILY;BYYEARDAY=1", "BYYEARDAY cannot be combined with FREQ=DAILY: RFC 5545"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY cannot be combined with FREQ=WEEKLY"),
        ("FREQ=WEEKLY;BYDAY=1MO", "BYDAY with a number cannot be combined with FREQ=WEEKLY"),
        ("FREQ=HOURLY;BYDAY=1MO", "BYDAY with a number cannot be combined with FREQ=HOURLY"),
        (
            "FREQ=HOURLY;BYMINUTE=1,2;BYSETPOS=1",
            "BYSETPOS cannot be combined with FREQ=HOURLY: its search could not be bounded",
        ),
        (
            "FREQ=DAILY;BYMINUTE={0};BYSECOND={0}".format(",".join(map(str, range(60)))),
            "name 3,600 times together, at most 1,440 are supported",
        ),
        ("DTSTART:20260101T090000Z\nRRULE:FREQ=DAILY", "DTSTART is the argument start"),
        ("RRULE:FREQ=DAILY\nEXDATE:20260102", r"days are excluded by rule - Calendar"),
        ("FREQ=DAILY;BYMONTH=１", "only ASCII characters are understood"),
        ("FREQ=DAILY;BYMONTH=" + "1," * 600 + "1", "longer than 1000 characters"),
    ],
)
def test_a_wrong_rule_is_refused(rule: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        Rule(rule, start=START)
    assert str(refused.value).startswith("Invalid recurrence rule ")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: Rule(5, start=START), TypeError, "a recurrence rule is a str, not int"),  # type: ignore[arg-type]
        (
            lambda: Rule("FREQ=DAILY", start=START.date()),  # type: ignore[arg-type]
            TypeError,
            "start is a datetime, not date",
        ),
        (
            lambda: Rule("FREQ=DAILY", start=START, timezone="Nowhere"),
            ValueError,
            "Invalid timezone specifier 'Nowhere'",
        ),
        (
            lambda: Rule("FREQ=DAILY", start=wall(1899, 12, 31)),
            ValueError,
            "must lie from 1900 to 2254",
        ),
        (
            lambda: Rule("FREQ=DAILY", start=wall(2255, 1, 1)),
            ValueError,
            "must lie from 1900 to 2254",
        ),
    ],
)
def test_a_wrong_start_or_zone_is_refused(
    make: Callable[[], Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        make()


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=MONTHLY;BYDAY=5MO;BYMONTHDAY=1",
        "FREQ=WEEKLY;INTERVAL=100000;BYMONTH=2",
        "FREQ=DAILY;BYHOUR=1,2;BYSETPOS=3",
        "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=HOURLY;INTERVAL=24;BYHOUR=8",
        "FREQ=MINUTELY;INTERVAL=60;BYMINUTE=1",
        "FREQ=SECONDLY;INTERVAL=2;BYSECOND=1",
        "FREQ=SECONDLY;INTERVAL=90000;BYSECOND=1",
        "FREQ=DAILY;UNTIL=20251231T235959Z",
        "FREQ=DAILY;UNTIL=20251231",
    ],
)
def test_a_rule_that_never_occurs_is_refused_and_not_searched_for_ever(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count_looks(monkeypatch)
    with pytest.raises(ValueError, match="never occurs: it would never run from 2026-01-01"):
        Rule(rule, start=START)
    assert looks[0] < 100_000


# What it costs.


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many days are looked at."""
    looks = [0]
    matches = compiled._Days._matches

    def counted(self: Any, day: Any) -> bool:
        looks[0] += 1
        return matches(self, day)

    monkeypatch.setattr(compiled._Days, "_matches", counted)
    return looks


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=YEARLY;BYDAY=MO;BYSETPOS=-1",
        "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=1",
        "FREQ=WEEKLY;INTERVAL=3;BYDAY=MO,WE",
        "FREQ=DAILY;INTERVAL=17;BYDAY=MO,TU,WE,TH,FR",
        "FREQ=HOURLY;INTERVAL=7;BYDAY=MO",
        "FREQ=MINUTELY;INTERVAL=77;BYMONTH=1,2,3,4,5,6,7,8,9,10,11",
        "FREQ=SECONDLY;INTERVAL=7777",
        "FREQ=DAILY;COUNT=9000",
    ],
)
def test_a_rule_that_began_long_ago_costs_what_one_costs_that_began_today(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Rule(rule, start=START)._form()
    old = Rule.stored(text[4], "19160101T090000", "UTC", None)
    looks = count_looks(monkeypatch)
    assert old.next(instant_of(datetime(2026, 5, 5, tzinfo=UTC))) is not None
    assert looks[0] <= 2 * 366
    before = looks[0]
    for _ in range(100):  # the same days are not looked at again
        assert old.next(instant_of(datetime(2026, 5, 5, tzinfo=UTC))) is not None
    assert looks[0] == before


@pytest.mark.parametrize("rule", ["FREQ=MONTHLY;BYDAY=MO", "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=1"])
def test_few_periods_are_kept(rule: str) -> None:
    made = Rule(rule, start=START)
    instant: datetime | None = START
    for _ in range(400):
        assert instant is not None
        instant = made.next_after(instant)
    finder: Any = made._compiled._finder
    assert len(finder._days._kept) <= compiled._PERIODS_KEPT
    assert len(finder._chosen) <= compiled._PERIODS_KEPT


def test_few_empty_beginnings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("FREQ=SECONDLY;INTERVAL=86399;BYHOUR=0", start=START.replace(hour=0))
    finder: Any = rule._compiled._finder
    monkeypatch.setattr(compiled, "DAY_S", 86_400)
    finder._empty.update(range(100_000, 200_000))
    assert found(rule, 2, datetime(2026, 4, 1, tzinfo=UTC))
    assert len(finder._empty) < 86_401
