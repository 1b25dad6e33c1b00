"""Pictures of runs side by side: errors of landmarks, action units, valence and arousal, confused expressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from data_prep.files import atomic_write
from downstream.reports import pictures
from downstream.reports.runs import Run, truth_of
from downstream.reports.tables import percent
from downstream.tasks import Task
from downstream.tasks.action_units import ActionUnits
from downstream.tasks.affect import Affect
from downstream.tasks.expression import Expression
from downstream.tasks.landmarks import Landmarks
from downstream.tasks.task import Array


def write_pictures(runs: Sequence[Run], figures: pd.DataFrame, folder: Path) -> list[str]:
    """SVG files for each mode and share of the labels at which a task was measured.

    Where the labels are not at hand, only the action units are drawn, which takes the figures alone.

    Args:
        runs: The runs.
        figures: Of :func:`downstream.reports.runs.figures_of`.
        folder: Where they are written.

    Returns:
        Their names.
    """
    written: list[str] = []
    truth = truth_of(runs)
    tasks = {task.name: task for run in runs for task in run.metrics.tasks}
    figures = figures[~figures["repeated"] & (figures["subset"] == "all")]
    for (name, mode, fraction), of_cell in figures.groupby(["task", "mode", "fraction"], sort=False):
        stem = f"{name}-{mode}-{fraction:g}"
        title = f"{mode}, {percent(fraction)} of the labels"
        if runs[0].metrics.data.synthetic:
            title += ", synthetic faces"
        drawn = {stem: _units(of_cell, title)} if isinstance(tasks[name], ActionUnits) else {}
        if truth is not None:
            predictions = _predictions(runs, of_cell)
            if predictions:
                drawn |= dict(_predicted(tasks[name], predictions, truth.labels[name], stem, title))
        for file_name, picture in drawn.items():
            written.append(f"{file_name}.svg")
            with atomic_write(folder / written[-1]) as file:
                file.write(picture)
    return written


def _units(figures: pd.DataFrame, title: str) -> bytes:
    """ICC with its interval over people; or, if any row has several seeds, their mean and range."""
    each = figures[figures["metric"].str.startswith("icc_au")]
    several = each.duplicated(["row", "metric"]).any()
    low, high = ("value", "value") if several else ("low", "high")
    values: dict[str, dict[str, tuple[float, float, float]]] = {}
    for (row, metric), of_row in each.groupby(["row", "metric"], sort=False):
        bar = (of_row["value"].mean(), of_row[low].min(), of_row[high].max())
        values.setdefault(row, {})[metric.removeprefix("icc_").upper()] = bar
    spread = "mean and range of the seeds" if several else "95 % interval"
    return pictures.unit_bars(values, f"ICC(3,1)\n{spread}", title)


def _predictions(runs: Sequence[Run], figures: pd.DataFrame) -> dict[str, list[Array]]:
    """Row -> (N, P) of each seed, where they were stored."""
    found: dict[str, list[Array]] = {}
    cells = figures[["row", "run", "task", "mode", "fraction"]].drop_duplicates()
    for row, run, *cell in cells.itertuples(index=False, name=None):
        prediction = runs[run].predictions(row, *cell)
        if prediction is not None:
            found.setdefault(row, []).append(prediction)
    return found


def _predicted(
    task: Task, predictions: Mapping[str, Sequence[Array]], truth: Array, stem: str, title: str
) -> Iterator[tuple[str, bytes]]:
    """Name and picture; of all seeds together, but for the plane, which shows the first."""
    if isinstance(task, Landmarks):
        errors = {
            row: np.concatenate([task.statistics(seed, truth)[:, 0] for seed in seeds])
            for row, seeds in predictions.items()
        }
        yield stem, pictures.cumulative_errors(errors, 100 * task.threshold, title=title)
    if isinstance(task, Affect):
        planes = {row: seeds[0][:, :2] for row, seeds in predictions.items()}
        yield stem, pictures.affect_planes(truth[:, :2], planes, title)
    if isinstance(task, Expression):
        for row, seeds in predictions.items():
            classes = np.tile(truth[:, 0].astype(int), len(seeds))
            guesses = np.concatenate([seed.argmax(axis=1) for seed in seeds])
            picture = pictures.confusion(classes, guesses, task.classes, f"{row}: {title}", seeds=len(seeds))
            yield f"{stem}-{quote(row.replace(' ', '_'), safe='')}", picture
