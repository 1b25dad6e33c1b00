"""From predictions to figures: every metric with its interval, every difference on the same draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downstream.bootstrap import ClusterBootstrap, interval
from downstream.config import Bootstrap, Checkpoint, DownstreamConfig
from downstream.matrix import Bench, Cell, Prediction
from downstream.results import Comparison, Measurement
from downstream.tasks import Task
from downstream.tasks.task import Array

Predictions = Mapping[str, Mapping[Cell, Prediction]]


@dataclass(frozen=True)
class _Scores:
    """The metrics of one cell: (M,) on the held-out pictures, (B, M) on the resamples."""

    value: Array
    resampled: Array


class Place(NamedTuple):
    """Where a figure stands, but for the row and the metric."""

    task: Task
    cell: Cell
    subset: str


def compare(
    cfg: DownstreamConfig, bench: Bench, predictions: Predictions
) -> tuple[tuple[Measurement, ...], tuple[Comparison, ...]]:
    """Score every cell of every row; compare every pretrained row with every other kind of row, and the first of them
    with the others.
    """
    pretrained = [row.name for row in cfg.initialisations if isinstance(row, Checkpoint)]
    baselines = [row.name for row in cfg.initialisations if not isinstance(row, Checkpoint)]
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    everything = np.ones(len(bench.test), np.bool_)
    for subset, inside in {"all": everything, **bench.subsets}.items():
        scores = _scores(bench, predictions, inside, cfg.bootstrap)
        for row, cells in predictions.items():
            for cell, prediction in cells.items():
                which = Place(bench.tasks[cell[0]], cell, subset)
                measurements += _measurements(row, which, prediction, scores[row, cell])
        for row, baseline in (*product(pretrained, baselines), *product(pretrained[:1], pretrained[1:])):
            for cell in predictions[row]:
                if cell in predictions[baseline]:
                    which = Place(bench.tasks[cell[0]], cell, subset)
                    comparisons += _comparisons(
                        row, baseline, which, scores[row, cell], scores[baseline, cell]
                    )
    return tuple(measurements), tuple(comparisons)


def _scores(
    bench: Bench, predictions: Predictions, inside: NDArray[np.bool_], config: Bootstrap
) -> dict[tuple[str, Cell], _Scores]:
    """The metrics of every cell on some of the test pictures."""
    rows = bench.test[inside]
    bootstrap = ClusterBootstrap(bench.people[rows], config.samples, config.seed)
    scores = {}
    for row, cells in predictions.items():
        for cell, prediction in cells.items():
            task, truth = bench.tasks[cell[0]], bench.labels[cell[0]][rows]
            values = prediction.values[inside]
            value = np.array(list(task.evaluate(values, truth).values()))
            scores[row, cell] = _Scores(value, bootstrap.metrics(task.statistics(values, truth), task.reduce))
    return scores


def _measurements(row: str, place: Place, prediction: Prediction, scores: _Scores) -> Iterator[Measurement]:
    low, high = interval(scores.resampled)
    for i, metric in enumerate(place.task.metrics):
        yield Measurement(
            row=row,
            task=place.task.name,
            mode=place.cell[1],
            fraction=place.cell[2],
            subset=place.subset,
            metric=metric.name,
            unit=metric.unit,
            better=metric.better,
            value=float(scores.value[i]),
            low=float(low[i]),
            high=float(high[i]),
            train_labels=prediction.train_labels,
            alpha=prediction.alpha,
        )


def _comparisons(
    row: str, baseline: str, place: Place, ours: _Scores, theirs: _Scores
) -> Iterator[Comparison]:
    low, high = interval(ours.resampled - theirs.resampled)
    for i, metric in enumerate(place.task.metrics):
        excludes = bool(low[i] > 0 or high[i] < 0)
        improved = (low[i] > 0) == (metric.better == "higher")
        yield Comparison(
            row=row,
            baseline=baseline,
            task=place.task.name,
            mode=place.cell[1],
            fraction=place.cell[2],
            subset=place.subset,
            metric=metric.name,
            better=metric.better,
            difference=float(ours.value[i] - theirs.value[i]),
            low=float(low[i]),
            high=float(high[i]),
            excludes_zero=excludes,
            verdict=("better" if improved else "worse") if excludes else "undecided",
        )
