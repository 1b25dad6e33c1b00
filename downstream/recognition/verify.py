"""``python -m downstream verify CONFIG``: backbones on verification sets -> verification.json, .md and roc.svg."""

from __future__ import annotations

import hashlib
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError
from tqdm import tqdm

from configs import Config, ConfigError, config_hash, dump
from data_prep.files import atomic_write, sha256_file, write_json
from downstream.config import Initialisation, Pixels
from downstream.features import Network, load_network, pixels
from downstream.recognition.config import IjbSet, PairSet, VerifyConfig
from downstream.recognition.protocols import (
    Float,
    Roc,
    fold_accuracy,
    pair_similarity,
    roc,
    template_embeddings,
    unit,
)
from downstream.recognition.sets import BATCH, Pictures, open_pairs, open_templates
from downstream.results import claim, weights

VERSION = 1
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")
CURVE_POINTS = 200


class Verification(Config):
    """One backbone on one set."""

    row: str
    """Name of the initialisation."""
    set: str
    """Name of the set."""
    pairs: int
    """Pairs, of pictures or of templates."""
    missing: int
    """Pictures that the .beton does not have; their pairs are called different people."""
    accuracy: float | None
    """Mean over the folds, %; None for templates."""
    accuracy_std: float | None
    """Standard deviation over the folds, %."""
    auc: float
    """Area under the ROC, %."""
    tar: dict[str, float]
    """FAR -> largest true accept rate at no more than that rate, %."""
    tar_nearest: dict[str, float]
    """FAR -> true accept rate at the nearest false accept rate there is, %: what IJB tables report."""
    curve: tuple[tuple[float, float], ...]
    """FAR and TAR of the ROC, thinned."""


class VerificationResults(Config):
    """verification.json."""

    version: Literal[1] = 1
    """Of this schema."""
    inputs: str
    """Hash of the settings, the sets and the weights."""
    results: tuple[Verification, ...]
    """Every cell."""
    seconds: float
    """Wall time."""
    versions: dict[str, str]
    """Of Python and the libraries."""


def verify(cfg: VerifyConfig) -> VerificationResults:
    """Measure every row on every set; nothing if that is on disk already.

    Raises:
        ConfigError: a file is missing or damaged, or a network gives what is not finite.
    """
    from downstream.evaluate import choose_device
    from downstream.recognition.show import markdown, roc_figure

    if finished(cfg):
        return read_verification(cfg.output)
    claim(cfg.output, "output", "verification.json")
    inputs, path = inputs_hash(cfg), Path(cfg.output) / "verification.json"
    started = time.monotonic()
    device = choose_device(cfg.device)
    networks = {
        row.name: None if isinstance(row, Pixels) else load_network(row, cfg.image_size)
        for row in cfg.initialisations
    }
    results = tuple(
        _measure(row, networks[row.name], which, cfg, device)
        for which in cfg.sets
        for row in cfg.initialisations
    )
    done = VerificationResults(
        inputs=inputs,
        results=results,
        seconds=round(time.monotonic() - started, 1),
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )
    for name, text in (
        ("config.yaml", dump(cfg)),
        ("verification.md", markdown(results)),
        ("roc.svg", roc_figure(results)),
    ):
        with atomic_write(path.with_name(name), "w") as file:
            file.write(text)
    write_json(path, done.model_dump(mode="json"))
    return done


def finished(cfg: VerifyConfig) -> bool:
    """Whether exactly these figures are on disk."""
    if not (Path(cfg.output) / "verification.json").exists():
        return False
    return read_verification(cfg.output).inputs == inputs_hash(cfg)


def read_verification(folder: str) -> VerificationResults:
    """verification.json of a finished run."""
    path = Path(folder) / "verification.json"
    try:
        return VerificationResults.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: {error.errors()[0]['msg']}; delete it and verify again") from None


def inputs_hash(cfg: VerifyConfig) -> str:
    """Hash of all that decides the figures: settings, sets, weights, version; not the device or the place.

    Raises:
        ConfigError: one of the files is not there.
    """
    files = [path for row in cfg.initialisations if (path := weights(row))]
    parts = [config_hash(cfg, exclude={"output", "device"}), str(VERSION)]
    files += [str(path) for which in cfg.sets for path in which.files]
    missing = next((path for path in files if not Path(path).is_file()), None)
    if missing:
        raise ConfigError(f"{missing} does not exist; correct the path, or make it first")
    parts += [sha256_file(path) for path in files]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


# --- one cell ------------------------------------------------------------------------------------------------


def _measure(
    row: Initialisation,
    network: Network | None,
    which: PairSet | IjbSet,
    cfg: VerifyConfig,
    device: torch.device,
) -> Verification:
    label = f"{row.name} on {which.name}"
    if isinstance(which, IjbSet):
        listed, pictures = open_templates(which)
        found = _embed(row, network, pictures, cfg, device, label) * pictures.score[:, None]
        there = pictures.row >= 0
        names, vectors = template_embeddings(found[there], listed.template[there], listed.media[there])
        known = np.isin(listed.left, names) & np.isin(listed.right, names)
        left, right = (
            np.searchsorted(names, t).clip(max=len(names) - 1) for t in (listed.left, listed.right)
        )
        curve = roc(np.where(known, pair_similarity(vectors, left, right), -1.0), listed.same)
        return _result(row, which, len(listed.same), pictures, curve, cfg)
    pairs, pictures = open_pairs(which)
    vectors = unit(_embed(row, network, pictures, cfg, device, label))
    there = (pictures.row[pairs.left] >= 0) & (pictures.row[pairs.right] >= 0)
    similarity = np.where(there, pair_similarity(vectors, pairs.left, pairs.right), -1.0)
    folds = fold_accuracy((2 - 2 * similarity).clip(0, 4), pairs.same, pairs.fold)
    return _result(row, which, len(pairs), pictures, roc(similarity, pairs.same), cfg).model_copy(
        update={"accuracy": _percent(folds.mean), "accuracy_std": _percent(folds.std)}
    )


def _result(
    row: Initialisation,
    which: PairSet | IjbSet,
    pairs: int,
    pictures: Pictures,
    curve: Roc,
    cfg: VerifyConfig,
) -> Verification:
    return Verification(
        row=row.name,
        set=which.name,
        pairs=pairs,
        missing=int((pictures.row < 0).sum()),
        accuracy=None,
        accuracy_std=None,
        auc=_percent(curve.auc),
        tar={f"{far:g}": _percent(curve.tar_at(far)) for far in cfg.fars},
        tar_nearest={f"{far:g}": _percent(curve.tar_nearest(far)) for far in cfg.fars},
        curve=_thinned(curve),
    )


@torch.inference_mode()
def _embed(
    row: Initialisation,
    network: Network | None,
    pictures: Pictures,
    cfg: VerifyConfig,
    device: torch.device,
    label: str,
) -> Float:
    """(N, F) features; zeros where there is no picture."""
    size = row.size if isinstance(row, Pixels) else network.size if network else 0
    module = None if network is None else network.module.to(device).eval()
    features: Float = np.zeros((0, 0))
    total = -(-int((pictures.row >= 0).sum()) // BATCH)
    for numbers, batch in tqdm(pictures.batches(size), desc=label, total=total, leave=False, mininterval=1):
        views = [batch, batch.flip(-1)] if cfg.flip else [batch]
        if module is None or network is None:
            parts = [pixels(view).astype(np.float64) for view in views]
        else:
            parts = [module(network.normalise(v.to(device))).double().cpu().numpy() for v in views]
        if not features.size:
            features = np.zeros((pictures.count, parts[0].shape[1]))
        features[numbers] = sum(parts)
    return _standardised(features, pictures.row >= 0) if cfg.standardise else features


def _standardised(features: Float, there: np.ndarray) -> Float:
    mean, scale = features[there].mean(axis=0), features[there].std(axis=0)
    return np.where(there[:, None], (features - mean) / np.where(scale > 0, scale, 1.0), 0.0)


def _thinned(curve: Roc) -> tuple[tuple[float, float], ...]:
    """Enough points for a picture with a logarithmic axis."""
    wanted = np.concatenate([[0.0], np.geomspace(1e-6, 1, CURVE_POINTS)])
    at = np.unique(np.searchsorted(curve.far, wanted, side="right") - 1)
    return tuple((float(curve.far[i]), float(curve.tar[i])) for i in at)


def _percent(share: float) -> float:
    return round(100 * share, 4)
