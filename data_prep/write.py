"""The stage ``write``: all crops of a run into set.beton, with set.parquet and set.json beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from configs import Config, ConfigError
from data_prep.beton import FaceSize, Manifest, SourceNote, Storage, read_manifest, write_beton
from data_prep.exclude import ExcludeConfig, left_out
from data_prep.files import Commit, digest, write_json, write_table
from data_prep.tables import read_shard, read_shards

VERSION = 1
TIME = "write.json"
"""How long it took; the report shows it."""
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


class WriteConfig(Config):
    """The set."""

    storage: Storage = "jpeg"
    """The crops' JPEG files as they are; or raw: their pixels, which need no decoding and much more space."""


def write_set(
    output: Path,
    crops: Path,
    commits: list[Commit],
    *,
    label_name: str,
    source: SourceNote,
    config_hash: str,
    crop: dict[str, Any],
    storage: Storage,
    exclude: ExcludeConfig,
    retry_failed: bool,
) -> Manifest:
    """Write the set unless the one on disk was made from the same crops; replace it after a retry.

    Raises:
        ConfigError: there is no crop, or the set on disk was made from others.
    """
    inputs = inputs_hash(commits, label_name, storage, exclude)
    if standing := standing_set(output, inputs, retry_failed):
        return standing
    table = read_rows(crops, len(commits))
    if not len(table):
        raise ConfigError(
            f"{output}: no face was kept; the column 'why' of faces/*.parquet tells the reasons"
        )
    return write_rows(
        output,
        table,
        read_jpegs(crops, len(commits)),
        label_name=label_name,
        sources=[source],
        config_hash=config_hash,
        inputs=inputs,
        crop=crop,
        storage=storage,
        exclude=exclude,
    )


def standing_set(output: Path, inputs: str, retry_failed: bool = False) -> Manifest | None:
    """The manifest of the set on disk if it was made from ``inputs``; None if it has to be written.

    Raises:
        ConfigError: it was made from others, and this is no retry.
    """
    path = output / "set.beton"
    mark = path.with_suffix(".json")
    if not mark.exists():
        return None
    manifest = read_manifest(path)
    if manifest.inputs == inputs:
        return manifest
    if not retry_failed:
        raise ConfigError(
            f"{path}: made from other crops, or with other fields of write or exclude; give another output=FOLDER, "
            f"or remove {path.stem}.*"
        )
    mark.unlink()  # or the old mark would vouch for a new set that is still being written
    return None


def read_rows(crops: Path, shards: int) -> pa.Table:
    """The rows of set.parquet: the crop tables without their failures and pictures."""
    columns = [name for name in read_shard(crops, 0).column_names if name not in ("jpeg", "error")]
    return pa.concat_tables(_good(shard).select(columns) for shard in read_shards(crops, shards))


def read_jpegs(crops: Path, shards: int) -> Iterable[bytes]:
    """The crops that belong to :func:`read_rows`, one at a time."""
    return (
        jpeg.as_py()
        for shard in read_shards(crops, shards, ["jpeg", "error"])
        for jpeg in _good(shard)["jpeg"]
    )


def write_rows(
    output: Path,
    table: pa.Table,
    jpegs: Iterable[bytes],
    *,
    label_name: str,
    sources: Sequence[SourceNote],
    config_hash: str,
    inputs: str,
    crop: dict[str, Any],
    storage: Storage,
    exclude: ExcludeConfig,
) -> Manifest:
    """set.parquet from ``table``, set.beton from the crops of its rows, and last set.json; without what ``exclude``
    leaves out.
    """
    started = time.monotonic()
    path = output / "set.beton"
    out = left_out(table, exclude)
    stays = ~np.logical_or.reduce([*out.values(), np.zeros(len(table), bool)])
    table = table.filter(stays)
    if not len(table):
        raise ConfigError(f"{output}: the section 'exclude' leaves no row; see its fields")
    write_table(path.with_suffix(".parquet"), table)
    manifest = write_beton(
        path,
        tqdm(compress(jpegs, stays), total=len(table), desc="write", unit="row"),
        np.arange(len(table)),
        table[label_name].fill_null(-1).to_numpy() if label_name != "none" else np.full(len(table), -1),
        image_size=crop["image_size"],
        label_name=label_name,
        sources=sources,
        config_hash=config_hash,
        inputs=inputs,
        left_out={reason: int(rows.sum()) for reason, rows in out.items()},
        face_size=_face_size(table["face_size"].to_numpy()),
        crop=crop,
        storage=storage,
    )
    # Beside the manifest, not in it: two runs of one config give the same set and manifest.
    write_json(output / TIME, {"rows": manifest.count, "seconds": round(time.monotonic() - started, 3)})
    return manifest


def inputs_hash(commits: list[Commit], label_name: str, storage: Storage, exclude: ExcludeConfig) -> str:
    """What the manifest of a set made from these crops says in ``inputs``."""
    return digest([VERSION, label_name, storage, [c.sha256 for c in commits], *exclude.inputs()])


def _good(crops: pa.Table) -> pa.Table:
    return crops.filter(pc.equal(crops["error"], ""))


def _face_size(sizes: np.ndarray) -> FaceSize:
    values = np.percentile(sizes, PERCENTILES).round(2).tolist()
    return FaceSize(
        mean=round(float(sizes.mean()), 2),
        percentiles={str(p): value for p, value in zip(PERCENTILES, values, strict=True)},
    )
