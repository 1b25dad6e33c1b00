"""300W: photographs with 68 points in the iBUG order, gathered from five corpora; and its own test pictures.

Sagonas et al., "300 Faces in-the-Wild Challenge", ICCV Workshops 2013. Below the folder:

    afw/134212_1.jpg                   a picture, .jpg or .png, the ending in upper case too
    afw/134212_1.pts                   its points: "version: 1", "n_points:  68", "{", 68 lines "x y", "}"
    helen/{trainset,testset}, lfpw/{trainset,testset}, ibug, 300W/{01_Indoor,02_Outdoor}    likewise
    Bounding_Boxes/bounding_boxes_helen_testset.mat    boxes of the organisers' detector, if they are there

The points count pixels from 1, as MATLAB does: menpo takes 1 off to count from 0. Here the middle of the first pixel
is (0.5, 0.5), so 0.5 is taken off, of the boxes too.

One picture is called ``image_092 _01.jpg``, with a space; the boxes are found by the name without its spaces and
without its ending. ``bounding_boxes_ibug.mat`` names more pictures than ibug has; they are passed over. Copies of
the corpus hold files ``*_mirror.*`` that tools have added: they are left out. Of a picture that is there in two
formats the first by name is taken. Some photographs are in more than one of the corpora (from memory); the report
counts exact copies.

By custom the training set is afw, helen/trainset and lfpw/trainset; "common" is helen/testset and lfpw/testset,
"challenge" is ibug, "full" is both; "300W test" is indoor and outdoor.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, known, labelled_files, tight_box
from data_prep.sources.matlab import read_mat
from data_prep.stage import Shard
from data_prep.tables import vector

_log = logging.getLogger(__name__)

Subset = Literal["train", "common", "challenge", "indoor", "outdoor"]


class _Part(NamedTuple):
    folder: str
    subset: Subset
    pictures: int


PARTS = (
    _Part("afw", "train", 337),
    _Part("helen/trainset", "train", 2_000),
    _Part("lfpw/trainset", "train", 811),
    _Part("helen/testset", "common", 330),
    _Part("lfpw/testset", "common", 224),
    _Part("ibug", "challenge", 135),
    _Part("300W/01_Indoor", "indoor", 300),
    _Part("300W/02_Outdoor", "outdoor", 300),
)
"""The folders, what they are used for, and how many pictures they are published with."""

LABELS: pa.StructType = pa.struct(
    {
        "box": vector(4),
        "detector_box": vector(4),
        "landmarks68": vector(136),
        "split": pa.string(),
        "subset": pa.string(),
    }
)
"""box: the tight box of the 68 points, chin to brows, without the forehead. detector_box: of Bounding_Boxes, null
where there is none. split: train or test. subset: train, common, challenge, indoor or outdoor."""


class W300Config(Photographs):
    """300W."""

    kind: Literal["300w"]
    """300w"""
    path: Path
    """The folder with afw, helen, lfpw, ibug and 300W in it."""
    subsets: tuple[Subset, ...] = Field(("train", "common", "challenge", "indoor", "outdoor"), min_length=1)
    """Which parts. "full" is common and challenge, "300W test" is indoor and outdoor."""


@dataclass(frozen=True)
class W300(Corpus):
    """Pictures in the order of :data:`PARTS` and of their names; ``image_id`` is the path below the folder.

    A .pts is opened together with its picture; the boxes are read for the list.
    """

    config: W300Config
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of each folder."""
        origin = "as papers count them: 3,148 for training, 554 common, 135 challenge, 600 of 300W test"
        return tuple(
            Published(f"pictures of {part.folder}", part.pictures, origin, prefix=f"{part.folder}/")
            for part in self._parts()
        )

    def _parts(self) -> list[_Part]:
        return [part for part in PARTS if part.subset in self.config.subsets]

    def inputs(self) -> pa.Table:
        """All pictures of the chosen parts, and those of which only the .pts is there.

        Raises:
            ConfigError: no such folder, or a file of boxes is damaged.
        """
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        return pa.concat_tables(self._part(part) for part in self._parts())

    def _part(self, part: _Part) -> pa.Table:
        table = labelled_files(self.root, part.folder, (".jpg", ".jpeg", ".png"), ".pts", LABELS)
        table = table.take(pa.array(_originals(table["path"].to_pylist()), pa.int64()))
        boxes = self._boxes(part)
        split = "train" if part.subset == "train" else "test"
        faces = [
            [{"detector_box": boxes.get(_stem(path)), "split": split, "subset": part.subset}]
            for path in table["path"].to_pylist()
        ]
        place = table.column_names.index("annotations")
        field = table.schema.field("annotations")
        return table.set_column(place, field, pa.array(faces, field.type))

    def _boxes(self, part: _Part) -> dict[str, list[float | None]]:
        """Box of the detector by :func:`_stem`."""
        name = f"bounding_boxes_{part.folder.replace('/', '_')}.mat"
        paths = (self.root / folder / name for folder in ("Bounding_Boxes", "Bounding Boxes"))
        found = next((path for path in paths if path.exists()), None)
        if not found:
            return {}
        try:
            return read_boxes(found)
        except ValueError as error:
            raise ConfigError(f"{found}: {error}; replace it, or remove it to do without its boxes") from None

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard, each with its face, or with what is wrong with its .pts."""
        for found in super().pictures(shard):
            pts = found.path.with_suffix(".pts")
            try:
                points = read_pts(pts)
            except ValueError as error:
                place = pts.relative_to(self.root).as_posix()
                yield replace(found, annotations=(), error=f"{place}{error}")
            else:
                face = {**found.annotations[0], "box": tight_box(points), "landmarks68": known(points)}
                yield replace(found, annotations=(face,))


def read_pts(path: Path) -> NDArray[np.float64]:
    """(68, 2) points of one .pts, in px, the middle of the first pixel at (0.5, 0.5).

    Raises:
        ValueError: it is missing or damaged. The message is ":LINE: REASON" or ": REASON".
    """
    try:
        lines = path.read_bytes().decode("utf-8", "backslashreplace").splitlines()
    except OSError as error:
        raise ValueError(f": cannot be read: {error.strerror}") from None
    words = [line.split() for line in lines]
    if ["{"] not in words or ["}"] not in words:
        raise ValueError(": no points between { and }")
    start = words.index(["{"]) + 1
    points = []
    for number, line in enumerate(words[start : words.index(["}"])], start + 1):
        point = [_number(word) for word in line]
        if line and (len(point) != 2 or not all(map(math.isfinite, point))):
            raise ValueError(f":{number}: not two numbers: '{' '.join(line)[:80]}'")
        if line:
            points.append(point)
    if len(points) != 68:
        raise ValueError(f": {len(points)} points instead of 68")
    return np.array(points) - 0.5


def read_boxes(path: Path) -> dict[str, list[float | None]]:
    """Box of the detector for each picture that a bounding_boxes_*.mat names, in the convention of the points.

    Raises:
        ValueError: it is missing, damaged or holds something else. The message is the reason, without the path.
    """
    entries = read_mat(path, "bounding_boxes").get("bounding_boxes", ())
    boxes: dict[str, list[float | None]] = {}
    for i, entry in enumerate(np.ravel(entries)):
        try:
            face = np.ravel(entry)[0]
            name, box = str(np.ravel(face["imgName"])[0]), np.ravel(face["bb_detector"]).astype(np.float64)
            boxes[_stem(name)] = known(box.reshape(4) - 0.5)
        except (IndexError, KeyError, TypeError, ValueError):
            raise ValueError(f"bounding_boxes{{{i + 1}}} is no imgName with a bb_detector of 4") from None
    if not boxes:
        raise ValueError("bounding_boxes is missing or empty")
    return boxes


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _stem(path: str) -> str:
    """What a picture is called in the files of boxes, which differ from the folders in spaces and endings."""
    return os.path.splitext(os.path.basename(path))[0].replace(" ", "")


def _originals(paths: list[str]) -> list[int]:
    """The places of the pictures that are the corpus's own: no mirrored ones, and each once."""
    stems = [os.path.splitext(path)[0] for path in paths]
    mirrored = [i for i, stem in enumerate(stems) if stem.endswith("_mirror")]
    first = {stem: i for i, stem in reversed([*enumerate(stems)])}
    again = [i for i, stem in enumerate(stems) if first[stem] != i and i not in mirrored]
    for places, what in ((mirrored, "a mirrored picture"), (again, "there in another format, too")):
        if places:
            more = f" (and {len(places) - 1} more)" if places[1:] else ""
            _log.warning("%s: %s; left out%s", paths[places[0]], what, more)
    return sorted(set(range(len(paths))) - {*mirrored, *again})
