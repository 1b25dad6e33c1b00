"""A backbone with a task's head: what a training leaves behind, and what predicts.

The file is safetensors: the weights, and in its header the task's settings, the backbone's and the geometry of the
crops that it was trained on. Nothing in it is executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from configs import ConfigError
from data_prep.files import atomic_write
from downstream.features import Network, Pictures, in_batches
from downstream.heads import Head, stage_maps, stage_widths
from downstream.protocols import Indices
from downstream.tasks import AnyTask, Task
from downstream.tasks.task import Array
from pretrain import backbones

FORMAT = "facerep task 1"
AT_ONCE = 32
"""Pictures: heat maps of all points and channels are large."""


class TaskNetwork(nn.Module):
    """(N, 3, s, s) normalised pictures to the outputs of a head.

    Args:
        task: What is predicted.
        network: The backbone, and what its input must look like.
        labels: (N, D) training labels, from which a head may take its first values.
    """

    def __init__(self, task: Task, network: Network, labels: Array) -> None:
        super().__init__()
        self.task, self.network = task, network
        self.backbone = network.module
        self.labels = labels.shape[1]
        self.head: Head = task.head(stage_widths(network.module), labels)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs of the head."""
        outputs: Tensor = self.head(stage_maps(self.backbone, images))
        return outputs

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Array:
        """(B, 3, s, s) values 0..255 -> (B, P) predictions, on the network's device."""
        device = next(self.parameters()).device
        outputs = self.eval()(self.network.normalise(images.to(device)))
        return np.asarray(self.head.predict(outputs).double().cpu().numpy(), np.float64)

    def predict_rows(self, pictures: Pictures, rows: Indices, name: str) -> Array:
        """(N, P) predictions of rows of a set."""
        bar = tqdm(in_batches(rows, AT_ONCE), desc=name, leave=False, mininterval=1)
        return np.concatenate([self.predict(pictures.take(part)) for part in bar])


def save_model(path: Path, model: TaskNetwork, crop: dict[str, Any], note: dict[str, str]) -> None:
    """Write weights and header.

    Args:
        path: What to write.
        model: The network.
        crop: How the faces of the training set were cut, from its manifest.
        note: What else the header says.
    """
    header = (
        note
        | model.network.header
        | {
            "format": FORMAT,
            "task": model.task.model_dump_json(exclude={"recipe"}),
            "crop": json.dumps(crop),
            "labels": str(model.labels),
        }
    )
    tensors = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(tensors, header))


def load_model(path: str | Path) -> tuple[TaskNetwork, dict[str, str]]:
    """The network in a file of :func:`save_model`, in evaluation mode, and the header.

    Raises:
        ConfigError: it is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as a trained task ({error})") from None
    if header.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: holds no trained task; give a file that an evaluation wrote with keep_models=true"
        )
    try:
        task: Task = TypeAdapter(AnyTask).validate_json(header["task"])
    except ValidationError as error:
        raise ConfigError(f"{path}: its task is not known here ({error.errors()[0]['msg']})") from None
    backbone = backbones.build(header["architecture"], float(header["width"]))  # type: ignore[arg-type]
    mean, std = (torch.tensor(json.loads(header[name])) for name in ("mean", "std"))
    network = Network(
        backbone, header["architecture"], float(header["width"]), int(header["image_size"]), mean, std
    )
    # The head takes its shape from labels, and its values from the file.
    model = TaskNetwork(task, network, np.zeros((2, int(header["labels"]))))
    model.load_state_dict(tensors)
    return model.eval(), header
