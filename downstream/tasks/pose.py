"""Head pose: yaw, pitch and roll in degrees; mean absolute error."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from downstream import drawing
from downstream.tasks.task import SIDE, Array, Metric, Task, back_to_source, matrix, points_moved, zoom_of

AXIS = 75
"""Length of a drawn axis of the head that is seen from the side, crop pixels."""


class Pose(Task):
    """Where the head points to."""

    name: Literal["pose"] = "pose"

    @property
    def title(self) -> str:
        """Head pose."""
        return "Head pose"

    @property
    def columns(self) -> tuple[str, ...]:
        """Three angles."""
        return ("pose",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Mean of the three, then yaw, pitch, roll."""
        return (
            Metric("mae", "MAE", "deg", "lower"),
            Metric("mae_yaw", "MAE yaw", "deg", "lower"),
            Metric("mae_pitch", "MAE pitch", "deg", "lower"),
            Metric("mae_roll", "MAE roll", "deg", "lower"),
        )

    def encode(self, table: pa.Table) -> Array:
        """(N, 3): yaw, pitch, roll in degrees."""
        return matrix(table, "pose", 3)

    def statistics(self, prediction: Array, truth: Array) -> Array:
        """(N, 3), (N, 3) -> (N, 3): absolute errors in degrees, the shorter way round the circle."""
        return np.abs((prediction - truth + 180) % 360 - 180)

    def reduce(self, means: Array) -> Array:
        """Mean of the three, then yaw, pitch, roll."""
        return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1)

    def move(self, labels: Array, affine: Array, flipped: NDArray[np.bool_]) -> Array:
        """The mirror image turns and tilts the other way; turning the picture turns the head about the view axis."""
        mirrored = np.where(flipped[:, None], labels * [-1, 1, -1], labels)
        clockwise = np.arctan2(affine[:, 1, 0], affine[:, 0, 0])  # y points down in the crop
        turned = Rotation.from_euler("Z", -clockwise[:, None]) * head_rotation(mirrored)
        return np.asarray(turned.as_euler("YXZ", degrees=True)) * [1, -1, -1]

    def errors(self, prediction: Array, truth: Array) -> Array:
        """Mean of the three absolute errors, degrees."""
        return np.asarray(self.statistics(prediction, truth).mean(axis=1), np.float64)

    def mark(
        self, picture: Image.Image, prediction: Array, affine: Array, truth: Array | None = None
    ) -> None:
        """The head's axes from the middle of the crop."""
        poses = [prediction] if truth is None else [prediction, truth]
        ends = [np.zeros((1, 2)), *(AXIS * head_axes(pose) for pose in poses)]
        moved = points_moved(SIDE / 2 + np.concatenate(ends)[None], back_to_source(affine)[None])[0]
        known = None if truth is None else moved[4:]
        drawing.mark_axes(picture, moved[0], moved[1:4], known, zoom_of(affine))

    def describe(self, prediction: Array, affine: Array) -> dict[str, Any]:
        """Degrees; the crop may be turned against the picture."""
        back = back_to_source(affine)[None]
        pose = self.move(prediction[None], back, np.array([False]))[0]
        return {name: round(float(x), 2) for name, x in zip(("yaw", "pitch", "roll"), pose, strict=True)}


def head_axes(pose: Array) -> Array:
    """(3,) yaw, pitch, roll in degrees -> (3, 2) where the head's axes (to its left, up, ahead) point in the picture,
    each of length 1 when seen from the side.
    """
    turned = head_rotation(pose).as_matrix()
    return np.stack([turned[0], -turned[1]], axis=1)


def head_rotation(pose: Array) -> Rotation:
    """(..., 3) angles -> Ry(yaw) Rx(-pitch) Rz(-roll) for x right, y up, z to the viewer, as the labels mean it:
    yaw > 0 turns the nose to the picture's right, pitch > 0 lifts it, roll > 0 tilts the head clockwise.
    """
    return Rotation.from_euler("YXZ", pose * [1, -1, -1], degrees=True)
