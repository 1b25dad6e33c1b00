"""The predictions of one row of the table: every task, mode and label fraction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import torch as safetensors
from torch import Tensor

from configs import ConfigError
from data_prep.files import atomic_write
from downstream.config import UNTRAINED, DownstreamConfig, Initialisation, Mode, Pixels
from downstream.features import Network, Pictures, extract, pixels
from downstream.model import TaskNetwork, save_model
from downstream.nearest import nearest
from downstream.protocols import Indices
from downstream.recipe import Phase
from downstream.recognition.train import train_recognition
from downstream.regimes import PartRows, Split
from downstream.ridge import ridge
from downstream.tasks import Task
from downstream.tasks.recognition import Recognition
from downstream.tasks.task import Array
from downstream.train import train
from pretrain import backbones

Cell = tuple[str, Mode, float]
"""Task, mode, fraction."""
GROUPS = 10
"""Into so many are pictures of unknown people divided, where the ridge leaves out a person at a time."""


@dataclass(frozen=True)
class Training:
    """One training: a cell of one row, on one part of the protocol."""

    row: str
    task: str
    mode: Mode
    fraction: float
    part: int

    def __str__(self) -> str:
        return f"{self.row}, {self.task}, {self.mode}, {self.fraction:g} of the labels"

    def path(self, folder: Path) -> Path:
        """Where its predictions are kept."""
        part = f"-{self.part}" if self.part else ""
        return folder / f"{quote(self.row, safe='')}-{self.task}-{self.mode}-{self.fraction:g}{part}.npy"


@dataclass(frozen=True)
class Bench:
    """What every row is measured on: made once, shared by all.

    Attributes:
        tasks: name -> what is predicted.
        labels: task -> (M, D) labels, one row per picture; NaN where a label is missing.
        people: (M,) the person in each picture.
        split: Train and test rows.
        subsets: name -> (N_test,) which test rows are in it.
        pictures: size -> the pictures.
        crop: How the faces were cut.
        device: Where networks run.
        cells: Folder that keeps the trained cells until all are there, each a run of minutes or hours.
        models: Folder for trained networks; None: they are not kept.
        inputs: Hash of all that decides the figures.
        heads: Row -> a trained task whose head its own start from.
    """

    tasks: Mapping[str, Task]
    labels: Mapping[str, Array]
    people: NDArray[np.int64]
    split: Split
    subsets: Mapping[str, NDArray[np.bool_]]
    pictures: Mapping[int, Pictures]
    crop: dict[str, Any]
    device: torch.device
    cells: Path
    models: Path | None
    inputs: str
    heads: Mapping[str, TaskNetwork] = field(default_factory=dict)

    @property
    def test(self) -> Indices:
        """The test rows of all parts."""
        return self.split.test_rows

    def train_rows(self, task: Task, part: PartRows, fraction: float) -> Indices:
        """Whose labels may be used."""
        return part.labels(fraction, self.people if isinstance(task, Recognition) else None)


@dataclass(frozen=True)
class Prediction:
    """(N_test, P) predictions of one cell, and what they were learnt from."""

    values: Array
    train_labels: int
    alpha: float | None = None


def predict_row(
    row: Initialisation, network: Network | None, bench: Bench, cfg: DownstreamConfig
) -> dict[Cell, Prediction]:
    """Everything that the matrix asks of one initialisation. ``network`` is None for raw pixels."""
    cells: dict[Cell, Prediction] = {}
    if not UNTRAINED.isdisjoint(cfg.modes):
        cells.update(_read_off(_features(row, network, bench), bench, cfg))
    parts: dict[Cell, list[Prediction]] = {}
    for each in trainings(cfg, len(bench.split.parts)):
        if each.row == row.name:
            assert network is not None
            parts.setdefault((each.task, each.mode, each.fraction), []).append(run(each, network, bench, cfg))
    return cells | {cell: _joined(several) for cell, several in parts.items()}


def _joined(parts: Sequence[Prediction]) -> Prediction:
    """The test pictures of all folds, one after another."""
    alphas = {part.alpha for part in parts}
    labels = round(sum(part.train_labels for part in parts) / len(parts))
    return Prediction(
        np.concatenate([part.values for part in parts]), labels, alphas.pop() if len(alphas) == 1 else None
    )


# --- linear, knn: read off the features as they are ----------------------------------------------------------


def _read_off(
    features: NDArray[np.float32], bench: Bench, cfg: DownstreamConfig
) -> Iterator[tuple[Cell, Prediction]]:
    """``features``: (M, F), a row per picture."""
    fitted = [task for task in bench.tasks.values() if not isinstance(task, Recognition)]
    for mode, fraction in product((mode for mode in cfg.modes if mode in UNTRAINED), cfg.fractions):
        neighbours = cfg.neighbours if mode == "knn" else None
        parts = [_readouts(features, bench, fitted, part, fraction, neighbours) for part in bench.split.parts]
        for task in fitted:
            yield (task.name, mode, fraction), _joined([part[task.name] for part in parts])
    for task in bench.tasks.values():
        if isinstance(task, Recognition) and "linear" in cfg.modes:
            yield (task.name, "linear", 1.0), Prediction(_standardised(features, bench), 0)


def _features(row: Initialisation, network: Network | None, bench: Bench) -> NDArray[np.float32]:
    """(M, F), a row per picture; zeros where it is of no use."""
    used = np.union1d(bench.split.train_rows, bench.test)
    if isinstance(row, Pixels):
        found = pixels(bench.pictures[row.size].take(used))
    else:
        assert network is not None
        found = extract(network, bench.pictures[network.size], used, bench.device, row.name)
    features = np.zeros((len(bench.people), found.shape[1]), np.float32)
    features[used] = found
    return features


def _readouts(
    features: NDArray[np.float32],
    bench: Bench,
    tasks: Sequence[Task],
    part: PartRows,
    fraction: float,
    neighbours: int | None,
) -> dict[str, Prediction]:
    """By so many nearest neighbours; None: by a ridge regression."""
    rows, test = part.labels(fraction), np.array(part.test_rows, dtype=np.int64)
    found = {}
    # Tasks that know the same rows share the costly part of the fit.
    groups: dict[bytes, list[Task]] = {}
    for task in tasks:
        complete = ~np.isnan(bench.labels[task.name][rows]).any(axis=1)
        groups.setdefault(complete.tobytes(), []).append(task)
    for mask, together in groups.items():
        known = rows[np.frombuffer(mask, np.bool_)]
        people = np.where(bench.people[known] >= 0, bench.people[known], -1 - known % GROUPS)
        targets = {task.name: task.targets(bench.labels[task.name][known]) for task in together}
        fits = (
            ridge(features[known], targets, people, features[test])
            if neighbours is None
            else nearest(features[known], targets, features[test], neighbours)
        )
        for task in together:
            fit = fits[task.name]
            found[task.name] = Prediction(task.clip(fit.prediction), len(known), fit.alpha)
    return found


def _standardised(features: NDArray[np.float32], bench: Bench) -> Array:
    """(N_test, F) features in units of the spread of the pictures that are learnt from, of folds all: no label is
    seen, so no fraction applies.
    """
    train = features[bench.split.train_rows].astype(np.float64)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    return np.asarray((features[bench.test] - mean) / np.where(scale > 0, scale, 1.0), np.float64)


# --- trained: a head, with the backbone or without -----------------------------------------------------------


def trainings(cfg: DownstreamConfig, parts: int) -> list[Training]:
    """What is trained, in an order that nothing but the config decides."""
    wanted = {(cell.task, cell.fraction) for cell in cfg.trained}
    return [
        Training(row.name, task.name, mode, fraction, part)
        for row in cfg.initialisations
        for task in cfg.tasks
        for mode in cfg.modes
        for fraction in cfg.fractions
        for part in range(parts)
        if mode not in UNTRAINED
        and not isinstance(row, Pixels)
        and not (mode == "frozen" and isinstance(task, Recognition))  # it has no head to train
        and (not wanted or wanted & {(task.name, fraction), (task.name, None)})
    ]


def check_shares(cfg: DownstreamConfig, labels: Mapping[str, Array], split: Split) -> None:
    """Refuse a share of the labels that leaves what is read off features fewer than two pictures.

    A head can be trained on one, which every share has.

    Raises:
        ConfigError: naming the task, and the smallest share that is enough.
    """
    fitted = [task.name for task in cfg.tasks if not isinstance(task, Recognition)]
    for name, fraction, part in product(fitted, sorted(cfg.fractions), split.parts):
        known = np.asarray(np.isfinite(labels[name][part.labels(1.0)]).all(axis=1), np.bool_)
        count = known[: len(part.labels(fraction))].sum()
        if not UNTRAINED.isdisjoint(cfg.modes) and count < 2:
            raise ConfigError(
                f"fractions: at {fraction:g} {('no picture', 'only 1 picture')[count]} to learn from has all labels "
                f"of {name}; {_enough(known)}"
            )


def _enough(known: NDArray[np.bool_]) -> str:
    """The smallest share with two of the (N,) pictures in their fixed order."""
    if known.sum() < 2:
        return "take the task out"
    share = (np.flatnonzero(known)[1] + 1) / len(known)
    return f"two are needed, and {math.ceil(1e4 * share) / 1e4:g} is the smallest share that has them"


def run(each: Training, network: Network, bench: Bench, cfg: DownstreamConfig) -> Prediction:
    """Train one and keep its predictions; only read them if they are kept already."""
    task, part = bench.tasks[each.task], bench.split.parts[each.part]
    rows, path = bench.train_rows(task, part, each.fraction), each.path(bench.cells)
    if not path.exists():
        if isinstance(task, Recognition):
            values = _learn_people(each, task, network, rows, bench, cfg)
        else:
            values = _learn(each, task, network, rows, bench, cfg)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{each}: {np.count_nonzero(~np.isfinite(values))} predictions are not numbers, the training came "
                "apart; give it a lower recipe.lr"
            )
        with atomic_write(path) as file:
            np.save(file, values)
    return Prediction(np.load(path, allow_pickle=False), len(rows))


def _learn(
    each: Training, task: Task, network: Network, rows: Indices, bench: Bench, cfg: DownstreamConfig
) -> Array:
    """(N_test, P) predictions of a network that was trained on ``rows``."""
    recipe, pictures = task.recipe or cfg.recipe, bench.pictures[network.size]
    labels, path = bench.labels[task.name][rows], each.path(bench.cells)
    given = bench.heads.get(each.row)
    head = None if given is None else task.take_over(given.head.state_dict(), given.task)

    def phase(how: Phase, head: Mapping[str, Tensor] | None, *, frozen: bool) -> TaskNetwork:
        return train(
            network,
            task,
            pictures,
            rows,
            labels,
            how,
            steps=how.length(len(rows), each.fraction),
            frozen=frozen,
            seed=cfg.train_seed,
            device=bench.device,
            checkpoint=path.with_suffix(".pt"),
            name=str(each),
            head=head,
        )

    if each.mode == "frozen":
        model = phase(recipe.for_head(), head, frozen=True)
    else:
        if recipe.head_first:
            # Kept beside the cell: a training that is killed later does not begin with the head again.
            kept = path.with_suffix(".head")
            if not kept.exists():
                first = phase(recipe.head_first, head, frozen=True)
                with atomic_write(kept) as file:
                    file.write(safetensors.save(first.head.cpu().state_dict()))
            head = safetensors.load(kept.read_bytes())
        model = phase(recipe, head, frozen=False)
    if bench.models:
        note = {"row": each.row, "mode": each.mode, "fraction": f"{each.fraction:g}", "inputs": bench.inputs}
        save_model(each.path(bench.models).with_suffix(".safetensors"), model, bench.crop, note)
    return model.predict_rows(pictures, _test(bench, each), str(each))


def _learn_people(
    each: Training, task: Recognition, network: Network, rows: Indices, bench: Bench, cfg: DownstreamConfig
) -> Array:
    """(N_test, F) features of a backbone that was trained to tell the people in ``rows`` apart."""
    folder = each.path(bench.cells).with_suffix("")
    backbone, header = network.module, network.header
    tuned = train_recognition(
        cfg.data, rows, backbone, header, task.cosface, folder, seed=cfg.train_seed, device=cfg.device
    )
    assert tuned is not None  # nobody can ask it to stop
    if bench.models:
        with atomic_write(each.path(bench.models).with_suffix(".safetensors")) as file:
            file.write(tuned.read_bytes())
    learnt = replace(network, module=backbones.load(tuned)[0])
    pictures = bench.pictures[network.size]
    return extract(learnt, pictures, _test(bench, each), bench.device, str(each)).astype(np.float64)


def _test(bench: Bench, each: Training) -> Indices:
    return np.array(bench.split.parts[each.part].test_rows, dtype=np.int64)
