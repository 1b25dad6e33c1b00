"""What shapes a head, as tables of brush strokes: relief of the template, identity fields, action units.

A stroke is a Gaussian on the front of the head: centre (x, y), radii (sx, sy) and the displacement (dx, dy, dz)
of its centre, all in cm. A stroke off the midline is mirrored to the other side.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_prep.synthetic.mesh import SLIT, Array, smoothstep

Stroke = tuple[float, float, float, float, float, float, float]

ACTION_UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)

RELIEF: tuple[Stroke, ...] = (
    (2.9, 0.8, 1.6, 0.95, 0, 0, -0.62),  # eye socket
    (1.55, 0.35, 0.55, 0.75, 0, 0, -0.55),  # inner corner of the eye
    (3.15, 0.0, 1.15, 0.72, 0, 0, 0.62),  # eyeball
    (4.75, 0.0, 0.5, 0.7, 0, 0, -0.25),  # outer corner
    (2.7, 2.35, 1.7, 0.75, 0, 0, 0.24),  # brow ridge
    (0.0, 2.6, 0.9, 0.7, 0, 0, 0.12),  # glabella
    (2.4, -1.45, 1.2, 0.45, 0, 0, -0.16),  # tear trough
    (2.6, 5.6, 2.2, 1.6, 0, 0, 0.16),  # frontal eminence
    (6.2, 3.0, 1.3, 2.2, -0.3, 0, 0),  # temple
    (4.5, -2.1, 1.7, 1.3, 0.1, 0, 0.45),  # cheekbone
    (4.9, -5.6, 1.5, 1.7, -0.2, 0, -0.25),  # hollow of the cheek
    (0.0, -3.7, 0.7, 0.6, 0, 0, 0.3),  # tip of the nose
    (1.2, -4.05, 0.55, 0.5, 0.1, 0, 0.72),  # wing of the nose
    (1.9, -3.7, 0.3, 0.7, 0, 0, -0.15),  # groove of the wing
    (0.6, -4.6, 0.34, 0.2, 0, 0.15, -0.25),  # nostril
    (0.0, -5.6, 0.26, 0.5, 0, 0, -0.1),  # philtrum
    (0.48, -5.7, 0.2, 0.5, 0, 0, 0.08),
    (0.6, -6.4, 0.75, 0.34, 0, 0, 0.34),  # upper lip
    (1.6, -6.62, 0.7, 0.26, 0, 0, 0.2),
    (0.0, -7.5, 1.15, 0.42, 0, 0, 0.42),  # lower lip
    (1.3, -7.35, 0.8, 0.34, 0, 0, 0.2),
    (1.2, SLIT, 1.4, 0.13, 0, 0, -0.32),  # line between the lips
    (2.75, -6.9, 0.45, 0.42, 0, 0, -0.3),  # corner of the mouth
    (0.0, -8.75, 1.4, 0.42, 0, 0, -0.34),  # fold below the lip
    (0.0, -10.2, 1.5, 0.95, 0, 0, 0.5),  # chin
    (2.6, -5.6, 0.5, 1.3, 0, 0, -0.12),  # beside the nasolabial fold
)

# Height and half width of the nose along the midline; between the knots smooth.
NOSE_Y = np.array([-5.1, -4.85, -4.6, -4.35, -4.0, -3.6, -3.0, -2.0, -1.0, 0.0, 0.8, 1.6, 2.4])
NOSE_HEIGHT = np.array([0.0, 0.22, 0.85, 1.75, 2.25, 2.3, 1.98, 1.42, 0.92, 0.52, 0.34, 0.18, 0.0])
NOSE_WIDTH = np.array([0.7, 0.72, 0.8, 0.92, 1.04, 1.08, 1.02, 0.9, 0.78, 0.7, 0.74, 0.9, 1.2])

# 36 ways in which people differ; a coefficient of 1 is one standard deviation.
IDENTITY: dict[str, tuple[Stroke, ...]] = {
    "nose length": ((0, -4.0, 1.6, 1.5, 0, -0.35, 0),),
    "nose projection": ((0, -3.6, 0.95, 1.2, 0, 0, 0.4),),
    "nose bridge height": ((0, -1.2, 0.8, 1.5, 0, 0, 0.22),),
    "nose width": ((1.1, -4.0, 0.9, 0.9, 0.25, 0, 0.0),),
    "nose tip up": ((0, -3.8, 0.9, 0.7, 0, 0.22, 0.08),),
    "nose hump": ((0, -1.8, 0.7, 0.7, 0, 0, 0.17),),
    "nose bridge width": ((0.7, -1.5, 0.6, 1.6, 0.12, 0, 0.05),),
    "nose tip round": ((0, -3.7, 0.7, 0.6, 0, 0, 0.14), (0.5, -3.8, 0.5, 0.5, 0.1, 0, 0.06)),
    "eye distance": ((3.2, 0.0, 1.7, 1.5, 0.2, 0, 0),),
    "eye opening": ((3.15, 0.55, 1.3, 0.4, 0, 0.09, 0.02), (3.15, -0.5, 1.3, 0.4, 0, -0.05, 0.0)),
    "eye width": ((4.7, 0.0, 0.7, 0.7, 0.14, 0, -0.03), (1.6, 0.0, 0.5, 0.6, -0.08, 0, 0)),
    "eye slant": ((4.6, 0.1, 0.9, 0.8, 0, 0.2, 0), (1.7, -0.1, 0.6, 0.6, 0, -0.07, 0)),
    "eye depth": ((2.9, 0.5, 1.6, 1.0, 0, 0, -0.22),),
    "brow height": ((2.9, 2.2, 1.9, 0.8, 0, 0.25, 0.0),),
    "brow ridge": ((2.3, 2.2, 2.0, 0.6, 0, 0, 0.2),),
    "brow slant": ((4.4, 2.2, 1.2, 0.8, 0, 0.2, 0), (1.4, 2.1, 0.8, 0.7, 0, -0.12, 0)),
    "mouth width": ((2.5, -6.9, 1.1, 1.1, 0.25, 0, -0.05),),
    "upper lip": ((0.7, -6.35, 1.2, 0.3, 0, 0.12, 0.13),),
    "lower lip": ((0.7, -7.55, 1.3, 0.36, 0, -0.12, 0.14),),
    "mouth corners": ((2.6, -6.9, 0.7, 0.6, 0, 0.12, 0),),
    "mouth height": ((0, -6.9, 3.4, 1.3, 0, 0.22, 0),),
    "mouth forward": ((0, -6.8, 2.4, 1.6, 0, 0, 0.22),),
    "philtrum length": ((0, -6.6, 2.2, 0.9, 0, -0.16, 0),),
    "chin length": ((0, -11.4, 3.6, 2.6, 0, -0.4, 0),),
    "chin forward": ((0, -10.6, 2.0, 1.2, 0, 0, 0.35),),
    "chin width": ((1.9, -10.6, 1.5, 1.1, 0.35, 0, 0.05),),
    "chin cleft": ((0, -10.4, 0.3, 0.6, 0, 0, -0.14),),
    "jaw angle": ((5.2, -8.0, 2.2, 2.0, 0.42, 0, 0.1),),
    "cheekbones": ((5.0, -2.1, 1.7, 1.4, 0.22, 0, 0.25),),
    "cheek fullness": ((4.3, -5.4, 1.8, 1.9, 0.3, 0, 0.32),),
    "double chin": ((0, -12.3, 3.5, 1.4, 0, -0.35, 0.35),),
    "forehead slope": ((0, 6.5, 5.0, 2.2, 0, 0, -0.4),),
    "forehead height": ((0, 9.0, 8.0, 3.6, 0, 0.45, 0.1),),
}
# These three act on the whole head: (factor per cm of x, y, z).
STRETCH: dict[str, tuple[float, float, float]] = {
    "head width": (0.035, 0, 0),
    "head height": (0, 0.03, 0),
    "head depth": (0, 0, 0.03),
}

# Displacement at full intensity (5). "up" and "down" strokes act on one side of the line between the lips only.
UNITS: dict[int, tuple[Stroke, ...]] = {
    1: ((1.1, 2.5, 1.35, 1.3, 0, 1.05, 0.06), (1.4, 4.6, 1.8, 1.4, 0, 0.35, 0)),
    2: ((4.2, 2.5, 1.6, 1.3, 0, 1.1, 0.0), (4.0, 4.6, 1.8, 1.4, 0, 0.35, 0)),
    4: ((1.3, 2.0, 1.15, 0.8, -0.42, -0.9, 0.25), (3.4, 2.0, 1.4, 0.7, -0.12, -0.55, 0.1)),
    5: ((3.15, 0.5, 1.2, 0.36, 0, 0.52, 0.04), (3.15, -0.5, 1.0, 0.3, 0, -0.1, 0)),
    6: ((4.0, -2.2, 1.8, 1.1, 0.05, 0.7, 0.5), (3.2, -0.6, 1.3, 0.42, 0, 0.38, 0.12),
        (3.3, 0.55, 1.3, 0.36, 0, -0.2, 0)),
    9: ((1.25, -4.0, 0.85, 0.85, 0.22, 0.62, 0.12), (1.0, -6.1, 1.4, 0.6, 0, 0.42, 0.05),
        (1.0, -1.0, 0.8, 0.8, -0.1, 0.25, 0.18), (1.2, 1.9, 1.0, 0.7, -0.15, -0.45, 0.1),
        (3.0, -0.6, 1.2, 0.4, 0, 0.2, 0)),
    12: ((2.7, -6.9, 1.05, 1.05, 0.85, 1.15, -0.35), (3.8, -4.6, 1.4, 1.4, 0.2, 0.55, 0.5),
         (0.9, -6.2, 1.2, 0.5, 0.05, 0.15, -0.05)),
    15: ((2.7, -7.0, 1.1, 1.1, 0.12, -1.1, -0.05), (0, -7.2, 1.4, 0.5, 0, 0.15, 0.05)),
    17: ((0, -9.8, 1.7, 1.0, 0, 0.75, 0.35), (0, -7.6, 1.7, 0.5, 0, 0.42, 0.3), (0, -6.4, 1.4, 0.3, 0, 0.2, 0.08)),
    20: ((2.7, -6.95, 1.1, 0.9, 1.15, -0.3, -0.4), (0.8, -6.4, 1.2, 0.4, 0.1, -0.1, -0.15),
         (0.8, -7.5, 1.2, 0.4, 0.1, 0.12, -0.15)),
}  # fmt: skip
LIPS_PART = ((0.0, -6.45, 1.8, 0.7, 0, 0.5, 0.06), (0.0, -7.35, 1.8, 0.8, 0, -0.72, 0.02))
JAW_DROP = np.array([0, -2.5, -0.9], np.float32)


def stroke(points: Array, s: Stroke) -> Array:
    """Displacement (N, 3) of rest points (N, 3) by one stroke and its mirror image."""
    x, y, z = points.T
    total = np.zeros_like(points)
    front = smoothstep(-0.5, 3.5, z)
    for side in (1.0, -1.0) if s[0] else (1.0,):
        weight = np.exp(-(((x - side * s[0]) / s[2]) ** 2) - ((y - s[1]) / s[3]) ** 2) * front
        total += weight[:, None] * np.array([side * s[4], s[5], s[6]], np.float32)
    return total


def paint(points: Array, strokes: tuple[Stroke, ...]) -> Array:
    """Sum of the displacements of several strokes."""
    total: Array = np.sum([stroke(points, s) for s in strokes], axis=0, dtype=np.float32)
    return total


def nose(points: Array) -> Array:
    """The nose itself: a ridge of varying height and width on the face's midline."""
    x, y, z = points.T
    y = y - 0.18 * np.minimum(np.abs(x), 1.5)  # seen from the front the wings end above the tip
    inside = (y > NOSE_Y[0]) & (y < NOSE_Y[-1]) & (z > 0)
    y = np.clip(y, NOSE_Y[0], NOSE_Y[-1])
    height = PchipInterpolator(NOSE_Y, NOSE_HEIGHT)(y)
    width = PchipInterpolator(NOSE_Y, NOSE_WIDTH)(y)
    ridge = height * np.exp(-(np.abs(x / width) ** 2.3)) * inside
    return np.stack([0 * x, 0 * x, ridge], -1).astype(np.float32)


def identity_fields(points: Array) -> Array:
    """(K, N, 3): displacement of the template by each identity coefficient."""
    stretch = [points * np.array(factor, np.float32) for factor in STRETCH.values()]
    return np.stack([paint(points, strokes) for strokes in IDENTITY.values()] + stretch).astype(np.float32)


def lips_part(points: Array) -> Array:
    """AU25: the lips part. The row between them is pulled back into the mouth, so that it reads as depth."""
    x, y, z = points.T
    above = np.clip((y - SLIT) / 0.03, 0, 1)[:, None]
    below = np.clip((SLIT - y) / 0.03, 0, 1)[:, None]
    within = np.exp(-((x / 2.0) ** 4)) * (z > 4)
    upper, lower = (stroke(points, s) for s in LIPS_PART)
    inside = (1 - above) * (1 - below) * within[:, None] * np.array([0, 0, -0.5], np.float32)
    taper = np.where(np.abs(x) < 2.75, 1 - (np.abs(x) / 2.75) ** 4, 0)[:, None]
    moved: Array = ((upper * above + lower * below) * taper + inside).astype(np.float32)
    return moved


def jaw_drop(points: Array) -> Array:
    """AU26: the lower jaw turns down about the jaw joint; the lower lip goes with it, the corners half way."""
    x, y, z = points.T
    across = np.abs(x)
    corner = smoothstep(1.6, 3.1, across)
    sharp = np.clip((SLIT - y) / 0.03, 0, 1)
    soft = smoothstep(-4.6, -9.2, y)
    jaw = sharp * (1 - corner) + soft * corner
    jaw = np.where(z > 0, jaw, 0) * smoothstep(0.0, 6.0, z) * smoothstep(-15.5, -11.8, y)
    inside = np.exp(-((across / 2.0) ** 4)) * (np.abs(y - SLIT) < 0.02) * (z > 4)
    move = JAW_DROP * jaw[:, None]
    move = np.where(inside[:, None] > 0.01, 0.5 * JAW_DROP * (1 - corner[:, None]), move)
    narrow = -0.1 * x * jaw * smoothstep(3.5, 1.0, across)
    move[:, 0] += narrow
    move[:, 2] -= 0.7 * inside
    return move.astype(np.float32)


def unit_fields(points: Array) -> Array:
    """(12, N, 3): displacement by each of DISFA's action units at its full intensity."""
    fields = [paint(points, UNITS[unit]) for unit in ACTION_UNITS if unit in UNITS]
    return np.stack([*fields, lips_part(points), jaw_drop(points)]).astype(np.float32)


def relief(points: Array) -> Array:
    """Displacement that turns the smooth loft into a face."""
    moved: Array = paint(points, RELIEF) + nose(points)
    return moved
