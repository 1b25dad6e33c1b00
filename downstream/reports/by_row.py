"""Many initialisations side by side: a table a task, a line a row, a column a mode and share of the labels.

A pretrained row's figure is marked where its difference from the untrained network's is clear in every seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import mean, stdev

from downstream.config import Mode
from downstream.reports.tables import Line, clear, heading, in_markdown, markdown_table, number, percent
from downstream.results import Comparison, Metrics

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
    """The row that the pretrained ones are marked against: the first network without pretraining."""
    return next((row.name for row in metrics.rows if row.kind == "random"), None)


def tables(evaluations: Sequence[Metrics], cells: Sequence[Cell]) -> Iterator[str]:
    """Markdown.

    Args:
        evaluations: One a seed, all of the same rows.
        cells: The leading metric of each task.
    """
    against = untrained(evaluations[0])
    compared: list[dict[_Place, Comparison]] = [
        {
            (c.row, c.task, c.mode, c.fraction, c.metric): c
            for c in each.comparisons
            if (c.baseline, c.subset) == (against, "all")
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
        yield from markdown_table(
            header,
            (
                [in_markdown(row.name), *(_cell(cell, row.name, compared) for cell in columns)]
                for row in evaluations[0].rows
            ),
        )


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


_Place = tuple[str, str, Mode, float, str]
"""Row, task, mode, share of the labels, metric."""


def _cell(cell: Cell, row: str, compared: Sequence[Mapping[_Place, Comparison]]) -> str:
    found = [line.values[row].value for line in cell if row in line.values]
    if not found:
        return ""
    unit = cell[0].metric.unit
    mark = _mark(cell[0], row, compared)
    spread = f" ± {number(stdev(found), unit)}" if len(set(found)) > 1 else ""
    return f"{mark}{number(mean(found), unit)}{spread}{mark}"


def _mark(line: Line, row: str, compared: Sequence[Mapping[_Place, Comparison]]) -> str:
    """Of a pretrained row: what all seeds say."""
    place = (row, line.task.name, line.mode, line.fraction, line.metric.name)
    said = set()
    for of_seed in compared:
        c = of_seed.get(place)
        said.add(c.verdict if c and clear(c.difference, c.low, c.high, line.metric.unit) else "undecided")
    return {frozenset({"better"}): "**", frozenset({"worse"}): "*"}.get(frozenset(said), "")
