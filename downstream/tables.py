"""The comparison as rows of text: the one table behind the terminal, the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from downstream.config import Mode, TaskName
from downstream.results import Comparison, Measurement, Metrics
from downstream.tasks import TASKS, Metric


@dataclass(frozen=True)
class Line:
    """One metric of one task, mode and label fraction.

    Attributes:
        task: Name of the task.
        mode: frozen or finetune.
        fraction: Share of the training labels.
        metric: What is measured.
        values: A measurement for each row of the evaluation that has one.
        comparisons: baseline -> the first pretrained row against it.
    """

    task: TaskName
    mode: Mode
    fraction: float
    metric: Metric
    values: dict[str, Measurement]
    comparisons: dict[str, Comparison]

    @property
    def beats_all(self) -> bool:
        """Whether it is better than every baseline, each interval without zero."""
        return bool(self.comparisons) and all(c.verdict == "better" for c in self.comparisons.values())


def pretrained_rows(metrics: Metrics) -> list[str]:
    """Names of the rows with pretrained weights."""
    return [row.name for row in metrics.rows if row.kind == "checkpoint"]


def lines(metrics: Metrics, leading_only: bool) -> Iterator[Line]:
    """Every line, by mode, task, metric, and from few labels to many.

    Args:
        metrics: The evaluation.
        leading_only: Only the first metric of each task.
    """
    pretrained = pretrained_rows(metrics)[:1]
    for mode in ("frozen", "finetune"):
        cells = {(m.task, m.fraction) for m in metrics.measurements if m.mode == mode}
        for task in TASKS.values():
            fractions = sorted(fraction for name, fraction in cells if name == task.name)
            for metric in task.metrics[:1] if leading_only else task.metrics:
                for fraction in fractions:
                    key = (task.name, mode, fraction, metric.name)
                    values = {m.row: m for m in metrics.measurements if _key(m) == key}
                    comparisons = {
                        c.baseline: c for c in metrics.comparisons if _key(c) == key and c.row in pretrained
                    }
                    yield Line(task.name, mode, fraction, metric, values, comparisons)


def _key(figure: Measurement | Comparison) -> tuple[str, str, float, str]:
    return figure.task, figure.mode, figure.fraction, figure.metric


def number(value: float, unit: str, sign: bool = False) -> str:
    """A figure without its unit: two decimals for % and degrees, three for plain numbers; a real minus sign."""
    digits = 2 if unit else 3
    value = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    text = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def quantity(value: float, unit: str) -> str:
    """A figure with its unit: 7.12 %, 5.30°, 0.412."""
    return number(value, unit) + {"%": " %", "deg": "°", "": ""}[unit]


def span(low: float, high: float, unit: str) -> str:
    """An interval, without its unit."""
    return f"[{number(low, unit)}, {number(high, unit)}]"


def heading(metric: Metric) -> str:
    """Title and unit of a metric."""
    return metric.title + {"%": " (%)", "deg": " (°)", "": ""}[metric.unit]


def percent(fraction: float) -> str:
    """0.02 -> 2 %."""
    return f"{100 * fraction:g} %"


def terminal_table(metrics: Metrics) -> str:
    """The leading metric of every task, fixed width; * marks a difference whose interval leaves out zero."""
    names = [row.name for row in metrics.rows]
    baselines = list(dict.fromkeys(c.baseline for c in metrics.comparisons))
    header = ["task", "metric", "mode", "labels", *names, *(f"vs {name}" for name in baselines)]
    body = []
    for line in lines(metrics, leading_only=True):
        unit = line.metric.unit
        cells = [TASKS[line.task].title, heading(line.metric), line.mode, percent(line.fraction)]
        cells += [number(line.values[name].value, unit) if name in line.values else "" for name in names]
        for name in baselines:
            compared = line.comparisons.get(name)
            star = "*" if compared and compared.excludes_zero else " "
            cells.append(number(compared.difference, unit, sign=True) + star if compared else "")
        body.append(cells)
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    rows = ["  ".join(_pad(row, widths)) for row in [header, rule, *body]]
    note = f"* the 95 % interval over {metrics.data.test_identities} held-out people leaves out zero"
    return "\n".join([*rows, note + ("; synthetic faces" if metrics.data.synthetic else "")])


def _pad(cells: list[str], widths: list[int]) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.ljust(width) if i < 3 else cell.rjust(width)
