"""What a change of the clocks does to a cron schedule: docs/explanation/cron.md, row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pyncette.schedule import Cron


def runs(expression: str, zone: str, day: str, days: int = 1) -> list[str]:
    """The runs of local days, as local time and offset."""
    cron = Cron(expression, zone)
    start = datetime.fromisoformat(day).replace(tzinfo=cron.timezone)
    end = start + timedelta(days=days)
    found = []
    instant = cron.next_after(start - timedelta(microseconds=1))
    while instant is not None and instant < end:
        found.append(f"{instant.astimezone(cron.timezone):%d %H:%M %z}")
        instant = cron.next_after(instant)
    return found


SPRING = ("Europe/Berlin", "2026-03-29")  # 02:00 +01:00 becomes 03:00 +02:00
AUTUMN = ("Europe/Berlin", "2026-10-25")  # 03:00 +02:00 becomes 02:00 +01:00


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["29 03:00 +0200"]),
        ("0,15,30 2 * * *", ["29 03:00 +0200"]),
        ("0 2,3 * * *", ["29 03:00 +0200"]),
        ("30 2,3 * * *", ["29 03:00 +0200", "29 03:30 +0200"]),
        ("0 3 * * *", ["29 03:00 +0200"]),
        ("0 2 * * * 59", ["29 03:00 +0200"]),
        ("30 2 * * SUN", ["29 03:00 +0200"]),
        ("30 2 * * MON", []),
        ("*/30 2 * * *", []),
        ("30 */2 * * *", [f"29 {hour:02}:30 {'+0100' if hour < 2 else '+0200'}"
                          for hour in range(0, 24, 2) if hour != 2]),
        ("0 * 29 3 *", [f"29 {hour:02}:00 {'+0100' if hour < 2 else '+0200'}"
                        for hour in range(24) if hour != 2]),
    ],
)  # fmt: skip
def test_in_spring_a_fixed_time_runs_after_the_gap_and_a_rhythm_leaves_it_out(
    expression: str, expected: list[str]
) -> None:
    assert runs(expression, *SPRING) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["25 02:30 +0200"]),
        ("0,30 2 * * *", ["25 02:00 +0200", "25 02:30 +0200"]),
        ("30 2,3 * * *", ["25 02:30 +0200", "25 03:30 +0100"]),
        ("0 3 * * *", ["25 03:00 +0100"]),
        (
            "*/30 2 * * *",
            ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100"],
        ),
        ("15 */2 25 10 *", ["25 00:15 +0200", "25 02:15 +0200", "25 02:15 +0100"]
                           + [f"25 {hour:02}:15 +0100" for hour in range(4, 24, 2)]),
    ],
)  # fmt: skip
def test_in_autumn_a_fixed_time_runs_the_first_time_and_a_rhythm_both_times(
    expression: str, expected: list[str]
) -> None:
    assert runs(expression, *AUTUMN) == expected


@pytest.mark.parametrize(
    "microsecond_before_the_gap_ends", [1, 500_000, 999_999, 1_000_000, 3_600_000_000]
)
def test_the_run_after_a_gap_is_found_from_any_instant_before(
    microsecond_before_the_gap_ends: int,
) -> None:
    after_the_gap = datetime(2026, 3, 29, 1, tzinfo=UTC)
    before = after_the_gap - timedelta(microseconds=microsecond_before_the_gap_ends)
    assert Cron("30 2 * * *", "Europe/Berlin").next_after(before) == after_the_gap


def test_the_run_after_a_gap_does_not_repeat() -> None:
    after_the_gap = datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert Cron("30 2 * * *", "Europe/Berlin").next_after(after_the_gap) == datetime(
        2026, 3, 30, 0, 30, tzinfo=UTC
    )


def test_a_rhythm_is_found_in_the_second_pass_of_a_fold_from_after_its_last_time() -> None:
    # 03:00 +02:00 becomes 02:00 +01:00; the next matching day is a week away.
    assert Cron("*/30 2 * * SUN", "Europe/Berlin").next_after(
        datetime(2026, 10, 25, 0, 59, tzinfo=UTC)
    ) == datetime(2026, 10, 25, 1, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        ("15 2 * * *", "2026-10-04", ["04 02:30 +1100"]),
        ("*/15 2 * * *", "2026-10-04", ["04 02:30 +1100", "04 02:45 +1100"]),
        ("45 1 * * *", "2026-04-05", ["05 01:45 +1100"]),
        ("15 1 * * *", "2026-04-05", ["05 01:15 +1100"]),
        ("*/45 1 * * *", "2026-04-05", ["05 01:00 +1100", "05 01:45 +1100", "05 01:45 +1030"]),
    ],
)
def test_half_an_hour_is_lost_and_repeated_on_lord_howe_island(
    expression: str, day: str, expected: list[str]
) -> None:
    assert runs(expression, "Australia/Lord_Howe", day) == expected


def test_a_gap_at_midnight_moves_the_run_of_midnight() -> None:
    # Lebanon: 00:00 +02:00 becomes 01:00 +03:00.
    assert runs("0 0 * * *", "Asia/Beirut", "2026-03-28", days=3) == [
        "28 00:00 +0200",
        "29 01:00 +0300",
        "30 00:00 +0300",
    ]


def test_a_fold_at_midnight_repeats_the_end_of_the_day_before() -> None:
    # Cuba: 01:00 -04:00 becomes 00:00 -05:00.
    assert runs("0 0 1 11 *", "America/Havana", "2026-10-31", days=3) == ["01 00:00 -0400"]
    assert runs("*/30 0 1 11 *", "America/Havana", "2026-10-31", days=3) == [
        "01 00:00 -0400",
        "01 00:30 -0400",
        "01 00:00 -0500",
        "01 00:30 -0500",
    ]


def test_a_day_that_a_zone_left_out_runs_at_the_start_of_the_next() -> None:
    assert runs("0 9 * * *", "Pacific/Apia", "2011-12-29", days=4)[:3] == [
        "29 09:00 -1000",
        "31 00:00 +1400",
        "31 09:00 +1400",
    ]


def test_a_fixed_offset_has_no_changes() -> None:
    assert runs("30 2 * * *", "UTC+1", "2026-03-29", days=2) == ["29 02:30 +0100", "30 02:30 +0100"]


def test_offsets_of_odd_seconds_are_kept() -> None:
    # Monrovia was 44 minutes and 30 seconds behind until 7 January 1972.
    assert Cron("0 12 * * *", "Africa/Monrovia").next_after(
        datetime(1972, 1, 5, 0, tzinfo=UTC)
    ) == datetime(1972, 1, 5, 12, 44, 30, tzinfo=UTC)
