"""RAF-DB, its basic part: 15,339 photographs of faces from the web with one of seven expressions.

Li et al., "Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild", CVPR
2017. Below the folder "basic":

    EmoLabel/list_patition_label.txt                   "train_00001.jpg 5"; it is spelt so
    Image/aligned/train_00001_aligned.jpg              the face, aligned, 100 x 100 px
    Image/original/train_00001.jpg                     the photograph
    Annotation/boundingbox/train_00001_boundingbox.txt x0 y0 x1 y1 of the face in the photograph

The expressions are 1 surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral. The label
``expression`` counts them as the project does (data_prep/sources/affectnet.py), ``own_expression`` as the list.

Not verified, for want of the data: the folder of boxes and the format of its files, which others' readers suggest.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.affectnet import CLASSES
from data_prep.sources.corpus import Corpus, listed_schema
from data_prep.tables import table_of, vector

OWN_CLASSES = ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")
"""What 1 to 7 of the list mean, in the words of the project."""

LABELS: pa.StructType = pa.struct(
    {"expression": pa.int64(), "own_expression": pa.int64(), "box": vector(4), "split": pa.string()}
)
"""expression: number in affectnet.CLASSES. own_expression: 1 to 7. box: of the photographs; null where there is no
file of it, and of the aligned faces. split: train or test."""

LIST = "EmoLabel/list_patition_label.txt"
COUNTS = {
    "train": (1_290, 281, 717, 4_772, 1_982, 705, 2_524),
    "test": (329, 74, 160, 1_185, 478, 162, 680),
}
"""Pictures of the expressions 1 to 7, 12,271 and 3,068 in all."""

_LINE = re.compile(r"((train|test)_\d{1,9})\.jpg\s+([1-7])", re.ASCII)
_NAME = re.compile(r"((train|test)_\d{1,9})\.jpg\b", re.ASCII)
_log = logging.getLogger(__name__)


class RAFDBConfig(Photographs):
    """RAF-DB, basic."""

    kind: Literal["rafdb"]
    """rafdb"""
    path: Path
    """The folder "basic", with EmoLabel and Image in it."""
    pictures: Literal["aligned", "original"] = "aligned"
    """The aligned faces, or the photographs that they were cut from."""


@dataclass(frozen=True)
class RAFDB(Corpus):
    """Pictures in the order of the list; ``image_id`` is the path below the folder."""

    config: RAFDBConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "expression"
    published: tuple[Published, ...] = tuple(
        Published(
            f"faces of {split}, {name}",
            count,
            "counted on a copy of the list",
            of="faces",
            labels={"split": split, "own_expression": number},
        )
        for split, counts in COUNTS.items()
        for number, (name, count) in enumerate(zip(OWN_CLASSES, counts, strict=True), 1)
    )

    def inputs(self) -> pa.Table:
        """All pictures of the list.

        Raises:
            ConfigError: there is no list.
        """
        path = self.root / LIST
        if not path.is_file():
            raise ConfigError(f"source.path={self.root}: no {LIST} in it; name the folder 'basic' of RAF-DB")
        return table_of(list(self._rows(path)), listed_schema(LABELS))

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                text, place = line.strip(), f"{path.name}:{number}"
                name = _NAME.match(text)
                if not text:
                    continue
                if not name or name[1] in seen:
                    _log.warning("%s: left out, it names no new picture; mend it: '%s'", place, text[:80])
                    continue
                seen.add(name[1])
                yield self._row(name[1], name[2], text, place)

    def _row(self, stem: str, split: str, text: str, place: str) -> dict[str, Any]:
        aligned = self.config.pictures == "aligned"
        path = f"Image/aligned/{stem}_aligned.jpg" if aligned else f"Image/original/{stem}.jpg"
        row = {"image_id": path, "path": path, "error": "", "annotations": [], "place": place}
        line = _LINE.fullmatch(text)
        if not line:
            return row | {"error": f"{place}: not train_00001.jpg and 1 to 7; mend the line: '{text[:80]}'"}
        own = int(line[3])
        face = {"expression": CLASSES.index(OWN_CLASSES[own - 1]), "own_expression": own, "split": split}
        try:
            box = None if aligned else read_box(self.root / f"Annotation/boundingbox/{stem}_boundingbox.txt")
        except ValueError as error:
            return row | {"error": str(error)}
        return row | {"annotations": [face | {"box": box}]}


def read_box(path: Path) -> list[float] | None:
    """x0, y0, x1, y1; None where there is no such file.

    Raises:
        ValueError: it holds something else. The message starts with the file's name.
    """
    try:
        words = path.read_text(errors="backslashreplace").split()
        box = [float(word) for word in words]
    except FileNotFoundError:
        return None
    except ValueError:
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"{path.name}: not x0 y0 x1 y1; mend it: '{' '.join(words)[:80]}'")
    return box
