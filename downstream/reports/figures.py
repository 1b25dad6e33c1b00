"""The plots of the page, as SVG that is placed inside it."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from downstream.config import Mode
from downstream.reports.by_row import Cell, column
from downstream.reports.tables import Line, heading, percent
from downstream.results import Metrics, PretrainCurve

ACCENT = "#0b6e8a"
PRETRAINED = (ACCENT, "#b5561f", "#6a4c93", "#4a7a2a")
MARKERS = "os^Dv"
INK, GREY, PALE = "#1c1c1c", "#6f6f6f", "#a9a9a9"
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "axes.labelcolor": GREY,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "facerep",
    "figure.constrained_layout.use": True,
}


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure in inches; the list receives its data URI. No pyplot: there is no state to clean up."""
    uri: list[str] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, uri
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    uri.append("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode())


def as_svg(uri: str) -> bytes:
    """The SVG inside a data URI, for a file of its own."""
    return base64.b64decode(uri.partition(",")[2])


def label_efficiency(metrics: Metrics, lines: Sequence[Line]) -> str:
    """The leading metric of each task against the share of labels, a panel a task, intervals as bands."""
    tasks = list(dict.fromkeys(line.task.name for line in lines))
    with _figure(2.7 * len(tasks), 2.5) as (figure, uri):
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            _efficiency_panel(axes, metrics, [line for line in lines if line.task.name == task])
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
    return uri[0]


def rows_at_a_glance(tasks: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """Every seed of every row, a panel a task: (title, cells). Colours are modes, markers shares of the labels."""
    names = list(dict.fromkeys(row for _, cells in tasks for cell in cells for row in cell[0].values))
    shares = sorted({cell[0].fraction for _, cells in tasks for cell in cells}, reverse=True)
    with _figure(2.4 * len(tasks), 0.3 * len(names) + 1.2) as (figure, uri):
        panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axes, (title, cells) in zip(panels, tasks, strict=True):
            for i, cell in enumerate(cells):
                marker = MARKERS[shares.index(cell[0].fraction) % len(MARKERS)]
                _dots(axes, cell, names, marker, shift=0.7 * ((i + 0.5) / len(cells) - 0.5))
            metric = cells[0][0].metric
            axes.set_title(title)
            axes.set_xlabel(f"{textwrap.fill(heading(metric), 20)}\n{metric.better} is better")
            axes.grid(axis="y", color=PALE, alpha=0.3, lw=0.6)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        handles: dict[str, Any] = {}
        for axes in panels:
            handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=len(handles), frameon=False)
    return uri[0]


def _dots(axes: Axes, cell: Cell, names: Sequence[str], marker: str, shift: float) -> None:
    colour = PRETRAINED[get_args(Mode).index(cell[0].mode)]
    for row in cell[0].values:
        values = [line.values[row].value for line in cell]
        y = [names.index(row) + shift] * len(values)
        axes.plot(values, y, color=colour, lw=0.8)
        axes.plot(values, y, marker, ms=3, mew=0.7, color=colour, mfc="white", label=column(cell))


def _efficiency_panel(axes: Axes, metrics: Metrics, lines: Sequence[Line]) -> None:
    for row in metrics.rows:
        points = [(line.fraction, line.values[row.name]) for line in lines if row.name in line.values]
        if not points:
            continue
        x = [fraction for fraction, _ in points]
        colour, dash = _look(metrics, row.name)
        values = [m.value for _, m in points]
        axes.plot(x, values, dash, color=colour, marker="o", markersize=3.5, lw=1.6, label=row.name)
        axes.fill_between(
            x, [m.low for _, m in points], [m.high for _, m in points], color=colour, alpha=0.14
        )
    metric = lines[0].metric
    if not metric.unit:  # a correlation: noise about zero must not fill the panel
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, -0.05), max(top, 0.3))
    axes.set_title(lines[0].task.title)
    axes.set_ylabel(f"{textwrap.fill(heading(metric), 20)}\n{metric.better} is better")
    axes.set_xscale("log")
    axes.set_xticks([line.fraction for line in lines])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda fraction, _: percent(fraction)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("of the labels")


def _look(metrics: Metrics, row: str) -> tuple[str, str]:
    """Colour and dash of a row: the accent is for what was pretrained first."""
    kind = next(r.kind for r in metrics.rows if r.name == row)
    if kind == "checkpoint":
        pretrained = [r.name for r in metrics.rows if r.kind == kind]
        return PRETRAINED[pretrained.index(row) % len(PRETRAINED)], "-"
    return {"random": (GREY, "-"), "pixels": (PALE, "--")}[kind]


def pretraining(curve: PretrainCurve) -> str:
    """Loss against what a network that learns nothing has, and the probe."""
    with _figure(6.6, 2.2) as (figure, uri):
        panels = figure.subplots(1, 2 if curve.probe else 1, squeeze=False)[0]
        panels[0].plot(curve.step, curve.loss, color=ACCENT, lw=1.4)
        if curve.ln_k is not None:
            panels[0].axhline(curve.ln_k, color=GREY, lw=1, ls="--")
            panels[0].annotate(
                "ln K: nothing learnt",
                (curve.step[-1], curve.ln_k),
                (0, -11),
                textcoords="offset points",
                ha="right",
                color=GREY,
            )
        panels[0].set_title("Training loss")
        panels[0].set_xlabel("step")
        if curve.probe:
            panels[1].plot(
                curve.probe_step, curve.probe, color=ACCENT, lw=1.4, marker="o", ms=3, label="k-NN"
            )
            if curve.linear:
                panels[1].plot(
                    curve.probe_step, curve.linear, color=GREY, lw=1.4, marker="o", ms=3, label="linear"
                )
            panels[1].legend(frameon=False)
            panels[1].set_title("Probes on frozen features")
            panels[1].set_xlabel("step")
    return uri[0]


def face_sizes(histogram: Mapping[str, int]) -> str:
    """How large the detected faces were before they were scaled."""
    edges = [int(key.split("-")[0]) for key in histogram]
    width = edges[1] - edges[0] if len(edges) > 1 else 10
    with _figure(3.3, 2.0) as (figure, uri):
        axes = figure.subplots()
        axes.bar(edges, list(histogram.values()), width=width * 0.92, align="edge", color=ACCENT)
        axes.set_title("Size of the faces")
        axes.set_xlabel("mean side of the box, source pixels")
        axes.set_ylabel("faces")
    return uri[0]


def affect_plane(truth: NDArray[np.float64], prediction: NDArray[np.float32]) -> str:
    """(N, 2) and (N, 2) valence and arousal: predicted against true."""
    with _figure(6.6, 2.9) as (figure, uri):
        for axes, i, name in zip(figure.subplots(1, 2), (0, 1), ("Valence", "Arousal"), strict=True):
            axes.plot([-1, 1], [-1, 1], color=PALE, lw=1)
            axes.scatter(truth[:, i], prediction[:, i], s=5, color=ACCENT, alpha=0.4, linewidths=0)
            axes.set(
                xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xlabel="true", ylabel="predicted", title=name
            )
    return uri[0]


def roc_panels(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """ROC of each row, a panel a set: set -> row -> (FAR, TAR); from the least FAR that a pair can make."""
    with _figure(3.2 * len(curves), 2.7) as (figure, uri):
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, rows) in zip(panels, curves.items(), strict=True):
            for row, points in rows.items():
                far, tar = np.array(points).T
                axes.step(far, 100 * tar, where="post", lw=1.4, label=row)
            least = min(f for points in rows.values() for f, _ in points if f > 0)
            axes.plot(line := np.geomspace(least, 1), 100 * line, color=PALE, lw=1, ls="--")  # chance
            axes.set_xscale("log")
            axes.set_xlim(least, 1)
            axes.set_ylim(0, 101)
            axes.set_title(name)
            axes.set_xlabel("false accept rate")
            axes.set_ylabel("true accept rate, %")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
    return uri[0]
