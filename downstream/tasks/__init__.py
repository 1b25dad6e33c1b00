"""What is read off a face, one file a task. A file that defines a :class:`Task` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import AfterValidator, Discriminator, Tag

from downstream.tasks.task import Metric, Task


def _found() -> Iterator[tuple[str, type[Task]]]:
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        for item in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if (
                isinstance(item, type)
                and issubclass(item, Task)
                and item.__module__ == f"{__name__}.{module}"
            ):
                for name in get_args(item.model_fields["name"].annotation):
                    yield name, item


TASKS: dict[str, type[Task]] = dict(_found())
"""name -> its class."""


def make(name: str, **settings: Any) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"no task '{name}' (known: {', '.join(TASKS)})")
    return TASKS[name](name=name, **settings)


def _tag(value: Any) -> Any:
    if isinstance(value, str):
        return "name"
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


if TYPE_CHECKING:
    AnyTask = Task
else:
    _WORD = Annotated[str, AfterValidator(make), Tag("name")]
    _TAGGED = tuple(Annotated[task, Tag(name)] for name, task in TASKS.items())
    AnyTask = Annotated[
        Union[(*_TAGGED, _WORD)],
        Discriminator(
            _tag,
            custom_error_type="task",
            custom_error_message=f"name one of the tasks {', '.join(TASKS)}",
        ),
    ]
    """A task in a config: its name, or a mapping with its name and settings."""

__all__ = ["TASKS", "AnyTask", "Metric", "Task", "make"]
