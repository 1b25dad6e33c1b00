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

SECOND = 1 << 40
"""Added to the identities of the second set."""


@dataclass(frozen=True)
class LabelledSet:
    """A .beton with labels, or two, one after the other.

    Attributes:
        paths: The .beton files.
        manifests: Their set.json.
        table: One row per picture, in order; null where only the other set has a column.
        first_test: Where the second set begins; the number of rows where there is none.
        labels: task -> (M, D), a row per picture.
        rows: (N,) rows that every task can use.
        identities: (M,) the person in each row, -1 where unknown; those of the second set are SECOND and more.
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
    table = pa.concat_tables(tables, promote_options="permissive")
    labels = {task.name: task.encode(table) for task in tasks}
    usable = {task.name: task.usable(labels[task.name]) for task in tasks}
    for task in tasks:
        if not usable[task.name].any():
            raise ConfigError(
                f"data: {paths[0]} knows {' and '.join(task.columns)} of no picture, which {task.name} needs; take "
                "it out of 'tasks'"
            )
    rows = np.flatnonzero(np.all(list(usable.values()), axis=0))
    if not len(rows):
        raise ConfigError(
            f"data: {paths[0]} has no picture with all labels that 'tasks' need; take tasks out"
        )
    manifests = tuple(beton.read_manifest(path) for path in paths)
    if len({manifest.sha256 for manifest in manifests}) < len(manifests):
        raise ConfigError("test_data: is the set that is learnt from; name another one")
    for path, manifest, each in zip(paths, manifests, tables, strict=True):
        if len(each) != manifest.count:
            raise ConfigError(
                f"{Path(path).with_suffix('.parquet')}: has {len(each)} rows for {manifest.count} pictures; write "
                "the set again with 'python -m data_prep write CONFIG'"
            )
    # Person 1 of the one set is not person 1 of the other.
    identities = [_identities(each) for each in tables]
    numbered = [np.where(known >= 0, known + i * SECOND, -1) for i, known in enumerate(identities)]
    return LabelledSet(tuple(paths), manifests, table, len(tables[0]), labels, rows, np.concatenate(numbered))


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
    """Whether no labelled person is in the pretraining set; None if that cannot be told.

    Numbers of people mean something within a corpus only. So it cannot be told of sets without a corpus in common,
    nor where the pretraining set does not know all its people.

    Raises:
        ConfigError: if a person is in both.
    """
    if not Path(pretrain_path).is_file():
        raise ConfigError(f"pretrain_data: {pretrain_path} does not exist; correct the path or leave it out")
    manifest, known = beton.read_manifest(pretrain_path), _identities(beton.read_labels(pretrain_path))
    seen = _people(manifest, known)
    bounds = [0, labelled.first_test, len(labelled.identities)]
    shown: set[tuple[str, int]] = set()
    for i, each in enumerate(labelled.manifests):
        own = labelled.identities[bounds[i] : bounds[i + 1]]
        shown |= _people(each, np.where(own >= 0, own - i * SECOND, -1))
    if shared := sorted(seen & shown):
        raise ConfigError(
            f"pretrain_data: {len(shared)} people of {labelled.paths[0]} are also in {pretrain_path} "
            f"(for example {shared[0][1]}); evaluate on people that pretraining has not seen"
        )
    corpora = {corpus for corpus, _ in seen} & {corpus for corpus, _ in shown}
    return True if corpora and (known >= 0).all() else None


def _people(manifest: beton.Manifest, identities: Indices) -> set[tuple[str, int]]:
    """(corpus, number in it) of everybody; a union has moved the numbers of its parts."""
    sources = sorted(manifest.sources, key=lambda source: source.identity_offset)
    offsets = np.array([source.identity_offset for source in sources])
    found = np.unique(identities[identities >= 0])
    which = np.searchsorted(offsets, found, side="right") - 1
    return {
        (_numbering(sources[i]), int(person - offsets[i]))
        for person, i in zip(found.tolist(), which.tolist(), strict=True)
    }


def _numbering(source: beton.SourceNote) -> str:
    """Within what a person's number means the same: a published corpus, or one folder or list of one's own."""
    return f"{source.kind} {source.name}" if source.kind in ("folder", "csv") else source.kind


def _identities(table: pa.Table) -> NDArray[np.int64]:
    if "identity" not in table.column_names:
        return np.full(len(table), -1, np.int64)
    return np.asarray(pc.fill_null(table.column("identity"), -1).to_numpy(), dtype=np.int64)
