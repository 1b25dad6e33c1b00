"""Many initialisations side by side: a table a task, a line a row, a column a mode and share of the labels.

A figure is marked where its difference from the untrained network's is clear in every seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import mean, stdev

from downstream.config import Mode
from downstream.reports.tables import Line, heading, number, percent
from downstream.results import Metrics

SHORT: dict[Mode, str] = {
    "linear": "Linear",
    "knn": "k-NN",
    "frozen": "Head",
    "finetune": "Fine-tuned",
}
"""Modes as columns."""

Cell = tuple[Line, ...]
"""The same line of every seed."""


def untrained(metrics: Metrics) -> str | None:
    """The row whose differences from all others are marked: the first without pretraining."""
    return next((row.name for row in metrics.rows if row.kind == "random"), None)


def tables(evaluations: Sequence[Metrics], cells: Sequence[Cell]) -> Iterator[str]:
    """Markdown.

    Args:
        evaluations: One a seed, all of the same rows.
        cells: The leading metric of each task.
    """
    against = untrained(evaluations[0])
    verdicts: list[dict[_Key, str]] = [
        {
            (c.row, c.task, c.mode, c.fraction, c.subset, c.metric): c.verdict
            for c in each.comparisons
            if c.baseline == against
        }
        for each in evaluations
    ]
    for title, columns in by_task(cells):
        first = columns[0][0]
        yield f"\n### {title}\n"
        header = [
            f"{heading(first.metric)} {'↓' if first.metric.better == 'lower' else '↑'}",
            *map(column, columns),
        ]
        yield "| " + " | ".join(header) + " |"
        yield "|---" * len(header) + "|"
        for row in evaluations[0].rows:
            shown = [
                _cell(cell, row.name, [v.get(_key(cell, row.name), "") for v in verdicts]) for cell in columns
            ]
            yield "| " + " | ".join([row.name, *shown]) + " |"


def by_task(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Title of each task, and its cells; from few labels to many within a mode."""
    order = {name: i for i, name in enumerate(dict.fromkeys(cell[0].task.name for cell in cells))}
    ordered = sorted(cells, key=lambda cell: order[cell[0].task.name])
    for _, group in groupby(ordered, lambda cell: cell[0].task.name):
        columns = list(group)
        yield columns[0][0].task.title, columns


def column(cell: Cell) -> str:
    """Mode and share of the labels."""
    line = cell[0]
    labels = next(iter(line.values.values())).train_labels
    return f"{SHORT[line.mode]}, {percent(line.fraction) if labels else 'no labels'}"


_Key = tuple[str, str, str, float, str, str]


def _key(cell: Cell, row: str) -> _Key:
    line = cell[0]
    return row, line.task.name, line.mode, line.fraction, line.subset, line.metric.name


def _cell(cell: Cell, row: str, verdicts: Sequence[str]) -> str:
    found = [line.values[row].value for line in cell if row in line.values]
    if not found:
        return ""
    unit = cell[0].metric.unit
    text = number(mean(found), unit) + (f" ± {number(stdev(found), unit)}" if len(set(found)) > 1 else "")
    mark = {"better": "**", "worse": "*"}.get(verdicts[0], "") if len(set(verdicts)) == 1 else ""
    return f"{mark}{text}{mark}"
