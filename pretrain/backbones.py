"""Backbones, and the hand-off file: ``backbone.safetensors`` in torchvision's own key names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from configs import Config, ConfigError
from data_prep.files import atomic_write

Architecture = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


ARCHITECTURES: tuple[str, ...] = tuple(_BLOCKS)


class BackboneConfig(Config):
    """The network that is kept after pretraining."""

    architecture: Architecture = "resnet50"
    width: float = Field(1.0, gt=0, description="multiplies the channels after the stem; 1 is torchvision's")
    init: str | None = Field(
        None, description="a backbone.safetensors whose weights are the first ones; random by default"
    )


class _ScaledResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet with ``width`` times the channels in its four stages; the stem keeps its 64."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], width: float) -> None:
        self.width = width  # read by _make_layer, which the base class calls while it is built
        super().__init__(block, layers)
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> Any:
        return super()._make_layer(block, round(planes * self.width), *args, **kwargs)


def build(architecture: Architecture, width: float = 1.0) -> ResNet:
    """A randomly initialised backbone (He initialisation, as torchvision).

    Maps (N, 3, H, W) float32 to (N, D) pooled features; D is :func:`feature_dim`. With ``width=1`` the
    parameters are named and shaped as in ``torchvision.models.<architecture>``, without ``fc``.
    """
    block, layers = _BLOCKS[architecture]
    return _ScaledResNet(block, layers, width)


def start(config: BackboneConfig) -> ResNet:
    """The backbone that a run begins with: random, from torch's generator, or the weights of ``init``.

    Raises:
        ConfigError: ``init`` cannot be read, or is of another architecture or width.
    """
    if config.init is None:
        return build(config.architecture, config.width)
    backbone, header = load(config.init)
    if (header["architecture"], float(header["width"])) != (config.architecture, config.width):
        raise ConfigError(
            f"backbone.init: {config.init} is a {header['architecture']} of width {header['width']}; give "
            "backbone.architecture and backbone.width the same"
        )
    return backbone


def blocks(architecture: str) -> tuple[bool, list[int]]:
    """Whether its blocks are bottlenecks, and how many of them its four stages have."""
    block, layers = _BLOCKS[architecture]
    return block is Bottleneck, layers


def feature_dim(backbone: ResNet) -> int:
    """Length D of a backbone's feature vector."""
    return int(backbone.inplanes)


def feature_map(backbone: ResNet, pictures: Tensor) -> Tensor:
    """(N, D, h, w) of the last stage, before the pooling, of (N, 3, s, s) pictures; h is s / 32, rounded up."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(pictures))))
    features: Tensor = backbone.layer4(backbone.layer3(backbone.layer2(backbone.layer1(x))))
    return features


def save_backbone(path: Path, backbone: ResNet, metadata: Mapping[str, str]) -> None:
    """Write the weights and ``metadata``, atomically."""
    with atomic_write(path) as file:
        file.write(serialise(backbone, metadata))


def serialise(backbone: ResNet, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a hand-off file: the weights, contiguous, and ``metadata``, text to text."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
    return _with_sorted_header(save(tensors, dict(metadata)))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order.

    The library writes them in the order of a hash map, which differs from process to process: equal backbones
    would be unequal files.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read_header(path: str | Path) -> dict[str, str]:
    """The metadata in a hand-off file (architecture, width, mean, std, step, ...).

    Raises:
        ConfigError: if the file is missing, is not safetensors, or was not written by :func:`save_backbone`.
    """
    return _read(path)[1]


def load(path: str | Path) -> tuple[ResNet, dict[str, str]]:
    """The backbone in a hand-off file and its metadata; raises as :func:`read_header`."""
    tensors, metadata = _read(path)
    backbone = build(metadata["architecture"], float(metadata["width"]))  # type: ignore[arg-type]
    backbone.load_state_dict(tensors)
    return backbone, metadata


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as a backbone ({error}); pretrain first") from None
    if "task" in metadata:
        raise ConfigError(
            f"{path}: holds a trained task, not a backbone; give the file that it was trained from"
        )
    if metadata.get("architecture") not in _BLOCKS:
        raise ConfigError(f"{path}: its header names no known architecture; was it written by facerep?")
    return tensors, metadata


def random(architecture: Architecture, width: float, seed: int) -> ResNet:
    """A backbone whose initial weights are a function of ``seed`` alone; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(architecture, width)
