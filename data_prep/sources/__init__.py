"""Where pictures come from. A source cuts its pictures into shards and hands them over one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from configs import Config
from data_prep.stage import Shard


class Photographs(Config):
    """Base of the configuration of every source but the renderer."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed?"""
        return False


@dataclass(frozen=True)
class Found:
    """One input. ``annotations`` holds a mapping for each annotated face, in the fields of ``Source.labels``;
    ``error`` says why the source knows that it cannot be used, and is empty where it can.
    """

    image_id: str
    path: Path
    annotations: tuple[dict[str, Any], ...] = ()
    error: str = ""
    place: str = ""
    """File and line of the list that names it; empty: no list does."""
    sha256: str = ""
    """Of the bytes that a published list promises; empty: whatever is there is right."""


@dataclass(frozen=True)
class Published:
    """A count that a corpus is published with: of its pictures, its annotated faces, or the people in them."""

    what: str
    """In words, for example "pictures of train"."""
    count: int
    origin: str
    """Where the number is from, and whether that was looked up."""
    of: Literal["pictures", "faces", "identities"] = "pictures"
    prefix: str = ""
    """Only those whose ``image_id`` starts so."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Only faces with these labels."""


class Source(Protocol):
    """What a corpus has to offer; ``data_prep.sources.folder`` is the shortest example."""

    @property
    def labels(self) -> pa.StructType:
        """The type of one face's annotation; no fields where there is none."""

    @property
    def label_name(self) -> str:
        """The integer annotation that becomes the .beton's label, or "none"."""

    @property
    def published(self) -> tuple[Published, ...]:
        """The counts that are published of what the configuration asks for; none where there are none."""

    def shards(self) -> list[Shard]:
        """All inputs in a stable order, cut into shards. Opens no picture."""

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The inputs of one shard, in order."""


class Searchable(Source, Protocol):
    """A source out of which single pictures can be taken."""

    def ids(self, shard: Shard) -> list[str]:
        """The ``image_id`` of each input of a shard, in order. Opens no picture."""

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """The shard with only the inputs at ``places`` of :meth:`ids`, in order."""
