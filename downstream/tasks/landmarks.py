"""68 facial landmarks in the iBUG order, in crop pixels; normalised mean error (NME).

NME = 1/68 * sum_k |p_k - t_k| / d, in %, for two normalisers d: the distance of the outer eye corners (iBUG
points 36 and 45, as in 300-W, Sagonas et al. 2013) and, because that distance collapses on profiles,
sqrt(w*h) of the box around the true points (Zhu et al. 2016, AFLW2000-3D).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import ConfigError
from downstream.tasks.mirror import MIRRORS
from downstream.tasks.task import SIDE, Array, Metric, Task, matrix

MIRROR = MIRRORS[68]


def encode(table: pa.Table) -> Array:
    """(N, 136): x0, y0, x1, y1, ... in crop pixels."""
    return matrix(table, "landmarks68")


def statistics(prediction: Array, truth: Array) -> Array:
    """(N, 136), (N, 136) -> (N, 2): a picture's NME by eye corners and by box, in %."""
    p, t = prediction.reshape(-1, 68, 2), truth.reshape(-1, 68, 2)
    error = np.linalg.norm(p - t, axis=-1).mean(axis=-1)
    eyes = np.linalg.norm(t[:, 36] - t[:, 45], axis=-1)
    box = np.sqrt(np.prod(t.max(axis=1) - t.min(axis=1), axis=-1))
    if eyes.min() == 0 or box.min() == 0:
        bad = int(np.argmin(np.minimum(eyes, box)))
        raise ConfigError(
            f"landmarks68: test picture {bad} has both eye corners in one point; mend its labels"
        )
    return 100 * np.stack([error / eyes, error / box], axis=-1)


def reduce(means: Array) -> Array:
    """The mean over pictures is the metric."""
    return means


def move(truth: Array, affine: Array, flipped: NDArray[np.bool_]) -> Array:
    """Mirror (points change their names too), then map by the affine."""
    points = truth.reshape(-1, 68, 2)
    mirrored = points[:, MIRROR] * [-1, 1] + [SIDE, 0]
    points = np.where(flipped[:, None, None], mirrored, points)
    return (points @ affine[:, :, :2].transpose(0, 2, 1) + affine[:, None, :, 2]).reshape(-1, 136)


LANDMARKS = Task(
    name="landmarks",
    title="68 landmarks",
    columns=("landmarks68",),
    encode=encode,
    statistics=statistics,
    reduce=reduce,
    move=move,
    metrics=(
        Metric("nme", "NME, eye corners", "%", "lower"),
        Metric("nme_box", "NME, box", "%", "lower"),
    ),
)
