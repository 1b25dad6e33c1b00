"""A table of figures as HTML, Markdown, LaTeX, JSON and text: the same numbers in each."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from data_prep.files import atomic_write, write_json
from downstream.reports.tables import in_markdown, percent

FORMATS = ("html", "md", "tex", "json")

_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "°": r"\textdegree{}"}
    | {"\N{MINUS SIGN}": "$-$", "±": r"$\pm$", "√": r"$\surd$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
)
_HTML_RULES = [
    {
        "selector": "",
        "props": "border-collapse: collapse; font: 14px sans-serif; font-variant-numeric: tabular-nums",
    },
    {"selector": "caption", "props": "text-align: left; max-width: 60em; padding-bottom: .6em"},
    {"selector": "th, td", "props": "padding: .15em .6em; text-align: right; vertical-align: top"},
    {"selector": "th.row_heading, th.index_name", "props": "text-align: left; font-weight: normal"},
    {"selector": "thead", "props": "border-top: 2px solid; border-bottom: 1px solid"},
    {"selector": "tbody", "props": "border-bottom: 2px solid"},
    {"selector": "tbody tr:not(:first-child) th[rowspan]", "props": "border-top: 1px solid #ccc"},
    {"selector": "th.col_heading[colspan]", "props": "text-align: center; border-bottom: 1px solid #ccc"},
]


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        caption: What it shows, in one paragraph.
        values: The figures; NaN is an empty cell. Numbers in its index are shares of the labels.
        text: The figures as they are shown; "" where there is none.
        bold: Which of them stand out; the caption says why.
        notes: Lines below the table.
        more: Further figures of the same cells, only for JSON: name -> a frame like ``values``.
    """

    caption: str
    values: pd.DataFrame
    text: pd.DataFrame
    bold: pd.DataFrame
    notes: tuple[str, ...] = ()
    more: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def html(self, pictures: Sequence[str] = ()) -> str:
        """A page of its own; below the table the pictures of these files, which lie beside it."""
        table = self._styler(html.escape).set_table_styles(_HTML_RULES)
        body = table.set_caption(html.escape(self.caption)).to_html(sparse_columns=True)
        notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in self.notes)
        head = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Table</title>\n'
        style = "<style>body {margin: 2em} ul {font: 14px sans-serif; max-width: 60em}</style>\n"
        shown = "".join(
            f'<p><a href="{quote(name)}"><img src="{quote(name)}" alt="{html.escape(name)}"></a></p>\n'
            for name in pictures
        )
        return f"{head}{style}{body}{f'<ul>{chr(10)}{notes}</ul>{chr(10)}' * bool(notes)}{shown}"

    def markdown(self) -> str:
        """A paragraph, a table with pipes, and a list of notes."""
        cells = self.text.map(in_markdown).where(~self.bold, lambda text: "**" + text + "**")
        notes = "".join(f"\n* {note}" for note in self.notes)
        table = _tabulate(_escaped(cells, in_markdown, lambda cell: cell), "github", "<br>")
        return f"{self.caption}\n\n{table}\n" + (notes + "\n" if notes else "")

    def latex(self) -> str:
        """A float; needs the packages booktabs and multirow. The notes are part of the caption."""
        caption = " ".join([self.caption, *self.notes]).translate(_LATEX)
        styler = self._styler(lambda text: text.translate(_LATEX))
        columns = "l" * self.text.index.nlevels + "r" * self.text.shape[1]
        return str(
            styler.to_latex(
                caption=caption,
                hrules=True,
                convert_css=True,
                column_format=columns,
                multirow_align="t",
                multicol_align="c",
            )
        )

    def json(self) -> dict[str, Any]:
        """The figures in full: a row an entry, null where a cell is empty."""
        frames = {"values": self.values, **self.more}
        return {
            "caption": self.caption,
            "index": [str(name) for name in self.values.index.names],
            "columns": [list(c) if isinstance(c, tuple) else [c] for c in self.values.columns],
            "rows": [
                {"index": list(index) if isinstance(index, tuple) else [index]}
                | {name: [_number(cell) for cell in frame.iloc[i]] for name, frame in frames.items()}
                for i, index in enumerate(self.values.index)
            ],
            "notes": list(self.notes),
        }

    def terminal(self) -> str:
        """Fixed width."""
        return "\n".join([_tabulate(_escaped(self.text, str, str), "simple", "\n"), *self.notes])

    def write(self, folder: Path, name: str, pictures: Sequence[str] = ()) -> None:
        """``name``.html, which shows ``pictures`` of the folder, .md, .tex and .json in ``folder``."""
        texts = {"html": self.html(pictures), "md": self.markdown(), "tex": self.latex()}
        for suffix, text in texts.items():
            with atomic_write(folder / f"{name}.{suffix}", "w") as file:
                file.write(text)
        write_json(folder / f"{name}.json", self.json())

    def _styler(self, escape: Callable[[str], str]) -> Any:
        cells = _escaped(self.text, escape, escape)
        bold = self.bold.set_axis(cells.index).set_axis(cells.columns, axis=1)
        styler = cells.style.apply(
            lambda _: bold.map(lambda on: "font-weight: bold" if on else ""), axis=None
        )
        styler.cell_ids, styler.uuid, styler.uuid_len = False, "", 0  # the same page each time
        return styler


def plain(values: pd.DataFrame, digits: int | Sequence[int]) -> pd.DataFrame:
    """The text of numbers with so many decimals, or so many in each column, and a real minus sign; "" where there is
    none.
    """

    def text(value: float, count: int) -> str:
        shown = "" if math.isnan(value) else f"{round(value, count) + 0.0:.{count}f}"  # -0.0 + 0.0 is 0.0
        return shown.replace("-", "\N{MINUS SIGN}")

    each = [digits] * values.shape[1] if isinstance(digits, int) else digits
    rows = [[text(value, count) for value, count in zip(row, each, strict=True)] for row in values.to_numpy()]
    return pd.DataFrame(rows, values.index, values.columns, dtype=object)


def _escaped(frame: pd.DataFrame, escape: Callable[[str], str], cell: Callable[[str], str]) -> pd.DataFrame:
    """Index, headings and cells as text that the format leaves as it is."""

    def label(value: Any) -> str:
        return escape(percent(value) if isinstance(value, float) else str(value))

    def axis(index: pd.Index) -> pd.Index:
        names = [escape(str(name)) if name else None for name in index.names]
        if isinstance(index, pd.MultiIndex):
            return pd.MultiIndex.from_tuples([tuple(map(label, t)) for t in index], names=names)
        return pd.Index([label(value) for value in index], name=names[0], dtype=object)

    return frame.map(cell).set_axis(axis(frame.index)).set_axis(axis(frame.columns), axis=1)


def _tabulate(frame: pd.DataFrame, style: str, newline: str) -> str:
    """One heading a column, and every label in every row."""
    headings = [
        newline.join(part for part in c if part) if isinstance(c, tuple) else c for c in frame.columns
    ]
    rows = [
        [*(index if isinstance(index, tuple) else (index,)), *cells]
        for index, cells in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    left, right = frame.index.nlevels, len(headings)
    return tabulate(
        rows,
        headers=[*(name or "" for name in frame.index.names), *headings],
        tablefmt=style,
        disable_numparse=True,
        colalign=["left"] * left + ["right"] * right if rows else None,
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
