"""Pictures: who stands where, in which light, before what."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from data_prep.synthetic import affect
from data_prep.synthetic.backdrop import backdrop
from data_prep.synthetic.camera import draw_light, expose, exposure
from data_prep.synthetic.config import SyntheticConfig
from data_prep.synthetic.look import LOOK, Record
from data_prep.synthetic.occlude import occluder
from data_prep.synthetic.people import CLOTH, Person, linear, person
from data_prep.synthetic.render import Camera, Layer, Wear, render
from data_prep.synthetic.shade import develop
from data_prep.synthetic.truth import Picture, face_box, face_truth

FACE_HEIGHT = 18.6  # cm from the top to the bottom of the face box, on average


class Sitter(NamedTuple):
    """A person with the state, place and clothes of one picture."""

    person: Person
    wear: Wear
    camera: Camera
    cloth: Record
    occluded: bool


def portrait(seed: int, index: int, cfg: SyntheticConfig) -> Picture:
    """Picture `index` of the portraits of world `seed`: one person, head and shoulders, (size, size)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2, index]))
    who = cfg.identity_start + int(rng.integers(cfg.identity_count))
    size = cfg.size
    distance = float(rng.uniform(55, 170))
    focal = size * rng.uniform(*cfg.face) * distance / FACE_HEIGHT
    centre = size * np.array([0.5 + rng.normal() * 0.035, 0.47 + rng.normal() * 0.03])
    # The middle of the face (y = -3 cm) is to appear at `centre`; the optical axis goes through the middle.
    right, up = (centre[0] - size / 2) * distance / focal, (size / 2 - centre[1]) * distance / focal + 3.0
    camera = Camera(focal, (size / 2, size / 2), (right, up, distance), size, size)
    sitter = _sitter(seed, who, camera, cfg, rng)
    return _compose([sitter], size, size, float(rng.uniform(0.005, 0.05)), rng)


def photograph(seed: int, index: int, cfg: SyntheticConfig) -> Picture:
    """Picture `index` of the photographs of world `seed`: people in a scene, (height, width)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3, index]))
    width, height = cfg.width, cfg.height
    count = int(rng.integers(cfg.people[0], cfg.people[1] + 1))
    sitters = []
    ids = rng.choice(cfg.identity_count, count, replace=cfg.identity_count < count)
    order = rng.permutation(count)
    largest = {1: 0.50, 2: 0.40, 3: 0.34, 4: 0.30}[count]
    for k in range(count):
        face = height * rng.uniform(0.08 if count > 1 else 0.16, largest)
        x = width * (order[k] + 0.5 + rng.uniform(-0.28, 0.28)) / count
        y = height * rng.uniform(0.24, 0.46)
        distance = float(rng.uniform(90, 110)) * 0.4 * height / face
        focal = face * distance / FACE_HEIGHT
        right, up = (x - width / 2) * distance / focal, (height / 2 - y) * distance / focal + 3.0
        camera = Camera(focal, (width / 2, height / 2), (right, up, distance), width, height)
        sitters.append(_sitter(seed, cfg.identity_start + int(ids[k]), camera, cfg, rng))
    sitters.sort(key=lambda s: -s.camera.place[2])
    return _compose(sitters, height, width, float(rng.uniform(0.0, 0.012)), rng)


def _sitter(
    seed: int, identity: int, camera: Camera, cfg: SyntheticConfig, rng: np.random.Generator
) -> Sitter:
    who = person(seed, identity)
    yaw = rng.uniform(-1, 1) * cfg.yaw
    pitch = np.clip(rng.normal() * 0.45, -1, 1) * cfg.pitch
    roll = np.clip(rng.normal() * 0.4, -1, 1) * cfg.roll
    hidden = rng.random() < cfg.occlusion
    masked = hidden and rng.random() < 0.2
    glasses = 0
    if rng.random() < who.glasses:
        glasses = 1
    elif rng.random() < 0.025:
        glasses = 2
    hat = int(rng.integers(2)) if rng.random() < who.hats else -1
    wear = Wear(
        affect.draw(rng, cfg.expression), np.array([yaw, pitch, roll], np.float32),
        (rng.normal(size=2) * (0.16, 0.06)).clip(-0.3, 0.3).astype(np.float32), glasses, hat, masked,
        int(who.look["grain"][0] * 1000),
    )  # fmt: skip
    return Sitter(who, wear, camera, _clothes(rng), hidden and not masked)


def _clothes(rng: np.random.Generator) -> Record:
    cloth = np.zeros(1, LOOK)
    first, second = rng.choice(len(CLOTH), 2, replace=False)
    cloth["cloth"], cloth["cloth2"] = linear(CLOTH[first]), linear(CLOTH[second])
    cloth["pattern"] = rng.choice(5, p=(0.5, 0.14, 0.1, 0.1, 0.16))
    cloth["pattern_scale"] = rng.uniform(1.2, 4.5)
    cloth["neck_depth"] = rng.uniform(0.2, 2.0) if rng.random() < 0.6 else rng.uniform(3, 8)
    cloth["neck_width"] = rng.uniform(4.0, 7.0)
    cloth["collar"] = float(rng.random() < 0.5)
    return cloth


def _compose(
    sitters: list[Sitter], height: int, width: int, blur: float, rng: np.random.Generator
) -> Picture:
    """Draw the background and the people, far to near, and read the ground truth off the layers."""
    picture = backdrop(height, width, rng, blur)
    light = draw_light(rng)
    owner = np.full((height, width), -1, np.int16)
    layers: list[Layer | None] = [render(s.person, s.wear, s.camera, light, s.cloth) for s in sitters]
    gain = exposure([s.person for s in sitters], layers, rng)
    picture *= np.float32(np.clip(rng.normal(1.0, 0.1), 0.8, 1.2))
    for k, (sitter, layer) in enumerate(zip(sitters, layers, strict=True)):
        if layer is None:
            continue
        there = layer.ids >= 0
        rows, columns = layer.ids.shape
        window = np.s_[layer.top : layer.top + rows, layer.left : layer.left + columns]
        alpha = np.clip(cv2.blur(there.astype(np.float32), (3, 3)) * 1.5 - 0.5, 0, 1) * there
        develop(layer.linear, layer.ids, gain, picture[window], alpha)
        owner[window][there] = k
        if sitter.occluded:
            box = face_box(layer)
            colour, cover = occluder((height, width), box, sitter.person.look["skin"][0], rng)
            picture += (colour - picture) * cover[..., None]
            owner[cover > 0.5] = -2 - k
    image = expose(picture, rng)
    faces = [
        face_truth(s.person, s.wear, layer, (owner > k) | (owner <= -2 - k))
        for k, (s, layer) in enumerate(zip(sitters, layers, strict=True))
        if layer is not None
    ]
    return Picture(image, tuple(faces))
