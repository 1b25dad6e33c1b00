"""A trained task as ONNX: from pixels to predictions in one graph, for whoever has no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from configs import ConfigError
from downstream.model import TaskNetwork, load_model
from pretrain.interchange import card_figures, write_card, write_onnx

Input = Literal["uint8", "float32"]


class Deployed(nn.Module):
    """(N, 3, s, s) RGB pictures of values 0..255 to (N, P) predictions, in the unit of the labels."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: TaskNetwork) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", model.network.mean[:, None, None])
        self.register_buffer("std", model.network.std[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, run, decode."""
        return self.model.head.predict(self.model((images.float() / 255 - self.mean) / self.std))


def export_model(source: Path, target: Path, kind: Input = "uint8", figures: Path | None = None) -> Path:
    """Write the trained task in ``source`` as ONNX, with a model card beside it.

    The graph takes any number of crops, cut as the header says and resized to the network's size; its own metadata
    repeat the header.

    Args:
        source: A file that an evaluation left because of ``keep_models``.
        target: The ``.onnx`` to write.
        kind: Type of the pictures.
        figures: A ``metrics.json`` whose figures of this model the card shall show.

    Returns:
        The path of the card: ``target`` with ``.md`` added.

    Raises:
        ConfigError: for another suffix, a file that is no trained task, or figures that a card cannot show; then
            nothing is written.
    """
    if target.suffix != ".onnx":
        raise ConfigError(f"{target}: a trained task is written as ONNX; call it {target.stem}.onnx")
    model, header = load_model(source)
    only = {"row": header.get("row"), "task": model.task.name, "mode": header.get("mode")}
    share = {"fraction": float(header["fraction"])} if "fraction" in header else {}
    worth = card_figures(figures, only | share, header.get("inputs"))
    deployed = Deployed(model).eval()
    size = model.network.size
    images = torch.zeros((2, 3, size, size), dtype=getattr(torch, kind))
    with torch.inference_mode():
        outputs = deployed(images).shape[1]
    about = header | {
        "input": f"images: (N, 3, {size}, {size}) {kind}, RGB, 0..255, crops resized with antialiasing",
        "output": f"predictions: (N, {outputs}) float32, in the unit of the labels; pixels are those of the crop",
    }
    write_onnx(deployed, images, "predictions", target, about)
    return write_card(target, about, worth)
