"""Who may see and do what: the answer of the ``authorize`` hook, and what holds without one."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from pyncette.errors import printable
from pyncette.model import TaskState

NAME_CHARACTERS_MAX: Final = 200


class Action(StrEnum):
    """What can be done in the dashboard."""

    PAUSE = "pause"
    RESUME = "resume"
    TRIGGER = "trigger"
    RETRY = "retry"
    DROP = "drop"
    """Give up the run for which a task is parked."""

    UNSCHEDULE = "unschedule"
    PURGE = "purge"
    """Remove what a task that is not declared has left."""


EVERY_ACTION: Final = frozenset(Action)


@dataclass(frozen=True, slots=True)
class Access:
    """What a viewer may see and do.

    Attributes:
        user: Who it is: each action is done, and logged, under this name.
        actions: What the viewer may do; empty: only look. Nothing by default.
        tasks: The names of the tasks that the viewer may see and act on; None: all of them, and
            what the store holds of tasks that are not declared.
        arguments: Whether the viewer sees the arguments of instances. Without, errors and
            tracebacks are hidden as well, since they may repeat an argument.
    """

    user: str
    actions: Collection[Action] | type[Action] = ()
    tasks: Collection[str] | None = None
    arguments: bool = True

    def reason(self, state: TaskState) -> str | None:
        """Why an instance or a task is in its state, as far as the viewer may see it.

        What people wrote is shown. That of a pause after the last attempt is the error of that.
        """
        return state.reason if self.arguments or state.paused_by is not None else None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: There is no name, or there is no such action.
            TypeError: A value is of a wrong type.
        """
        if not isinstance(self.user, str) or not self.user.strip():
            raise ValueError(f"user must be the name of the viewer, not {self.user!r}")
        object.__setattr__(self, "user", printable(self.user)[:NAME_CHARACTERS_MAX])
        for name in ("actions", "tasks"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)) or not isinstance(given, Collection | None):
                raise TypeError(f"{name} must be a collection of names, not {given!r}")
        object.__setattr__(self, "actions", frozenset(map(Action, self.actions)))

    def may(self, action: Action) -> bool:
        """Returns whether the viewer may do this."""
        return action in self.actions

    def sees(self, task: str) -> bool:
        """Returns whether the viewer may see the task of this name."""
        return self.tasks is None or task in self.tasks


Answer = Access | Response | None
"""What ``authorize`` answers. A response is sent as it is, for example a redirect to a login; None
refuses."""

Authorize = Callable[[Request], Answer | Awaitable[Answer]]


async def ask(authorize: Authorize, request: Request) -> Access | Response | None:
    """Asks the hook; it may be asynchronous.

    Raises:
        TypeError: It has answered something else.
    """
    answer: Any = authorize(request)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is not None and not isinstance(answer, (Access, Response)):
        raise TypeError(
            f"authorize must return a pyncette.web.Access, a response, or None, not {answer!r:.200}"
        )
    return answer


def is_local(request: Request) -> bool:
    """Returns whether a request comes from this machine, straight, and for its own name.

    A page of another site that has its name resolve to this machine sends that name as host.
    """
    client = request.client
    if client is None or not _is_loopback(client.host):
        return False
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
        return False
    host = request.url.hostname or ""
    return host == "localhost" or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def local_only(actions: Collection[Action] | type[Action], user: str) -> Authorize:
    """A hook that lets in who is on this machine, and refuses all others."""

    def authorize(request: Request) -> Access | None:
        return Access(user, actions) if is_local(request) else None

    return authorize
