"""IMDb-Face (Wang et al., "The Devil of Face Recognition is in the Noise", ECCV 2018): 1.7 M faces, 59 k identities.

What is distributed is a list, ``IMDb-Face.csv``; ``python -m data_prep download`` fetches its pictures, see
``data_prep/download/imdbface.py``. A picture may show several of the listed people.

The box is given in pixels of the picture as the authors had it, whose height and width the list tells. Where the
served picture has another size the box is scaled; where it has another shape, it was cut differently or is another
picture: the box is null then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import input_schema, vectors
from data_prep.sources.downloaded import Downloaded
from data_prep.tables import vector

LABELS: pa.StructType = pa.struct({"identity": pa.int64(), "box": vector(4)})
"""identity: the number of the person at IMDb. box: null where the served picture has another shape."""

FACE: pa.StructType = pa.struct(
    {"identity": pa.int64(), "box": vector(4), "height": pa.int32(), "width": pa.int32()}
)
FACES: pa.DataType = pa.list_(FACE)
"""The column ``faces`` of the downloads: the rows of the list about one picture, as they are in it."""

PUBLISHED = (
    Published("faces", 1_700_000, "Wang et al. 2018, rounded", of="faces"),
    Published("people", 59_000, "Wang et al. 2018, rounded", of="identities"),
)

SAME_SHAPE = 0.03
"""Two pictures have the same shape if width / height differs by less than this share: a small picture's sides are
rounded."""


class IMDbFaceConfig(Photographs):
    """IMDb-Face: its list, and the pictures that are fetched from it."""

    kind: Literal["imdb_face"]
    """imdb_face"""
    path: Path
    """The folder with IMDb-Face.csv, which is filled and read."""


@dataclass(frozen=True)
class IMDbFace(Downloaded):
    """Pictures in the order of the list; ``image_id`` is the hash of the URL, or file and line of a damaged one."""

    config: IMDbFaceConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "identity"
    columns: ClassVar[tuple[str, ...]] = ("image_id", "path", "error", "width", "height", "faces")

    @property
    def published(self) -> tuple[Published, ...]:
        """Of the list: many of its addresses are dead."""
        return PUBLISHED

    def inputs(self) -> pa.Table:
        """The pictures with their faces, the boxes in pixels of the picture that was fetched; raises as its base."""
        table = super().inputs().combine_chunks()
        served = np.stack([table[name].fill_null(0).to_numpy() for name in ("width", "height")], 1)
        lists = table["faces"].combine_chunks()
        served = np.repeat(served, lists.value_lengths().fill_null(0).to_numpy(), axis=0).astype(np.float64)
        faces = lists.flatten()
        listed = np.stack([faces.field(name).to_numpy() for name in ("width", "height")], 1).astype(
            np.float64
        )
        boxes = faces.field("box").flatten().to_numpy().reshape(-1, 4)
        scale = served / listed
        shape = scale[:, 0] / np.where(scale[:, 1] > 0, scale[:, 1], np.inf)
        scaled = (boxes * np.tile(scale, 2)).astype(np.float32)
        columns = [faces.field("identity"), vectors(scaled, np.abs(shape - 1) >= SAME_SHAPE)]
        annotations = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lists.value_lengths().fill_null(0))]), pa.int32()),
            pa.StructArray.from_arrays(columns, fields=list(LABELS)),
        )
        return (
            table.select(["image_id", "path", "error"])
            .append_column("annotations", annotations)
            .cast(input_schema(LABELS))
        )
