"""Predictions on held-out faces, drawn: at even steps through each task's error, so that nobody picks."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.beton import Beton
from downstream.config import UNTRAINED, Mode
from downstream.labelled import LabelledSet, open_labelled
from downstream.reports.tables import pretrained_rows, quantity
from downstream.results import Metrics
from downstream.tasks import Task
from downstream.tasks.recognition import Recognition

Predictions = Mapping[str, NDArray[np.float32]]
RANGE = 0.05, 0.95
"""The quantiles of the error between which the examples lie."""


@dataclass(frozen=True)
class Strip:
    """What one row predicts of one task.

    Attributes:
        task: What.
        row: By whom.
        mode: linear, knn, frozen or finetune.
        fraction: Share of the labels.
        pictures: Data URIs.
        errors: Below each picture.
        columns: How many go side by side.
    """

    task: Task
    row: str
    mode: Mode
    fraction: float
    pictures: list[str]
    errors: list[str]
    columns: int


def labelled_set(metrics: Metrics) -> LabelledSet:
    """What was evaluated on, with the labels of every task.

    Raises:
        ConfigError: it is not where the evaluation found it.
    """
    paths = [metrics.data.path, *([metrics.data.test_path] if metrics.data.test_path else [])]
    return open_labelled(paths, metrics.tasks)


def strips(metrics: Metrics, labelled: LabelledSet, predictions: Predictions, count: int) -> Iterator[Strip]:
    """The first pretrained row's predictions of each task at the fewest labels; of the first task also the untrained.

    All rows of a task show the same ``count`` pictures: those at even steps through the pretrained row's error.
    """
    betons = [Beton(path) for path in labelled.paths]
    first = pretrained_rows(metrics)[0]
    others = [row.name for row in metrics.rows if row.kind == "random"]
    fitted = [task for task in metrics.tasks if not isinstance(task, Recognition)]
    for task in fitted:
        truth = labelled.labels[task.name][predictions["rows"]]
        picked = None
        for name in [first, *(others if task is fitted[0] else [])]:
            cell = _cell(metrics, predictions, name, task)
            if cell is None:
                continue
            mode, fraction = cell
            stored = predictions[f"{name}/{task.name}/{mode}/{fraction:g}"].astype(np.float64)
            values = task.shown(stored, regressed=mode in UNTRAINED)
            errors = task.errors(values, truth)
            if picked is None:
                order = np.argsort(errors, kind="stable")
                picked = order[(np.linspace(*RANGE, count) * (len(order) - 1)).round().astype(int)]
            drawn = [
                task.draw(picture_of(betons, labelled, int(predictions["rows"][i])), values[i], truth[i])
                for i in picked
            ]
            columns = count if drawn[0].width == drawn[0].height else min(count, 2)
            shown = [quantity(float(errors[i]), task.metrics[0].unit) for i in picked]
            yield Strip(task, name, mode, fraction, [_uri(picture) for picture in drawn], shown, columns)


def _cell(metrics: Metrics, predictions: Predictions, row: str, task: Task) -> tuple[Mode, float] | None:
    """The first mode that was asked for, at the fewest labels."""
    for mode in get_args(Mode):
        for fraction in sorted({m.fraction for m in metrics.measurements}):
            if f"{row}/{task.name}/{mode}/{fraction:g}" in predictions:
                return mode, fraction
    return None


def picture_of(betons: list[Beton], labelled: LabelledSet, row: int) -> Image.Image:
    """The crop in a row of the set, or of the two one after the other."""
    which = int(row >= labelled.first_test)
    return Image.fromarray(betons[which].image(row - which * labelled.first_test))


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
