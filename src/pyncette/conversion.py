"""What an annotation means for an argument: how its value is written as JSON, and read back.

A ``Converter`` is made of an annotation once. It writes a value of that type, or what is its JSON
already, and reads it back as an equal value of the same type. What it cannot read back as it was,
it refuses to write. The types of the standard library are converted here, which keeps zones and
takes unions that general libraries refuse. Models of pydantic are converted by pydantic, which is
installed where there are any.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum, Flag
from functools import partial
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

SHOWN_MAX: Final = 100
"""Characters of a value that an error shows."""

_DEPTH_MAX: Final = 100
"""How deeply a value of a type that contains itself may be nested."""


class Unconvertible(Exception):  # noqa: N818 - a fact about an annotation
    """An annotation has no converter. The text says which part of it, and why."""


class Mismatch(Exception):  # noqa: N818 - a fact about a value
    """A value is not of a type.

    Attributes:
        expected: What was expected, as a noun.
        found: What was found.
        path: Where in the value, as Python would write it; empty: the value itself.
    """

    def __init__(self, expected: str, found: str, path: str = "") -> None:
        super().__init__(expected, found, path)
        self.expected = expected
        self.found = found
        self.path = path

    def inside(self, step: str) -> Mismatch:
        """Returns the same of a value that contains this one."""
        return Mismatch(self.expected, self.found, step + self.path)


def refuse(expected: str, value: object, why: str = "") -> NoReturn:
    """Raises that a value is not what was expected."""
    raise Mismatch(expected, shown(value) + (f" ({why})" if why else ""))


def shown(value: object) -> str:
    """The type and the value, as bounded text in one line."""
    if value is None:
        return "None"
    try:
        text = repr(value)
    except Exception:  # nested too deeply, or with a repr of its own
        text = "that cannot be shown"
    if len(text) > SHOWN_MAX:
        text = f"{text[:SHOWN_MAX]}…"
    if not text.isprintable():
        text = ascii(text)[1:-1]
    return f"{type(value).__name__} {text}"


class Converter:
    """Writes values of one type as JSON, and reads them back.

    Attributes:
        name: The type, for messages.
    """

    name: str

    def takes(self, value: object) -> bool:
        """Returns whether a value is of this type, as far as its own class tells."""
        raise NotImplementedError

    def write(self, value: Any) -> Any:
        """Returns the JSON of a value; the value may be JSON of this type already.

        Raises:
            Mismatch: It is neither, or would not be read back as it is.
        """
        raise NotImplementedError

    def read(self, value: Any) -> Any:
        """Returns the value that its JSON stands for.

        Raises:
            Mismatch: It is no JSON of this type.
        """
        raise NotImplementedError


class _Anything(Converter):
    """Leaves JSON as it is, which is checked when it is stored."""

    name = "anything that JSON can hold"

    def takes(self, value: object) -> bool:
        return True

    def write(self, value: Any) -> Any:
        return value

    def read(self, value: Any) -> Any:
        return value


ANYTHING: Final = _Anything()


class _Plain(Converter):
    """A type that JSON has itself."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def takes(self, value: object) -> bool:
        return type(value) is self.kind

    def write(self, value: Any) -> Any:
        if type(value) is self.kind:
            return value
        # Such as members of StrEnum, and strings that say that they are safe.
        if isinstance(value, str) and self.kind is str:
            return str.__str__(value)
        if isinstance(value, int) and not isinstance(value, bool) and self.kind is int:
            return int.__int__(value)
        refuse(self.name, value)

    def read(self, value: Any) -> Any:
        return value if type(value) is self.kind else refuse(self.name, value)


class _Float(_Plain):
    """A whole number is taken, too, as type checkers do."""

    def write(self, value: Any) -> Any:
        if isinstance(value, float):
            return float.__float__(value)
        return self._of_whole(value)

    def read(self, value: Any) -> Any:
        return value if type(value) is float else self._of_whole(value)

    def _of_whole(self, value: Any) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                refuse(self.name, value, "too large")
            return number if number == value else refuse(self.name, value, "too large to be exact")
        refuse(self.name, value)


class _Text(Converter):
    """A type whose values are written as text."""

    def __init__(
        self,
        kind: type,
        name: str,
        to_text: Callable[[Any], str],
        from_text: Callable[[str], Any],
    ) -> None:
        self.kind = kind
        self.name = name
        self._to_text = to_text
        self._from_text = from_text

    def takes(self, value: object) -> bool:
        return isinstance(value, self.kind)

    def write(self, value: Any) -> Any:
        if not self.takes(value):
            if type(value) is not str:
                refuse(self.name, value)
            value = self.read(value)
        try:
            return self._to_text(value)
        except ValueError as error:
            refuse(self.name, value, str(error))

    def read(self, value: Any) -> Any:
        if type(value) is not str:
            refuse(self.name, value)
        try:
            return self._from_text(value)
        except (ValueError, ArithmeticError, KeyError) as error:
            why = str(error) if isinstance(error, _Said) else ""
            refuse(self.name, value, why)


class _Date(_Text):
    def takes(self, value: object) -> bool:
        return isinstance(value, date) and not isinstance(value, datetime)


class _Said(ValueError):  # noqa: N818
    """Its text belongs into the message."""


_ZONED: Final = re.compile(r"(.*)\[([^\[\]]+)\]", re.DOTALL)


def _zone_of(value: datetime | time) -> str:
    """The name of the zone, as RFC 9557 writes it; nothing for an offset."""
    zone = value.tzinfo
    key = zone.key if isinstance(zone, ZoneInfo) else None
    return "" if key is None else f"[{key}]"


def _zone(key: str) -> ZoneInfo:
    try:
        return ZoneInfo(key)
    except (ValueError, OSError, KeyError):
        raise _Said(f"there is no time zone '{key[:SHOWN_MAX]}' here") from None


def _datetime_text(value: datetime) -> str:
    if value.tzinfo is None and value.fold:
        raise ValueError("its fold would be lost: give it a time zone")
    zone = _zone_of(value)
    text = f"{value.isoformat()}{zone}"
    if not zone and type(value) is datetime:
        return text
    try:
        same = _datetime_of(text).replace(tzinfo=None) == value.replace(tzinfo=None)
    except (ValueError, OverflowError):
        same = False
    if not same:
        raise ValueError("there is no such time in its zone, or it is finer than a microsecond")
    return text


def _datetime_of(text: str) -> datetime:
    zoned = _ZONED.fullmatch(text)
    if zoned is None:
        return datetime.fromisoformat(text)
    instant = datetime.fromisoformat(zoned[1])
    if instant.tzinfo is None:
        raise _Said("a zone needs an offset before it")
    # The instant stays, also if the rules of the zone have changed.
    return instant.astimezone(UTC).astimezone(_zone(zoned[2]))


def _time_text(value: time) -> str:
    if value.fold:
        raise ValueError("its fold would be lost")
    return f"{value.isoformat()}{_zone_of(value)}"


def _time_of(text: str) -> time:
    zoned = _ZONED.fullmatch(text)
    if zoned is None:
        return time.fromisoformat(text)
    return time.fromisoformat(zoned[1]).replace(tzinfo=_zone(zoned[2]))


def _timedelta_text(value: timedelta) -> str:
    sign = "-" if value < timedelta() else ""
    value = abs(value) if value != timedelta.min else value
    if value < timedelta():
        raise ValueError("too long")
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    days = f"{value.days}D" if value.days else ""
    clock = "".join(
        f"{number}{unit}"
        for number, unit in ((hours, "H"), (minutes, "M"), (f"{seconds}{fraction}", "S"))
        if number not in (0, "0")
    )
    if not days and not clock:
        return "PT0S"
    return f"{sign}P{days}{'T' if clock else ''}{clock}"


_DURATION: Final = re.compile(
    r"(?P<sign>[+-]?)P(?:(?P<weeks>\d{1,9})W)?(?:(?P<days>\d{1,9})D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d{1,9})H)?(?:(?P<minutes>\d{1,9})M)?"
    r"(?:(?P<seconds>\d{1,12})(?:[.,](?P<fraction>\d{1,6}))?S)?)?",
    re.ASCII,
)


def _timedelta_of(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or text.endswith(("P", "T")):
        raise ValueError
    parts = {
        unit: int(found[unit] or 0) for unit in ("weeks", "days", "hours", "minutes", "seconds")
    }
    length = timedelta(**parts, microseconds=int((found["fraction"] or "").ljust(6, "0")))
    return -length if found["sign"] == "-" else length


def _decimal_of(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError from None


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _Said("not in base64") from None


def _zone_name(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise ValueError("it has no name")
    return zone.key


_TEXTS: Final[dict[type, _Text]] = {
    datetime: _Text(datetime, "a datetime", _datetime_text, _datetime_of),
    date: _Date(date, "a date", date.isoformat, date.fromisoformat),
    time: _Text(time, "a time", _time_text, _time_of),
    timedelta: _Text(timedelta, "a timedelta", _timedelta_text, _timedelta_of),
    UUID: _Text(UUID, "a UUID", str, UUID),
    Decimal: _Text(Decimal, "a Decimal", str, _decimal_of),
    bytes: _Text(bytes, "bytes", lambda value: base64.b64encode(value).decode(), _bytes_of),
    ZoneInfo: _Text(ZoneInfo, "a ZoneInfo", _zone_name, _zone),
    **{
        kind: _Text(kind, f"a {kind.__name__}", str, kind)
        for kind in (Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath)
    },
}

_PLAIN: Final[dict[type, Converter]] = {
    str: _Plain(str, "a str"),
    int: _Plain(int, "an int"),
    bool: _Plain(bool, "a bool"),
    float: _Float(float, "a float"),
    type(None): _Plain(type(None), "None"),
}


class _Member(Converter):
    """A member of an enumeration, by its value; by its name if JSON cannot hold the values."""

    def __init__(self, kind: type[Enum]) -> None:
        self.kind = kind
        members = [*kind.__members__.values()]
        self.by_name = not all(type(member.value) in (str, int, float) for member in members)
        texts = [member.name if self.by_name else repr(member.value) for member in members]
        self.name = f"a {kind.__name__} ({', '.join(dict.fromkeys(texts))[:SHOWN_MAX]})"

    def takes(self, value: object) -> bool:
        return isinstance(value, self.kind)

    def write(self, value: Any) -> Any:
        if not isinstance(value, self.kind):
            value = self.read(value)
        if not self.by_name:
            return value.value
        return value.name if value.name in self.kind.__members__ else refuse(self.name, value)

    def read(self, value: Any) -> Any:
        try:
            if self.by_name:
                return self.kind.__members__[value]
            if type(value) not in (str, int, float):
                refuse(self.name, value)
            found = self.kind(value)
        except (ValueError, KeyError, TypeError):
            refuse(self.name, value)
        if issubclass(self.kind, Flag):
            # Before Python 3.11.4, bits that no flag has are dropped.
            same = found.value == value
        else:
            same = type(found.value) is type(value)
        return found if same else refuse(self.name, value)


class _OneOf(Converter):
    """One of the values that a ``Literal`` names."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._converters: list[tuple[Any, Converter]] = []
        for value in values:
            inner = _Member(type(value)) if isinstance(value, Enum) else _PLAIN.get(type(value))
            if inner is None and type(value) is bytes:
                inner = _TEXTS[bytes]
            if inner is None:
                raise Unconvertible(f"Literal[{value!r}]")
            self._converters.append((value, inner))
        self.name = f"one of {', '.join(map(repr, values))}"[:SHOWN_MAX]

    def takes(self, value: object) -> bool:
        return any(type(value) is type(one) and value == one for one, _ in self._converters)

    def write(self, value: Any) -> Any:
        for one, inner in self._converters:
            if type(value) is type(one) and value == one:
                return inner.write(one)
        return self.write(self.read(value))

    def read(self, value: Any) -> Any:
        for one, inner in self._converters:
            text = inner.write(one)
            if type(text) is type(value) and text == value:
                return one
        refuse(self.name, value)


class _Items(Converter):
    """A list, a set, or a tuple of any length: items of one type, as a JSON array."""

    def __init__(self, kind: type, item: Converter, name: str, also: tuple[type, ...] = ()) -> None:
        self.kind = kind
        self._item = item
        self._also = also
        self.name = name

    def takes(self, value: object) -> bool:
        return isinstance(value, self.kind)

    def write(self, value: Any) -> Any:
        if not isinstance(value, Iterable) or not isinstance(value, (self.kind, list, *self._also)):
            refuse(self.name, value)
        found = _each(value, self._item.write)
        if issubclass(self.kind, (set, frozenset)):
            # In an order of their own, so that an equal set is the same text.
            found.sort(key=lambda item: json.dumps(item, sort_keys=True))
        return found

    def read(self, value: Any) -> Any:
        if type(value) is not list:
            refuse(self.name, value)
        found = _each(value, self._item.read)
        if self.kind is list:
            return found
        try:
            return self.kind(found)
        except TypeError:
            refuse(self.name, value, "an item cannot be in a set")


def _each(values: Iterable[Any], convert: Callable[[Any], Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        try:
            found.append(convert(value))
        except Mismatch as error:
            raise error.inside(f"[{len(found)}]") from None
    return found


class _Row(Converter):
    """A tuple of a certain length, or a ``NamedTuple``, as a JSON array."""

    def __init__(
        self, kind: type, make: Callable[..., Any], items: Sequence[Converter], required: int
    ) -> None:
        self.kind = kind
        self._make = make
        self._items = items
        self._required = required
        self.name = f"a {kind.__name__} of {len(items)}"

    def takes(self, value: object) -> bool:
        return type(value) is self.kind

    def write(self, value: Any) -> Any:
        if type(value) not in (self.kind, list):
            refuse(self.name, value)
        return self._converted(value, lambda item: item.write)

    def read(self, value: Any) -> Any:
        if type(value) is not list:
            refuse(self.name, value)
        return self._make(self._converted(value, lambda item: item.read))

    def _converted(
        self, value: Sequence[Any], way: Callable[[Converter], Callable[[Any], Any]]
    ) -> list[Any]:
        if not self._required <= len(value) <= len(self._items):
            refuse(self.name, value)
        found: list[Any] = []
        for converter, item in zip(self._items, value, strict=False):
            try:
                found.append(way(converter)(item))
            except Mismatch as error:
                raise error.inside(f"[{len(found)}]") from None
        return found


class _Mapping(Converter):
    """A dictionary, as a JSON object. Keys that are not text are written as text."""

    def __init__(self, key: Converter, value: Converter, name: str) -> None:
        self._key = key
        self._value = value
        self._counts = isinstance(key, _Plain) and key.kind is int
        self.name = name

    def takes(self, value: object) -> bool:
        return isinstance(value, dict)

    def write(self, value: Any) -> Any:
        if not isinstance(value, (dict, Mapping)):
            refuse(self.name, value)
        found: dict[str, Any] = {}
        for key, item in value.items():
            text = self._key_text(key)
            if text in found:
                refuse(self.name, value, f"the key {shown(key)} comes twice")
            found[text] = self._at(key, self._value.write, item)
        return found

    def read(self, value: Any) -> Any:
        if type(value) is not dict:
            refuse(self.name, value)
        return {
            self._key_of(text): self._at(text, self._value.read, item)
            for text, item in value.items()
        }

    def _key_text(self, key: Any) -> str:
        if self._counts and type(key) is str:
            key = self._key_of(key)
        text = self._at(key, self._key.write, key)
        if self._counts:
            return str(text)
        return text if type(text) is str else refuse("a key that is written as text", key)

    def _key_of(self, text: Any) -> Any:
        if self._counts:
            try:
                number = int(text)
            except ValueError:
                number = None
            return number if str(number) == text else refuse("an int as key", text)
        return self._at(text, self._key.read, text)

    @staticmethod
    def _at(key: Any, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except Mismatch as error:
            raise error.inside(f"[{_key_shown(key)}]") from None


def _key_shown(key: object) -> str:
    return shown(key).partition(" ")[2] or "None"


class _Fields(Converter):
    """A dataclass, or a ``TypedDict``: its fields, as a JSON object."""

    def __init__(
        self,
        kind: type,
        fields: Mapping[str, Converter],
        required: frozenset[str],
        typed_dict: bool,
    ) -> None:
        self.kind = kind
        self._fields = fields
        self._required = required
        self._typed_dict = typed_dict
        self.name = f"a {kind.__name__}"

    def takes(self, value: object) -> bool:
        # Not of a class derived from it: what that one adds would be lost.
        return type(value) is (dict if self._typed_dict else self.kind)

    def write(self, value: Any) -> Any:
        if self._typed_dict or type(value) is dict:
            if not isinstance(value, dict):
                refuse(self.name, value)
            if not self._typed_dict:
                value = self.read(value)
        elif type(value) is not self.kind:
            why = "of a derived class" if isinstance(value, self.kind) else ""
            refuse(self.name, value, why)
        if self._typed_dict:
            return self._converted(value, lambda field: field.write)
        found = {name: getattr(value, name) for name in self._fields}
        return self._converted(found, lambda field: field.write)

    def read(self, value: Any) -> Any:
        if type(value) is not dict:
            refuse(self.name, value)
        found = self._converted(value, lambda field: field.read)
        if self._typed_dict:
            return found
        try:
            return self.kind(**found)
        except (TypeError, ValueError) as error:
            refuse(self.name, value, f"{type(error).__name__}: {str(error)[:SHOWN_MAX]}")

    def _converted(
        self, values: Mapping[Any, Any], way: Callable[[Converter], Callable[[Any], Any]]
    ) -> dict[str, Any]:
        if missing := self._required.difference(values):
            raise Mismatch(self.name, "one without it", f".{min(missing)}")
        found: dict[str, Any] = {}
        for name, value in values.items():
            field = self._fields.get(name)
            if field is None:
                refuse(f"{self.name}, which has no field {_key_shown(name)}", values)
            try:
                found[name] = way(field)(value)
            except Mismatch as error:
                raise error.inside(f".{name}") from None
        return found


class _Either(Converter):
    """One of several types. What is read back must be what was written."""

    def __init__(self, members: Sequence[Converter]) -> None:
        self._members = members
        # Any text is a str, so it is asked last; and a float may stand for an int.
        self._readers = sorted(members, key=_generality)
        names = [member.name for member in members]
        self.name = " or ".join(names)

    def takes(self, value: object) -> bool:
        return any(member.takes(value) for member in self._members)

    def write(self, value: Any) -> Any:
        refused: list[Mismatch] = []
        for member in self._readers:
            if member.takes(value):
                try:
                    text = member.write(value)
                except Mismatch as error:
                    refused.append(error)
                    continue
                back = self.read(text)
                if type(back) is not type(value) or back != value:
                    refuse(self.name, value, f"it would be read as {shown(back)}")
                return text
        for member in self._readers:
            if not member.takes(value):
                try:
                    return member.write(value)
                except Mismatch as error:
                    refused.append(error)
        raise self._mismatch(value, refused)

    def read(self, value: Any) -> Any:
        refused: list[Mismatch] = []
        for member in self._readers:
            try:
                return member.read(value)
            except Mismatch as error:
                refused.append(error)
        raise self._mismatch(value, refused)

    def _mismatch(self, value: Any, refused: Sequence[Mismatch]) -> Mismatch:
        inside = [error for error in refused if error.path]
        return inside[0] if len(inside) == 1 else Mismatch(self.name, shown(value))


def _generality(converter: Converter) -> int:
    match converter:
        case _Anything():
            return 4
        case _Float():
            return 3
        case _Plain(kind=kind) if kind is str:
            return 2
        case _Items() | _Mapping():
            return 1
    return 0


class _Later(Converter):
    """A type that contains itself: its converter is found when all are made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.converter: Converter = ANYTHING

    def takes(self, value: object) -> bool:
        return self.converter.takes(value)

    def write(self, value: Any) -> Any:
        return self._nested(self.converter.write, value)

    def read(self, value: Any) -> Any:
        return self._nested(self.converter.read, value)

    def _nested(self, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except RecursionError:
            raise Mismatch(self.name, "one that is nested too deeply") from None


class _Modelled(Converter):
    """A type that pydantic knows."""

    def __init__(self, annotation: Any, name: str) -> None:
        try:
            from pydantic import TypeAdapter

            self._adapter: Any = TypeAdapter(annotation)
        except Exception as error:
            raise Unconvertible(f"pydantic refuses it: {str(error)[:SHOWN_MAX]}") from error
        self._kind = annotation if isinstance(annotation, type) else None
        self.name = f"a {name}"

    def takes(self, value: object) -> bool:
        return self._kind is None or isinstance(value, self._kind)

    def write(self, value: Any) -> Any:
        if self._kind is None or not isinstance(value, self._kind):
            value = self._checked(partial(self._adapter.validate_python, value), value)
        found = self._checked(
            lambda: json.loads(self._adapter.dump_json(value, by_alias=True, warnings="error")),
            value,
        )
        back = self.read(found)
        if type(back) is not type(value) or back != value:
            refuse(self.name, value, "it would not be read back as it is")
        return found

    def read(self, value: Any) -> Any:
        return self._checked(lambda: self._adapter.validate_json(json.dumps(value)), value)

    def _checked(self, convert: Callable[[], Any], value: Any) -> Any:
        try:
            return convert()
        except (ValueError, TypeError) as error:
            errors = getattr(error, "errors", None)
            if errors is None:
                refuse(self.name, value, " ".join(str(error).split())[:SHOWN_MAX])
            first = errors(include_url=False)[0]
            path = "".join(
                f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"]
            )
            raise Mismatch(
                self.name, f"{shown(first['input'])} ({first['msg'][:SHOWN_MAX]})", path
            ) from None


def converter_of(annotation: Any) -> Converter:
    """Returns the converter of an annotation, with all names in it resolved.

    Raises:
        Unconvertible: There is none.
    """
    return _made(annotation, {})


def _made(annotation: Any, made: dict[Any, _Later]) -> Converter:
    if annotation is Any or annotation is object:
        return ANYTHING
    annotation = type(None) if annotation is None else annotation
    if isinstance(annotation, typing.NewType):
        return _made(annotation.__supertype__, made)
    if sys.version_info >= (3, 12) and isinstance(annotation, typing.TypeAliasType):
        return _remembered(annotation, made, lambda: _made(annotation.__value__, made))
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        if any(_is_of_pydantic(extra) for extra in arguments[1:]):
            return _Modelled(annotation, getattr(arguments[0], "__name__", str(arguments[0])))
        return _made(arguments[0], made)
    if origin in (typing.Required, typing.NotRequired) or str(origin) == "typing.ReadOnly":
        return _made(arguments[0], made)
    if origin is typing.Union or origin is types.UnionType:
        return _Either([_made(member, made) for member in arguments])
    if origin is typing.Literal:
        return _OneOf(arguments)
    if annotation is typing.LiteralString:
        return _PLAIN[str]
    if isinstance(annotation, type) and origin is None:
        found = _of_class(annotation, made)
        if found is not None:
            return found
    found = _container(origin or annotation, arguments, made)
    if found is None:
        raise Unconvertible(_spelt(annotation))
    return found


def _spelt(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return str(annotation)[:SHOWN_MAX]


def _is_of_pydantic(extra: object) -> bool:
    """Returns whether an addition to an annotation is a rule that pydantic checks."""
    module = type(extra).__module__.partition(".")[0]
    return module in ("pydantic", "annotated_types") or hasattr(
        extra, "__get_pydantic_core_schema__"
    )


def _remembered(
    annotation: Any, made: dict[Any, _Later], make: Callable[[], Converter]
) -> Converter:
    known = made.get(annotation)
    if known is not None:
        return known
    later = made[annotation] = _Later(f"a {annotation.__name__}")
    try:
        later.converter = make()
    finally:
        del made[annotation]
    return later.converter


def _of_class(kind: type, made: dict[Any, _Later]) -> Converter | None:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _TEXTS:
        return _TEXTS[kind]
    if issubclass(kind, Enum):
        return _Member(kind)
    if kind.__module__ == "ipaddress":
        return _Text(kind, f"an {kind.__name__}", str, kind)
    if hasattr(kind, "__pydantic_core_schema__") or hasattr(kind, "__get_pydantic_core_schema__"):
        return _Modelled(kind, kind.__name__)
    if typing.is_typeddict(kind):
        return _remembered(kind, made, lambda: _of_typed_dict(kind, made))
    if dataclasses.is_dataclass(kind):
        return _remembered(kind, made, lambda: _of_dataclass(kind, made))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _remembered(kind, made, lambda: _of_named_tuple(kind, made))
    return None


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:SHOWN_MAX]}"
        raise Unconvertible(f"the annotations of {kind.__qualname__} cannot be read ({why})") from (
            error
        )


def _inner(kind: type, name: str, annotation: Any, made: dict[Any, _Later]) -> Converter:
    try:
        return _made(annotation, made)
    except Unconvertible as error:
        raise Unconvertible(f"{error}, in the field {name} of {kind.__qualname__}") from None


def _fields(
    kind: type,
    hints: Mapping[str, Any],
    required: frozenset[str],
    made: dict[Any, _Later],
    typed_dict: bool = False,
) -> Converter:
    fields = {name: _inner(kind, name, hint, made) for name, hint in hints.items()}
    return _Fields(kind, fields, required, typed_dict)


def _of_typed_dict(kind: Any, made: dict[Any, _Later]) -> Converter:
    hints = _hints(kind)
    # What the class itself says is wrong where annotations are text.
    required = frozenset(
        name
        for name, hint in hints.items()
        if typing.get_origin(hint) is typing.Required
        or (name in kind.__required_keys__ and typing.get_origin(hint) is not typing.NotRequired)
    )
    return _fields(kind, hints, required, made, typed_dict=True)


def _of_dataclass(kind: Any, made: dict[Any, _Later]) -> Converter:
    hints = _hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    return _fields(
        kind,
        {field.name: hints[field.name] for field in fields},
        frozenset(
            field.name
            for field in fields
            if field.default is missing and field.default_factory is missing
        ),
        made,
    )


def _of_named_tuple(kind: Any, made: dict[Any, _Later]) -> Converter:
    hints = _hints(kind)
    items = [_inner(kind, name, hints.get(name, Any), made) for name in kind._fields]
    required = len(items) - len(kind._field_defaults)
    return _Row(kind, lambda found: kind(*found), items, required)


_LISTS: Final = (list, abc.Sequence, abc.Collection, abc.Iterable, abc.MutableSequence)
_SETS: Final[dict[Any, type]] = {
    set: set,
    abc.Set: set,
    abc.MutableSet: set,
    frozenset: frozenset,
}
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)


def _container(kind: Any, arguments: tuple[Any, ...], made: dict[Any, _Later]) -> Converter | None:
    def item(index: int = 0) -> Converter:
        return _made(arguments[index], made) if arguments else ANYTHING

    if kind is tuple:
        if not arguments or arguments[-1:] == (Ellipsis,):
            return _Items(tuple, item(), _of("a tuple", arguments, item))
        return _Row(tuple, tuple, [_made(one, made) for one in arguments], len(arguments))
    if kind in _LISTS:
        # A sequence may be a tuple, and comes as a list.
        also = () if kind in (list, abc.MutableSequence) else (tuple,)
        return _Items(list, item(), _of("a list", arguments, item), also)
    if kind in _SETS:
        return _Items(_SETS[kind], item(), _of(f"a {_SETS[kind].__name__}", arguments, item))
    if kind in _MAPPINGS:
        if not arguments:
            return _Mapping(_PLAIN[str], ANYTHING, "a dict")
        return _Mapping(item(0), item(1), f"a dict of {item(0).name} to {item(1).name}")
    return None


def _of(what: str, arguments: tuple[Any, ...], item: Callable[[], Converter]) -> str:
    return f"{what}, each item {item().name}" if arguments else what
