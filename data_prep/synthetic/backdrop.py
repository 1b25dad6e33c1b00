"""Where people stand: rooms, streets and gardens drawn with OpenCV, cluttered and out of focus."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.uint8]
Rng = np.random.Generator


def _colour(rng: Rng, low: float = 40, high: float = 230, chroma: float = 0.22) -> tuple[int, int, int]:
    grey = rng.uniform(low, high)
    return tuple(int(v) for v in np.clip(grey * (1 + chroma * rng.uniform(-1, 1, 3)), 0, 255))  # type: ignore[return-value]


def _gradient(height: int, width: int, top: tuple[int, int, int], low: tuple[int, int, int]) -> Canvas:
    t = np.linspace(0, 1, height)[:, None, None]
    rows = np.array(top) * (1 - t) + np.array(low) * t
    return np.broadcast_to(rows, (height, width, 3)).astype(np.uint8).copy()


def _box(canvas: Canvas, x: float, y: float, w: float, h: float, colour: tuple[int, int, int]) -> None:
    cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1, cv2.LINE_AA)


def _window(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    """A window with a frame, bars, and a bright or green outdoors."""
    frame = _colour(rng, 150, 245, 0.06)
    _box(canvas, x - w * 0.06, y - w * 0.06, w * 1.12, h + w * 0.12, frame)
    left, top = max(int(x), 0), max(int(y), 0)
    right, bottom = min(int(x + w), canvas.shape[1]), min(int(y + h), canvas.shape[0])
    if right > left and bottom > top:
        canvas[top:bottom, left:right] = _gradient(
            bottom - top, right - left, _colour(rng, 190, 250, 0.1), _colour(rng, 110, 220, 0.3)
        )
    for k in range(1, int(rng.integers(1, 4)) + 1):
        _box(canvas, x + w * k / 3 - w * 0.02, y, w * 0.04, h, frame)
    _box(canvas, x, y + h * 0.45, w, w * 0.04, frame)


def _shelf(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    """A bookcase: boards, books upright, a few vases."""
    wood = _colour(rng, 50, 170, 0.25)
    _box(canvas, x, y, w, h, tuple(int(0.55 * v) for v in wood))  # type: ignore[arg-type]
    rows = int(rng.integers(2, 5))
    for k in range(rows):
        low = y + h * (k + 1) / rows
        at = x
        while at < x + w:
            thick = w * rng.uniform(0.03, 0.1)
            tall = h / rows * rng.uniform(0.5, 0.9)
            if rng.random() < 0.85:
                _box(canvas, at, low - tall, thick * 0.92, tall, _colour(rng, 30, 220, 0.4))
            at += thick
        _box(canvas, x, low - h * 0.02, w, h * 0.025, wood)


def _painting(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    _box(canvas, x - 0.08 * w, y - 0.08 * w, 1.16 * w, h + 0.16 * w, _colour(rng, 20, 240, 0.15))
    _box(canvas, x, y, w, h, _colour(rng, 80, 240, 0.4))
    for _ in range(4):
        centre = (int(x + w * rng.random()), int(y + h * rng.random()))
        axes = (int(w * rng.uniform(0.06, 0.25)), int(h * rng.uniform(0.06, 0.25)))
        cv2.ellipse(
            canvas, centre, axes, rng.uniform(0, 180), 0, 360, _colour(rng, 40, 230, 0.7), -1, cv2.LINE_AA
        )


def _text(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    """A notice board or sign with lines of letters."""
    paper = _colour(rng, 150, 250, 0.25)
    ink = _colour(rng, 10, 90, 0.5)
    _box(canvas, x, y, w, h, paper)
    letters = "ABCDEFGHKLMNOPRSTUVWXYZ 0123456789"
    for k in range(int(rng.integers(1, 5))):
        line = "".join(letters[i] for i in rng.integers(0, len(letters), 9))
        size = max(w / 260, 0.15) * rng.uniform(0.8, 1.6)
        start = (int(x + 0.06 * w), int(y + h * (0.25 + 0.2 * k)))
        cv2.putText(
            canvas, line, start, cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(int(size * 2), 1), cv2.LINE_AA
        )


def _plant(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    """Leaves out of a pot."""
    green = np.array([rng.uniform(30, 90), rng.uniform(80, 150), rng.uniform(30, 80)])
    for _ in range(int(rng.integers(12, 26))):
        angle = rng.uniform(-1.3, 1.3)
        reach = h * rng.uniform(0.3, 0.8)
        tip = (int(x + w / 2 + np.sin(angle) * reach * 0.6), int(y + h * 0.75 - np.cos(angle) * reach))
        shade = tuple(int(v) for v in np.clip(green * rng.uniform(0.5, 1.4), 0, 255))
        cv2.ellipse(
            canvas,
            tip,
            (max(int(w * 0.07), 1), max(int(h * 0.16), 1)),
            np.degrees(angle),
            0,
            360,
            shade,
            -1,
            cv2.LINE_AA,
        )
    _box(canvas, x + w * 0.3, y + h * 0.75, w * 0.4, h * 0.25, _colour(rng, 60, 200, 0.4))


def _lamp(canvas: Canvas, rng: Rng, x: float, y: float, w: float, h: float) -> None:
    _box(canvas, x + w * 0.46, y + h * 0.3, w * 0.08, h * 0.7, _colour(rng, 30, 120, 0.1))
    points = [(0.25, 0.0), (0.75, 0.0), (1.0, 0.35), (0.0, 0.35)]
    shape = np.array([[x + w * a, y + h * b] for a, b in points], np.int32)
    cv2.fillPoly(canvas, [shape], (252, 236, int(rng.uniform(170, 225))), cv2.LINE_AA)


def room(height: int, width: int, rng: Rng) -> Canvas:
    """A wall, a floor or a table, and furniture."""
    wall = _colour(rng, 90, 235, 0.10)
    canvas = _gradient(height, width, wall, tuple(int(v * rng.uniform(0.75, 1.0)) for v in wall))  # type: ignore[arg-type]
    if rng.random() < 0.35:  # wallpaper, panels or tiles
        step, darker = rng.uniform(0.04, 0.16) * width, tuple(int(v * rng.uniform(0.8, 0.95)) for v in wall)
        for k in range(int(width / step) + 1):
            cv2.line(
                canvas,
                (int(k * step), 0),
                (int(k * step), height),
                darker,
                max(int(step * rng.uniform(0.03, 0.3)), 1),
            )
        if rng.random() < 0.5:
            for k in range(int(height / step) + 1):
                cv2.line(canvas, (0, int(k * step)), (width, int(k * step)), darker, max(int(step * 0.05), 1))
    things = (_window, _shelf, _painting, _text, _plant, _lamp)
    for _ in range(int(rng.integers(2, 7))):
        thing = things[rng.integers(len(things))]
        w, h = width * rng.uniform(0.12, 0.42), height * rng.uniform(0.18, 0.6)
        thing(
            canvas,
            rng,
            rng.uniform(-0.3 * w, width - 0.7 * w),
            rng.uniform(-0.2 * h, height * 0.75 - 0.4 * h),
            w,
            h,
        )
    if rng.random() < 0.5:
        edge = height * rng.uniform(0.7, 0.95)
        _box(canvas, 0, edge, width, height, _colour(rng, 40, 170, 0.25))
    return canvas


def street(height: int, width: int, rng: Rng) -> Canvas:
    """Sky, house fronts with windows, shop signs, trees."""
    canvas = _gradient(
        height,
        width,
        (int(rng.uniform(120, 190)), int(rng.uniform(165, 210)), int(rng.uniform(205, 245))),
        _colour(rng, 200, 245, 0.05),
    )
    at = -width * 0.1
    while at < width:
        w, top = width * rng.uniform(0.18, 0.45), height * rng.uniform(0.0, 0.45)
        front = _colour(rng, 70, 210, 0.2)
        _box(canvas, at, top, w, height, front)
        pane = _colour(rng, 30, 150, 0.25)
        across, step = int(rng.integers(2, 5)), height * rng.uniform(0.1, 0.2)
        for k in range(across):
            for m in range(int((height - top) / step)):
                _box(
                    canvas,
                    at + w * (k + 0.25) / across,
                    top + step * (m + 0.3),
                    w / across * 0.5,
                    step * 0.5,
                    pane,
                )
        if rng.random() < 0.4:
            _text(canvas, rng, at + 0.1 * w, height * rng.uniform(0.4, 0.7), 0.8 * w, height * 0.12)
        at += w
    if rng.random() < 0.6:
        garden_tree(canvas, rng)
    return canvas


def garden_tree(canvas: Canvas, rng: Rng) -> None:
    """A tree: a trunk under a cloud of leaves."""
    height, width = canvas.shape[:2]
    x, y, size = rng.uniform(0, width), height * rng.uniform(0.1, 0.5), height * rng.uniform(0.15, 0.35)
    _box(canvas, x - size * 0.08, y, size * 0.16, height, (72, 56, 42))
    green = np.array([rng.uniform(40, 110), rng.uniform(80, 150), rng.uniform(30, 80)])
    for _ in range(40):
        where = (int(x + rng.normal() * size * 0.5), int(y + rng.normal() * size * 0.4))
        shade = tuple(int(v) for v in np.clip(green * rng.uniform(0.5, 1.5), 0, 255))
        cv2.circle(canvas, where, max(int(size * rng.uniform(0.06, 0.2)), 1), shade, -1, cv2.LINE_AA)


def garden(height: int, width: int, rng: Rng) -> Canvas:
    """Sky or hedge, lawn, trees."""
    blue = (int(rng.uniform(110, 190)), int(rng.uniform(165, 210)), int(rng.uniform(210, 250)))
    canvas = _gradient(height, width, blue, _colour(rng, 200, 245, 0.05))
    horizon = height * rng.uniform(0.35, 0.75)
    grass = (int(rng.uniform(60, 130)), int(rng.uniform(100, 160)), int(rng.uniform(40, 90)))
    _box(canvas, 0, horizon, width, height, grass)
    for _ in range(int(rng.integers(2, 7))):
        garden_tree(canvas, rng)
    return canvas


def studio(height: int, width: int, rng: Rng) -> Canvas:
    """A plain backdrop with a soft pool of light."""
    base = np.array(_colour(rng, 60, 235, 0.13), np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    away = np.hypot(x - width * rng.uniform(0.2, 0.8), y - height * rng.uniform(0.1, 0.7)) / max(
        height, width
    )
    canvas: Canvas = np.clip(base * (1.12 - 0.45 * away[..., None]), 0, 255).astype(np.uint8)
    return canvas


PLACES = ((room, 0.5), (street, 0.2), (garden, 0.15), (studio, 0.15))


def backdrop(height: int, width: int, rng: Rng, blur: float) -> NDArray[np.float32]:
    """A background (height, width, 3) float32 of display values; `blur` is its defocus, a share of the height.

    Drawn at half size: it is out of focus anyway.
    """
    place = PLACES[rng.choice(len(PLACES), p=[weight for _, weight in PLACES])][0]
    small = place(max(height // 2, 16), max(width // 2, 16), rng)
    if blur > 0:
        cv2.GaussianBlur(small, (0, 0), max(blur * height / 2, 0.3), dst=small)
    full = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    coarse = rng.normal(0, 1, (max(height // 16, 2), max(width // 16, 2), 1)).astype(np.float32)
    full += 1.5 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    return full
