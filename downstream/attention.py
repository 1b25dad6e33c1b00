"""Where a network looks when it names a class: Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from configs import ConfigError
from data_prep.images import PictureError, decode_picture, read_bytes
from downstream import drawing
from downstream.evaluate import choose_device
from downstream.features import resize
from downstream.model import TaskNetwork
from downstream.predict import (
    Face,
    Model,
    Predictor,
    drawing_name,
    find_pictures,
    open_model,
    save_picture,
)
from downstream.results import make_folder
from downstream.tasks.task import SIDE

OPACITY = 0.55
"""Of the map on the face."""


def attention(
    network: TaskNetwork, crops: Tensor, classes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The predicted classes, and what in the backbone's last stage speaks for them.

    Args:
        network: Of a task with classes.
        crops: (N, 3, 256, 256) uint8.
        classes: (N,) others to be explained than those that are predicted.

    Returns:
        (N,) these classes, and (N, 256, 256) maps, 0 .. 1, with 1 where a picture's is largest; 0 if nothing speaks.
    """
    logits = network.task.logits
    assert logits is not None, "the task has no classes"
    device = next(network.parameters()).device
    images = network.network.normalise(resize(crops, network.network.size).to(device))

    def scores(x: Tensor) -> Tensor:
        outputs: Tensor = network(x)
        return outputs[:, logits]

    if classes is None:
        with torch.no_grad():
            chosen = scores(images).argmax(1)
    else:
        chosen = torch.from_numpy(classes).to(device)
    found = LayerGradCam(scores, network.backbone.layer4).attribute(images, chosen, relu_attributions=True)
    maps = F.interpolate(found.detach(), (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return chosen.cpu().numpy(), (maps / torch.where(largest > 0, largest, 1)).float().cpu().numpy()


def overlaid(crop: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """A crop with its (256, 256) map on it: dark where nothing, bright where most speaks for the class."""
    colours = Image.fromarray((colormaps["inferno"](heat)[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(crop.convert("RGB"), colours, OPACITY)


def draw_attention(
    models: Sequence[Path], pictures: Sequence[Path], output: Path, device: str
) -> dict[Path, str]:
    """Write for each picture a sheet with its faces, and beside each a map for each model.

    Returns:
        The pictures without a sheet, and why.

    Raises:
        ConfigError: a file is missing, a model names no class, or ``output`` cannot be a folder.
    """
    place = choose_device(device)
    opened = [open_model(path, place) for path in models]
    for model in opened:
        if model.network.task.logits is None:
            raise ConfigError(
                f"{model.path}: its task {model.network.task.name} names no class; give one of expression, or of "
                "affect with classes"
            )
    listed = find_pictures(pictures, output)
    make_folder(output, "--output")
    predictor, without = Predictor(opened, place), {}
    for number, (path, error) in enumerate(tqdm(listed, unit="picture", mininterval=1, disable=None), 1):
        try:
            if error:
                raise PictureError(error)
            faces, _ = predictor(decode_picture(read_bytes(path)))
        except PictureError as reason:
            without[path] = str(reason)
            continue
        if faces:
            name = drawing_name(path, number, len(listed))
            save_picture(drawing.sheet(_tiles(faces, opened)), output / f"{name}.jpg")
        else:
            without[path] = "no face"
    return without


def _tiles(faces: Sequence[Face], models: Sequence[Model]) -> Iterator[tuple[str, Image.Image]]:
    """Each face, as the first model sees it, then the map of each model."""
    maps = []
    for i, model in enumerate(models):
        crops = np.stack([np.asarray(face.cuts[i].picture) for face in faces])
        maps.append(attention(model.network, torch.from_numpy(crops).permute(0, 3, 1, 2)))
    for number, face in enumerate(faces):
        yield f"{number + 1}", face.cuts[0].picture
        for i, (model, (_, heat)) in enumerate(zip(models, maps, strict=True)):
            cut = face.cuts[i]
            said = model.network.task.describe(cut.prediction, cut.affine)["expression"]
            yield f"{model.path.stem}: {said}", overlaid(cut.picture, heat[number])
