"""The template head: a loft of hand-measured profile rows, and two ears.

Head coordinates, in cm: x to the right of the picture (the subject's left), y up, z towards the viewer.
The origin lies between the ear canals at eye height; a pupil is at (3.15, 0), the lips meet at y = -6.9,
the chin ends at y = -11.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Array = NDArray[np.float32]
Triangles = NDArray[np.int32]

SLIT = -6.9  # where the lips meet

# One row of the loft is a closed loop around the head. Columns: y in front, z in front, half width, z of the
# widest point, y behind, z behind, squareness of the front, tilt power (small: the loop rises early from front
# to back, as the jaw line does). Between these rows every column is interpolated by a monotone cubic.
PROFILE = np.array(
    [
        [11.80, 0.6, 0.5, -1.2, 11.8, -3.0, 2.0, 2.0],
        [11.60, 2.2, 2.1, -1.2, 11.6, -4.6, 2.0, 2.0],
        [10.90, 4.3, 4.0, -1.3, 10.9, -6.7, 2.0, 2.0],
        [9.80, 6.2, 5.5, -1.4, 9.6, -8.2, 2.1, 2.0],
        [8.30, 7.8, 6.6, -1.5, 7.9, -9.3, 2.2, 2.0],
        [6.60, 8.8, 7.2, -1.5, 6.0, -9.8, 2.3, 2.0],
        [4.60, 9.35, 7.45, -1.3, 4.0, -9.9, 2.35, 2.0],
        [2.60, 9.6, 7.4, -0.8, 2.0, -9.7, 2.4, 2.0],
        [0.60, 9.0, 7.15, -0.2, 0.0, -9.2, 2.4, 2.0],
        [-1.20, 8.9, 6.95, 0.2, -1.6, -8.4, 2.4, 2.0],
        [-3.00, 9.1, 6.75, 0.4, -2.8, -7.6, 2.35, 2.0],
        [-4.80, 9.4, 6.5, 0.6, -3.8, -7.0, 2.3, 2.0],
        [-6.00, 9.7, 6.25, 0.8, -4.4, -6.6, 2.25, 1.8],
        [-6.90, 9.75, 6.0, 0.9, -4.8, -6.4, 2.15, 1.6],
        [-8.00, 9.5, 5.75, 1.0, -5.2, -6.2, 2.1, 1.2],
        [-9.20, 9.1, 5.5, 1.1, -5.6, -6.1, 2.05, 0.9],
        [-10.30, 8.9, 5.3, 1.2, -6.0, -6.0, 2.0, 0.75],
        [-11.10, 8.5, 5.1, 1.2, -6.4, -5.9, 2.0, 0.68],
        [-11.55, 7.8, 4.95, 1.1, -6.9, -5.8, 2.0, 0.68],
        [-11.90, 6.6, 4.95, 0.8, -7.6, -5.8, 2.0, 0.75],
        [-12.30, 5.2, 5.0, 0.2, -8.6, -5.8, 2.0, 0.9],
        [-13.20, 4.3, 5.1, -0.6, -10.0, -5.9, 2.0, 1.0],
        [-15.00, 3.8, 5.4, -0.8, -12.5, -6.1, 2.0, 1.0],
        [-17.50, 3.6, 5.9, -0.9, -15.5, -6.4, 2.0, 1.0],
        [-20.00, 3.6, 6.4, -1.0, -18.5, -6.8, 2.0, 1.0],
    ]
)


def row_heights() -> NDArray[np.float64]:
    """Front heights of the mesh rows: dense at eyes, nose, lips, and three rows within .06 cm at the slit."""
    spans = [
        (11.8, 7.0, 11), (7.0, 3.2, 8), (3.2, 1.2, 9), (1.2, -1.0, 17), (-1.0, -3.2, 10), (-3.2, -5.2, 14),
        (-5.2, SLIT + 0.03, 14), (SLIT + 0.03, SLIT, 1), (SLIT, SLIT - 0.03, 1), (SLIT - 0.03, -8.2, 10),
        (-8.2, -10.6, 9), (-10.6, -12.3, 9), (-12.3, -20.0, 9),
    ]  # fmt: skip
    return np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in spans] + [[-20.0]])


def column_angles() -> NDArray[np.float64]:
    """Angles of the mesh columns around the vertical axis, radians, 0 in front, growing towards +x."""
    half = np.concatenate([np.arange(0.0, 24.0, 1.0), np.arange(24.0, 42.0, 1.5), np.arange(42.0, 90.0, 4.0),
                           np.arange(90.0, 180.0, 7.5)])  # fmt: skip
    angles: NDArray[np.float64] = np.radians(np.concatenate([half, [180.0], -half[:0:-1]]))
    return angles


def loft(heights: NDArray[np.float64], angles: NDArray[np.float64]) -> Array:
    """Points (rows, columns, 3) of the smooth head at these front heights and column angles."""
    rows = PchipInterpolator(-PROFILE[:, 0], PROFILE[:, 1:], axis=0)(-heights)[:, None, :]
    z_front, width, z_wide, y_back, z_back, power, tilt = np.moveaxis(rows, -1, 0)
    s, c = np.abs(np.sin(angles)), np.cos(angles)
    depth = np.where(c > 0, z_front - z_wide, z_wide - z_back)
    exponent = np.where(c > 0, power, 2.0)
    radius = ((s / width) ** exponent + (np.abs(c) / depth) ** exponent) ** (-1.0 / exponent)
    rise = ((1 - c) / 2) ** tilt
    y = heights[:, None] * (1 - rise) + y_back * rise
    return np.stack([radius * np.sin(angles), y, z_wide + radius * c], -1).astype(np.float32)


def grid_triangles(rows: int, columns: int, closed: bool, start: int = 0) -> Triangles:
    """Triangles (T, 3) of a grid of vertices in row-major order, facing outward for a loft seen from outside."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    right = (c + 1) % columns
    a, b, d, e = r * columns + c, r * columns + right, (r + 1) * columns + c, (r + 1) * columns + right
    both = np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, e], -1).reshape(-1, 3)])
    return (both + start).astype(np.int32)


def ear(side: float) -> tuple[Array, Triangles]:
    """One ear: rings of an oval disc with a raised rim (helix) around a hollow (concha); side is -1 or +1."""
    rings, spokes = 9, 20
    r = np.linspace(0.05, 1.0, rings)[:, None]
    angle = np.linspace(0, 2 * np.pi, spokes, endpoint=False)[None]
    back = r * np.cos(angle) * (1.5 + 0.3 * np.sin(angle))
    up = r * np.sin(angle) * 3.0
    rim = np.exp(-(((r - 0.78) / 0.15) ** 2)) * (0.75 + 0.25 * np.cos(angle))
    relief = 0.5 * rim - 0.4 * np.exp(-((r / 0.4) ** 2)) - 1.1 * np.clip((r - 0.82) / 0.18, 0, 1) ** 2
    flare = 0.5 * (back + 1.0)  # the back edge of the ear stands away from the skull
    x = side * (6.95 + flare + relief)
    y = -0.8 + up - 0.15 * back
    z = -0.9 - back - 0.12 * up
    points = np.stack(np.broadcast_arrays(x, y, z), -1).reshape(-1, 3).astype(np.float32)
    triangles = grid_triangles(rings, spokes, closed=True)
    return points, triangles[:, ::-1].copy() if side < 0 else triangles


def smoothstep(low: float, high: float, value: NDArray[np.floating]) -> NDArray[np.floating]:
    """Hermite step from 0 at `low` to 1 at `high` (`low` may be the larger one)."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    step: NDArray[np.floating] = t * t * (3 - 2 * t)
    return step
