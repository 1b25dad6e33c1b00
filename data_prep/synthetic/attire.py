"""Shoulders, glasses, hats and masks: small meshes around the head, in head coordinates at rest."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.mesh import Array, Triangles, grid_triangles
from data_prep.synthetic.model import head

Mesh = tuple[Array, Triangles]

# Shoulders: y, z in front, half width, z of the widest point, z behind, squareness.
SHOULDERS = np.array(
    [
        [-13.4, 2.8, 4.3, -1.0, -5.4, 2.0],
        [-14.6, 3.4, 5.3, -1.2, -6.4, 2.0],
        [-15.6, 3.9, 7.0, -1.6, -7.3, 1.9],
        [-16.6, 4.5, 9.8, -2.0, -8.2, 1.9],
        [-17.8, 5.2, 13.2, -2.2, -9.0, 2.0],
        [-19.2, 6.2, 16.4, -2.2, -9.8, 2.2],
        [-21.2, 7.6, 19.6, -2.0, -10.6, 2.4],
        [-24.5, 9.2, 21.6, -1.6, -11.4, 2.5],
        [-32.0, 10.8, 22.8, -1.2, -12.0, 2.5],
        [-42.0, 11.0, 23.4, -1.0, -12.0, 2.5],
        [-190.0, 11.0, 25.0, -1.0, -12.0, 2.5],
    ]
)


@cache
def shoulders() -> Mesh:
    """Neck base, shoulders and chest down to y = -190, below any picture."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    heights = np.concatenate([np.linspace(-13.4, -27, 24), [-29, -32, -37, -44, -60, -90, -190]])
    rows = np.stack([np.interp(-heights, -SHOULDERS[:, 0], SHOULDERS[:, k]) for k in range(1, 6)])[:, :, None]
    front, width, middle, back, power = rows
    s, c = np.abs(np.sin(angle)), np.cos(angle)
    depth = np.where(c > 0, front - middle, middle - back)
    radius = ((s / width) ** power + (np.abs(c) / depth) ** power) ** (-1 / power)
    y = heights[:, None] + 1.2 * (1 - c) / 2 * np.exp(-(((heights[:, None] + 16) / 3) ** 2))
    points = np.stack([radius * np.sin(angle), y, middle + radius * c], -1).reshape(-1, 3)
    return points.astype(np.float32), grid_triangles(len(heights), 64, closed=True)


def _tube(path: NDArray[np.floating], radius: float, closed: bool) -> Mesh:
    """A three-sided tube along a path (N, 3)."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    if not closed:
        ahead[0], ahead[-1] = path[1] - path[0], path[-1] - path[-2]
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead, np.array([0.13, 0.2, 0.97]))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, ahead)
    ring = [path + radius * (np.cos(t) * side + np.sin(t) * up) for t in (0.3, 2.4, 4.5)]
    points = np.stack(ring, 1).astype(np.float32)
    if closed:
        points = np.concatenate([points, points[:1]])
    return points.reshape(-1, 3), grid_triangles(len(points), 3, closed=True)


@cache
def glasses(shape: int, heavy: bool) -> tuple[Mesh, Mesh]:
    """(frame, lenses) of glasses: shape 0 round, 1 square, 2 wide. The lenses are drawn for sunglasses only."""
    power = (2.0, 4.0, 3.0)[shape]
    wide, high = ((2.25, 2.05), (2.5, 1.7), (2.85, 2.1))[shape]
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    radius = (np.abs(np.cos(t)) ** power + np.abs(np.sin(t)) ** power) ** (-1 / power)
    thick = 0.16 if heavy else 0.085
    frame: list[Mesh] = []
    lenses: list[Mesh] = []
    for side in (-1, 1):
        x = side * 3.2 + wide * radius * np.cos(t)
        y = -0.25 + high * radius * np.sin(t)
        z = 10.2 - 0.045 * x * x
        rim = np.stack([x, y, z], -1)
        frame.append(_tube(rim, thick, closed=True))
        fan = np.stack([np.zeros(28), 1 + np.arange(28), 1 + (np.arange(28) + 1) % 28], -1)
        middle = rim.mean(0, keepdims=True) + np.array([0, 0, 0.15])
        lenses.append(
            (
                np.concatenate([middle, rim]).astype(np.float32),
                fan.astype(np.int32),
            )
        )
        hinge = np.array([side * (3.2 + wide), 0.5, 10.2 - 0.045 * (3.2 + wide) ** 2])
        frame.append(
            _tube(
                np.array([hinge, [side * 7.35, 0.6, 4.5], [side * 7.6, 0.6, 0.5], [side * 7.3, -0.6, -1.2]]),
                thick,
                False,
            )
        )
    inner = 3.2 - wide
    bridge = np.linspace(-inner, inner, 5)
    arch = np.stack([bridge, 0.35 + 0.25 * (1 - (bridge / inner) ** 2), 10.2 - 0.045 * bridge**2 + 0.15], -1)
    frame.append(_tube(arch, thick, closed=False))
    return join(frame), join(lenses)


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh out of several."""
    starts = np.cumsum([0] + [len(points) for points, _ in meshes])
    return (
        np.concatenate([points for points, _ in meshes]).astype(np.float32),
        np.concatenate([t + s for (_, t), s in zip(meshes, starts, strict=False)]).astype(np.int32),
    )


def hat(kind: int) -> Mesh:
    """A knitted cap (0) or a cap with a peak (1)."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    t = np.linspace(0, 1, 12)[:, None]
    edge = 5.3 - 1.9 * (1 - np.cos(angle)) / 2
    y = 13.2 + (edge - 13.2) * t ** (1.3 if kind else 1.15)
    fullness = np.clip(1 - ((y - 5) / 8.3) ** 2, 0, 1) ** 0.5
    points = np.stack([8.05 * fullness * np.sin(angle), y, -0.6 + 10.4 * fullness * np.cos(angle)], -1)
    dome: Mesh = (points.reshape(-1, 3).astype(np.float32), grid_triangles(12, 48, closed=True))
    if kind == 0:
        return dome
    a = np.linspace(-0.95, 0.95, 17)
    r = np.linspace(0, 1, 5)[:, None]
    reach = 6.2 * np.sqrt(np.clip(1 - (a / 0.98) ** 2, 0, 1))
    x = 8.0 * np.sin(a) + 0 * r
    z = -0.6 + 10.3 * np.cos(a) + reach * r
    peak = np.stack([x, 5.5 - 0.5 * r - 0.035 * x * x + 0.4 * (1 - np.cos(a)), z], -1)
    return join(
        [
            dome,
            (peak.reshape(-1, 3).astype(np.float32), grid_triangles(5, 17, closed=False)),
        ]
    )


@cache
def mask_cells() -> tuple[np.ndarray, Triangles]:
    """Vertices of the loft under a surgical mask, and its triangles among them."""
    model = head()
    rest = model.rest[: model.rows * model.columns]
    x, y, z = rest.T
    top = -1.6 - 1.6 * np.clip(np.abs(x) / 6.5, 0, 1) ** 2
    under = (y < top) & (y > -11.9) & (z > 3.2) & (np.abs(x) < 6.3)
    keep = under[model.triangles.clip(max=len(rest) - 1)].all(1) & (model.triangles < len(rest)).all(1)
    used = np.unique(model.triangles[keep])
    index = np.zeros(len(rest), np.int32)
    index[used] = np.arange(len(used))
    return used, index[model.triangles[keep]]


def mask(vertices: Array) -> Mesh:
    """A surgical mask on a deformed head: the skin under it, drawn out over the nose and the chin."""
    used, triangles = mask_cells()
    points = vertices[used].copy()
    x, y = points[:, 0], points[:, 1]
    smooth = 11.3 - 0.075 * x * x - 0.035 * (y + 5.0) ** 2
    points[:, 2] = np.maximum(points[:, 2] + 0.25, smooth - 0.4)
    return points, triangles
