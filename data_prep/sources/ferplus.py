"""FERPlus: the 35,887 faces of FER2013, 48 x 48 px in grey, each looked at by ten people.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution", ICMI
2016. The pictures are numbers in a CSV file of Kaggle's, the votes are in the repository microsoft/FERPlus. Below
the folder:

    fer2013.csv                      emotion,pixels,Usage; 2304 numbers a line
    fer2013new.csv                   Usage,Image name, ten votes; its N-th line is about the N-th of fer2013.csv
    data/FER2013Train/label.csv      fer0000000.png,"(0, 0, 48, 48)", ten votes; and FER2013Valid, FER2013Test

The number in a picture's name is not the line of it, so fer2013new.csv is needed in any case; lines without a name
in it show no face. The votes of label.csv differ from its own in about a thousand training pictures.

Which pictures are taken, and as what, is FERPlus's rule "majority": a class with a single vote loses it; the class
with more than half of the votes that are left wins; where there is none, or where it is "unknown" or "no face", the
picture is left out. With the votes of label.csv that are the 25,045, 3,191 and 3,137 pictures that papers count,
with those of fer2013new.csv 25,060, 3,199 and 3,153.

The pictures are written as PNG files below the output's folder ``pictures``.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.affectnet import CLASSES
from data_prep.sources.corpus import Corpus, input_schema, shard_rows
from data_prep.stage import Shard
from data_prep.tables import table_of, vector

OWN_CLASSES = ("neutral", "happy", "surprise", "sad", "anger", "disgust", "fear", "contempt")
"""The first eight votes, in the words of the project; after them come "unknown" and "no face"."""
VOTES = 10
SIDE = 48
SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_NAME = re.compile(r"(?:\w[\w-]*\.png)?", re.ASCII)
FOLDERS = {"train": "FER2013Train", "val": "FER2013Valid", "test": "FER2013Test"}

LABELS: pa.StructType = pa.struct(
    {
        "expression": pa.int64(),
        "own_expression": pa.int64(),
        "votes": vector(VOTES, pa.int32()),
        "split": pa.string(),
    }
)
"""expression: number in affectnet.CLASSES. own_expression: number in OWN_CLASSES. votes: as they were given. split:
train, val (Kaggle's PublicTest) or test (PrivateTest)."""

PUBLISHED = {
    "label.csv": {"train": 25_045, "val": 3_191, "test": 3_137},
    "fer2013new.csv": {"train": 25_060, "val": 3_199, "test": 3_153},
}
COUNTS = {
    "train": (8_733, 7_284, 3_022, 3_136, 536, 116, 2_098, 120),
    "test": (1_083, 892, 382, 394, 86, 16, 269, 15),
}
"""Pictures of affectnet.CLASSES 0 to 7 by the votes of label.csv."""
_log = logging.getLogger(__name__)


class FERPlusConfig(Photographs):
    """FERPlus."""

    kind: Literal["ferplus"]
    """ferplus"""
    path: Path
    """The folder with fer2013.csv, fer2013new.csv and data/ in it."""
    votes: Literal["label.csv", "fer2013new.csv"] = "label.csv"
    """Whose votes count. The published counts are those of label.csv."""


@dataclass(frozen=True)
class FERPlus(Corpus):
    """Pictures in the order of fer2013.csv; ``image_id`` is the part and the name in fer2013new.csv.

    ``folder`` is where the pictures are written.
    """

    config: FERPlusConfig
    shard_size: int
    folder: Path
    labels: pa.StructType = LABELS
    label_name: str = "expression"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of each part that have a majority; by the votes of label.csv, those of each class too."""
        parts = [
            Published(f"pictures of {split}", count, "counted by FERPlus's rule", prefix=f"{split}/")
            for split, count in PUBLISHED[self.config.votes].items()
        ]
        if self.config.votes == "label.csv":
            parts += [
                Published(
                    f"faces of {split}, {CLASSES[number]}",
                    count,
                    "SimFLE's counts",
                    of="faces",
                    labels={"split": split, "expression": number},
                )
                for split, counts in COUNTS.items()
                for number, count in enumerate(counts)
            ]
        return tuple(parts)

    def inputs(self) -> pa.Table:
        """The pictures with a majority, and those whose votes are damaged. With two columns more: offset of the
        picture's line in fer2013.csv, and the line's SHA-256, so that changed pixels are a changed shard.

        Raises:
            ConfigError: a file is missing, or the lines of the two are not about the same pictures.
        """
        named = list(_named(self.root / "fer2013new.csv"))
        lines = list(_lines(self.root / "fer2013.csv"))
        if len(lines) != len(named):
            raise ConfigError(
                f"source.path={self.root}: fer2013.csv has {len(lines):,} pictures and fer2013new.csv "
                f"{len(named):,}; their lines belong together one to one, get whole copies"
            )
        votes = self._votes(named)
        rows, places = [], []
        for picture, line in zip(named, lines, strict=True):
            _check_same_part(picture, line)
            row = _row(picture, votes.get(picture.image_id))
            if row:
                rows.append(row)
                places.append(line)
        table = table_of(rows, input_schema(LABELS))
        table = table.append_column("offset", pa.array([line.offset for line in places], pa.int64()))
        return table.append_column(
            "line", pa.array([line.number for line in places], pa.int64())
        ).append_column("sha256", pa.array([line.sha256 for line in places], pa.string()))

    def _votes(self, named: Sequence[_Named]) -> dict[str, _Votes]:
        """Of each picture by its id."""
        if self.config.votes == "fer2013new.csv":
            return {picture.image_id: picture.votes for picture in named}
        votes: dict[str, _Votes] = {}
        for split, folder in FOLDERS.items():
            path = self.root / "data" / folder / "label.csv"
            for number, cells in _rows(path):
                place, name = f"{folder}/label.csv:{number}", f"{split}/{cells[0].strip()}"
                votes[name] = (
                    _Votes(place, error=f"{place}: {name} has a line before; take one of them out")
                    if name in votes
                    else _parse_votes(cells[2:], place)
                )
        known = {picture.image_id for picture in named}
        if strange := [name for name in votes if name not in known]:
            message = (
                "%s: left out, fer2013new.csv has no picture %s, nor those of %d other lines; mend the names"
            )
            _log.warning(message, votes[strange[0]].place, strange[0][:80], len(strange) - 1)
        return votes

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard; each is written first."""
        rows = shard_rows(shard)
        places = zip(rows["offset"].to_pylist(), rows["line"].to_pylist(), strict=True)
        with open(self.root / "fer2013.csv", "rb") as file:
            for found, (offset, line) in zip(super().pictures(shard), places, strict=True):
                path = self.folder / found.image_id
                file.seek(offset)
                pixels = _pixels(file.readline())
                if found.error or pixels is None:
                    fault = (
                        found.error
                        or f"fer2013.csv:{line}: pixels are not {SIDE * SIDE} numbers, 0 to 255; get a whole copy"
                    )
                    yield replace(found, path=path, error=fault)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                # Not synced, like rendered pictures: the table holds each file's hash.
                Image.fromarray(pixels).save(path)
                yield replace(found, path=path)


@dataclass(frozen=True)
class _Votes:
    """Ten votes, or what is wrong with them, and in which line of which file they are."""

    place: str
    counts: tuple[int, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class _Named:
    """A line of fer2013new.csv."""

    place: str
    split: str
    name: str
    """Empty: it shows no face."""
    votes: _Votes

    @property
    def image_id(self) -> str:
        """Part and name."""
        return f"{self.split}/{self.name}"


@dataclass(frozen=True)
class _Line:
    """A line of fer2013.csv."""

    number: int
    offset: int
    usage: str
    sha256: str


def _named(path: Path) -> Iterator[_Named]:
    """The lines after the header."""
    seen: set[str] = set()
    for number, cells in _rows(path):
        place = f"{path.name}:{number}"
        if number == 1:
            continue
        usage, name = (cell.strip() for cell in (*cells, "", "")[:2])
        # A name is checked, for a file gets it.
        if usage not in SPLITS or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{place}: not Usage,Image name and ten votes; its lines must not be lost, mend it"
            )
        if name and name in seen:
            raise ConfigError(f"{place}: {name} has a line before; mend it")
        seen.add(name)
        yield _Named(place, SPLITS[usage], name, _parse_votes(cells[2:], place))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the lines of a CSV file, without blank ones."""
    try:
        with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check source.path") from None


def _parse_votes(cells: Sequence[str], place: str) -> _Votes:
    texts = [cell.strip() for cell in cells]
    if len(texts) != VOTES or not all(text.isascii() and text.isdigit() for text in texts):
        return _Votes(place, error=f"{place}: not ten votes; mend the line: '{','.join(texts)[:80]}'")
    return _Votes(place, tuple(map(int, texts)))


def majority(votes: Sequence[int]) -> int | None:
    """Ten votes -> the class in OWN_CLASSES that has won, None where there is none.

    FERPlus's rule: single votes do not count, and the winner has more than half of the others.
    """
    kept = [count if count > 1 else 0 for count in votes]
    winner = kept.index(max(kept))
    return winner if 2 * kept[winner] > sum(kept) and winner < len(OWN_CLASSES) else None


def _lines(path: Path) -> Iterator[_Line]:
    """The lines of fer2013.csv after its header."""
    try:
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                text = line.strip()
                if number > 1 and text:
                    usage = text.rpartition(b",")[2].decode("ascii", "backslashreplace").strip(' "')
                    yield _Line(number, offset, usage, hashlib.sha256(text).hexdigest())
                offset += len(line)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check source.path") from None


def _check_same_part(picture: _Named, line: _Line) -> None:
    if SPLITS.get(line.usage) != picture.split:
        raise ConfigError(
            f"{picture.place} is of {picture.split}, fer2013.csv:{line.number} says '{line.usage[:40]}'; their lines "
            "belong together one to one, get whole copies"
        )


def _row(picture: _Named, votes: _Votes | None) -> dict[str, Any] | None:
    """The input; None where the picture is left out."""
    if not picture.name or votes is None:
        return None
    row = {"image_id": picture.image_id, "path": picture.image_id, "error": votes.error, "annotations": []}
    if votes.error:
        return row
    own = majority(votes.counts)
    if own is None:
        return None
    face = {
        "expression": CLASSES.index(OWN_CLASSES[own]),
        "own_expression": own,
        "votes": votes.counts,
        "split": picture.split,
    }
    return row | {"annotations": [face]}


def _pixels(line: bytes) -> NDArray[np.uint8] | None:
    """(48, 48) of a line of fer2013.csv; None where they are something else."""
    cells = line.split(b",")
    try:
        values = [int(word) for word in cells[1].strip(b' "').split()]
    except (IndexError, ValueError):
        return None
    if len(values) != SIDE * SIDE or min(values) < 0 or max(values) > 255:
        return None
    return np.array(values, np.uint8).reshape(SIDE, SIDE)
