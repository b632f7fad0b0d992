"""When a task runs: `Cron`, `Every`, `At`, `Rule`, and what is combined of them.

Pure time: no clock, no record, no I/O.

Computes occurrences from a schedule and an instant, handles changes of the clocks, and reads and
writes the text in which a schedule is stored:

    instant, zone, wall    instants; zones; what a change of the clocks does
    base                   `Schedule`, and how schedules combine
    calendar, known        days on which a schedule does not run
    cron, rrule            which times on the wall an expression, or a rule, matches
    rule_grammar           what a rule may say
    kinds, rule            `Cron`, `Every`, `At`; `Rule`
    inherited              the mark of an instance that follows its template
    text                   what is stored

The rules of the engine decide which occurrence a record runs. Instants inside the engine are
microseconds since the epoch, UTC, as `int`.
"""

from __future__ import annotations

from pyncette.schedule.base import AnyOf, Bounded, Jittered, Schedule, Without
from pyncette.schedule.calendar import Calendar, CalendarFunction
from pyncette.schedule.cron import seconds_may_be_first
from pyncette.schedule.inherited import INHERITED_MARK, Inherited, own
from pyncette.schedule.instant import INSTANT_LIMIT, instant_of
from pyncette.schedule.kinds import At, Cron, Every
from pyncette.schedule.known import NO_CALENDARS, Calendars
from pyncette.schedule.rule import Rule
from pyncette.schedule.text import dumps, loads
from pyncette.schedule.unreadable import NewerFormat, UnreadableHere
from pyncette.schedule.zone import name_of, nearest_timezone, parse_timezone

__all__ = [
    "INHERITED_MARK",
    "INSTANT_LIMIT",
    "NO_CALENDARS",
    "AnyOf",
    "At",
    "Bounded",
    "Calendar",
    "CalendarFunction",
    "Calendars",
    "Cron",
    "Every",
    "Inherited",
    "Jittered",
    "NewerFormat",
    "Rule",
    "Schedule",
    "UnreadableHere",
    "Without",
    "dumps",
    "instant_of",
    "loads",
    "name_of",
    "nearest_timezone",
    "own",
    "parse_timezone",
    "seconds_may_be_first",
]
