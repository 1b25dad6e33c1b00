"""One evaluation from config to metrics.json: read, predict every row, compare, write."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from configs import ConfigError, dump, environment
from data_prep.beton import Beton
from data_prep.files import atomic_write, sha256_file, write_json
from downstream.compare import compare
from downstream.config import Checkpoint, DownstreamConfig, Initialisation, Pixels
from downstream.features import Network, load_network, read_pictures
from downstream.labelled import LabelledSet, check_disjoint, open_labelled
from downstream.matrix import Bench, Cell, Prediction, predict_row
from downstream.regimes import Split, fixed_split, make_split
from downstream.results import Data, Metrics, Row, finished, inputs_hash, read_metrics, weights
from downstream.tasks import TASKS, Task
from downstream.tasks.task import Array
from pretrain.backbones import feature_dim

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "ffcv")


def evaluate(cfg: DownstreamConfig) -> Metrics:
    """Run the matrix; write metrics.json, predictions.npz and config.yaml. Nothing if that is done already.

    Raises:
        ConfigError: if a file is missing, labels cannot be used, or a person is in both sets.
    """
    if finished(cfg):
        return read_metrics(cfg.output)
    started = time.monotonic()
    device = choose_device(cfg.device)
    labelled = open_labelled(cfg.data, [TASKS[name] for name in cfg.tasks])
    networks = {
        row.name: load_network(row, cfg.image_size)
        for row in cfg.initialisations
        if not isinstance(row, Pixels)
    }
    inputs = inputs_hash(cfg)  # of the files that were read, should they change meanwhile
    disjoint = check_disjoint(labelled, cfg.pretrain_data) if cfg.pretrain_data else None
    split = _split(cfg, labelled)
    cells = Path(cfg.output) / "cells" / inputs
    bench = _bench(cfg, labelled, split, networks, device, cells)
    predictions = {
        row.name: predict_row(row, networks.get(row.name), bench, cfg) for row in cfg.initialisations
    }
    measurements, comparisons = compare(cfg, bench, predictions)
    metrics = Metrics(
        inputs=inputs,
        data=_data(cfg, labelled, split, bench, disjoint),
        rows=tuple(_row(row, networks.get(row.name)) for row in cfg.initialisations),
        bootstrap_samples=cfg.bootstrap.samples,
        seeds={"split": cfg.split_seed, "bootstrap": cfg.bootstrap.seed, "finetune": cfg.finetune.seed},
        measurements=measurements,
        comparisons=comparisons,
        seconds=round(time.monotonic() - started, 1),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )
    _write(cfg, bench, predictions, metrics)
    shutil.rmtree(cells.parent, ignore_errors=True)
    return metrics


def choose_device(name: str) -> torch.device:
    """The device of 'auto', 'cpu' or 'cuda'.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for but torch sees no GPU; set device=cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _bench(
    cfg: DownstreamConfig,
    labelled: LabelledSet,
    stored: Split,
    networks: Mapping[str, Network],
    device: torch.device,
    cells: Path,
) -> Bench:
    tasks = [TASKS[name] for name in cfg.tasks]
    split = stored.only(labelled.rows)
    if not split.test_rows or not split.train_rows:
        raise ConfigError(
            f"data: {cfg.data} has no complete labels for one side of the split; take tasks out"
        )
    labels = {task.name: _labels(task, labelled) for task in tasks}
    for task in tasks:
        _refuse_constant(task, labels[task.name][np.array(split.test_rows)])
    sizes = {row.size if isinstance(row, Pixels) else networks[row.name].size for row in cfg.initialisations}
    pictures = read_pictures(Beton(cfg.data), sizes)
    return Bench(tasks, labels, labelled.identities, split, pictures, device, cells)


def _split(cfg: DownstreamConfig, labelled: LabelledSet) -> Split:
    """The stored split. It covers every known person, whatever the tasks: all experiments share it."""
    known = np.flatnonzero(labelled.identities >= 0)
    fresh = make_split(
        known, labelled.identities[known], labelled.manifest.sha256, cfg.test_share, cfg.split_seed
    )
    return fixed_split(split_path(cfg), fresh)


def split_path(cfg: DownstreamConfig) -> Path:
    """Where the split is kept: as configured, or beside the data set so that every experiment finds it."""
    if cfg.split is not None:
        return Path(cfg.split)
    return Path(cfg.data).with_suffix(f".split-{cfg.split_seed}-{cfg.test_share:g}.json")


def _labels(task: Task, labelled: LabelledSet) -> Array:
    """(M, D), a row per picture of the .beton, NaN where a label is missing."""
    known = task.encode(labelled.labels.take(labelled.rows))
    labels = np.full((len(labelled.labels), known.shape[1]), np.nan)
    labels[labelled.rows] = known
    return labels


def _refuse_constant(task: Task, labels: Array) -> None:
    """A correlation with labels that never change is undefined: say so now, not as NaN later."""
    constant = np.flatnonzero(np.ptp(labels, axis=0) == 0)
    if len(constant):
        raise ConfigError(
            f"tasks: {task.name} has the same label on every test picture (output {constant[0]}); "
            "take the task out or use more test people"
        )


def _data(
    cfg: DownstreamConfig, labelled: LabelledSet, stored: Split, bench: Bench, disjoint: bool | None
) -> Data:
    train = np.array(bench.split.train_rows)
    return Data(
        path=cfg.data,
        sha256=labelled.manifest.sha256,
        synthetic=all(source.synthetic for source in labelled.manifest.sources),
        pictures=len(labelled.rows),
        train_pictures=len(train),
        train_identities=len(np.unique(labelled.identities[train])),
        test_pictures=len(bench.test),
        test_identities=len(np.unique(labelled.identities[bench.test])),
        split=str(split_path(cfg)),
        split_sha256=stored.sha256(),
        disjoint_from_pretraining=disjoint,
    )


def _row(row: Initialisation, network: Network | None) -> Row:
    if isinstance(row, Pixels):
        return Row(
            name=row.name,
            kind="pixels",
            seed=None,
            source=None,
            source_sha256=None,
            architecture=None,
            features=3 * row.size**2,
            image_size=row.size,
        )
    assert network is not None
    source = weights(row)
    assert source is not None
    return Row(
        name=row.name,
        kind=row.kind,
        seed=None if isinstance(row, Checkpoint) else row.seed,
        source=source,
        source_sha256=sha256_file(source),
        architecture=f"{network.architecture}, width {network.width:g}",
        features=feature_dim(network.module),
        image_size=network.size,
    )


def _write(
    cfg: DownstreamConfig,
    bench: Bench,
    predictions: Mapping[str, Mapping[Cell, Prediction]],
    metrics: Metrics,
) -> None:
    """metrics.json comes last: it is the mark of a finished run."""
    output = Path(cfg.output)
    arrays: dict[str, np.ndarray] = {"rows": bench.test}
    for name, cells in predictions.items():
        for (task, mode, fraction), prediction in cells.items():
            if TASKS[task].head == "ridge":
                arrays[f"{name}/{task}/{mode}/{fraction:g}"] = prediction.values.astype(np.float32)
    with atomic_write(output / "predictions.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_json(output / "split.json", bench.split.model_dump(mode="json"))
    with atomic_write(output / "config.yaml", "w") as file:
        file.write(dump(cfg))
    write_json(output / "environment.json", environment.record())
    write_json(output / "metrics.json", metrics.model_dump(mode="json"))
