"""The comparison as rows of text: the one table behind the terminal, the page and the Markdown file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from downstream.config import Mode
from downstream.results import Comparison, Data, Measurement, Metrics
from downstream.tasks import Metric, Task

FEW = 20
"""Of fewer resampled people a percentile interval is far too narrow; where the line is drawn is our choice."""


@dataclass(frozen=True)
class Line:
    """One metric of one task, mode and label fraction.

    Attributes:
        task: What is predicted.
        mode: linear, knn, frozen or finetune.
        fraction: Share of the training labels.
        subset: Part of the test pictures.
        metric: What is measured.
        values: A measurement for each row of the evaluation that has one.
        comparisons: baseline -> the first pretrained row against it.
    """

    task: Task
    mode: Mode
    fraction: float
    subset: str
    metric: Metric
    values: dict[str, Measurement]
    comparisons: dict[str, Comparison]

    @property
    def key(self) -> _Key:
        """What it is of, whatever the evaluation."""
        return self.task.name, self.mode, self.fraction, self.subset, self.metric.name

    @property
    def beats_all(self) -> bool:
        """Whether it is better than every baseline, each interval without zero."""
        return bool(self.comparisons) and all(c.verdict == "better" for c in self.comparisons.values())


def pretrained_rows(metrics: Metrics) -> list[str]:
    """Names of the rows with pretrained weights."""
    return [row.name for row in metrics.rows if row.kind == "checkpoint"]


def lines(metrics: Metrics, leading_only: bool) -> Iterator[Line]:
    """Every line, by mode, task, subset, metric, and from few labels to many.

    Args:
        metrics: The evaluation.
        leading_only: Only the first metric of each task, and all test pictures.
    """
    pretrained = pretrained_rows(metrics)[:1]
    values: dict[_Key, dict[str, Measurement]] = {}
    for m in metrics.measurements:
        values.setdefault(_key(m), {})[m.row] = m
    comparisons: dict[_Key, dict[str, Comparison]] = {}
    for c in metrics.comparisons:
        if c.row in pretrained:
            comparisons.setdefault(_key(c), {})[c.baseline] = c
    fractions = sorted({m.fraction for m in metrics.measurements})
    subsets = list(dict.fromkeys(m.subset for m in metrics.measurements))
    for mode in get_args(Mode):
        for task in metrics.tasks:
            kinds = task.metrics[:1] if leading_only else task.metrics
            for subset, metric, fraction in product(
                subsets[:1] if leading_only else subsets, kinds, fractions
            ):
                key = (task.name, mode, fraction, subset, metric.name)
                if key in values:
                    compared = comparisons.get(key, {})
                    yield Line(task, mode, fraction, subset, metric, values[key], compared)


_Key = tuple[str, str, float, str, str]


def _key(figure: Measurement | Comparison) -> _Key:
    return figure.task, figure.mode, figure.fraction, figure.subset, figure.metric


def at_several_shares(of: Sequence[Line]) -> list[Line]:
    """Those of a task that is measured at several shares of the labels."""
    return [line for line in of if len({each.fraction for each in of if each.task == line.task}) > 1]


def digits(unit: str) -> int:
    """Decimals of a figure as it is shown: two for % and degrees, three for plain numbers."""
    return 2 if unit else 3


def clear(difference: float, low: float, high: float, unit: str) -> bool:
    """Whether the interval of a difference leaves out zero, and the difference does not read as zero."""
    return (low > 0 or high < 0) and round(difference, digits(unit)) != 0


def number(value: float, unit: str, sign: bool = False) -> str:
    """A figure without its unit; a real minus sign."""
    decimals = digits(unit)
    value = round(value, decimals) + 0.0  # -0.0 + 0.0 is 0.0
    text = f"{value:+.{decimals}f}" if sign and value else f"{value:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def quantity(value: float, unit: str) -> str:
    """A figure with its unit: 7.12 %, 5.30°, 0.412."""
    return number(value, unit) + {"%": " %", "deg": "°", "": ""}[unit]


def span(low: float, high: float, unit: str) -> str:
    """An interval, without its unit."""
    return f"[{number(low, unit)}, {number(high, unit)}]"


def of_people(count: int | None) -> str:
    """Of 100 people; nothing where nobody knows."""
    return f" of {count} people" if count is not None else ""


def of_subset(name: str) -> str:
    """After a metric: which of the test pictures; nothing where it is all of them."""
    return "" if name == "all" else f", {name}"


def unseen(data: Data) -> str:
    """After "people" or "pictures": who has not seen them, or who has; nothing where nobody knows."""
    if data.shared_identities:
        return f", {data.shared_identities} of whom were learnt from too"
    seers = ["pretraining"] * bool(data.disjoint_from_pretraining)
    seers += ["training"] * (data.shared_identities == 0)
    if len(seers) == 2:
        return " that neither pretraining nor training has seen"
    return f" that {seers[0]} has not seen" if seers else ""


def caution(data: Data) -> str:
    """Where so few are resampled that the intervals mean little: a sentence that says so; else nothing."""
    if data.test_identities is not None and data.test_identities < FEW:
        few = f"{data.test_identities} people"
    elif data.test_identities is None and data.test_pictures < FEW:
        few = f"{data.test_pictures} pictures"
    else:
        return ""
    return (
        f"Only {few} are resampled: intervals of so few are far too narrow, and what they mark is no finding."
    )


def held_out(data: Data) -> str:
    """What is resampled: 100 held-out people."""
    if data.test_identities is None:
        return f"{data.test_pictures} test pictures"
    if data.shared_identities:
        return f"{data.test_identities} people, {data.shared_identities} of whom were learnt from too,"
    return f"{data.test_identities} held-out people"


def heading(metric: Metric) -> str:
    """Title and unit of a metric."""
    return metric.title + {"%": " (%)", "deg": " (°)", "": ""}[metric.unit]


def percent(fraction: float) -> str:
    """0.02 -> 2 %."""
    return f"{100 * fraction:g} %"


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table, its cells as they are."""
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for cells in body:
        yield "| " + " | ".join(cells) + " |"


def in_markdown(text: str) -> str:
    """A name as the text of a cell, whatever is in it."""
    return html.escape(text, quote=False).replace("|", "\\|")


def terminal_table(metrics: Metrics) -> str:
    """The leading metric of every task, fixed width; * marks a difference whose interval leaves out zero."""
    names = [row.name for row in metrics.rows]
    baselines = list(dict.fromkeys(c.baseline for c in metrics.comparisons))
    header = ["task", "metric", "mode", "labels", *names, *(f"vs {name}" for name in baselines)]
    body = []
    for line in lines(metrics, leading_only=True):
        unit = line.metric.unit
        cells = [line.task.title, heading(line.metric), line.mode, percent(line.fraction)]
        cells += [number(line.values[name].value, unit) if name in line.values else "" for name in names]
        for name in baselines:
            compared = line.comparisons.get(name)
            if compared is None:
                cells.append("")
                continue
            star = "*" if clear(compared.difference, compared.low, compared.high, unit) else " "
            cells.append(number(compared.difference, unit, sign=True) + star)
        body.append(cells)
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    rows = ["  ".join(_pad(row, widths)) for row in [header, rule, *body]]
    note = f"* the 95 % interval over {held_out(metrics.data)} leaves out zero"
    note += "; synthetic faces" if metrics.data.synthetic else ""
    return "\n".join(filter(None, [*rows, note, caution(metrics.data)]))


def _pad(cells: list[str], widths: list[int]) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.ljust(width) if i < 3 else cell.rjust(width)
