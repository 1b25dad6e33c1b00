"""WFLW: faces of WIDER FACE with 98 points and six attributes.

Wu et al., "Look at Boundary", CVPR 2018. Below the folder:

    WFLW_images/0--Parade/0_Parade_marchingband_1_849.jpg
    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt

A line is a face, 207 fields: x and y of 98 points, the box x_min y_min x_max y_max, the attributes pose, expression,
illumination, make-up, occlusion and blur as 0 or 1, and the picture below WFLW_images. A picture may be on several
lines. The test subsets "large pose", "expression" and so on are the test faces with that attribute; the lists of
WFLW_annotations/list_98pt_test, which name them again without box and attributes, are not read. That both are the
same faces is not verified; the published counts are of those lists.

The points count the first pixel as 0. Here its middle is (0.5, 0.5), so 0.5 is added, to the box too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import Corpus, by_picture, known
from data_prep.tables import vector

_log = logging.getLogger(__name__)

ATTRIBUTES = ("large_pose", "expression", "illumination", "make_up", "occlusion", "blur")
"""In the order of the lists, true or false."""

LABELS: pa.StructType = pa.struct(
    {"box": vector(4), "landmarks98": vector(196)}
    | dict.fromkeys(ATTRIBUTES, pa.bool_())
    | {"split": pa.string()}
)
"""split: train or test."""

PUBLISHED = {"train": 7_500, "test": 2_500}
"""Faces of each list."""
PUBLISHED_SUBSETS = dict(zip(ATTRIBUTES, (326, 314, 698, 206, 736, 773), strict=True))
"""Faces of each test subset."""

_NAME = re.compile(r"[^./\s][^/]*/[^./\s][^/]*\.(jpe?g|png)", re.IGNORECASE)


class WFLWConfig(Photographs):
    """WFLW."""

    kind: Literal["wflw"]
    """wflw"""
    path: Path
    """The folder with WFLW_images and WFLW_annotations in it."""
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), min_length=1)
    """Which lists."""


@dataclass(frozen=True)
class WFLW(Corpus):
    """Pictures in the order of the lists; ``image_id`` is the split and the name below WFLW_images."""

    config: WFLWConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The faces of the chosen lists, and of each test subset."""
        faces = [
            Published(
                f"faces of {split}", PUBLISHED[split], "Wu et al. (2018)", "faces", labels={"split": split}
            )
            for split in dict.fromkeys(self.config.splits)
        ]
        if "test" in self.config.splits:
            faces += [
                Published(
                    f"faces of test, {name}",
                    count,
                    "from memory",
                    "faces",
                    labels={"split": "test", name: True},
                )
                for name, count in PUBLISHED_SUBSETS.items()
            ]
        return tuple(faces)

    def inputs(self) -> pa.Table:
        """The pictures of the chosen lists, with all labels.

        Raises:
            ConfigError: a list is missing.
        """
        splits = dict.fromkeys(self.config.splits)
        return pa.concat_tables(by_picture(self._faces(split), LABELS) for split in splits)

    def _faces(self, split: str) -> Iterator[tuple[str, str, dict[str, Any] | str]]:
        """For each line image_id, path, and the face or what is wrong with it."""
        name = f"list_98pt_rect_attr_{split}.txt"
        path = self.root / "WFLW_annotations" / "list_98pt_rect_attr_train_test" / name
        if not path.is_file():
            raise ConfigError(
                f"source.path={self.root}: no {path.relative_to(self.root)} there; check the path"
            )
        with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                # Only the picture's name, the last field, could hold a space.
                fields = line.strip().split(maxsplit=206)
                picture = fields[-1] if fields else ""
                place = f"{name}:{number}"
                try:
                    face: dict[str, Any] | str = read_face(fields) | {"split": split}
                except ValueError as error:
                    face = f"{place}: {error}: '{line.strip()[:40]}'"
                if _NAME.fullmatch(picture):
                    yield f"{split}/{picture}", f"WFLW_images/{picture}", face
                elif fields:
                    reason = face if isinstance(face, str) else place
                    _log.warning("wflw: left out, for it names no picture: %s", reason)


def read_face(fields: list[str]) -> dict[str, Any]:
    """The 207 fields of a line -> box, landmarks98 and the attributes.

    Raises:
        ValueError: it is damaged. The message is the reason.
    """
    if len(fields) != 207:
        raise ValueError(f"{len(fields)} fields instead of 207")
    try:
        values = np.array(fields[:206], np.float64)
    except ValueError:
        raise ValueError("not 206 numbers before the name") from None
    points, box, attributes = np.split(values, [196, 200])
    if not np.isfinite(values).all() or not np.isin(attributes, (0, 1)).all() or (box[:2] >= box[2:]).any():
        raise ValueError("not 98 points, a box and six attributes of 0 or 1")
    flags = dict(zip(ATTRIBUTES, (attributes == 1).tolist(), strict=True))
    return {"box": known(box + 0.5), "landmarks98": known(points + 0.5), **flags}
