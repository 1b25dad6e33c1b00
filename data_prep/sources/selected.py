"""What a published list names of a source, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.files import digest
from data_prep.lists import read_list
from data_prep.names import text_to_name
from data_prep.sources import Found, Published, Searchable
from data_prep.stage import Shard

MISSING = "listed but missing"
DIFFERS = "differs from the published list"


class Selected:
    """The listed pictures in the order of the list, each expected to have the listed hash.

    One that the source does not have, or of which there is no file, is an input with the error ``MISSING``. What is
    not listed is left out.
    """

    def __init__(self, source: Searchable, file: Path, shard_size: int) -> None:
        self.source = source
        self.file = file
        self.shard_size = shard_size
        self.listed = self.unlisted = 0
        """Known once :meth:`shards` has been called."""

    @property
    def labels(self) -> pa.StructType:
        """The source's."""
        return self.source.labels

    @property
    def label_name(self) -> str:
        """The source's."""
        return self.source.label_name

    @property
    def published(self) -> tuple[Published, ...]:
        """None: a list is not the corpus."""
        return ()

    def shards(self) -> list[Shard]:
        """The list, cut into shards: so they do not shift where a picture is missing, or one is too many."""
        listed = read_list(self.file)
        whole = self.source.shards()
        ids = pa.array([name for shard in whole for name in self.source.ids(shard)], pa.string())
        rows = pc.index_in(ids, value_set=listed["image_id"].combine_chunks())
        self.listed, self.unlisted = len(listed), rows.null_count
        pieces: dict[int, list[Shard]] = {}
        start = 0
        for shard in whole:
            mine = rows.slice(start, shard.size).fill_null(-1).to_numpy()
            start += shard.size
            for number in np.unique(mine[mine >= 0] // self.shard_size).tolist():
                places = np.flatnonzero((mine >= 0) & (mine // self.shard_size == number))
                pieces.setdefault(number, []).append(self.source.pick(shard, places.tolist()))
        starts = range(0, len(listed), self.shard_size)
        return [
            _shard(number, listed.slice(start, self.shard_size), pieces.get(number, []))
            for number, start in enumerate(starts)
        ]

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard."""
        expected, pieces = shard.payload
        found = {item.image_id: item for piece in pieces for item in self.source.pictures(piece)}
        for name, sha256 in expected.items():
            item = found.get(name, Found(name, Path(text_to_name(name)), error=MISSING))
            missing = not item.error and not item.path.exists()
            yield replace(item, sha256=sha256, error=MISSING if missing else item.error)

    def figures(self, errors: Mapping[str, int]) -> dict[str, int]:
        """Pictures listed, missing, other than listed, and those of the source that are not listed; ``errors`` are
        those of the image table.
        """
        return {
            "listed": self.listed,
            "missing": errors.get(MISSING, 0),
            "differ": errors.get(DIFFERS, 0),
            "unlisted": self.unlisted,
        }


def _shard(number: int, rows: pa.Table, pieces: list[Shard]) -> Shard:
    expected = dict(zip(rows["image_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    inputs = digest([expected, [piece.inputs for piece in pieces]])
    return Shard(number, len(expected), inputs, (expected, pieces))
