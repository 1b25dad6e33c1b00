"""The methods, one file each: settings, and a class whose ``forward(views, moment)`` is the loss (``method.py``).

A file that defines a :class:`MethodConfig` is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from pretrain.methods.method import Method, MethodConfig, Moment, Setting


def _found() -> Iterator[tuple[str, type[MethodConfig]]]:
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        for item in vars(importlib.import_module(f"{__name__}.{module}")).values():
            own = isinstance(item, type) and item.__module__ == f"{__name__}.{module}"
            if own and issubclass(item, MethodConfig) and item is not MethodConfig:
                for name in get_args(item.model_fields["name"].annotation):
                    yield name, item


METHODS: dict[str, type[MethodConfig]] = dict(_found())
"""name -> the class of its settings."""

if TYPE_CHECKING:
    AnyMethod = MethodConfig
else:
    AnyMethod = Annotated[Union[(*METHODS.values(),)], Field(discriminator="name")]
    """A method in a config: a mapping with its name and settings."""

__all__ = ["METHODS", "AnyMethod", "Method", "MethodConfig", "Moment", "Setting"]
