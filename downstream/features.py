"""Networks, the pictures they see, and the features they give."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from configs import ConfigError
from data_prep.beton import Beton
from downstream.config import Checkpoint, Random
from pretrain import backbones

BATCH = 256


@dataclass(frozen=True)
class Network:
    """A backbone with what its input must look like.

    Attributes:
        module: (N, 3, size, size) normalised float32 -> (N, F).
        architecture: As in its header.
        width: Factor on the channels.
        size: Pixels a side.
        mean: (3,) RGB, of values 0..1.
        std: (3,) RGB, of values 0..1.
    """

    module: nn.Module
    architecture: str
    width: float
    size: int
    mean: Tensor
    std: Tensor

    @property
    def header(self) -> dict[str, str]:
        """As a hand-off file says it."""
        return {
            "architecture": self.architecture,
            "width": str(self.width),
            "image_size": str(self.size),
            "mean": json.dumps(self.mean.tolist()),
            "std": json.dumps(self.std.tolist()),
        }

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) values 0..255 -> what ``module`` expects."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        normalised = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
        return normalised.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU


def load_network(row: Checkpoint | Random, size: int | None) -> Network:
    """The network of a row: pretrained weights, or new ones for the same architecture.

    ``size``, where given, replaces the image size in the header.
    """
    path = row.path if isinstance(row, Checkpoint) else row.like
    if not Path(path).is_file():
        raise ConfigError(f"initialisations '{row.name}': {path} does not exist; run the pretraining first")
    module, header = backbones.load(path)
    width = float(header["width"])
    if isinstance(row, Random):
        module = backbones.random(header["architecture"], width, row.seed)  # type: ignore[arg-type]
    return Network(
        module=module.eval().to(memory_format=torch.channels_last),
        architecture=header["architecture"],
        width=width,
        size=size or int(header["image_size"]),
        mean=torch.tensor(json.loads(header["mean"])),
        std=torch.tensor(json.loads(header["std"])),
    )


class Pictures:
    """The pictures of a set, or of two sets one after the other, at one size.

    Args:
        betons: Where they are.
        size: Pixels a side.
        kept: All of them, (M, 3, size, size) uint8; None: they are decoded each time.
    """

    def __init__(self, betons: Sequence[Beton], size: int, kept: Tensor | None = None) -> None:
        self.size, self._betons, self._kept = size, betons, kept
        self._first = np.cumsum([0, *map(len, betons)])
        # Beside the threads of torch, which wait meanwhile.
        self._pool = None if kept is not None else ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def __len__(self) -> int:
        return int(self._first[-1])

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """(B,) rows -> (B, 3, size, size) uint8, resized with antialiasing."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(rows)]
        assert self._pool is not None
        return torch.cat(
            [small[self.size] for small in self._pool.map(lambda row: self.decode(row, [self.size]), rows)]
        )

    def decode(self, row: int, sizes: Iterable[int]) -> dict[int, Tensor]:
        """Size -> (1, 3, size, size) uint8 of one row."""
        which = int(np.searchsorted(self._first, row, side="right")) - 1
        full = (
            torch.tensor(self._betons[which].image(int(row - self._first[which])))
            .permute(2, 0, 1)[None]
            .float()
        )
        return {size: resize(full, size) for size in sizes}


def read_pictures(betons: Sequence[Beton], sizes: Iterable[int], memory: float) -> dict[int, Pictures]:
    """The pictures at each size, decoded once and kept where all of them fit into ``memory`` bytes together.

    27 kB a picture at 96 px, 147 kB at 224 px.
    """
    sizes = sorted(set(sizes))
    lazy = {size: Pictures(betons, size) for size in sizes}
    count = sum(map(len, betons))
    if not sizes or 3 * count * sum(size**2 for size in sizes) > memory:
        return lazy
    kept = {size: torch.empty((count, 3, size, size), dtype=torch.uint8) for size in sizes}
    reader = lazy[sizes[0]]
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda row: reader.decode(row, sizes), range(count))
        for row, small in enumerate(
            tqdm(decoded, desc="reading pictures", total=count, leave=False, mininterval=1)
        ):
            for size in sizes:
                kept[size][row] = small[size][0]
    return {size: Pictures(betons, size, kept[size]) for size in sizes}


def resize(pictures: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) values 0..255 -> (N, 3, size, size) uint8, antialiased."""
    small = functional.interpolate(
        pictures.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small.round_().clamp_(0, 255).to(torch.uint8)


@torch.inference_mode()
def extract(
    network: Network, pictures: Pictures, rows: NDArray[np.int64], device: torch.device, name: str
) -> NDArray[np.float32]:
    """(N, F) float32 features of the frozen network for (N,) rows."""
    module = network.module.to(device).eval()
    bar = tqdm(in_batches(rows), desc=f"features of {name}", leave=False, mininterval=1)
    parts = [module(network.normalise(pictures.take(part).to(device))).float().cpu() for part in bar]
    return torch.cat(parts).numpy()


def in_batches(rows: NDArray[np.int64], size: int = BATCH) -> list[NDArray[np.int64]]:
    """(N,) rows, cut."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def statistics(pictures: Pictures, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(3,) mean and (3,) deviation (ddof 0) of the colours of all pixels of (N,) rows, of values 0..1, float32.

    From counts of the 256 values, so that no order of the pictures changes a bit.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in in_batches(rows):
        seen = pictures.take(part)
        counts += torch.stack([torch.bincount(seen[:, i].flatten(), minlength=256) for i in range(3)])
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = shares @ values
    deviation = (shares * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    return mean.float(), deviation.float()


@torch.inference_mode()
def calibrate(network: Network, pictures: Pictures, rows: NDArray[np.int64], device: torch.device) -> None:
    """Set every batch norm's running statistics to those of (N,) rows (no labels are seen).

    An untrained network in evaluation mode normalises with mean 0 and variance 1, which leaves its activations
    alone. With true statistics its features say less (docs/downstream.md), so this is not the default.
    """
    module = network.module.to(device)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
    module.train()
    for part in in_batches(rows):
        module(network.normalise(pictures.take(part).to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def pixels(pictures: Tensor) -> NDArray[np.float32]:
    """(N, 3, s, s) uint8 -> (N, 3*s*s) float32 in 0..1."""
    return pictures.flatten(1).float().div(255).numpy()
