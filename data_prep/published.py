"""What a corpus is published with, against what is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.tables import shard_bytes

if TYPE_CHECKING:
    from data_prep.sources import Published, Source


def compare(source: Source, images: Path, shards: int) -> list[dict[str, Any]]:
    """The counts of ``source`` against the image table in the folder ``images``.

    For each: what, origin, published; listed: as many the source names; usable: as many have a good picture;
    missing: published less usable, at least 0.
    """
    counters = [_Counter(figure) for figure in source.published]
    for table in _tables(source, images, shards) if counters else ():
        for counter in counters:
            counter.add(table)
    return [counter.row() for counter in counters]


def differ(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The counts that are not as published."""
    return [row for row in rows if row["published"] != row["usable"]]


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """One line: the counts that differ."""
    off = differ(rows)
    parts = [
        f"{row['what']}: {row['published']:,} published, {row['listed']:,} listed, {row['usable']:,} usable, "
        f"{row['missing']:,} missing"
        for row in off
    ]
    same = [f"{len(rows) - len(off)} of {len(rows)} counts as published"]
    return "; ".join([*same, *parts])


class _Counter:
    """Counts one figure over the shards: all, and those of usable pictures."""

    def __init__(self, figure: Published) -> None:
        self.figure = figure
        self.counts = np.zeros(2, np.int64)
        self.people: tuple[set[int], set[int]] = (set(), set())

    def add(self, table: pa.Table) -> None:
        usable = pc.equal(table["error"], "").to_numpy()
        mine = pc.starts_with(table["image_id"], self.figure.prefix).to_numpy()
        if self.figure.of != "pictures":
            picture, faces = _faces(table)
            mine, usable = mine[picture], usable[picture]
            for name, value in self.figure.labels.items():
                mine &= pc.fill_null(pc.equal(faces[name], value), False).to_numpy(zero_copy_only=False)
        for i, chosen in enumerate((mine, mine & usable)):
            self.counts[i] += chosen.sum()
            if self.figure.of == "identities":
                self.people[i].update(faces["identity"].filter(pa.array(chosen)).unique().to_pylist())

    def row(self) -> dict[str, Any]:
        by_person = self.figure.of == "identities"
        listed, usable = map(len, self.people) if by_person else self.counts.tolist()
        return {
            "what": self.figure.what,
            "origin": self.figure.origin,
            "published": self.figure.count,
            "listed": listed,
            "usable": usable,
            "missing": max(0, self.figure.count - usable),
        }


def _tables(source: Source, images: Path, shards: int) -> Iterator[pa.Table]:
    """The shards with as few columns as the counts need: 68 points of each face are not read to count faces."""
    figures = [figure for figure in source.published if figure.of != "pictures"]
    fields = {name for figure in figures for name in figure.labels}
    fields |= {"identity"} if any(figure.of == "identities" for figure in figures) else set()
    fields |= {source.labels[0].name} if figures and not fields else set()
    columns = ["image_id", "error", *(f"annotations.list.element.{name}" for name in sorted(fields))]
    for number in range(shards):
        # Not read_shard: pyarrow's data sets cannot pick a field inside of a list.
        with pq.ParquetFile(pa.BufferReader(shard_bytes(images, number))) as file:
            yield file.read(columns)


def _faces(table: pa.Table) -> tuple[NDArray[np.int64], dict[str, pa.Array]]:
    """The row of the picture of each annotated face, and the faces' labels."""
    annotations = table["annotations"].combine_chunks()
    faces = annotations.flatten()
    columns = {field.name: pc.struct_field(faces, field.name) for field in faces.type}
    return pc.list_parent_indices(annotations).to_numpy(), columns
