"""The labelled set: its complete rows, its people, and the proof that pretraining has not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from configs import ConfigError
from data_prep import beton
from downstream.regimes import Indices
from downstream.tasks import Task


@dataclass(frozen=True)
class LabelledSet:
    """A .beton with labels.

    Attributes:
        path: The .beton.
        manifest: Its set.json.
        labels: One row per picture of the .beton, in its order.
        rows: (N,) rows that carry every label asked for.
        identities: (M,) the person in each row of ``labels``, -1 where unknown.
    """

    path: str
    manifest: beton.Manifest
    labels: pa.Table
    rows: Indices
    identities: NDArray[np.int64]


def open_labelled(path: str, tasks: Sequence[Task]) -> LabelledSet:
    """Read manifest and labels.

    Raises:
        ConfigError: if the set, or a column that a task needs, is not there.
    """
    if not Path(path).is_file():
        raise ConfigError(f"data: {path} does not exist; run the data preparation of the labelled set first")
    labels = beton.read_labels(path)
    complete = np.ones(len(labels), dtype=bool)
    for column in {"identity", *(column for task in tasks for column in task.columns)}:
        if column not in labels.column_names:
            raise ConfigError(
                f"data: {path} has no labels '{column}'; take the tasks that need it out of 'tasks'"
            )
        complete &= pc.is_valid(labels.column(column)).to_numpy()
    identities = _identities(labels)
    rows = np.flatnonzero(complete & (identities >= 0))
    if not len(rows):
        raise ConfigError(f"data: {path} has no picture with all labels that 'tasks' need; take tasks out")
    return LabelledSet(path, beton.read_manifest(path), labels, rows, identities)


def check_disjoint(labelled: LabelledSet, pretrain_path: str) -> bool | None:
    """Whether no labelled person is in the pretraining set; None if that one does not know its people.

    Raises:
        ConfigError: if a person is in both.
    """
    if not Path(pretrain_path).is_file():
        raise ConfigError(f"pretrain_data: {pretrain_path} does not exist; correct the path or leave it out")
    table = beton.read_labels(pretrain_path)
    seen = _identities(table) if "identity" in table.column_names else np.empty(0, dtype=np.int64)
    seen = np.unique(seen[seen >= 0])
    shared = np.intersect1d(seen, labelled.identities)
    if len(shared):
        raise ConfigError(
            f"pretrain_data: {len(shared)} people of {labelled.path} are also in {pretrain_path} "
            f"(for example {shared[0]}); evaluate on people that pretraining has not seen"
        )
    return True if len(seen) else None


def _identities(table: pa.Table) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(table.column("identity"), -1).to_numpy(), dtype=np.int64)
