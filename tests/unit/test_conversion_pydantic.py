"""Models of pydantic as arguments of tasks, where pydantic is installed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from tests.support import Bench, after, run

from pyncette import ArgumentError, Context
from pyncette.conversion import Mismatch, Unconvertible, converter_of

pydantic = pytest.importorskip("pydantic")


class Line(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    item: str
    count: int = pydantic.Field(default=1, gt=0, alias="number")


class Order(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    email: str
    at: datetime
    lines: list[Line] = pydantic.Field(default_factory=list)


class WithSecret(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    password: pydantic.SecretStr  # type: ignore[name-defined]


@dataclass
class Parcel:
    order: Order | None


@pydantic.dataclasses.dataclass
class Modelled:
    count: Annotated[int, pydantic.Field(gt=0)]


class Broken:
    def __get_pydantic_core_schema__(self) -> None: ...


ORDER = Order(email="a", at=datetime(2026, 1, 1, tzinfo=UTC), lines=[Line(item="b", number=2)])


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Order, ORDER),
        (list[Order], [ORDER]),
        (Parcel, Parcel(ORDER)),
        (Parcel, Parcel(None)),
        (Modelled, Modelled(3)),  # type: ignore[call-arg]
        (Order | None, ORDER),
        (Annotated[int, pydantic.Field(gt=0)], 3),
    ],
)
def test_a_model_is_read_back_as_it_was(annotation: Any, value: Any) -> None:
    converter = converter_of(annotation)
    written = json.loads(json.dumps(converter.write(value)))
    assert converter.read(written) == value
    assert converter.write(written) == written


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (Order, {"email": "a"}, "Field required"),
        (Order, 3, "an? Order"),
        (WithSecret, WithSecret(password="x"), "not be read back as it is"),
        (Annotated[int, pydantic.Field(gt=0)], 0, "greater than 0"),
        (Modelled, {"count": 0}, "greater than 0"),
    ],
)
def test_what_a_model_does_not_take_is_refused(annotation: Any, value: Any, words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        converter_of(annotation).write(value)


def test_a_refusal_says_where_in_the_model() -> None:
    with pytest.raises(Mismatch) as caught:
        converter_of(Parcel).read(
            {"order": {"email": "a", "at": "2026-01-01T00:00:00Z", "lines": [{"item": 3}]}}
        )
    assert caught.value.path == ".order.lines[0].item"


def test_a_class_that_pydantic_refuses_has_no_converter() -> None:
    with pytest.raises(Unconvertible, match="pydantic refuses it"):
        converter_of(Broken)


def test_a_task_takes_a_model() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Order] = []

        @bench.app.dynamic_task()
        async def ship(context: Context, order: Order) -> None:
            seen.append(order)

        async with bench.running() as context:
            await context.schedule_task(ship, "x", execute_at=after(1), args=ship.args(order=ORDER))
            with pytest.raises(ArgumentError, match=r"'order' of 'ship:y' must be an? Order"):
                await context.schedule_task(ship, "y", execute_at=after(1), order={"email": 3})
            await bench.advance(1)
        assert seen == [ORDER]

    run(main())
