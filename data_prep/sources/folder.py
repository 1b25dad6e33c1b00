"""Any folder of pictures. No labels."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from configs import Config, ConfigError
from data_prep.files import digest
from data_prep.names import name_to_text
from data_prep.sources import Found
from data_prep.stage import Shard
from data_prep.tables import NO_LABELS

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm"}
)
"""A directory that is called like a picture is an input, too: one that cannot be used."""


class FolderConfig(Config):
    """A folder of pictures."""

    kind: Literal["folder"]
    """folder"""
    path: Path
    """The folder. Sub-folders are searched too."""
    pattern: str = "**/*"
    """Which files are inputs, below the folder; ** stands for any depth. Each of them gets a row, also one that is
    no picture; hidden files do not."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed?"""
        return False


@dataclass(frozen=True)
class Folder:
    """Files in the order of their names; ``image_id`` is the path below the folder, spelled by
    :func:`data_prep.names.name_to_text`.
    """

    config: FolderConfig
    shard_size: int
    labels: pa.StructType = NO_LABELS
    label_name: str = "none"

    def shards(self) -> list[Shard]:
        """Everything that matches and is no plain folder, by name, in any depth."""
        root = self.config.path
        if not root.is_dir():
            raise ConfigError(f"source.path={root}: no such folder; check the path")
        found = sorted(_search(str(root), self.config.pattern.split("/")))
        if not found:
            raise ConfigError(f"source.path={root}: no file matches source.pattern='{self.config.pattern}'")
        return [
            self._shard(number, found[start : start + self.shard_size])
            for number, start in enumerate(range(0, len(found), self.shard_size))
        ]

    def _shard(self, number: int, found: list[tuple[str, str]]) -> Shard:
        inputs = [_fingerprint(self.config.path / name, name) for name, _ in found]
        return Shard(number, len(found), digest(inputs), found)

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The files of one shard."""
        for name, error in shard.payload:
            yield Found(name_to_text(name), self.config.path / name, error=error)


def _search(root: str, pattern: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names below ``root`` and, of a folder that cannot be searched, the error. Links to folders are not followed."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = folder + entry.name
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder:
                        folders.append(name + "/")
                    named_so = os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES
                    if (named_so or not is_folder) and _matches(name.split("/"), pattern):
                        yield name, ""
        except OSError as error:
            # Pictures may be in it: it is reported, matching or not.
            yield folder.rstrip("/") or ".", f"cannot be searched: {error.strerror}"


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Do the parts of a path match those of a glob pattern?"""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[start:], pattern[1:] or ("*",)) for start in range(len(path)))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _fingerprint(path: Path, name: str) -> tuple[str, int | str, int]:
    """What changes when the entry does, without opening it."""
    try:
        status = path.stat()
    except OSError as error:
        return name, str(error.strerror), 0
    if not stat.S_ISREG(status.st_mode):
        return name, stat.filemode(status.st_mode)[0], 0
    return name, status.st_size, status.st_mtime_ns
