"""Values of annotated types: written as JSON, and read back as they were, or refused."""

from __future__ import annotations

import importlib.resources
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from typing import (
    Annotated,
    Any,
    Literal,
    LiteralString,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    Union,
)
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyncette.conversion import Mismatch, Unconvertible, converter_of

BERLIN = ZoneInfo("Europe/Berlin")

with importlib.resources.files("tzdata").joinpath("zoneinfo/Europe/Berlin").open("rb") as data:
    NAMELESS = ZoneInfo.from_file(data)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Word(StrEnum):
    YES = "yes"


class Corner(Enum):
    LEFT = (0, 0)
    RIGHT = (1, 0)


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Line:
    item: str
    price: Decimal
    taken: bool = False


@dataclass(frozen=True)
class Order:
    id: UUID
    lines: list[Line]
    due: datetime | None = None
    parts: dict[date, Order] = field(default_factory=dict)


@dataclass
class SpecialLine(Line):
    note: str = ""


class Composed(Flag):
    LEFT = 1
    RIGHT = 2
    BOTH = 3


@dataclass
class Picky:
    pages: int

    def __post_init__(self) -> None:
        if self.pages < 0:
            raise ValueError("not below zero")


class Finer(datetime):
    """As other libraries have it: its text says more than a datetime can hold."""

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return f"{super().isoformat(sep, timespec)[:19]}.000001+00:00"


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Movie(TypedDict):
    name: str
    seen: NotRequired[date]


Email = NewType("Email", str)


def roundtrip(annotation: Any, value: Any) -> Any:
    """Writes a value, stores it as text, and reads it back."""
    converter = converter_of(annotation)
    written = converter.write(value)
    text = json.dumps(written)
    assert converter.write(json.loads(text)) == written, "its JSON means the same"
    return converter.read(json.loads(text))


def same(found: Any, expected: Any) -> bool:
    """Equal, of the same type, and with the same zone."""
    if isinstance(expected, datetime):
        return (
            type(found) is type(expected)
            and found.replace(tzinfo=None) == expected.replace(tzinfo=None)
            and found.utcoffset() == expected.utcoffset()
            and (not isinstance(expected.tzinfo, ZoneInfo) or found.tzinfo is expected.tzinfo)
        )
    return type(found) is type(expected) and found == expected


ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.timezones(),
    st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)).map(timezone),
)
DECIMALS = st.decimals(allow_nan=False)
FLOATS = st.floats(allow_nan=False)
VALUES = st.one_of(
    st.tuples(st.just(str), st.text()),
    st.tuples(st.just(Email), st.text()),
    st.tuples(st.just(int), st.integers()),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(float), FLOATS),
    st.tuples(st.just(None), st.none()),
    st.tuples(st.just(date), st.dates()),
    st.tuples(st.just(time), st.times().map(lambda value: value.replace(fold=0))),
    st.tuples(st.just(timedelta), st.timedeltas(min_value=timedelta(days=-999_999_999))),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(Decimal), DECIMALS),
    st.tuples(st.just(bytes), st.binary()),
    st.tuples(st.just(Path), st.text("abc/.ü ").map(Path)),
    st.tuples(st.just(Color), st.sampled_from(Color)),
    st.tuples(st.just(Size), st.sampled_from(Size)),
    st.tuples(st.just(Corner), st.sampled_from(Corner)),
    st.tuples(st.just(Right), st.sampled_from([*Right, Right(0), Right.READ | Right.WRITE])),
    st.tuples(st.just(Literal["a", 1, True, None]), st.sampled_from(["a", 1, True, None])),
    st.tuples(st.just(list[date]), st.lists(st.dates())),
    st.tuples(st.just(set[int]), st.sets(st.integers())),
    st.tuples(st.just(frozenset[str]), st.frozensets(st.text())),
    st.tuples(st.just(tuple[int, str]), st.tuples(st.integers(), st.text())),
    st.tuples(st.just(tuple[Decimal, ...]), st.lists(DECIMALS).map(tuple)),
    st.tuples(st.just(dict[str, UUID]), st.dictionaries(st.text(), st.uuids())),
    st.tuples(st.just(dict[int, bytes]), st.dictionaries(st.integers(), st.binary())),
    st.tuples(st.just(dict[date, int]), st.dictionaries(st.dates(), st.integers())),
    st.tuples(st.just(Point), st.builds(Point, FLOATS, FLOATS)),
    st.tuples(st.just(Line), st.builds(Line, st.text(), DECIMALS, st.booleans())),
    st.tuples(st.just(Optional[date]), st.none() | st.dates()),  # noqa: UP045
    st.tuples(st.just(int | str), st.integers() | st.text()),
    st.tuples(st.just(float | int), FLOATS | st.integers()),
    st.tuples(
        st.just(list[int] | dict[str, int] | None),
        st.none() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()),
    ),
)


@given(VALUES)
def test_a_value_is_read_back_as_it_was(case: tuple[Any, Any]) -> None:
    annotation, value = case
    assert same(roundtrip(annotation, value), value)


@given(st.datetimes(timezones=ZONES, allow_imaginary=False))
def test_a_datetime_keeps_its_instant_its_offset_and_its_zone(value: datetime) -> None:
    if value.tzinfo is None and value.fold:
        value = value.replace(fold=0)
    try:
        found = roundtrip(datetime, value)
    except Mismatch:
        # At the ends of the calendar its UTC does not exist.
        assert value.year in (1, 9999)
        return
    assert same(found, value)


@given(st.builds(Order, st.uuids(), st.lists(st.builds(Line, st.text(), DECIMALS))))
def test_a_dataclass_of_dataclasses_is_read_back(order: Order) -> None:
    whole = Order(order.id, order.lines, parts={date(2026, 1, 1): order})
    assert roundtrip(Order, whole) == whole


@pytest.mark.parametrize(
    ("annotation", "value", "json_value"),
    [
        (datetime, datetime(2026, 5, 1, 9, tzinfo=UTC), "2026-05-01T09:00:00+00:00"),
        (datetime, datetime(2026, 5, 1, 9), "2026-05-01T09:00:00"),  # noqa: DTZ001
        (
            datetime,
            datetime(2026, 5, 1, 9, tzinfo=BERLIN),
            "2026-05-01T09:00:00+02:00[Europe/Berlin]",
        ),
        (time, time(9, 30, tzinfo=BERLIN), "09:30:00[Europe/Berlin]"),
        (time, time(9, 30, tzinfo=UTC), "09:30:00+00:00"),
        (timedelta, timedelta(days=1, hours=2, seconds=3, microseconds=40), "P1DT2H3.00004S"),
        (timedelta, timedelta(minutes=-90), "-PT1H30M"),
        (timedelta, timedelta(), "PT0S"),
        (Color, Color.RED, "red"),
        (Corner, Corner.LEFT, "LEFT"),
        (Word, Word.YES, "yes"),
        (bytes, b"abc", "YWJj"),
        (set[str], {"b", "a"}, ["a", "b"]),
        (Point, Point(1.0), [1.0, 0.0]),
        (Line, Line("a", Decimal("1.50")), {"item": "a", "price": "1.50", "taken": False}),
        (Movie, {"name": "M", "seen": date(2026, 1, 1)}, {"name": "M", "seen": "2026-01-01"}),
        (Movie, {"name": "M"}, {"name": "M"}),
        (ZoneInfo, BERLIN, "Europe/Berlin"),
        (PurePosixPath, PurePosixPath("/a/b"), "/a/b"),
        (ipaddress.IPv4Address, ipaddress.IPv4Address("10.0.0.1"), "10.0.0.1"),
        (Literal[b"a", 1], b"a", "YQ=="),
        (LiteralString, "a", "a"),
        (Composed, Composed.LEFT, 1),
        (list[int | str] | None, [1, "a"], [1, "a"]),
        (Any, {"a": [1]}, {"a": [1]}),
        (dict, {"a": [1]}, {"a": [1]}),
        (Annotated[int, "of pages"], 3, 3),
        (Union[int, None], None, None),  # noqa: UP007
        (Literal[Color.RED, "none"], Color.RED, "red"),
    ],
)
def test_the_json_of_a_value(annotation: Any, value: Any, json_value: Any) -> None:
    converter = converter_of(annotation)
    assert converter.write(value) == json_value
    assert same(converter.read(json_value), value)
    assert converter.write(json_value) == json_value


def test_a_whole_number_is_a_float_too() -> None:
    found = converter_of(float).write(3)
    assert type(found) is float
    assert converter_of(float).read(3) == 3.0


def test_a_sequence_comes_as_a_list() -> None:
    assert roundtrip(Sequence[int], (1, 2)) == [1, 2]
    assert roundtrip(Mapping[str, date], {"a": date(2026, 1, 1)}) == {"a": date(2026, 1, 1)}


def test_a_member_of_an_enumeration_may_be_given_for_its_plain_type() -> None:
    assert type(converter_of(str).write(Word.YES)) is str
    assert type(converter_of(int).write(Size.LARGE)) is int


def test_other_spellings_of_durations_and_instants_are_read() -> None:
    assert converter_of(timedelta).read("P1W") == timedelta(weeks=1)
    assert converter_of(timedelta).read("PT36H") == timedelta(hours=36)
    assert converter_of(datetime).read("2026-05-01T09:00:00Z").utcoffset() == timedelta()


def test_the_instant_stays_if_the_rules_of_its_zone_have_changed() -> None:
    # Written where the zone was at +03:00 then.
    found = converter_of(datetime).read("2026-05-01T10:00:00+03:00[Europe/Berlin]")
    assert found == datetime(2026, 5, 1, 7, tzinfo=UTC)
    assert found.tzinfo is BERLIN


def test_either_of_two_times_that_a_clock_shows_twice_is_kept() -> None:
    for fold in (0, 1):
        value = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold)
        assert roundtrip(datetime, value).fold == fold


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (int, "3", "an int, not str '3'"),
        (int, True, "an int, not bool True"),
        (int, 3.0, "an int, not float 3.0"),
        (bool, 1, "a bool, not int 1"),
        (str, 3, "a str, not int 3"),
        (str, None, "a str, not None"),
        (float, 2**53 + 1, "too large to be exact"),
        (float, 10**400, "too large"),
        (datetime, date(2026, 1, 1), "a datetime, not date"),
        (datetime, "soon", "a datetime, not str 'soon'"),
        (datetime, "2026-01-01T00:00:00[Europe/Berlin]", "needs an offset"),
        (datetime, "2026-01-01T00:00:00+00:00[Nowhere]", "no time zone 'Nowhere'"),
        (datetime, datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), "no such time in its zone"),
        (datetime, datetime(2026, 10, 25, 2, 30, fold=1), "fold"),  # noqa: DTZ001
        (time, time(2, 30, fold=1), "fold"),
        (date, datetime(2026, 1, 1, tzinfo=UTC), "a date, not datetime"),
        (timedelta, "P", "a timedelta"),
        (timedelta, "PT", "a timedelta"),
        (timedelta, 60, "a timedelta, not int 60"),
        (timedelta, "P999999999D" + "T86400S", "a timedelta"),
        (UUID, "x", "a UUID"),
        (Decimal, 1.5, "a Decimal, not float 1.5"),
        (Decimal, "x", "a Decimal"),
        (bytes, "a", "in base64"),
        (bytes, "ü", "bytes, not"),
        (Color, "green", "a Color ('red', 'blue'), not str 'green'"),
        (Size, True, "a Size"),
        (Corner, [0, 0], "a Corner (LEFT, RIGHT)"),
        (Literal["a", 1], True, "one of 'a', 1, not bool True"),
        (list[int], [1, "2"], "an int, not str '2'"),
        (list[int], (1, 2), "a list, each item an int, not tuple"),
        (tuple[int, str], [1], "a tuple of 2"),
        (dict[str, int], {1: 2}, "a str, not int 1"),
        (dict[int, int], {"01": 2}, "an int as key"),
        (dict[int, int], {1: 2, "1": 3}, "twice"),
        (set[list[int]], [[1]], "cannot be in a set"),
        (Line, Decimal(1), "a Line, not Decimal"),
        (Line, SpecialLine("a", Decimal(1)), "of a derived class"),
        (Line, {"item": "a"}, "a Line, not one without it"),
        (Line, {"item": "a", "price": "1", "prize": 2}, "which has no field 'prize'"),
        (Movie, {"seen": date(2026, 1, 1)}, "a Movie, not one without it"),
        (int | None, "x", "an int or None, not str 'x'"),
        (str | datetime, "2026-01-01T00:00:00+00:00", "it would be read as datetime"),
        (list[int] | dict[str, date], {"a": "x"}, "a date, not str 'x'"),
        (list[int] | int, [1, "x"], "an int, not str 'x'"),
        (datetime, Finer(2026, 1, 1, tzinfo=UTC), "finer than a microsecond"),
        (timedelta, timedelta.min, "too long"),
        (ZoneInfo, NAMELESS, "it has no name"),
        (Corner, Composed.BOTH, "a Corner"),
        (Composed, 8, "a Composed"),
        (tuple[int, str], 3, "a tuple of 2"),
        (tuple[int, str], [1, 2], "a str, not int 2"),
        (dict[str, int], 3, "a dict of"),
        (dict[UUID, int], {"x": 3}, "a UUID, not str 'x'"),
        (dict[int, int], {"x": 3}, "an int as key"),
        (Movie, 3, "a Movie"),
        (Movie, {"name": 3}, "a str, not int 3"),
        (Picky, {"pages": -1}, "ValueError: not below zero"),
    ],
)
def test_what_does_not_fit_is_refused(annotation: Any, value: Any, words: str) -> None:
    converter = converter_of(annotation)
    with pytest.raises(Mismatch) as caught:
        converter.read(converter.write(value))
    assert words in f"{caught.value.expected}, not {caught.value.found}"


def test_what_is_read_is_checked_like_what_is_written() -> None:
    for annotation, value in (
        (str, 3),
        (list[int], 3),
        (tuple[int, str], 3),
        (dict[str, int], 3),
        (Line, 3),
        (Movie, 3),
        (datetime, 3),
        (Color, 3),
        (int | None, "x"),
        (float, "x"),
    ):
        with pytest.raises(Mismatch):
            converter_of(annotation).read(value)


def test_a_refusal_says_where_in_the_value() -> None:
    order = {"id": str(uuid4()), "lines": [{"item": "a", "price": "1"}, {"item": 3, "price": "1"}]}
    with pytest.raises(Mismatch) as caught:
        converter_of(Order).read(order)
    assert caught.value.path == ".lines[1].item"
    with pytest.raises(Mismatch) as caught:
        converter_of(dict[str, list[date]]).write({"a": ["2026-01-01", "x"]})
    assert caught.value.path == "['a'][1]"


def test_what_is_shown_of_a_value_is_bounded_and_in_one_line() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in ("\x1b[31m" * 1_000, "a\nb", Hostile()):
        with pytest.raises(Mismatch) as caught:
            converter_of(int).write(value)
        assert caught.value.found.isprintable()
        assert len(caught.value.found) < 600


def test_a_value_that_contains_itself_is_refused() -> None:
    order = Order(uuid4(), [])
    order.parts[date(2026, 1, 1)] = order
    with pytest.raises(Mismatch, match="nested too deeply"):
        converter_of(Order).write(order)


class Unknown:
    pass


@dataclass
class WithUnknown:
    inner: list[Unknown]


@dataclass
class WithMissing:
    inner: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Unknown, "Unknown"),
        (list[Unknown], "Unknown"),
        (WithUnknown, "Unknown, in the field inner of WithUnknown"),
        (WithMissing, "annotations of WithMissing cannot be read"),
        (type[int], "type"),
        (complex, "complex"),
        (dict[Unknown, int], "Unknown"),
        (Literal[1j], "Literal[1j]"),
    ],
)
def test_what_has_no_converter_says_which_part(annotation: Any, words: str) -> None:
    with pytest.raises(Unconvertible) as caught:
        converter_of(annotation)
    assert words in str(caught.value)
