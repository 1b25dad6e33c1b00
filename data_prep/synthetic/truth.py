"""Ground truth of a face, read off the layer it was drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.affect import valence_arousal
from data_prep.synthetic.landmarks import eye_vertices, landmark_vertices, outline_vertices
from data_prep.synthetic.mesh import Array
from data_prep.synthetic.people import Person
from data_prep.synthetic.render import Layer, Wear, seen


@dataclass(frozen=True, eq=False)
class Face:
    """Ground truth of one face. Pixels: x to the right, y down, the first pixel's centre at (.5, .5).

    Left and right are the picture's. Angles in degrees, of the head in the camera's axes:
    yaw > 0 turns the nose to the picture's right, pitch > 0 lifts it, roll > 0 tilts the head clockwise.
    """

    identity: int
    box: Array  # (4,) float32 x0, y0, x1, y1: forehead to chin, cheek to cheek; may reach outside the picture
    landmarks5: Array  # (5, 2) float32: left eye, right eye, tip of the nose, left and right mouth corner
    landmarks68: Array  # (68, 2) float32 in iBUG's order
    visible68: NDArray[np.bool_]  # (68,) in the picture and hidden by nothing
    action_units: Array  # (12,) float32, 0..5; AU 1 2 4 5 6 9 12 15 17 20 25 26
    shape: Array  # (K,) float32 identity coefficients
    pose: Array  # (3,) float32 yaw, pitch, roll
    valence: float  # [-1, 1]
    arousal: float  # [-1, 1]
    shown: float  # 0..1, the share of the camera-facing surface of the face that nothing hides


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered picture and its faces, the nearest last."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    faces: tuple[Face, ...]


def face_box(layer: Layer) -> Array:
    """(4,) forehead to chin, cheek to cheek, whether or not these are hidden."""
    points = layer.pixels[outline_vertices()]
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def face_truth(person: Person, wear: Wear, layer: Layer, hidden: NDArray[np.bool_]) -> Face:
    """The ground truth of one person; `hidden` (H, W) marks the pixels that something nearer covers."""
    marks, outline = landmark_vertices(), outline_vertices()
    height, width = hidden.shape

    def shown(index: NDArray[np.integer]) -> NDArray[np.bool_]:
        x, y = np.floor(layer.pixels[index]).astype(int).T
        covered: NDArray[np.bool_] = hidden[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        return seen(layer, index) & ~covered

    facing = outline[layer.facing[outline]]
    five = np.concatenate([layer.pixels[list(eye_vertices())], layer.pixels[marks[[30, 48, 54]]]])
    valence, arousal = valence_arousal(wear.action_units)
    return Face(
        identity=person.identity,
        box=face_box(layer),
        landmarks5=five.astype(np.float32),
        landmarks68=layer.pixels[marks].astype(np.float32),
        visible68=shown(marks),
        action_units=wear.action_units,
        shape=person.shape,
        pose=wear.pose,
        valence=valence,
        arousal=arousal,
        shown=float(shown(facing).mean()) if len(facing) else 0.0,
    )
