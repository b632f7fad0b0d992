"""What a program imports from `pyncette` itself, and what the package holds besides."""

from __future__ import annotations

import inspect
import pkgutil

import pyncette
import pyncette.testing
from pyncette import errors, retry, schedule


def test_all_that_is_exported_exists_and_is_listed_in_order() -> None:
    assert pyncette.__all__ == sorted(pyncette.__all__)
    for name in pyncette.__all__:
        assert hasattr(pyncette, name), name


def test_every_error_that_a_program_may_catch_or_raise_is_exported() -> None:
    for module in (errors, retry):
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, pyncette.PyncetteException):
                assert getattr(pyncette, name) is value


def test_every_schedule_that_a_program_may_write_is_exported() -> None:
    # What operators, methods, and records of instances without a schedule of their own return.
    combined = {"AnyOf", "Bounded", "Inherited", "Jittered", "Without"}
    for name in schedule.__all__:
        value = getattr(schedule, name)
        if inspect.isclass(value) and issubclass(value, schedule.Schedule):
            assert name in combined or getattr(pyncette, name) is value


def test_of_the_tools_for_tests_only_those_for_users_are_in_the_package() -> None:
    tools = {module.name for module in pkgutil.iter_modules(pyncette.testing.__path__)}
    assert tools == {"clocks", "conformance", "contexts", "isolation", "suite", "waits"}
