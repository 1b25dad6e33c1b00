"""Any folder of pictures. No labels, or a sub-folder for every person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import Config, ConfigError
from data_prep.files import digest
from data_prep.sources import Found
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

    @property
    def labels(self) -> pa.StructType:
        """The identity and the name of the person, where sub-folders are people."""
        return PERSON if self.config.identity_from == "folder" else NO_LABELS

    @property
    def label_name(self) -> str:
        """The identity, or none."""
        return "identity" if self.config.identity_from == "folder" else "none"

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
        inputs = list(zip(names, self._annotations(names), strict=True))
        return [
            self._shard(number, inputs[start : start + self.shard_size])
            for number, start in enumerate(range(0, len(inputs), self.shard_size))
        ]

    def _annotations(self, names: list[str]) -> list[tuple[dict[str, Any], ...]]:
        """Who each picture shows; where in the picture, nobody says."""
        people = [name.split("/")[0] if "/" in name else "" for name in names]
        if self.config.identity_from == "none":
            return [() for _ in names]
        numbers = {person: number for number, person in enumerate(sorted(set(people) - {""}))}
        return [({"identity": numbers[p], "person": p},) if p else () for p in people]

    def _shard(self, number: int, inputs: list[tuple[str, tuple[dict[str, Any], ...]]]) -> Shard:
        stats = [(self.config.path / name).stat() for name, _ in inputs]
        state = [(*file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(inputs, stats, strict=True)]
        return Shard(number, len(inputs), digest(state), inputs)

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The files of one shard."""
        for name, faces in shard.payload:
            yield Found(name, self.config.path / name, faces)
