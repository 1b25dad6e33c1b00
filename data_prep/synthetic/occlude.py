"""Things held before a face: a hand, a cup, a phone. Drawn flat, as a layer with its own mask."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.mesh import Array

Rng = np.random.Generator
Cover = NDArray[np.uint8]


def occluder(shape: tuple[int, int], box: Array, skin: NDArray[np.floating], rng: Rng) -> tuple[Array, Array]:
    """(colour (H, W, 3) display values, cover (H, W) 0..1) of a thing before part of the face `box`.

    It reaches in from a side or from below, over a fifth to half of the face; `skin` is linear, for hands.
    """
    colour = np.zeros((*shape, 3), np.float32)
    cover = np.zeros(shape, np.uint8)
    side = box[3] - box[1]
    x = (box[0] + box[2]) / 2 + side * rng.choice((-1, 1)) * rng.uniform(0.12, 0.48)
    y = box[1] + side * rng.uniform(0.45, 1.05)
    kind = rng.integers(3)
    if kind == 0:
        _hand(colour, cover, x, y, side, 255 * (skin * 0.8) ** (1 / 2.2), rng)
    elif kind == 1:
        _cup(colour, cover, x, y, side * rng.uniform(0.35, 0.6), rng)
    else:
        _phone(colour, cover, x, y, side * rng.uniform(0.5, 0.8), rng)
    soft = (cv2.GaussianBlur(cover, (3, 3), 0) / 255).astype(np.float32)
    return colour, soft


def _hand(
    colour: Array, cover: Cover, x: float, y: float, side: float, tone: NDArray[np.floating], rng: Rng
) -> None:
    """A palm with four fingers, lit from above."""
    lean = rng.uniform(-0.5, 0.5)
    palm = (int(x), int(y + side * 0.35))
    cv2.ellipse(cover, palm, (int(side * 0.24), int(side * 0.3)), np.degrees(lean), 0, 360, 255, -1)
    cv2.ellipse(
        colour, palm, (int(side * 0.24), int(side * 0.3)), np.degrees(lean), 0, 360, tone.tolist(), -1
    )
    arm = (int(x - side * np.sin(lean) * 0.4 * 2), int(y + side * 1.6))
    for target, value in ((cover, 255), (colour, (tone * 0.92).tolist())):
        cv2.line(target, palm, arm, value, int(side * 0.34))
    for k in range(4):
        root = (int(x + side * (k - 1.5) * 0.115), int(y + side * 0.22))
        reach = side * (0.34, 0.42, 0.40, 0.30)[k]
        tip = (int(root[0] + np.sin(lean + (k - 1.5) * 0.09) * reach), int(root[1] - np.cos(lean) * reach))
        cv2.line(cover, root, tip, 255, max(int(side * 0.105), 1), cv2.LINE_AA)
        cv2.line(colour, root, tip, (tone * 0.8).tolist(), max(int(side * 0.115), 1), cv2.LINE_AA)
        cv2.line(colour, root, tip, tone.tolist(), max(int(side * 0.07), 1), cv2.LINE_AA)


def _cup(colour: Array, cover: Cover, x: float, y: float, size: float, rng: Rng) -> None:
    """A mug: a shaded cylinder with a band."""
    tone = rng.uniform(60, 240, 3)
    left, right, top, low = int(x - size / 2), int(x + size / 2), int(y - size * 0.2), int(y + size)
    cv2.rectangle(cover, (left, top), (right, low), 255, -1)
    cv2.ellipse(cover, (int(x), low), (int(size / 2), int(size * 0.14)), 0, 0, 360, 255, -1)
    cv2.ellipse(cover, (int(x), top), (int(size / 2), int(size * 0.1)), 0, 0, 360, 255, -1)
    across = np.clip((np.arange(colour.shape[1]) - x) / (size / 2), -1, 1)
    light = 0.55 + 0.5 * np.sqrt(np.clip(1 - (across + 0.3) ** 2 / 1.7, 0, 1))
    colour[:] = light[None, :, None] * tone
    cv2.ellipse(
        colour, (int(x), top), (int(size * 0.44), int(size * 0.07)), 0, 0, 360, (tone * 0.35).tolist(), -1
    )


def _phone(colour: Array, cover: Cover, x: float, y: float, size: float, rng: Rng) -> None:
    """A phone or a book: a tilted rectangle with a camera or a title."""
    tilt = rng.uniform(-35, 35)
    tone = rng.uniform(15, 220) * (1 + 0.4 * rng.uniform(-1, 1, 3))
    corners = cv2.boxPoints(((x, y), (size * 0.55, size), tilt)).astype(np.int32)
    cv2.fillPoly(cover, [corners], 255, cv2.LINE_AA)
    cv2.fillPoly(colour, [corners], (tone * 0.8).tolist())
    inner = cv2.boxPoints(((x, y), (size * 0.5, size * 0.95), tilt)).astype(np.int32)
    cv2.fillPoly(colour, [inner], tone.tolist())
    lens = corners.astype(float).mean(0) * 0.35 + corners[1] * 0.65
    cv2.circle(colour, (int(lens[0]), int(lens[1])), max(int(size * 0.05), 1), (20, 22, 26), -1)
