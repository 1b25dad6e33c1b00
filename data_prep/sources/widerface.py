"""WIDER FACE (Yang et al., 2016): crowds and scenes with a box and six attributes for each face.

The layout that is read, below ``source.path``:

* ``WIDER_{train,val,test}/images/0--Parade/0_Parade_marchingband_1_849.jpg``: the pictures;
* ``wider_face_split/wider_face_{train,val}_bbx_gt.txt``: for each picture a line with its name below ``images``,
  a line with the number of faces, and as many lines ``x y w h blur expression illumination invalid occlusion
  pose``. A picture with 0 faces is followed by one line of zeros.

Faces that the authors mark as invalid, and those whose w or h is 0, are left out. Where an annotation file is
missing, as it always is of test, the folders are walked, in order of names, and nothing is annotated.

Not verified, for want of the data: the line of zeros and :data:`PUBLISHED`, which are from memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import Corpus, input_schema
from data_prep.tables import vector

PUBLISHED: dict[str, Published] = {
    split: Published(f"pictures of {split}", count, "from memory; 32,203 in all", prefix=f"{split}/")
    for split, count in (("train", 12_880), ("val", 3_226), ("test", 16_097))
}
FACES = Published("faces", 393_703, "from memory; those of test are not given away", of="faces")
"""Of all three splits. Faces marked as invalid count among the published ones."""

ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
"""As the annotation files number them: blur and occlusion 0 to 2, the others 0 or 1; invalid is always 0 here."""

LABELS: pa.StructType = pa.struct({"box": vector(4)} | dict.fromkeys(ATTRIBUTES, pa.int32()))

_NUMBERS = re.compile(r"(-?\d{1,6}\s+){9}-?\d{1,6}", re.ASCII)
_COUNT = re.compile(r"\d{1,6}", re.ASCII)
_NAME = re.compile(r"[^./\s][^/]*/[^./\s][^/]*\.(jpe?g|png)", re.IGNORECASE)
_INVALID = 4 + ATTRIBUTES.index("invalid")
_log = logging.getLogger(__name__)


class WiderFaceConfig(Photographs):
    """WIDER FACE as distributed, unpacked."""

    kind: Literal["widerface"]
    """widerface"""
    path: Path
    """The folder with WIDER_train/, WIDER_val/, WIDER_test/ and wider_face_split/."""
    splits: tuple[Literal["train", "val", "test"], ...] = Field(("train", "val", "test"), min_length=1)
    """Which parts; test has no annotations."""


@dataclass(frozen=True)
class WiderFace(Corpus):
    """As many annotations a picture as it has faces; ``image_id`` is the split and the name below ``images``."""

    config: WiderFaceConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of the chosen splits; the faces where all three are."""
        pictures = tuple(PUBLISHED[split] for split in dict.fromkeys(self.config.splits))
        return (*pictures, FACES) if len(pictures) == len(PUBLISHED) else pictures

    def inputs(self) -> pa.Table:
        """All pictures of the chosen splits, in the order of the annotation files.

        Raises:
            ConfigError: neither an annotation file nor a folder of any of the splits is there, or they are empty.
        """
        splits = list(dict.fromkeys(self.config.splits))
        table = pa.concat_tables(_table(split, self._pictures_of(split)) for split in splits)
        if not len(table):
            expected = f"WIDER_{splits[0]}/images/0--Parade/*.jpg and wider_face_split/"
            raise ConfigError(f"source.path={self.root}: no WIDER FACE is there; expected {expected} in it")
        return table

    def _pictures_of(self, split: str) -> list[_Picture]:
        path = self.root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
        if path.is_file():
            return list(_first_of_each(_annotated(path), path))
        if split != "test":
            _log.warning("%s is not there: the pictures of '%s' stay, without annotations", path, split)
        return [_Picture(name, 0) for name in _walk(self.root / f"WIDER_{split}" / "images")]


@dataclass
class _Picture:
    """A picture of an annotation file."""

    name: str
    line: int
    faces: list[list[int]] = field(default_factory=list)
    """Ten numbers for each face that stays."""
    error: str = ""
    announced: int | None = None
    """Faces that the count line promises; None until it has come."""
    seen: int = 0
    """Lines after the count line."""

    def take(self, text: str, place: str) -> bool:
        """Add what the line at ``place`` says; False: it is not about this picture."""
        if self.announced is None:
            self.announced = int(text) if _COUNT.fullmatch(text) else 0
            self.error = "" if _COUNT.fullmatch(text) else f"{place}: not a number of faces: '{text[:80]}'"
            return True
        numbers = [int(word) for word in text.split()] if _NUMBERS.fullmatch(text) else []
        if not numbers and self.seen >= self.announced:
            return False
        self.seen += 1
        if not numbers:
            self.error = self.error or f"{place}: not ten whole numbers: '{text[:80]}'"
        elif min(numbers[2:4]) > 0 and not numbers[_INVALID]:
            self.faces.append(numbers)
        return True

    def complete(self, file: str) -> _Picture:
        """Itself, with an error if other lines follow than the count line promises."""
        zeros = self.announced == 0 and self.seen == 1 and not self.faces
        if not self.error and self.announced != self.seen and not zeros:
            promised = "no number of faces" if self.announced is None else f"{self.announced} faces announced"
            self.error = f"{file}:{self.line}: {promised}, {self.seen} lines follow"
        return self


def _annotated(path: Path) -> Iterator[_Picture]:
    """The pictures of an annotation file. Lines that belong to none cost one warning."""
    strays: list[str] = []
    picture: _Picture | None = None
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            text, place = line.strip(), f"{path.name}:{number}"
            is_name = _NAME.fullmatch(text)
            if not text or (picture and not is_name and picture.take(text, place)):
                continue
            if picture:
                yield picture.complete(path.name)
            # After a damaged name all is lost up to the next one: its faces are not the picture's before it.
            picture = _Picture(text, number) if is_name else None
            if not is_name:
                strays.append(f"{place}: belongs to no picture: '{text[:80]}'")
    if picture:
        yield picture.complete(path.name)
    _warn(strays)


def _first_of_each(pictures: Iterable[_Picture], path: Path) -> Iterator[_Picture]:
    """Without those named before: an image_id is unique."""
    seen: set[str] = set()
    again: list[str] = []
    for picture in pictures:
        if picture.name in seen:
            again.append(f"{path.name}:{picture.line}: {picture.name} is named before; left out")
        else:
            seen.add(picture.name)
            yield picture
    _warn(again)


def _warn(lines: list[str]) -> None:
    if lines:
        _log.warning("%s%s", lines[0], f" (and {len(lines) - 1} more lines)" if lines[1:] else "")


def _walk(folder: Path) -> list[str]:
    """The pictures one folder down, by name. Other files, hidden ones too, are no inputs."""
    events = sorted(event for event in _entries(folder) if (folder / event).is_dir())
    names = [f"{event}/{name}" for event in events for name in sorted(_entries(folder / event))]
    names = [name for name in names if _NAME.fullmatch(name)]
    if not names:
        _log.warning("%s: no picture is there", folder)
    return names


def _entries(folder: Path) -> list[str]:
    # A name that is no text at all, in whatever encoding, is not printable.
    return [name for name in os.listdir(folder) if name.isprintable()] if folder.is_dir() else []


def _table(split: str, pictures: list[_Picture]) -> pa.Table:
    """The pictures of a split with the columns of :func:`data_prep.sources.corpus.input_schema`."""
    numbers = np.array([face for picture in pictures for face in picture.faces], np.int32).reshape(-1, 10)
    box = numbers[:, :4].astype(np.float32)
    box[:, 2:] += box[:, :2]
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(box.reshape(-1)), type=vector(4))]
    columns += [pa.array(np.ascontiguousarray(column)) for column in numbers[:, 4:].T]
    faces = pa.StructArray.from_arrays(columns, fields=list(LABELS))
    ends = np.cumsum([0] + [len(picture.faces) for picture in pictures], dtype=np.int32)
    return pa.table(
        [
            pa.array([f"{split}/{picture.name}" for picture in pictures], pa.string()),
            pa.array([f"WIDER_{split}/images/{picture.name}" for picture in pictures], pa.string()),
            pa.array([picture.error for picture in pictures], pa.string()),
            pa.ListArray.from_arrays(pa.array(ends), faces),
        ],
        schema=input_schema(LABELS),
    )
