"""Published lists: the ids and hashes of the pictures of a set, so that others can make it from their own copy."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from configs import ConfigError
from data_prep.files import atomic_write

COLUMNS = ("image_id", "sha256")
HEADER = b"image_id,sha256,faces\n"


def read_list(path: Path) -> pa.Table:
    """The columns image_id and sha256 of a CSV file, which may be gzipped (.gz) and have more columns.

    Raises:
        ConfigError: no such list, or a row without an id of its own and 64 hexadecimal digits.
    """
    texts = csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()),
        include_columns=[*COLUMNS],
        strings_can_be_null=False,
    )
    try:
        table = csv.read_csv(
            path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=texts
        )
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise _refused(path, str(error).strip("'\"").partition("\n")[0]) from None
    table = table.set_column(1, "sha256", pc.utf8_lower(table["sha256"])).combine_chunks()
    bad = pc.invert(pc.match_substring_regex(table["sha256"], "^[0-9a-f]{64}$"))
    if (row := pc.index(bad, True).as_py()) >= 0:
        raise _refused(path, f"row {row + 1}, '{table['image_id'][row]}', has no sha256 of 64 digits")
    counts = table["image_id"].value_counts()
    if (place := pc.index(pc.greater(counts.field("counts"), 1), True).as_py()) >= 0:
        raise _refused(path, f"it names '{counts[place]['values']}' {counts[place]['counts']} times")
    if not len(table):
        raise _refused(path, "it names no picture")
    return table


def _refused(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"from_list: {path}: {reason}; a list is a CSV file with the header image_id,sha256 and a row a picture"
    )


def write_list(path: Path, images: pa.Table, written: pa.Table) -> None:
    """Write the usable pictures of an image table, in its order, with the number of rows of each in ``written``.

    Those without a face are listed too: with them a repetition has the same shards, and so the same detections.
    """
    usable = images.filter(pc.equal(images["error"], "")).select([*COLUMNS])
    counts = written["image_id"].combine_chunks().value_counts()
    faces = counts.field("counts").take(pc.index_in(usable["image_id"], value_set=counts.field("values")))
    table = usable.append_column("faces", pc.fill_null(faces, 0))
    # Without name and time in it, the same list is the same file.
    with atomic_write(path) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
        compressed.write(HEADER)
        csv.write_csv(table, compressed, csv.WriteOptions(include_header=False, quoting_style="needed"))
