"""``pause``, ``resume``, ``trigger`` and ``retry``."""

from __future__ import annotations

from pyncette.cli.failures import DONE, not_found, usage
from pyncette.cli.printing import counted
from pyncette.cli.session import Session, utc
from pyncette.cli.values import arguments_of
from pyncette.showing import named, triggered_text


async def pause(session: Session) -> int:
    """Pauses a task, an instance, a template or a partition."""
    task, instance = session.chosen()
    given = session.arguments
    if given.until is not None and given.lasting is not None:
        raise usage("Pass either --until or --for")
    until = given.until
    if given.lasting is not None:
        until = session.context.clock.now() + given.lasting
    if session.filtered(task, instance):
        return await session.bulk(
            session.context.pause_tasks, task, until=until, reason=given.reason
        )
    await session.context.pause(task, instance, until=until, reason=given.reason)
    session.out.data({"task": given.task, "instance": instance, "until": utc(until)})
    end = "until it is resumed" if until is None else f"until {session.out.time(until)}"
    session.out.text(f"Paused {named(task, instance)} {end}")
    return DONE


async def resume(session: Session) -> int:
    """Ends a pause."""
    task, instance = session.chosen()
    if session.filtered(task, instance):
        return await session.bulk(session.context.resume_tasks, task)
    await session.context.resume(task, instance)
    session.out.data({"task": session.arguments.task, "instance": instance})
    session.out.text(f"Resumed {named(task, instance)}")
    return DONE


async def trigger(session: Session) -> int:
    """Runs a task, an instance, or all instances of a template once now."""
    task, instance = session.chosen()
    if session.filtered(task, instance):
        count = await session.context.count_tasks(task, session.where())
        session.out.confirm(f"This runs {counted(count, 'instance')} of '{named(task, None)}' once")
        return await session.bulk(session.context.trigger_tasks, task)
    if task.dynamic and instance is None:
        session.out.confirm(f"This runs every instance of '{named(task, None)}' once")
        added = await session.context.trigger(task)
        text = f"{named(task, None)}: {added:,} runs added"
    else:
        added, running = await session.context._steering.trigger_one(task, instance)
        text = triggered_text(named(task, instance), added, running, session.context.clock.now())
    session.out.data({"task": session.arguments.task, "instance": instance, "added": added})
    session.out.text(text)
    return DONE


async def retry(session: Session) -> int:
    """Runs what is parked again, or gives those runs up."""
    task, instance = session.chosen()
    given = session.arguments
    arguments = arguments_of(given.arg, given.args, task.template.options.parameters)
    if task.dynamic and instance is None:
        if arguments is not None:
            raise usage("New arguments are for one instance: name it")
        if given.drop:
            session.out.confirm(f"This gives up the parked runs of '{named(task, None)}'")
        call = (
            session.context.drop_parked_tasks if given.drop else session.context.retry_parked_tasks
        )
        return await session.bulk(call, task)
    session.filtered(task, instance)
    if given.drop:
        if arguments is not None:
            raise usage("--drop gives up the run: it takes no arguments")
        session.out.confirm(f"This gives up the parked run of '{named(task, instance)}'")
        done = await session.context.drop_parked(task, instance)
    elif arguments is None:
        done = await session.context.retry_parked(task, instance)
    else:
        done = await session.context.retry_parked(task, instance, **arguments)
    if not done:
        raise not_found(f"'{named(task, instance)}' is not parked")
    session.out.data({"task": given.task, "instance": instance, "dropped": given.drop})
    session.out.text(
        f"{'Gave up the parked run of' if given.drop else 'Runs again:'} {named(task, instance)}"
    )
    return DONE
