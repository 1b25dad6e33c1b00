"""Finished evaluations on the same test pictures, to be read side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from configs import ConfigError
from downstream.labelled import LabelledSet, open_labelled
from downstream.protocols import Indices
from downstream.results import Metrics, read_metrics
from downstream.tasks.task import Array

CELL = ["task", "mode", "subset", "fraction", "metric"]
"""What one figure is of, whatever the row."""


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Attributes:
        folder: Its run directory.
        name: Put before the names of its rows: of two backbones that are called alike, each in runs of its own.
        metrics: Its figures.
        pictures: (N,) the test pictures, as rows of the .beton.
    """

    folder: Path
    name: str
    metrics: Metrics
    pictures: Indices

    def row(self, name: str) -> str:
        """A row's name among all runs."""
        return f"{self.name} {name}".strip()

    def rows(self) -> dict[str, str]:
        """Its rows by their name among all runs, and their kind."""
        return {self.row(row.name): row.kind for row in self.metrics.rows}

    def predictions(self, row: str, task: str, mode: str, fraction: float) -> NDArray[np.float64] | None:
        """(N, D) as they were stored; None where nothing was. ``row`` is its name among all runs."""
        own = next((r.name for r in self.metrics.rows if self.row(r.name) == row), None)
        with np.load(self.folder / "predictions.npz", allow_pickle=False) as archive:
            key = f"{own}/{task}/{mode}/{fraction:g}"
            return archive[key].astype(np.float64) if key in archive.files else None


def open_runs(words: Sequence[str]) -> list[Run]:
    """Read the runs named by ``words``, each the path of a run directory, or NAME=PATH.

    Raises:
        ConfigError: if one is not finished, or they were not measured on the same test pictures, alike.
    """
    runs = [_open(word) for word in words]
    for run in runs[1:]:
        _refuse_other_pictures(run, runs[0])
        _refuse_other_metrics(run, runs[0])
    twice = [run.folder for run in runs if [r.folder.resolve() for r in runs].count(run.folder.resolve()) > 1]
    if twice:
        raise ConfigError(f"runs: {twice[0]} is named twice; name each run once")
    return runs


def _open(word: str) -> Run:
    name, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        name, path = "", word
    metrics = read_metrics(path)
    stored = Path(path) / "predictions.npz"
    try:
        with np.load(stored, allow_pickle=False) as archive:
            pictures = archive["rows"]
    except (OSError, ValueError, KeyError, BadZipFile):
        raise ConfigError(
            f"{stored}: missing or damaged; delete metrics.json beside it and evaluate again"
        ) from None
    return Run(Path(path), name, metrics, pictures)


def _refuse_other_pictures(run: Run, first: Run) -> None:
    if run.metrics.data.sha256 != first.metrics.data.sha256:
        raise ConfigError(
            f"runs: {run.folder} and {first.folder} are evaluations of other data; compare runs of one set"
        )
    if not np.array_equal(run.pictures, first.pictures):
        raise ConfigError(
            f"runs: {run.folder} and {first.folder} have other test pictures "
            f"({len(np.setxor1d(run.pictures, first.pictures))} are in one of them only); "
            "evaluate both with the same split and tasks"
        )


def _refuse_other_metrics(run: Run, first: Run) -> None:
    for task in run.metrics.tasks:
        other = next((each for each in first.metrics.tasks if each.name == task.name), task)
        if (task.columns, task.metrics) != (other.columns, other.metrics):
            raise ConfigError(
                f"runs: {run.folder} and {first.folder} measure '{task.name}' by other settings; "
                "evaluate both with the same ones"
            )


def figures_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Every measurement, a line each: run (its number), row (its name among all runs), and all its fields.

    ``repeated`` marks a row that came out the same in an earlier run, to the last bit and in all figures of a mode.
    Raw pixels know no seed: three runs measure them once.
    """
    figures = pd.DataFrame(_records(runs))
    figures["repeated"] = False
    for _, group in figures.groupby(["row", "mode"], sort=False):
        seen: set[tuple[tuple[object, ...], ...]] = set()
        for _, of_run in group.groupby("run", sort=False):
            measured = tuple(of_run[[*CELL, "value"]].itertuples(index=False, name=None))
            figures.loc[of_run.index, "repeated"] = measured in seen
            seen.add(measured)
    return figures


def _records(runs: Sequence[Run]) -> Iterator[dict[str, object]]:
    for number, run in enumerate(runs):
        for measurement in run.metrics.measurements:
            yield {**measurement.model_dump(), "run": number, "row": run.row(measurement.row)}


@dataclass(frozen=True)
class Truth:
    """What is known of the test pictures.

    Attributes:
        labels: task -> (N, D).
        people: (N,) who is in each; a number of its own where nobody knows.
    """

    labels: Mapping[str, Array]
    people: NDArray[np.int64]


def data_of(runs: Sequence[Run]) -> LabelledSet:
    """What the runs were measured on.

    Raises:
        ConfigError: it is not here, or other data lies in its place.
    """
    tasks = {task.name: task for run in runs for task in run.metrics.tasks}
    labelled, data = open_labelled(_paths(runs[0]), list(tasks.values())), runs[0].metrics.data
    if labelled.sha256 != data.sha256:
        raise ConfigError(f"{data.path}: not the data that {runs[0].folder} was measured on; put that back")
    return labelled


def _paths(run: Run) -> list[str]:
    data = run.metrics.data
    return [data.path, *([data.test_path] if data.test_path else [])]


def truth_of(runs: Sequence[Run]) -> Truth | None:
    """The labels of the test pictures; None if the data is not here.

    Raises:
        ConfigError: if other data lies in its place.
    """
    if not all(Path(path).is_file() for path in _paths(runs[0])):
        return None
    labelled = data_of(runs)
    pictures = runs[0].pictures
    labels = {name: values[pictures] for name, values in labelled.labels.items()}
    return Truth(labels, labelled.people[pictures])
