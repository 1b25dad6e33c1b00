"""The columns of the tables, and reading them. docs/data.md explains each column."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import read_commit, shard_paths


def vector(length: int, kind: pa.DataType | None = None) -> pa.DataType:
    """A column of ``length`` numbers a row."""
    return pa.list_(kind or pa.float32(), length)


IMAGES = pa.schema(
    {
        "image_id": pa.string(),
        "path": pa.string(),
        "sha256": pa.string(),
        "dhash": pa.uint64(),
        "dhash_down": pa.uint64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "status": pa.string(),
        "error": pa.string(),
    }
)

FACES = pa.schema(
    {
        "image_id": pa.string(),
        "face": pa.int32(),
        "box": vector(4),
        "score": pa.float32(),
        "landmarks5": vector(10),
        "face_size": pa.float32(),
        "annotation": pa.int32(),
        "iou": pa.float32(),
        "kept": pa.bool_(),
        "why": pa.string(),
        "error": pa.string(),
    }
)

CROPS = pa.schema(
    {
        "face_id": pa.string(),
        "image_id": pa.string(),
        "identity": pa.int64(),
        "box": vector(4),
        "score": pa.float32(),
        "landmarks5": vector(10),
        "face_size": pa.float32(),
        "affine": vector(6),
        "picture_sha256": pa.string(),
        "dhash": pa.uint64(),
        "dhash_down": pa.uint64(),
        "error": pa.string(),
        "jpeg": pa.binary(),
    }
)

PIXEL_BOXES = ("box", "detector_box")
"""Fields that hold x0, y0, x1, y1 of an upright box in picture pixels."""

PIXEL_POINTS = (*PIXEL_BOXES, "landmarks5", "landmarks19", "landmarks29", "landmarks68", "landmarks98")
"""Fields that hold x, y pairs in picture pixels, and so move with the crop. A null among them stays one."""

NO_LABELS: pa.StructType = pa.struct([])


def image_schema(labels: pa.StructType) -> pa.Schema:
    """The image table of a source whose faces carry ``labels``."""
    return IMAGES.append(pa.field("annotations", pa.list_(labels))) if labels.num_fields else IMAGES


def crop_schema(labels: pa.StructType) -> pa.Schema:
    """The crop table: the source's labels follow the fixed columns, under :func:`label_column` names."""
    schema = CROPS
    for field in labels:
        if field.name != "identity":
            schema = schema.append(pa.field(label_column(field.name), field.type))
    return schema


def label_column(field: str) -> str:
    """An annotated box does not hide the detected one: it is called ``true_box``."""
    return f"true_{field}" if field in CROPS.names else field


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows to a table. A row may leave columns out: they are null."""
    return pa.Table.from_pylist(rows, schema=schema)


def read_shard(folder: Path, number: int, columns: list[str] | None = None) -> pa.Table:
    """The table of one committed shard.

    Raises:
        OSError: its bytes are not those that were committed.
    """
    return pq.read_table(pa.BufferReader(shard_bytes(folder, number)), columns=columns)


def shard_bytes(folder: Path, number: int) -> pa.Buffer:
    """The Parquet file of one committed shard; raises as :func:`read_shard`."""
    path, mark = shard_paths(folder, number)
    committed = read_commit(folder, number)
    data = _bytes(path)
    if committed is None or hashlib.sha256(data).hexdigest() != committed.sha256:
        raise OSError(
            f"{path}: damaged, not the bytes that were committed; remove {mark.name} beside it, and the stage "
            f"that makes it, or 'all', makes it again"
        )
    return data


def _bytes(path: Path) -> pa.Buffer:
    """A file in Arrow's memory: one in Python's would be given back by Arrow's threads, and an interpreter that
    ends meanwhile would abort.
    """
    if not path.exists():
        return pa.py_buffer(b"")
    with pa.OSFile(str(path)) as file:
        return file.read_buffer()


def read_shards(folder: Path, count: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The tables of shards 0 .. count-1, one at a time."""
    return (read_shard(folder, number, columns) for number in range(count))


def array_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists, all of one length and none null, as an array (rows, length)."""
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    array: np.ndarray = flat.to_numpy().reshape(len(column), len(flat) // max(1, len(column)))
    return array
