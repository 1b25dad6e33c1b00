"""The stage ``list``: opens every input once and writes its row of the image table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.files import read_commit
from data_prep.images import PictureError, decode_picture, difference_hashes, read_bytes
from data_prep.names import name_to_text
from data_prep.removed import forget, read_list
from data_prep.sources import Found, Source
from data_prep.sources.selected import DIFFERS
from data_prep.stage import Shard
from data_prep.tables import image_schema, read_shard, table_of

VERSION = 2


def list_shard(source: Source, folder: Path, shard: Shard) -> pa.Table:
    """The image table of one shard, which goes to ``folder``.

    When it is there already, and this is a retry, files that were good and are unchanged are not decoded again.
    """
    earlier = read_shard(folder, shard.number).to_pylist() if read_commit(folder, shard.number) else []
    good = {(row["image_id"], row["sha256"]): row for row in earlier if not row["error"]}
    removed = read_list(folder.parent)
    rows = [_row(found, good) for found in source.pictures(shard)]
    rows = [
        forget(row, folder.parent) if removed.names(row["image_id"], row.get("sha256")) else row
        for row in rows
    ]
    return table_of(rows, image_schema(source.labels))


def _row(found: Found, good: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image_id": found.image_id,
        "path": name_to_text(found.path),
        "status": "ok",
        "error": "",
    }
    row["annotations"] = list(found.annotations)
    if found.error:
        return row | {"status": "failed", "error": found.error}
    try:
        data = read_bytes(found.path)
        row["sha256"] = hashlib.sha256(data).hexdigest()
        if found.sha256 and row["sha256"] != found.sha256:
            return row | {"status": "failed", "error": DIFFERS}
        if same := good.get((found.image_id, row["sha256"])):
            return {name: row.get(name, value) for name, value in same.items()}  # its labels may be new
        image = decode_picture(data)
    except PictureError as error:
        return row | {"status": "failed", "error": _at(found.place, str(error))}
    row["dhash"], row["dhash_down"] = difference_hashes(image)
    row["width"], row["height"] = image.size
    return row


def _at(place: str, error: str) -> str:
    """What is wrong with a picture; where a list names it, that list's file and line, and the mend."""
    return f"{place}: the picture: {error}; put a good copy back or take the line out" if place else error
