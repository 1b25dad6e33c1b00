"""Anchors: the places and sizes that a RetinaFace's outputs are relative to."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Anchors:
    """The anchors of one network, level by level in the order of its outputs; one value a level each.

    Within a level they go row by row, then all sides of a cell.
    """

    strides: tuple[int, ...]
    """Side of a level's cell, px."""
    first: tuple[float, ...]
    """x and y of the middle of a level's first cell, px."""
    sides: tuple[tuple[float, ...], ...]
    """Sides of a level's square anchors, px."""
    variances: tuple[float, float] = (1.0, 1.0)
    """Factors of the outputs for places and for sizes."""
    inclusive: bool = False
    """Do boxes end at their last pixel, so that one of n pixels is n - 1 wide?"""

    def at(self, height: int, width: int, device: torch.device) -> Tensor:
        """(A, 4) float64: centre x, y and sides of the anchors of a picture, px. Kept for the next call."""
        return _at(self, height, width, device)

    def boxes(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """(..., 4) offsets relative to (..., 4) anchors -> x0, y0, x1, y1 px (the SSD parametrisation)."""
        centres = anchors[..., :2] + anchors[..., 2:] * offsets[..., :2] * self.variances[0]
        sides = anchors[..., 2:] * torch.exp(offsets[..., 2:] * self.variances[1])
        halves = (sides - float(self.inclusive)) / 2
        return torch.cat([centres - halves, centres + halves], dim=-1)

    def points(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """(M, 10) offsets relative to (M, 4) anchors -> (M, 5, 2) x, y px."""
        return anchors[:, None, :2] + anchors[:, None, 2:] * offsets.reshape(-1, 5, 2) * self.variances[0]


@functools.lru_cache(maxsize=8)
def _at(anchors: Anchors, height: int, width: int, device: torch.device) -> Tensor:
    levels = []
    for stride, first, sides in zip(anchors.strides, anchors.first, anchors.sides, strict=True):
        # A cell that is only partly inside of the picture counts: the networks' maps are rounded up.
        y, x, side = torch.meshgrid(
            first + stride * torch.arange(-(-height // stride), dtype=torch.float64),
            first + stride * torch.arange(-(-width // stride), dtype=torch.float64),
            torch.tensor(sides, dtype=torch.float64),
            indexing="ij",
        )
        levels.append(torch.stack([x, y, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels).to(device)
