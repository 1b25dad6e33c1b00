"""The predictions of one row of the table: every task, mode and label fraction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.files import atomic_write
from downstream.config import DownstreamConfig, Initialisation, Mode, Pixels, TaskName
from downstream.features import Network, extract, pixels
from downstream.finetune import finetune
from downstream.regimes import Indices, Split
from downstream.ridge import ridge
from downstream.tasks import TASKS, Task
from downstream.tasks.task import Array

Cell = tuple[TaskName, Mode, float]
"""Task, mode, fraction."""
Tuned = tuple[str, TaskName, float]
"""A cell that is fine-tuned: row, task, fraction."""


@dataclass(frozen=True)
class Bench:
    """What every row is measured on: made once, shared by all.

    Attributes:
        tasks: What is predicted.
        labels: task -> (M, D) labels, one row per picture of the .beton; NaN where a label is missing.
        people: (M,) the person in each picture.
        split: Train and test rows.
        pictures: size -> (M, 3, size, size) uint8.
        device: Where networks run.
        cells: Folder that keeps the fine-tuned cells until all are there, each a run of minutes.
    """

    tasks: Sequence[Task]
    labels: Mapping[TaskName, Array]
    people: NDArray[np.int64]
    split: Split
    pictures: Mapping[int, Tensor]
    device: torch.device
    cells: Path

    @property
    def test(self) -> Indices:
        """The held-out rows."""
        return np.array(self.split.test_rows, dtype=np.int64)


@dataclass(frozen=True)
class Prediction:
    """(N_test, D) predictions of one cell, and what they were learnt from."""

    values: Array
    train_labels: int
    alpha: float | None = None


def predict_row(
    row: Initialisation, network: Network | None, bench: Bench, cfg: DownstreamConfig
) -> dict[Cell, Prediction]:
    """Everything that the matrix asks of one initialisation. ``network`` is None for raw pixels."""
    cells: dict[Cell, Prediction] = {}
    if "frozen" in cfg.modes:
        cells.update(_frozen(row, network, bench, cfg.fractions))
    for name, task, fraction in tuned_cells(cfg):
        if name == row.name:
            assert network is not None
            cells[task, "finetune", fraction] = tune((name, task, fraction), network, bench, cfg)
    return cells


def _frozen(
    row: Initialisation, network: Network | None, bench: Bench, fractions: Sequence[float]
) -> Iterator[tuple[Cell, Prediction]]:
    if isinstance(row, Pixels):
        features = pixels(bench.pictures[row.size])
    else:
        assert network is not None
        features = extract(network, bench.pictures[network.size], bench.device, row.name)
    test = features[bench.test]
    for fraction in fractions:
        labelled = bench.split.labels(fraction)
        train, people = features[labelled], bench.people[labelled]
        fitted = [task for task in bench.tasks if task.head == "ridge"]
        labels = {task.name: bench.labels[task.name][labelled] for task in fitted}
        fits = ridge(train, labels, people, test)
        for task in fitted:
            values = fits[task.name].prediction.clip(*task.clip)
            yield (task.name, "frozen", fraction), Prediction(values, len(labelled), fits[task.name].alpha)
    # Nothing is fitted, so no fraction of labels applies; the features are centred and scaled without labels.
    train = features[bench.split.labels(1.0)].astype(np.float64)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    for task in bench.tasks:
        if task.head == "none":
            values = (test - mean) / np.where(scale > 0, scale, 1.0)
            yield (task.name, "frozen", 1.0), Prediction(values, 0)


def tuned_cells(cfg: DownstreamConfig) -> list[Tuned]:
    """The cells that are fine-tuned, in an order that nothing but the config decides."""
    wanted = {(run.task, run.fraction) for run in cfg.finetune.runs}
    return [
        (row.name, task, fraction)
        for row in cfg.initialisations
        for task in cfg.tasks
        for fraction in cfg.fractions
        if "finetune" in cfg.modes
        and not isinstance(row, Pixels)
        and TASKS[task].head == "ridge"
        and (not wanted or (task, fraction) in wanted)
    ]


def cell_path(folder: Path, cell: Tuned) -> Path:
    """Where the predictions of a fine-tuned cell are kept."""
    name, task, fraction = cell
    return folder / f"{quote(name, safe='')}-{task}-{fraction:g}.npy"


def tune(cell: Tuned, network: Network, bench: Bench, cfg: DownstreamConfig) -> Prediction:
    """Fine-tune one cell and keep its predictions; nothing if they are kept already."""
    name, task, fraction = cell[0], TASKS[cell[1]], cell[2]
    labelled = bench.split.labels(fraction)
    path = cell_path(bench.cells, cell)
    if path.exists():
        return Prediction(np.load(path, allow_pickle=False), len(labelled))
    pictures = bench.pictures[network.size]
    values = finetune(
        network,
        task,
        train=pictures[labelled],
        labels=bench.labels[task.name][labelled],
        test=pictures[bench.test],
        recipe=cfg.finetune,
        device=bench.device,
        name=f"{name}, {task.title}, {fraction:.0%} of the labels",
    )
    values = values.clip(*task.clip)
    with atomic_write(path) as file:
        np.save(file, values)
    return Prediction(values, len(labelled))
