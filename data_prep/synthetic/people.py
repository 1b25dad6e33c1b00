"""People: everything about a person that stays the same from picture to picture, drawn from (seed, identity)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.fields import IDENTITY, STRETCH
from data_prep.synthetic.hair import Style, hairline
from data_prep.synthetic.look import LOOK, Record
from data_prep.synthetic.mesh import Array
from data_prep.synthetic.model import head


class Person(NamedTuple):
    """One identity."""

    identity: int
    shape: Array  # (K,) coefficients, about standard normal
    look: Record  # (1,) of LOOK
    style: Style | None  # None: bald or shaven
    glasses: float  # probability of wearing glasses in a picture
    frame: tuple[int, bool]  # shape and heaviness of the glasses
    hats: float  # probability of wearing a hat
    build: float  # width of the shoulders, 1 = typical


# Skin from light to dark, hair, irises: display colours (sRGB), from everyday photographs.
SKIN = np.array(
    [[238, 210, 194], [230, 194, 172], [220, 178, 152], [204, 158, 130], [180, 132, 104], [150, 106, 82],
     [118, 82, 64], [92, 64, 52]]
)  # fmt: skip
HAIR = np.array([[26, 21, 20], [48, 34, 27], [82, 56, 39], [120, 84, 54], [176, 136, 84], [142, 70, 38]])
GREY = np.array([176, 174, 170])
IRIS = np.array([[64, 40, 24], [92, 62, 36], [112, 98, 58], [92, 118, 96], [98, 132, 160], [120, 134, 142]])
CLOTH = np.array(
    [[236, 236, 232], [40, 44, 52], [62, 84, 126], [140, 46, 48], [52, 96, 76], [196, 168, 120], [120, 126, 134],
     [212, 132, 62], [96, 62, 110], [34, 58, 92], [222, 196, 206], [150, 176, 196]]
)  # fmt: skip


def linear(colour: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Display values 0..255 to linear 0..1."""
    return (np.asarray(colour, np.float64) / 255) ** 2.2


@lru_cache(maxsize=4096)
def person(seed: int, identity: int) -> Person:
    """The person `identity` of the world `seed`. Treat the result as read-only: it is cached."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1, identity]))
    masculine = rng.random() < 0.5
    age = float(rng.beta(1.3, 1.9))
    shape = _shape(rng, masculine, age)
    look = np.zeros(1, LOOK)
    dark = _complexion(rng, look, age)
    style = _style(rng, masculine, age, dark)
    _hair_colour(rng, look, age, dark)
    _features(rng, look, masculine, age)
    look["scalp"] = 0.0 if style is None else 0.92
    line = Style(9.0, 2.0, 0, 0, -1, -6, 0.1, 0.1, 0, 0, 9) if style is None else style
    if style is None:
        look["scalp"] = 0.4 * float(rng.random() < 0.5)  # shaven: a shade of stubble
    look["hairline"] = hairline(line)
    frame = (int(rng.integers(3)), bool(rng.random() < 0.5))
    glasses = float(rng.random() < 0.22 + 0.25 * age) * 0.8
    build = 1.04 + 0.05 * rng.normal() if masculine else 0.9 + 0.05 * rng.normal()
    look.setflags(write=False)
    return Person(identity, shape, look, style, glasses, frame, float(rng.random() < 0.2) * 0.6, build)


# What makes a face look masculine (+) or feminine (-), and old (+), in standard deviations of a field.
MASCULINE = {"brow ridge": 0.8, "jaw angle": 0.6, "chin width": 0.6, "chin length": 0.35, "nose width": 0.4,
             "eye opening": -0.6, "upper lip": -0.5, "lower lip": -0.4, "brow height": -0.6, "head width": 0.3,
             "cheekbones": -0.3}  # fmt: skip
OLD = {"double chin": 0.5, "upper lip": -0.5, "eye opening": -0.5, "nose length": 0.4, "cheek fullness": -0.3}


def _shape(rng: np.random.Generator, masculine: bool, age: float) -> Array:
    names = [*IDENTITY, *STRETCH]
    shape = np.clip(rng.normal(size=len(names)), -2.2, 2.2) * 0.9
    for table, amount in ((MASCULINE, 1.0 if masculine else -1.0), (OLD, 2 * age - 0.8)):
        for name, weight in table.items():
            shape[names.index(name)] += weight * amount
    return shape.astype(np.float32)


def _complexion(rng: np.random.Generator, look: Record, age: float) -> float:
    """Skin and lips; returns how dark the skin is, 0..1."""
    dark = float(rng.beta(1.0, 1.25))
    tone = np.array([np.interp(dark * (len(SKIN) - 1), np.arange(len(SKIN)), SKIN[:, c]) for c in range(3)])
    look["skin"] = linear(np.clip(tone + rng.normal(0, 4, 3), 0, 255))
    look["redness"] = rng.uniform(0.2, 1.0) * (1 - 0.6 * dark)
    look["freckles"] = max(rng.normal(-0.4, 0.6), 0) * (dark < 0.35)
    look["gloss"] = rng.uniform(0.03, 0.11)
    look["lips"] = look["skin"] * np.array([0.74, 0.35, 0.37]) * rng.uniform(0.85, 1.1)
    look["grain"] = rng.uniform(0, 256)
    look["age"] = age
    return dark


def _hair_colour(rng: np.random.Generator, look: Record, age: float, dark: float) -> None:
    weights = np.array([3, 3, 2, 1.2, 1.2, 0.6]) if dark < 0.45 else np.array([6, 2, 0.4, 0, 0.1, 0])
    colour = HAIR[rng.choice(len(HAIR), p=weights / weights.sum())] + rng.normal(0, 5, 3)
    grey = np.clip((age - 0.55) * 2.6 + rng.normal(0, 0.25), 0, 0.95) if age > 0.45 else 0.0
    colour = colour * (1 - grey) + GREY * grey
    look["hair"] = linear(np.clip(colour, 8, 255))
    look["brow"] = linear(np.clip(colour * (0.8 - 0.15 * (colour.mean() > 100)), 8, 255))
    light = rng.random() < 0.75 - dark * 1.4
    look["iris"] = linear(IRIS[rng.integers(2, 6) if light else rng.integers(0, 2)]) * 1.1


def _style(rng: np.random.Generator, masculine: bool, age: float, dark: float) -> Style | None:
    """A haircut by sex and age, with its own lengths."""
    if masculine and rng.random() < 0.06 + 0.22 * age:
        return None
    line = rng.normal(7.2, 0.35) + (age * 0.8 if masculine else 0)
    temple = max(rng.normal(0.3 + 1.4 * age, 0.4), 0) if masculine else 0.0
    curl = float(rng.random() ** 2 if dark < 0.55 else rng.uniform(0.5, 1))
    sweep = rng.uniform(-0.8, 0.8)
    part = rng.uniform(-2.6, 2.6) if rng.random() < 0.5 else 9.0
    fringe = float(rng.random() < 0.4) * rng.uniform(0.8, 3.4)
    kind = rng.random()
    if (masculine and kind < 0.9) or (not masculine and kind < 0.2):  # short
        top, side = rng.uniform(0.5, 2.3), rng.uniform(0.2, 0.7)
        return Style(
            line,
            temple,
            fringe * 0.7,
            sweep,
            rng.uniform(-0.9, 1.0),
            -6.0,
            top,
            side,
            rng.uniform(0, 1.3),
            curl,
            part,
        )
    if kind < 0.4 or curl > 0.75:  # a round head of curls, or pinned up
        top = rng.uniform(1.0, 3.2)
        return Style(
            line,
            temple,
            fringe * 0.5,
            sweep,
            rng.uniform(-0.9, 0),
            -6.5,
            top,
            top * rng.uniform(0.3, 0.8),
            0.3,
            curl,
            9.0,
        )
    end = rng.uniform(-24, -8)  # from a bob to below the shoulders
    return Style(
        line,
        temple,
        fringe,
        sweep,
        end,
        end - 1,
        rng.uniform(0.7, 1.5),
        rng.uniform(1.2, 2.4),
        0.2,
        curl,
        part,
    )


def _features(rng: np.random.Generator, look: Record, masculine: bool, age: float) -> None:
    """Brows, lashes, make-up, beard, lines of age, frame of the glasses."""
    look["brow_thickness"] = rng.uniform(0.75, 1.35) if masculine else rng.uniform(0.5, 0.95)
    look["brow_arch"] = rng.uniform(0.3, 0.9) if masculine else rng.uniform(0.6, 1.3)
    look["brow_density"] = rng.uniform(0.72, 0.95)
    look["lashes"] = rng.uniform(0, 0.35) if masculine else rng.uniform(0.35, 1)
    makeup = 0.0 if masculine or rng.random() < 0.4 else rng.uniform(0.2, 1)
    look["makeup"] = makeup
    if makeup:
        stick = linear(
            np.array([[168, 40, 60], [190, 76, 86], [142, 36, 70], [196, 96, 84]][rng.integers(4)])
        )
        look["lips"] = look["lips"] * (1 - 0.75 * makeup) + stick * 0.75 * makeup
        look["eyeshadow"] = linear(np.array([[96, 70, 84], [110, 84, 64], [80, 88, 108]][rng.integers(3)]))
    if masculine:
        kind = rng.random()
        look["stubble"] = rng.uniform(0.1, 0.9) if kind < 0.45 else 0.08
        look["moustache"] = float(0.4 < kind < 0.55) * 0.9
        look["goatee"] = float(0.5 < kind < 0.6) * 0.9
        look["beard"] = float(kind > 0.78) * rng.uniform(0.7, 1)
    for name in ("forehead_lines", "crow_feet", "folds"):
        look[name] = max(age - 0.3, 0) * rng.uniform(0.3, 1.1)
    look["frame"] = linear(
        np.array([[24, 22, 22], [70, 46, 30], [120, 100, 60], [130, 132, 138]][rng.integers(4)])
    )


def displacement(shape: Array, vertex: int) -> Array:
    """How far (3,) cm an identity moves one vertex of the template."""
    moved: Array = np.einsum("k,kd->d", shape, head().identity[:, vertex]).astype(np.float32)
    return moved
