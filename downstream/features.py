"""Networks, the pictures they see, and the features they give."""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def read_pictures(beton: Beton, sizes: Iterable[int]) -> dict[int, Tensor]:
    """Every picture of a set, decoded once and resized (antialiased) to each size.

    Returns:
        size -> (N, 3, size, size) uint8, kept in memory: 27 kB a picture at 96 px, 147 kB at 224 px.
    """
    parts: dict[int, list[Tensor]] = {size: [] for size in sizes}
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(beton), BATCH), desc="reading pictures", leave=False, mininterval=1):
            images = list(pool.map(beton.image, range(start, min(start + BATCH, len(beton)))))
            full = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
            for size, part in parts.items():
                part.append(resize(full, size))
    return {size: torch.cat(part) for size, part in parts.items()}


def resize(pictures: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) values 0..255 -> (N, 3, size, size) uint8, antialiased."""
    small = functional.interpolate(
        pictures.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small.round_().clamp_(0, 255).to(torch.uint8)


@torch.inference_mode()
def extract(network: Network, pictures: Tensor, device: torch.device, name: str) -> NDArray[np.float32]:
    """(N, 3, size, size) uint8 -> (N, F) float32 features of the frozen network."""
    module = network.module.to(device).eval()
    parts = [
        module(network.normalise(part.to(device))).float().cpu()
        for part in tqdm(pictures.split(BATCH), desc=f"features of {name}", leave=False, mininterval=1)
    ]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def calibrate(network: Network, pictures: Tensor, device: torch.device) -> None:
    """Set every batch norm's running statistics to those of ``pictures`` (no labels are seen).

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
    for part in pictures.split(BATCH):
        module(network.normalise(part.to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def pixels(pictures: Tensor) -> NDArray[np.float32]:
    """(N, 3, s, s) uint8 -> (N, 3*s*s) float32 in 0..1."""
    return pictures.flatten(1).float().div(255).numpy()
