"""The rasteriser: triangles into a buffer of what is seen at each pixel. One thread, no allocation in loops."""

from __future__ import annotations

import numpy as np

from data_prep.synthetic.kernels import kernel
from data_prep.synthetic.mesh import Array
from data_prep.synthetic.paint import texel

# mypy: disable-error-code="no-untyped-def"


@kernel
def vertex_normals(points, triangles):
    """Unit normals (V, 3) of smooth shading: the mean of the faces around a vertex, weighted by area."""
    normals = np.zeros_like(points)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(points.shape[0]):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2) + np.float32(1e-12)
        for axis in range(3):
            normals[v, axis] /= length
    return normals


@kernel
def rasterise(pixels, depth, triangles, both_sides, strands, rest, tile, ids, weights, nearest):
    """Write into `ids` (H, W) the triangle seen at each pixel, -1 where none.

    Arguments (T triangles of V vertices):
        pixels: (V, 2) float32 positions; the centre of pixel (column i, row j) is (i + .5, j + .5).
        depth: (V,) float32 distances along the optical axis, cm.
        both_sides: (T,) bool, False: the triangle is not seen from behind.
        strands: (T,) bool, True: hair, of which only the strands of the texture `tile` are drawn; `rest` (V, 3)
            then holds strand, length along it, and the texture's value below which no strand is drawn.
        weights: (H, W, 2) float32, receives the perspective-correct weights of the triangle's corners 0 and 1.
        nearest: (H, W) float32, the inverse depth; start at 0.
    """
    height, width = ids.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1]
        cx, cy = pixels[c, 0], pixels[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or (area > 0 and not both_sides[t]):
            continue
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        if left > right or top > bottom:
            continue
        inverse = np.float32(1.0) / area
        ia, ib, ic = np.float32(1) / depth[a], np.float32(1) / depth[b], np.float32(1) / depth[c]
        for j in range(top, bottom + 1):
            py = np.float32(j) + np.float32(0.5)
            for i in range(left, right + 1):
                px = np.float32(i) + np.float32(0.5)
                wa = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * inverse
                wb = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * inverse
                wc = np.float32(1) - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                near = wa * ia + wb * ib + wc * ic
                if near > nearest[j, i]:
                    if strands[t]:
                        u = wa * rest[a, 0] + wb * rest[b, 0] + wc * rest[c, 0]
                        v = wa * rest[a, 1] + wb * rest[b, 1] + wc * rest[c, 1]
                        bare = wa * rest[a, 2] + wb * rest[b, 2] + wc * rest[c, 2]
                        if texel(tile, v * np.float32(24), u * np.float32(8)) < bare:
                            continue
                    nearest[j, i] = near
                    ids[j, i] = t
                    weights[j, i, 0] = wa * ia / near
                    weights[j, i, 1] = wb * ib / near


def buffers(height: int, width: int) -> tuple[np.ndarray, Array, Array]:
    """Empty (ids, weights, nearest) for :func:`rasterise`."""
    return (
        np.full((height, width), -1, np.int32),
        np.zeros((height, width, 2), np.float32),
        np.zeros((height, width), np.float32),
    )
