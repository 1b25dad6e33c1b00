"""VGGFace2 (Cao et al., 2018): pictures of people by identity, with a box and five landmarks each.

The layout that is read, below ``source.path``:

* ``train/n000001/0001_01.jpg``, ``test/...``: the pictures, a folder an identity;
* ``train_list.txt``, ``test_list.txt``: their names below the split's folder, ``n000001/0001_01.jpg`` or
  ``train/n000001/0001_01.jpg``. Where a list is missing, the folders are walked instead, in order of names;
* ``bb_landmark/loose_bb_{split}.csv``: ``"n000001/0001_01",X,Y,W,H``, X and Y below 0 where the box leaves the
  picture; of several lines for a picture the first counts;
* ``bb_landmark/loose_landmark_{split}.csv``: the same with P1X,P1Y .. P5X,P5Y.

A picture without a line in a csv file, or without the file, stays: its identity is known, its box or its
landmarks are null.

Not verified, for want of the data: the distributed pictures are loose crops, and the boxes are taken to be in
pixels of the distributed picture, not of the photograph that it was cut from. If they were not, hardly a
detection would match its box and ``keep.rule=best_iou`` would keep next to nothing, which the report shows at
once. The lists' names are accepted with and without the split for the same reason, and :data:`PUBLISHED` is from
memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from configs import ConfigError
from data_prep.sources import Photographs, Published
from data_prep.sources.corpus import Corpus, input_schema, vectors
from data_prep.tables import vector

_MEMORY = "from memory; Cao et al. (2018) round it to 3.31 million in both"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    split: (
        Published(f"pictures of {split}", pictures, _MEMORY, prefix=f"{split}/"),
        Published(f"people of {split}", people, "Cao et al. (2018)", of="identities", prefix=f"{split}/"),
    )
    for split, pictures, people in (("train", 3_141_890, 8_631), ("test", 169_396, 500))
}

LABELS: pa.StructType = pa.struct(
    {"identity": pa.int64(), "box": vector(4), "landmarks5": vector(10), "split": pa.string()}
)

_NAME = r"n\d{1,9}/\w[\w.-]*"
_NUMBER = r"-?\d{1,6}(?:\.\d+)?"
_POSITIVE = r"0*[1-9]\d{0,5}(?:\.\d+)?"
_BOX = {"X": _NUMBER, "Y": _NUMBER, "W": _POSITIVE, "H": _POSITIVE}
_LANDMARKS = {f"P{point}{axis}": _NUMBER for point in range(1, 6) for axis in "XY"}
_BAD = pa.schema({"key": pa.string(), "line": pa.int64(), "error": pa.string()})
_NOTHING: dict[str, str] = {}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_BLOCK = 1 << 24  # bytes of a list at a time: 3 million lines are never split into texts all at once
_log = logging.getLogger(__name__)


class VGGFace2Config(Photographs):
    """VGGFace2 as distributed, unpacked."""

    kind: Literal["vggface2"]
    """vggface2"""
    path: Path
    """The folder with train/, test/, train_list.txt, test_list.txt and bb_landmark/."""
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), min_length=1)
    """Which parts; the identities of the two are disjoint."""


@dataclass(frozen=True)
class VGGFace2(Corpus):
    """One annotation a picture; ``image_id`` is the path below the corpus's folder."""

    config: VGGFace2Config
    shard_size: int
    labels: pa.StructType = LABELS
    label_name: str = "identity"

    @property
    def published(self) -> tuple[Published, ...]:
        """Pictures and people of the chosen splits."""
        return tuple(figure for split in dict.fromkeys(self.config.splits) for figure in PUBLISHED[split])

    def inputs(self) -> pa.Table:
        """All pictures of the chosen splits, in the order of the lists.

        Raises:
            ConfigError: neither a list nor a folder of any of the splits is there, or they are empty.
        """
        splits = list(dict.fromkeys(self.config.splits))
        table = pa.concat_tables(self._split(split) for split in splits)
        if not len(table):
            expected = " or ".join(f"{split}_list.txt, {split}/n000001/0001_01.jpg" for split in splits)
            raise ConfigError(f"source.path={self.root}: no VGGFace2 is there; expected {expected} in it")
        return table

    def _split(self, split: str) -> pa.Table:
        listed = self._listed(split)
        names = listed["name"].combine_chunks()
        keys = pc.replace_substring_regex(names, r"\.\w+$", "")
        box, box_error = self._values(split, "bb", _BOX, keys)
        box[:, 2:] += box[:, :2]
        landmarks, landmarks_error = self._values(split, "landmark", _LANDMARKS, keys)
        faces = pa.StructArray.from_arrays(
            [
                pc.extract_regex(names, r"^n(?P<number>\d+)/").field("number").cast(pa.int64()),
                vectors(box, np.isnan(box[:, 0])),
                vectors(landmarks, np.isnan(landmarks[:, 0])),
                pa.repeat(split, len(names)),
            ],
            fields=list(LABELS),
        )
        paths = pc.binary_join_element_wise(split, names, "/")
        error = pc.coalesce(listed["error"].combine_chunks(), box_error, landmarks_error, "")
        annotations = pa.ListArray.from_arrays(pa.array(np.arange(len(names) + 1, dtype=np.int32)), faces)
        return pa.table([paths, paths, error, annotations], schema=input_schema(LABELS))

    def _listed(self, split: str) -> pa.Table:
        """The pictures of a split: ``name`` below its folder, and ``error``, null where there is none."""
        path = self.root / f"{split}_list.txt"
        if not path.is_file():
            return _walk(self.root / split)
        lines = _read(path, split, _NOTHING)
        _warn(lines.bad.filter(lines.bad["key"].is_null())["error"])
        bad = lines.bad.filter(lines.bad["key"].is_valid())
        nothing_wrong = pa.nulls(len(lines.good), pa.string())
        listed = pa.concat_tables([lines.good.append_column("error", nothing_wrong), bad])
        return _first_of_each(listed, path).select(["key", "error"]).rename_columns(["name", "error"])

    def _values(
        self, split: str, what: str, fields: Mapping[str, str], keys: pa.Array
    ) -> tuple[NDArray[np.float32], pa.Array]:
        """What a csv file says of the pictures ``keys``: (N, fields), NaN where it says nothing; and the errors,
        null where there is none.
        """
        path = self.root / "bb_landmark" / f"loose_{what}_{split}.csv"
        if not path.is_file():
            if len(keys):
                _log.warning("%s is not there: the pictures of '%s' stay, without what it says", path, split)
            unknown = np.full((len(keys), len(fields)), np.nan, np.float32)
            return unknown, pa.nulls(len(keys), pa.string())
        lines = _read(path, split, fields)
        # Number -1 is the row of NaN at the end.
        values = lines.values[pc.index_in(keys, value_set=lines.good["key"]).fill_null(-1).to_numpy()]
        if not len(lines.bad):
            return values, pa.nulls(len(keys), pa.string())
        _warn(lines.bad["error"].filter(pc.invert(pc.is_in(lines.bad["key"], value_set=keys))))
        errors = lines.bad["error"].combine_chunks()
        return values, errors.take(pc.index_in(keys, value_set=lines.bad["key"]))


def _walk(folder: Path) -> pa.Table:
    """The pictures in the identities' folders, by name. Other files, hidden ones too, are no inputs."""
    identities = (
        sorted(filter(re.compile(r"n[0-9]{1,9}").fullmatch, os.listdir(folder))) if folder.is_dir() else []
    )
    chunks = [pa.array(_pictures(folder / identity), pa.string()) for identity in identities]
    names = pa.chunked_array(chunks, pa.string())
    if not len(names):
        _log.warning("%s: neither the folder nor the list beside it names a picture", folder)
    return pa.table({"name": names, "error": pa.nulls(len(names), pa.string())})


def _pictures(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (f"{folder.name}/{name}" for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES))
    return sorted(filter(re.compile(_NAME, re.ASCII).fullmatch, names))


def _first_of_each(listed: pa.Table, path: Path) -> pa.Table:
    """Without the rows whose ``key`` has been seen: an image_id is unique."""
    codes = listed["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    # Codes are given in the order in which keys turn up, so a new key is the highest code so far.
    again = codes[1:] <= np.maximum.accumulate(codes)[:-1]
    if again.any():
        row = listed.slice(int(again.argmax()) + 1, 1).to_pylist()[0]
        message = "%s:%d: %s is named before (lines left out like this one: %d)"
        _log.warning(message, path.name, row["line"], row["key"], again.sum())
        listed = listed.filter(np.concatenate([[True], ~again]))
    return listed


# --- reading lines -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """What a list or csv file holds."""

    good: pa.Table
    """key: the picture's name as it stands there; line: its number."""
    values: NDArray[np.float32]
    """(good + 1, fields); the last row is NaN."""
    bad: pa.Table
    """key: null where the line names no picture; line; error: file, line and reason."""


def _read(path: Path, split: str, fields: Mapping[str, str]) -> _Lines:
    """Read lines ``NAME,field,field`` of which ``fields`` gives names and patterns; a header is passed over."""
    start = rf'^\s*"?(?:{split}/)?(?P<key>{_NAME})"?'
    whole = start + "".join(rf"\s*,\s*(?P<{name}>{pattern})" for name, pattern in fields.items()) + r"\s*$"
    expected = ",".join(["NAME_ID", *fields]) if fields else "n000001/0001_01.jpg"
    keys: list[pa.Array] = []
    numbers, values = [np.empty(0, np.int64)], []
    bad = [_BAD.empty_table()]
    for first, lines in _blocks(path):
        found = pc.extract_regex(lines, whole)
        good = found.is_valid().to_numpy(zero_copy_only=False)
        numbers.append(np.flatnonzero(good) + first)
        found = found.drop_null()
        keys.append(found.field("key").cast(pa.string()))
        columns = [found.field(name).cast(pa.string()).cast(pa.float32()) for name in fields]
        values.append(np.array(columns, np.float32).reshape(len(fields), len(found)).T.copy())
        wrong = np.flatnonzero(~good)
        bad.append(_bad_lines(path, lines.take(pa.array(wrong)).to_pylist(), wrong + first, start, expected))
    good_lines = pa.table({"key": pa.chunked_array(keys, pa.string()), "line": np.concatenate(numbers)})
    values.append(np.full((1, len(fields)), np.nan, np.float32))
    return _Lines(good_lines, np.concatenate(values), pa.concat_tables(bad))


def _bad_lines(
    path: Path, texts: list[bytes], numbers: NDArray[np.int64], start: str, expected: str
) -> pa.Table:
    """A row for each line that is neither blank nor a header."""
    pattern = re.compile(start.encode())
    rows: list[dict[str, Any]] = []
    for text, number in zip(texts, numbers.tolist(), strict=True):
        if text.strip() and not text.lstrip(b'\xef\xbb\xbf "').startswith(b"NAME_ID"):
            named = pattern.match(text)
            shown = text.decode("ascii", "backslashreplace").strip()[:80]
            error = f"{path.name}:{number}: not {expected}: '{shown}'"
            rows.append({"key": named["key"].decode() if named else None, "line": number, "error": error})
    return pa.Table.from_pylist(rows, schema=_BAD)


def _blocks(path: Path) -> Iterator[tuple[int, pa.Array]]:
    """The lines of a file as arrays of bytes, each with the number of its first line."""
    number, rest = 1, b""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            block = rest + block
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
            if len(ends):
                yield number, _slices(block, ends)
                number += len(ends)
            rest = block[ends[-1] :] if len(ends) else block
    if rest:
        yield number, _slices(rest, np.array([len(rest)]))


def _slices(block: bytes, ends: NDArray[np.int64]) -> pa.Array:
    """``block`` cut at ``ends``, without a copy."""
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)])


# --- telling -------------------------------------------------------------------------------------------------


def _warn(errors: pa.ChunkedArray) -> None:
    """One warning for the damaged lines of a file that no input can be named by."""
    if len(errors):
        more = f" (and {len(errors) - 1} more lines)" if len(errors) > 1 else ""
        _log.warning("%s%s", errors[0].as_py(), more)
