"""Which record a call is about."""

from __future__ import annotations

from pyncette.errors import printable
from pyncette.store import Identity
from pyncette.task import Task


def check_declared(task: object) -> None:
    """Refuses what is not a task.

    Raises:
        TypeError: It is not a ``Task``.
    """
    if not isinstance(task, Task):
        raise TypeError(f"A task is what its decorator returned, or an instance, not {task!r}")


def check_template(task: Task) -> None:
    """Refuses a task that has no instances.

    Raises:
        ValueError: It is static, or an instance.
    """
    if not task.dynamic:
        advice = ValueError(
            f"'{printable(task)}' has no instances: get_task({task.name}) returns its own state, "
            "static_tasks() those of all static tasks"
            if task.parent_task is None
            else f"'{printable(task)}' is an instance itself: pass its template, "
            f"'{printable(task.template)}', or call get_task, which returns the state of one"
        )
        # The text is public since 1.x: the traceback shows the advice before it.
        raise ValueError("Cannot list instances of non-dynamic task") from advice


def identity_of(task: Task, instance_name: str | None) -> Identity:
    """Returns the group and the key of a static task, an instance, or a template's instance.

    Raises:
        ValueError: The name of the instance is missing, or given although there can be none.
    """
    if not task.dynamic:
        if instance_name is not None:
            raise ValueError(
                "instance_name provided but task is not dynamic"
                if task.parent_task is None
                else "Cannot provide instance_name with already-instantiated dynamic task"
            )
        return task.group, task.key
    if instance_name is None or instance_name == "":
        advice = ValueError(
            f"'{printable(task)}' is a template: pass the name of one of its instances as well"
        )
        raise ValueError("instance name must be provided") from advice  # public since 1.x, as above
    return task.identify(instance_name), instance_name
