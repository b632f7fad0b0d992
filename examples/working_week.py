"""What a worker needs in a working week, each need in at most three lines.

Run it with ``python working_week.py``. The functions below the tasks are for the programs around
it, a web service or a script; they take the open app.
"""

import asyncio
import time
from datetime import timedelta

from pyncette import (
    Context,
    Instance,
    OnExisting,
    Overlap,
    PerWorker,
    Process,
    Pyncette,
    PyncetteContext,
    Retry,
    Where,
)

app = Pyncette(url="sqlite:///week.db")


async def send(what: str) -> None:
    print(f"Sent {what}", flush=True)


# Need: retries
@app.dynamic_task(schedule="0 9 * * MON-FRI", retry=Retry(attempts=3))
async def invoice(context: Context) -> None:
    await send(f"an invoice to {context.task.name}")


# Need: a timeout
@app.task(interval=timedelta(hours=1), timeout=timedelta(minutes=5))
async def refresh(context: Context) -> None:
    await send("what is new")


# Need: no overlap
@app.task(interval=timedelta(minutes=1), overlap=Overlap.SKIP, heartbeat=True)
async def rebuild(context: Context) -> None:
    await context.app_context.clock.sleep(150)


# Need: a limit of two
@app.dynamic_task(limit=PerWorker(2))
async def export(context: Context) -> None:
    await context.app_context.clock.sleep(10)


# Need: a function that blocks
@app.task(schedule="0 3 * * *", timezone="Europe/Berlin")
def back_up(context: Context) -> None:
    time.sleep(0.1)


# Need: a function that computes, in another process
@app.dynamic_task(executor=Process(max_workers=2), heartbeat=True)
def forecast(context: Context, years: int) -> None:
    print(f"Forecast: {sum(day * day for day in range(years * 365))}", flush=True)


# Need: pause
async def pause_invoices(context: PyncetteContext) -> None:
    await context.pause(invoice, reason="the printer is on fire")
    # … and later: await context.resume(invoice)


# Need: run now
async def run_now(context: PyncetteContext, customer: str) -> None:
    await context.trigger(invoice, customer)


# Need: the last error
async def last_error(context: PyncetteContext, customer: str) -> str | None:
    state = await context.get_task(invoice, customer)
    return state.last_error if state else None


# Need: all tasks
async def show_all(context: PyncetteContext) -> None:
    for state in [*await context.static_tasks(), *[s async for s in context.iter_tasks(invoice)]]:
        print(state.task, state.state, state.next)


# Need: a changed schedule
async def move(context: PyncetteContext, customer: str, when: str) -> None:
    replace = OnExisting.REPLACE
    await context.schedule_task(invoice, customer, schedule=when, on_existing=replace)


# Need: removal
async def remove(context: PyncetteContext, customer: str) -> None:
    await context.unschedule_task(invoice, customer)


# Need: 100,000 instances
async def fill(context: PyncetteContext, count: int = 100_000) -> None:
    await context.schedule_tasks(invoice, (Instance(f"customer-{n}") for n in range(count)))


# Need: delete all
async def delete_all(context: PyncetteContext) -> None:
    await context.unschedule_tasks(invoice, where=Where())


# Need: a filtered list
async def show_failing(context: PyncetteContext) -> None:
    async for state in context.iter_tasks(invoice, Where(failing=True, prefix="customer-")):
        print(state.task.name, state.attempt, state.last_error)


async def main() -> None:
    async with app.running() as context:
        await fill(context, 3)
        await run_now(context, "customer-1")
        await show_all(context)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
