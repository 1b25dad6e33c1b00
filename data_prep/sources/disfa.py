"""DISFA: 27 people who watch the same film of four minutes, the intensity of 12 action units in every frame.

Mavadati et al., "DISFA: A Spontaneous Facial Action Intensity Database", IEEE Transactions on Affective Computing
2013. Below the folder:

    Videos_LeftCamera/LeftVideoSN001_comp.avi      the videos; the names of the two cameras differ in case
    Video_RightCamera/RightVideoSN001_Comp.avi
    ActionUnit_Labels/SN001/SN001_au1.txt          FRAME,INTENSITY; frames count from 1, intensities are 0 to 5
    frames/LeftVideoSN001_comp/00001.jpg           what 'python -m data_prep frames' makes of the videos

Both cameras see the same moments, so both carry the same labels.

How many frames there are. 27 videos of 4,845 frames are 130,815; the lists of ME-GraphAU name 130,814, all but one.
Those of JAA-Net name 126,144 (43,173, 40,344 and 42,627 of the three parts); which rule leaves the others out is not
said there. Here every frame that has a picture and labels is taken, which is the first rule.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import Corpus, input_schema, visible_files
from data_prep.sources.intensities import Intensities, read_intensities
from data_prep.tables import table_of, vector

UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
"""The order of ``action_units``."""

FOLDS = (
    (1, 2, 9, 10, 16, 26, 27, 30, 32),
    (6, 11, 12, 13, 18, 21, 24, 28, 31),
    (3, 4, 5, 7, 8, 17, 23, 25, 29),
)
"""The people of folds 1, 2 and 3, as JAA-Net, ME-GraphAU and LibreFace divide them. ME-GraphAU numbers the folds
from the other end: its fold k is tested on fold 4 - k."""

LABELS: pa.StructType = pa.struct(
    {
        "identity": pa.int64(),
        "action_units": vector(12),
        "frame": pa.int32(),
        "fold": pa.int32(),
        "camera": pa.string(),
    }
)
"""identity: N of SN00N. action_units: intensities 0 to 5 in the order of UNITS. camera: left or right."""

FRAMES = 130_814
"""Frames of one camera; of each fold 43,605, in one of them one less."""

_VIDEO = re.compile(r"(left|right)video(sn(\d{3}))\w*", re.IGNORECASE | re.ASCII)
_PICTURE = re.compile(r"0*(\d{1,9})\.(?:jpe?g|png)", re.IGNORECASE | re.ASCII)


class DISFAConfig(Photographs):
    """DISFA, its videos unpacked."""

    kind: Literal["disfa"]
    """disfa"""
    path: Path
    """The folder with ActionUnit_Labels in it."""
    frames: Path = Path("frames")
    """The folder of frames that 'python -m data_prep frames' made, below path unless it starts with a slash."""
    cameras: tuple[Literal["left", "right"], ...] = Field(("left",), min_length=1)
    """Whose frames are taken. The labels are the same, so a second camera adds views, not moments."""


@dataclass(frozen=True)
class DISFA(Corpus):
    """Frames in the order of video and number; ``image_id`` is the video's folder and the frame's file."""

    config: DISFAConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "identity"

    @property
    def published(self) -> tuple[Published, ...]:
        """The frames of each camera, and the people."""
        frames = tuple(
            Published(
                f"frames of the {camera} camera",
                FRAMES,
                "ME-GraphAU's lists",
                prefix=f"{camera.title()}Video",
            )
            for camera in dict.fromkeys(self.config.cameras)
        )
        return (*frames, Published("people", 27, "Mavadati et al. (2013)", of="identities"))

    def inputs(self) -> pa.Table:
        """All frames of the chosen cameras.

        Raises:
            ConfigError: there are no labels, or no frames.
        """
        labels = self.root / "ActionUnit_Labels"
        if not labels.is_dir():
            raise ConfigError(f"source.path={self.root}: no ActionUnit_Labels in it; check the path")
        folder = self.root / self.config.frames
        if not folder.is_dir():
            raise ConfigError(
                f"source.frames={folder}: no such folder; make it: python -m data_prep frames "
                f"{self.root / 'Videos_LeftCamera'} {folder}"
            )
        rows = []
        for name, camera, subject in self._videos(folder):
            files = [read_intensities(labels / subject / f"{subject}_au{unit}.txt") for unit in UNITS]
            rows += list(self._rows(name, camera, subject, files))
        return table_of(rows, input_schema(LABELS))

    def _videos(self, folder: Path) -> list[tuple[str, str, str]]:
        """Name, camera and subject of the frame folders of the chosen cameras."""
        found = [
            (entry.name, _VIDEO.fullmatch(entry.name)) for entry in visible_files(folder) if entry.is_dir()
        ]
        videos = [(name, match[1].lower(), match[2].upper()) for name, match in found if match]
        return sorted(video for video in videos if video[1] in self.config.cameras)

    def _rows(
        self, name: str, camera: str, subject: str, files: list[Intensities]
    ) -> Iterator[dict[str, Any]]:
        number = int(subject[2:])
        fold = next((fold for fold, people in enumerate(FOLDS, 1) if number in people), None)
        for file, frame in _pictures(self.root / self.config.frames / name):
            error = next(filter(None, (_error(unit, frame) for unit in files)), "")
            face: dict[str, Any] = {"identity": number, "frame": frame, "fold": fold, "camera": camera}
            if not error:
                face["action_units"] = [unit.values[frame] for unit in files]
            yield {
                "image_id": f"{name}/{file}",
                "path": str(self.config.frames / name / file),
                "error": error,
                "annotations": [face],
            }


def _error(unit: Intensities, frame: int) -> str:
    """Why a unit is not known in a frame; empty: it is."""
    if frame in unit.errors:
        return unit.errors[frame]
    return "" if frame in unit.values else f"{unit.file}: has no line for frame {frame}"


def _pictures(folder: Path) -> list[tuple[str, int]]:
    """File and number of the frames of a video, in order."""
    found = [(name, _PICTURE.fullmatch(name)) for name in sorted(os.listdir(folder))]
    return sorted(((name, int(match[1])) for name, match in found if match), key=lambda item: item[1])
