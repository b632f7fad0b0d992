"""What comes due in the coming hour, as the dashboard shows it."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape

import pytest
from tests.support import run
from tests.unit.web_site import Site, text

from pyncette import Context, PyncetteContext
from pyncette.web import soon


async def cells(site: Site, task: str) -> list[tuple[int, str]]:
    """The cells of a task: how many steps each one has, and what it says."""
    page = (await site.browser.get("next")).partition('id="soonest"')[0]
    [row] = re.findall(rf">{task}</a></th>(.*?)</tr>", page, re.S)
    found = re.findall(r"<td(?: colspan=\"(\d+)\")? class=\"cell[^>]*>(.*?)</td>", row)
    return [(int(steps or 1), unescape(said)) for steps, said in found]


async def due_in(context: PyncetteContext, site: Site, *minutes: int) -> None:
    for number, minute in enumerate(minutes):
        await context.schedule_task(site.send, f"i{number}", execute_in=timedelta(minutes=minute))


NONE = (1, "·")


def test_few_instances_are_counted_in_steps_of_five_minutes() -> None:
    async def main() -> None:
        async with Site().opened() as site:
            await due_in(site.context, site, 0, 1, 7, 58, 61)
            assert await cells(site, "send") == [(1, "2"), (1, "1"), *[NONE] * 9, (1, "1")]
            page = text(await site.browser.get("next"))
            assert "send:i3 in 58 min" in page
            assert "send:i4" not in page

    run(main())


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (48, [(1, "1"), NONE, NONE, (1, "3"), *[NONE] * 8]),
        (47, [(2, "1"), (2, "3"), *[(2, "·")] * 4]),
        (12, [(4, "4"), (4, "·"), (4, "·")]),
        (7, [(12, "4")]),
    ],
)
def test_many_instances_are_counted_in_longer_steps_so_that_counts_read_no_more_than_they_may(
    counted: int, expected: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soon, "COUNTED_MAX", counted)

    async def main() -> None:
        async with Site().opened() as site:
            await due_in(site.context, site, 1, 16, 17, 18)
            assert await cells(site, "send") == expected

    run(main())


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        ((0, 0, 0, 0), [(12, "more than 3")]),
        ((0, 9, 9, 9), [(1, "1"), (11, "more than 2")]),
        ((9, 9, 9, 9), [NONE, (11, "more than 3")]),
    ],
)
def test_very_many_instances_are_not_counted_to_the_end(
    minutes: tuple[int, ...], expected: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soon, "COUNT_LIMIT", 3)

    async def main() -> None:
        async with Site().opened() as site:
            await due_in(site.context, site, *minutes)
            assert await cells(site, "send") == expected

    run(main())


async def nothing(context: Context) -> None: ...


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("5/10 * * * *", ["·", "1"] * 6),
        ("* * * * *", ["4", *["5"] * 11]),
        ("*/5 * * * * *", ["59", *["60"] * 5] + ["more than 41"] + ["many"] * 5),
    ],
)
def test_the_occurrences_of_a_static_task_are_counted_up_to_a_number(
    cron: str, expected: list[str]
) -> None:
    async def main() -> None:
        site = Site()
        site.app.task(schedule=cron, name="ping")(nothing)
        async with site.opened():
            await site.context.run_until_idle()
            assert await cells(site, "ping") == [(1, said) for said in expected]

    run(main())


def test_a_look_that_takes_long_goes_on_with_the_other_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soon, "LOOKING_S", 0)
    monkeypatch.setattr(soon, "LOOKS_AT_ONCE", 1)

    async def main() -> None:
        site = Site()
        for name in ("one", "two", "three"):
            site.app.task(interval=timedelta(hours=1), name=name)(nothing)
        async with site.opened():
            await site.context.run_until_idle()
            pages = [text(await site.browser.get("next")) for _ in range(5)]
            left = [re.findall(r"Not looked at yet: ([^.]*)\.", page) for page in pages]
            assert left == [["one, two, three"], ["two, three"], ["three"], [], []]

    run(main())
