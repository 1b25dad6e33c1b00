"""SFEW 2.0: single frames of films, with one of seven expressions, as aligned faces of 143 x 181 px.

Dhall et al., "Static Facial Expression Analysis in Tough Conditions", ICCV Workshops 2011; the second version is
of the EmotiW challenge of 2015. Below the folder:

    Train/Train_Aligned_Faces/Angry/*.png      and Disgust, Fear, Happy, Neutral, Sad, Surprise
    Val/Val_Aligned_Faces_new/Angry/*.png      or Val_Aligned_Faces, as it was before
    Test/Test_Aligned_Faces/*.png              without labels

The folders Train, Val and Test themselves may be missing, as the archives hold what is in them. The labels of the
test part were never given away, so papers train on train and report on val.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.affectnet import CLASSES
from data_prep.sources.corpus import Corpus, input_schema, visible_files
from data_prep.tables import table_of

FOLDERS = {
    "Angry": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happy",
    "Neutral": "neutral",
    "Sad": "sad",
    "Surprise": "surprise",
}
"""Folder -> the same in the words of the project."""

LABELS: pa.StructType = pa.struct({"expression": pa.int64(), "split": pa.string()})
"""expression: number in affectnet.CLASSES; null in test. split: train, val or test."""

COUNTS = {
    "train": {
        "neutral": 144,
        "happy": 184,
        "sad": 161,
        "surprise": 94,
        "fear": 78,
        "disgust": 52,
        "anger": 178,
    },
    "val": {"neutral": 84, "happy": 72, "sad": 73, "surprise": 56, "fear": 46, "disgust": 23, "anger": 77},
}
TEST = 372
_log = logging.getLogger(__name__)


class SFEWConfig(Photographs):
    """SFEW 2.0."""

    kind: Literal["sfew"]
    """sfew"""
    path: Path
    """The folder with Train, Val and Test, or with Train_Aligned_Faces ..., in it."""
    splits: tuple[Literal["train", "val", "test"], ...] = Field(("train", "val"), min_length=1)
    """Which parts; test has no labels."""


@dataclass(frozen=True)
class SFEW(Corpus):
    """Pictures in the order of part, class and name; ``image_id`` is the same without the other folders."""

    config: SFEWConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "expression"

    @property
    def published(self) -> tuple[Published, ...]:
        """The pictures of each class of the chosen parts."""
        figures = []
        for split in dict.fromkeys(self.config.splits):
            for name, count in COUNTS.get(split, {}).items():
                labels = {"split": split, "expression": CLASSES.index(name)}
                what = f"faces of {split}, {name}"
                figures.append(Published(what, count, "SimFLE's counts", of="faces", labels=labels))
            if split == "test":
                figures.append(Published("pictures of test", TEST, "EmotiW 2015", prefix="test/"))
        return tuple(figures)

    def inputs(self) -> pa.Table:
        """All pictures of the chosen parts.

        Raises:
            ConfigError: a part is not there.
        """
        rows = [row for split in dict.fromkeys(self.config.splits) for row in self._rows(split)]
        return table_of(rows, input_schema(LABELS))

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        part = self._part(split.title())
        if split == "test":
            yield from _pictures(self.root, part, "test", {"expression": None, "split": split})
            return
        self._warn_of_other_classes(part)
        for folder, name in FOLDERS.items():
            face = {"expression": CLASSES.index(name), "split": split}
            yield from _pictures(self.root, part / folder, f"{split}/{folder}", face)

    def _warn_of_other_classes(self, part: Path) -> None:
        for other in sorted({entry.name for entry in part.iterdir() if entry.is_dir()} - FOLDERS.keys()):
            if not other.startswith("."):
                _log.warning(
                    "%s: left out, it is no class; rename it to one of %s", part / other, ", ".join(FOLDERS)
                )

    def _part(self, part: str) -> Path:
        """The folder of one part. Where there are two of val, it is the new one."""
        names = [f"{part}_Aligned_Faces_new", f"{part}_Aligned_Faces"]
        places = [self.root / above / name for above in (part, "") for name in names]
        there = [place for place in places if place.is_dir()]
        if not there:
            raise ConfigError(
                f"source.path={self.root}: no {part}/{names[1]} in it; check the path and source.splits"
            )
        for other in there[1:]:
            _log.warning("%s: left out, %s is taken instead", other, there[0])
        return there[0]


def _pictures(root: Path, folder: Path, above: str, face: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = sorted(entry.name for entry in visible_files(folder))
    for name in names:
        if name.lower().endswith((".png", ".jpg", ".jpeg")):
            path = str((folder / name).relative_to(root))
            yield {"image_id": f"{above}/{name}", "path": path, "error": "", "annotations": [face]}
