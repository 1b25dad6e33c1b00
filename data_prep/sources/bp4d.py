"""BP4D-Spontaneous: 41 people in eight tasks, the intensity of five action units in the frames that were coded.

Zhang et al., "BP4D-Spontaneous: a high-resolution spontaneous 3D dynamic facial expression database", Image and
Vision Computing 2014. Below the folder:

    F001/T1/2440.jpg                               the pictures: 23 women, F001 to F023, 18 men, M001 to M018
    AUCoding/AU_INT/AU06/F001_T1_AU06.csv          FRAME,INTENSITY; 0 to 5, or 9 where the coder could not tell
    AU Intensity Codes3.0/AU06/...                 the same, as it is called elsewhere

Only a part of the frames was coded, about 500 of each task; the others are left out. The names of pictures are
matched with the frames by number, with and without leading zeros, which is from memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import Corpus, input_schema
from data_prep.sources.intensities import Intensities, read_intensities
from data_prep.tables import table_of, vector

UNITS = (6, 10, 12, 14, 17)
"""The order of ``action_units``."""
MISSING = 9
"""What the coders write for "cannot tell"."""

FOLDS = (
    "F001 F002 F008 F009 F010 F016 F018 F023 M001 M004 M007 M008 M012 M014",
    "F003 F005 F011 F013 F020 F022 M002 M005 M010 M011 M013 M016 M017 M018",
    "F004 F006 F007 F012 F014 F015 F017 F019 F021 M003 M006 M009 M015",
)
"""The people of folds 1, 2 and 3, as JAA-Net and ME-GraphAU divide them; ME-GraphAU tests its fold k on 4 - k."""

LABELS: pa.StructType = pa.struct(
    {
        "identity": pa.int64(),
        "subject": pa.string(),
        "task": pa.string(),
        "action_units": vector(5),
        "frame": pa.int32(),
        "fold": pa.int32(),
        "split": pa.string(),
    }
)
"""identity: N of F00N, 100 + N of M00N. subject, task: F001, T1. action_units: intensities 0 to 5 in the order of
UNITS, null where nobody could tell. split: of FERA 2015, train where the subject's number is odd, dev where even."""

_MEMORY = "FERA 2015, from memory; the two add up to the 146,847 of ME-GraphAU's lists"
PUBLISHED = (
    Published("pictures", 146_847, "ME-GraphAU's lists; JAA-Net's have 146,576"),
    Published("people", 41, "Zhang et al. (2014)", of="identities"),
    *(
        Published(f"faces of {split}", count, _MEMORY, of="faces", labels={"split": split})
        for split, count in (("train", 75_586), ("dev", 71_261))
    ),
    *(
        Published(f"faces of fold {fold}", count, "ME-GraphAU's lists", of="faces", labels={"fold": fold})
        for fold, count in ((1, 50_631), (2, 50_182), (3, 46_034))
    ),
)
"""Frames whose occurrence of units was coded; that their intensity was too in each of them is not verified."""

CODES = ("AUCoding/AU_INT", "AU Intensity Codes3.0", "AU-Intensity-Codes3.0")
_PICTURE = re.compile(r"0*(\d{1,9})\.jpe?g", re.IGNORECASE | re.ASCII)


class BP4DConfig(Photographs):
    """BP4D."""

    kind: Literal["bp4d"]
    """bp4d"""
    path: Path
    """The folder with F001, ..., M018 and the codes in it."""
    codes: Path | None = None
    """The folder with AU06, AU10, ... in it, below path unless it starts with a slash; unless given,
    AUCoding/AU_INT or "AU Intensity Codes3.0"."""


@dataclass(frozen=True)
class BP4D(Corpus):
    """Coded frames in the order of subject, task and number; ``image_id`` is the path below the folder."""

    config: BP4DConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "identity"
    published: tuple[Published, ...] = PUBLISHED

    def inputs(self) -> pa.Table:
        """All coded frames.

        Raises:
            ConfigError: there are no codes.
        """
        codes = self._codes()
        wanted = re.compile(r"([FM]\d{3})_(T\d)_AU\d\d\.csv", re.IGNORECASE | re.ASCII)
        names = {name.name for unit in UNITS for name in (codes / f"AU{unit:02d}").glob("*.csv")}
        tasks = {(match[1].upper(), match[2].upper()) for match in map(wanted.fullmatch, names) if match}
        if not tasks:
            raise ConfigError(f"source.codes={codes}: no AU06/F001_T1_AU06.csv in it; check the path")
        rows = []
        for subject, task in sorted(tasks):
            files = [
                read_intensities(codes / f"AU{unit:02d}" / f"{subject}_{task}_AU{unit:02d}.csv", MISSING)
                for unit in UNITS
            ]
            rows += list(self._rows(subject, task, files))
        return table_of(rows, input_schema(LABELS))

    def _codes(self) -> Path:
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        folders = [self.root / (self.config.codes or name) for name in CODES]
        for folder in folders:
            if folder.is_dir():
                return folder
        missing = " or ".join(str(folder) for folder in dict.fromkeys(folders))
        raise ConfigError(f"source.codes: there is no {missing}; name the folder with AU06, AU10 ... in it")

    def _rows(self, subject: str, task: str, files: list[Intensities]) -> Iterator[dict[str, Any]]:
        pictures = _pictures(self.root / subject / task)
        for frame in sorted({frame for unit in files for frame in (*unit.values, *unit.errors)}):
            path = f"{subject}/{task}/{pictures.get(frame, f'{frame}.jpg')}"
            face = _subject(subject) | {"task": task, "frame": frame}
            face["action_units"] = [unit.values.get(frame) for unit in files]
            error = next((unit.errors[frame] for unit in files if frame in unit.errors), "")
            yield {"image_id": path, "path": path, "error": error, "annotations": [face]}


def _subject(name: str) -> dict[str, Any]:
    number = int(name[1:])
    return {
        "identity": number + (100 if name[0] == "M" else 0),
        "subject": name,
        "fold": next((fold for fold, people in enumerate(FOLDS, 1) if name in people.split()), None),
        "split": "train" if number % 2 else "dev",
    }


def _pictures(folder: Path) -> dict[int, str]:
    """Frame -> file; nothing where the folder is missing, so that each coded frame says that it cannot be read."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return {
        int(match[1]): name
        for name, match in zip(names, map(_PICTURE.fullmatch, names), strict=True)
        if match
    }
