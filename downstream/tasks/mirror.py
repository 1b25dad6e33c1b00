"""Which point a point becomes in the mirror image, for each scheme of landmarks.

Of ``points`` (..., n, 2) in an image ``width`` px wide, the mirror image has ``points[..., MIRRORS[n], :] * [-1, 1] +
[width, 0]``. Occlusion and visibility change places likewise, without the arithmetic.

All points are counted from 0, left means on the left of the picture. The pairs are those of the table of flips of
HRNet-Facial-Landmark-Detection (lib/utils/transforms.py), which counts 19, 29 and 68 points from 1. What the points
of 29 and 19 mean, in the comments, is from memory; the pairs do not rest on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_68 = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose
    *range(35, 30, -1),  # nostrils
    *(45, 44, 43, 42, 47, 46),  # left eye: 36 to 39 along the upper lid, 40 and 41 back along the lower one
    *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),  # mouth, outer: upper lip, and back along the lower one
    *range(59, 54, -1),
    *range(64, 59, -1),  # inner
    *range(67, 64, -1),
)
_98 = (
    *range(32, -1, -1),  # jaw
    *(
        46,
        45,
        44,
        43,
        42,
        50,
        49,
        48,
        47,
    ),  # left brow: 33 to 37 along the upper edge, 38 to 41 back along the lower one
    *(37, 36, 35, 34, 33, 41, 40, 39, 38),
    *range(51, 55),  # bridge of the nose
    *range(59, 54, -1),  # nostrils
    *(
        72,
        71,
        70,
        69,
        68,
        75,
        74,
        73,
    ),  # left eye: 60 to 64 along the upper lid, 65 to 67 back along the lower one
    *(64, 63, 62, 61, 60, 67, 66, 65),
    *range(82, 75, -1),  # mouth, outer
    *range(87, 82, -1),
    *range(92, 87, -1),  # inner
    *range(95, 92, -1),
    *(97, 96),  # pupils
)
_29 = (
    *(1, 0, 3, 2),  # outer, inner ends of the brows
    *(6, 7, 4, 5),  # upper, lower edge of the left brow, of the right one
    *(9, 8, 11, 10),  # outer, inner corners of the eyes
    *(14, 15, 12, 13),  # upper, lower lid of the left eye, of the right one
    *(17, 16),  # pupils
    *(19, 18, 20, 21),  # sides, tip and lower end of the nose
    *(23, 22),  # corners of the mouth
    *range(24, 29),  # middle of the lips, chin
)
_19 = (
    *range(5, -1, -1),  # brows: outer end, middle, inner end of the left one, and on
    *range(11, 5, -1),  # eyes likewise
    *range(14, 11, -1),  # nose: left side, tip, right side
    *range(17, 14, -1),  # mouth: left corner, middle, right corner
    18,  # chin
)

MIRRORS: Mapping[int, NDArray[np.intp]] = {
    len(table): np.array(table, np.intp) for table in (_19, _29, _68, _98)
}
"""(n,) for n points: AFLW's 19, COFW's 29, the 68 of iBUG, WFLW's 98."""
