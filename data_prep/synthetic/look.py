"""How a person looks, as one numpy record that the paint kernels read, and the textures they share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Colours are linear RGB albedos in 0..1; amounts are 0..1; positions are cm in the picture's head coordinates.
LOOK = np.dtype(
    [
        ("skin", "f4", 3),
        ("lips", "f4", 3),
        ("hair", "f4", 3),
        ("brow", "f4", 3),
        ("iris", "f4", 3),
        ("eyeshadow", "f4", 3),
        ("cloth", "f4", 3),
        ("cloth2", "f4", 3),
        ("frame", "f4", 3),
        ("eyes", "f4", 4),  # centres of the irises: x and y of the picture's left eye, then of the right one
        ("mouth", "f4", 2),  # edge of the upper teeth (y), and how far the mouth is open (cm)
        ("redness", "f4"),
        ("freckles", "f4"),
        ("age", "f4"),
        ("lashes", "f4"),
        ("makeup", "f4"),
        ("brow_thickness", "f4"),
        ("brow_arch", "f4"),
        ("brow_density", "f4"),
        ("stubble", "f4"),
        ("moustache", "f4"),
        ("goatee", "f4"),
        ("beard", "f4"),
        ("scalp", "f4"),  # how dense the hair's roots are: 0 bald
        ("forehead_lines", "f4"),
        ("frown_lines", "f4"),
        ("crow_feet", "f4"),
        ("folds", "f4"),
        ("gloss", "f4"),
        ("pattern", "i4"),  # of the cloth: 0 plain, 1 stripes across, 2 stripes down, 3 checks, 4 knit
        ("pattern_scale", "f4"),
        ("neck_depth", "f4"),
        ("neck_width", "f4"),
        ("collar", "f4"),
        ("grain", "f4"),  # offset into the textures, so that no two people share blemishes
        ("hairline", "f4", 64),  # rest y above which hair grows, by angle around the head from -pi to pi
    ]
)

LIGHT = np.dtype(
    [
        ("key", "f4", 3),  # colour times strength
        ("direction", "f4", 3),  # towards the light; x right, y up, z to the camera
        ("above", "f4", 3),
        ("below", "f4", 3),
        ("rim", "f4", 3),
        ("rim_direction", "f4", 3),
    ]
)

Record = NDArray[Any]
TILE = 256


@cache
def textures() -> NDArray[np.float32]:
    """(3, 256, 256) tiling noise of zero mean and unit deviation: pores, blotches, strands (long along axis 0)."""
    rng = np.random.default_rng(20240501)
    frequency = np.fft.fftfreq(TILE) * TILE
    fy, fx = np.abs(frequency)[:, None], np.abs(frequency)[None]
    radius = np.hypot(fx, fy)
    spectra = [
        np.exp(-((radius / 90) ** 2)) * (radius > 12),
        1 / (1 + (radius / 5) ** 2) * (radius > 1),
        np.exp(-((fy / 5) ** 2)) * (1 / (1 + (fx / 40) ** 2)) * (fx > 3),
    ]
    tiles = []
    for spectrum in spectra:
        white = rng.standard_normal((TILE, TILE))
        tile = np.fft.ifft2(np.fft.fft2(white) * spectrum).real
        tiles.append((tile - tile.mean()) / tile.std())
    return np.stack(tiles).astype(np.float32)
