"""Probes: what the frozen features are worth while the backbone is still being trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.models.resnet import ResNet

from configs import Config, ConfigError
from data_prep.beton import Beton, read_labels
from pretrain.views import ViewsConfig


class ProbeConfig(Config):
    """A k-NN and a linear probe on labelled pictures."""

    data: str = Field(
        description="a .beton whose set.parquet holds the labels; may be the training set itself"
    )
    column: str = Field(description="the label: whole numbers are classified, others regressed")
    every_epochs: float = Field(1.0, gt=0)
    neighbours: int = Field(10, ge=1)
    pictures: int = Field(
        1000, ge=20, description="how many are used, half as references and half as queries"
    )
    image_size: int = Field(64, ge=8, description="pixels a side at which the pictures are embedded")


class Probe:
    """Accuracy, or R² averaged over the label's columns, from one half of the pictures to the other."""

    def __init__(self, config: ProbeConfig, views: ViewsConfig) -> None:
        if not Path(config.data).exists():
            raise ConfigError(f"probe.data: {config.data} does not exist; run data_prep or write probe=null")
        beton = Beton(config.data)
        labels = read_labels(config.data)
        if config.column not in labels.column_names:
            known = ", ".join(labels.column_names)
            raise ConfigError(f"probe.column: {config.data} has no label '{config.column}' (known: {known})")
        rows = np.linspace(0, len(beton) - 1, min(config.pictures, len(beton))).astype(int)
        self._labels = _as_array(labels.column(config.column).take(rows).to_pylist())
        self._images = _small_images(beton, rows, config.image_size, views)
        self._neighbours = config.neighbours

    @torch.no_grad()
    def __call__(self, backbone: ResNet) -> dict[str, float]:
        """``knn`` and ``linear``. Leaves the backbone, its batch-norm statistics and its mode as they were."""
        was_training = backbone.training
        backbone.eval()
        device = next(backbone.parameters()).device
        features = np.concatenate(
            [F.normalize(backbone(part.to(device)).float()).cpu().numpy() for part in self._images.split(128)]
        )
        backbone.train(was_training)
        return {
            "knn": knn_score(features, self._labels, self._neighbours),
            "linear": linear_score(features, self._labels),
        }


def knn_score(features: npt.NDArray[np.float32], labels: npt.NDArray[np.generic], neighbours: int) -> float:
    """k-NN from the even rows to the odd rows: accuracy for whole-number labels, else R²."""
    # Here: it takes a second and a half to import, and most commands do not come this far.
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    model = KNeighborsClassifier if _are_classes(labels) else KNeighborsRegressor
    return _even_to_odd(model(neighbours), features, labels)


def linear_score(features: npt.NDArray[np.float32], labels: npt.NDArray[np.generic]) -> float:
    """Ridge on standardised features, its strength chosen by leave-one-out; as :func:`knn_score` else."""
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = RidgeClassifierCV if _are_classes(labels) else RidgeCV
    strengths = np.logspace(-1, 4, 11)
    return _even_to_odd(make_pipeline(StandardScaler(), model(alphas=strengths)), features, labels)


def _even_to_odd(model: Any, features: npt.NDArray[np.float32], labels: npt.NDArray[np.generic]) -> float:
    from sklearn.metrics import accuracy_score, r2_score

    predicted = model.fit(features[::2], labels[::2]).predict(features[1::2])
    return float((accuracy_score if _are_classes(labels) else r2_score)(labels[1::2], predicted))


def _are_classes(labels: npt.NDArray[np.generic]) -> bool:
    return np.issubdtype(labels.dtype, np.integer)


def _as_array(values: list[object]) -> npt.NDArray[np.generic]:
    array = np.asarray(values)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)


def _small_images(beton: Beton, rows: npt.NDArray[np.int64], size: int, views: ViewsConfig) -> Tensor:
    """(n, 3, size, size) float32, normalised."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (views.mean, views.std))
    small = []
    for row in rows:
        picture = torch.tensor(beton.image(int(row))).permute(2, 0, 1)[None]
        resized = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)[0]
        small.append((resized.float() / 255 - mean) / std)
    return torch.stack(small)
