"""Which rows a set leaves out: duplicates within it, and what another set holds too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from configs import Config, ConfigError
from data_prep.beton import read_manifest

HASHES = ("dhash", "dhash_down")


class ExcludeConfig(Config):
    """What stays out of the set. The tables before it keep every row."""

    duplicates: Literal["none", "exact", "near"] = "none"
    """none: all rows stay, as in the paper. exact: of pictures that are the same file only the first stays. near:
    and of crops that are alike."""
    near_bits: int = Field(4, ge=0, le=10)
    """Crops are alike where their hashes differ in at most so many bits, of 64 across and of 64 down."""
    against: tuple[Path, ...] = ()
    """Folders of other runs, or paths of their set.beton: what they hold too, the picture or a crop alike, stays
    out."""

    def inputs(self) -> list[Any]:
        """What decides over the rows, as JSON values; empty: all stay.

        Raises:
            ConfigError: another set is not there.
        """
        others = [read_manifest(set_path(path, "exclude.against")).sha256 for path in self.against]
        if self.duplicates == "none" and not others:
            return []
        near = [self.near_bits] if others or self.duplicates == "near" else []
        return [self.duplicates, *near, *others]


def set_path(path: Path, what: str) -> Path:
    """The .beton of a run: ``path`` is its folder, or one of its files set.beton and set.parquet.

    Raises:
        ConfigError: there is none; ``what`` names the field.
    """
    beton = path / "set.beton" if path.is_dir() else path.with_suffix(".beton")
    for file in (beton, beton.with_suffix(".parquet")):
        if not file.exists():
            raise ConfigError(f"{what}={path}: {file} does not exist; name the folder of a finished run")
    return beton


def read_columns(beton: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of the set.parquet beside ``beton``; ConfigError where it has none of that name."""
    path = beton.with_suffix(".parquet")
    missing = [name for name in columns if name not in pq.read_schema(path).names]
    if missing:
        raise ConfigError(
            f"{path}: has no column {missing[0]}, an older version made it; prepare that set again"
        )
    return pq.read_table(path, columns=list(columns), partitioning=None)


def hashes_of(table: pa.Table) -> NDArray[np.uint64]:
    """(N, 2) the two difference hashes."""
    return np.stack([table[name].to_numpy() for name in HASHES], axis=1)


def left_out(table: pa.Table, config: ExcludeConfig) -> Mapping[str, NDArray[np.bool_]]:
    """Reason -> (N,) which rows it leaves out; a row has one reason at most.

    Args:
        table: N rows with ``image_id``, ``picture_sha256``, ``dhash`` and ``dhash_down``, in the set's order.
        config: The rules.
    """
    from data_prep import duplicates  # here: numba takes a second to load, and most sets leave nothing out

    reasons: dict[str, NDArray[np.bool_]] = {}
    stays = np.ones(len(table), np.bool_)

    def leave(reason: str, out: NDArray[np.bool_]) -> None:
        """``out``: one value for each row that stays so far."""
        rows = np.flatnonzero(stays)[out]
        reasons[reason] = np.zeros(len(table), np.bool_)
        reasons[reason][rows] = True
        stays[rows] = False

    for path in config.against:
        other = read_columns(set_path(path, "exclude.against"), ("picture_sha256", *HASHES))
        shared = pc.is_in(table["picture_sha256"], value_set=other["picture_sha256"].combine_chunks())
        leave(f"the picture is in {path}", shared.to_numpy()[stays])
        match, _ = duplicates.nearest(hashes_of(table)[stays], hashes_of(other), config.near_bits)
        leave(f"the crop is like one in {path}", match >= 0)
    if config.duplicates != "none":
        numbers = [_numbered(table[name])[stays] for name in ("picture_sha256", "image_id")]
        leave("the picture is a copy of another", duplicates.copies(*numbers))
    if config.duplicates == "near":
        leave("the crop is like another", duplicates.repeats(hashes_of(table)[stays], config.near_bits))
    return reasons


def _numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal texts get equal numbers."""
    numbers: NDArray[np.int64] = (
        column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    )
    return numbers
