"""AffectNet: photographs from the web with expression, valence and arousal, in either of its two releases.

Mollahosseini et al., "AffectNet", IEEE Transactions on Affective Computing 2019. The old release has the whole
photographs and lists of the faces in them; a photograph may be on several rows:

    Manually_Annotated_Images/689/737db2...jpg
    Manually_Annotated_file_lists/training.csv, validation.csv
    Automatically_Annotated_Images/..., Automatically_annotated_file_list/automatically_annotated.csv

The new release has crops of 224 x 224, one face each, and four small files of labels for every crop, the points
in pixels of the crop:

    train_set/images/0.jpg         train_set/annotations/0_exp.npy, 0_val.npy, 0_aro.npy, 0_lnd.npy
    val_set/...

Whether the points count the first pixel as 0 or 1 is not known; they are taken as they are, so they may be off by
half a pixel. The folder of the automatically annotated pictures is named from memory.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs import ConfigError
from data_prep.sources import Found, Photographs, Published
from data_prep.sources.corpus import Corpus, input_schema, listed_schema, vectors, visible_files
from data_prep.stage import Shard
from data_prep.tables import vector

_log = logging.getLogger(__name__)

CLASSES = (
    "neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt", "none", "uncertain", "non-face",
)  # fmt: skip
"""What the numbers of ``expression`` mean. The new release has the first eight."""

LABELS: pa.StructType = pa.struct(
    {
        "expression": pa.int64(),
        "valence": pa.float32(),
        "arousal": pa.float32(),
        "box": vector(4),
        "landmarks68": vector(136),
        "split": pa.string(),
    }
)
"""valence, arousal: in [-1, 1], null where not known. box: of the old release, null where the list has none.
split: train, val or automatic."""

PUBLISHED_CLASSES = (74_874, 134_416, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750, 33_088)
"""Rows of training.csv for the classes 0 to 8; it has 414,800. Each class has 500 of validation.csv's 5,500."""
PUBLISHED_NEW = (
    Published("pictures of train", 287_651, "as papers count them", prefix="train_set/"),
    Published("pictures of val", 3_999, "from memory; some count 4,000", prefix="val_set/"),
)

HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


class AffectNetConfig(Photographs):
    """AffectNet."""

    kind: Literal["affectnet"]
    """affectnet"""
    path: Path
    """The folder with Manually_Annotated_Images (old release) or train_set (new release) in it."""
    release: Literal["old", "new"]
    """old: whole photographs, box lists; new: crops of 224 px, a file a label."""
    classes: tuple[int, ...] = Field(tuple(range(8)), min_length=1)
    """Old release: faces of these expression classes are taken. 8, "none", has valence and arousal too; 9,
    "uncertain", and 10, "non-face", have not. The new release holds 0 to 7."""
    automatic: bool = False
    """Old release: take the automatically annotated pictures too."""

    @model_validator(mode="after")
    def _known(self) -> AffectNetConfig:
        if unknown := sorted(set(self.classes) - set(range(len(CLASSES)))):
            raise ValueError(f"classes: {unknown[0]} is no class; they are 0 to {len(CLASSES) - 1}")
        if self.release == "new" and (self.automatic or set(self.classes) != set(range(8))):
            raise ValueError("release=new takes neither 'classes' nor 'automatic': leave them out")
        return self


@dataclass(frozen=True)
class AffectNet(Corpus):
    """Pictures in the order of their paths; ``image_id`` is the path below the folder."""

    config: AffectNetConfig
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "expression"

    @property
    def published(self) -> tuple[Published, ...]:
        """Old release: the faces of each chosen class. New: the pictures of each part."""
        if self.config.release == "new":
            return PUBLISHED_NEW
        counts = {
            "train": (dict(enumerate(PUBLISHED_CLASSES)), "counted in a public notebook"),
            "val": (dict.fromkeys(range(len(CLASSES)), 500), "Mollahosseini et al. (2019)"),
        }
        return tuple(
            Published(
                f"faces of {split}, {CLASSES[number]}",
                of_class[number],
                origin,
                of="faces",
                labels={"split": split, "expression": number},
            )
            for split, (of_class, origin) in counts.items()
            for number in self.config.classes
            if number in of_class
        )

    def inputs(self) -> pa.Table:
        """Old release: the lists, with all labels. New: the pictures, and label files of which there is no picture.

        labels_size and labels_mtime_ns of the new release make a changed label a changed shard.

        Raises:
            ConfigError: no such folder, or it holds the other release.
        """
        mine, other = ("Manually_Annotated_file_lists", "train_set")[
            :: 1 if self.config.release == "old" else -1
        ]
        if not self.root.is_dir():
            raise ConfigError(f"source.path={self.root}: no such folder; check the path")
        if (self.root / other).exists() and not (self.root / mine).exists():
            raise ConfigError(f"source.release={self.config.release}: {self.root} holds the other release")
        return self._from_lists() if self.config.release == "old" else self._from_folders()

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """The pictures of one shard, each with its faces. In the new release their labels are read here."""
        for found in super().pictures(shard):
            yield found if self.config.release == "old" else self._labelled(found)

    # --- the old release -------------------------------------------------------------------------------------

    def _from_lists(self) -> pa.Table:
        rows: list[pa.Table] = []
        for part in _PARTS if self.config.automatic else _PARTS[:2]:
            for block in _blocks(self.root, part):
                expression = pc.struct_field(block["face"].combine_chunks(), "expression")
                wanted = pc.is_in(expression, value_set=pa.array(self.config.classes, pa.int64()))
                rows.append(block.filter(pc.or_(wanted, pc.not_equal(block["error"], ""))))
        return _by_picture(pa.concat_tables(rows) if rows else _ROWS.empty_table())

    # --- the new release -------------------------------------------------------------------------------------

    def _from_folders(self) -> pa.Table:
        return pa.concat_tables(_listed(self.root, f"{split}_set") for split in ("train", "val"))

    def _labelled(self, found: Found) -> Found:
        if found.error:
            return found
        folder = found.path.parent.parent
        try:
            face = read_face(folder / "annotations", found.path.stem)
        except ValueError as error:
            return replace(found, error=f"{folder.name}/annotations/{error}; mend the file")
        return replace(found, annotations=({**face, "split": folder.name.removesuffix("_set")},))


# --- old release: lists --------------------------------------------------------------------------------------


class _Part(NamedTuple):
    split: str
    list: str
    pictures: str


_PARTS = (
    _Part("train", "Manually_Annotated_file_lists/training.csv", "Manually_Annotated_Images"),
    _Part("val", "Manually_Annotated_file_lists/validation.csv", "Manually_Annotated_Images"),
    _Part(
        "automatic",
        "Automatically_annotated_file_list/automatically_annotated.csv",
        "Automatically_Annotated_Images",
    ),
)
_ROWS = pa.schema({"path": pa.string(), "error": pa.string(), "face": LABELS, "place": pa.string()})
_COLUMNS = HEADER.split(",")
_UNKNOWN = frozenset({"", "null", "none", "na", "n/a"})
_BLOCK = 8192


def _blocks(root: Path, part: _Part) -> Iterator[pa.Table]:
    """The rows of one list, in order, in tables of ``_ROWS``: a face, or null and the error."""
    path = root / part.list
    if not path.exists():
        _log.warning("%s: no such file; the pictures that it lists are left out", path)
        return
    # Not the csv module: no cell of these lists holds a comma, and one stray quote would swallow many rows.
    with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
        lines = enumerate(file, 1)
        while block := list(itertools.islice(lines, _BLOCK)):
            numbers, rows = [], []
            for number, line in block:
                cells = [cell.strip(" \t\r\n\";'") for cell in line.split(",")]
                if not _is_header(path, number, cells) and any(cells):
                    numbers.append(number)
                    rows.append(cells)
            if rows:
                yield _block(path.name, part, numbers, rows)


def _is_header(path: Path, number: int, cells: list[str]) -> bool:
    """Some copies have none. Another order of columns would mix up the labels."""
    if number > 1 or cells[0] != _COLUMNS[0]:
        return False
    if cells != _COLUMNS:
        raise ConfigError(f"{path}: its columns are {','.join(cells)}; expected {HEADER}")
    return True


def _block(file: str, part: _Part, numbers: list[int], rows: list[list[str]]) -> pa.Table:
    """Some rows of a list as a table of ``_ROWS``."""
    faults = {i: f"{len(row)} cells instead of 9" for i, row in enumerate(rows) if len(row) != len(_COLUMNS)}
    for i in faults:
        rows[i] = [rows[i][0], *[""] * (len(_COLUMNS) - 1)]
    cells = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    values = {name: _numbers(cells[name]) for name in _COLUMNS[1:] if name != "facial_landmarks"}
    for name, column in values.items():
        for i in np.flatnonzero(np.isinf(column)).tolist():
            faults.setdefault(i, f"{name} is no number: '{cells[name][i][:20]}'")
    for i in np.flatnonzero(~np.isin(values["expression"], range(len(CLASSES)))).tolist():
        faults.setdefault(
            i, f"expression is none of 0 to {len(CLASSES) - 1}: '{cells['expression'][i][:20]}'"
        )
    points = _points(cells["facial_landmarks"])
    for i in np.flatnonzero(np.isinf(points[:, 0])).tolist():
        faults.setdefault(i, "facial_landmarks are not 136 numbers")
    errors, places = ["" for _ in rows], [f"{file}:{number}" for number in numbers]
    for i, reason in faults.items():
        errors[i] = f"{places[i]}: {reason}; mend the line"
    paths = [f"{part.pictures}/{name}" for name in cells[_COLUMNS[0]]]
    faces = _faces(values, points, part.split, [bool(error) for error in errors])
    return _named(pa.table([paths, errors, faces, places], schema=_ROWS), cells[_COLUMNS[0]])


def _named(table: pa.Table, names: list[str]) -> pa.Table:
    """The rows that name a picture. The others cannot have a row of their own: they are logged."""
    named = [bool(re.fullmatch(r"[^/\\\s]+/[^/\\]+\.\w+", name)) for name in names]
    for i in (i for i, good in enumerate(named) if not good):
        place = table["place"][i].as_py()
        _log.warning("%s: left out, it names no picture; mend the line: '%s'", place, names[i][:60])
    return table if all(named) else table.filter(pa.array(named))


def _numbers(cells: Sequence[str]) -> NDArray[np.float64]:
    """NaN: not known; infinite: no number."""
    return np.array([_number(cell) for cell in cells], np.float64)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan if cell.lower() in _UNKNOWN else math.inf


def _points(cells: list[str]) -> NDArray[np.float32]:
    """(N, 136); a row of NaN: not known; of infinities: not 136 numbers."""
    points = np.full((len(cells), 136), np.inf, np.float32)
    points[[cell.lower() in _UNKNOWN for cell in cells]] = np.nan
    split = pc.split_pattern(pa.array(cells, pa.string()), ";")
    whole = pc.equal(pc.list_value_length(split), 136)
    try:
        values = pc.list_flatten(split.filter(whole)).cast(pa.float32()).to_numpy().reshape(-1, 136)
    except pa.ArrowInvalid:
        # All numbers of the block at once is the fast way; now one by one, to find those that are none.
        lists = split.filter(whole).to_pylist()
        values = np.array([_numbers(row) for row in lists], np.float32).reshape(-1, 136)
    points[whole.to_numpy(zero_copy_only=False)] = np.where(
        np.isfinite(values).all(1, keepdims=True), values, np.inf
    )
    return points


def _faces(
    values: dict[str, NDArray[np.float64]], points: NDArray[np.float32], split: str, faulty: list[bool]
) -> pa.StructArray:
    """The labels of the rows; null where one is faulty."""
    left, top, width, height = (values[f"face_{name}"] for name in ("x", "y", "width", "height"))
    boxes = np.stack([left, top, left + width, top + height], 1).astype(np.float32)
    boxless = ~((width > 0) & (height > 0) & np.isfinite(boxes).all(1))
    expression = np.nan_to_num(values["expression"], posinf=0, neginf=0).astype(np.int64)
    columns = {
        "expression": pa.array(expression),
        "valence": _affect(values["valence"]),
        "arousal": _affect(values["arousal"]),
        "box": vectors(boxes, boxless),
        "landmarks68": vectors(points, ~np.isfinite(points[:, 0])),
        "split": pa.array([split] * len(points)),
    }
    return pa.StructArray.from_arrays(list(columns.values()), fields=list(LABELS), mask=pa.array(faulty))


def _affect(values: NDArray[np.float64]) -> pa.Array:
    """-2 means that it was not annotated."""
    known = np.abs(values) <= 1
    return pa.array(np.where(known, values, 0).astype(np.float32), mask=~known)


def _by_picture(rows: pa.Table) -> pa.Table:
    """Rows of faces -> one row a picture, with its faces in the order of the lists, its first error and place."""
    rows = rows.take(pc.sort_indices(rows, [("path", "ascending")])).combine_chunks()  # a stable sort
    paths = rows["path"].combine_chunks()
    good = pc.equal(rows["error"], "").to_numpy()
    starts = np.ones(len(rows), bool)
    starts[1:] = pc.not_equal(paths[1:], paths[:-1]).to_numpy(zero_copy_only=False)
    picture = np.cumsum(starts) - 1
    before = np.concatenate([[0], np.cumsum(good)])
    offsets = before[[*np.flatnonzero(starts), len(rows)]]
    errors = ["" for _ in range(int(starts.sum()))]
    for i in np.flatnonzero(~good)[::-1].tolist():
        errors[picture[i]] = rows["error"][i].as_py()
    faces = rows["face"].combine_chunks().filter(pa.array(good))
    names = paths.filter(pa.array(starts))
    annotations = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), faces)
    places = rows["place"].combine_chunks().filter(pa.array(starts))
    return pa.table([names, names, errors, annotations, places], schema=listed_schema(LABELS))


# --- new release: a file a label -----------------------------------------------------------------------------


def _listed(root: Path, part: str) -> pa.Table:
    """The inputs of one part, with size and time of the label files."""
    pictures = [os.path.splitext(entry.name) for entry in visible_files(root / part / "images")]
    ids, sizes, times = [], [], []
    for entry in visible_files(root / part / "annotations"):
        if entry.name.endswith(".npy"):
            stat = entry.stat()
            ids.append(entry.name.rpartition("_")[0])
            sizes.append(stat.st_size)
            times.append(stat.st_mtime_ns)
    files = pa.table(
        [ids, sizes, times], schema=pa.schema({"id": pa.string(), "size": pa.int64(), "time": pa.int64()})
    )
    labels = files.group_by("id").aggregate([("size", "sum"), ("time", "max")])
    images = pa.table(
        [[name for name, _ in pictures], [suffix for _, suffix in pictures]],
        schema=pa.schema({"id": pa.string(), "suffix": pa.string()}),
    )
    both = images.join(labels, "id", join_type="full outer").sort_by(
        [("id", "ascending"), ("suffix", "ascending")]
    )
    ending = pc.fill_null(both["suffix"], ".jpg")
    paths = pc.binary_join_element_wise(f"{part}/images/", both["id"], ending, "")
    empty: list[list[Any]] = [[] for _ in range(len(both))]
    alone = pc.binary_join_element_wise(
        f"{part}/annotations/", both["id"], "_*.npy: there is no such picture; put it back or remove them", ""
    )
    errors = pc.if_else(pc.is_null(both["suffix"]), alone, "")
    table = pa.table([paths, paths, errors, empty], schema=input_schema(LABELS))
    for column in ("size_sum", "time_max"):
        name = {"size_sum": "labels_size", "time_max": "labels_mtime_ns"}[column]
        table = table.append_column(name, pc.fill_null(both[column], -1))
    return table


def read_face(folder: Path, stem: str) -> dict[str, Any]:
    """The labels of one crop of the new release, without the split.

    Raises:
        ValueError: a file is missing, damaged or holds something else. The message starts with its name.
    """
    number = {kind: read_number(folder / f"{stem}_{kind}.npy") for kind in ("exp", "val", "aro")}
    if number["exp"] not in range(8):
        raise ValueError(f"{stem}_exp.npy: {number['exp']:g} is none of the expressions 0 to 7")
    points = _numeric(folder / f"{stem}_lnd.npy")
    if points.size != 136 or not np.isfinite(points).all():
        raise ValueError(f"{stem}_lnd.npy: not 136 numbers")
    valence, arousal = (number[kind] if abs(number[kind]) <= 1 else None for kind in ("val", "aro"))
    return {
        "expression": int(number["exp"]),
        "valence": valence,
        "arousal": arousal,
        "box": None,
        "landmarks68": points.reshape(-1).astype(np.float32).tolist(),
    }


def read_number(path: Path) -> float:
    """The one number, or text of a number, in a .npy; ValueError as of :func:`read_face`."""
    values = _numeric(path)
    if values.size != 1:
        raise ValueError(f"{path.name}: {values.size} values instead of one")
    return float(values.reshape(-1)[0])


def _numeric(path: Path) -> NDArray[np.float64]:
    """A .npy of numbers or of texts of numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read: {error.strerror}") from None
    try:
        # Not np.load: given a damaged start, it takes the file for a pickle or an archive, and says so.
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return np.asarray(array.astype(np.float64))
    except Exception as error:  # the parser stumbles over damage with whatever comes first
        reason = str(error).partition("\n")[0] or repr(error)
        raise ValueError(f"{path.name}: damaged: {reason}") from None
