"""Head pose: yaw, pitch and roll in degrees; mean absolute error."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from downstream.tasks.task import Array, Metric, Task, matrix


def encode(table: pa.Table) -> Array:
    """(N, 3): yaw, pitch, roll in degrees."""
    return matrix(table, "pose")


def statistics(prediction: Array, truth: Array) -> Array:
    """(N, 3), (N, 3) -> (N, 3): absolute errors in degrees, the shorter way round the circle."""
    return np.abs((prediction - truth + 180) % 360 - 180)


def reduce(means: Array) -> Array:
    """Mean of the three, then yaw, pitch, roll."""
    return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1)


def head_rotation(pose: Array) -> Rotation:
    """(..., 3) angles -> Ry(yaw) Rx(-pitch) Rz(-roll) for x right, y up, z to the viewer, as the labels mean it:
    yaw > 0 turns the nose to the picture's right, pitch > 0 lifts it, roll > 0 tilts the head clockwise.
    """
    return Rotation.from_euler("YXZ", pose * [1, -1, -1], degrees=True)


def move(truth: Array, affine: Array, flipped: NDArray[np.bool_]) -> Array:
    """The mirror image turns and tilts the other way; turning the picture turns the head about the view axis."""
    mirrored = np.where(flipped[:, None], truth * [-1, 1, -1], truth)
    clockwise = np.arctan2(affine[:, 1, 0], affine[:, 0, 0])  # y points down in the crop
    turned = Rotation.from_euler("Z", -clockwise[:, None]) * head_rotation(mirrored)
    return np.asarray(turned.as_euler("YXZ", degrees=True)) * [1, -1, -1]


POSE = Task(
    name="pose",
    title="Head pose",
    columns=("pose",),
    encode=encode,
    statistics=statistics,
    reduce=reduce,
    move=move,
    metrics=(
        Metric("mae", "MAE", "deg", "lower"),
        Metric("mae_yaw", "MAE yaw", "deg", "lower"),
        Metric("mae_pitch", "MAE pitch", "deg", "lower"),
        Metric("mae_roll", "MAE roll", "deg", "lower"),
    ),
)
