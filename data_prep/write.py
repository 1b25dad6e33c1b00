"""The stage ``write``: all crops of a run into set.beton, with set.parquet and set.json beside it."""

from __future__ import annotations

import time
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from configs import ConfigError
from data_prep.beton import FaceSize, Manifest, SourceNote, read_manifest, write_beton
from data_prep.exclude import ExcludeConfig, left_out
from data_prep.files import Commit, digest, write_json, write_table
from data_prep.tables import read_shard, read_shards

VERSION = 1
TIME = "write.json"
"""How long it took; the report shows it."""
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def write_set(
    output: Path,
    crops: Path,
    commits: list[Commit],
    *,
    image_size: int,
    label_name: str,
    source: SourceNote,
    config_hash: str,
    exclude: ExcludeConfig,
    retry_failed: bool,
) -> Manifest:
    """Write the set unless the one on disk was made from the same crops; replace it after a retry.

    Raises:
        ConfigError: there is no crop, or the set on disk was made from others.
    """
    path = output / "set.beton"
    inputs = inputs_hash(commits, label_name, exclude)
    mark = path.with_suffix(".json")
    if mark.exists():
        manifest = read_manifest(path)
        if manifest.inputs == inputs:
            return manifest
        if not retry_failed:
            raise ConfigError(
                f"{path}: made from other crops or with other exclude fields; give another output=FOLDER, "
                f"or remove {path.stem}.*"
            )
        mark.unlink()  # or the old mark would vouch for a new set that is still being written
    started = time.monotonic()
    columns = [name for name in read_shard(crops, 0).column_names if name not in ("jpeg", "error")]
    table = pa.concat_tables(_good(shard).select(columns) for shard in read_shards(crops, len(commits)))
    if not len(table):
        raise ConfigError(
            f"{output}: no face was kept; the column 'why' of faces/*.parquet tells the reasons"
        )
    out = left_out(table, exclude)
    stays = ~np.logical_or.reduce([*out.values(), np.zeros(len(table), bool)])
    table = table.filter(stays)
    if not len(table):
        raise ConfigError(f"{output}: the section 'exclude' leaves no row; see its fields")
    write_table(path.with_suffix(".parquet"), table)
    every = (
        jpeg for shard in read_shards(crops, len(commits), ["jpeg", "error"]) for jpeg in _good(shard)["jpeg"]
    )
    jpegs = (jpeg.as_py() for jpeg in compress(every, stays))
    manifest = write_beton(
        path,
        tqdm(jpegs, total=len(table), desc="write", unit="row"),
        np.arange(len(table)),
        table[label_name].fill_null(-1).to_numpy() if label_name != "none" else np.full(len(table), -1),
        image_size=image_size,
        label_name=label_name,
        sources=[source],
        config_hash=config_hash,
        inputs=inputs,
        left_out={reason: int(rows.sum()) for reason, rows in out.items()},
        face_size=_face_size(table["face_size"].to_numpy()),
    )
    # Beside the manifest, not in it: two runs of one config give the same set and manifest.
    write_json(output / TIME, {"rows": manifest.count, "seconds": round(time.monotonic() - started, 3)})
    return manifest


def inputs_hash(commits: list[Commit], label_name: str, exclude: ExcludeConfig) -> str:
    """What the manifest of a set made from these crops says in ``inputs``."""
    return digest([VERSION, label_name, [commit.sha256 for commit in commits], *exclude.inputs()])


def _good(crops: pa.Table) -> pa.Table:
    return crops.filter(pc.equal(crops["error"], ""))


def _face_size(sizes: np.ndarray) -> FaceSize:
    values = np.percentile(sizes, PERCENTILES).round(2).tolist()
    return FaceSize(
        mean=round(float(sizes.mean()), 2),
        percentiles={str(p): value for p, value in zip(PERCENTILES, values, strict=True)},
    )
