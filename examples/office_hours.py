"""Schedules that cron cannot say: unions, public holidays, bounds, a spread, a rule of a calendar.

Run it with ``python office_hours.py``: it prints when each task runs next. It needs
``pip install 'pyncette[holidays]'``.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from pyncette import Calendar, Context, Cron, Every, Pyncette, Rule
from pyncette.calendars import holidays

BERLIN = "Europe/Berlin"

app = Pyncette()

app.calendar("berlin")(holidays("DE", subdivision="BE"))

weekdays = Cron("0 9 * * MON-FRI", BERLIN)
saturdays = Cron("0 11 * * SAT", BERLIN)


@app.task(schedule=(weekdays | saturdays) - Calendar("berlin"))
async def open_the_office(context: Context) -> None:
    [following] = context.upcoming(1)
    print(f"Open since {context.scheduled_at:%a %H:%M}, next time {following:%a %H:%M}")


@app.task(
    schedule=Rule(
        "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
        start=datetime(2026, 1, 30, 12),  # noqa: DTZ001 (a time on the clocks of the zone)
        timezone=BERLIN,
    )
)
async def pay_salaries(context: Context) -> None:
    print(f"Salaries of {context.scheduled_at:%B}")


@app.task(
    schedule=Every(timedelta(minutes=20), anchor=datetime(2026, 1, 1, tzinfo=UTC)),
    start_at=datetime(2026, 7, 1, tzinfo=UTC),
    end_at=datetime(2026, 8, 31, tzinfo=UTC),
)
async def measure_the_heat(context: Context) -> None:
    print(f"{context.scheduled_at:%H:%M}")


# Many users have a report at 9, and none of them waits longer than ten minutes.
@app.dynamic_task(schedule=weekdays - Calendar("berlin"), jitter=timedelta(minutes=10))
async def report(context: Context) -> None:
    print(f"Report for {context.args['user']}, planned for {context.scheduled_at:%H:%M}")


async def main() -> None:
    async with app.create() as context:
        for task in (open_the_office, pay_salaries, measure_the_heat, report):
            times = await context.preview(task, 3)
            print(f"{task.name}: {', '.join(f'{time:%a %d %b %H:%M}' for time in times)}")


if __name__ == "__main__":
    asyncio.run(main())
