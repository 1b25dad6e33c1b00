"""Hair: shells of strands over the skull, whose ends are ragged because the rasteriser drops strand by strand."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.mesh import Array, Triangles, column_angles, grid_triangles, smoothstep
from data_prep.synthetic.model import head

COLUMNS, ROWS = 64, 22
SHELLS = (0.35, 0.7, 1.0)


class Style(NamedTuple):
    """A haircut; lengths in cm, heights in head coordinates."""

    hairline: float  # height of the hairline in front
    temple: float  # how far it recedes beside the forehead, cm
    fringe: float  # how far the hair falls over the forehead, cm
    sweep: float  # -1..1: the fringe is longer on one side
    sides: float  # where the hair ends in front of and above the ears
    nape: float  # where it ends behind
    top: float  # thickness on the crown
    side: float  # thickness beside the head
    lift: float  # extra thickness above the forehead
    curl: float  # 0 straight .. 1 curly: raggedness and waviness
    part: float  # x of the parting; beyond 3: none


@cache
def angles() -> Array:
    """Angles (64,) of the hair's columns, from -pi to pi."""
    return np.linspace(-np.pi, np.pi, COLUMNS).astype(np.float32)


def hairline(style: Style) -> Array:
    """Rest height (64,) above which hair grows from the scalp, by angle."""
    degrees = np.degrees(np.abs(angles()))
    recede = style.temple * np.exp(-(((degrees - 38) / 14) ** 2))
    nape = max(style.nape, -7.5)
    ear = max(style.sides, -1.0)
    knots = [0, 30, 50, 62, 72, 80, 98, 112, 135, 180]
    heights = [
        style.hairline,
        style.hairline - 0.3,
        style.hairline - 1.9,
        3.2,
        ear,
        2.4,
        2.8,
        min(ear, 0.5),
        nape + 1,
        nape,
    ]
    return (np.interp(degrees, knots, heights) + recede).astype(np.float32)


def ends(style: Style) -> Array:
    """Height (64,) at which the hair ends, by angle: the hairline, less the fringe and what falls over the ears."""
    a = angles()
    degrees = np.degrees(a)
    front = np.exp(-((degrees / 44) ** 4)) * (1 + style.sweep * np.sin(np.clip(a * 1.6, -1.5, 1.5)))
    line = hairline(style) - style.fringe * front
    if style.sides < -1:  # long hair: a curtain from the temples backwards
        curtain = smoothstep(42.0, 64.0, np.abs(degrees))
        line = (
            line * (1 - curtain)
            + (style.sides + (style.nape - style.sides) * smoothstep(80, 170, np.abs(degrees))) * curtain
        )
    heights: Array = line.astype(np.float32)
    return heights


def scalp(vertices: Array, angle: NDArray[np.floating], height: NDArray[np.floating]) -> Array:
    """Points of the deformed loft `vertices` at these angles and heights (same shapes), by bilinear look-up."""
    model = head()
    rest = model.rest[: model.rows * model.columns].reshape(model.rows, model.columns, 3)
    grid = vertices[: model.rows * model.columns].reshape(model.rows, model.columns, 3)
    turns = column_angles() % (2 * np.pi)
    column = np.interp(angle % (2 * np.pi), np.append(turns, 2 * np.pi), np.arange(model.columns + 1))
    left = np.minimum(column.astype(int), model.columns - 1)
    t = (column - left)[..., None]
    right = (left + 1) % model.columns
    row = np.empty_like(height)
    for k in np.ndindex(height.shape[1:]):  # a column of hair has one angle: one search for all its heights
        row[(slice(None), *k)] = np.interp(
            -height[(slice(None), *k)], -rest[:, left[(0, *k)], 1], np.arange(model.rows)
        )
    upper = np.minimum(row.astype(int), model.rows - 2)
    s = (row - upper)[..., None]
    top = grid[upper, left] * (1 - t) + grid[upper, right] * t
    low = grid[upper + 1, left] * (1 - t) + grid[upper + 1, right] * t
    points: Array = (top * (1 - s) + low * s).astype(np.float32)
    return points


def shells(style: Style, vertices: Array, rng: np.random.Generator) -> tuple[Array, Array, Triangles]:
    """The hair of a head with deformed `vertices`: points (N, 3), strand coordinates (N, 3), triangles."""
    end = ends(style)
    wave = rng.normal(size=COLUMNS)
    ragged = np.convolve(np.concatenate([wave, wave, wave]), [0.25, 0.5, 0.25], "same")[COLUMNS : 2 * COLUMNS]
    ragged[-1] = ragged[0]
    end = end + ragged.astype(np.float32) * (0.15 + 0.5 * style.curl + 0.35 * min(style.fringe, 1))
    along = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None] ** np.float32(0.9)
    height = np.float32(11.75) + (end[None] - np.float32(11.75)) * along
    angle = np.broadcast_to(angles(), height.shape)
    hang = np.where(
        np.abs(angle) > 0.8, 0.5 if style.sides < -1 else -20.0, 2.0 if style.fringe > 0 else -20.0
    )
    held = np.maximum(height, hang)
    base = scalp(vertices, angle, held)
    fall = held - height
    base[..., 1] -= fall
    out = base - np.array([0, 2.0, -1.0], np.float32)
    out[..., 1] *= np.where(held < 5, 0.3, 1.0)
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    thickness = _thickness(style, angle, height, along)
    sway = 0.06 * style.curl * np.sin(height * 2.3 + 3 * np.sin(angle * 5)) * thickness
    spread = np.minimum(fall, 6) * 0.07 + sway
    tips = smoothstep(2.6, 0.0, height - end[None])  # over the last centimetres strands end one by one
    ragged_ends = 1.7 * tips - 2.6
    parts: list[Array] = []
    strands: list[Array] = []
    triangles: list[Triangles] = []
    for shell in SHELLS:
        lift = (thickness * shell + 0.08 + spread * shell)[..., None]
        parts.append((base + out * lift).reshape(-1, 3))
        strand = angle * 10 + 3.5 * style.sweep * along**2 + style.curl * 0.5 * np.sin(height * 1.4)
        strands.append(
            np.stack([strand, along * 2.2 + 0 * angle, 1.4 * shell + ragged_ends], -1).reshape(-1, 3)
        )
        triangles.append(grid_triangles(ROWS, COLUMNS, closed=False, start=len(triangles) * ROWS * COLUMNS))
    return (
        np.concatenate(parts).astype(np.float32),
        np.concatenate(strands).astype(np.float32),
        np.concatenate(triangles),
    )


def _thickness(style: Style, angle: Array, height: Array, along: Array) -> Array:
    """Distance of the outermost strands from the scalp: full on the crown, little at the hairline and parting."""
    crown = smoothstep(2.0, 8.0, height)
    thick = style.side + (style.top - style.side) * crown
    thick = thick + style.lift * np.exp(-((angle / 0.7) ** 2)) * smoothstep(4.5, 7.5, height)
    free = 0.55 if style.fringe > 0 else 0.12
    open_end = np.where(np.abs(angle) > 0.9, 0.9 if style.sides < -1 else 0.15, free)
    taper = 1 - (1 - open_end) * smoothstep(0.62, 1.0, along)
    x = np.sin(angle) * (12 - height) * 0.8
    parted = 1 - 0.75 * np.exp(-(((x - style.part) / 0.5) ** 2)) * (np.abs(angle) < 1.6) * (style.part < 3)
    thickness: Array = (thick * taper * parted).astype(np.float32)
    return thickness
