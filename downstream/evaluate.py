"""One evaluation from config to metrics.json: read, predict every row, compare, write.

The trained cells, each a run of minutes or hours, may be computed beforehand by processes that share the folder.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs import ConfigError, dump, environment
from data_prep.beton import Beton
from data_prep.files import atomic_write, sha256_file, write_json
from data_prep.stage import WHOLE
from downstream.compare import compare
from downstream.config import Checkpoint, DownstreamConfig, Initialisation, Pixels, Random
from downstream.features import Network, calibrate, load_network, read_pictures, statistics
from downstream.labelled import LabelledSet, check_disjoint, open_labelled
from downstream.matrix import Bench, Cell, Prediction, Training, check_shares, predict_row, run, trainings
from downstream.model import TaskNetwork, load_model
from downstream.protocols import Indices, People, column_of
from downstream.regimes import Split, fixed_split, make_split
from downstream.results import (
    Data,
    Metrics,
    Row,
    claim,
    finished,
    inputs_hash,
    read_metrics,
    refuse_other,
    weights,
)
from downstream.tasks.recognition import Recognition
from pretrain.backbones import feature_dim

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "ffcv")


@dataclass(frozen=True)
class _Opened:
    """What is read before anything is predicted."""

    labelled: LabelledSet
    disjoint: bool | None
    split: Split
    """As stored, of all known people."""
    networks: Mapping[str, Network]
    """Row -> network, without the rows that have none."""
    inputs: str
    bench: Bench


def evaluate(cfg: DownstreamConfig) -> Metrics:
    """Run the matrix; write metrics.json, predictions.npz and config.yaml. Nothing if that is done already.

    Raises:
        ConfigError: if a file is missing, labels cannot be used, a person is in both sets, or the output folder is
            another one's.
    """
    if finished(cfg):
        return read_metrics(cfg.output)
    started = time.monotonic()
    opened = _open(cfg, cfg.initialisations)
    bench, networks = opened.bench, opened.networks
    predictions = {
        row.name: predict_row(row, networks.get(row.name), bench, cfg) for row in cfg.initialisations
    }
    measurements, comparisons = compare(cfg, bench, predictions)
    metrics = Metrics(
        inputs=opened.inputs,
        data=_data(cfg, opened),
        tasks=cfg.tasks,
        rows=tuple(_row(row, networks.get(row.name)) for row in cfg.initialisations),
        bootstrap_samples=cfg.bootstrap.samples,
        seeds={"split": cfg.split_seed, "bootstrap": cfg.bootstrap.seed, "train": cfg.train_seed},
        measurements=measurements,
        comparisons=comparisons,
        seconds=round(time.monotonic() - started, 1),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )
    _write(cfg, bench, predictions, metrics)
    shutil.rmtree(bench.cells, ignore_errors=True)
    with suppress(OSError):  # cells of other settings stay: somebody may be computing them
        bench.cells.parent.rmdir()
    return metrics


def keep_cells(cfg: DownstreamConfig, part: slice = WHOLE) -> int:
    """Train the cells in ``part`` of the enumeration that are not kept yet; how many those were.

    :func:`evaluate` finds them. What it would do besides is left to it, so that parts can run at the same time.

    Raises:
        ConfigError: as :func:`evaluate`.
    """
    todo = _missing(cfg, part)
    if todo:
        names = {each.row for each in todo}
        opened = _open(cfg, [row for row in cfg.initialisations if row.name in names])
        for each in todo:
            run(each, opened.networks[each.row], opened.bench, cfg)
    return len(todo)


def cells_finished(cfg: DownstreamConfig) -> bool:
    """Whether :func:`evaluate` has nothing left to train."""
    return not _missing(cfg, WHOLE)


def _missing(cfg: DownstreamConfig, part: slice) -> list[Training]:
    """The trainings of ``part`` that nobody has done yet."""
    if finished(cfg) or not trainings(cfg, 1):
        return []
    try:
        folder = _cells_folder(cfg, inputs_hash(cfg))
        parts = (
            1
            if cfg.protocol.kind != "folds"
            else len(_split(cfg, open_labelled(_paths(cfg), cfg.tasks)).parts)
        )
    except (FileNotFoundError, ConfigError):
        return trainings(cfg, 1)[
            part
        ]  # data or weights are not there yet: nothing can have been made from them
    return [each for each in trainings(cfg, parts)[part] if not each.path(folder).exists()]


def _paths(cfg: DownstreamConfig) -> list[str]:
    return [cfg.data, *([cfg.test_data] if cfg.test_data else [])]


def _cells_folder(cfg: DownstreamConfig, inputs: str) -> Path:
    return Path(cfg.output) / "cells" / inputs


def choose_device(name: str) -> torch.device:
    """The device of 'auto', 'cpu' or 'cuda'.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for but torch sees no GPU; set device=cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _open(cfg: DownstreamConfig, rows: Sequence[Initialisation]) -> _Opened:
    """Read all that ``rows``, some or all of the config's, need."""
    claim(cfg.output, "output", "metrics.json")
    device = choose_device(cfg.device)
    labelled = open_labelled(_paths(cfg), cfg.tasks)
    networks = {row.name: load_network(row, cfg.image_size) for row in rows if not isinstance(row, Pixels)}
    heads = {
        name: _trained_head(cfg, name, network) for name, network in networks.items() if name in cfg.heads
    }
    disjoint = check_disjoint(labelled, cfg.pretrain_data) if cfg.pretrain_data else None
    inputs = inputs_hash(cfg)  # of the files that were read, should they change meanwhile
    refuse_other(cfg, inputs)
    stored = _split(cfg, labelled)
    sizes = {row.size if isinstance(row, Pixels) else networks[row.name].size for row in rows}
    bench = _bench(cfg, labelled, stored, sizes, device, inputs)
    bench = replace(bench, heads=heads)
    networks = {name: _normalised(network, cfg, bench) for name, network in networks.items()}
    for row in rows:
        if isinstance(row, Random) and row.calibrate:
            network = networks[row.name]
            calibrate(network, bench.pictures[network.size], bench.split.train_rows, device)
    return _Opened(labelled, disjoint, stored, networks, inputs, bench)


def _trained_head(cfg: DownstreamConfig, row: str, network: Network) -> TaskNetwork:
    """The trained task that the heads of a row start from.

    Raises:
        ConfigError: it is of another task, has a form that a task cannot take, or stood on another backbone.
    """
    path = cfg.heads[row]
    model, _ = load_model(path)
    for task in cfg.tasks:
        if task.name != model.task.name:
            raise ConfigError(f"heads.{row}: {path} is of {model.task.name}; take {task.name} out of 'tasks'")
        try:
            task.take_over(model.head.state_dict(), model.task)
        except ConfigError as error:
            raise ConfigError(f"heads.{row}: {path}: {error}") from None
    mine, theirs = network.module.state_dict(), model.backbone.state_dict()
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
        raise ConfigError(
            f"heads.{row}: {path} did not stand on the frozen backbone of this row; give the model of its mode frozen"
        )
    return model


def _normalised(network: Network, cfg: DownstreamConfig, bench: Bench) -> Network:
    """The network with the normalisation that the config asks for."""
    if cfg.normalisation is None:
        return network
    if cfg.normalisation == "data":
        mean, std = statistics(bench.pictures[network.size], bench.split.train_rows)
        if not (std > 0).all():
            raise ConfigError(
                "normalisation: the pictures that are learnt from have no contrast; give mean and std"
            )
        return replace(network, mean=mean, std=std)
    return replace(
        network, mean=torch.tensor(cfg.normalisation.mean), std=torch.tensor(cfg.normalisation.std)
    )


def _bench(
    cfg: DownstreamConfig,
    labelled: LabelledSet,
    stored: Split,
    sizes: set[int],
    device: torch.device,
    inputs: str,
) -> Bench:
    split = stored.only(labelled.rows)
    for part in split.parts:
        if not part.test_rows or not part.train_rows:
            raise ConfigError(
                f"data: {cfg.data} has no complete labels for one side of the split; take tasks out"
            )
    subsets = {name: _subset(labelled, split, name, values) for name, values in cfg.subsets.items()}
    for task in cfg.tasks:
        for rows in (split.test_rows, *(split.test_rows[inside] for inside in subsets.values())):
            task.check(labelled.labels[task.name][rows])
    check_shares(cfg, labelled.labels, split)
    return Bench(
        tasks={task.name: task for task in cfg.tasks},
        labels=labelled.labels,
        people=labelled.people,
        split=split,
        subsets=subsets,
        pictures=read_pictures([Beton(path) for path in _paths(cfg)], sizes, cfg.memory_gb * 1e9),
        crop=labelled.manifests[0].crop,
        device=device,
        cells=_cells_folder(cfg, inputs),
        models=Path(cfg.output) / "models" if cfg.keep_models else None,
        inputs=inputs,
    )


def _subset(
    labelled: LabelledSet, split: Split, name: str, values: Mapping[str, str | bool | int]
) -> NDArray[np.bool_]:
    inside = np.ones(len(split.test_rows), np.bool_)
    for column, value in values.items():
        inside &= column_of(labelled.table, column, f"subsets.{name}")[split.test_rows] == value
    if not inside.any():
        raise ConfigError(f"subsets.{name}: no test picture has {dict(values)}; correct it or leave it out")
    return inside


def _split(cfg: DownstreamConfig, labelled: LabelledSet) -> Split:
    """The stored split. It covers every row, whatever the tasks: all experiments share it."""
    parts = cfg.protocol.parts(labelled.table, labelled.identities, labelled.first_test, cfg.split_seed)
    fresh = make_split(parts, labelled.sha256, cfg.protocol.model_dump_json(), cfg.split_seed)
    return fixed_split(split_path(cfg), fresh)


def split_path(cfg: DownstreamConfig) -> Path:
    """Where the split is kept: as configured, or beside the data set so that every experiment finds it."""
    if cfg.split is not None:
        return Path(cfg.split)
    if isinstance(cfg.protocol, People):
        name = f"{cfg.protocol.test_share:g}"
    else:
        told = f"{cfg.protocol.model_dump_json()} {cfg.test_data}"
        name = f"{cfg.protocol.kind}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return Path(cfg.data).with_suffix(f".split-{cfg.split_seed}-{name}.json")


def _data(cfg: DownstreamConfig, opened: _Opened) -> Data:
    labelled, bench = opened.labelled, opened.bench
    train, test = bench.split.train_rows, bench.test
    sources = [source for manifest in labelled.manifests for source in manifest.sources]
    return Data(
        path=cfg.data,
        test_path=cfg.test_data,
        sha256=labelled.sha256,
        synthetic=all(source.synthetic for source in sources),
        kinds=tuple(dict.fromkeys(source.kind for source in sources)),
        pictures=len(np.union1d(train, test)),
        train_pictures=len(train),
        train_identities=_people(labelled, train),
        test_pictures=len(test),
        test_identities=_people(labelled, test),
        shared_identities=_shared(labelled, bench.split),
        protocol=cfg.protocol,
        split=str(split_path(cfg)),
        split_sha256=opened.split.sha256(),
        disjoint_from_pretraining=opened.disjoint,
    )


def _people(labelled: LabelledSet, rows: Indices) -> int | None:
    """How many people; None where nobody knows."""
    known = labelled.identities[rows]
    return len(np.unique(known)) if (known >= 0).all() else None


def _shared(labelled: LabelledSet, split: Split) -> int | None:
    """People on both sides of a part; None where nobody knows, as in two corpora."""
    known = labelled.identities[np.concatenate([split.train_rows, split.test_rows])] >= 0
    if len(labelled.paths) > 1 or not known.all():
        return None
    person = labelled.identities
    sides = [(person[list(part.train_rows)], person[list(part.test_rows)]) for part in split.parts]
    return len(np.unique(np.concatenate([np.intersect1d(*side) for side in sides])))


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
        mean=_three(network.mean),
        std=_three(network.std),
    )


def _three(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


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
            if not isinstance(bench.tasks[task], Recognition):  # features of all pictures would be large
                arrays[f"{name}/{task}/{mode}/{fraction:g}"] = prediction.values.astype(np.float32)
    with atomic_write(output / "predictions.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_json(output / "split.json", bench.split.model_dump(mode="json"))
    with atomic_write(output / "config.yaml", "w") as file:
        file.write(dump(cfg))
    write_json(output / "environment.json", environment.record())
    write_json(output / "metrics.json", metrics.model_dump(mode="json"))
