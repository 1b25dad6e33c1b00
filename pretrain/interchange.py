"""Backbones from and to other people's files.

In: whatever holds a torchvision-shaped ResNet: torchvision and timm themselves, and the checkpoints of SwAV
(``module.*``), Bulat et al. (``module.base_net.*``), MoCo (``module.encoder_q.*``), and of BYOL and SimFLE, whose
encoders are ``nn.Sequential`` and so have numbers for names. Out: torchvision, timm, ONNX.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from configs import ConfigError
from data_prep.files import atomic_write, sha256_file
from pretrain import backbones

Tensors = dict[str, Tensor]

STAGES = ("layer1", "layer2", "layer3", "layer4")
# The children of torchvision's ResNet in their order, as nn.Sequential numbers them.
_NUMBERED = {"0": "conv1", "1": "bn1", **{str(4 + i): name for i, name in enumerate(STAGES)}}
_NAMED = {name: name for name in _NUMBERED.values()}
_STEM = (64, 3, 7, 7)
# A word in the path of the copy that follows by a moving average.
_FOLLOWERS = re.compile(r"(^|[._])(target|teacher|momentum|ema|key|k)([._]|$)")


def import_backbone(
    source: Path,
    target: Path,
    *,
    root: str | None = None,
    image_size: int = 224,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    licence: str = "unknown",
) -> dict[str, str]:
    """Write the ResNet in ``source`` as a ``backbone.safetensors``; returns its header.

    Args:
        source: A ``.pth``, ``.pth.tar``, ``.pt`` or ``.safetensors`` file; nothing in it is executed.
        target: What to write.
        root: Where in the file the network is, if there are several: the beginning of its keys.
        image_size: Pixels a side that it was trained on; no file says so.
        mean: RGB mean that it was trained with, of values in 0..1.
        std: RGB deviation.
        licence: Of the weights, for the record.

    Raises:
        ConfigError: if there is no such network in it, or more than one.
    """
    found = dict(_networks(read_tensors(source)))
    tensors = found[_choose(source, found, root)]
    architecture, width = _architecture(source, tensors)
    backbone = backbones.build(architecture, width)  # type: ignore[arg-type]
    counters = {name: x for name, x in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        backbone.load_state_dict({**counters, **tensors})  # old files have no counters
    except RuntimeError as error:
        what = str(error).splitlines()[1].strip()
        raise ConfigError(f"{source}: not torchvision's {architecture}: {what}") from None
    metadata = {
        "format": "pt",
        "architecture": architecture,
        "width": str(width),
        "method": "imported",
        "step": "0",
        "image_size": str(image_size),
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "source": source.name,
        "source_sha256": sha256_file(source),
        "licence": licence,
    }
    backbones.save_backbone(target, backbone, metadata)
    return metadata


def export_backbone(source: Path, target: Path, figures: Path | None = None) -> Path:
    """Write ``source``, a ``backbone.safetensors``, for others, with a model card beside it.

    Args:
        source: What to export.
        target: ``.pth`` for torchvision's and timm's ``load_state_dict``, ``.safetensors`` for timm's
            ``checkpoint_path``, ``.onnx``: (N, 3, H, W) normalised pictures to (N, D) features, any N, H and W
            being the image size in the header.
        figures: A ``metrics.json`` whose figures the card shall show.

    Returns:
        The path of the card: ``target`` with ``.md`` added.

    Raises:
        ConfigError: for another suffix, or figures that a card cannot show; then nothing is written.
    """
    backbone, metadata = backbones.load(source)
    backbone.eval()
    worth = card_figures(figures, inputs=metadata.get("inputs"))
    if target.suffix == ".pth":
        with atomic_write(target) as file:
            torch.save({name: x.contiguous() for name, x in backbone.state_dict().items()}, file)
    elif target.suffix == ".safetensors":
        backbones.save_backbone(target, backbone, metadata)
    elif target.suffix == ".onnx":
        size = int(metadata["image_size"])
        write_onnx(backbone, torch.zeros(2, 3, size, size), "features", target)
    else:
        raise ConfigError(f"{target}: the suffix says the format: .pth, .safetensors or .onnx")
    return write_card(target, metadata, worth)


# --- reading -------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> Tensors:
    """Every tensor in a file, by its dotted path.

    Raises:
        ConfigError: if it cannot be read, or holds objects that only execution could restore.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(_flatten(torch.load(path, map_location="cpu", weights_only=True)))
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: holds Python objects, which are not executed ({str(error).splitlines()[0]}); where you "
            "trust it, save its state_dict alone with torch.save and import that"
        ) from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path.removesuffix("."), tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flatten(value, f"{path}{name}.")


def _networks(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Each ResNet in a file: the beginning of its keys, and its tensors under torchvision's names."""
    for stem, block, names in (("conv1.weight", "layer1", _NAMED), ("0.weight", "4", _NUMBERED)):
        for key, value in tensors.items():
            root = key.removesuffix(stem)
            if root == key or tuple(value.shape) != _STEM or f"{root}{block}.0.conv1.weight" not in tensors:
                continue
            network = {}
            for name, tensor in tensors.items():
                child, _, rest = name.removeprefix(root).partition(".")
                if name.startswith(root) and child in names:
                    network[f"{names[child]}.{rest}"] = tensor
            yield root, network


def _choose(source: Path, found: Mapping[str, Tensors], root: str | None) -> str:
    if root is not None:
        matching = [name for name in found if name.removesuffix(".") == root.removesuffix(".")]
    else:
        matching = [name for name in found if not _FOLLOWERS.search(name)] or list(found)
        # One network may have several names, as the backbone of our SimFLE has.
        matching = [name for i, name in enumerate(matching) if not _among(found, name, matching[:i])]
    if len(matching) == 1:
        return matching[0]
    there = ", ".join(f"'{name}'" for name in found) or "none"
    raise ConfigError(f"{source}: name one ResNet with --root; the keys of those in it begin with: {there}")


def _among(found: Mapping[str, Tensors], name: str, others: Sequence[str]) -> bool:
    """Whether the tensors of a network are, bit for bit, those of one of the others."""
    own = found[name]
    return any(
        own.keys() == found[other].keys() and all(torch.equal(x, found[other][key]) for key, x in own.items())
        for other in others
    )


def _architecture(source: Path, tensors: Tensors) -> tuple[str, float]:
    """Name and width, from the number of blocks and the shape of the first."""
    blocks = [len({name.split(".")[1] for name in tensors if name.startswith(stage)}) for stage in STAGES]
    bottleneck = "layer1.0.conv3.weight" in tensors
    for name in backbones.ARCHITECTURES:
        if backbones.blocks(name) == (bottleneck, blocks):
            return name, tensors["layer1.0.conv1.weight"].shape[0] / 64
    raise ConfigError(f"{source}: a ResNet with {blocks} blocks; known: {', '.join(backbones.ARCHITECTURES)}")


# --- writing -------------------------------------------------------------------------------------------------


def write_onnx(
    network: torch.nn.Module,
    images: Tensor,
    output: str,
    target: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network that takes any number of ``images`` as ONNX, with metadata."""
    program = torch.onnx.export(
        network,
        (images,),
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for name, value in sorted((metadata or {}).items()):
        proto.metadata_props.add(key=name, value=value)
    with atomic_write(target) as file:
        file.write(proto.SerializeToString())


_ABOUT = {
    "input": "what it takes",
    "output": "what it gives",
    "task": "what was learnt, with its settings",
    "crop": "how the faces were cut out of their pictures",
    "row": "of the evaluation that trained it",
    "mode": "of the training",
    "fraction": "of the labels that it learnt from",
    "inputs": "hash of the evaluation's settings, data and weights",
    "architecture": "torchvision's name",
    "width": "of the four stages, as a multiple of torchvision's",
    "method": "how it was trained",
    "step": "optimiser steps",
    "image_size": "pixels a side in training",
    "mean": "RGB, subtracted from values in 0..1",
    "std": "RGB, divided by",
    "data": "learnt from",
    "data_sha256": "of that file",
    "config_hash": "of the settings",
    "source": "imported from",
    "source_sha256": "of that file",
    "licence": "of the weights, as told at import",
}


def write_card(target: Path, metadata: Mapping[str, str], worth: Sequence[str]) -> Path:
    """Write a model card beside ``target``: what ``metadata`` say, and the lines of :func:`card_figures`.

    Returns:
        Its path: ``target`` with ``.md`` added.
    """
    card = target.with_name(target.name + ".md")
    with atomic_write(card, "w") as file:
        file.write("\n".join(_card(target, metadata, worth)) + "\n")
    return card


def _card(target: Path, metadata: Mapping[str, str], worth: Sequence[str]) -> Iterator[str]:
    yield f"# {target.name}"
    yield ""
    yield f"SHA-256 {sha256_file(target)}."
    yield ""
    yield "| | | |"
    yield "|---|---|---|"
    for name, about in _ABOUT.items():
        if name in metadata:
            yield f"| {name} | {metadata[name]} | {about} |"
    yield ""
    yield "## What it is worth"
    yield ""
    yield from worth
    yield ""
    yield "## Use"
    yield ""
    yield "Faces are biometric data. The pictures that it learnt from keep their own licences, and many face corpora"
    yield "are for research only, which may bind what is derived from them. Do not use it to identify people who have"
    yield "not agreed to it. What it is worth was measured on the data above; on other people it may be worth less."


def card_figures(
    path: Path | None, only: Mapping[str, Any] | None = None, inputs: str | None = None
) -> list[str]:
    """What a model card says of the figures of all test pictures, a line each: to be had before a model is written.

    Args:
        path: A metrics.json; None: there are none.
        only: Fields that its measurements must have to be shown, and their values.
        inputs: Of the evaluation that it must be of.

    Raises:
        ConfigError: it is no metrics.json, is of another evaluation, or has no such figure.
    """
    return ["No figures were given."] if path is None else [*_figures(path, only or {}, inputs)]


def _figures(path: Path, only: Mapping[str, Any], inputs: str | None) -> Iterator[str]:
    only = {"subset": "all", **only}
    try:
        metrics = json.loads(path.read_bytes())
        synthetic = metrics["data"]["synthetic"]
        measured = [
            m for m in metrics["measurements"] if all(m[field] == value for field, value in only.items())
        ]
        other = inputs is not None and metrics["inputs"] != inputs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no metrics.json of python -m downstream ({error})") from None
    if other:
        raise ConfigError(
            f"{path}: of another evaluation than the one that trained it; give that one's metrics.json"
        )
    if not measured:
        wanted = ", ".join(f"{field} {value}" for field, value in only.items())
        raise ConfigError(
            f"{path}: has no figure of {wanted}; give the metrics.json in which it was measured"
        )
    yield f"From `{path}`{', on rendered faces' if synthetic else ''}; brackets hold the 95 % interval."
    yield ""
    yield "| row | task | mode | labels | metric | value |"
    yield "|---|---|---|---|---|---|"
    for m in measured:
        value = f"{m['value']:.4g} [{m['low']:.4g}, {m['high']:.4g}]"
        metric = m["metric"] + {"%": " (%)", "deg": " (°)", "": ""}[m["unit"]]
        yield f"| {m['row']} | {m['task']} | {m['mode']} | {100 * m['fraction']:g} % | {metric} | {value} |"
