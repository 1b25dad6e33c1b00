"""The list of IMDb-Face, and the records of its pictures.

``IMDb-Face.csv``, one face a line:

    name,index,image,rect,height width,url
    Fred_Astaire,nm0000001,rm0000000001.jpg,10 20 110 140,1000 667,https://...jpg

rect: x1 y1 x2 y2 in a picture of that height and width. Several lines may share a URL: it is fetched once. A
damaged line is a record that is not fetched, with file and line in its error; other lines about its picture count.

Not verified, for want of the list: that cells are quoted where a URL has commas (both ways are read), and that
index is ``nm`` and a number throughout.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.download.engine import RECORD
from data_prep.sources.imdbface import FACE, FACES
from data_prep.tables import vector

LIST = "IMDb-Face.csv"
COLUMNS = ["name", "index", "image", "rect", "height width", "url"]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

SCHEMA = pa.schema({**RECORD, "faces": FACES})
_PERSON = re.compile(r"nm(\d{1,12})", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,6}(\.\d{1,6})?", re.ASCII)
_log = logging.getLogger(__name__)


class _Face(NamedTuple):
    """A line of the list, without its URL."""

    identity: int
    rect: tuple[float, ...]
    height: int
    width: int


def read_records(root: Path) -> pa.Table:
    """One record for each URL, in the order in which they first appear, and one for each damaged line.

    Raises:
        ConfigError: there is no list, it is empty or has other columns.
    """
    path = root / LIST
    if not path.is_file():
        raise ConfigError(
            f"source.path={root}: {LIST} is not there; it is what IMDb-Face's authors distribute"
        )
    # Arrays and one mapping, not an object a face: there are 1.7 million.
    number_of: dict[str, int] = {}
    errors: dict[str, str] = {}
    record, identity, sizes, rects = array("q"), array("q"), array("i"), array("f")
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (number == 1 and _is_header(path, line)):
                continue
            try:
                url, face = _read(line)
            except ValueError as error:
                url = f"{LIST}:{number}"
                errors[url] = f"{url}: {error}"
                number_of[url] = len(number_of)
                continue
            record.append(number_of.setdefault(url, len(number_of)))
            identity.append(face.identity)
            sizes.extend((face.height, face.width))
            rects.extend(face.rect)
    if not number_of:
        raise ConfigError(f"{path}: it has no rows")
    faces = _lists(len(number_of), np.array(record), np.array(identity), np.array(sizes), np.array(rects))
    people = len(np.unique(np.array(identity)))
    _log.info(
        "imdb_face: %d faces of %d people in %d pictures listed",
        *(len(record), people, len(number_of) - len(errors)),
    )
    return _table(list(number_of), errors, faces)


def _lists(
    count: int, record: IntArray, identity: IntArray, sizes: IntArray, rects: FloatArray
) -> pa.ListArray:
    """The faces of each of ``count`` records, in the order of the list."""
    order = np.argsort(record, kind="stable")
    rects, sizes = rects.reshape(-1, 4)[order], sizes.reshape(-1, 2)[order]
    box = pa.FixedSizeListArray.from_arrays(pa.array(rects.reshape(-1), pa.float32()), type=vector(4))
    height, width = (pa.array(column, pa.int32()) for column in sizes.T)
    faces = pa.StructArray.from_arrays(
        [pa.array(identity[order], pa.int64()), box, height, width], fields=list(FACE)
    )
    ends = np.searchsorted(record[order], np.arange(count + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), faces)


def _table(urls: list[str], errors: dict[str, str], faces: pa.ListArray) -> pa.Table:
    """The records; of a damaged line ``urls`` has the place."""
    hashes = [hashlib.sha256(url.encode()).hexdigest()[:16] for url in urls]
    columns = {
        "image_id": [url if url in errors else name for url, name in zip(urls, hashes, strict=True)],
        "url": ["" if url in errors else url for url in urls],
        "name": [LIST if url in errors else f"{name}.jpg" for url, name in zip(urls, hashes, strict=True)],
        "error": [errors.get(url, "") for url in urls],
    }
    return pa.table([*columns.values(), faces], schema=SCHEMA)


def _cells(line: str) -> list[str]:
    # Line by line: one stray quote would otherwise swallow many rows.
    cells = [cell.strip() for cell in next(csv.reader([line.strip()], strict=True))]
    return [*cells[:5], ",".join(cells[5:])] if len(cells) > 6 else cells


def _is_header(path: Path, line: str) -> bool:
    try:
        cells = _cells(line)
    except csv.Error:
        return False
    if cells[0] == COLUMNS[0] and cells != COLUMNS:
        raise ConfigError(f"{path}: its columns are {','.join(cells)}; expected {','.join(COLUMNS)}")
    return cells == COLUMNS


def _read(line: str) -> tuple[str, _Face]:
    """The URL and the face of a line; ValueError says what is wrong with it."""
    try:
        cells = _cells(line)
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells instead of {len(COLUMNS)}")
    _, index, _, rect, size, url = cells
    person = _PERSON.fullmatch(index)
    if not person:
        raise ValueError(f"index is not nm and a number: '{index[:20]}'")
    x1, y1, x2, y2 = _numbers(rect, 4, "rect")
    height, width = _numbers(size, 2, "height width")
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"rect has no extent: '{rect[:40]}'")
    if min(height, width) < 1:
        raise ValueError(f"height width: '{size[:20]}' is no size")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url is neither http nor https: '{url[:60]}'")
    return url, _Face(int(person[1]), (x1, y1, x2, y2), int(height), int(width))


def _numbers(cell: str, count: int, column: str) -> list[float]:
    words = cell.split()
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        raise ValueError(f"{column} is not {count} numbers: '{cell[:40]}'")
    return [float(word) for word in words]
