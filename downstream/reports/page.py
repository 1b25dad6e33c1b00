"""The page: what the pretrained backbone is worth, on one self-contained sheet, and the same as results.json."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from configs import ConfigError
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.files import atomic_write, write_json
from downstream.config import Mode, ReportConfig
from downstream.labelled import LabelledSet
from downstream.reports import figures, pictures
from downstream.reports.examples import Predictions, labelled_set, strips
from downstream.reports.tables import (
    Line,
    at_several_shares,
    caution,
    clear,
    heading,
    held_out,
    lines,
    number,
    of_people,
    percent,
    pretrained_rows,
    quantity,
    span,
    unseen,
)
from downstream.results import Metrics, Results, Row, read_curve, read_metrics
from downstream.tasks.expression import Expression

SHEET_ROWS, SHEET_COLUMNS, SHEET_SIDE = 4, 12, 72
HISTOGRAM_BINS = 16
WAYS: dict[Mode, str] = {
    "linear": "frozen features",
    "knn": "the nearest neighbours of frozen features",
    "frozen": "a head trained on the frozen backbone",
    "finetune": "fine-tuning",
}
"""How something was learnt, in words."""
PHRASES = {"random": "the same network untrained", "pixels": "raw pixels"}
"""What the baselines are, in words."""


@dataclass(frozen=True)
class Card:
    """The answer for one task at the smallest share of the labels.

    Attributes:
        title: The task.
        line: Its leading metric there.
        verdict: In words.
        good: Whether it beats every baseline.
    """

    title: str
    line: Line
    verdict: str
    good: bool


def write_report(cfg: ReportConfig) -> Results:
    """Write the page and results.json.

    Raises:
        ConfigError: if a file that the config names is missing.
    """
    metrics = read_metrics(cfg.downstream)
    if not pretrained_rows(metrics) or not metrics.comparisons:
        raise ConfigError(
            f"downstream: {cfg.downstream} has no pretrained row beside a baseline; evaluate both"
        )
    results = Results(
        synthetic=metrics.data.synthetic,
        metrics=metrics,
        pretrain=read_curve(cfg.pretrain) if cfg.pretrain else None,
        face_sizes=_histogram(cfg.pretrain_data) if cfg.pretrain_data else {},
        commands=cfg.commands,
    )
    write_json(cfg.results, results.model_dump(mode="json"))
    with atomic_write(cfg.output, "w") as file:
        file.write(_render(cfg, results))
    return results


def _render(cfg: ReportConfig, results: Results) -> str:
    metrics = results.metrics
    cards = answer(metrics)
    mode = answered(metrics)
    leading = list(lines(metrics, leading_only=True))
    efficiency = [
        (WAYS[each], figures.label_efficiency(metrics, learnt))
        for each in get_args(Mode)
        if (learnt := at_several_shares([line for line in leading if line.mode == each]))
    ]
    with np.load(Path(cfg.downstream) / "predictions.npz", allow_pickle=False) as archive:
        predictions = dict(archive)
    labelled = labelled_set(metrics)
    environment = Environment(
        loader=PackageLoader("downstream.reports", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "quantity": quantity, "span": span}
    environment.filters |= {"percent": percent, "heading": heading, "held_out": held_out}
    environment.filters |= {"of_people": of_people, "unseen": unseen, "caution": caution}
    return environment.get_template("page.html").render(
        cfg=cfg,
        results=results,
        metrics=metrics,
        zip=zip,
        clear=clear,
        baselines_said=_listed(
            list(dict.fromkeys(PHRASES.get(row.kind, "others") for row in _baselines(metrics)))
        ),
        cards=cards,
        way=WAYS[mode],
        ways=WAYS,
        pretrained=pretrained_rows(metrics)[0],
        sentence=sentence(cards, metrics),
        leading=_grouped(leading),
        every=_grouped(line for line in lines(metrics, leading_only=False) if "_au" not in line.metric.name),
        baselines=[row.name for row in _baselines(metrics)],
        efficiency=efficiency,
        strips=list(strips(metrics, labelled, predictions, cfg.examples)),
        plane=_plane(metrics, labelled, predictions),
        confusions=list(_confusions(metrics, labelled, predictions)),
        pretraining=figures.pretraining(results.pretrain) if results.pretrain else None,
        sheet=_contact_sheet(cfg.pretrain_data) if cfg.pretrain_data else None,
        histogram=figures.face_sizes(results.face_sizes) if results.face_sizes else None,
        pretrain_set=read_manifest(cfg.pretrain_data) if cfg.pretrain_data else None,
    )


def _plane(metrics: Metrics, labelled: LabelledSet, predictions: Predictions) -> str | None:
    """Valence and arousal of every test picture, with all labels."""
    values = predictions.get(f"{pretrained_rows(metrics)[0]}/affect/{answered(metrics)}/1")
    if values is None:
        return None
    return figures.affect_plane(labelled.labels["affect"][predictions["rows"]], values)


def _confusions(
    metrics: Metrics, labelled: LabelledSet, predictions: Predictions
) -> Iterator[tuple[Mode, float, str]]:
    """Mode, share and picture: what the pretrained backbone confuses, with the most labels of each mode."""
    task = next((task for task in metrics.tasks if isinstance(task, Expression)), None)
    if task is None:
        return
    row, truth = pretrained_rows(metrics)[0], labelled.labels[task.name][predictions["rows"]]
    for mode in get_args(Mode):
        shares = {
            m.fraction for m in metrics.measurements if (m.row, m.task, m.mode) == (row, task.name, mode)
        }
        if shares:
            share = max(shares)
            guesses = predictions[f"{row}/{task.name}/{mode}/{share:g}"].argmax(axis=1)
            svg = pictures.confusion(truth[:, 0].astype(int), guesses, task.classes)
            yield mode, share, "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def inside(title: str) -> str:
    """A title within a sentence: '68 landmarks', 'head pose', '3D face'."""
    first, _, rest = title.partition(" ")
    return f"{first.lower()} {rest}".strip() if first.istitle() and first.isalpha() else title


def _grouped(every: Iterable[Line]) -> list[list[Line]]:
    """Lines of one task, mode and metric together."""
    return [
        list(group) for _, group in groupby(every, lambda x: (x.task.name, x.mode, x.subset, x.metric.name))
    ]


def answered(metrics: Metrics) -> Mode:
    """The mode whose figures lead the page: the first that was measured for more than recognition."""
    found = {line.mode for line in lines(metrics, leading_only=True) if line.task.name != "recognition"}
    return next((mode for mode in get_args(Mode) if mode in found), "linear")


def answer(metrics: Metrics) -> list[Card]:
    """One card for each task with a head, at the smallest share of the labels, in the mode that leads."""
    smallest: dict[str, Line] = {}
    mode = answered(metrics)
    for line in lines(metrics, leading_only=True):
        if line.mode == mode and line.task.name != "recognition" and line.comparisons:
            smallest.setdefault(line.task.name, line)  # lines come from few labels to many
    return [Card(line.task.title, line, _verdict(line), line.beats_all) for line in smallest.values()]


def _verdict(line: Line) -> str:
    """What the intervals say, in words."""
    said = {
        word: [name for name, c in line.comparisons.items() if c.verdict == word]
        for word in ("better", "worse", "undecided")
    }
    parts = {"better": "better than {}", "worse": "worse than {}", "undecided": "no clear difference to {}"}
    return "; ".join(parts[word].format(" and ".join(names)) for word, names in said.items() if names)


def sentence(cards: Sequence[Card], metrics: Metrics) -> str:
    """The answer in one sentence."""
    if not cards:
        return "Only recognition was compared: see the table."
    line = cards[0].line
    labels = next(iter(line.values.values())).train_labels
    start = f"With {percent(line.fraction)} of the labels ({labels} pictures) and {WAYS[line.mode]}, "
    kinds = {row.name: row.kind for row in metrics.rows}
    others = _listed([PHRASES.get(kinds[name], name) for name in line.comparisons])
    good = [inside(card.title) for card in cards if card.good]
    rest = [inside(card.title) for card in cards if not card.good]
    if not good:
        return f"{start}the pretrained backbone does not clearly beat {others} on any task."
    text = f"{start}the pretrained backbone beats {others} on {_listed(good)}"
    return text + (f", but not clearly on {_listed(rest)}." if rest else ".")


def _baselines(metrics: Metrics) -> list[Row]:
    """What is compared with, in the order of the comparisons."""
    rows = {row.name: row for row in metrics.rows}
    return [rows[name] for name in dict.fromkeys(c.baseline for c in metrics.comparisons)]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _histogram(beton: str) -> dict[str, int]:
    """Faces by mean side of the detected box, in source pixels."""
    sizes = read_labels(beton).column("face_size").to_numpy()
    step = max(1, round((sizes.max() - sizes.min()) / HISTOGRAM_BINS))
    edges = np.arange(int(sizes.min()), sizes.max() + step, step, dtype=np.int64)
    counts, _ = np.histogram(sizes, edges)
    return {f"{low}-{low + step}": int(n) for low, n in zip(edges[:-1], counts, strict=True)}


def _contact_sheet(path: str) -> str:
    """Pictures at even steps through the set, as a data URI."""
    beton = Beton(path)
    count = min(SHEET_ROWS * SHEET_COLUMNS, len(beton))
    sheet = Image.new(
        "RGB", (SHEET_COLUMNS * SHEET_SIDE, -(-count // SHEET_COLUMNS) * SHEET_SIDE), (255, 255, 255)
    )
    for i, row in enumerate(np.linspace(0, len(beton) - 1, count).round().astype(int)):
        small = Image.fromarray(beton.image(int(row))).resize(
            (SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS
        )
        sheet.paste(small, (i % SHEET_COLUMNS * SHEET_SIDE, i // SHEET_COLUMNS * SHEET_SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
