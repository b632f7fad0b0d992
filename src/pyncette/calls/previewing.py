"""Which occurrences a task, or a schedule, has next."""

from __future__ import annotations

from datetime import datetime

from pyncette.calls.identity import identity_of
from pyncette.calls.requests import Requests
from pyncette.calls.unreadable import reading_record
from pyncette.engine.rules import Policy
from pyncette.engine.upcoming import checked_number, shown, with_current
from pyncette.schedule import Calendars, Schedule
from pyncette.task import Task


class Previewing:
    """The call; see ``PyncetteContext.preview`` for what it promises."""

    def __init__(self, requests: Requests, calendars: Calendars) -> None:
        """Previews tasks on the store of an app."""
        self._requests = requests
        self._calendars = calendars

    async def preview(
        self, subject: Task | Schedule, number: int, name: str | None
    ) -> list[datetime]:
        checked_number(number)
        now = await self._requests.now()
        if isinstance(subject, Schedule):
            if name is not None:
                raise ValueError("A schedule has no instances: instance_name cannot be given")
            return _of_schedule(self._calendars.bind(subject), now, number)
        self._requests.check_declared(subject)
        if subject.dynamic and name is None:
            return _of_schedule(subject.plan, now, number)
        group, key = identity_of(subject, name)
        record = await self._requests.find(group, key)
        if record is None:
            if name is not None:
                subject = subject.instantiate(name)
            return _of_schedule(subject.plan, now, number)
        template = subject.template
        with reading_record(record):
            found = with_current(template, record, Policy(template.fast_forward), now, number)
            return shown(found, template.reading_of(record).schedule.timezone) if found else []


def _of_schedule(schedule: Schedule, now: int, number: int) -> list[datetime]:
    found: list[int] = []
    instant = schedule.first(now)
    while instant is not None and len(found) < number:
        found.append(instant)
        instant = schedule.following(instant)
    return shown(found, schedule.timezone)
