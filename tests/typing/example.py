"""What a user writes, with mistakes that a type checker finds.

`test_typing.py` runs mypy and pyright on this file. Each line that is a mistake says so at its
end: `# mistake`; both must report these lines, and no others. The file is read, never run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypedDict
from zoneinfo import ZoneInfo

from pyncette import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    GiveUp,
    Heartbeat,
    Instance,
    ListTasksResponse,
    OnExisting,
    Overlap,
    Partitions,
    PauseState,
    PerWorker,
    Process,
    Pyncette,
    PyncetteContext,
    Retry,
    RetryIn,
    Skip,
    Task,
    TaskCount,
    UnknownTask,
    Where,
)
from pyncette.schedule import At, Calendar, Cron, Every, Rule
from pyncette.utils import with_heartbeat

app = Pyncette()


class Filters(TypedDict):
    country: str
    active: bool


@dataclass
class Pool:
    url: str


class AppContext(Context):
    pool: Pool


# What is right.


@app.task(interval=5)
def plain(context: Context) -> None: ...


@app.task(schedule="0 9 * * MON-FRI", timezone="Europe/Berlin", failure_mode=FailureMode.UNLOCK)
async def report(context: Context) -> None:
    await context.heartbeat()
    when: datetime = context.scheduled_at
    print(when, context.args["pages"], context.database)


@app.task(name="hourly", schedule="@hourly", timezone=UTC)
@app.task(name="nightly", schedule="0 3 * * *", timezone=ZoneInfo("Europe/Berlin"))
@app.task(interval=timedelta(minutes=5), lease_duration=30, fast_forward=True)
@with_heartbeat(cancel_on_lease_lost=True)
async def clean_up(context: Context) -> int:
    return 3


@app.dynamic_task(pages=3, recipients=["a@example.org"], options={"color": "blue"}, size=(1, 2))
async def send(context: Context) -> None: ...


@app.partitioned_task(32, enabled_partitions=range(8), execution_mode=ExecutionMode.AT_MOST_ONCE)
async def remind(context: Context) -> None: ...


@app.partitioned_task(8, partitions=Partitions.SHARED, interval=timedelta(hours=1))
async def shared(context: Context) -> None: ...


@app.fixture()
async def database(app_context: PyncetteContext) -> AsyncIterator[Pool]:
    yield Pool("postgresql://")


@app.task(interval=5)
async def with_a_context_of_its_own(context: AppContext) -> None:
    print(context.pool.url, context.args, context.anything_else)
    await context.heartbeat()


@app.fixture(name="cache")
async def a_cache(app_context: PyncetteContext) -> AsyncIterator[dict[str, str]]:
    yield {}


@app.middleware
async def trace(context: Context, next: Callable[[], Awaitable[None]]) -> None:  # noqa: A002
    await next()


filters: Filters = {"country": "DE", "active": True}


async def schedule() -> None:
    async with app.create(context_items={"color": "blue"}) as context:
        in_an_hour = datetime.now(UTC) + timedelta(hours=1)
        await context.schedule_task(send, "a", execute_at=in_an_hour, email="a@example.org")
        await context.schedule_task(send, "b", True, interval=60, filters=filters, limit=None)
        await context.schedule_task(remind, "c", schedule="0 9 * * *", timezone="Asia/Tokyo")
        # A misspelt option whose value JSON can hold is an argument: no type can tell. It is
        # warned about when the program runs.
        await context.schedule_task(send, "d", interval=60, time_zone="Asia/Tokyo")
        state = await context.get_task(send, "a")
        if state is not None and state.scheduled_at is not None:
            print(state.scheduled_at.isoformat(), state.task.name)
        await context.unschedule_task(remind, "c")
        for worker in await context.workers():
            print(worker.name, worker.since, [task.started_at for task in worker.running])
        handle = send.instantiate("a", interval=timedelta())
        await context.unschedule_task(handle)
        remind.enabled_partitions = {0, 1}
        report.enabled = False


class Slower(Retry):
    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        return timedelta(minutes=attempt) if isinstance(error, OSError) else None


@app.task(
    interval=timedelta(hours=1),
    retry=Slower(attempts=3, on=(OSError,), within=timedelta(hours=1)),
    exhausted=Exhausted.PAUSE,
    timeout=timedelta(minutes=5),
    heartbeat=Heartbeat(every=timedelta(seconds=10), cancel_on_lease_lost=True),
    misfire_grace=timedelta(minutes=10),
    catch_up=CatchUp.LATEST,
    overlap=Overlap.SKIP,
)
async def careful(context: Context) -> None:
    attempt: int = context.attempt
    key: str = context.execution_id
    if context.deadline is not None and context.previous_error is not None:
        raise RetryIn(timedelta(minutes=attempt), key, free=True)
    if context.fencing_token < 0:
        raise GiveUp("no use")
    raise Skip("nothing to do")


@app.dynamic_task(retry=Retry(), heartbeat=True)
async def pay(context: Context) -> None: ...


async def repair(context: PyncetteContext) -> None:
    again: bool = await context.retry_parked(pay, "a", card="4242")
    print(again or await context.drop_parked(pay, "a"))


@app.task(interval=5, retry=3)  # mistake
async def wrong_retry(context: Context) -> None: ...


@app.task(interval=5, timeout=30)  # mistake
async def wrong_timeout(context: Context) -> None: ...


@app.task(interval=5, exhausted="park")  # mistake
async def wrong_exhausted(context: Context) -> None: ...


Retry(initial=5)  # mistake
RetryIn(5)  # mistake


async def rows() -> AsyncIterator[Instance]:
    yield Instance("a", interval=timedelta(hours=1), email="a@example.org")


async def steer(context: PyncetteContext) -> None:
    await context.pause(report, until=datetime.now(UTC) + timedelta(hours=1), reason="a move")
    await context.pause(remind.get_partitions()[0])
    await context.resume(send, "a")
    added: int = await context.trigger(remind)
    moved = await context.schedule_task(
        send, "a", interval=60, on_existing=OnExisting.REPLACE, email="a@example.org"
    )
    print(added, moved.next_run, await context.pauses())
    result = await context.schedule_tasks(send, rows(), progress=lambda done: done.handled)
    await context.sync_tasks(send, [Instance("a", schedule="@daily")], dry_run=True)
    await context.unschedule_tasks(send, (failure.name for failure in result.failures))
    await context.unschedule_tasks(send, where=Where(states={"parked"}, prefix="a"))
    async for state in context.iter_tasks(send, Where(failing=True)):
        print(state.attempt, state.args, state.next)
    count = await context.count_tasks(send, limit=100)
    print(count.count if count.exact else f"{count}", await context.unknown())
    await context.retry_parked_tasks(send, where=Where(due_before=datetime.now(UTC)))
    await context.drop_parked_tasks(send, where=Where(prefix="a"))
    paused = await context.pause_tasks(send, where=Where(prefix="a"), reason="a move")
    await context.resume_tasks(send, where=Where(paused=True))
    await context.trigger_tasks(send, where=Where(prefix="a"))
    print(paused.updated)


async def steer_wrongly(context: PyncetteContext) -> None:
    await context.pause(report, until=timedelta(hours=1))  # mistake
    await context.pause("report")  # mistake
    await context.schedule_task(send, "a", interval=60, on_existing="replace")  # mistake
    await context.schedule_tasks(send, ["a", "b"])  # mistake
    await context.count_tasks(send, Where(states={"done"}))  # mistake
    await context.count_tasks(send, Where(states="parked"))  # mistake
    await context.count_tasks(send, {"failing": True})  # mistake


closed = Calendar("closed")
opening = (Cron("0 9 * * MON-FRI", "Europe/Berlin") | At(datetime(2026, 5, 1, tzinfo=UTC))) - closed


@app.calendar("closed")
def is_closed(day: date) -> bool:
    return day.weekday() >= 5


@app.task(schedule=opening, jitter=timedelta(minutes=5), end_at=datetime(2027, 1, 1, tzinfo=UTC))
async def open_the_shop(context: Context) -> None:
    following: list[datetime] = context.upcoming(3)
    print(following)


@app.dynamic_task(
    schedule=Rule("FREQ=DAILY", start=datetime(2026, 1, 1, tzinfo=UTC)).between(
        datetime(2026, 5, 1, tzinfo=UTC)
    ),
    start_at=datetime(2026, 6, 1, tzinfo=UTC),
)
async def inventory(context: Context) -> None: ...


async def bounds() -> None:
    async with app.create() as context:
        await context.schedule_task(inventory, "a", execute_in=timedelta(hours=1))
        await context.schedule_task(
            inventory, "b", schedule=Every(timedelta(hours=1), at_once=True), jitter=timedelta()
        )
        # An argument that has the name of an option.
        await context.schedule_task(inventory, "c", interval=5, args={"jitter": 5})
        pauses: list[PauseState] = await context.pauses()
        count: TaskCount = await context.count_tasks(inventory)
        left: list[UnknownTask] = await context.unknown()
        page: ListTasksResponse = await context.list_tasks(inventory)
        print(pauses, count, left, page.tasks)
        times: list[datetime] = await context.preview(inventory, 5, "a")
        print(times, await context.preview(opening))


# Arguments by name.


@app.dynamic_task()
async def mail(context: Context, email: str, pages: int = 3) -> None:
    await context.heartbeat()


@app.task(interval=5, args={"day": date(2026, 1, 1)})
def count(context: Context, day: date) -> int:
    return day.day


@app.partitioned_task(4, email="a@example.org")
@with_heartbeat()
async def mail_partitioned(context: Context, email: str) -> None: ...


@app.task(interval=5, executor=Process(max_workers=2), number=7)
def compute(context: Context, number: int) -> int:
    return number * number


async def arguments(context: PyncetteContext, any_task: Task) -> None:
    await context.schedule_task(mail, "a", interval=60, args=mail.args(email="a@example.org"))
    await context.schedule_task(mail, "b", interval=60, args={"email": "a", "pages": 4})
    await context.schedule_task(mail, "c", interval=60, email="a", pages=4)
    await context.schedule_task(mail, "d", interval=60, args=mail.args("a", 4))
    await context.schedule_tasks(
        mail, [Instance("e", args=mail.args("a")), Instance("f", email="a")]
    )
    await context.retry_parked(mail, "a", args=mail.args("a"))
    await mail(Context(), "a", pages=5)
    app.sync().schedule_task(mail, "g", interval=60, args=mail.args(email="a"))
    print(mail_partitioned.args(email="a"), mail_partitioned.get_partitions())
    print(any_task.args(anything=3), any_task.name, count(Context(), date(2026, 1, 1)))


# What is wrong: ten mistakes of a newcomer, of which nine are found.


async def ten_mistakes(context: PyncetteContext) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    await context.schedule_task(mail, "a", execut_at=at, email="a")  # mistake
    await context.schedule_task(mail, "a", execute_at=at, args=mail.args(pages=3))  # mistake
    await context.schedule_task(mail, "a", execute_at=at, args=mail.args(email=3))  # mistake
    await context.schedule_task(mail, "a", execute_at=at, args=mail.args("a", page=3))  # mistake
    await context.schedule_task(mail, "a", interval=60, on_existing=OnExisting.REPLCE)  # mistake
    await context.count_tasks(mail, Where(sates={"parked"}))  # mistake
    # The tenth: a misspelt option whose value JSON can hold might be an argument.
    await context.schedule_task(send, "a", intervall=60)


@app.task(interval=5, retry=3)  # mistake
async def with_a_number_of_retries(context: Context) -> None: ...


@app.task(interval=5)  # mistake
async def without_a_context() -> None: ...


@app.task(interval=5)  # mistake
def with_a_yield(context: Context) -> Iterator[int]:
    yield 1


# What else is wrong.

# A number for an option: it would be an argument, as in 1.x, and the option would not be set.


@app.dynamic_task(limit=2)  # mistake
async def with_a_number_as_limit(context: Context) -> None: ...


@app.dynamic_task(tags=["gpu"])  # mistake
async def with_a_list_of_tags(context: Context) -> None: ...


@app.dynamic_task(args=["a@example.org"])  # mistake
async def with_positional_arguments(context: Context) -> None: ...


async def with_numbers(context: PyncetteContext) -> None:
    await context.schedule_task(send, "a", execute_in=5)  # mistake
    await context.schedule_task(send, "b", interval=60, jitter=5)  # mistake
    await context.schedule_task(send, "c", interval=60, start_at="noon")  # mistake
    Instance("d", execute_in=5)  # mistake


@app.dynamic_task()  # mistake
async def context_by_name(*, context: Context, email: str) -> None: ...


@app.task(interval=5, executor="process")  # mistake
def compute_wrongly(context: Context) -> None: ...


async def wrong_arguments(context: PyncetteContext) -> None:
    await mail(Context(), 3)  # mistake
    mail_partitioned.args(mail="a")  # mistake
    Instance("e", args=mail.args())  # mistake
    Instance("e", args=mail.args("a", "4"))  # mistake
    app.sync().schedule_task(mail, "g", interval=60, args=mail.args(mail="a"))  # mistake


@app.calendar("anything")  # mistake
def no_answer(day: date) -> str:
    return "perhaps"


@app.task(interval=5, start_at=timedelta(days=1))  # mistake
async def late(context: Context) -> None: ...


@app.task(schedule=opening, jitter=datetime(2026, 1, 1, tzinfo=UTC))  # mistake
async def spread(context: Context) -> None: ...


async def wrong_schedules() -> None:
    async with app.create() as context:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        await context.schedule_task(inventory, "a", execute_in=at)  # mistake
        print(opening | "0 9 * * *")  # mistake
        print(opening - opening)  # mistake
        print(Every(60))  # mistake
        print(Rule("FREQ=DAILY"))  # mistake


@app.task(interval=timedelta(minutes=5), lease_duratoin=timedelta(seconds=30))  # mistake
async def misspelt(context: Context) -> None: ...


@app.task(interval=5, failure_mod=FailureMode.COMMIT)  # mistake
async def misspelt_mode(context: Context) -> None: ...


@app.task(shedule="0 9 * * *")  # mistake
async def misspelt_schedule(context: Context) -> None: ...


@app.task()  # mistake
async def never(context: Context) -> None: ...


@app.task(schedule=5)  # mistake
async def number(context: Context) -> None: ...


@app.task(schedule="@hourly", failure_mode="COMMIT")  # mistake
async def text(context: Context) -> None: ...


@app.task(interval=5, when=datetime(2026, 1, 1, tzinfo=UTC))  # mistake
async def no_json(context: Context) -> None: ...


@app.task(interval=5, lease_duration="30")  # mistake
async def lease(context: Context) -> None: ...


@app.task(interval=5)  # mistake
async def generator(context: Context) -> AsyncIterator[int]:
    yield 1


@app.task(interval=5)  # mistake
async def no_parameters() -> None: ...


@app.fixture()  # mistake
async def no_generator(app_context: PyncetteContext) -> Pool:
    return Pool("postgresql://")


@app.middleware  # mistake
async def without_next(context: Context) -> None: ...


# Both checkers go on after a decorator whose parentheses are wrong.


@app.middleware()  # mistake
async def with_parentheses(context: Context, next: Callable[[], Awaitable[None]]) -> None:  # noqa: A002
    await next()


@app.dynamic_task(limit=PerWorker("2"))  # mistake
async def limited(context: Context) -> None:
    limit: PerWorker | None = limited.limit
    print(limit)


@app.dynamic_task(tags={"gpu"})
async def tagged(context: Context) -> None:
    tags: frozenset[str] = tagged.tags
    print(tags)


@app.dynamic_task(tags={1})  # mistake
async def tagged_by_numbers(context: Context) -> None: ...


@app.partitioned_task(4, limit=PerWorker(2))
async def limited_partitions(context: Context) -> None: ...


@app.partitioned_task(4, partitions="shared")  # mistake
async def shared_by_a_text(context: Context) -> None: ...


@app.dynamic_task(partitions=Partitions.SHARED)  # mistake
async def shared_without_partitions(context: Context) -> None: ...


@app.fixture  # mistake
async def without_parentheses(app_context: PyncetteContext) -> AsyncIterator[int]:
    yield 1


@app.task  # mistake
async def bare(context: Context) -> None: ...


@app.dynamic_task  # mistake
async def bare_template(context: Context) -> None: ...


@app.partitioned_task  # mistake
async def bare_partitions(context: Context) -> None: ...


@with_heartbeat  # mistake
async def bare_heartbeat(context: Context) -> None: ...


@app.task(interval=5)
async def no_such_attribute(context: AppContext) -> None:
    print(context.pool.uri)  # mistake


async def after_the_decorators(context: Context) -> None:
    number: int = "text"  # mistake
    print(number)


@app.task(interval=5, timezone="Europe/Berlin")  # mistake
async def no_cron(context: Context) -> None: ...


@app.task(interval=5, schedule="@hourly")  # mistake
async def both(context: Context) -> None: ...


@app.dynamic_task(interval=5, timezone="Europe/Berlin")  # mistake
async def no_cron_template(context: Context) -> None: ...


@app.partitioned_task(4, interval=5, schedule="@hourly")  # mistake
async def both_partitioned(context: Context) -> None: ...


app.partitioned_task("32")  # mistake


async def wrong() -> None:
    async with app.create() as context:
        await context.schedule_task(send, "a", execute_at="2026-01-01")  # mistake
        await context.schedule_task(send, "a", intervall=timedelta(hours=1))  # mistake
        await context.schedule_task(send, 7, interval=60)  # mistake
        await context.schedule_task("send", "a", interval=60)  # mistake
        await context.schedule_task(send, "a", interval=60, pool=Pool("x"))  # mistake
        await context.schedule_task(send, "a", interval=60, timezone=3)  # mistake
        await context.get_task("send")  # mistake
        send.instantiate("a", execut_at=datetime(2026, 1, 1, tzinfo=UTC))  # mistake
        remind.enabled_partitions = 3  # mistake
        send.schedule = "@hourly"  # mistake
        send.lease_duration = "5"  # mistake
