"""What the published corpora share: their inputs are known from lists and folders before a picture is opened."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.sources import Found, Published
from data_prep.stage import Shard
from data_prep.tables import vector

_log = logging.getLogger(__name__)


class Corpus(ABC):
    """A :class:`data_prep.sources.Source` that makes one table of its inputs.

    Millions of rows stay small as a table, and a shard carries its own part of it to the worker.
    """

    config: Any
    labels: pa.StructType
    shard_size: int

    @property
    def root(self) -> Path:
        """The corpus's folder."""
        path: Path = self.config.path
        return path

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
            yield Found(row["image_id"], self.root / row["path"], annotations, row["error"])


def input_schema(labels: pa.StructType) -> pa.Schema:
    """Columns of :meth:`Corpus.inputs`.

    image_id: stable and unique in the corpus. path: below its folder. error: why the lists say that it cannot be
    used, with file and line; empty: it can. annotations: of its faces, as many as are known.
    """
    columns: dict[str, Any] = {"image_id": pa.string(), "path": pa.string(), "error": pa.string()}
    return pa.schema(columns | {"annotations": pa.list_(labels)})


def vectors(values: NDArray[np.float32], unknown: NDArray[np.bool_]) -> pa.Array:
    """(N, k) values -> N vectors, null where they are unknown."""
    flat = pa.array(np.where(unknown[:, None], np.float32(0), values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=vector(values.shape[1]), mask=pa.array(unknown))


def visible_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in ``folder``, without hidden files; nothing, and a warning, where it is missing."""
    if not folder.is_dir():
        _log.warning("%s: no such folder; this corpus has one", folder)
        return
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def shard_rows(shard: Shard) -> pa.Table:
    """The rows of :func:`table_shard`."""
    return pa.ipc.open_stream(shard.payload).read_all()


def table_shard(number: int, part: pa.Table) -> Shard:
    """A shard whose payload is its own rows, as an Arrow stream."""
    # Copied out of the whole: the bytes of a slice hold what comes after it, too.
    own = part.take(pa.array(range(len(part)))).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, own.schema) as writer:
        writer.write_table(own)
    payload = sink.getvalue().to_pybytes()
    return Shard(number, len(part), hashlib.sha256(payload).hexdigest()[:16], payload)
