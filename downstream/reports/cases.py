"""Single test pictures of an evaluation of expressions: where it errs, or those that are chosen, as occluded faces.

After figure 8 of Moon and Park, SimFLE: challenging examples and misclassified cases, each with its Grad-CAM. How
they chose theirs they do not say; which are shown here, and in which order, is ours.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy.special import softmax

from configs import ConfigError
from data_prep.beton import Beton
from data_prep.files import write_json
from data_prep.subset import rows_where
from downstream import drawing
from downstream.attention import attention, overlaid
from downstream.config import UNTRAINED, Mode
from downstream.evaluate import choose_device
from downstream.features import in_batches
from downstream.labelled import LabelledSet
from downstream.matrix import Training
from downstream.model import AT_ONCE, TaskNetwork, load_model
from downstream.predict import save_picture
from downstream.protocols import Indices
from downstream.regimes import Split
from downstream.reports.examples import picture_of
from downstream.reports.runs import Run, data_of, open_runs
from downstream.reports.tables import pretrained_rows
from downstream.results import make_folder
from downstream.tasks.affect import EXPRESSIONS
from downstream.tasks.expression import Expression
from downstream.tasks.task import Array

VERSION = 1
_NUMBER = re.compile(r"^\d_")
"""Of a class, before the name of a picture."""


@dataclass(frozen=True)
class Wanted:
    """Which cases.

    Attributes:
        row: Of the evaluation; None: the first pretrained one.
        mode: None: finetune, frozen, knn or linear, the first that was measured.
        fraction: Share of the labels; None: the largest.
        where: Columns of the set and the value, as text, that a picture has there.
        listed: A file that names pictures; None: all.
        right: Those that are classified rightly, too.
        heat: With Grad-CAM, which needs the trained network.
        count: At most so many.
    """

    row: str | None = None
    mode: str | None = None
    fraction: float | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    listed: Path | None = None
    right: bool = False
    heat: bool = False
    count: int = 24


@dataclass(frozen=True)
class Answers:
    """What one cell says of N pictures.

    Attributes:
        cell: Of the evaluation.
        classes: The C names.
        rows: (N,) of the set.
        shares: (N, C) probabilities; of neighbours their votes; of the linear readout its scores, which are none,
            within 0..1.
        said: (N,) the class with the largest score.
        true: (N,).
        parts: (N,) the fold to be tested in which it is; 0 where there are none.
    """

    cell: Training
    classes: tuple[str, ...]
    rows: Indices
    shares: Array
    said: Indices
    true: Indices
    parts: Indices

    def only(self, places: NDArray[Any]) -> Answers:
        """Some of the pictures."""
        each = (self.rows, self.shares, self.said, self.true, self.parts)
        return Answers(self.cell, self.classes, *(values[places] for values in each))

    @property
    def wrong(self) -> int:
        """How many are."""
        return int((self.said != self.true).sum())


def draw_cases(folder: Path, wanted: Wanted, output: Path, device: str) -> dict[str, Any]:
    """Write cases.jpg and cases.json for the finished evaluation in ``folder``; what cases.json holds.

    Raises:
        ConfigError: the evaluation, its data, its trained network or a picture like that is not there.
    """
    (run,) = open_runs([str(folder)])
    labelled = data_of([run])
    every = _answers(run, labelled, wanted)
    chosen = every.only(_chosen(labelled, every.rows, wanted))
    shown = chosen.only((spread if wanted.right else mistakes)(chosen, wanted.count))
    if not len(shown.rows):
        raise ConfigError(
            f"{folder}: {every.cell} errs on none of the {len(chosen.rows)} pictures; add --all"
        )
    betons = [Beton(path) for path in labelled.paths]
    crops = [picture_of(betons, labelled, int(row)) for row in shown.rows]
    drawn = [*_heated(run, shown, crops, device)] if wanted.heat else crops
    make_folder(output, "--output")
    save_picture(drawing.sheet(zip(_captions(shown), drawn, strict=True), widest=1800), output / "cases.jpg")
    told = _told(wanted, labelled, every, chosen, shown)
    write_json(output / "cases.json", told)
    return told


# --- which cell, which pictures ------------------------------------------------------------------------------


def _answers(run: Run, labelled: LabelledSet, wanted: Wanted) -> Answers:
    """Of all test pictures."""
    cell = _cell(run, wanted)
    task = run.metrics.task(cell.task)
    stored = run.predictions(cell.row, cell.task, cell.mode, cell.fraction)
    assert stored is not None, "every task with classes has its predictions stored"
    scores = stored[:, task.logits]
    shares = scores.clip(0, 1) if cell.mode in UNTRAINED else softmax(scores, axis=1)
    true = labelled.labels[task.name][run.pictures, task.class_column].astype(np.int64)
    names = task.classes if isinstance(task, Expression) else EXPRESSIONS[: scores.shape[1]]
    return Answers(cell, names, run.pictures, np.asarray(shares), scores.argmax(axis=1), true, _parts(run))


def _parts(run: Run) -> Indices:
    """(N_test,) the fold of each test picture; 0 where there are none."""
    if run.metrics.data.protocol.kind != "folds":
        return np.zeros(len(run.pictures), np.int64)
    path = run.folder / "split.json"
    try:
        parts = Split.model_validate_json(path.read_bytes()).parts
    except (OSError, ValidationError):
        raise ConfigError(
            f"{path}: missing or damaged; delete metrics.json beside it and evaluate again"
        ) from None
    return np.repeat(np.arange(len(parts)), [len(part.test_rows) for part in parts])


def _cell(run: Run, wanted: Wanted) -> Training:
    """The first that agrees with what is wanted: a pretrained row's, of the mode that trains most, at most labels."""
    metrics = run.metrics
    known = {
        (m.row, m.task, m.mode, m.fraction): None
        for m in metrics.measurements
        if metrics.task(m.task).logits is not None
    }
    if not known:
        raise ConfigError(f"{run.folder}: evaluates no expressions; name a run with 'expression' or classes")
    asked = (wanted.row, None, wanted.mode, wanted.fraction)
    fitting = [
        cell for cell in known if all(want in (None, is_) for want, is_ in zip(asked, cell, strict=True))
    ]
    if not fitting:
        there = "; ".join(f"{row}, {mode}, {fraction:g}" for row, _, mode, fraction in known)
        raise ConfigError(f"{run.folder}: has no such row, mode and share of the labels; there are: {there}")
    rows = [*pretrained_rows(metrics), *(row.name for row in metrics.rows)]
    modes = get_args(Mode)
    best = min(fitting, key=lambda cell: (rows.index(cell[0]), -modes.index(cell[2]), -cell[3]))
    return Training(*best, part=0)


def _chosen(labelled: LabelledSet, rows: Indices, wanted: Wanted) -> NDArray[np.bool_]:
    """(N,) which of the pictures in ``rows`` are meant."""
    inside = np.ones(len(rows), np.bool_)
    if wanted.where:
        inside &= np.isin(rows, rows_where(labelled.table, wanted.where, labelled.paths[0]))
    if wanted.listed:
        inside &= np.isin(rows, rows_listed(labelled, rows, wanted.listed))
    if not inside.any():
        raise ConfigError("--where, --list: no test picture is meant by them; correct or leave them out")
    return inside


def rows_listed(labelled: LabelledSet, rows: Indices, path: Path) -> list[int]:
    """Those of ``rows`` whose pictures a file names, one a line; what follows a name on its line is not read.

    A name is the picture's id, or its file's with or without folder, suffix or a class number before it: so the lists
    of occluded faces of Wang et al. (RAN) name them. Names of pictures that are not among ``rows`` are passed over.

    Raises:
        ConfigError: it cannot be read, names none of them, or a name is that of several pictures.
    """
    if "image_id" not in labelled.table.column_names:
        raise ConfigError(
            f"--list {path}: {labelled.paths[0]} does not know the names of its pictures; use --where"
        )
    by_name: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    ids = labelled.table.column("image_id").to_pylist()
    for row in rows.tolist():
        for name in {ids[row], PurePosixPath(ids[row]).stem} if ids[row] else ():
            by_name[name][ids[row]].append(row)
    found: list[int] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--list {path}: cannot be read ({error}); give a file with a name a line"
        ) from None
    for number, line in enumerate(map(str.strip, lines), 1):
        name = next((name for name in _names(line) if name in by_name), None)
        if name is None:
            continue
        pictures = by_name[name]
        if name not in pictures and len(pictures) > 1:
            first, second, *_ = pictures
            raise ConfigError(f"--list {path}:{number}: '{name}' may be {first} or {second}; write which")
        found += pictures.get(name) or next(iter(pictures.values()))
    if not found:
        raise ConfigError(
            f"--list {path}: names no test picture of {labelled.paths[0]}; its names are like {ids[rows[0]]}"
        )
    return found


def _names(line: str) -> Iterator[str]:
    """What a line of a list may mean, the plainest first."""
    for text in (line, *line.split()[:1]):
        stem = PurePosixPath(text).stem
        yield from (text, stem, _NUMBER.sub("", stem))


# --- in which order ------------------------------------------------------------------------------------------


def mistakes(answers: Answers, count: int) -> Indices:
    """The wrong ones, the surest first, but in turns: one of each true class, then the second of each."""
    sure = answers.shares[np.arange(len(answers.said)), answers.said]
    wrong = np.flatnonzero(answers.said != answers.true)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    turn = np.zeros(len(wrong), np.int64)
    for each in np.unique(answers.true):
        of_class = answers.true[wrong] == each
        turn[of_class] = np.arange(of_class.sum())
    return wrong[np.argsort(turn, kind="stable")][:count]


def spread(answers: Answers, count: int) -> Indices:
    """At even steps through the true class's share, the largest first, so that nobody picks."""
    order = np.argsort(-answers.shares[np.arange(len(answers.true)), answers.true], kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64))]


# --- what is shown -------------------------------------------------------------------------------------------


def _captions(answers: Answers) -> Iterator[str]:
    for shares, said, true in zip(answers.shares, answers.said, answers.true, strict=True):
        text = f"{answers.classes[said]} {shares[said]:.2f}"
        yield text if said == true else f"{text}, true: {answers.classes[true]} {shares[true]:.2f}"


def _heated(run: Run, answers: Answers, crops: Sequence[Image.Image], device: str) -> Iterator[Image.Image]:
    """Each crop, and beside it what spoke for the class that was said, in the network that said it."""
    place = choose_device(device)
    heat = np.zeros((len(crops), *crops[0].size[::-1]), np.float32)
    for part in np.unique(answers.parts).tolist():
        network = _network(run, replace(answers.cell, part=part)).to(place)
        for some in in_batches(np.flatnonzero(answers.parts == part), AT_ONCE):
            seen = torch.from_numpy(np.stack([np.asarray(crops[i]) for i in some])).permute(0, 3, 1, 2)
            heat[some] = attention(network, seen, answers.said[some])[1]
    for crop, of_crop in zip(crops, heat, strict=True):
        pair = Image.new("RGB", (2 * crop.width, crop.height))
        pair.paste(crop, (0, 0))
        pair.paste(overlaid(crop, of_crop), (crop.width, 0))
        yield pair


def _network(run: Run, cell: Training) -> TaskNetwork:
    """The trained network of a cell.

    Raises:
        ConfigError: it was not kept, or is of another evaluation.
    """
    path = cell.path(run.folder / "models").with_suffix(".safetensors")
    if cell.mode in UNTRAINED:
        raise ConfigError(f"--heat: the mode {cell.mode} trains no network to look into; name another --mode")
    if not path.exists():
        raise ConfigError(
            f"--heat: {path} does not exist; evaluate with keep_models=true to another output, or leave --heat out"
        )
    network, header = load_model(path)
    if header.get("inputs") != run.metrics.inputs:
        raise ConfigError(
            f"--heat: {path} is of another evaluation; delete models/ and metrics.json and evaluate again"
        )
    return network


def _told(
    wanted: Wanted, labelled: LabelledSet, every: Answers, chosen: Answers, shown: Answers
) -> dict[str, Any]:
    """What cases.json holds."""
    ids = labelled.table.column("image_id") if "image_id" in labelled.table.column_names else None
    return {
        "version": VERSION,
        "row": every.cell.row,
        "task": every.cell.task,
        "mode": every.cell.mode,
        "fraction": every.cell.fraction,
        "where": dict(wanted.where),
        "list": str(wanted.listed) if wanted.listed else None,
        "test": {"pictures": len(every.rows), "wrong": every.wrong},
        "chosen": {"pictures": len(chosen.rows), "wrong": chosen.wrong},
        "cases": [
            {
                "picture": row,
                "image_id": None if ids is None else ids[row].as_py(),
                "predicted": shown.classes[said],
                "true": shown.classes[true],
                "shares": {name: round(float(x), 4) for name, x in zip(shown.classes, shares, strict=True)},
            }
            for row, said, true, shares in zip(
                shown.rows.tolist(), shown.said.tolist(), shown.true.tolist(), shown.shares, strict=True
            )
        ],
    }
