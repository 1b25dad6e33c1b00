"""Any folder of pictures. No labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from configs import Config, ConfigError
from data_prep.files import digest
from data_prep.sources import Found, Published
from data_prep.stage import Shard
from data_prep.tables import NO_LABELS


class FolderConfig(Config):
    """A folder of pictures."""

    kind: Literal["folder"]
    """folder"""
    path: Path
    """The folder. Sub-folders are searched too."""
    pattern: str = "**/*"
    """Which files are inputs; each of them gets a row, also one that is no picture. Hidden files are not."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed?"""
        return False


@dataclass(frozen=True)
class Folder:
    """Files in the order of their names; ``image_id`` is the path below the folder."""

    config: FolderConfig
    shard_size: int
    labels: pa.StructType = NO_LABELS
    label_name: str = "none"
    published: tuple[Published, ...] = ()

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
        return Shard(number, len(names), digest(inputs), names)

    def ids(self, shard: Shard) -> list[str]:
        """The names of the files of a shard."""
        return [*shard.payload]

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """Some files of a shard."""
        return self._shard(shard.number, [shard.payload[place] for place in places])

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The files of one shard."""
        for name in shard.payload:
            yield Found(name, self.config.path / name)
