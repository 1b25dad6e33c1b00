"""What a run leaves behind: the schemas of metrics.json and of the demo's results.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pydantic

from configs import Config, ConfigError, config_hash
from data_prep.beton import read_manifest
from data_prep.files import sha256_file
from downstream.config import Checkpoint, DownstreamConfig, Initialisation, Mode, Pixels, TaskName
from pretrain import log

# Goes up when the same settings, data and weights would lead to other figures.
VERSION = 1


class Measurement(Config):
    """One figure of one row."""

    row: str
    """Name of the initialisation."""
    task: TaskName
    """Name of the task."""
    mode: Mode
    """frozen or finetune."""
    fraction: float
    """Share of the training labels."""
    metric: str
    """Name of the metric, see docs/downstream.md."""
    subset: str = "all"
    """Which of the held-out pictures."""
    unit: Literal["%", "deg", ""]
    """Unit of value, low and high."""
    better: Literal["lower", "higher"]
    """Direction of improvement."""
    value: float
    """The metric on the held-out pictures."""
    low: float
    """2.5 % point over resampled held-out identities."""
    high: float
    """97.5 % point."""
    train_labels: int
    """Labelled pictures that were used; 0 where nothing is trained."""
    alpha: float | None
    """The ridge penalty that was chosen (frozen only)."""


class Comparison(Config):
    """A pretrained row against a baseline, on the same resamples."""

    row: str
    """The pretrained row."""
    baseline: str
    """The row it is compared with."""
    task: TaskName
    """Name of the task."""
    mode: Mode
    """frozen or finetune."""
    fraction: float
    """Share of the training labels."""
    metric: str
    """Name of the metric."""
    subset: str = "all"
    """Which of the held-out pictures."""
    better: Literal["lower", "higher"]
    """Direction of improvement."""
    difference: float
    """row - baseline, in the metric's unit."""
    low: float
    """2.5 % point of the difference."""
    high: float
    """97.5 % point."""
    excludes_zero: bool
    """Whether the interval leaves out 0."""
    verdict: Literal["better", "worse", "undecided"]
    """better or worse if the interval excludes 0, by the metric's direction."""


class Data(Config):
    """What was evaluated on."""

    path: str
    """The .beton."""
    sha256: str
    """Of the .beton."""
    synthetic: bool
    """Whether the faces are rendered."""
    pictures: int
    """Pictures with all labels."""
    train_pictures: int
    """Pictures of the training people."""
    train_identities: int
    """Training people."""
    test_pictures: int
    """Held-out pictures."""
    test_identities: int
    """Held-out people."""
    split: str
    """The file that fixes the split and the order of the labels."""
    split_sha256: str
    """Of its content."""
    disjoint_from_pretraining: bool | None
    """True: checked, no shared person. None: not checked, or pretraining does not know its people."""


class Row(Config):
    """One initialisation."""

    name: str
    """As in the tables."""
    kind: Literal["checkpoint", "random", "pixels"]
    """What it is."""
    seed: int | None
    """Of the initial weights (random)."""
    source: str | None
    """The backbone.safetensors read for weights (checkpoint) or shape (random)."""
    source_sha256: str | None
    """Of that file."""
    architecture: str | None
    """torchvision's name and the width factor."""
    features: int
    """Length of the feature vector."""
    image_size: int
    """Pixels a side of its input."""


class Metrics(Config):
    """metrics.json: one evaluation."""

    version: Literal[1] = 1
    """Of this schema."""
    inputs: str
    """Hash of the config, the data and the weights: an equal one means that nothing has to be done again."""
    data: Data
    """What was evaluated on."""
    rows: tuple[Row, ...]
    """What was compared."""
    bootstrap_samples: int
    """Resamples behind every interval."""
    seeds: dict[str, int]
    """split, bootstrap and finetune."""
    measurements: tuple[Measurement, ...]
    """Every figure."""
    comparisons: tuple[Comparison, ...]
    """Every pretrained row against every baseline."""
    seconds: float
    """Wall time of the evaluation."""
    versions: dict[str, str]
    """Of Python and the libraries."""

    def measurement(self, row: str, task: str, mode: str, fraction: float, metric: str) -> Measurement | None:
        """The one figure with these coordinates, if it was measured."""
        key = (row, task, mode, fraction, metric)
        return next(
            (m for m in self.measurements if (m.row, m.task, m.mode, m.fraction, m.metric) == key), None
        )

    def comparison(
        self, row: str, baseline: str, task: str, mode: str, fraction: float, metric: str
    ) -> Comparison | None:
        """The one comparison with these coordinates, if it was made."""
        key = (row, baseline, task, mode, fraction, metric)
        return next(
            (c for c in self.comparisons if (c.row, c.baseline, c.task, c.mode, c.fraction, c.metric) == key),
            None,
        )


class PretrainCurve(Config):
    """How the pretraining went."""

    step: tuple[int, ...]
    """Of each logged row."""
    loss: tuple[float, ...]
    """Training loss."""
    ln_k: float | None
    """ln of the number of prototypes: the loss of a network that has learnt nothing."""
    probe_step: tuple[int, ...]
    """Steps at which the k-NN probe ran."""
    probe: tuple[float, ...]
    """Its figure, as the pretraining logged it."""
    linear: tuple[float, ...] = ()
    """The linear probe's figure at the same steps; none before there was one."""


class Results(Config):
    """results.json: everything that the demo's page shows."""

    version: Literal[1] = 1
    """Of this schema."""
    synthetic: bool
    """Whether the faces are rendered: then nothing here speaks about photographs."""
    metrics: Metrics
    """The evaluation."""
    pretrain: PretrainCurve | None
    """The pretraining."""
    face_sizes: dict[str, int]
    """Histogram of the detected face sizes: "low-high" in source pixels -> faces."""
    commands: tuple[str, ...]
    """The commands that led here."""


def read_metrics(run: str | Path) -> Metrics:
    """metrics.json of a run directory."""
    path = Path(run) / "metrics.json"
    try:
        return Metrics.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run 'python -m downstream CONFIG' first") from None
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {error.errors()[0]['msg']}; delete it and evaluate again") from None


def read_curve(run: str | Path) -> PretrainCurve:
    """The loss and probe curves of a pretraining run directory."""
    path = Path(run) / "metrics.jsonl"
    rows = log.read_metrics(path)
    if not rows:
        raise ConfigError(f"pretrain: {path} is missing or empty; run the pretraining first")
    probed = [row for row in rows if "knn" in row]
    return PretrainCurve(
        step=tuple(int(row["step"]) for row in rows),
        loss=tuple(row["loss"] for row in rows),
        ln_k=rows[0].get("ln_k"),
        probe_step=tuple(int(row["step"]) for row in probed),
        probe=tuple(row["knn"] for row in probed),
        linear=tuple(row["linear"] for row in probed if "linear" in row),
    )


def inputs_hash(cfg: DownstreamConfig) -> str:
    """Hash of all that decides the figures: settings, data, weights, version; not the device or the place."""
    parts = [config_hash(cfg, exclude={"output", "device"}), read_manifest(cfg.data).sha256]
    parts += [str(VERSION)] * (VERSION > 1)  # what was measured before there was a version stays valid
    parts += [sha256_file(path) for row in cfg.initialisations if (path := weights(row))]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def weights(row: Initialisation) -> str | None:
    """The file that a row of the comparison is made from, if any."""
    if isinstance(row, Pixels):
        return None
    return row.path if isinstance(row, Checkpoint) else row.like


def finished(cfg: DownstreamConfig) -> bool:
    """Whether exactly this evaluation is on disk."""
    if not (Path(cfg.output) / "metrics.json").exists():
        return False
    sources = [path for row in cfg.initialisations if (path := weights(row))]
    if not all(Path(path).exists() for path in (cfg.data, *sources)):
        return False
    return read_metrics(cfg.output).inputs == inputs_hash(cfg)
