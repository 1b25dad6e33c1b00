"""A mesh drawn over a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from downstream.morphable.model import Indices

Array = NDArray[np.float64]

COLOUR = np.array([120.0, 175.0, 235.0])
SHARE = 0.72
"""Of the mesh in the colour where it covers the picture."""


def draw_mesh(picture: Image.Image, vertices: Array, triangles: Indices | None) -> Image.Image:
    """``picture`` with a lit grey-blue mesh over it; points where the model has no triangles.

    Args:
        picture: RGB.
        vertices: (V, 3) x, y in its pixels, z towards the viewer.
        triangles: (T, 3), seen from both sides.
    """
    if triangles is None:
        dotted = picture.copy()
        ImageDraw.Draw(dotted).point([tuple(point) for point in vertices[:, :2].tolist()], "#78afeb")
        return dotted
    # Here, not above: numba takes a second to load.
    from data_prep.synthetic.raster import buffers, rasterise, vertex_normals

    seen, z = vertices[:, :2].astype(np.float32), vertices[:, 2].astype(np.float32)
    # The rasteriser is a pinhole camera's; from far away its depth orders as ours does.
    depth = (z.max() - z + 1e4).astype(np.float32)
    ids, weights, nearest = buffers(picture.height, picture.width)
    everywhere, nowhere = np.ones(len(triangles), bool), np.zeros(len(triangles), bool)
    tile = np.zeros((1, 1), np.float32)
    corners = np.ascontiguousarray(triangles, np.int32)
    rasterise(
        seen, depth, corners, everywhere, nowhere, np.zeros((1, 3), np.float32), tile, ids, weights, nearest
    )
    normals = vertex_normals(np.ascontiguousarray(vertices, np.float32), corners)
    there = ids >= 0
    share = np.concatenate([weights[there], 1 - weights[there].sum(axis=1, keepdims=True)], axis=1)
    normal = (normals[triangles[ids[there]]] * share[..., None]).sum(axis=1)
    light = 0.35 + 0.65 * np.abs(normal[:, 2]) / np.linalg.norm(normal, axis=1).clip(1e-6)
    pixels = np.asarray(picture.convert("RGB"), np.float64).copy()
    pixels[there] = (1 - SHARE) * pixels[there] + SHARE * COLOUR * light[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))
