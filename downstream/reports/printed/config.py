"""Which runs stand beside which printed table."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from configs import Config
from downstream.reports import printed


class PaperTable(Config):
    """One table: the printed figures and those of some runs."""

    printed: str
    """The printed table: disfa, bp4d, affectnet, 300w, wflw, cofw, aflw, simfle, simfle_supervised, simfle_parts or
    simfle_contrastive."""
    runs: tuple[str, ...] | dict[str, tuple[str, ...]] = Field(min_length=1)
    """Run directories of evaluations on the same test pictures; rows of one name are seeds and are averaged. For a
    table of several evaluations a mapping: evaluation -> run directories."""
    pretraining: dict[str, str] = Field(default={})
    """Row -> the config of its pretraining, from which a column of costs is counted."""
    name: str | None = None
    """Name of the files; null: that of the printed table."""

    @field_validator("printed")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in printed.names():
            raise ValueError(f"there is no printed table '{name}'; take one of {', '.join(printed.names())}")
        return name

    @model_validator(mode="after")
    def _runs_are_those_of_the_table(self) -> PaperTable:
        known = printed.read(self.printed).evaluations
        if isinstance(self.runs, tuple) == bool(known):
            wanted = (
                f"a mapping of {', '.join(known)} to run directories"
                if known
                else "a list of run directories"
            )
            raise ValueError(f"runs: {self.printed} needs {wanted}")
        if strange := [name for name in self.runs if name not in known] if known else []:
            raise ValueError(f"runs: {self.printed} has no '{strange[0]}'; it has {', '.join(known)}")
        return self

    @property
    def evaluations(self) -> dict[str, tuple[str, ...]]:
        """Evaluation -> run directories; where a table needs but one, its name is empty."""
        return self.runs if isinstance(self.runs, dict) else {"": self.runs}


class TablesConfig(Config):
    """Papers' tables with our figures beside them, as HTML, Markdown, LaTeX and JSON."""

    tables: tuple[PaperTable, ...] = Field(min_length=1)
    """The tables to write."""
    output: str
    """The folder to write them to."""

    @model_validator(mode="after")
    def _names_differ(self) -> TablesConfig:
        names = [table.name or table.printed for table in self.tables]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"tables: two are called '{twice[0]}'; give each a name of its own")
        return self
