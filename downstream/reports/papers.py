"""The papers' tables with our figures beside the printed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from configs import ConfigError, load
from downstream.reports import printed
from downstream.reports.printed import Column, Printed
from downstream.reports.printed.config import PaperTable, TablesConfig
from downstream.reports.runs import Run, figures_of, open_runs
from downstream.reports.sheet import Sheet, plain
from downstream.reports.tables import of_people
from downstream.results import Data
from downstream.tasks.task import Array
from pretrain.flops import step_multiply_adds
from pretrain.train import PretrainConfig

PRINTED, MEASURED = "printed", "measured here"


def write_tables(cfg: TablesConfig) -> dict[str, Sheet]:
    """Write every table in four formats; the tables by name.

    Raises:
        ConfigError: if a run is not finished or measures nothing of its table, or the runs of a table have other
            test pictures.
    """
    sheets = {table.name or table.printed: paper_sheet(table) for table in cfg.tables}
    for name, sheet in sheets.items():
        sheet.write(Path(cfg.output), name)
    return sheets


def paper_sheet(table: PaperTable) -> Sheet:
    """One printed table and the rows of the runs: a line an initialisation, mode and share of the labels.

    The best figure of a block is bold. A block is what may be compared: printed rows with printed ones, ours with
    ours at the same share of the labels. A cell that was not measured is empty.
    """
    paper = printed.read(table.printed)
    runs = {name: open_runs(words) for name, words in table.evaluations.items()}
    for run in (run for of_evaluation in runs.values() for run in of_evaluation):
        _refuse_other_settings(table.printed, paper, run)
    columns = pd.MultiIndex.from_tuples([(column.group, column.title) for column in paper.columns])
    if not any(column.group for column in paper.columns):
        columns = columns.get_level_values(1)
    figures = {name: figures_of(of_evaluation) for name, of_evaluation in runs.items()}
    measured = list(
        _lines_across(paper, figures, _costs(paper, table.pretraining))
        if paper.evaluations
        else _measured_lines(paper, figures[""])
    )
    if not measured:
        folder = next(iter(table.evaluations.values()))[0]
        raise ConfigError(
            f"tables: {folder} measures nothing of {table.printed}{_lacking(paper, figures)}; take the table or the "
            "run out"
        )
    lines = [*_printed_lines(paper), *measured]
    if paper.by_share:
        lines.sort(key=lambda line: -line[0][0])  # stable: printed before measured
    index = pd.MultiIndex.from_tuples(
        [key for key, _, _ in lines], names=["Labels", "Figures", paper.rows_are]
    )
    if paper.evaluations:  # the columns say at which share
        index = index.droplevel("Labels")
    digits = [paper.digits if column.digits is None else column.digits for column in paper.columns]
    values = pd.DataFrame(np.array([line for _, line, _ in lines]), index, columns)
    spread = pd.DataFrame(np.array([line for _, _, line in lines]), index, columns)
    better = [None if column.cost else column.better or paper.better for column in paper.columns]
    return Sheet(
        caption=_caption(paper, runs),
        values=values,
        text=plain(values, digits),
        bold=_best(
            values.round(dict(zip(columns, digits, strict=True))),
            better,
            [_block(paper, key) for key, _, _ in lines],
        ),
        notes=paper.notes,
        more={"std": spread},
    )


def _lacking(paper: Printed, figures: Mapping[str, pd.DataFrame]) -> str:
    """What keeps figures of the right task out of every column."""
    found = [frame[frame["task"] == paper.task] for frame in figures.values()]
    if all(frame.empty for frame in found):
        return f": it has no task {paper.task}"
    wanted = dict.fromkeys(column.subset for column in paper.columns if column.metric)
    if missing := [name for name in wanted if not any((frame["subset"] == name).any() for frame in found)]:
        return f": it has no 'subsets' called {', '.join(missing)}"
    return ""


def _refuse_other_settings(name: str, paper: Printed, run: Run) -> None:
    for task in run.metrics.tasks:
        for field, wanted in paper.settings.items() if task.name == paper.task else ():
            if (found := getattr(task, field)) != wanted:
                raise ConfigError(
                    f"tables: {run.folder} measures {task.name} with {field} {found}, {name} has {wanted}; "
                    "take it out"
                )


Line = tuple[tuple[float, str, str], list[float], list[float]]
"""(share, printed or measured, name), a value a column, its standard deviation over seeds; NaN: there is none."""


def _printed_lines(paper: Printed) -> Iterator[Line]:
    for row in paper.rows:
        values = [np.nan if value is None else value for value in row.values]
        yield (float(row.share), PRINTED, row.name), values, [np.nan] * len(values)


def _measured_lines(paper: Printed, figures: pd.DataFrame) -> Iterator[Line]:
    """From many labels to few; within a share in the order of the runs' rows and modes."""
    wanted = {(column.metric, column.subset) for column in paper.columns}
    shown = [name in wanted for name in zip(figures["metric"], figures["subset"], strict=True)]
    figures = figures[np.array(shown) & (figures["task"] == paper.task) & ~figures["repeated"]]
    for fraction in sorted(figures["fraction"].unique(), reverse=True):
        of_share = figures[figures["fraction"] == fraction]
        for (row, mode), of_row in of_share.groupby(["row", "mode"], sort=False):
            seeds = [_cells(paper, of_run) for _, of_run in of_row.groupby("run", sort=False)]
            name = f"{row}, {mode}" + (f", mean of {len(seeds)} seeds" if len(seeds) > 1 else "")
            spread = np.std(seeds, axis=0, ddof=1) if len(seeds) > 1 else np.full(len(paper.columns), np.nan)
            yield (float(fraction), MEASURED, name), np.mean(seeds, axis=0).tolist(), spread.tolist()


def _cells(paper: Printed, figures: pd.DataFrame) -> list[float]:
    """The cells of one row in one run, in the unit that the paper prints."""
    found = {
        (line.metric, line.subset): line.value / (100 if line.unit == "%" and not paper.unit else 1)
        for line in figures.itertuples()
    }
    cells = [found.get((column.metric, column.subset), np.nan) for column in paper.columns]
    rest = [cell for cell, column in zip(cells, paper.columns, strict=True) if not column.average]
    return [_mean(rest) if c.average else cell for cell, c in zip(cells, paper.columns, strict=True)]


def _lines_across(
    paper: Printed, figures: Mapping[str, pd.DataFrame], costs: Mapping[str, float]
) -> Iterator[Line]:
    """A line an initialisation, whose cells are from several evaluations; each is the mean of its own seeds."""
    kept = {
        name: frame[(frame["task"] == paper.task) & ~frame["repeated"]] for name, frame in figures.items()
    }
    for row in dict.fromkeys(row for frame in kept.values() for row in frame["row"]):
        cells = [
            np.array([costs.get(row, np.nan)]) if column.cost else _seeds(column, kept.get(column.of), row)
            for column in paper.columns
        ]
        if any(len(cell) for cell, column in zip(cells, paper.columns, strict=True) if not column.cost):
            values = [float(np.mean(cell)) if len(cell) else np.nan for cell in cells]
            spread = [float(np.std(cell, ddof=1)) if len(cell) > 1 else np.nan for cell in cells]
            yield (1.0, MEASURED, row), values, spread


def _seeds(column: Column, figures: pd.DataFrame | None, row: str) -> Array:
    """(S,) the figures of a column in the runs of its evaluation; none where it was not measured."""
    if figures is None:
        return np.zeros(0)
    wanted = {"row": row, "mode": column.mode, "fraction": column.share}
    wanted |= {"metric": column.metric, "subset": column.subset}
    chosen = np.logical_and.reduce([figures[field] == value for field, value in wanted.items()])
    return np.asarray(figures["value"][chosen], np.float64)


def _costs(paper: Printed, pretraining: Mapping[str, str]) -> dict[str, float]:
    """Row -> G multiply-adds a picture."""
    if pretraining and not any(column.cost for column in paper.columns):
        raise ConfigError(f"tables: {paper.title} has no column of costs; take 'pretraining' out")
    return {
        row: step_multiply_adds(load(path, schema=PretrainConfig)) / 1e9 for row, path in pretraining.items()
    }


def _mean(cells: Sequence[float]) -> float:
    """Of all cells; NaN if one is missing: the mean of fewer units is another figure."""
    return float(np.mean(cells))


def _block(paper: Printed, key: tuple[float, str, str]) -> tuple[object, ...]:
    share, origin, _ = key
    return (origin, share) if paper.by_share or origin == MEASURED else (origin,)


def _best(
    shown: pd.DataFrame, better: Sequence[str | None], blocks: Sequence[tuple[object, ...]]
) -> pd.DataFrame:
    """The best of each block and column; of rounded figures, so that what reads alike stands out alike."""
    bold = pd.DataFrame(False, shown.index, shown.columns)
    for block in dict.fromkeys(blocks):
        lines = [i for i, other in enumerate(blocks) if other == block]
        for j, direction in enumerate(better):
            cells = shown.iloc[lines, j]
            if direction and cells.count() > 1:
                best = cells.min() if direction == "lower" else cells.max()
                bold.iloc[lines, j] = (cells == best).to_numpy()
    return bold


def _caption(paper: Printed, runs: Mapping[str, Sequence[Run]]) -> str:
    block = (
        "a share of the labels" if paper.by_share else "the printed rows, or of ours at a share of the labels"
    )
    if paper.evaluations:
        block = "the printed rows, or of ours"
    measured = ", ".join(
        _measured(name, of_evaluation[0].metrics.data) for name, of_evaluation in runs.items()
    )
    other = [
        data.path
        for name, of_evaluation in runs.items()
        if (data := of_evaluation[0].metrics.data).kinds != (paper.corpora[name],) and not data.synthetic
    ]
    text = f"{paper.title}. Printed: {paper.source}. Measured here: {measured}."
    if any(run.metrics.data.synthetic for of_evaluation in runs.values() for run in of_evaluation):
        text += (
            " Synthetic faces: what was measured here is of rendered faces, not of the data in the title, and cannot "
            "be compared with what is printed."
        )
    if other:
        text += (
            f" Other data: {', '.join(other)} is not known to be the data in the title, and what was measured on it "
            "cannot be compared with what is printed."
        )
    return f"{text} Bold: the best of {block}, printed and measured apart. An empty cell was not measured."


def _measured(name: str, data: Data) -> str:
    """What an evaluation was measured on."""
    path = data.test_path or data.path
    kinds = f" ({', '.join(data.kinds)})" if data.kinds else ""
    return f"{name} " * bool(name) + (
        f"{data.test_pictures} test pictures{of_people(data.test_identities)} of {path}{kinds}, trained on up to "
        f"{data.train_pictures} others"
    )
