"""Light on a scene, and what a camera makes of it."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.look import LIGHT, Record
from data_prep.synthetic.mesh import Array
from data_prep.synthetic.people import Person
from data_prep.synthetic.render import Layer

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def draw_light(rng: np.random.Generator) -> Record:
    """A key light from above and one side, sky and ground light, sometimes a light from behind."""
    light = np.zeros(1, LIGHT)
    side, up = rng.normal() * 0.65, rng.uniform(0.1, 1.0)
    direction = np.array([np.clip(side, -1.3, 1.3), up, 1.0])
    light["direction"] = direction / np.linalg.norm(direction)
    warm = rng.normal() * 0.06
    light["key"] = rng.uniform(0.55, 1.3) * np.array([1 + warm, 1.0, 1 - warm])
    cool = rng.normal() * 0.06
    ambient = rng.uniform(0.38, 0.75)
    light["above"] = ambient * np.array([1 - cool, 1.0, 1 + cool])
    light["below"] = ambient * rng.uniform(0.45, 0.85) * np.array([1 + 0.5 * warm, 1.0, 1 - 0.5 * warm])
    if rng.random() < 0.35:
        back = np.array(
            [rng.choice((-1.0, 1.0)) * rng.uniform(0.6, 1), rng.uniform(0, 0.6), -rng.uniform(0.2, 0.6)]
        )
        light["rim_direction"] = back / np.linalg.norm(back)
        light["rim"] = rng.uniform(0.3, 1.2)
    return light


def exposure(people: list[Person], layers: list[Layer | None], rng: np.random.Generator) -> np.float32:
    """Gain of a camera that meters on the faces: skin keeps its tone, and nobody is lost in the dark."""
    stops = []
    for person, layer in zip(people, layers, strict=True):
        if layer is not None and layer.skin.any():
            mean = float((layer.linear[layer.skin] @ LUMINANCE).mean())
            tone = float(person.look["skin"][0] @ LUMINANCE)
            stops.append(np.log(0.41 * (tone / 0.33) ** 0.65 / max(mean, 1e-4)))
    level = np.mean(stops) if stops else 0.0
    return np.float32(np.exp(level + np.clip(rng.normal(0, 0.17), -0.3, 0.35)))


def expose(picture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) display values to uint8, with what a camera adds: blur, a cast, grain, sometimes JPEG blocks."""
    scale = picture.shape[0] / 256
    cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.35, 0.6 + 0.35 * min(scale, 1.5))), dst=picture)
    picture *= (1 + rng.normal(0, 0.02, 3)).astype(np.float32)
    picture += grain(picture.shape, rng) * np.float32(rng.uniform(0.8, 4.5))
    image = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        quality = int(rng.integers(35, 85))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    return np.ascontiguousarray(image)


@cache
def _sheet() -> Array:
    return np.random.default_rng(7).standard_normal(1 << 21).astype(np.float32)


def grain(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Unit normal noise: a window at a random place of one fixed sheet, ten times faster than drawing it anew."""
    sheet, total = _sheet(), int(np.prod(shape))
    start = int(rng.integers(max(len(sheet) - total, 1)))
    return np.resize(
        sheet[start : start + total], shape
    )  # repeats where the picture is larger than the sheet
