"""Anybody's own labels: a CSV file with a column of paths and columns of labels, whose types the configuration says.

A line is a face. A picture with several faces has several lines, each with its box. Where an expected number is
something else, the line is an error with file and line, and so is its picture.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from configs import Config, ConfigError
from data_prep.sources import Photographs
from data_prep.sources.corpus import Corpus, listed_schema
from data_prep.tables import PIXEL_POINTS, table_of, vector

RANGES = {"valence": (-1.0, 1.0), "arousal": (-1.0, 1.0)}
"""What the project takes labels of these names to be within."""

_UNKNOWN = frozenset({"", "nan", "na", "n/a", "null", "none"})
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
_SCALARS = {"integer": pa.int64(), "name": pa.int64(), "number": pa.float32(), "text": pa.string()}


class Label(Config):
    """One label, and where the CSV file has it."""

    type: Literal["integer", "number", "numbers", "text", "name"]
    """integer, number, text; numbers: as many of them as there are columns, or length of them in one cell, between
    blanks, commas or semicolons; name: a text that is counted, 0, 1, ... in the order of all names, and kept beside
    the number under the label's name with _name."""
    column: str = ""
    """The column; unless given, that of the label's name."""
    columns: tuple[str, ...] = ()
    """Type numbers: a column a number."""
    length: int | None = Field(None, ge=1)
    """Type numbers: how many there are in the one cell."""

    @model_validator(mode="after")
    def _one_place(self) -> Label:
        if self.type == "numbers":
            if bool(self.columns) == bool(self.length) or (self.column and self.columns):
                raise ValueError("numbers: give 'columns', or 'length' of the numbers in one cell")
        elif self.columns or self.length:
            raise ValueError(f"{self.type}: 'columns' and 'length' are for type numbers; leave them out")
        return self

    @property
    def count(self) -> int:
        """How many numbers a label of type numbers has."""
        return len(self.columns) or self.length or 0


class CSVConfig(Photographs):
    """Pictures and labels that a CSV file names."""

    kind: Literal["csv"]
    """csv"""
    path: Path
    """The CSV file: a header, then a line a face."""
    root: Path | None = None
    """The folder that its paths are below; unless given, the CSV file's own."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """What divides cells."""
    picture: str = "path"
    """The column of the paths."""
    labels: dict[str, Label] = Field(default_factory=dict)
    """Name of a label -> type and column. Known names: identity (integer or name); expression; valence and arousal
    from -1 to 1; box, the numbers x0, y0, x1, y1 in px; landmarks5, landmarks68, x and y in turn, the middle of
    the first pixel at 0.5, 0.5; split. Others are carried along as they are."""
    label: str = "none"
    """The label, an integer or a name, that becomes the .beton's."""

    @model_validator(mode="after")
    def _known_labels_have_their_type(self) -> CSVConfig:
        for name, label in self.labels.items():
            if label.type == "name" and f"{name}_name" in self.labels:
                raise ValueError(f"labels.{name}_name: is where the names of {name} go; call it otherwise")
            if name == "identity" and label.type not in ("integer", "name"):
                raise ValueError(f"labels.identity: {label.type} does not number people; use integer or name")
            if name in RANGES and label.type != "number":
                raise ValueError(f"labels.{name}: is one number; use type: number")
            if name in PIXEL_POINTS or re.fullmatch(r"landmarks\d+", name):
                _check_points(name, label)
        if self.label != "none":
            if self.label not in self.labels:
                raise ValueError(f"label: {self.label} is not among the labels")
            if self.labels[self.label].type not in ("integer", "name"):
                raise ValueError(f"label: {self.label} is no integer and no name")
        return self


def _check_points(name: str, label: Label) -> None:
    if name not in PIXEL_POINTS:
        raise ValueError(
            f"labels.{name}: these points cannot be moved into a crop; {', '.join(PIXEL_POINTS)} can"
        )
    count = 4 if name.endswith("box") else 2 * int(name.removeprefix("landmarks"))
    if label.type != "numbers" or label.count != count:
        raise ValueError(f"labels.{name}: is {count} numbers; use type: numbers")


@dataclass(frozen=True)
class CSV(Corpus):
    """Pictures in the order in which the file first names them; ``image_id`` is the path as it stands there."""

    config: CSVConfig
    shard_size: int

    @functools.cached_property
    def labels(self) -> pa.StructType:
        """As configured."""
        fields: dict[str, pa.DataType] = {}
        for name, label in self.config.labels.items():
            fields[name] = vector(label.count) if label.type == "numbers" else _SCALARS[label.type]
            if label.type == "name":
                fields[f"{name}_name"] = pa.string()
        return pa.struct(fields)

    @functools.cached_property
    def label_name(self) -> str:
        """As configured."""
        return self.config.label

    @property
    def root(self) -> Path:
        """The folder that the paths are below."""
        return self.config.root or self.config.path.parent

    def inputs(self) -> pa.Table:
        """All pictures that the file names, and its lines that name none.

        Raises:
            ConfigError: there is no such file, it has no header with these columns, or its quotes are open.
        """
        pictures: dict[str, list[_Line]] = {}
        for line in self._lines():
            pictures.setdefault(line.picture or line.place, []).append(line)
        if not pictures:
            raise ConfigError(f"source.path={self.config.path}: has no line but its header")
        _number_names(self.config.labels, pictures.values())
        rows = [_row(name, lines) for name, lines in pictures.items()]
        if not self.config.labels:
            rows = [row | {"annotations": []} for row in rows]
        return table_of(rows, listed_schema(self.labels))

    def _lines(self) -> Iterator[_Line]:
        header: list[str] = []
        for number, last, cells in _cells(self.config.path, self.config.delimiter):
            if not header:
                header = self._checked(cells)
                continue
            line = _Line(f"{self.config.path.name}:{number}")
            try:
                if last > number:
                    raise ValueError(f"a quote is open up to line {last}")
                named = dict(zip(header, cells, strict=False))
                line.picture = _picture(named.get(self.config.picture, ""))
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells instead of {len(header)}")
                line.face = {name: _value(name, label, named) for name, label in self.config.labels.items()}
            except ValueError as error:
                line.error = f"{line.place}: {error}"
            yield line

    def _checked(self, header: list[str]) -> list[str]:
        """The names of the columns; ConfigError unless each that is needed is there, once."""
        header = [name.strip() for name in header]
        needed = {"picture": [self.config.picture]}
        for name, label in self.config.labels.items():
            needed[f"labels.{name}"] = _columns(name, label)
        for field, columns in needed.items():
            for column in columns:
                if header.count(column) != 1:
                    many = "several columns" if column in header else "no column"
                    raise ConfigError(
                        f"source.{field}: {self.config.path} has {many} '{column}'; it has {', '.join(header)}"
                    )
        return header


@dataclass
class _Line:
    """A line of the file."""

    place: str
    """File and number."""
    picture: str = ""
    """Empty where it names none."""
    face: dict[str, Any] | None = None
    """The values of the labels; None where one of them is wrong."""
    error: str = ""


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """First and last line of each row that is not blank, and its cells."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            first = 1
            try:
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        yield first, reader.line_num, cells
                    first = reader.line_num + 1
            except csv.Error as error:
                raise ConfigError(f"{path}:{first}: {error}; mend the quotes from this line on") from None
    except OSError as error:
        raise ConfigError(f"source.path={path}: cannot be read: {error.strerror}; check the path") from None


def _picture(cell: str) -> str:
    if not cell.strip() or "\0" in cell:
        raise ValueError("names no picture")
    return PurePosixPath(cell).as_posix()


def _columns(name: str, label: Label) -> list[str]:
    return [*label.columns] or [label.column or name]


def _value(name: str, label: Label, cells: Mapping[str, str]) -> Any:
    """A label of one line, null where its cell is empty; ValueError where it is something else than expected."""
    columns = _columns(name, label)
    if label.type in ("text", "name"):
        return cells[columns[0]].strip() or None
    if label.type == "numbers":
        return _numbers(name, label, columns, cells)
    value = _number(columns[0], cells[columns[0]])
    if value is None:
        return -1 if name == "identity" else None
    if label.type == "integer":
        if value != int(value) or abs(value) > 2**53:
            raise ValueError(f"{columns[0]} is no whole number: '{cells[columns[0]][:40]}'")
        return int(value)
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if not low <= value <= high:
        raise ValueError(f"{columns[0]} is not from {low:g} to {high:g}: '{cells[columns[0]][:40]}'")
    return value


def _numbers(name: str, label: Label, columns: Sequence[str], cells: Mapping[str, str]) -> list[float] | None:
    if label.columns:
        values = [_number(column, cells[column]) for column in columns]
    else:
        words = re.split(r"[\s,;]+", cells[columns[0]].strip(" \t[]()"))
        values = [_number(columns[0], word) for word in words] if words != [""] else [None] * label.count
    known = [value for value in values if value is not None]
    if not known and len(values) == label.count:
        return None
    if len(known) != label.count:
        raise ValueError(f"{name} has {len(known)} numbers instead of {label.count}")
    if name == "box" and not (known[0] < known[2] and known[1] < known[3]):
        raise ValueError(f"box is not x0 < x1 and y0 < y1: {' '.join(f'{value:g}' for value in known)}")
    return known


def _number(column: str, cell: str) -> float | None:
    text = cell.strip()
    if text.lower() in _UNKNOWN:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    if abs(value) > 1e38:  # what float32 can hold
        raise ValueError(f"{column} is no number: '{text[:40]}'")
    return value


def _number_names(labels: Mapping[str, Label], pictures: Any) -> None:
    """Count the labels of type name, in place."""
    faces = [line.face for lines in pictures for line in lines if line.face is not None]
    for name in (name for name, label in labels.items() if label.type == "name"):
        known = sorted({face[name] for face in faces} - {None})
        numbers: dict[str | None, int | None] = {text: number for number, text in enumerate(known)}
        numbers[None] = -1 if name == "identity" else None
        for face in faces:
            face[f"{name}_name"] = face[name]
            face[name] = numbers[face[name]]


def _row(name: str, lines: list[_Line]) -> dict[str, Any]:
    """The input that some lines name."""
    error = next((line.error for line in lines if line.error), "")
    faces = [line.face for line in lines if line.face is not None]
    if not error and len(lines) > 1 and not all(face.get("box") for face in faces):
        error = f"{lines[1].place}: {name} is on {lines[0].place} too; without a box nobody knows which face it is"
    row = {"image_id": name, "path": lines[0].picture, "error": error, "annotations": faces}
    return row | {"place": lines[0].place}
