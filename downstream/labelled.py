"""The labelled set: its usable rows, its people, and the proof that pretraining has not seen them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from configs import ConfigError
from data_prep import beton
from downstream.protocols import Indices
from downstream.tasks import Task
from downstream.tasks.task import Array


@dataclass(frozen=True)
class LabelledSet:
    """A .beton with labels, or two, one after the other.

    Attributes:
        paths: The .beton files.
        manifests: Their set.json.
        table: One row per picture, in order; the second set's columns are those of the first.
        first_test: Where the second set begins; the number of rows where there is none.
        labels: task -> (M, D), a row per picture.
        rows: (N,) rows that every task can use.
        identities: (M,) the person in each row, -1 where unknown.
    """

    paths: tuple[str, ...]
    manifests: tuple[beton.Manifest, ...]
    table: pa.Table
    first_test: int
    labels: Mapping[str, Array]
    rows: Indices
    identities: Indices

    @property
    def sha256(self) -> str:
        """Of the .beton, or of the hashes of both."""
        hashes = [manifest.sha256 for manifest in self.manifests]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("/".join(hashes).encode()).hexdigest()

    @property
    def people(self) -> Indices:
        """(M,) the person in each row; where unknown, a number of the row's own: all we know is the picture."""
        return np.where(self.identities >= 0, self.identities, -2 - np.arange(len(self.identities)))


def open_labelled(paths: Sequence[str], tasks: Sequence[Task]) -> LabelledSet:
    """Read manifests and labels.

    Args:
        paths: One .beton, or one for training and one for testing.
        tasks: What is asked for.

    Raises:
        ConfigError: if a set, or a column that a task needs, is not there.
    """
    tables = [_read(field, path, tasks) for field, path in zip(("data", "test_data"), paths, strict=False)]
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    table = pa.concat_tables([each.select(shared) for each in tables], promote_options="permissive")
    labels = {task.name: task.encode(table) for task in tasks}
    rows = np.flatnonzero(np.all([task.usable(labels[task.name]) for task in tasks], axis=0))
    if not len(rows):
        raise ConfigError(
            f"data: {paths[0]} has no picture with all labels that 'tasks' need; take tasks out"
        )
    manifests = tuple(beton.read_manifest(path) for path in paths)
    return LabelledSet(tuple(paths), manifests, table, len(tables[0]), labels, rows, _identities(table))


def _read(field: str, path: str, tasks: Sequence[Task]) -> pa.Table:
    if not Path(path).is_file():
        raise ConfigError(
            f"{field}: {path} does not exist; run the data preparation of the labelled set first"
        )
    table = beton.read_labels(path)
    for task in tasks:
        for column in task.columns:
            if column not in table.column_names:
                raise ConfigError(
                    f"{field}: {path} has no labels '{column}'; take the tasks that need it out of 'tasks'"
                )
    return table


def check_disjoint(labelled: LabelledSet, pretrain_path: str) -> bool | None:
    """Whether no labelled person is in the pretraining set; None if either does not know its people.

    Raises:
        ConfigError: if a person is in both.
    """
    if not Path(pretrain_path).is_file():
        raise ConfigError(f"pretrain_data: {pretrain_path} does not exist; correct the path or leave it out")
    seen = _people(_identities(beton.read_labels(pretrain_path)))
    shown = _people(labelled.identities)
    shared = np.intersect1d(seen, shown)
    if len(shared):
        raise ConfigError(
            f"pretrain_data: {len(shared)} people of {labelled.paths[0]} are also in {pretrain_path} "
            f"(for example {shared[0]}); evaluate on people that pretraining has not seen"
        )
    return True if len(seen) and len(shown) else None


def _people(identities: Indices) -> Indices:
    return np.unique(identities[identities >= 0])


def _identities(table: pa.Table) -> NDArray[np.int64]:
    if "identity" not in table.column_names:
        return np.full(len(table), -1, np.int64)
    return np.asarray(pc.fill_null(table.column("identity"), -1).to_numpy(), dtype=np.int64)
