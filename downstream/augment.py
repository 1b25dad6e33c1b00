"""Augmentation of labelled pictures: a pure function of (seed, step); labels follow by ``Task.move``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from downstream.recipe import Augmentation
from downstream.tasks.task import SIDE, Array
from pretrain.views import BOX_NUMBERS, ViewParameters, blur, colour, crop_boxes

RATIO = (3 / 4, 4 / 3)
"""Width / height of a random resized crop, torchvision's."""


@dataclass(frozen=True)
class Moves:
    """Augmentation of one batch: mirror first, then map by the affine, then colour and blur.

    Attributes:
        flipped: (B,) bool.
        affine: (B, 2, 3) float64, old to new crop pixels.
        look: Colour jitter and blur; its boxes are not used.
    """

    flipped: NDArray[np.bool_]
    affine: Array
    look: ViewParameters


def draw(augmentation: Augmentation, count: int, seed: int, step: int) -> Moves:
    """The augmentation of the ``count`` pictures of a step, in crop pixels, about the crop's centre."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1, step]))
    angle = np.radians(rng.uniform(-augmentation.rotation, augmentation.rotation, count))
    zoom = rng.uniform(1 - augmentation.scale, 1 + augmentation.scale, count)
    shift = rng.uniform(-augmentation.shift, augmentation.shift, (count, 2)) * SIDE
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    centre = np.full(2, SIDE / 2)
    offset = centre + shift - linear @ centre
    flipped = (rng.random(count) < 0.5) & augmentation.flip
    affine = np.concatenate([linear, offset[..., None]], axis=2)
    look = _look(augmentation, count, rng)
    if augmentation.crop:
        affine = _cropped(affine, augmentation.crop, rng)
    return Moves(flipped, affine, look)


def _cropped(affine: Array, scale: tuple[float, float], rng: np.random.Generator) -> Array:
    """(B, 2, 3), then a random box of the crop enlarged to the whole of it."""
    boxes = crop_boxes(rng.random((len(affine), BOX_NUMBERS)), (SIDE, SIDE), scale, RATIO)
    corner, sides = boxes[:, 1::-1], boxes[:, :1:-1]  # x before y
    moved = affine - np.concatenate([np.zeros((len(affine), 2, 2)), corner[..., None]], axis=2)
    return np.asarray(moved * (SIDE / sides)[..., None], np.float64)


def _look(augmentation: Augmentation, count: int, rng: np.random.Generator) -> ViewParameters:
    strength = np.array([augmentation.brightness, augmentation.contrast, augmentation.saturation])
    low, high = np.maximum(0, 1 - strength), 1 + strength
    factors = rng.uniform(low, high, (count, 3))
    hue = rng.uniform(-augmentation.hue, augmentation.hue, (count, 1))
    blurred, sigma = rng.random(count) < augmentation.blur, rng.uniform(*augmentation.blur_sigma, count)
    # A jitter of no strength would cost four passes over the pixels for nothing.
    jittered = bool(strength.any() or augmentation.hue)
    return ViewParameters(
        box=np.zeros((count, 4), np.int64),
        flip=np.zeros(count, np.bool_),
        jitter=np.full(count, jittered),
        order=np.argsort(rng.random((count, 4)), axis=1, kind="stable"),
        factors=np.concatenate([factors, hue], axis=1).astype(np.float32),
        grey=np.zeros(count, np.bool_),
        sigma=np.where(blurred, sigma, 0).astype(np.float32),
        solarize=np.zeros(count, np.bool_),
    )


def augment(images: Tensor, moves: Moves) -> Tensor:
    """(B, 3, s, s) uint8 -> float32 0..255 after ``moves``; what lies outside repeats the border."""
    flipped = torch.as_tensor(moves.flipped, device=images.device)[:, None, None, None]
    images = torch.where(flipped, images.flip(-1), images).float()
    # grid_sample wants, for each new pixel, where to look, in coordinates from -1 to 1.
    unit = np.array([[2 / SIDE, 0, -1], [0, 2 / SIDE, -1], [0, 0, 1]])
    square = np.concatenate([moves.affine, np.broadcast_to([[[0, 0, 1]]], (len(moves.affine), 1, 3))], axis=1)
    look = np.linalg.inv(unit @ square @ np.linalg.inv(unit))[:, :2]
    theta = torch.as_tensor(look, dtype=torch.float32, device=images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return 255 * blur(colour((moved / 255).clamp_(0, 1), moves.look), moves.look.sigma)
