"""A task that an operator pauses, triggers and resumes while it is running.

Run it in one terminal with ``python steering.py``, and type ``pause``, ``trigger``, ``resume`` or
``quit`` into it.
"""

import asyncio
import sys
from datetime import timedelta

from pyncette import Context, Pyncette, PyncetteContext

app = Pyncette(sqlite_database="steering.db")


@app.task(interval=timedelta(seconds=2))
async def look(context: Context) -> None:
    print(f"Looked, as planned for {context.scheduled_at:%H:%M:%S}", flush=True)


async def obey(context: PyncetteContext, word: str) -> None:
    if word == "pause":
        await context.pause(look, reason="an operator said so")
    elif word == "resume":
        await context.resume(look)
    elif word == "trigger":
        await context.trigger(look)
    state = await context.get_task(look)
    if state is not None:
        print(f"The task is {state.state} ({state.reason or 'as always'})", flush=True)


async def main() -> None:
    async with app.create() as context:
        running = asyncio.create_task(context.run())
        while (line := await asyncio.to_thread(sys.stdin.readline)) not in ("", "quit\n"):
            await obey(context, line.strip())
        context.shutdown()
        await running


if __name__ == "__main__":
    asyncio.run(main())
