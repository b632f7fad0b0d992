"""Which record a call is about."""

from __future__ import annotations

from pyncette.store import Identity
from pyncette.task import Task


def check_declared(task: object) -> None:
    """Refuses what is not a task.

    Raises:
        TypeError: It is not a ``Task``.
    """
    if not isinstance(task, Task):
        raise TypeError(f"A task is what its decorator returned, or an instance, not {task!r}")


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
        raise ValueError("instance name must be provided")
    return task.identify(instance_name), instance_name
