"""Cron, Every and At as values: what they answer, their equality, and their stored text."""

from __future__ import annotations

import copy
import logging
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pyncette.schedule import (
    INSTANT_LIMIT,
    At,
    Cron,
    Every,
    NewerFormat,
    Schedule,
    UnreadableHere,
    dumps,
    instant_of,
    loads,
    parse_timezone,
)
from pyncette.schedule.instant import _warn_of_naive
from pyncette.schedule.zone import offsets_of

MINUTE = 60_000_000
HOUR = 60 * MINUTE
NOON = instant_of(datetime(2026, 5, 1, 12, tzinfo=UTC))

ONE_OF_EACH = [
    Cron("0 9 * * *"),
    Cron("0 9 * * *", "Europe/Berlin"),
    Cron("0 9 * * * 30 2030-2040", "UTC+5:30"),
    Every(timedelta(minutes=1)),
    Every(timedelta(microseconds=1)),
    At(datetime(2026, 5, 1, tzinfo=UTC)),
    At(datetime(1960, 5, 1, 1, 2, 3, 4, tzinfo=UTC)),
]


# Cron


def test_a_cron_occurrence_lies_strictly_after_the_instant() -> None:
    cron = Cron("0 * * * *")
    assert cron.next(NOON - 1) == NOON
    assert cron.next(NOON) == NOON + HOUR
    assert cron.next(NOON + 1) == NOON + HOUR


def test_a_cron_record_begins_with_the_first_occurrence_after_it_was_made() -> None:
    assert Cron("0 * * * *").first(NOON) == NOON + HOUR


def test_a_cron_record_goes_on_with_the_occurrence_after_the_planned_one() -> None:
    assert Cron("0 * * * *").following(NOON) == NOON + HOUR


def test_cron_skips_what_was_missed() -> None:
    assert Cron("0 * * * *").skip(NOON, NOON + 5 * HOUR + 1) == NOON + 6 * HOUR
    assert Cron("0 * * * *").skip(NOON, NOON + 5 * HOUR) == NOON + 6 * HOUR


def test_cron_skips_to_the_occurrence_after_the_planned_one_where_nothing_was_missed() -> None:
    assert Cron("0 * * * *").skip(NOON, NOON - 5 * HOUR) == NOON + HOUR


def test_cron_works_before_the_epoch() -> None:
    assert Cron("0 9 * * *", "Europe/Berlin").next_after(
        datetime(1955, 7, 1, 12, tzinfo=UTC)
    ) == datetime(1955, 7, 2, 8, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "UTC-12", "UTC+14"])
def test_cron_answers_from_the_earliest_instant_there_is(zone: str) -> None:
    cron = Cron("0 0 3 1 *", zone)
    found = cron.next_after(datetime.min.replace(tzinfo=UTC))
    assert found is not None
    assert found.astimezone(cron.timezone).isoformat().startswith("0001-01-03T00:00:00")


def test_cron_answers_from_before_the_earliest_instant_in_utc() -> None:
    earliest = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    assert Every(timedelta(hours=1)).next_after(earliest) == datetime(1, 1, 1, 1, tzinfo=UTC)
    assert Cron("0 0 * * *").next_after(earliest) == datetime(1, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "UTC-12", "UTC+14"])
def test_there_is_no_occurrence_in_2255_or_later(zone: str) -> None:
    hourly = Cron("0 * * * *", zone)
    last = datetime(2254, 12, 31, 23, tzinfo=UTC)
    assert hourly.next_after(last - timedelta(seconds=1)) == last
    assert hourly.next_after(last) is None
    assert hourly.next_after(datetime(2255, 1, 1, tzinfo=UTC)) is None
    assert hourly.next_after(datetime.max.replace(tzinfo=UTC)) is None


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC+14", "UTC-12"])
def test_the_last_year_ends_with_utc_and_not_with_the_zone(zone: str) -> None:
    assert (
        Cron("30 * 31 12 * 0 2254", zone).next_after(datetime(2254, 12, 31, 23, 30, tzinfo=UTC))
        is None
    )


def test_the_last_year_goes_on_in_the_east_until_it_ends_in_utc() -> None:
    assert Cron("0 8 1 1 *", "Asia/Tokyo").next_after(datetime(2254, 6, 1, tzinfo=UTC)) == datetime(
        2254, 12, 31, 23, tzinfo=UTC
    )


def test_a_distant_day_is_found_without_a_look_at_the_zone_in_between() -> None:
    zone = offsets_of(parse_timezone("Asia/Kathmandu"))
    known = len(zone._windows)
    assert Cron("0 0 29 2 * 0 2248", "Asia/Kathmandu").next(NOON) is not None
    assert len(zone._windows) <= known + 3


def test_the_zone_of_a_cron_is_known_with_its_name() -> None:
    cron = Cron("0 9 * * *", "UTC+5:30")
    assert cron.timezone == timezone(timedelta(hours=5, minutes=30))
    assert cron.timezone_name == "UTC+5:30"
    assert cron.expression == "0 9 * * *"


# Every


def test_an_interval_begins_one_interval_after_the_record_was_made() -> None:
    assert Every(timedelta(minutes=5)).first(NOON) == NOON + 5 * MINUTE


def test_an_interval_goes_on_from_the_planned_time() -> None:
    assert Every(timedelta(minutes=5)).following(NOON) == NOON + 5 * MINUTE


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOON - HOUR, NOON + 5 * MINUTE),
        (NOON, NOON + 5 * MINUTE),
        (NOON + 5 * MINUTE - 1, NOON + 5 * MINUTE),
        (NOON + 5 * MINUTE, NOON + 10 * MINUTE),
        (NOON + 13 * MINUTE, NOON + 15 * MINUTE),
    ],
)
def test_an_interval_skips_along_its_grid(now: int, expected: int) -> None:
    assert Every(timedelta(minutes=5)).skip(NOON, now) == expected


def test_an_interval_skips_a_century_of_microseconds_at_once() -> None:
    now = NOON + 100 * 365 * 24 * HOUR
    assert Every(timedelta(microseconds=1)).skip(NOON, now) == now + 1


def test_an_interval_ends_before_2255() -> None:
    assert Every(timedelta(seconds=1)).next(INSTANT_LIMIT - 1_000_001) == INSTANT_LIMIT - 1
    assert Every(timedelta(seconds=1)).next(INSTANT_LIMIT - 1_000_000) is None
    assert Every(timedelta(days=300 * 365 // 2)).skip(NOON, NOON + HOUR) is not None
    assert Every(timedelta(days=250 * 365)).first(NOON) is None


@pytest.mark.parametrize(
    ("interval", "complaint"),
    [
        (timedelta(0), "must be longer than zero"),
        (timedelta(seconds=-1), "must be longer than zero"),
        (timedelta.max, "must be shorter than 285 years"),
        (timedelta(days=285 * 366), "must be shorter than 285 years"),
    ],
)
def test_an_interval_that_leads_nowhere_is_refused(interval: timedelta, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Every(interval)


def test_an_interval_that_is_no_duration_is_refused() -> None:
    with pytest.raises(TypeError, match="an interval is a timedelta, not int"):
        Every(60)  # type: ignore[arg-type]


# At


def test_a_one_off_begins_with_its_instant_also_when_it_is_past() -> None:
    assert At(datetime(2026, 5, 1, 12, tzinfo=UTC)).first(NOON + HOUR) == NOON


def test_a_one_off_has_nothing_after_its_instant() -> None:
    once = At(datetime(2026, 5, 1, 12, tzinfo=UTC))
    assert once.next(NOON - 1) == NOON
    assert once.next(NOON) is None
    assert once.following(NOON) is None
    assert once.skip(NOON, NOON) is None


def test_a_one_off_is_the_same_instant_in_every_zone() -> None:
    assert At(datetime(2026, 5, 1, 14, tzinfo=timezone(timedelta(hours=2)))) == At(
        datetime(2026, 5, 1, 12, tzinfo=UTC)
    )


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2255, 1, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_a_one_off_outside_the_years_that_can_be_stored_is_refused(instant: datetime) -> None:
    with pytest.raises(ValueError, match="must lie before the year 2255"):
        At(instant)


def test_a_one_off_that_is_no_datetime_is_refused() -> None:
    with pytest.raises(TypeError, match="an instant is a datetime, not str"):
        At("2026-05-01")  # type: ignore[arg-type]


def test_a_one_off_answers_with_its_instant_in_utc() -> None:
    once = At(datetime(2026, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))))
    assert once.instant == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert once.instant.tzinfo is UTC
    assert once.next_after(datetime(2026, 1, 1, tzinfo=UTC)) == once.instant


# All kinds


@pytest.mark.parametrize("schedule", [Every(timedelta(1)), At(datetime(2026, 5, 1, tzinfo=UTC))])
def test_only_cron_has_a_zone_of_its_own(schedule: Schedule) -> None:
    assert schedule.timezone is UTC
    assert schedule.timezone_name is None


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=repr)
def test_a_schedule_survives_its_text(schedule: Schedule) -> None:
    again = loads(dumps(schedule))
    assert again == schedule
    assert dumps(again) == dumps(schedule)


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=repr)
def test_a_schedule_can_be_copied_pickled_and_evaluated(schedule: Schedule) -> None:
    names = {"Cron": Cron, "Every": Every, "At": At, "datetime": __import__("datetime")}
    for again in (
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), names),
    ):
        assert again == schedule
        assert hash(again) == hash(schedule)


def test_schedules_that_differ_are_not_equal() -> None:
    assert len(set(ONE_OF_EACH)) == len(ONE_OF_EACH)
    for one in ONE_OF_EACH:
        text: object = dumps(one)
        assert one != text
        assert [one == other for other in ONE_OF_EACH].count(True) == 1


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=repr)
def test_a_schedule_cannot_be_changed(schedule: Schedule) -> None:
    name: str = next(iter(type(schedule).__slots__))
    with pytest.raises(AttributeError, match="is immutable"):
        setattr(schedule, name, 5)
    with pytest.raises(AttributeError, match="is immutable"):
        delattr(schedule, name)
    with pytest.raises(AttributeError, match="is immutable"):
        schedule.timezone = UTC


@pytest.fixture
def machine_in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _warn_of_naive.cache_clear()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
    _warn_of_naive.cache_clear()


@pytest.mark.usefixtures("machine_in_berlin")
def test_a_naive_datetime_means_local_time_of_the_machine() -> None:
    assert At(datetime(2026, 5, 1, 14)).instant == datetime(2026, 5, 1, 12, tzinfo=UTC)  # noqa: DTZ001
    assert Cron("30 * * * *").next_after(datetime(2026, 1, 1, 0)) == datetime(  # noqa: DTZ001
        2025, 12, 31, 23, 30, tzinfo=UTC
    )


@pytest.mark.usefixtures("machine_in_berlin")
@pytest.mark.parametrize("wrong", [None, 5, "2030-01-01", timedelta(1)], ids=repr)
def test_an_instant_is_a_datetime(wrong: Any) -> None:
    for call in (Cron("* * * * *").next_after, At):
        with pytest.raises(TypeError, match="an instant is a datetime, not"):
            call(wrong)


def test_a_naive_datetime_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyncette"):
        for _ in range(3):
            At(datetime(2026, 5, 1, 14))  # noqa: DTZ001
    assert [record.name for record in caplog.records] == ["pyncette.schedule"]
    assert "without a time zone is taken as local time" in caplog.text


@pytest.mark.usefixtures("machine_in_berlin")
@pytest.mark.parametrize("instant", [datetime.min, datetime.max])  # noqa: DTZ901
def test_a_naive_datetime_that_local_time_cannot_hold_is_refused(instant: datetime) -> None:
    with pytest.raises(ValueError, match="cannot be taken as local time"):
        At(instant)


# Text


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Cron("0  9 * * *", "Europe/Berlin"), "1 cron Europe/Berlin 0 9 * * *"),
        (Cron("@daily"), "1 cron UTC @daily"),
        (Cron("0 9 * * mon", "America/New York"), "1 cron America/New_York 0 9 * * mon"),
        (Every(timedelta(minutes=1)), "1 every 60000000"),
        (At(datetime(2025, 11, 24, 16, tzinfo=UTC)), "1 at 1764000000000000"),
        (At(datetime(2001, 9, 9, 1, 46, 39, 999_999, tzinfo=UTC)), "1 at 999999999999999"),
        (At(datetime(2254, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)), "1 at 8993721599999999"),
        (At(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)), "1 at -1000000"),
    ],
)
def test_the_stored_text_is(schedule: Schedule, text: str) -> None:
    assert dumps(schedule) == text
    assert loads(text) == schedule


def test_what_repeats_is_parsed_once_and_one_off_instants_are_not_kept() -> None:
    assert loads("1 cron UTC 7 9 * * *") is loads("1 cron UTC 7 9 * * *")
    assert loads("1 every 77") is loads("1 every 77")
    assert loads("1 at 77") is not loads("1 at 77")


@pytest.mark.parametrize("text", ["3 cron UTC 0 9 * * *", "3", "12 whatever"])
def test_the_text_of_a_newer_release_is_recognised(text: str) -> None:
    with pytest.raises(NewerFormat, match="stored by a newer release"):
        loads(text)


def test_a_kind_of_a_newer_release_is_recognised() -> None:
    with pytest.raises(NewerFormat, match="kind that is unknown here"):
        loads("1 lunar full")


@pytest.mark.parametrize("zone", ["Mars/Olympus_Mons", "Europe/Berlin/Mitte", "EST5", "America"])
def test_a_zone_that_this_machine_lacks_may_be_known_elsewhere(zone: str) -> None:
    with pytest.raises(UnreadableHere, match=f"Invalid timezone specifier '{zone}'") as refused:
        loads(f"1 cron {zone} 0 9 * * *")
    assert not isinstance(refused.value, NewerFormat)
    with pytest.raises(UnreadableHere, match=f"^Invalid timezone specifier '{zone}'$"):
        Cron("0 9 * * *", zone)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "0 every 5",
        "-2 every 5",
        "one every 5",
        "٢ every 5",
        "1 sometimes",
        "1 SOMETIMES 5",
        "1 some-times 5",
        "1 cron",
        "1 cron UTC",
        "1 cron UTC 0 9 * *",
        "1 cron Nowhere/City 0 9 * *",
        "1 cron Nowhere/City,M3 0 9 * * *",
        "1 cron europe/berlin 0 9 * * *",
        "1 cron localtime 0 9 * * *",
        "1 cron UTC+99 0 9 * * *",
        "1 every",
        "1 every 0",
        "1 every -5",
        "1 every 5 6",
        "1 every 1.5",
        "1 every ٥",
        "1 every " + "9" * 20,
        "1 every " + "9" * 5000,
        "1 at",
        "1 at noon",
        "1 at 17640000000000x0",
        "1 at +5",
        "1 at ١٧٦٤٠٠٠٠٠٠٠٠٠٠٠٠",
        "1 at 9999999999999999",
        "1 at 1_0",
        "1 at " + "9" * 20,
        "1 at -" + "9" * 20,
        '{"schedule": "0 9 * * *"}',
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Not a stored schedule: ") as refused:
        loads(text)
    assert not isinstance(refused.value, UnreadableHere)
    assert len(str(refused.value)) < 500


def test_the_reason_is_given_with_a_text_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match=r"Not a stored schedule: .* \(Invalid timezone specifier"):
        loads("1 cron ../Nowhere 0 9 * * *")


def test_a_schedule_of_somebody_else_has_no_text() -> None:
    class Sometimes(Every):
        pass

    assert dumps(Sometimes(timedelta(1))) == dumps(Every(timedelta(1)))
    with pytest.raises(TypeError, match="is not a schedule of this library"):
        dumps("0 9 * * *")  # type: ignore[arg-type]
