"""Where the landmarks lie: indices of template vertices, in iBUG's order of 68 points, and the face's outline."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.mesh import SLIT
from data_prep.synthetic.model import head

# Along the jaw from the ear to the chin: angle around the head (degrees) and height.
JAW = (
    (84, 0.2),
    (83, -2.4),
    (81, -4.7),
    (75, -6.9),
    (64, -8.6),
    (50, -9.9),
    (34, -10.8),
    (17, -11.3),
    (0, -11.5),
)
# The right half of the picture; x is mirrored for the left half.
BROW = ((1.2, 2.05), (2.1, 2.45), (3.1, 2.62), (4.1, 2.45), (5.0, 1.95))
EYE = {"inner": (1.68, -0.04), "upper in": (2.65, 0.5), "upper out": (3.65, 0.47), "outer": (4.63, 0.04),
       "lower out": (3.65, -0.38), "lower in": (2.65, -0.4)}  # fmt: skip
UPPER_LIP = ((1.55, -6.52), (0.5, -6.22), (0.0, -6.27))
LOWER_LIP = ((1.5, -7.5), (0.75, -7.7), (0.0, -7.76))


@cache
def landmark_vertices() -> NDArray[np.int32]:
    """Indices (68,) of the landmarks' vertices."""
    rest, loft = head().rest, head().rows * head().columns

    def front(x: float, y: float) -> int:
        distance = (rest[:loft, 0] - x) ** 2 + (rest[:loft, 1] - y) ** 2 + 1e3 * (rest[:loft, 2] < 2)
        return int(distance.argmin())

    def around(degrees: float, y: float) -> int:
        angle = np.degrees(np.arctan2(rest[:loft, 0], rest[:loft, 2]))
        return int((((angle - degrees) * 0.12) ** 2 + (rest[:loft, 1] - y) ** 2).argmin())

    points = [around(-a, y) for a, y in JAW] + [around(a, y) for a, y in JAW[-2::-1]]
    points += [front(-x, y) for x, y in BROW[::-1]] + [front(x, y) for x, y in BROW]
    points += [front(0, y) for y in (0.4, -1.0, -2.4, -3.75)]
    points += [front(x, y) for x, y in ((-1.4, -4.55), (-0.7, -4.8), (0, -4.95), (0.7, -4.8), (1.4, -4.55))]
    points += [
        front(-EYE[k][0], EYE[k][1])
        for k in ("outer", "upper out", "upper in", "inner", "lower in", "lower out")
    ]
    points += [front(*EYE[k]) for k in ("inner", "upper in", "upper out", "outer", "lower out", "lower in")]
    points += (
        [front(-2.62, SLIT)]
        + [front(-x, y) for x, y in UPPER_LIP]
        + [front(x, y) for x, y in UPPER_LIP[1::-1]]
    )
    points += (
        [front(2.62, SLIT)]
        + [front(x, y) for x, y in LOWER_LIP]
        + [front(-x, y) for x, y in LOWER_LIP[1::-1]]
    )
    points += [front(-2.2, SLIT)] + [front(x, SLIT + 0.03) for x in (-0.9, 0, 0.9)]
    points += [front(2.2, SLIT)] + [front(x, SLIT - 0.03) for x in (0.9, 0, -0.9)]
    return np.array(points, np.int32)


@cache
def eye_vertices() -> tuple[int, int]:
    """Vertices at the centres of the eyes, the picture's left one first."""
    rest = head().rest[: head().rows * head().columns]
    return tuple(
        int(((rest[:, 0] - x) ** 2 + rest[:, 1] ** 2 + 1e3 * (rest[:, 2] < 2)).argmin())
        for x in (-3.15, 3.15)
    )  # type: ignore[return-value]


@cache
def outline_vertices() -> NDArray[np.int32]:
    """Vertices whose projections span the face box: forehead to chin, cheek to cheek."""
    rest = head().rest[: head().rows * head().columns]
    angle = np.degrees(np.abs(np.arctan2(rest[:, 0], rest[:, 2])))
    return np.flatnonzero((rest[:, 1] < 7.2) & (rest[:, 1] > -11.6) & (angle < 76) & (rest[:, 2] > 0)).astype(
        np.int32
    )
