"""Faces to draw predictions on: the stored JPEG and what goes over it, in crop pixels."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_prep.beton import Beton, read_labels
from downstream.config import Mode
from downstream.results import Metrics
from downstream.tables import pretrained_rows
from downstream.tasks.pose import Pose, head_axes

Points = list[tuple[float, float]]
AXIS = 60
"""Length of a head axis on the page, crop pixels."""


@dataclass
class Face:
    """One held-out picture.

    Attributes:
        jpeg: Base64 of the picture.
        truth: The 68 landmarks.
        points: row -> the predicted landmarks.
        errors: row -> their NME, %.
        true_axes: Ends of the head's axes (to its left, up, ahead), as offsets.
        axes: row -> the predicted ones.
        centre: Where the axes start: the middle of the eyes.
    """

    jpeg: str
    truth: Points
    points: dict[str, Points]
    errors: dict[str, float]
    true_axes: Points
    axes: dict[str, Points] = field(default_factory=dict)
    centre: tuple[float, float] = (128.0, 128.0)


def faces(
    metrics: Metrics, predictions: Mapping[str, NDArray[np.float32]], mode: Mode, fraction: float, count: int
) -> list[Face]:
    """``count`` test pictures at even steps through the landmark error of the pretrained row: no hand-picking."""
    beton, table, task = Beton(metrics.data.path), read_labels(metrics.data.path), metrics.task("landmarks")
    rows = predictions["rows"]
    truth = task.encode(table.take(rows))
    suffix = f"/{mode}/{fraction:g}"
    landmarks = {
        r.name: predictions[key]
        for r in metrics.rows
        if (key := f"{r.name}/landmarks{suffix}") in predictions
    }
    errors = {
        name: task.statistics(values.astype(np.float64), truth)[:, 0] for name, values in landmarks.items()
    }
    order = np.argsort(errors[pretrained_rows(metrics)[0]], kind="stable")
    picked = order[np.linspace(0.05 * (len(order) - 1), 0.95 * (len(order) - 1), count).round().astype(int)]
    poses = Pose().encode(table.take(rows)) if "pose" in table.column_names else None
    found = []
    for i in picked:
        face = Face(
            jpeg=base64.b64encode(beton.jpeg(int(rows[i]))).decode(),
            truth=_pairs(truth[i]),
            points={name: _pairs(landmarks[name][i]) for name in errors},
            errors={name: float(error[i]) for name, error in errors.items()},
            true_axes=_axes(poses[i]) if poses is not None else [],
            centre=_pairs(truth[i].reshape(68, 2)[36:48].mean(axis=0))[0],
        )
        for row in metrics.rows:
            pose = predictions.get(f"{row.name}/pose{suffix}")
            if pose is not None:
                face.axes[row.name] = _axes(pose[i])
        found.append(face)
    return found


def _axes(pose: NDArray[np.floating]) -> Points:
    return _pairs(AXIS * head_axes(pose.astype(np.float64)))


def _pairs(flat: NDArray[np.floating]) -> Points:
    return [(round(float(x), 1), round(float(y), 1)) for x, y in flat.reshape(-1, 2)]
