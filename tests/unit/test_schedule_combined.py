"""What is combined of schedules: unions, exclusions, bounds, jitter; and anchored intervals."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from pyncette.schedule import (
    AnyOf,
    At,
    Bounded,
    Calendar,
    Calendars,
    Cron,
    Every,
    Jittered,
    NewerFormat,
    Rule,
    Schedule,
    UnreadableHere,
    Without,
    dumps,
    instant_of,
    loads,
)
from pyncette.schedule.base import LOOKS_MAX

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)  # a Friday
NOON_US = instant_of(NOON)

DAILY = Cron("0 9 * * *", "Europe/Berlin")
HOURLY = Every(HOUR, anchor=datetime(2026, 1, 1, 0, 30, tzinfo=UTC))


def weekend(day: date) -> bool:
    return day.weekday() >= 5


def knowing(**functions: Callable[[date], bool]) -> Calendars:
    calendars = Calendars()
    for name, function in functions.items():
        calendars.declare(name, function)
    return calendars


def bound(schedule: Schedule, function: Callable[[date], bool] = weekend) -> Schedule:
    return knowing(closed=function).bind(schedule)


def upcoming(schedule: Schedule, number: int, after: datetime = NOON) -> list[datetime]:
    found: list[datetime] = []
    instant = schedule.next_after(after)
    while instant is not None and len(found) < number:
        found.append(instant)
        instant = schedule.next_after(instant)
    return found


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 5, day, hour, minute, tzinfo=UTC)


ONE_OF_EACH: list[tuple[Schedule, str]] = [
    (HOURLY, '2 ["every",3600000000,1800000000,false]'),
    (Every(HOUR, at_once=True), '2 ["every",3600000000,null,true]'),
    (
        DAILY | Cron("0 12 * * SAT"),
        '2 ["any",["cron","Europe/Berlin","0 9 * * *"],["cron","UTC","0 12 * * SAT"]]',
    ),
    (
        DAILY - Calendar("closed"),
        '2 ["without",[["closed",null]],["cron","Europe/Berlin","0 9 * * *"]]',
    ),
    (
        Every(HOUR) - Calendar("b", "Asia/Tokyo") - Calendar("a"),
        '2 ["without",[["a",null],["b","Asia/Tokyo"]],["every",3600000000,null,false]]',
    ),
    (
        DAILY.between(NOON, NOON + 5 * DAY),
        '2 ["between",1777636800000000,1778068800000000,["cron","Europe/Berlin","0 9 * * *"]]',
    ),
    (
        Every(HOUR).between(end=NOON),
        '2 ["between",null,1777636800000000,["every",3600000000,null,false]]',
    ),
    (
        At(NOON).with_jitter(MINUTE),
        '2 ["jitter",60000000,["at",1777636800000000]]',
    ),
    (
        Rule("FREQ=DAILY;COUNT=3", start=datetime(2026, 5, 1, 9), timezone="Asia/Tokyo"),  # noqa: DTZ001
        '2 ["rule","Asia/Tokyo","20260501T090000",1777798800,"FREQ=DAILY;COUNT=3"]',
    ),
    (
        ((DAILY | At(NOON)) - Calendar("closed")).between(NOON, None).with_jitter(MINUTE),
        '2 ["jitter",60000000,["between",1777636800000000,null,["without",[["closed",null]],["any",'
        '["at",1777636800000000],["cron","Europe/Berlin","0 9 * * *"]]]]]',
    ),
]
EACH = [schedule for schedule, _ in ONE_OF_EACH]


# Values


@pytest.mark.parametrize(("schedule", "text"), ONE_OF_EACH, ids=lambda value: repr(value)[:40])
def test_the_stored_text_is(schedule: Schedule, text: str) -> None:
    assert dumps(schedule) == text
    again = loads(text)
    assert again == schedule
    assert dumps(again) == text


@pytest.mark.parametrize("schedule", EACH, ids=repr)
def test_a_schedule_can_be_copied_pickled_and_evaluated(schedule: Schedule) -> None:
    names = {
        "Cron": Cron,
        "Every": Every,
        "At": At,
        "Rule": Rule,
        "Calendar": Calendar,
        "datetime": __import__("datetime"),
    }
    for again in (
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), names),
    ):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert dumps(again) == dumps(schedule)


def test_schedules_that_differ_are_not_equal() -> None:
    for one in EACH:
        text: object = dumps(one)
        assert one != text
        assert [one == other for other in EACH].count(True) == 1
    assert Every(HOUR) != HOURLY
    assert Calendar("a") != Calendar("a", "Asia/Tokyo")
    assert Calendar("a") != "a"
    assert len({Calendar("a"), Calendar("a"), Calendar("b")}) == 2


@pytest.mark.parametrize("value", [*EACH, Calendar("a")], ids=repr)
def test_it_cannot_be_changed(value: object) -> None:
    for name in ("timezone_name", "anything"):
        with pytest.raises(AttributeError, match="is immutable"):
            setattr(value, name, 5)
        with pytest.raises(AttributeError, match="is immutable"):
            delattr(value, name)


def test_combinations_have_a_normal_form() -> None:
    a, b, c = DAILY, Cron("0 12 * * SAT"), HOURLY
    assert (a | b) | c == c | (b | a) == AnyOf.of([a, b, c, a])
    assert a | a is a or (a | a) == a
    assert a - Calendar("x") - Calendar("y") == a - Calendar("y") - Calendar("x") - Calendar("x")
    assert a.between(NOON).between(end=NOON + DAY) == a.between(NOON, NOON + DAY)
    assert a.between(NOON, NOON + 9 * DAY).between(NOON - DAY, NOON + DAY) == a.between(
        NOON, NOON + DAY
    )
    assert a.between() is a
    assert a.with_jitter(timedelta(0)) is a
    assert a.with_jitter(MINUTE).with_jitter(HOUR) == a.with_jitter(HOUR)
    assert a.with_jitter(MINUTE) - Calendar("x") == (a - Calendar("x")).with_jitter(MINUTE)
    assert a.with_jitter(MINUTE).between(NOON) == a.between(NOON).with_jitter(MINUTE)


def test_the_parts_of_a_combination_can_be_read() -> None:
    union = DAILY | HOURLY
    assert isinstance(union, AnyOf)
    assert set(union.schedules) == {DAILY, HOURLY}
    without = DAILY - Calendar("x")
    assert isinstance(without, Without)
    assert (without.schedule, without.calendars) == (DAILY, (Calendar("x"),))
    bounded = DAILY.between(NOON, NOON + DAY)
    assert isinstance(bounded, Bounded)
    assert (bounded.schedule, bounded.start, bounded.end) == (DAILY, NOON, NOON + DAY)
    assert DAILY.between(NOON).end is None  # type: ignore[attr-defined]
    assert DAILY.between(end=NOON).start is None  # type: ignore[attr-defined]
    jittered = DAILY.with_jitter(MINUTE)
    assert isinstance(jittered, Jittered)
    assert (jittered.schedule, jittered.jitter) == (DAILY, 60_000_000)


def test_a_combination_has_the_zone_of_its_parts_if_they_agree() -> None:
    assert (DAILY | HOURLY).timezone_name == "Europe/Berlin"
    assert (DAILY | Cron("0 12 * * *", "Asia/Tokyo")).timezone_name is None
    assert (DAILY | Cron("0 12 * * *", "Asia/Tokyo")).timezone is UTC
    assert (DAILY - Calendar("x")).between(NOON).with_jitter(MINUTE).timezone == DAILY.timezone


# Every


def test_an_anchored_interval_has_the_same_occurrences_for_each_record() -> None:
    assert upcoming(HOURLY, 2) == [at(1, 12, 30), at(1, 13, 30)]
    for now in (NOON_US, NOON_US + 1, NOON_US + 1_799_999_999):
        assert HOURLY.first(now) == instant_of(at(1, 12, 30))
    assert HOURLY.following(instant_of(at(1, 12, 30))) == instant_of(at(1, 13, 30))


def test_an_anchored_interval_returns_to_its_grid() -> None:
    assert HOURLY.following(NOON_US) == instant_of(at(1, 12, 30))
    assert HOURLY.skip(NOON_US, instant_of(at(1, 17, 45))) == instant_of(at(1, 18, 30))
    assert HOURLY.skip(instant_of(at(1, 17, 45)), NOON_US) == instant_of(at(1, 18, 30))


def test_an_anchor_may_lie_in_the_future_or_before_1970() -> None:
    late = Every(HOUR, anchor=datetime(2030, 1, 1, 0, 30, tzinfo=UTC))
    early = Every(HOUR, anchor=datetime(1920, 1, 1, 0, 30, tzinfo=UTC))
    assert late == early == HOURLY
    assert late.anchor == datetime(1970, 1, 1, 0, 30, tzinfo=UTC)
    assert Every(HOUR).anchor is None


def test_an_interval_at_once_begins_when_the_record_is_created() -> None:
    at_once = Every(HOUR, at_once=True)
    assert at_once.first(NOON_US) == NOON_US
    assert at_once.following(NOON_US) == instant_of(at(1, 13))
    anchored = Every(HOUR, anchor=at(1, 0, 30), at_once=True)
    assert anchored.first(NOON_US) == NOON_US
    assert anchored.following(NOON_US) == instant_of(at(1, 12, 30))


def test_an_anchor_does_not_lead_beyond_2255() -> None:
    assert HOURLY.next_after(datetime(2254, 12, 31, 23, 30, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"anchor": "noon"}, TypeError, "an instant is a datetime, not str"),
        ({"anchor": datetime(2255, 1, 1, tzinfo=UTC)}, ValueError, "before the year 2255"),
        ({"at_once": 1}, TypeError, "at_once is True or False, not 1"),
    ],
)
def test_a_wrong_option_of_an_interval_is_refused(
    options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        Every(HOUR, **options)


# Unions


def test_a_union_has_the_occurrences_of_each_and_one_where_they_fall_together() -> None:
    union = Cron("0 * * * *") | Cron("0 14 * * *") | Cron("30 14 * * *")
    assert upcoming(union, 4) == [at(1, 13), at(1, 14), at(1, 14, 30), at(1, 15)]


def test_a_union_of_single_instants_is_a_list_of_them() -> None:
    union = At(at(3, 9)) | At(at(2, 9)) | At(at(1, 9))
    assert union.first(NOON_US) == instant_of(at(2, 9))  # what is past is not made up for
    assert union.following(instant_of(at(2, 9))) == instant_of(at(3, 9))
    assert union.following(instant_of(at(3, 9))) is None


def test_a_union_with_an_interval_at_once_begins_at_once() -> None:
    union = Every(HOUR, anchor=at(1, 0), at_once=True) | Cron("15 * * * *")
    assert union.first(NOON_US + 1) == NOON_US + 1
    assert union.following(NOON_US + 1) == instant_of(at(1, 12, 15))


def test_a_union_skips_what_was_missed() -> None:
    union = Cron("0 9 * * *") | HOURLY
    assert union.skip(NOON_US, instant_of(at(9, 8, 45))) == instant_of(at(9, 9))
    assert union.skip(instant_of(at(9, 8, 45)), NOON_US) == instant_of(at(9, 9))


@pytest.mark.parametrize(
    ("combine", "error", "complaint"),
    [
        (
            lambda: operator.or_(DAILY, "0 9 * * *"),
            TypeError,
            r"Only a schedule .* write Cron\('0 9 \* \* \*'\)",
        ),
        (
            lambda: operator.or_(DAILY, 5),
            TypeError,
            "Only a schedule can be joined to a schedule, not 5$",
        ),
        (lambda: DAILY | Every(HOUR), ValueError, "needs an anchor, because Every"),
        (lambda: DAILY | (Every(HOUR) - Calendar("x")), ValueError, "needs an anchor"),
        (lambda: DAILY | Every(HOUR).between(end=NOON), ValueError, "needs an anchor"),
        (lambda: DAILY | HOURLY.with_jitter(MINUTE), ValueError, r"\(a \| b\).with_jitter"),
        (
            lambda: AnyOf.of([At(NOON + number * HOUR) for number in range(101)]),
            ValueError,
            "A union has at most 100 schedules, not 101",
        ),
        (
            lambda: AnyOf.of([Cron(f"{'0,' * 150}{number} * * * *") for number in range(40)]),
            ValueError,
            "A schedule may take 10,000 characters when it is stored, not 1",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(
    combine: Callable[[], object], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        combine()


def test_a_schedule_is_not_nested_without_end() -> None:
    schedule: Schedule = DAILY
    for number in range(5):
        schedule = (schedule | At(NOON + number * DAY)) - Calendar("x")
    with pytest.raises(ValueError, match="can be nested 10 times, not more"):
        schedule | At(NOON - DAY)


# Exclusions


def test_a_calendar_excludes_its_days() -> None:
    weekdays = bound(Cron("0 9 * * *") - Calendar("closed"))
    assert upcoming(weekdays, 3) == [at(4, 9), at(5, 9), at(6, 9)]
    assert weekdays.following(instant_of(at(1, 9))) == instant_of(at(4, 9))
    assert weekdays.skip(instant_of(at(1, 9)), instant_of(at(2, 0))) == instant_of(at(4, 9))


def test_a_day_of_a_calendar_is_one_of_the_zone_of_the_schedule() -> None:
    # 23:30 UTC on Friday is Saturday in Berlin.
    in_berlin = bound(Cron("30 1 * * *", "Europe/Berlin") - Calendar("closed"))
    assert in_berlin.next_after(NOON) == datetime(2026, 5, 3, 23, 30, tzinfo=UTC)
    in_utc = bound(Every(DAY, anchor=at(1, 23, 30)) - Calendar("closed"))
    assert in_utc.next_after(NOON) == at(1, 23, 30)
    said = bound(Every(DAY, anchor=at(1, 23, 30)) - Calendar("closed", "Europe/Berlin"))
    assert said.next_after(NOON) == at(3, 23, 30)


def test_an_interval_keeps_its_grid_across_excluded_days() -> None:
    every = bound(Every(timedelta(hours=7)) - Calendar("closed"))
    first = every.first(NOON_US)
    assert first == instant_of(at(1, 19))
    # 7 hours after 2 in the night of Saturday, and so on, until Monday.
    assert every.following(instant_of(at(1, 19))) == instant_of(at(4, 3))
    assert every.skip(instant_of(at(1, 19)), instant_of(at(3, 19))) == instant_of(at(4, 3))


def test_an_interval_at_once_keeps_its_grid_where_it_would_begin_on_an_excluded_day() -> None:
    every = bound(Every(timedelta(hours=7), at_once=True) - Calendar("closed"))
    assert every.first(NOON_US) == NOON_US
    saturday = instant_of(at(2, 12))
    assert every.first(saturday) == instant_of(at(4, 6))


def test_a_single_instant_on_an_excluded_day_does_not_run() -> None:
    assert bound(At(at(2, 9)) - Calendar("closed")).first(NOON_US) is None
    assert bound(At(at(4, 9)) - Calendar("closed")).first(NOON_US) == instant_of(at(4, 9))


def test_a_day_with_a_change_of_the_clocks_is_excluded_as_a_whole() -> None:
    def change(day: date) -> bool:
        return day in (date(2026, 3, 29), date(2026, 10, 25))

    hourly = bound(Cron("0 * * * *", "Europe/Berlin") - Calendar("closed"), change)
    assert hourly.next_after(datetime(2026, 3, 28, 22, 30, tzinfo=UTC)) == datetime(
        2026, 3, 29, 22, tzinfo=UTC
    )
    assert hourly.next_after(datetime(2026, 10, 24, 21, 30, tzinfo=UTC)) == datetime(
        2026, 10, 25, 23, tzinfo=UTC
    )


def test_several_calendars_exclude_together() -> None:
    calendars = knowing(closed=weekend, holidays=lambda day: day == date(2026, 5, 4))
    schedule = calendars.bind(Cron("0 9 * * *") - Calendar("closed") - Calendar("holidays"))
    assert schedule.next_after(NOON) == at(5, 9)


def test_a_calendar_excludes_from_one_part_of_a_union() -> None:
    schedule = bound((Cron("0 9 * * *") - Calendar("closed")) | Cron("0 12 * * SAT"))
    assert upcoming(schedule, 2) == [at(2, 12), at(4, 9)]
    assert schedule.calendars == (Calendar("closed"),)


def test_an_exclusion_of_everything_is_said_and_not_taken_for_the_end() -> None:
    looked: list[date] = []

    def always(day: date) -> bool:
        looked.append(day)
        return True

    never = bound(Cron("* * * * *") - Calendar("closed"), always)
    with pytest.raises(UnreadableHere, match="would never run: 'closed' exclude all its occurr"):
        never.next(NOON_US)
    assert len(looked) == LOOKS_MAX + 1
    rarely = bound(Cron("0 0 29 2 *") - Calendar("closed"), always)
    with pytest.raises(UnreadableHere, match="from 2028-02-29 to 2080-02-29"):
        rarely.next(NOON_US)


def test_the_end_of_the_bounds_is_the_end_also_where_the_last_days_are_excluded() -> None:
    until_sunday = bound(Cron("0 9 * * *").between(end=at(3, 12)) - Calendar("closed"))
    assert until_sunday.following(instant_of(at(1, 9))) is None


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda day: 1 // 0, "Calendar 'closed' failed for 2026-05-02: ZeroDivisionError: integer"),
        (lambda day: None, "answered None for 2026-05-02: its function must return True or False"),
        (lambda day: 1, "answered 1 for 2026-05-02"),
    ],
)
def test_a_calendar_that_fails_is_said(function: Any, complaint: str) -> None:
    with pytest.raises(UnreadableHere, match=complaint):
        bound(Cron("0 9 * * *") - Calendar("closed"), function).next(NOON_US)


def test_without_its_function_a_calendar_is_not_evaluated() -> None:
    unbound = Cron("0 9 * * *") - Calendar("closed")
    for call in (unbound.next, unbound.first, unbound.following):
        with pytest.raises(UnreadableHere, match=r"declare it with @app.calendar\('closed'\)"):
            call(NOON_US)
    with pytest.raises(UnreadableHere, match="Calendar 'closed' is not known here"):
        Calendars().bind(unbound)


def test_a_schedule_is_bound_once() -> None:
    calendars = knowing(closed=weekend)
    schedule = DAILY - Calendar("closed")
    bound_once = calendars.bind(schedule)
    assert calendars.bind(loads(dumps(schedule))) is bound_once
    assert bound_once == schedule
    assert calendars.bind(DAILY) is DAILY


def test_few_bound_schedules_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.schedule.known._KEPT_MAX", 2)
    calendars = knowing(closed=weekend)
    for minute in range(9):
        calendars.bind(Cron(f"{minute} * * * *") - Calendar("closed"))
    assert len(calendars._bound) <= 2


@pytest.mark.parametrize(
    ("name", "error", "complaint"),
    [
        ("", ValueError, "Invalid name of a calendar ''"),
        ("with space", ValueError, "must have 1 to 100 ASCII letters"),
        ("Ferien in Köln", ValueError, "Invalid name"),
        ("x" * 101, ValueError, "Invalid name"),
        (5, TypeError, "the name of a calendar is a str, not int"),
    ],
)
def test_a_wrong_name_of_a_calendar_is_refused(
    name: Any, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        Calendar(name)
    with pytest.raises(error, match=complaint):
        Calendars().declare(name, weekend)


def test_a_wrong_function_of_a_calendar_is_refused() -> None:
    async def waits(day: date) -> bool:
        return True

    calendars = knowing(closed=weekend)
    with pytest.raises(ValueError, match="Duplicate calendar 'closed'"):
        calendars.declare("closed", weekend)
    with pytest.raises(TypeError, match="must be a plain function"):
        calendars.declare("waits", waits)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="A calendar is a function that takes a date"):
        calendars.declare("days", {date(2026, 1, 1)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exclude", "error", "complaint"),
    [
        (
            lambda: operator.sub(DAILY, "x"),
            TypeError,
            r"Only a Calendar .* write Calendar\('x'\)",
        ),
        (
            lambda: operator.sub(DAILY, HOURLY),
            TypeError,
            "Only a Calendar can be subtracted from a schedule",
        ),
        (
            lambda: (DAILY | Cron("0 9 * * *", "Asia/Tokyo")) - Calendar("x"),
            ValueError,
            r"several time zones \(Asia/Tokyo, Europe/Berlin\): .* Calendar\('x', 'Asia/Tokyo'\)",
        ),
        (
            lambda: (DAILY | Cron("0 9 * * *")).between(NOON) - Calendar("x"),
            ValueError,
            "several time zones",
        ),
        (lambda: Calendar("x", "Nowhere"), ValueError, "Invalid timezone specifier 'Nowhere'"),
    ],
)
def test_what_cannot_be_excluded_is_refused(
    exclude: Callable[[], object], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        exclude()
    several = DAILY | Cron("0 9 * * *", "Asia/Tokyo")
    assert (several - Calendar("x", "UTC")).calendars == (Calendar("x", "UTC"),)


# Bounds


def test_bounds_are_included() -> None:
    assert upcoming(Cron("0 9 * * *").between(at(3, 9), at(5, 9)), 9) == [
        at(3, 9),
        at(4, 9),
        at(5, 9),
    ]
    inside = Cron("0 9 * * *").between(at(3, 9, 1), at(5, 8, 59))
    assert upcoming(inside, 9) == [at(4, 9)]


def test_a_record_that_is_created_before_the_start_waits_for_it() -> None:
    bounded = Cron("0 9 * * *").between(at(3, 9), at(5, 9))
    assert bounded.first(NOON_US) == instant_of(at(3, 9))
    assert bounded.first(instant_of(at(3, 9))) == instant_of(at(4, 9))
    assert bounded.first(instant_of(at(5, 9))) is None
    assert bounded.following(NOON_US) == instant_of(at(3, 9))
    assert bounded.following(instant_of(at(5, 9))) is None
    assert bounded.skip(NOON_US, instant_of(at(2, 12))) == instant_of(at(3, 9))
    assert bounded.skip(NOON_US, instant_of(at(4, 12))) == instant_of(at(5, 9))
    assert bounded.skip(NOON_US, instant_of(at(9, 12))) is None


def test_an_interval_is_anchored_at_the_start() -> None:
    every = Every(timedelta(hours=7)).between(at(3, 9), at(4, 0))
    assert every.first(NOON_US) == instant_of(at(3, 9))
    assert upcoming(every, 9) == [at(3, 9), at(3, 16), at(3, 23)]
    without = (Every(timedelta(hours=7)) - Calendar("closed")).between(at(3, 9))
    assert bound(without).first(NOON_US) == instant_of(at(4, 6))
    twice = (Every(timedelta(hours=7)).between(end=at(9, 0)) - Calendar("closed")).between(at(3, 9))
    assert bound(twice).first(NOON_US) == instant_of(at(4, 6))


def test_an_interval_with_an_end_alone_counts_from_its_record() -> None:
    every = Every(timedelta(hours=7)).between(end=at(2, 5))
    assert every.first(NOON_US) == instant_of(at(1, 19))
    assert every.following(instant_of(at(1, 19))) == instant_of(at(2, 2))
    assert every.following(instant_of(at(2, 2))) is None
    assert every.skip(NOON_US, instant_of(at(1, 20))) == instant_of(at(2, 2))


def test_an_interval_at_once_begins_at_the_start_or_at_once() -> None:
    every = Every(HOUR, at_once=True).between(at(3, 9), at(3, 20))
    assert every.first(NOON_US) == instant_of(at(3, 9))
    assert every.first(instant_of(at(3, 9, 20))) == instant_of(at(3, 9, 20))
    assert every.following(instant_of(at(3, 9, 20))) == instant_of(at(3, 10))
    assert every.first(instant_of(at(3, 20, 1))) is None


@pytest.mark.parametrize(
    ("bounds", "error", "complaint"),
    [
        ((at(5, 9), at(3, 9)), ValueError, "would never run"),
        ((at(1, 9, 1), at(2, 8, 59)), ValueError, "has no occurrence between the bounds"),
        ((at(3, 9), 5), TypeError, "an instant is a datetime, not int"),
        ((date(2026, 5, 1), None), TypeError, "an instant is a datetime, not date"),
        ((datetime(2255, 1, 1, tzinfo=UTC), None), ValueError, "before the year 2255"),
        ((None, datetime(1, 1, 1, tzinfo=UTC)), ValueError, "would never run"),
    ],
)
def test_wrong_bounds_are_refused(bounds: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        Cron("0 9 * * *").between(*bounds)
    with pytest.raises(error, match=complaint):
        (Cron("0 9 * * *") - Calendar("x")).between(*bounds)


def test_a_single_instant_outside_of_the_bounds_is_refused() -> None:
    assert At(NOON).between(NOON - DAY, NOON + DAY).first(NOON_US + 1) == NOON_US
    with pytest.raises(ValueError, match="would never run"):
        At(NOON).between(NOON + DAY)
    with pytest.raises(ValueError, match="would never run"):
        At(NOON).between(end=NOON - DAY)


# Jitter


def test_a_jitter_leaves_the_planned_times() -> None:
    schedule = Cron("0 9 * * *").with_jitter(HOUR)
    assert upcoming(schedule, 2) == [at(2, 9), at(3, 9)]
    assert schedule.first(NOON_US) == instant_of(at(2, 9))
    assert schedule.skip(NOON_US, instant_of(at(5, 9))) == instant_of(at(6, 9))
    assert Cron("0 9 * * *").due(NOON_US, "group", "key") == NOON_US


def test_a_jitter_is_a_hash_that_never_changes() -> None:
    schedule = Cron("0 9 * * *").with_jitter(HOUR)
    planned = instant_of(at(2, 9))
    waits = [schedule.due(planned, "report", f"user {n}") - planned for n in range(3)]
    assert waits == [511_030_464, 237_013_186, 723_288_791]
    # The partition does not matter, so that a rebalanced instance keeps its time.
    assert schedule.due(planned, "report:7", "user 0") - planned == waits[0]
    assert schedule.due(planned, "other", "user 0") - planned != waits[0]
    assert schedule.due(planned + 1, "report", "user 0") - planned != waits[0] + 1


def test_a_jitter_spreads_evenly() -> None:
    schedule = Cron("0 9 * * *").with_jitter(HOUR)
    planned = instant_of(at(2, 9))
    quarters = [0] * 4
    for number in range(4_000):
        wait = schedule.due(planned, "report", str(number)) - planned
        quarters[wait * 4 // 3_600_000_000] += 1
    assert all(850 < count < 1_150 for count in quarters)


def test_an_occurrence_never_waits_beyond_the_following_one() -> None:
    minutely = (Cron("* * * * *") - Calendar("closed")).with_jitter(HOUR)
    for number in range(200):
        assert 0 <= minutely.due(NOON_US, "g", str(number)) - NOON_US < 60_000_000
    once = At(NOON).with_jitter(HOUR)
    assert max(once.due(NOON_US, "g", str(n)) for n in range(50)) > NOON_US + 1_800_000_000


def test_a_wait_does_not_lead_beyond_2255() -> None:
    last = datetime(2254, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    schedule = At(last).with_jitter(DAY)
    assert {schedule.due(instant_of(last), "g", str(n)) for n in range(9)} == {instant_of(last)}


@pytest.mark.parametrize(
    ("jitter", "error", "complaint"),
    [
        (5, TypeError, "jitter must be a timedelta, not 5"),
        (timedelta(-1), ValueError, "jitter must be 0 to 366 days"),
        (timedelta(367), ValueError, "jitter must be 0 to 366 days"),
    ],
)
def test_a_wrong_jitter_is_refused(jitter: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        DAILY.with_jitter(jitter)


# Text


@pytest.mark.parametrize(
    "text",
    [
        "2",
        "2 cron UTC 0 9 * * *",
        "2 []",
        "2 {}",
        "2 5",
        "2 [5]",
        '2 ["any"]',
        '2 ["any",["at",5]]',
        '2 ["any",["at",5],5]',
        '2 ["at",true]',
        '2 ["at",1.5]',
        '2 ["at",' + "9" * 30 + "]",
        '2 ["every",0,null,false]',
        '2 ["every",5,null,1]',
        '2 ["every",5,null]',
        '2 ["every",5,' + "9" * 30 + ",false]",
        '2 ["between",null,null]',
        '2 ["between","a",null,["at",5]]',
        '2 ["without",[],["at",5]]',
        '2 ["without",["a"],["at",5]]',
        '2 ["without",[["a b",null]],["at",5]]',
        '2 ["jitter",0,["at",5]]',
        '2 ["jitter",null,["at",5]]',
        '2 ["cron","UTC","0 9 * *"]',
        '2 ["rule","UTC","2026",null,"FREQ=DAILY"]',
        '2 ["rule","UTC","20261301T000000",null,"FREQ=DAILY"]',
        '2 ["rule","UTC","20260101T000000",null,"FREQ=ALWAYS"]',
        "2 " + '["jitter",5,' * 40 + '["at",5]' + "]" * 40,
        "2 " + "[" * 9_000 + "]" * 9_000,
        '2 ["at",5]' + " " * 11_000,
        '2 ["LUNAR",5]',
    ],
    ids=lambda text: text[:40],
)
def test_a_text_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Not a stored schedule: ") as refused:
        loads(text)
    assert not isinstance(refused.value, UnreadableHere)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("text", ['2 ["lunar"]', '2 ["jitter",5,["lunar",7]]'])
def test_a_kind_of_a_newer_release_is_recognised_inside_a_combination(text: str) -> None:
    with pytest.raises(NewerFormat, match="kind that is unknown here"):
        loads(text)


def test_a_zone_that_this_machine_lacks_is_recognised_inside_a_combination() -> None:
    for text in (
        '2 ["jitter",5,["cron","Mars/Olympus_Mons","0 9 * * *"]]',
        '2 ["without",[["a","Mars/Olympus_Mons"]],["at",5]]',
        '2 ["rule","Mars/Olympus_Mons","20260101T000000",null,"FREQ=DAILY"]',
    ):
        with pytest.raises(UnreadableHere, match="Invalid timezone specifier 'Mars/Olympus_Mons'"):
            loads(text)


def test_a_calendar_need_not_be_known_to_read_a_text() -> None:
    assert loads(dumps(DAILY - Calendar("of-somebody-else"))).calendars


def test_a_schedule_of_somebody_else_has_no_text() -> None:
    class Sometimes(Schedule):
        def next(self, after: int) -> int | None:
            return None

        def first(self, now: int) -> int | None:
            return None

        def following(self, planned: int) -> int | None:
            return None

        def skip(self, planned: int, now: int) -> int | None:
            return None

    with pytest.raises(TypeError, match="is not a schedule of this library"):
        dumps(Sometimes())
    with pytest.raises(TypeError, match="is not a schedule of this library"):
        Sometimes() | DAILY
