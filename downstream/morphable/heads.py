"""From the features of a picture to a mesh in it: two heads, both ours.

The supplement of Bulat et al. names data, optimiser and augmentation for 3D reconstruction; the main text, with the
decoder, was not at hand. Both heads start by predicting an average of the training faces and learn from the same
loss, the mean absolute difference of the vertices' x, y and z.

``CoefficientsHead`` predicts what the label consists of, a weak-perspective camera and the coefficients of the model,
and cannot leave the model's space. ``GraphHead`` predicts the vertices themselves, from a few nodes on the mean face
to all vertices, by interpolation and graph convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from downstream.heads import Head
from downstream.morphable import geometry
from downstream.morphable.model import MorphableModel

Array = NDArray[np.float64]

CAMERA = 12
"""Numbers of a (3, 4) camera, row by row, before the coefficients."""
PIXELS = 10.0
"""The loss is in units of so many crop pixels."""
NODES, CHANNELS = (128, 512, 2048), (64, 32, 32, 16)
"""Of the graphs, coarse to fine; the last number of channels is that of the vertices."""
NEIGHBOURS = 8


class Mesher(nn.Module):
    """(B, 12 + K) cameras and coefficients -> (B, V, 3) vertices in crop pixels. Nothing is learnt, nothing saved."""

    mean: Tensor
    basis: Tensor

    def __init__(self, model: MorphableModel) -> None:
        super().__init__()
        both = np.concatenate([model.shape, model.expression], axis=-1)
        self.register_buffer("mean", torch.from_numpy(model.mean.reshape(-1)), persistent=False)
        basis = np.ascontiguousarray(both.reshape(-1, both.shape[-1]).T)
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)

    def forward(self, parameters: Tensor) -> Tensor:
        """The vertices."""
        camera = parameters[:, :CAMERA].unflatten(1, (3, 4))
        faces = (self.mean + parameters[:, CAMERA:] @ self.basis).unflatten(1, (-1, 3))
        placed: Tensor = faces @ camera[..., :3].mT + camera[:, None, :, 3]
        return placed


class _MeshHead(Head):
    """What both have: pooled and normalised features, and the loss.

    Args:
        width: Channels of the last stage.
        model: The morphable model.
        place: Where a label has its camera and coefficients.
    """

    def __init__(self, width: int, model: MorphableModel, place: slice) -> None:
        super().__init__()
        self.mesher, self.place = Mesher(model), place
        self.norm = nn.BatchNorm1d(width, affine=False)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, width)."""
        pooled: Tensor = self.norm(maps[-1].mean(dim=(2, 3)))
        return pooled

    def vertices(self, outputs: Tensor) -> Tensor:
        """Outputs -> (B, V, 3) in crop pixels."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Mean absolute difference of the coordinates of all vertices, in units of ``PIXELS``."""
        return functional.l1_loss(self.vertices(outputs), self.mesher(truth[:, self.place])) / PIXELS


class CoefficientsHead(_MeshHead):
    """One linear layer to log scale, two rows of the rotation (Zhou et al. 2019), x, y and the coefficients.

    Each output is in units of its deviation in the training labels, about their mean.

    Args:
        width: Channels of the last stage.
        model: The morphable model.
        place: Where a label has its camera and coefficients.
        parameters: (N, 12 + K) those of the training labels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, model: MorphableModel, place: slice, parameters: Array) -> None:
        super().__init__(width, model, place)
        cameras = parameters[:, :CAMERA].reshape(-1, 3, 4)
        size = np.maximum(geometry.scales(cameras), 1e-30)
        rows = (geometry.FLIP_Y @ cameras[..., :3])[:, :2] / size[:, None, None]
        raw = np.concatenate(
            [np.log(size)[:, None], rows.reshape(-1, 6), cameras[:, :2, 3], parameters[:, CAMERA:]], axis=1
        )
        deviation = raw.std(axis=0)
        self.register_buffer("mean", torch.from_numpy(raw.mean(axis=0).astype(np.float32)))
        scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
        self.register_buffer("scale", torch.from_numpy(scale))
        self.linear = nn.Linear(width, raw.shape[1])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, 12 + K) cameras and coefficients."""
        raw = self.mean + self.scale * self.linear(self.features(maps))
        first = functional.normalize(raw[:, 1:4], dim=1)
        second = functional.normalize(raw[:, 4:7] - (first * raw[:, 4:7]).sum(1, keepdim=True) * first, dim=1)
        turn = torch.stack([first, -second, torch.linalg.cross(first, second)], dim=1)
        place = functional.pad(raw[:, 7:9], (0, 1))
        camera = torch.cat([raw[:, :1, None].exp() * turn, place[..., None]], dim=2)
        return torch.cat([camera.flatten(1), raw[:, 9:]], dim=1)

    def vertices(self, outputs: Tensor) -> Tensor:
        """The model's vertices."""
        found: Tensor = self.mesher(outputs)
        return found


class GraphHead(_MeshHead):
    """Features on a few nodes of the mean face, brought to more and more of them.

    A linear layer gives features to each of the coarsest nodes. Each further level takes the mean of the three
    nearest nodes of the level before, weighted by their inverse distance, then x -> ELU(W x + U mean of the
    neighbours' x). The last level, that of the vertices, has a linear layer to x, y, z, which are added to the mean
    mesh of the training pictures in units of its deviation.

    Args:
        width: Channels of the last stage.
        model: The morphable model.
        place: Where a label has its camera and coefficients.
        parameters: (N, 12 + K) those of the training labels; of many, 1,000 are enough for the mean.
    """

    average: Tensor
    spread: Tensor

    def __init__(self, width: int, model: MorphableModel, place: slice, parameters: Array) -> None:
        super().__init__(width, model, place)
        nodes, levels = _levels(model)
        channels = CHANNELS[-len(levels) - 1 :]
        self.start = nn.Linear(width, nodes * channels[0])
        self.steps = nn.ModuleList(
            _Refine(*level, before, after)
            for level, (before, after) in zip(levels, pairwise(channels), strict=True)
        )
        self.last = nn.Linear(CHANNELS[-1], 3)
        nn.init.normal_(self.start.weight, std=width**-0.5)  # the variance is to pass through all levels
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        average, spread = self._statistics(parameters)
        self.register_buffer("average", average)
        self.register_buffer("spread", spread)

    @torch.no_grad()
    def _statistics(self, parameters: Array) -> tuple[Tensor, Tensor]:
        """(V, 3) mean of the training meshes, () root mean square of the coordinates' differences from it."""
        some = parameters[np.linspace(0, len(parameters) - 1, min(len(parameters), 1000)).astype(int)]
        parts = torch.from_numpy(some.astype(np.float32)).split(32)
        average = torch.stack([self.mesher(part).sum(0) for part in parts]).sum(0) / len(some)
        squares = sum(((self.mesher(part) - average) ** 2).mean((1, 2)).sum() for part in parts)
        spread = torch.as_tensor(squares / len(some)).sqrt()
        return average, torch.where(spread > 0, spread, torch.ones(()))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, V, 3) vertices in crop pixels."""
        flat = self.start(self.features(maps))
        x = flat.unflatten(1, (-1, CHANNELS[-len(self.steps) - 1]))
        for step in self.steps:
            x = step(x)
        moved: Tensor = self.average + self.spread * self.last(x)
        return moved

    def vertices(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        return outputs

    def predict(self, outputs: Tensor) -> Tensor:
        """(B, 3 V): x, y, z of a vertex after the other."""
        return outputs.flatten(1)


class _Refine(nn.Module):
    """From one level to the next.

    Args:
        near: (n, 3) nodes of the level before, from which each node is interpolated.
        weight: (n, 3) their weights.
        beside: (n, k) neighbours of each node in its own level.
        before: Channels.
        after: Channels.
    """

    near: Tensor
    weight: Tensor
    beside: Tensor

    def __init__(
        self,
        near: NDArray[np.int64],
        weight: NDArray[np.float32],
        beside: NDArray[np.int64],
        before: int,
        after: int,
    ) -> None:
        super().__init__()
        for name, array in (("near", near), ("weight", weight), ("beside", beside)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.own, self.others = nn.Linear(before, after), nn.Linear(before, after, bias=False)
        for layer in (self.own, self.others):
            nn.init.normal_(layer.weight, std=before**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, m, before) -> (B, n, after)."""
        # The linear layers come first: interpolation and mean are linear, too, and so gather fewer channels.
        x = torch.cat([self.own(x), self.others(x)], dim=2)
        fine = (x[:, self.near] * self.weight[..., None]).sum(dim=2)
        own, others = fine.chunk(2, dim=2)
        return functional.elu(own + others[:, self.beside].mean(dim=2))


Level = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


@lru_cache(maxsize=2)
def _levels(model: MorphableModel) -> tuple[int, tuple[Level, ...]]:
    """The number of the coarsest nodes, and for each finer level what :class:`_Refine` needs."""
    from scipy.spatial import cKDTree

    points = model.mean.astype(np.float64)
    order = _spread_out(points, min(max(NODES), len(points)))
    sizes = [size for size in NODES if size < len(points)] or [len(points)]
    clouds = [points[order[:size]] for size in sizes] + [points]
    found = []
    for coarse, fine in pairwise(clouds):
        distance, near = cKDTree(coarse).query(fine, k=3)
        inverse = 1 / (distance + 1e-3 * np.median(distance))
        weight = (inverse / inverse.sum(axis=1, keepdims=True)).astype(np.float32)
        beside = cKDTree(fine).query(fine, k=NEIGHBOURS + 1)[1][:, 1:]
        found.append((near.astype(np.int64), weight, beside.astype(np.int64)))
    return sizes[0], tuple(found)


def _spread_out(points: Array, count: int) -> NDArray[np.int64]:
    """(count,) points of which each is the farthest from all before (Gonzalez 1985); the first is the first."""
    chosen = np.zeros(count, np.int64)
    distance = ((points - points[0]) ** 2).sum(axis=1)
    for k in range(1, count):
        chosen[k] = distance.argmax()
        distance = np.minimum(distance, ((points - points[chosen[k]]) ** 2).sum(axis=1))
    return chosen
