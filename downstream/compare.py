"""From predictions to figures: every metric with its interval, every difference on the same draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from downstream.bootstrap import ClusterBootstrap, interval
from downstream.config import Checkpoint, DownstreamConfig
from downstream.matrix import Bench, Cell, Prediction
from downstream.results import Comparison, Measurement
from downstream.tasks import TASKS
from downstream.tasks.task import Array

Predictions = Mapping[str, Mapping[Cell, Prediction]]


@dataclass(frozen=True)
class _Scores:
    """The metrics of one cell: (M,) on the held-out pictures, (B, M) on the resamples."""

    value: Array
    resampled: Array


def compare(
    cfg: DownstreamConfig, bench: Bench, predictions: Predictions
) -> tuple[tuple[Measurement, ...], tuple[Comparison, ...]]:
    """Score every cell of every row, and every pretrained row against every other kind of row."""
    bootstrap = ClusterBootstrap(bench.people[bench.test], cfg.bootstrap.samples, cfg.bootstrap.seed)
    scores: dict[tuple[str, Cell], _Scores] = {}
    for row, cells in predictions.items():
        for cell, prediction in cells.items():
            task = TASKS[cell[0]]
            statistics = task.statistics(prediction.values, bench.labels[task.name][bench.test])
            scores[row, cell] = _Scores(
                task.reduce(statistics.mean(axis=0)), bootstrap.metrics(statistics, task.reduce)
            )
    pretrained = [row.name for row in cfg.initialisations if isinstance(row, Checkpoint)]
    baselines = [row.name for row in cfg.initialisations if not isinstance(row, Checkpoint)]
    measurements = [
        measurement
        for row, cells in predictions.items()
        for cell, prediction in cells.items()
        for measurement in _measurements(row, cell, prediction, scores[row, cell])
    ]
    comparisons = [
        comparison
        for row in pretrained
        for baseline in baselines
        for cell in predictions[row]
        if cell in predictions[baseline]
        for comparison in _comparisons(row, baseline, cell, scores[row, cell], scores[baseline, cell])
    ]
    return tuple(measurements), tuple(comparisons)


def _measurements(row: str, cell: Cell, prediction: Prediction, scores: _Scores) -> Iterator[Measurement]:
    task, mode, fraction = cell
    low, high = interval(scores.resampled)
    for i, metric in enumerate(TASKS[task].metrics):
        yield Measurement(
            row=row,
            task=task,
            mode=mode,
            fraction=fraction,
            metric=metric.name,
            unit=metric.unit,
            better=metric.better,
            value=float(scores.value[i]),
            low=float(low[i]),
            high=float(high[i]),
            train_labels=prediction.train_labels,
            alpha=prediction.alpha,
        )


def _comparisons(row: str, baseline: str, cell: Cell, ours: _Scores, theirs: _Scores) -> Iterator[Comparison]:
    task, mode, fraction = cell
    low, high = interval(ours.resampled - theirs.resampled)
    for i, metric in enumerate(TASKS[task].metrics):
        excludes = bool(low[i] > 0 or high[i] < 0)
        improved = (low[i] > 0) == (metric.better == "higher")
        yield Comparison(
            row=row,
            baseline=baseline,
            task=task,
            mode=mode,
            fraction=fraction,
            metric=metric.name,
            better=metric.better,
            difference=float(ours.value[i] - theirs.value[i]),
            low=float(low[i]),
            high=float(high[i]),
            excludes_zero=excludes,
            verdict=("better" if improved else "worse") if excludes else "undecided",
        )
