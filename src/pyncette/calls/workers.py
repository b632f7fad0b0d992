"""Which workers are alive."""

from __future__ import annotations

from collections.abc import Sequence

from pyncette.calls.requests import Requests
from pyncette.clock import from_microseconds
from pyncette.engine.membership import Member, read_members, served
from pyncette.model import RunningTask, WorkerState
from pyncette.store.record import LATEST_INSTANT
from pyncette.task import Task


async def workers(requests: Requests) -> list[WorkerState]:
    """Returns the workers that are alive; see ``PyncetteContext`` for what that means."""
    now = await requests.now()
    found = [member for _, member in await read_members(requests.store) if member is not None]
    alive = [member for member in found if member.alive(now)]
    return [_shown(member) for member in sorted(alive, key=_order)]


async def crew_of(
    requests: Requests, tasks: Sequence[Task]
) -> tuple[list[WorkerState], list[WorkerState], list[Task]]:
    """Returns who is alive, who is gone, and which tasks no living worker runs; by one look.

    Gone are the workers that have not ended, but are not alive: killed, frozen, or cut off. Their
    records are kept for a day.
    """
    now = await requests.now()
    found = [member for _, member in await read_members(requests.store) if member is not None]
    found.sort(key=_order)
    alive = [member for member in found if member.alive(now)]
    gone = [member for member in found if not member.alive(now)]
    unserved = [task for task in tasks if not served(task.name, alive)]
    return list(map(_shown, alive)), list(map(_shown, gone)), unserved


async def without_worker(requests: Requests, tasks: Sequence[Task]) -> list[Task]:
    """Returns the tasks that no living worker runs; see ``PyncetteContext``."""
    now = await requests.now()
    found = [member for _, member in await read_members(requests.store) if member is not None]
    alive = [member for member in found if member.alive(now)]
    return [task for task in tasks if not served(task.name, alive)]


def _order(member: Member) -> tuple[str, str]:
    return member.name, member.id


def _shown(member: Member) -> WorkerState:
    return WorkerState(
        member.name,
        member.id,
        None if member.since is None else from_microseconds(member.since),
        from_microseconds(member.seen),
        from_microseconds(min(member.seen + member.lease, LATEST_INSTANT)),
        member.host,
        member.process_id,
        member.version,
        member.tasks,
        member.task_count,
        member.running,
        tuple(RunningTask(name, from_microseconds(started)) for name, started in member.runs),
        frozenset(member.tags),
    )
