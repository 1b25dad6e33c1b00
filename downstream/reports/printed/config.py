"""Which runs stand beside which printed table."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from configs import Config
from downstream.reports import printed


class PaperTable(Config):
    """One table: the printed figures and those of some runs."""

    printed: str
    """The printed table: disfa, bp4d, affectnet, 300w, wflw, cofw or aflw."""
    runs: tuple[str, ...] = Field(min_length=1)
    """Run directories of evaluations on the same test pictures; rows of one name are seeds and are averaged."""
    name: str | None = None
    """Name of the files; null: that of the printed table."""

    @field_validator("printed")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in printed.names():
            raise ValueError(f"there is no printed table '{name}'; take one of {', '.join(printed.names())}")
        return name


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
