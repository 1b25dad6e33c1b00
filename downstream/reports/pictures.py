"""Pictures of what several rows predict, as the bytes of an SVG or PNG file.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; lines differ in their dashes, too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from downstream.reports.figures import GREY, INK, PALE, STYLE
from downstream.tasks.task import Array

Format = Literal["svg", "png"]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C8C00")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
DPI = 200
LETTER = 0.085
"""Inches for a letter of a title, which is more than most take."""
MOST = 0.9
"""Share of the pictures of its best row that a plot of errors has room for."""
JOINED = 25
"""Pictures whose label and prediction are joined in the plane of valence and arousal."""


def _legend(figure: Figure, title: str, handles: Any = (), names: Sequence[str] = (), **options: Any) -> None:
    """Above the axes, with the title over it; of all axes, or of the handles given."""
    given = {"handles": handles, "labels": names} if handles else {}
    options |= {"loc": "outside upper left", "frameon": False, "labelcolor": INK, "alignment": "left"}
    figure.legend(**given, title=title, title_fontproperties={"size": 10}, **options).get_title().set_color(
        INK
    )


def _bytes(figure: Figure, form: Format) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else {})
    return buffer.getvalue()


def cumulative_errors(
    errors: Mapping[str, Array], limit: float, xlabel: str = "NME (%)", title: str = "", form: Format = "svg"
) -> bytes:
    """Cumulative error distribution: the share of pictures whose error is at most x; failures and area in the legend.

    Args:
        errors: row -> (N,) the error of each picture.
        limit: A larger error is a failure (FR); the area under the curve is taken up to it, and is 100 % if every
            error is 0 (AUC). The axis ends there, or where the best row has most of its pictures.
        xlabel: What the error is, with its unit.
        title: Above all.
        form: Of the file.
    """
    end = max(limit, min(float(np.quantile(error, MOST)) for error in errors.values()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.2 + 0.17 * len(errors)))
        axes = figure.subplots()
        for i, (row, error) in enumerate(errors.items()):
            failures, area = failure_rate(error, limit), area_under_curve(error, limit)
            axes.step(
                [0, *np.sort(error), max(end, float(error.max()))],
                [0, *100 * np.arange(1, len(error) + 1) / len(error), 100],
                where="post",
                color=COLOURS[i % len(COLOURS)],
                ls=DASHES[i % len(DASHES)],
                lw=1.6,
                label=f"{row}: FR {failures:.1f} %, AUC {area:.1f} %",
            )
        if end > limit:
            axes.axvline(limit, color=GREY, lw=0.8)
        axes.set(xlim=(0, end), ylim=(0, 101), xlabel=xlabel, ylabel="pictures (%)")
        axes.grid(color=PALE, alpha=0.35, lw=0.6)
        what = f"failures beyond {limit:g} (FR), area up to {limit:g} (AUC)"
        _legend(figure, f"{title}\n{what}".strip(), handlelength=3.2)
        return _bytes(figure, form)


def failure_rate(error: Array, limit: float) -> float:
    """(N,) errors -> share above ``limit``, %."""
    return float(100 * np.mean(error > limit))


def area_under_curve(error: Array, limit: float) -> float:
    """(N,) errors -> area under the step curve of their distribution up to ``limit``, % of what it can be."""
    return float(100 * np.mean(np.clip(1 - error / limit, 0, None)))


def unit_bars(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]],
    ylabel: str,
    title: str = "",
    form: Format = "svg",
) -> bytes:
    """A group of bars for each action unit, a bar a row, with its interval.

    Args:
        values: row -> unit -> (value, low, high), correlations. A unit that a row lacks has no bar there.
        ylabel: What the value is.
        title: Above all.
        form: Of the file.
    """
    units = list(dict.fromkeys(unit for of_row in values.values() for unit in of_row))
    width = 0.8 / len(values)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(3.5, 0.9 + len(units) * (0.25 + 0.14 * len(values))), 2.8))
        axes = figure.subplots()
        for i, (row, of_row) in enumerate(values.items()):
            x = [units.index(unit) + (i - (len(values) - 1) / 2) * width for unit in of_row]
            value, low, high = np.array(list(of_row.values())).T
            colour = COLOURS[i % len(COLOURS)]
            axes.bar(x, value, width * 0.92, color=colour, label=row)
            axes.vlines(x, low, high, color=INK, lw=0.8)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set_xticks(range(len(units)), units)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(units) - 0.4)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, max(top, 0.3))  # a correlation: noise about zero must not fill the panel
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", color=PALE, alpha=0.35, lw=0.6)
        axes.set_axisbelow(True)
        _legend(figure, title, ncols=min(5, len(values)))
        return _bytes(figure, form)


def affect_planes(
    truth: Array, predictions: Mapping[str, Array], title: str = "", form: Format = "svg"
) -> bytes:
    """Valence and arousal of labels and predictions in one plane, a panel a row.

    Some pictures at even steps through the set have both joined by a line.

    Args:
        truth: (N, 2) valence, arousal.
        predictions: row -> (N, 2).
        title: Above all.
        form: Of the file.
    """
    joined = np.unique(np.linspace(0, len(truth) - 1, min(JOINED, len(truth))).round().astype(int))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(predictions) + 0.6, 3.55))
        panels = figure.subplots(1, len(predictions), squeeze=False, sharey=True)[0]
        for axes, (row, prediction) in zip(panels, predictions.items(), strict=True):
            _plane(axes)
            ends = np.stack([truth[joined], prediction[joined]])
            axes.plot(ends[..., 0], ends[..., 1], color=INK, lw=0.5, alpha=0.7, zorder=5)
            axes.scatter(*truth.T, s=5, color=COLOURS[1], alpha=0.55, linewidths=0, label="label", zorder=3)
            axes.scatter(
                *prediction.T, s=5, color=COLOURS[0], alpha=0.55, linewidths=0, label="prediction", zorder=4
            )
            axes.set_title(row)
        panels[0].set_ylabel("arousal")
        _legend(figure, title, *panels[0].get_legend_handles_labels(), ncols=2, markerscale=2)
        return _bytes(figure, form)


def _plane(axes: Axes) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=PALE, lw=0.8, zorder=1)
    axes.axhline(0, color=PALE, lw=0.8, zorder=1)
    axes.axvline(0, color=PALE, lw=0.8, zorder=1)
    ticks = [-1, -0.5, 0, 0.5, 1]
    axes.set(
        xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xlabel="valence", xticks=ticks, yticks=ticks
    )


def confusion(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    classes: Sequence[str],
    title: str = "",
    form: Format = "svg",
    seeds: int = 1,
) -> bytes:
    """How often each class is taken for each: shares of the true class in %, and the number of its pictures.

    Args:
        truth: (N,) numbers of classes.
        prediction: (N,) likewise.
        classes: Their names.
        title: Above all.
        form: Of the file.
        seeds: So often is each picture among the N.
    """
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, prediction), 1)
    total = counts.sum(axis=1)
    shares = 100 * counts / total.clip(1)[:, None]
    side = 1.6 + 0.46 * len(classes)
    heading = f"{title}\n% of the true class".strip()
    with mpl.rc_context(STYLE):
        wide = max(side + 0.5, 0.2 + LETTER * max(map(len, heading.splitlines())))
        figure = Figure(figsize=(wide, side))
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (i, j), share in np.ndenumerate(shares):
            if total[i]:
                axes.text(
                    j, i, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else INK
                )
        names = [f"{name} ({n / seeds:.0f})" for name, n in zip(classes, total, strict=True)]
        axes.set_yticks(range(len(classes)), names)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true (number of pictures)")
        # Over the whole figure: the axes alone may be narrower than the title.
        figure.suptitle(heading, x=0.1 / wide, ha="left", size=10, color=INK)
        return _bytes(figure, form)
