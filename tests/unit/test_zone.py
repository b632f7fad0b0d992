"""Specifiers of time zones, and the periods of one offset that are found by probing."""

from __future__ import annotations

import random
import struct
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pyncette.schedule import Cron, UnreadableHere, dumps, loads, zone
from pyncette.schedule.zone import Offsets, normalize_timezone, offsets_of, parse_timezone

WINTER = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("specifier", "offset"),
    [
        ("UTC", timedelta(0)),
        ("utc+0", timedelta(0)),
        ("Etc/UTC", timedelta(0)),
        ("GMT", timedelta(0)),
        ("GMT0", timedelta(0)),
        ("UTC+6", timedelta(hours=6)),
        ("GMT+3", timedelta(hours=3)),
        ("UTC6", timedelta(hours=6)),
        ("UTC+5:30", timedelta(hours=5, minutes=30)),
        ("UTC+0530", timedelta(hours=5, minutes=30)),
        ("UTC+05:30", timedelta(hours=5, minutes=30)),
        ("+05:30", timedelta(hours=5, minutes=30)),
        ("+0530", timedelta(hours=5, minutes=30)),
        ("+5", timedelta(hours=5)),
        ("-03:30", -timedelta(hours=3, minutes=30)),
        ("UTC-8", -timedelta(hours=8)),
        ("gmt-11", -timedelta(hours=11)),
        ("UTC+14", timedelta(hours=14)),
        ("Etc/GMT+3", -timedelta(hours=3)),
        ("Etc/GMT-14", timedelta(hours=14)),
        ("EST5EDT", -timedelta(hours=5)),
        ("Europe/Berlin", timedelta(hours=1)),
        ("America/New_York", -timedelta(hours=5)),
        ("America/New York", -timedelta(hours=5)),
        (" Asia/Kolkata ", timedelta(hours=5, minutes=30)),
    ],
)
def test_a_zone_is_read_as(specifier: str, offset: timedelta) -> None:
    assert WINTER.astimezone(parse_timezone(specifier)).utcoffset() == offset


@pytest.mark.parametrize(
    "specifier",
    [
        "",
        " ",
        "Nowhere/City",
        "Europe/Berlin/Mitte",
        "EST5EDT,M3.2.0,M11.1.0",
        "EST5",
        "CET-1CEST",
        "UTC+24",
        "UTC+99",
        "UTC+5:60",
        "UTC+5:3",
        "UTC+530",
        "+530",
        "UTC++5",
        "UTC + 5",
        "UTC+٥",
        "5",
        "0530",
        "Z",
        "America",
        "../etc/passwd",
        "/etc/localtime",
        "localtime",
        "posixrules",
        "right/Europe/Berlin",
        "tzdata.zi",
        "Europe/Berlin\0",
        "Europe/Bérlin",
        "\ud800",
        "x" * 5000,
    ],
)
def test_what_names_no_zone_is_refused(specifier: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_timezone(specifier)
    assert str(refused.value) == f"Invalid timezone specifier {specifier!r}"
    with pytest.raises(ValueError, match="Invalid timezone specifier"):
        Cron("0 9 * * *", specifier)


@pytest.mark.parametrize("specifier", [None, 3, timedelta(hours=1)])
def test_what_is_neither_a_text_nor_a_zone_is_refused(specifier: object) -> None:
    with pytest.raises(ValueError, match=r"Invalid timezone specifier '.*': it is of type "):
        parse_timezone(specifier)  # type: ignore[arg-type]


class ZoneOfPytz(tzinfo):
    """What pytz gives: its name is in another attribute."""

    zone = "Asia/Tokyo"

    def utcoffset(self, instant: datetime | None) -> timedelta | None:
        return None if instant is None else timedelta(hours=9)

    dst = utcoffset

    def tzname(self, instant: datetime | None) -> str:
        return "JST"


class ZoneWithoutName(tzinfo):
    """What dateutil gives: its name cannot be had, and its offset depends on the date."""

    def utcoffset(self, instant: datetime | None) -> timedelta | None:
        return None if instant is None else timedelta(hours=1)

    dst = utcoffset

    def tzname(self, instant: datetime | None) -> str:
        return "CET"

    def __repr__(self) -> str:
        return "tzfile('Europe/Berlin')"


@pytest.mark.parametrize(
    ("zone", "stored"),
    [
        (ZoneInfo("Europe/Berlin"), "Europe/Berlin"),
        (ZoneInfo("Etc/GMT+3"), "Etc/GMT+3"),
        (ZoneInfo("UTC"), "UTC"),
        (ZoneOfPytz(), "Asia/Tokyo"),
        (UTC, "UTC"),
        (timezone(timedelta(hours=2)), "UTC+02:00"),
        (timezone(timedelta(hours=2), "CEST"), "UTC+02:00"),
        (timezone(-timedelta(hours=3, minutes=30)), "UTC-03:30"),
    ],
)
def test_a_zone_object_is_stored_by_its_name_or_offset(zone: tzinfo, stored: str) -> None:
    assert normalize_timezone(zone) == stored
    cron = Cron("0 9 * * *", zone)
    assert cron == Cron("0 9 * * *", stored) == loads(dumps(cron))
    assert (
        WINTER.astimezone(cron.timezone).utcoffset()
        == WINTER.astimezone(parse_timezone(stored)).utcoffset()
    )


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        (ZoneWithoutName(), r"tzfile\('Europe/Berlin'\).*does not tell its name"),
        (timezone(timedelta(seconds=30)), "'UTC\\+00:00:30': an offset must be a whole number"),
    ],
)
def test_a_zone_object_that_has_no_name_is_refused(zone: tzinfo, words: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid timezone specifier .*{words}"):
        Cron("0 9 * * *", zone)


@pytest.mark.parametrize(("given", "stored"), [("utc", "UTC"), ("Utc", "UTC"), ("gmt", "GMT")])
def test_utc_and_gmt_may_be_in_any_case(given: str, stored: str) -> None:
    assert WINTER.astimezone(parse_timezone(given)).utcoffset() == timedelta()
    assert normalize_timezone(given) == stored
    assert Cron("0 9 * * *", given) == Cron("0 9 * * *", stored)


@pytest.mark.parametrize("given", ["europe/berlin", "EUROPE/BERLIN", "Europe/berlin"])
def test_any_other_name_is_taken_in_its_exact_case(given: str) -> None:
    words = f"Invalid timezone specifier '{given}': did you mean 'Europe/Berlin'"
    with pytest.raises(ValueError, match=words) as refused:
        parse_timezone(given)
    assert not isinstance(refused.value, UnreadableHere)


def test_a_file_system_that_ignores_case_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As such a file system answers: there is a file under the wrong name, too.
    (tmp_path / "asia").mkdir()
    (tmp_path / "asia" / "tokyo").write_bytes(zone_file("Asia/Tokyo"))
    monkeypatch.setattr(zone, "_keys", lru_cache(lambda: frozenset({"Asia/Tokyo"})))
    with tz_path(tmp_path), pytest.raises(ValueError, match="did you mean 'Asia/Tokyo'"):
        parse_timezone("asia/tokyo")


def test_a_zone_that_the_machine_gets_while_a_worker_runs_is_found(tmp_path: Path) -> None:
    with tz_path(tmp_path):
        with pytest.raises(UnreadableHere):
            parse_timezone("Mars/Olympus")
        (tmp_path / "Mars").mkdir()
        (tmp_path / "Mars" / "Olympus").write_bytes(zone_file("Asia/Tokyo"))
        assert WINTER.astimezone(parse_timezone("Mars/Olympus")).utcoffset() == timedelta(hours=9)
    zone._parse.cache_clear()
    zone._keys.cache_clear()


def test_a_zone_whose_data_are_broken_here_may_be_read_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "Asia").mkdir()
    (tmp_path / "Asia" / "Thimphu").write_bytes(b"TZif2 and nothing else")
    with tz_path(tmp_path), pytest.raises(UnreadableHere):
        parse_timezone("Asia/Thimphu")


@contextmanager
def tz_path(path: Path) -> Iterator[None]:
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(path)])
    ZoneInfo.clear_cache()
    try:
        yield
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()


def test_utc_is_the_plain_zone_of_the_standard_library() -> None:
    assert parse_timezone("UTC") is UTC


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (" UTC+6 ", "UTC+6"),
        ("America/New York", "America/New_York"),
    ],
)
def test_the_stored_name_holds_no_blank(given: str, stored: str) -> None:
    assert normalize_timezone(given) == stored


def zone_file(name: str) -> bytes:
    # Not the files of the system, which zoneinfo prefers and which differ before 1970.
    return (files("tzdata") / "zoneinfo").joinpath(*name.split("/")).read_bytes()


def transitions(data: bytes) -> list[tuple[int, int, int]]:
    """Instant, offset before and offset after each change that a zone's file lists."""

    def counts(at: int) -> tuple[int, ...]:
        return struct.unpack(">6l", data[at + 20 : at + 44])

    utc, standard, leaps, times, types, letters = counts(0)
    at = 44 + times * 5 + types * 6 + letters + leaps * 8 + standard + utc
    *_, times, types, letters = counts(at)
    at += 44
    instants = struct.unpack(f">{times}q", data[at : at + 8 * times])
    indices = data[at + 8 * times : at + 9 * times]
    first_type = at + 9 * times
    offsets = [
        struct.unpack(">l", data[first_type + 6 * n : first_type + 6 * n + 4])[0]
        for n in range(types)
    ]
    found = []
    current = offsets[0]
    for instant, index in zip(instants, indices, strict=True):
        if offsets[index] != current:
            found.append((instant, current, offsets[index]))
            current = offsets[index]
    return found


ZONES = (files("tzdata") / "zones").read_text().split()


def test_no_zone_changes_its_offset_twice_within_six_days() -> None:
    # What the distance of the probes relies on.
    for name in ZONES:
        instants = [instant for instant, _, _ in transitions(zone_file(name))]
        gaps = [later - sooner for sooner, later in pairwise(instants)]
        assert min(gaps, default=10**9) >= 6 * 86_400, name


@pytest.mark.exhaustive
def test_probing_finds_every_change_that_the_files_of_the_zones_list() -> None:
    for name in random.Random(5).sample(ZONES, 40):
        data = zone_file(name)
        offsets = Offsets(ZoneInfo.from_file(BytesIO(data)))
        for instant, before, after in transitions(data):
            period = offsets.period(instant)
            assert (period.start, period.before, period.offset) == (instant, before, after), name
            period = offsets.period(instant - 1)
            assert (period.end, period.offset) == (instant, before), name


def test_the_rules_after_the_last_listed_change_hold_for_ever() -> None:
    # The last Sunday of March 2200, 01:00 UTC.
    change = int(datetime(2200, 3, 30, 1, tzinfo=UTC).timestamp())
    period = offsets_of(ZoneInfo("Europe/Berlin")).period(change)
    assert (period.start, period.before, period.offset) == (change, 3600, 7200)


def test_an_edge_that_is_no_change_lies_three_days_away() -> None:
    offsets = Offsets(ZoneInfo("Asia/Tokyo"))
    for second in (0, (1 << 24) - 1, 1 << 24, 1_800_000_000):
        period = offsets.period(second)
        assert period.before == period.offset == 32_400
        assert period.start <= second - (1 << 18) + 1
        assert period.end >= second + (1 << 18)


def test_the_periods_that_are_kept_are_limited() -> None:
    offsets = Offsets(timezone(timedelta(hours=2)))
    for window in range(600):
        assert offsets.period(window << 24).offset == 7200
    assert len(offsets._windows) <= 512


def test_only_a_fixed_zone_has_one_offset() -> None:
    assert offsets_of(parse_timezone("UTC-3:30")).fixed == -12_600
    assert offsets_of(parse_timezone("Europe/Berlin")).fixed is None


def test_two_changes_between_two_probes_are_both_found() -> None:
    first, second = 1_000_000_000, 1_000_050_000
    header = struct.pack(">4sc15x6l", b"TZif", b"\0", 0, 0, 0, 2, 3, 4)
    types = b"".join(struct.pack(">lbB", offset, 0, 0) for offset in (0, 3600, 5400))
    data = header + struct.pack(">2l2B", first, second, 1, 2) + types + b"XXX\0"
    offsets = Offsets(ZoneInfo.from_file(BytesIO(data)))
    assert offsets.period(first)[:3] == (first, second, 3600)
    assert offsets.period(second)[2:] == (5400, 3600)
    assert offsets.period(second).start == second
