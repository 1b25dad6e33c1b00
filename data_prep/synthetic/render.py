"""One person in front of a camera: meshes, pose, rasterising, light. The result is a layer of a picture."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic import attire, shade
from data_prep.synthetic.hair import shells
from data_prep.synthetic.landmarks import eye_vertices, landmark_vertices
from data_prep.synthetic.look import Record, textures
from data_prep.synthetic.mesh import SLIT, Array, smoothstep
from data_prep.synthetic.model import deform, head
from data_prep.synthetic.people import Person, displacement
from data_prep.synthetic.raster import buffers, rasterise, vertex_normals

PIVOT = np.array([0.0, -7.0, -1.5], np.float32)  # the head turns about the top of the neck


class Wear(NamedTuple):
    """What a person wears in one picture, and in which state the face is."""

    action_units: Array  # (12,) 0..5
    pose: Array  # (3,) yaw, pitch, roll in degrees
    gaze: Array  # (2,) displacement of the irises, cm
    glasses: int = 0  # 0 none, 1 clear, 2 sunglasses
    hat: int = -1  # -1 none, 0 knitted, 1 with a peak
    mask: bool = False
    seed: int = 0  # of the hair's ragged ends


class Camera(NamedTuple):
    """A pinhole camera and where the head is before it."""

    focal: float  # pixels
    centre: tuple[float, float]  # of projection, pixels
    place: tuple[float, float, float]  # of the head's origin: right, up, away, cm
    width: int
    height: int


class Layer(NamedTuple):
    """A rendered person: buffers of a region of the picture, and the points the ground truth is read from."""

    left: int
    top: int
    ids: NDArray[np.int32]  # (h, w), -1: nothing
    nearest: Array  # (h, w) inverse depth
    linear: Array  # (h, w, 3)
    skin: NDArray[np.bool_]  # (h, w) head skin
    pixels: Array  # (V, 2) projected template vertices, picture pixels
    depth: Array  # (V,)
    facing: NDArray[np.bool_]  # (V,) towards the camera


def rotation(pose: NDArray[np.floating]) -> Array:
    """R (3, 3) = Ry(yaw) Rx(-pitch) Rz(-roll) of column vectors; yaw > 0 turns the nose to the picture's right,
    pitch > 0 lifts it, roll > 0 tilts the head clockwise in the picture.
    """
    yaw, pitch, roll = np.radians(pose)
    cy, sy, cp, sp, cr, sr = (
        np.cos(yaw),
        np.sin(yaw),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(roll),
        np.sin(roll),
    )
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    matrix: Array = (turn @ nod @ tilt).astype(np.float32)
    return matrix


class Parts(NamedTuple):
    """All meshes of a person in one list of vertices."""

    rest: Array
    live: Array
    triangles: NDArray[np.int32]
    kinds: NDArray[np.int32]
    both: NDArray[np.bool_]  # (T,) seen from both sides
    height: Array  # (N,) says how far a point goes with the head, how far with the shoulders


def assemble(person: Person, wear: Wear, vertices: Array) -> Parts:
    """Head, shoulders, hair and what is worn, in head coordinates."""
    model = head()
    body, body_triangles = attire.shoulders()
    wide = body * np.array([person.build, 1, 1], np.float32)
    pieces = [(model.rest, vertices, model.triangles, shade.SKIN), (body, wide, body_triangles, shade.BODY)]
    if person.style is not None:
        style = person.style
        if wear.hat >= 0:
            style = style._replace(
                top=0.2, lift=0.0, side=min(style.side, 0.8), fringe=min(style.fringe, 1.0)
            )
        points, strands, triangles = shells(style, vertices, np.random.default_rng(wear.seed))
        pieces.append((strands, points, triangles, shade.HAIR))
    bridge = displacement(person.shape, int(landmark_vertices()[28]))
    if wear.glasses:
        for (points, triangles), kind in zip(
            attire.glasses(*person.frame), (shade.FRAME, shade.LENS), strict=True
        ):
            if kind == shade.FRAME or wear.glasses == 2:
                pieces.append((points, points + bridge, triangles, kind))
    if wear.hat >= 0:
        points, triangles = attire.hat(wear.hat)
        grow = 1.02 + 0.035 * np.maximum(person.shape[-3:], 0)
        pieces.append((points, points * grow.astype(np.float32), triangles, shade.HAT))
    if wear.mask:
        points, triangles = attire.mask(vertices)
        pieces.append((points, points, triangles, shade.MASK))
    starts = np.cumsum([0] + [len(piece[0]) for piece in pieces])
    kinds = np.concatenate([np.full(len(t), kind, np.int32) for _, _, t, kind in pieces])
    return Parts(
        np.concatenate([piece[0] for piece in pieces]).astype(np.float32),
        np.concatenate([piece[1] for piece in pieces]).astype(np.float32),
        np.concatenate([piece[2] + start for piece, start in zip(pieces, starts, strict=False)]).astype(
            np.int32
        ),
        kinds,
        ~np.isin(kinds, (shade.SKIN, shade.BODY, shade.MASK)),
        np.concatenate([(live if kind == shade.HAIR else rest)[:, 1] for rest, live, _, kind in pieces]),
    )


def place(parts: Parts, pose: Array, where: tuple[float, float, float]) -> Array:
    """View coordinates (N, 3): the head turned by `pose`, the shoulders by half of its yaw, the neck in between."""
    follow = smoothstep(-18.5, -12.0, parts.height)[:, None].astype(np.float32)
    centred = parts.live - PIVOT
    turned = centred @ rotation(pose).T
    body = centred @ rotation(np.array([pose[0] * 0.5, 0, 0])).T
    offset = PIVOT + np.array([where[0], where[1], -where[2]], np.float32)
    return (turned * follow + body * (1 - follow) + offset).astype(np.float32)


def dressed_look(person: Person, wear: Wear, vertices: Array) -> Record:
    """The person's look in one picture: irises, teeth, lines drawn by the action units."""
    look = person.look.copy()
    eyes = [np.array([x, 0.02]) + displacement(person.shape, v)[:2] + wear.gaze
            for x, v in zip((-3.15, 3.15), eye_vertices(), strict=True)]  # fmt: skip
    look["eyes"] = np.concatenate(eyes)
    marks = landmark_vertices()
    gap = vertices[marks[62], 1] - vertices[marks[66], 1]
    look["mouth"] = (SLIT - 0.32 + displacement(person.shape, int(marks[62]))[1], gap - 0.06)
    unit = dict(zip((1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26), wear.action_units / 5, strict=True))
    look["forehead_lines"] += 0.9 * max(unit[1], unit[2])
    look["frown_lines"] += 1.0 * unit[4] + 0.4 * unit[9]
    look["crow_feet"] += 0.9 * unit[6]
    look["folds"] += 0.8 * max(unit[12], 0.9 * unit[9]) + 0.3 * unit[15]
    return look


def render(person: Person, wear: Wear, camera: Camera, light: Record, cloth: Record) -> Layer | None:
    """Draw one person; None when nothing of them is in the picture. `cloth` (1,) of LOOK carries the clothes."""
    vertices = deform(person.shape, wear.action_units)
    parts = assemble(person, wear, vertices)
    view = place(parts, wear.pose, camera.place)
    depth = -view[:, 2]
    scale = (camera.focal / depth)[:, None]
    pixels = np.array(camera.centre, np.float32) + view[:, :2] * scale * np.array([1, -1], np.float32)
    pixels = pixels.astype(np.float32)
    columns, rows = np.ascontiguousarray(pixels.T)  # numpy reduces a contiguous axis ten times faster
    low = np.maximum(np.floor([columns.min(), rows.min()]).astype(int) - 2, 0)
    high = np.minimum(np.ceil([columns.max(), rows.max()]).astype(int) + 2, (camera.width, camera.height))
    if (high <= low).any():
        return None
    look = dressed_look(person, wear, vertices)
    for name in ("cloth", "cloth2", "pattern", "pattern_scale", "neck_depth", "neck_width", "collar"):
        look[name] = cloth[name]
    normals = vertex_normals(view, parts.triangles)
    ids, weights, nearest = buffers(high[1] - low[1], high[0] - low[0])
    local = pixels - low.astype(np.float32)
    tiles = textures()
    rasterise(
        local,
        depth,
        parts.triangles,
        parts.both,
        parts.kinds == shade.HAIR,
        parts.rest,
        tiles[2],
        ids,
        weights,
        nearest,
    )
    linear = np.zeros((*ids.shape, 3), np.float32)
    per_cm = camera.focal / camera.place[2]
    lit = np.ones_like(nearest)
    shade.cast_shadows(nearest, light["direction"][0], np.float32(per_cm), lit)
    lit = _average(lit, nearest, 0.25 * per_cm)
    around = _average(nearest, nearest, 0.8 * per_cm)
    shade.shade(
        ids, weights, nearest, around, lit, parts.triangles, parts.kinds, parts.rest, parts.live, normals,
        look, light, tiles, linear,
    )  # fmt: skip
    count = len(vertices)
    to_camera = -np.einsum("vd,vd->v", view[:count], normals[:count])
    skin = (ids >= 0) & (ids < len(head().triangles))
    return Layer(
        int(low[0]), int(low[1]), ids, nearest, linear, skin, pixels[:count], depth[:count], to_camera > 0
    )


def _average(values: Array, nearest: Array, radius: float) -> Array:
    """Mean of `values` over a square of this radius (pixels), over what is there."""
    side = 2 * max(round(radius), 1) + 1
    there = (nearest > 0).astype(np.float32)
    total, share = cv2.blur(values * there, (side, side)), cv2.blur(there, (side, side))
    return (total / np.maximum(share, 1e-3)).astype(np.float32)


def seen(layer: Layer, index: NDArray[np.integer], tolerance: float = 0.6) -> NDArray[np.bool_]:
    """Which of the vertices `index` lie in the picture and are not behind the person's own head, hair or glasses."""
    height, width = layer.ids.shape
    x = np.floor(layer.pixels[index, 0]).astype(int) - layer.left
    y = np.floor(layer.pixels[index, 1]).astype(int) - layer.top
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    near = layer.nearest[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    front = (near <= 0) | (layer.depth[index] < 1 / np.maximum(near, 1e-9) + tolerance)
    visible: NDArray[np.bool_] = inside & front
    return visible
