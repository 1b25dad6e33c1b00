"""The morphable head: vertices = template + shape . identity fields + (intensity / 5) . action-unit fields."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import fields, mesh
from data_prep.synthetic.kernels import kernel
from data_prep.synthetic.mesh import Array, Triangles


class Head(NamedTuple):
    """The linear model. V vertices, T triangles, K identity fields."""

    rest: Array  # (V, 3) template in rest coordinates, which the paint is defined in
    triangles: Triangles  # (T, 3)
    identity: Array  # (K, V, 3)
    units: Array  # (12, V, 3) at intensity 5
    rows: int  # the first rows * columns vertices are the loft, the others the ears
    columns: int


@cache
def head() -> Head:
    """The model, built once a process (about .2 s)."""
    heights, angles = mesh.row_heights(), mesh.column_angles()
    smooth = mesh.loft(heights, angles)
    rows, columns = smooth.shape[:2]
    skull = smooth.reshape(-1, 3)
    parts, triangles = [skull + fields.relief(skull)], [mesh.grid_triangles(rows, columns, closed=True)]
    flat = [skull]
    for side in (-1.0, 1.0):
        points, faces = mesh.ear(side)
        triangles.append(faces + sum(map(len, parts)))
        parts.append(points)
        flat.append(points)
    # Strokes are placed by the unsculpted position: relief must not move what they act on.
    base = np.concatenate(flat)
    return Head(
        np.concatenate(parts), np.concatenate(triangles).astype(np.int32),
        fields.identity_fields(base), fields.unit_fields(base), rows, columns,
    )  # fmt: skip


@kernel
def blend(rest, fields, weights):  # type: ignore[no-untyped-def]
    """Rest + sum of weights . fields, in a fixed order of additions (BLAS would depend on its threads)."""
    out = rest.copy()
    for k in range(len(weights)):
        w = weights[k]
        if w != 0:
            for v in range(out.shape[0]):
                for axis in range(3):
                    out[v, axis] += w * fields[k, v, axis]
    return out


def deform(shape: NDArray[np.float32], action_units: NDArray[np.float32]) -> Array:
    """Vertices (V, 3), cm in head coordinates, of a person `shape` (K,) with `action_units` (12,) in 0..5."""
    model = head()
    person = blend(model.rest, model.identity, shape.astype(np.float32))
    vertices: Array = blend(person, model.units, (action_units / 5).astype(np.float32))
    return vertices
