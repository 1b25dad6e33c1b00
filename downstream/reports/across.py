"""Two or more finished runs side by side: every figure, its spread over seeds, and tests of the differences.

Rows of one name in several runs are seeds of one thing. Each pretrained row is compared with the baselines of its
own runs and with every other pretrained row: over the seeds (:mod:`downstream.reports.paired`), and over the people
in the test pictures, on whose resamples the stored predictions of both rows are scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from downstream.bootstrap import ClusterBootstrap, interval
from downstream.reports.gallery import write_pictures
from downstream.reports.paired import least_sign_p, paired
from downstream.reports.runs import CELL, Run, figures_of, open_runs, truth_of
from downstream.reports.sheet import Sheet
from downstream.reports.tables import caution, clear, held_out, number, of_people
from downstream.results import make_folder
from downstream.tasks import Task

Pair = tuple[str, str]
"""A pretrained row and the one it is compared with."""
Resampled = Callable[[int, str, str, str, float], "pd.DataFrame | None"]
"""(number of the run, row, task, mode, fraction) -> each metric on each of B resamples, if it was predicted."""

HEADINGS = {
    "row": "Row",
    "against": "Against",
    "task": "Task",
    "mode": "Mode",
    "subset": "Pictures",
    "fraction": "Labels",
    "metric": "Metric",
}
DIFFERENCE = ["difference", "±", "low", "high", "pairs", "better in", "sign p", "t p"]


def compare_runs(words: Sequence[str], output: str | None = None) -> tuple[Sheet, Sheet]:
    """The figures, and the differences; as returned, of the first metric of each task only.

    Args:
        words: Run directories, or NAME=PATH to tell apart rows that are called alike.
        output: A folder for both with all metrics, in four formats, and for pictures; None: nothing is written.

    Raises:
        ConfigError: if a run is not finished, the runs have other test pictures, or ``output`` cannot be a folder.
    """
    runs = open_runs(words)
    if output is not None:
        make_folder(output, "--output")
    figures = _in_order(figures_of(runs))
    differences = _differences(runs, figures)
    if output is not None:
        drawn = write_pictures(runs, figures, Path(output))
        values_sheet(runs, figures, each=True).write(Path(output), "values", drawn)
        differences_sheet(runs, differences).write(Path(output), "differences")
    return values_sheet(runs, _leading(figures), each=False), differences_sheet(runs, _leading(differences))


def _leading(lines: pd.DataFrame) -> pd.DataFrame:
    """Those of the first metric of each task."""
    return lines[lines["metric"] == lines.groupby("task")["metric"].transform("first")]


def _in_order(figures: pd.DataFrame) -> pd.DataFrame:
    """By mode, task, metric and test subset as they come, and from few labels to many."""
    metric = figures.groupby("task")["metric"].transform(lambda names: pd.factorize(names)[0])
    ranks = {name: pd.factorize(figures[name])[0] for name in ("mode", "task", "subset")}
    ranked = figures.assign(**ranks, metric=metric)
    return figures.loc[
        ranked.sort_values(["mode", "task", "metric", "subset", "fraction"], kind="stable").index
    ]


# --- the figures ---------------------------------------------------------------------------------------------


def values_sheet(runs: Sequence[Run], figures: pd.DataFrame, each: bool) -> Sheet:
    """A line a task, mode, share of the labels and metric; for each row its mean and standard deviation over seeds.

    Args:
        runs: The runs.
        figures: Of :func:`downstream.reports.runs.figures_of`.
        each: Also every seed's value.
    """
    figures = figures[~figures["repeated"]]
    cells = figures.drop_duplicates(CELL)
    wide = figures.pivot(index=CELL, columns=["row", "run"], values="value")
    wide = wide.reindex(pd.MultiIndex.from_frame(cells[CELL]))
    columns: dict[tuple[str, str], pd.Series] = {}
    leads: list[tuple[str, str]] = []
    for row in figures["row"].unique():
        seeds = wide[row]
        several = seeds.shape[1] > 1
        if several and each:
            columns |= {(row, f"run {run + 1}"): seeds[run] for run in sorted(seeds.columns)}
        leads.append((row, "mean" if several else ""))
        columns[leads[-1]] = seeds.mean(axis=1)
        if several:
            columns[row, "±"] = seeds.std(axis=1, ddof=1)
    values, units = pd.DataFrame(columns), cells["unit"].to_numpy()
    text = _text(values, lambda _, i, value: number(value, units[i]))
    bold = pd.DataFrame(False, values.index, values.columns)
    means = values[leads]
    best = means.min(axis=1).where(cells["better"].to_numpy() == "lower", means.max(axis=1))
    # By the digits that are shown, so that what reads alike stands out alike.
    shown = pd.Series([number(value, unit) for value, unit in zip(best, units, strict=True)], values.index)
    bold[leads] = text[leads].eq(shown, axis=0).mul(means.count(axis=1) > 1, axis=0)
    return Sheet(
        caption=_caption(runs) + " Bold: the best of the rows.",
        values=_named(values, cells),
        text=_named(text, cells, tasks=_tasks(runs)),
        bold=_named(bold, cells, tasks=_tasks(runs)),
        notes=(
            *(
                f"run {i + 1}: {run.name + ', ' if run.name else ''}{run.folder}"
                for i, run in enumerate(runs)
            ),
            "±: standard deviation over the seeds (n − 1); a row that is the same in all runs is given once.",
        ),
    )


def _caption(runs: Sequence[Run]) -> str:
    data = runs[0].metrics.data
    text = (
        f"{len(runs)} runs on the same {data.test_pictures} test pictures{of_people(data.test_identities)}."
    )
    return text + (" Synthetic faces." if data.synthetic else "")


def _tasks(runs: Sequence[Run]) -> dict[str, Task]:
    return {task.name: task for run in runs for task in run.metrics.tasks}


def _named(
    frame: pd.DataFrame,
    lines: pd.DataFrame,
    first: Sequence[str] = (),
    tasks: Mapping[str, Task] | None = None,
) -> pd.DataFrame:
    """With the headings of an index; test subsets only where there are some, direction and unit at the metric.

    Given ``tasks``, these and their metrics have titles for readers, else the names of metrics.json.
    """
    arrow, unit = (
        lines["better"].map({"lower": "↓", "higher": "↑"}),
        lines["unit"].map({"%": " (%)", "deg": " (°)"}),
    )
    names, cells = lines["metric"], lines[["task", "metric"]].itertuples(index=False, name=None)
    if tasks is not None:
        titles = {(task.name, m.name): m.title for task in tasks.values() for m in task.metrics}
        names = pd.Series([titles[cell] for cell in cells], lines.index, dtype=object)
    index = lines[[*first, *CELL]].assign(metric=names + unit.fillna("") + " " + arrow)
    if tasks is not None:
        index["task"] = [tasks[name].title for name in lines["task"]]
    if (index["subset"] == "all").all():
        index = index.drop(columns="subset")
    return frame.set_axis(pd.MultiIndex.from_frame(index.rename(columns=HEADINGS)), axis=0)


def _text(values: pd.DataFrame, show: Callable[[str, int, float], str]) -> pd.DataFrame:
    """Each cell by ``show`` (its column, the number of its line, the value); "" where there is none."""
    cells = [
        [
            "" if np.isnan(value) else show(column, i, value)
            for column, value in zip(values.columns, line, strict=True)
        ]
        for i, line in enumerate(values.to_numpy())
    ]
    return pd.DataFrame(cells, values.index, values.columns, dtype=object)


# --- the differences -----------------------------------------------------------------------------------------


def differences_sheet(runs: Sequence[Run], differences: pd.DataFrame) -> Sheet:
    """A line a pair of rows, task, mode, share of the labels and metric."""
    values = differences[DIFFERENCE]
    units = differences["unit"].to_numpy()

    def show(column: str, line: int, value: float) -> str:
        if column in ("pairs", "better in"):
            return f"{value:.0f}"
        return (
            f"{value:.3g}"
            if column in ("sign p", "t p")
            else number(value, units[line], sign=column == "difference")
        )

    bold = pd.DataFrame(False, values.index, values.columns)
    bold["difference"] = [
        clear(difference, low, high, unit)
        for difference, low, high, unit in zip(
            values["difference"], values["low"], values["high"], units, strict=True
        )
    ]
    first = runs[0].metrics
    if differences["low"].notna().any():
        note = (
            f"low, high: 95 % interval of the difference over {held_out(first.data)} "
            f"({first.bootstrap_samples} resamples), with the seeds as they are; for all test pictures, where "
            "predictions are stored."
        )
    else:
        note = f"No intervals over people: the data {first.data.path} is not here, or nothing was predicted."
    counts = sorted(int(count) for count in values["pairs"].unique() if count)
    least = "; ".join(f"{n} {'pairs' if n > 1 else 'pair'}: {least_sign_p(n):.3g}" for n in counts)
    return Sheet(
        caption=_caption(runs)
        + " Differences, row − against. Bold: the interval over people leaves out zero.",
        values=_named(values, differences, ["row", "against"]),
        text=_named(_text(values, show), differences, ["row", "against"], _tasks(runs)),
        bold=_named(bold, differences, ["row", "against"], _tasks(runs)),
        notes=(
            note,
            "±: standard deviation of the differences over the pairs of seeds; better in: so many of them. Where two "
            "rows have runs of their own, and not as many, there are no pairs, and the means are compared.",
            f"The smallest p that the two-sided sign test can give: {least or 'none, without pairs'}. The paired "
            "t-test takes the differences as normal, which few pairs cannot show.",
            "No p is corrected for the number of lines.",
            *filter(None, [caution(first.data)]),
        ),
    )


def _differences(runs: Sequence[Run], figures: pd.DataFrame) -> pd.DataFrame:
    """A line a pair, task, mode, subset, share and metric."""
    cells = figures.drop_duplicates(CELL)
    wide = figures.pivot(index=CELL, columns=["row", "run"], values="value")
    wide = wide.reindex(pd.MultiIndex.from_frame(cells[CELL]))
    again = set(figures.loc[figures["repeated"], ["row", "mode", "run"]].itertuples(index=False, name=None))
    resampled = _resampler(runs)
    lines: list[dict[str, object]] = []
    for row, against in _pairs(runs):
        for (cell, line), (unit, better) in zip(
            wide.iterrows(), cells[["unit", "better"]].to_numpy(), strict=True
        ):
            ours, theirs = line[row].dropna(), line[against].dropna()
            if ours.empty or theirs.empty:
                continue
            mode = cell[1]
            if common := ours.index.intersection(theirs.index).tolist():
                # The same two figures once more are no further pair.
                common = [i for i in common if not {(row, mode, i), (against, mode, i)} <= again]
                ours, theirs = ours[common], theirs[common]
            else:
                ours = ours[[(row, mode, i) not in again for i in ours.index]]
                theirs = theirs[[(against, mode, i) not in again for i in theirs.index]]
            where = {"row": row, "against": against, "unit": unit, "better": better} | dict(
                zip(CELL, cell, strict=True)
            )
            low, high = _interval(resampled, cell, (row, ours.index), (against, theirs.index))
            lines.append(where | _tests(ours, theirs, better) | {"low": low, "high": high})
    columns = ["row", "against", *CELL, "unit", "better", *DIFFERENCE]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(DIFFERENCE, float))


def _pairs(runs: Sequence[Run]) -> Iterator[Pair]:
    """Each pretrained row with the other rows of its runs that are not, then with the pretrained rows after it."""
    kinds = {row: kind for run in runs for row, kind in run.rows().items()}
    pretrained = [row for row, kind in kinds.items() if kind == "checkpoint"]
    for row in pretrained:
        beside = {other for run in runs if row in run.rows() for other in run.rows()}
        yield from ((row, other) for other in kinds if other in beside and kinds[other] != "checkpoint")
    yield from combinations(pretrained, 2)


def _tests(ours: pd.Series, theirs: pd.Series, better: Literal["lower", "higher"]) -> dict[str, object]:
    """Of the means if they cannot be paired, which is so when each row has runs of its own, and not as many."""
    if len(ours) != len(theirs):
        return {"difference": ours.mean() - theirs.mean(), "pairs": 0}
    result = paired(ours.tolist(), theirs.tolist(), better)
    figures = (result.mean, result.std, result.count, result.better, result.sign_p, result.t_p)
    return dict(zip(["difference", "±", "pairs", "better in", "sign p", "t p"], figures, strict=True))


def _resampler(runs: Sequence[Run]) -> Resampled:
    """Scores stored predictions on resamples of the people, which are the same for all."""
    truth = truth_of(runs)
    if truth is None:
        return lambda *_: None
    first = runs[0].metrics
    bootstrap = ClusterBootstrap(truth.people, first.bootstrap_samples, first.seeds["bootstrap"])

    @cache
    def resampled(run: int, row: str, name: str, mode: str, fraction: float) -> pd.DataFrame | None:
        prediction = runs[run].predictions(row, name, mode, fraction)
        if prediction is None:
            return None
        task = runs[run].metrics.task(name)
        scores = bootstrap.metrics(task.statistics(prediction, truth.labels[name]), task.reduce)
        return pd.DataFrame(scores, columns=[metric.name for metric in task.metrics])

    return resampled


def _interval(
    resampled: Resampled, cell: tuple[str, str, str, float, str], *sides: tuple[str, Iterable[int]]
) -> tuple[float, float]:
    """Of the difference of the means over the runs of two rows; NaN where it cannot be had."""
    task, mode, subset, fraction, metric = cell
    means = []
    for row, numbers in sides:
        scores = [resampled(run, row, task, mode, fraction) for run in numbers]
        if subset != "all" or any(score is None for score in scores):
            return np.nan, np.nan
        means.append(np.mean([score[metric] for score in scores if score is not None], axis=0))
    low, high = interval((means[0] - means[1])[:, None])
    return float(low[0]), float(high[0])
