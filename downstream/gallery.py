"""Pictures of runs side by side: errors of landmarks, action units, and the plane of valence and arousal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep.files import atomic_write
from downstream import pictures
from downstream.runs import Run, test_labels
from downstream.tables import percent
from downstream.tasks import TASKS
from downstream.tasks.task import Array

LIMIT = 10.0
"""Where a face counts as failed, NME in %, as WFLW and COFW are reported."""


def write_pictures(runs: Sequence[Run], figures: pd.DataFrame, folder: Path) -> None:
    """An SVG for each mode and share of the labels at which a task was measured; without labels only action units."""
    table = test_labels(runs[0])
    figures = figures[~figures["repeated"] & (figures["subset"] == "all")]
    for (task, mode, fraction), of_cell in figures.groupby(["task", "mode", "fraction"], sort=False):
        title = f"{mode}, {percent(fraction)} of the labels"
        if runs[0].metrics.data.synthetic:
            title += ", synthetic faces"
        if task == "action_units":
            picture = _units(of_cell, title)
        elif task in ("landmarks", "affect") and table is not None:
            picture = _predicted(runs, of_cell, table, title)
        else:
            continue
        with atomic_write(folder / f"{task}-{mode}-{fraction:g}.svg") as file:
            file.write(picture)


def _units(figures: pd.DataFrame, title: str) -> bytes:
    """ICC with its interval over people; or, if any row has several seeds, their mean and range."""
    each = figures[figures["metric"].str.startswith("icc_au")]
    several = each.duplicated(["row", "metric"]).any()
    low, high = ("value", "value") if several else ("low", "high")
    values: dict[str, dict[str, tuple[float, float, float]]] = {}
    for (row, metric), of_row in each.groupby(["row", "metric"], sort=False):
        bar = (of_row["value"].mean(), of_row[low].min(), of_row[high].max())
        values.setdefault(row, {})[metric.removeprefix("icc_").upper()] = bar
    spread = "mean and range of the seeds" if several else "95 % interval over people"
    return pictures.unit_bars(values, f"ICC(3,1)\n{spread}", title)


def _predicted(runs: Sequence[Run], figures: pd.DataFrame, table: pa.Table, title: str) -> bytes:
    """Of the errors of all seeds; of the predictions of the first seed."""
    task = figures["task"].iloc[0]
    truth = TASKS[task].encode(table)
    found = {row: list(_predictions(runs, of_row)) for row, of_row in figures.groupby("row", sort=False)}
    predictions = {row: seeds for row, seeds in found.items() if seeds}
    if task == "affect":
        return pictures.affect_planes(truth, {row: seeds[0] for row, seeds in predictions.items()}, title)
    errors = {
        row: np.concatenate([TASKS[task].statistics(seed, truth)[:, 0] for seed in seeds])
        for row, seeds in predictions.items()
    }
    return pictures.cumulative_errors(errors, LIMIT, title=title)


def _predictions(runs: Sequence[Run], figures: pd.DataFrame) -> Iterator[Array]:
    """One row's, of each run."""
    row, task, mode, fraction = figures[["row", "task", "mode", "fraction"]].iloc[0]
    for run in figures["run"].unique():
        if (prediction := runs[run].predictions(row, task, mode, fraction)) is not None:
            yield prediction
