"""Which sources there are. A file in data_prep/sources with a class that has a ``config`` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_type_hints

from pydantic import Field

from configs import Config
from data_prep import sources
from data_prep.sources import Searchable

Adapter = Callable[..., Searchable]
"""A dataclass with the fields config and shard_size, and with folder where it writes its pictures itself."""


def _found() -> Iterator[tuple[type[Config], Adapter]]:
    for module in sorted(found.name for found in pkgutil.iter_modules(sources.__path__)):
        name = f"{sources.__name__}.{module}"
        for item in vars(importlib.import_module(name)).values():
            if isinstance(item, type) and item.__module__ == name and "config" in item.__annotations__:
                config = get_type_hints(item)["config"]
                if isinstance(config, type) and issubclass(config, Config) and "kind" in config.model_fields:
                    yield config, item


ADAPTERS: dict[type[Config], Adapter] = dict(_found())
"""Configuration -> what reads the pictures that it names."""

if TYPE_CHECKING:

    class SourceConfig(Config):
        """What the configurations have in common; that of rendered faces has no path."""

        kind: str
        path: Path
        synthetic: bool

else:
    SourceConfig = Annotated[Union[(*ADAPTERS,)], Field(discriminator="kind")]


def adapter(config: Any, shard_size: int, folder: Path) -> Searchable:
    """The source of ``config``.

    Args:
        config: One of the configurations in :data:`ADAPTERS`.
        shard_size: Pictures a shard.
        folder: Where pictures are written that have no file of their own.
    """
    made: Any = ADAPTERS[type(config)]
    writes = "folder" in {field.name for field in fields(made)}
    source: Searchable = made(config, shard_size, folder) if writes else made(config, shard_size)
    return source
