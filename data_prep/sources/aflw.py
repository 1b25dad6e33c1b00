"""AFLW-19: faces of AFLW in all poses, with 19 points each, seen or not.

Koestinger et al., "Annotated Facial Landmarks in the Wild", ICCV Workshops 2011, as revised for Zhu et al.,
"Unconstrained Face Alignment via Cascaded Compositional Learning", CVPR 2016. Below the folder:

    data/flickr/{0,2,3}/image00035.jpg    the pictures of AFLW
    AFLWinfo_release.mat:
        nameList (N, 1)     the picture below data/flickr
        bbox (N, 4)         left, right, top, bottom
        data (N, 38)        x1 .. x19, y1 .. y19
        mask_new (N, 19)    1 where a point is seen
        ra (1, N)           the order of the faces, counted from 1: the first 20,000 are for training, the others,
                            4,386, for testing

A picture may have several faces, and the order is one of faces: some for training may be in one picture with some for
testing. Some pictures are there as .png under a name that ends in .jpg in the list. "full" is all faces for testing,
"frontal" those of them with all 19 points seen. Some count only those with every point strictly inside the box, too.

Whether the points and boxes count the first pixel as 0 or 1 is not known; they are taken as they are, so they may be
off by half a pixel. A point that is no number is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, by_picture, flags, known
from data_prep.sources.matlab import numbers, read_mat
from data_prep.stage import Shard
from data_prep.tables import vector

RELEASE = "AFLWinfo_release.mat"
TRAIN = 20_000
"""Faces for training: the first of the published order."""
PICTURES = "data/flickr"

LABELS: pa.StructType = pa.struct(
    {
        "box": vector(4),
        "landmarks19": vector(38),
        "visible19": vector(19, pa.bool_()),
        "frontal": pa.bool_(),
        "split": pa.string(),
    }
)
"""frontal: all 19 points are seen. split: train or test."""

PUBLISHED = (
    Published("faces of train", TRAIN, "Zhu et al. (2016)", "faces", labels={"split": "train"}),
    Published("faces of test, full", 4_386, "Zhu et al. (2016)", "faces", labels={"split": "test"}),
    Published(
        "faces of test, frontal",
        1_314,
        "as papers count them; 1,165 is quoted too, of those with every point inside of the box",
        "faces",
        labels={"split": "test", "frontal": True},
    ),
)


class AFLWConfig(Photographs):
    """AFLW-19."""

    kind: Literal["aflw"]
    """aflw"""
    path: Path
    """The folder with AFLWinfo_release.mat and data/flickr in it."""
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), min_length=1)
    """Which faces."""


@dataclass(frozen=True)
class AFLW(Corpus):
    """Pictures in the order of their first faces; ``image_id`` is the name below data/flickr."""

    config: AFLWConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "none"

    @property
    def published(self) -> tuple[Published, ...]:
        """The faces of the chosen splits."""
        return tuple(figure for figure in PUBLISHED if figure.labels["split"] in self.config.splits)

    def inputs(self) -> pa.Table:
        """The pictures with faces of the chosen splits, with all labels.

        Raises:
            ConfigError: the file of the release is missing, damaged or holds something else.
        """
        path = self.root / RELEASE
        try:
            faces = [*read_release(path)]
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; check source.path, or replace the file") from None
        chosen = ((name, face) for name, face in faces if face["split"] in self.config.splits)
        return by_picture(((name, f"{PICTURES}/{name}", face) for name, face in chosen), LABELS)

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard."""
        for found in super().pictures(shard):
            png = found.path.with_suffix(".png")
            yield replace(found, path=png) if not found.path.exists() and png.exists() else found


def read_release(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each face of the release, in its order, the picture's name and the labels.

    Raises:
        ValueError: it is missing, damaged or holds something else. The message is the reason, without the path.
    """
    content = read_mat(path, "nameList", "bbox", "data", "mask_new", "ra")
    boxes = numbers(content, "bbox", (-1, 4))[:, [0, 2, 1, 3]]
    count = len(boxes)
    points = numbers(content, "data", (count, 38), gaps=True).reshape(count, 2, 19).transpose(0, 2, 1)
    masks = numbers(content, "mask_new", (count, 19), gaps=True)
    names = _names(content, count)
    training = _training(content, count)
    for name, box, xy, mask, train in zip(names, boxes, points, masks, training.tolist(), strict=True):
        empty = (box[:2] >= box[2:]).any()
        yield (
            name,
            {
                "box": None if empty else known(box),
                "landmarks19": known(xy),
                "visible19": flags(mask),
                "frontal": bool((mask == 1).all()),
                "split": "train" if train else "test",
            },
        )


def _names(content: dict[str, Any], count: int) -> list[str]:
    cells = np.ravel(content.get("nameList", ()))
    names = [str(np.ravel(cell)[0]) if np.size(cell) == 1 else "" for cell in cells]
    bad = [i for i, name in enumerate(names) if not name or name.startswith("/") or ".." in name.split("/")]
    if len(names) != count or bad:
        what = f"cell {bad[0] + 1} is no name" if bad else f"{len(names)} names of {count} faces"
        raise ValueError(f"nameList: {what}")
    return names


def _training(content: dict[str, Any], count: int) -> NDArray[np.bool_]:
    """(count,) whether a face is for training."""
    order = numbers(content, "ra", (-1, -1)).reshape(-1)
    if not np.array_equal(np.sort(order), np.arange(1, count + 1)):
        raise ValueError(f"ra is no order of the faces 1 to {count}")
    training = np.zeros(count, bool)
    training[order[:TRAIN].astype(np.int64) - 1] = True
    return training
