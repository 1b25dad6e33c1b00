"""What a run leaves behind: the schemas of metrics.json and of the demo's results.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pydantic

from configs import Config, ConfigError, config_hash
from data_prep.beton import read_manifest
from data_prep.files import sha256_file
from downstream.config import Checkpoint, DownstreamConfig, Initialisation, Mode, Pixels
from downstream.protocols import Protocol
from downstream.tasks import AnyTask, Task
from pretrain import log

# Goes up when the same settings, data and weights would lead to other figures.
VERSION = 3

_MARKS = {
    "set.beton": "a data set",
    "run.json": "a pretraining",
    "metrics.json": "an evaluation",
    "predictions.json": "predictions",
    "verification.json": "a verification",
}
"""The file by which a folder is known to be a command's own."""


class Measurement(Config):
    """One figure of one row."""

    row: str
    """Name of the initialisation."""
    task: str
    """Name of the task."""
    mode: Mode
    """linear, knn, frozen or finetune."""
    fraction: float
    """Share of the training labels."""
    subset: str = "all"
    """Part of the test pictures; all: all of them."""
    metric: str
    """Name of the metric, see docs/downstream.md."""
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
    """The ridge penalty that was chosen (linear only)."""


class Comparison(Config):
    """A pretrained row against a baseline, on the same resamples."""

    row: str
    """The pretrained row."""
    baseline: str
    """The row it is compared with."""
    task: str
    """Name of the task."""
    mode: Mode
    """linear, knn, frozen or finetune."""
    fraction: float
    """Share of the training labels."""
    subset: str = "all"
    """Part of the test pictures."""
    metric: str
    """Name of the metric."""
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
    test_path: str | None = None
    """The second one, that was tested on."""
    protocol: Protocol
    """Who was learnt from and who was tested on."""
    sha256: str
    """Of the .beton, or of the hashes of both."""
    synthetic: bool
    """Whether the faces are rendered."""
    kinds: tuple[str, ...] = ()
    """What kinds of source the pictures are from, such as affectnet or csv; empty where an older run does not say."""
    pictures: int
    """Pictures with all labels that are learnt from or tested on."""
    train_pictures: int
    """Pictures of the training people."""
    train_identities: int | None
    """Training people; None where the set does not know."""
    test_pictures: int
    """Held-out pictures."""
    test_identities: int | None
    """Held-out people; None where the set does not know: then the intervals resample pictures."""
    shared_identities: int | None = None
    """People who are both learnt from and tested on, which a published division may have; None where nobody knows."""
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
    mean: tuple[float, float, float] | None = None
    """RGB, subtracted from values 0..1."""
    std: tuple[float, float, float] | None = None
    """RGB, by which they are divided then."""


class Metrics(Config):
    """metrics.json: one evaluation."""

    version: Literal[2] = 2
    """Of this schema."""
    inputs: str
    """Hash of the config, the data and the weights: an equal one means that nothing has to be done again."""
    data: Data
    """What was evaluated on."""
    tasks: tuple[AnyTask, ...]
    """What was predicted, with all settings."""
    rows: tuple[Row, ...]
    """What was compared."""
    bootstrap_samples: int
    """Resamples behind every interval."""
    seeds: dict[str, int]
    """split, bootstrap and train."""
    measurements: tuple[Measurement, ...]
    """Every figure."""
    comparisons: tuple[Comparison, ...]
    """Every pretrained row against every baseline."""
    seconds: float
    """Wall time of the evaluation."""
    versions: dict[str, str]
    """Of Python and the libraries."""

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)


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
    except NotADirectoryError:
        raise ConfigError(
            f"{run} is no run directory; give the folder that 'python -m downstream CONFIG' wrote"
        ) from None
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
    """Hash of all that decides the figures: settings, pictures, labels, weights, version; not the device."""
    unused = set() if "knn" in cfg.modes else {"neighbours"}
    parts = [config_hash(cfg, exclude={"output", "device", "memory_gb"} | unused), str(VERSION)]
    for path in (cfg.data, cfg.test_data, cfg.pretrain_data):
        if path:  # the labels stand beside the .beton
            parts += [read_manifest(path).sha256, sha256_file(Path(path).with_suffix(".parquet"))]
    parts += [sha256_file(path) for row in cfg.initialisations if (path := weights(row))]
    parts += [sha256_file(path) for task in cfg.tasks for path in task.files]
    parts += [sha256_file(path) for path in cfg.heads.values()]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def claim(folder: str | Path, field: str, mine: str) -> None:
    """:func:`make_folder` of a command that wants one to itself; ``mine`` is the file in it that marks its own work.

    Raises:
        ConfigError: it cannot be a folder, or holds what another command has made.
    """
    make_folder(folder, field)
    for name, what in _MARKS.items():
        if name != mine and (Path(folder) / name).exists():
            raise ConfigError(f"{field}: {folder} holds {what}; name a folder of its own")


def make_folder(folder: str | Path, field: str) -> None:
    """Make the folder that a command writes to, before it does anything else; ``field`` is its name in messages.

    Raises:
        ConfigError: it cannot be a folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{field}: {folder} cannot be a folder ({error.strerror}); name another one"
        ) from None


def refuse_other(cfg: DownstreamConfig, inputs: str) -> None:
    """Keep a finished evaluation from being written over.

    Raises:
        ConfigError: the folder holds one with other inputs.
    """
    if (Path(cfg.output) / "metrics.json").exists() and read_metrics(cfg.output).inputs != inputs:
        raise ConfigError(
            f"output: {cfg.output} holds another evaluation, of other settings, data or weights (see its "
            "config.yaml); name another output=FOLDER or delete it"
        )


def weights(row: Initialisation) -> str | None:
    """The file that a row of the comparison is made from, if any."""
    if isinstance(row, Pixels):
        return None
    return row.path if isinstance(row, Checkpoint) else row.like


def finished(cfg: DownstreamConfig) -> bool:
    """Whether exactly this evaluation is on disk."""
    if not (Path(cfg.output) / "metrics.json").exists():
        return False
    needed = [
        cfg.data,
        cfg.test_data,
        cfg.pretrain_data,
        *map(weights, cfg.initialisations),
        *cfg.heads.values(),
    ]
    files = [Path(path) for path in needed if path] + [path for task in cfg.tasks for path in task.files]
    if not all(path.exists() for path in files):
        return False
    return read_metrics(cfg.output).inputs == inputs_hash(cfg)
