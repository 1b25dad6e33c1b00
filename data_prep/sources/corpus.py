"""What the published corpora share: their inputs are known from lists and folders before a picture is opened."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.names import name_to_text
from data_prep.sources import Found, Published
from data_prep.stage import Shard
from data_prep.tables import vector

_log = logging.getLogger(__name__)


class Corpus(ABC):
    """A :class:`data_prep.sources.Source` that makes one table of its inputs.

    Millions of rows stay small as a table, and a shard carries its own part of it to the worker.
    """

    config: Any
    shard_size: int

    @property
    def root(self) -> Path:
        """The corpus's folder."""
        path: Path = self.config.path
        return path

    @property
    @abstractmethod
    def labels(self) -> pa.StructType:
        """The type of one face's annotation."""

    @property
    def published(self) -> tuple[Published, ...]:
        """The counts that the chosen parts are published with."""
        return ()

    @abstractmethod
    def inputs(self) -> pa.Table:
        """One row for every input, in a stable order, with the columns of :func:`input_schema`."""

    def shards(self) -> list[Shard]:
        """The inputs, cut into shards; a changed label is a changed shard."""
        table = self.inputs()
        if not len(table):
            raise ConfigError(f"source.path={self.root}: nothing of this corpus is there; check the path")
        parts = (table.slice(start, self.shard_size) for start in range(0, len(table), self.shard_size))
        return [table_shard(number, part) for number, part in enumerate(parts)]

    def ids(self, shard: Shard) -> list[str]:
        """The ids of the inputs of one shard."""
        ids: list[str] = shard_rows(shard)["image_id"].to_pylist()
        return ids

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """Some inputs of one shard."""
        return table_shard(shard.number, shard_rows(shard).take(places))

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The inputs of one shard."""
        for row in shard_rows(shard).to_pylist():
            annotations = tuple(row.get("annotations") or ())
            yield Found(
                row["image_id"], self.root / row["path"], annotations, row["error"], row.get("place") or ""
            )


def input_schema(labels: pa.StructType) -> pa.Schema:
    """Columns of :meth:`Corpus.inputs`.

    image_id: stable and unique in the corpus. path: below its folder. error: why the lists say that it cannot be
    used, with file and line; empty: it can. annotations: of its faces, as many as are known.
    """
    columns: dict[str, Any] = {"image_id": pa.string(), "path": pa.string(), "error": pa.string()}
    return pa.schema(columns | {"annotations": pa.list_(labels)})


def listed_schema(labels: pa.StructType) -> pa.Schema:
    """:func:`input_schema` of what a list names, with a column more.

    place: file and line of the list; null: it is in no list. It makes no changed shard: nothing that is made of a
    picture depends on it.
    """
    return input_schema(labels).append(pa.field("place", pa.string()))


def labelled_files(
    root: Path, folder: str, suffixes: Collection[str], ending: str, labels: pa.StructType
) -> pa.Table:
    """The pictures of one folder, each with a file of labels beside it, by name; and the labels without a picture.

    Nothing is opened. ``image_id`` and ``path`` are the path below ``root``; what no picture is there for is given
    the first of ``suffixes``. labels_size and labels_mtime_ns, -1 without a file of labels, make a changed label a
    changed shard.

    Args:
        root: The corpus's folder.
        folder: Below it; "" for itself.
        suffixes: Of the pictures, in lower case; ".JPG" is one of ".jpg".
        ending: Of the files of labels, as it is.
        labels: The type of one face's annotation; nobody is annotated yet.
    """
    pictures: list[str] = []
    files: dict[str, os.stat_result] = {}
    for entry in visible_files(root / folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in suffixes:
            pictures.append(entry.name)
        elif suffix == ending:
            files[stem] = entry.stat()
    alone = files.keys() - {os.path.splitext(name)[0] for name in pictures}
    names = sorted([*pictures, *(f"{stem}{next(iter(suffixes))}" for stem in alone)])
    stats = [files.get(os.path.splitext(name)[0]) for name in names]
    paths = [f"{folder}/{name}" if folder else name for name in names]
    empty: list[list[Any]] = [[] for _ in paths]
    table = pa.table([paths, paths, [""] * len(paths), empty], schema=input_schema(labels))
    sizes = pa.array([stat.st_size if stat else -1 for stat in stats], pa.int64())
    times = pa.array([stat.st_mtime_ns if stat else -1 for stat in stats], pa.int64())
    return table.append_column("labels_size", sizes).append_column("labels_mtime_ns", times)


def by_picture(faces: Iterable[tuple[str, str, dict[str, Any] | str]], labels: pa.StructType) -> pa.Table:
    """A table of :func:`input_schema` from a list of faces in any order, for a picture may have several.

    Args:
        faces: image_id and path of the picture, and the face's labels, or what is wrong with them.
        labels: Their type.

    Returns:
        A row a picture, in the order of their first faces, with its faces and its first error.
    """
    rows: dict[str, dict[str, Any]] = {}
    for image_id, path, face in faces:
        row = rows.setdefault(image_id, {"image_id": image_id, "path": path, "error": "", "annotations": []})
        if isinstance(face, str):
            row["error"] = row["error"] or face
        else:
            row["annotations"].append(face)
    return pa.Table.from_pylist([*rows.values()], schema=input_schema(labels))


def known(values: NDArray[Any]) -> list[float | None]:
    """Any shape -> a flat list of float32 values in which those that are no number are unknown, not NaN.

    A table with a NaN in it is not equal to itself, and no stage would trust it.
    """
    flat = np.asarray(values, np.float32).reshape(-1)
    return [value if math.isfinite(value) else None for value in flat.tolist()]


def flags(values: NDArray[Any]) -> list[bool | None]:
    """Any shape -> a flat list: 1 is true, 0 is false, everything else is unknown."""
    return [
        {0.0: False, 1.0: True}.get(value) for value in np.asarray(values, np.float64).reshape(-1).tolist()
    ]


def tight_box(points: NDArray[Any]) -> list[float | None]:
    """(n, 2) points -> x0, y0, x1, y1 of those that are known."""
    points = points[np.isfinite(points).all(1)]
    return known(np.concatenate([points.min(0), points.max(0)])) if len(points) else []


def vectors(values: NDArray[np.float32], unknown: NDArray[np.bool_]) -> pa.Array:
    """(N, k) values -> N vectors, null where they are unknown."""
    flat = pa.array(np.where(unknown[:, None], np.float32(0), values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=vector(values.shape[1]), mask=pa.array(unknown))


def visible_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in ``folder``, without hidden files; nothing, and a warning, where it is missing.

    No corpus has names that are not UTF-8: one that has got in is left out with a warning.
    """
    if not folder.is_dir():
        _log.warning("%s: no such folder; this corpus has one", folder)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _NO_UTF8.search(entry.name):
                _log.warning("%s: left out, for its name is no UTF-8: %s", folder, name_to_text(entry.name))
            elif not entry.name.startswith("."):
                yield entry


_NO_UTF8 = re.compile("[\ud800-\udfff]")  # surrogates: how Python holds such bytes


def shard_rows(shard: Shard) -> pa.Table:
    """The rows of :func:`table_shard`."""
    return pa.ipc.open_stream(shard.payload).read_all()


def table_shard(number: int, part: pa.Table) -> Shard:
    """A shard whose payload is its own rows, as an Arrow stream."""
    # Copied out of the whole: the bytes of a slice hold what comes after it, too.
    own = part.take(pa.array(range(len(part)))).combine_chunks()
    inputs = own.drop_columns(["place"]) if "place" in own.column_names else own
    return Shard(number, len(part), hashlib.sha256(_stream(inputs)).hexdigest()[:16], _stream(own))


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream
