"""``schedule``, ``unschedule``, ``purge`` and ``rebalance``."""

from __future__ import annotations

from typing import Any, Final

from pyncette.bulk import RebalanceResult
from pyncette.cli.failures import DONE, not_found, usage
from pyncette.cli.printing import counted
from pyncette.cli.session import Session, utc
from pyncette.cli.values import arguments_of
from pyncette.errors import printable
from pyncette.model import OnExisting
from pyncette.showing import named
from pyncette.task import PartitionedTask

_STAGES: Final = {
    "announcing": "waiting until all programs know of the move",
    "moving": "moving",
    "ending": "waiting until all programs know that it is over",
    "done": "done",
}


async def schedule(session: Session) -> int:
    """Schedules an instance."""
    task, instance = session.task(), session.arguments.instance
    if not task.dynamic:
        raise usage(f"'{printable(task)}' is a static task: its schedule is in the code")
    given = session.arguments
    options: dict[str, Any] = {
        "schedule": given.schedule,
        "interval": given.interval,
        "execute_at": given.at,
        "execute_in": given.after,
        "timezone": given.timezone,
        "start_at": given.start_at,
        "end_at": given.end_at,
        "jitter": given.jitter,
        "args": arguments_of(given.arg, given.args, task.options.parameters),
        "on_existing": given.on_existing and OnExisting(given.on_existing),
    }
    options = {name: value for name, value in options.items() if value is not None}
    scheduled = await session.context.schedule_task(task, instance, given.force, **options)
    session.out.data({"task": given.task, "instance": instance, "next": utc(scheduled.next_run)})
    when = session.out.time(scheduled.next_run) if scheduled.next_run else "not by itself"
    session.out.text(f"Scheduled {named(task, instance)}; it runs next: {when}")
    return DONE


async def unschedule(session: Session) -> int:
    """Removes instances."""
    task, context = session.task(), session.context
    given = session.arguments
    if not task.dynamic:
        raise usage(f"'{printable(task)}' is a static task: it is removed from the code")
    chosen = bool(given.prefix or given.state or given.all)
    if bool(given.instances) == chosen:
        raise usage("Name instances, or choose with --prefix, --state or --all")
    if given.instances:
        many = len(given.instances) > 1
        if not many and await context.get_task(task, given.instances[0]) is None:
            raise not_found(f"There is no '{named(task, given.instances[0])}'")
        what = f"{len(given.instances)} instances" if many else named(task, given.instances[0])
        session.out.confirm(f"This removes {what}")
        result = await context.unschedule_tasks(
            task,
            given.instances,
            progress=session.bulk_progress,
            on_failure=session.bulk_failure,
        )
        return session.bulk_end(result)
    where = session.where()
    count = await context.count_tasks(task, where)
    session.out.confirm(f"This removes {counted(count, 'instance')} of '{named(task, None)}'")
    return await session.bulk(context.unschedule_tasks, task)


async def purge(session: Session) -> int:
    """Removes what a task that was removed from the code has left."""
    name = session.arguments.task
    left = {found.name: found for found in await session.context.unknown()}.get(name)
    if left is None:
        if any(task.name == name for task in session.app.tasks):
            raise usage(
                f"The app declares '{printable(name)}': pyncette unschedule removes its instances"
            )
        raise not_found(f"The store holds nothing of a task '{printable(name)}'")
    session.out.confirm(f"This removes {counted(left.count, 'record')} of '{printable(name)}'")
    return session.bulk_end(
        await session.context.purge(
            name, progress=session.bulk_progress, on_failure=session.bulk_failure
        ),
        "record",
    )


async def rebalance(session: Session) -> int:
    """Moves the instances of a template to another number of partitions."""
    task = session.task()
    if not isinstance(task, PartitionedTask):
        raise usage(f"'{printable(task)}' has no partitions")

    def progress(result: RebalanceResult) -> None:
        session.out.progress(
            f"{_STAGES[result.stage]}: {result.moved:,} moved"
            + (f", {result.waiting:,} wait for the end of their run" if result.waiting else "")
        )

    # Three times, workers are given the time to learn of it, whatever the number of instances.
    session.out.note(
        "A move takes a minute or longer. If it is interrupted, give the command again"
    )
    result = await session.context.rebalance(task, session.arguments.partitions, progress)
    session.out.end_progress()
    session.out.data(
        {"task": task.name, "partitions": result.partition_count, "moved": result.moved}
    )
    session.out.text(
        f"{named(task, None)} has {result.partition_count} partitions; {result.moved:,} were moved"
    )
    return DONE
