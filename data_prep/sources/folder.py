"""Any folder of pictures. No labels, or a sub-folder for every person."""

from __future__ import annotations

import fnmatch
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import ConfigError
from data_prep.files import digest
from data_prep.names import name_to_text
from data_prep.sources import Found, Photographs, Published
from data_prep.stage import Shard
from data_prep.tables import NO_LABELS

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm"}
)
"""A directory that is called like a picture is an input, too: one that cannot be used."""

PERSON: pa.StructType = pa.struct({"identity": pa.int64(), "person": pa.string()})


class FolderConfig(Photographs):
    """A folder of pictures."""

    kind: Literal["folder"]
    """folder"""
    path: Path
    """The folder. Sub-folders are searched too."""
    pattern: str = "**/*"
    """Which files are inputs, below the folder; ** stands for any depth. Each of them gets a row, also one that is
    no picture; hidden files do not."""
    identity_from: Literal["none", "folder"] = "none"
    """folder: a picture shows the person that its sub-folder of the folder is named after. Identities are counted
    in the order of the names of these sub-folders; a picture outside of them has none."""


@dataclass(frozen=True)
class Folder:
    """Files in the order of their names; ``image_id`` is the path below the folder, spelled by
    :func:`data_prep.names.name_to_text`.
    """

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
        return ({"identity": self._people[person], "person": name_to_text(person)},)

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
        people = [self._annotations(name) for name, _ in found]
        return Shard(number, len(found), digest([inputs, people]), found)

    def ids(self, shard: Shard) -> list[str]:
        """The names of the inputs of a shard, as they stand in the tables."""
        return [name_to_text(name) for name, _ in shard.payload]

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """Some inputs of a shard."""
        return self._shard(shard.number, [shard.payload[place] for place in places])

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The files of one shard."""
        for name, error in shard.payload:
            yield Found(name_to_text(name), self.config.path / name, self._annotations(name), error)


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
