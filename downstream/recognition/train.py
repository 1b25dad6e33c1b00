"""Fine-tune a backbone to tell people apart: a run of the pretraining engine with the method "supervised".

So it runs on several ranks, goes on after a kill, and refuses a loss that is not finite, as pretraining does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torchvision.models.resnet import ResNet

from configs import ConfigError
from data_prep.files import atomic_write
from downstream.protocols import Indices
from downstream.recognition.recipe import CosFaceRecipe
from pretrain import train
from pretrain.agreement import StopRequest
from pretrain.backbones import BackboneConfig, serialise
from pretrain.checkpoint import CheckpointConfig
from pretrain.data import DataConfig
from pretrain.distributed import DeviceName
from pretrain.lars import SGDConfig
from pretrain.methods.supervised import SupervisedConfig
from pretrain.schedule import ScheduleConfig
from pretrain.views import CropConfig, ViewsConfig


def train_recognition(
    data: str,
    rows: Indices,
    backbone: ResNet,
    header: Mapping[str, str],
    recipe: CosFaceRecipe,
    folder: Path,
    *,
    seed: int = 0,
    device: DeviceName = "auto",
    stop: StopRequest | None = None,
) -> Path | None:
    """Train ``backbone`` on the identities in ``rows`` of the .beton ``data``, or go on with it.

    Args:
        data: The set; its set.parquet has the column identity.
        rows: (N,) rows to learn from, in any order.
        backbone: The first weights; it is left as it is.
        header: Of its hand-off file: architecture, width, image_size, and the mean and std that it is fed with.
        recipe: The settings.
        folder: Of this run alone: the first weights, the rows, checkpoints, and at the end the backbone.
        seed: Of batches, mirroring and the identities' first weights; the same for every row of a table.
        device: Where it runs.
        stop: Where a request to stop is noted.

    Returns:
        The path of the finished ``backbone.safetensors``; None after a stop.

    Raises:
        ConfigError: the rows cannot be learnt from, or ``folder`` holds another run.
        FloatingPointError, OSError: as :func:`pretrain.train.train`.
    """
    if len(rows) < 2:
        raise ConfigError(
            f"data: {len(rows)} pictures of {data} to learn people from; give a larger label share"
        )
    numbers = io.BytesIO()
    np.save(numbers, np.sort(np.asarray(rows, np.int64)))
    _keep(folder / "rows.npy", numbers.getvalue())
    _keep(folder / "init.safetensors", serialise(backbone, header))
    config = _config(data, len(rows), header, recipe, folder)
    return train.train(config.model_copy(update={"seed": seed, "device": device}), stop)


def _keep(path: Path, content: bytes) -> None:
    """Leave ``content`` at ``path``; what another run has left there is not overwritten."""
    if not path.exists():
        with atomic_write(path) as file:
            file.write(content)
    elif path.read_bytes() != content:
        raise ConfigError(
            f"{path} is of a run with other rows or first weights; choose another folder or delete it"
        )


def _config(
    data: str, count: int, header: Mapping[str, str], recipe: CosFaceRecipe, folder: Path
) -> train.PretrainConfig:
    mean, std = (tuple(json.loads(header[name])) for name in ("mean", "std"))
    size = int(header["image_size"])
    return train.PretrainConfig(
        output=str(folder),
        precision=recipe.precision,
        epochs=recipe.epochs,
        batch_size=min(recipe.batch_size, count),
        batch_norm="global",
        data=DataConfig(
            path=data, rows=str(folder / "rows.npy"), decoder=recipe.decoder, workers=recipe.workers
        ),
        views=ViewsConfig(
            crops=(CropConfig(count=1, size=size, scale=(1.0, 1.0)),),
            ratio=(1.0, 1.0),
            flip=recipe.flip,
            jitter=0.0,
            grey=0.0,
            blur=0.0,
            mean=mean,
            std=std,
        ),
        backbone=BackboneConfig(
            architecture=header["architecture"],  # type: ignore[arg-type]
            width=float(header["width"]),
            init=str(folder / "init.safetensors"),
        ),
        method=SupervisedConfig(
            name="supervised", margin=recipe.margin, scale=recipe.scale, sample_rate=recipe.sample_rate
        ),
        optimizer=SGDConfig(name="sgd", momentum=recipe.momentum, weight_decay=recipe.weight_decay),
        schedule=ScheduleConfig(lr=recipe.lr, final_lr=recipe.final_lr, warmup_epochs=recipe.warmup_epochs),
        checkpoint=CheckpointConfig(every_steps=recipe.checkpoint_steps),
    )
