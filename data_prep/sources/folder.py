"""Any folder of pictures. No labels, or a sub-folder for every person."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import Config, ConfigError
from data_prep.files import digest
from data_prep.sources import Found, Published
from data_prep.stage import Shard
from data_prep.tables import NO_LABELS

PERSON: pa.StructType = pa.struct({"identity": pa.int64(), "person": pa.string()})


class FolderConfig(Config):
    """A folder of pictures."""

    kind: Literal["folder"]
    """folder"""
    path: Path
    """The folder. Sub-folders are searched too."""
    pattern: str = "**/*"
    """Which files are inputs; each of them gets a row, also one that is no picture. Hidden files are not."""
    identity_from: Literal["none", "folder"] = "none"
    """folder: a picture shows the person that its sub-folder of the folder is named after. Identities are counted
    in the order of the names of these sub-folders; a picture outside of them has none."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed?"""
        return False


@dataclass(frozen=True)
class Folder:
    """Files in the order of their names; ``image_id`` is the path below the folder."""

    config: FolderConfig
    shard_size: int
    published: tuple[Published, ...] = ()

    @property
    def labels(self) -> pa.StructType:
        """The identity and the name of the person, where sub-folders are people."""
        return PERSON if self.config.identity_from == "folder" else NO_LABELS

    @property
    def label_name(self) -> str:
        """The identity, or none."""
        return "identity" if self.config.identity_from == "folder" else "none"

    @functools.cached_property
    def _people(self) -> dict[str, int]:
        # Looked up once, for the shards' hashes, and carried to the workers: a folder that appears meanwhile does
        # not count.
        folders = (
            entry.name for entry in self.config.path.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
        return {name: number for number, name in enumerate(sorted(folders))}

    def _annotations(self, name: str) -> tuple[dict[str, Any], ...]:
        """Who the picture shows; where in it, nobody says."""
        person, _, below = name.partition("/")
        if self.config.identity_from == "none" or not below:
            return ()
        return ({"identity": self._people[person], "person": person},)

    def shards(self) -> list[Shard]:
        """Every file that matches, by name, in any depth."""
        root = self.config.path
        if not root.is_dir():
            raise ConfigError(f"source.path={root}: no such folder; check the path")
        names = sorted(
            path.relative_to(root).as_posix() for path in root.glob(self.config.pattern) if path.is_file()
        )
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        if not names:
            raise ConfigError(f"source.path={root}: no file matches source.pattern='{self.config.pattern}'")
        return [
            self._shard(number, names[start : start + self.shard_size])
            for number, start in enumerate(range(0, len(names), self.shard_size))
        ]

    def _shard(self, number: int, names: list[str]) -> Shard:
        stats = [(self.config.path / name).stat() for name in names]
        inputs = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
        return Shard(number, len(names), digest([inputs, [*map(self._annotations, names)]]), names)

    def ids(self, shard: Shard) -> list[str]:
        """The names of the files of a shard."""
        return [*shard.payload]

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """Some files of a shard."""
        return self._shard(shard.number, [shard.payload[place] for place in places])

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The files of one shard."""
        for name in shard.payload:
            yield Found(name, self.config.path / name, self._annotations(name))
