"""The figures that papers print, a YAML file a table, cell by cell, to be read beside those measured here.

Nothing in them was measured by this project. Where a paper's text or average contradicts its own cells, a note
says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs import Config, load
from downstream.config import Mode

FOLDER = Path(__file__).parent


class Column(Config):
    """One column of a printed table, and the figure of metrics.json that stands in it for a run of ours."""

    title: str
    """Heading."""
    group: str = ""
    """Heading above it, over several columns."""
    metric: str | None = None
    """The task's metric."""
    subset: str = "all"
    """Which of the test pictures."""
    better: Literal["lower", "higher"] | None = None
    """Direction of improvement; null: the table's."""
    average: bool = False
    """The mean of all other columns; ours is computed from ours, and only if none is missing."""
    cost: bool = False
    """G multiply-adds a picture of a pretraining step, see :mod:`pretrain.flops`."""
    of: str = ""
    """Which of the table's evaluations it is taken from, where the table is of several."""
    mode: Mode | None = None
    """In such a table: linear, knn, frozen or finetune."""
    share: float = Field(default=1.0, gt=0, le=1)
    """In such a table: share of the training labels."""
    digits: int | None = Field(default=None, ge=0)
    """Decimals, as printed; null: the table's."""

    @model_validator(mode="after")
    def _is_measured_or_computed(self) -> Column:
        if self.average + self.cost + (self.metric is not None) != 1:
            raise ValueError(f"column {self.title}: give it either a metric or average: true or cost: true")
        if bool(self.of) != (self.mode is not None):
            raise ValueError(f"column {self.title}: 'of' and 'mode' belong together; give it both or none")
        return self


class PrintedRow(Config):
    """One row of a printed table."""

    name: str
    """As printed; what a paper calls its own, by its authors or its name."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training labels, where the columns do not say it."""
    values: tuple[float | None, ...]
    """A value a column, as printed; null where the paper has none."""


class Printed(Config):
    """One printed table."""

    title: str
    """What is measured, on which data."""
    source: str
    """Where it is printed."""
    rows_are: str
    """Heading over the names of the rows."""
    corpora: dict[str, str]
    """The kind of source of the data in the title; of a table of several evaluations, that of each."""
    task: str
    """The task that measures it."""
    settings: dict[str, int | float | str] = Field(default_factory=dict)
    """What the task must be set to, for its metrics to be those of the table."""
    digits: int = Field(ge=0)
    """Decimals, as printed."""
    unit: Literal["%", "deg", ""] = ""
    """Unit of the values; a share printed as .590 has none."""
    better: Literal["lower", "higher"]
    """Direction of improvement."""
    by_share: bool = False
    """Whether the paper compares rows within a share of the labels only."""
    columns: tuple[Column, ...] = Field(min_length=1)
    """From left to right."""
    rows: tuple[PrintedRow, ...] = Field(min_length=1)
    """From top to bottom."""
    notes: tuple[str, ...] = ()
    """What a reader has to know, and where the paper contradicts itself."""

    @property
    def evaluations(self) -> tuple[str, ...]:
        """What its columns are taken from, where these are several evaluations; otherwise nothing."""
        return tuple(dict.fromkeys(column.of for column in self.columns if column.of))

    @model_validator(mode="after")
    def _all_columns_of_evaluations_or_none(self) -> Printed:
        if self.evaluations and any(column.metric and not column.of for column in self.columns):
            raise ValueError("columns: some say 'of' and some do not; give it to every column with a metric")
        if set(self.corpora) != set(self.evaluations or ("",)):
            raise ValueError(
                "corpora: name one for each evaluation; for a table of one evaluation its name is ''"
            )
        return self

    @model_validator(mode="after")
    def _rectangular(self) -> Printed:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"row {row.name} has {len(row.values)} values for {len(self.columns)} columns; mend it"
                )
        return self


def names() -> list[str]:
    """The tables there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Printed:
    """The table ``name``."""
    return load(FOLDER / f"{name}.yaml", schema=Printed)
