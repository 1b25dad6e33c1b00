"""The figures of a finished run, from its tables: what report/summary.json holds. docs/data.md explains them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.beton import read_manifest
from data_prep.duplicates import groups
from data_prep.exclude import HASHES, hashes_of, read_columns
from data_prep.removed import REASON
from data_prep.tables import FACES, array_of, read_shards
from data_prep.write import TIME

if TYPE_CHECKING:
    from data_prep.files import Commit
    from data_prep.pipeline import Pipeline

SCORE_EDGES = np.linspace(0.5, 1, 26)
YAW_EDGES = np.linspace(-1.5, 1.5, 31)
_PLACE = re.compile(r"^[^:]+:\d+: ")
_NO_POINTS = pa.scalar([0.0] * 10, FACES.field("landmarks5").type)


@dataclass(frozen=True)
class Tables:
    """The image table and the face table of a run, without their heavy columns, and the hashes of its set."""

    images: pa.Table
    faces: pa.Table
    """Detections only."""
    unread: pa.Table
    """Rows of pictures that could be listed but not read again."""
    near: NDArray[np.int64]
    """A row of set.beton -> the first row of its group of near-duplicates."""


def read_tables(pipeline: Pipeline) -> Tables:
    """All shards of the image and the face table."""
    count = len(pipeline.shards)
    image_columns = ["image_id", "path", "sha256", "status", "error"]
    face_columns = ["image_id", "face", "box", "score", "landmarks5", "face_size", "kept", "why", "error"]
    images = pa.concat_tables(read_shards(pipeline.images.folder, count, image_columns))
    shards = read_shards(pipeline.faces.folder, count, face_columns)
    faces = pa.concat_tables(_with_yaw(shard) for shard in shards)
    good = pc.equal(faces["error"], "")
    hashes = hashes_of(read_columns(pipeline.config.output / "set.beton", HASHES))
    near = groups(hashes, pipeline.config.exclude.near_bits)
    return Tables(images, faces.filter(good), faces.filter(pc.invert(good)), near)


def _with_yaw(faces: pa.Table) -> pa.Table:
    """And a column ``yaw``, NaN without landmarks."""
    points = faces["landmarks5"]
    yaw = yaw_proxy(array_of(points.fill_null(_NO_POINTS)))
    yaw[points.is_null().to_numpy()] = np.nan
    return faces.append_column("yaw", pa.array(yaw))


def yaw_proxy(landmarks5: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 10) five landmarks, px -> (N,) how far the nose is off the middle of the eyes, in spans of the eyes.

    Along the line through the eyes; positive where the nose points to the picture's right. It grows with the yaw
    angle, but is none: it depends on the length of the nose, too.
    """
    left, right, nose = landmarks5[:, 0:2], landmarks5[:, 2:4], landmarks5[:, 4:6]
    span = right - left
    along = ((nose - (left + right) / 2) * span).sum(axis=1)
    proxy: NDArray[np.float32] = along / np.maximum((span**2).sum(axis=1), 1e-6)
    return proxy


def summarise(pipeline: Pipeline, tables: Tables, written: int) -> dict[str, Any]:
    """The summary as a JSON tree; ``written`` is the number of rows in set.beton."""
    images, faces = tables.images, tables.faces
    usable = images.filter(pc.equal(images["error"], ""))
    kept = faces["kept"].to_numpy(zero_copy_only=False)
    sizes = faces["face_size"].to_numpy()
    stages = (pipeline.images, pipeline.faces, pipeline.crops)
    commits = {stage.name: stage.commits(len(pipeline.shards)) for stage in stages}
    manifest = read_manifest(pipeline.config.output / "set.beton")
    removed = int(pc.sum(pc.equal(images["status"], "removed")).as_py())
    return {
        "source": pipeline.source_note().model_dump(),
        "pictures": {
            "listed": len(images),
            "usable": len(usable),
            "failed": len(images) - len(usable) - removed,
            "removed": removed,
            "duplicates": len(usable) - len(usable["sha256"].unique()),
            "without_face": len(usable) - len(tables.unread) - len(faces["image_id"].unique()),
        },
        "faces": {"detected": len(faces), "kept": int(kept.sum()), "rejected": int((~kept).sum())},
        "written": written,
        "published": pipeline.published(),
        "from_list": pipeline.from_list(),
        "left_out": manifest.left_out,
        "near_duplicates": {
            "bits": pipeline.config.exclude.near_bits,
            "groups": int((np.unique(tables.near, return_counts=True)[1] > 1).sum()),
            "rows_more": len(tables.near) - len(np.unique(tables.near)),
        },
        "failures": _failures(commits),
        "rejections": dict(Counter(why for why in faces["why"].to_pylist() if why).most_common()),
        "face_size": histogram(sizes, kept, size_edges(sizes)),
        "score": histogram(faces["score"].to_numpy(), kept, SCORE_EDGES),
        "yaw": histogram(faces["yaw"].to_numpy().clip(YAW_EDGES[0], YAW_EDGES[-1]), kept, YAW_EDGES),
        **_times(commits, len(images), _write_time(pipeline.config.output / TIME)),
    }


def size_edges(sizes: NDArray[np.float32]) -> NDArray[np.float64]:
    """24 bins of equal ratio from 16 px, or the smallest face, to the largest."""
    low, high = (min(16.0, sizes.min()), max(256.0, sizes.max())) if len(sizes) else (16.0, 256.0)
    return np.geomspace(low, high * 1.001, 25)


def histogram(
    values: NDArray[np.float32], kept: NDArray[np.bool_], edges: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Counts of the kept and of the rejected faces between ``edges``."""
    counts = {
        name: np.histogram(values[chosen], edges)[0].tolist()
        for name, chosen in (("kept", kept), ("rejected", ~kept))
    }
    return {"edges": edges.round(4).tolist(), **counts}


def _failures(commits: Mapping[str, Sequence[Commit]]) -> list[dict[str, Any]]:
    """Stage, reason and count, in the order of the stages. Lines of lists are not told apart."""
    rows = []
    for stage, marks in commits.items():
        reasons = Counter[str]()
        for mark in marks:
            for error, count in mark.errors.items():
                reasons[_PLACE.sub("", error)] += count
        del reasons[REASON]  # a removal is no failure
        rows += [{"stage": stage, "reason": reason, "count": n} for reason, n in reasons.most_common()]
    return rows


def _write_time(path: Path) -> dict[str, float]:
    """What ``write`` says of its time; it may have been killed before it did."""
    known: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {"rows": 0, "seconds": 0.0}
    return known


def _times(commits: Mapping[str, Sequence[Commit]], pictures: int, write: dict[str, float]) -> dict[str, Any]:
    """``seconds`` by stage, and ``throughput``: pictures a second of one worker, share of its time by purpose."""
    seconds = {name: sum(mark.seconds for mark in marks) for name, marks in commits.items()}
    seconds["write"] = write["seconds"]
    throughput = {}
    for name, spent in seconds.items():
        parts = sum((Counter(mark.timings) for mark in commits.get(name, ())), Counter[str]())
        throughput[name] = {
            "pictures_per_second": round(pictures / max(spent, 1e-3), 2),
            "shares": {part: round(time / max(spent, 1e-3), 3) for part, time in parts.most_common()},
        }
    return {"seconds": {name: round(spent, 2) for name, spent in seconds.items()}, "throughput": throughput}
