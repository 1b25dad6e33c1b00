"""The figures of a finished run, from its tables: what report/summary.json holds. docs/data.md explains them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.tables import read_shards

if TYPE_CHECKING:
    from data_prep.files import Commit
    from data_prep.pipeline import Pipeline

SCORE_EDGES = np.linspace(0.5, 1, 26)


@dataclass(frozen=True)
class Tables:
    """The image table and the face table of a run, without their heavy columns."""

    images: pa.Table
    faces: pa.Table
    """Detections only."""
    unread: pa.Table
    """Rows of pictures that could be listed but not read again."""


def read_tables(pipeline: Pipeline) -> Tables:
    """All shards of the image and the face table."""
    count = len(pipeline.shards)
    image_columns = ["image_id", "path", "sha256", "error"]
    face_columns = ["image_id", "face", "box", "score", "face_size", "kept", "why", "error"]
    images = pa.concat_tables(read_shards(pipeline.images.folder, count, image_columns))
    faces = pa.concat_tables(read_shards(pipeline.faces.folder, count, face_columns))
    good = pc.equal(faces["error"], "")
    return Tables(images, faces.filter(good), faces.filter(pc.invert(good)))


def summarise(pipeline: Pipeline, tables: Tables, written: int) -> dict[str, Any]:
    """The summary as a JSON tree; ``written`` is the number of rows in set.beton."""
    images, faces = tables.images, tables.faces
    usable = images.filter(pc.equal(images["error"], ""))
    kept = faces["kept"].to_numpy(zero_copy_only=False)
    sizes = faces["face_size"].to_numpy()
    stages = (pipeline.images, pipeline.faces, pipeline.crops)
    commits = {stage.name: stage.commits(len(pipeline.shards)) for stage in stages}
    return {
        "source": pipeline.source_note().model_dump(),
        "pictures": {
            "listed": len(images),
            "usable": len(usable),
            "failed": len(images) - len(usable),
            "duplicates": len(usable) - len(usable["sha256"].unique()),
            "without_face": len(usable) - len(tables.unread) - len(faces["image_id"].unique()),
        },
        "faces": {"detected": len(faces), "kept": int(kept.sum()), "rejected": int((~kept).sum())},
        "written": written,
        "published": pipeline.published(),
        "from_list": pipeline.from_list(),
        "failures": _failures(commits),
        "rejections": dict(Counter(why for why in faces["why"].to_pylist() if why).most_common()),
        "face_size": histogram(sizes, kept, size_edges(sizes)),
        "score": histogram(faces["score"].to_numpy(), kept, SCORE_EDGES),
        "seconds": {name: round(sum(c.seconds for c in marks), 2) for name, marks in commits.items()},
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
    """Stage, reason and count, in the order of the stages."""
    rows = []
    for stage, marks in commits.items():
        reasons = sum((Counter(mark.errors) for mark in marks), Counter[str]())
        rows += [{"stage": stage, "reason": reason, "count": n} for reason, n in reasons.most_common()]
    return rows
