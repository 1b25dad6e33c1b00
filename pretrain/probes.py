"""Online probes: what the frozen features are worth while the backbone is still being trained."""

from __future__ import annotations

from pathlib import Path

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
    """A k-NN probe on labelled pictures."""

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


class KNNProbe:
    """Accuracy, or R² averaged over the label's columns, of cosine k-NN from one half to the other."""

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
    def __call__(self, backbone: ResNet) -> float:
        """The probe's figure. Leaves the backbone, its batch-norm statistics and its mode as they were."""
        was_training = backbone.training
        backbone.eval()
        device = next(backbone.parameters()).device
        features = np.concatenate(
            [F.normalize(backbone(part.to(device)).float()).cpu().numpy() for part in self._images.split(128)]
        )
        backbone.train(was_training)
        return knn_score(features, self._labels, self._neighbours)


def knn_score(features: npt.NDArray[np.float32], labels: npt.NDArray[np.generic], neighbours: int) -> float:
    """k-NN from the even rows to the odd rows: accuracy for whole-number labels, else R²."""
    # Here: it takes a second and a half to import, and most commands do not come this far.
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    train, test = slice(0, None, 2), slice(1, None, 2)
    classify = np.issubdtype(labels.dtype, np.integer)
    model = (KNeighborsClassifier if classify else KNeighborsRegressor)(neighbours)
    predicted = model.fit(features[train], labels[train]).predict(features[test])
    score = accuracy_score if classify else r2_score
    return float(score(labels[test], predicted))


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
