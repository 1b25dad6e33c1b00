"""Pictures that were removed on request: the list of them, and how they leave what a run has made.

The list, ``removed.json`` in the output folder, is written first and says that the removal is under way; whatever
runs next in that folder ends it. Tables are filtered, not made again: this needs neither the source nor the
detector, and every other row stays as it is, to the bit. Later runs look at the list when they list a shard.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from configs import ConfigError
from data_prep.files import (
    Commit,
    claim,
    digest,
    end_replacing,
    read_commit,
    remove_temporaries,
    replace,
    shard_paths,
    write_json,
)
from data_prep.names import text_to_name
from data_prep.tables import image_schema, read_shard, table_of

REASON = "removed on request"
TABLES = ("images", "faces", "crops")
"""Folders of shards; each is made from all those before it."""


class Removed(pydantic.BaseModel):
    """One picture that was removed."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    image_id: str
    sha256: str | None
    """Of the file, so that a copy of it does not come in under another id; None if it could not be read."""
    shard: int
    asked: str
    """What was asked for, such as "identity 5"."""
    when: str
    """UTC."""
    why: str


class RemovalList(pydantic.BaseModel):
    """``removed.json``."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    under_way: tuple[int, ...] = ()
    """Shards whose tables may still hold some of the pictures."""
    pictures: tuple[Removed, ...] = ()

    def names(self, image_id: str, sha256: str | None = None) -> bool:
        """Must this picture stay out?"""
        return image_id in self._ids or (sha256 is not None and sha256 in self._hashes)

    _ids: frozenset[str] = pydantic.PrivateAttr()
    _hashes: frozenset[str | None] = pydantic.PrivateAttr()

    def model_post_init(self, _context: Any) -> None:
        """Sets, for a list may be long."""
        self._ids = frozenset(picture.image_id for picture in self.pictures)
        self._hashes = frozenset(picture.sha256 for picture in self.pictures)


def read_list(output: Path) -> RemovalList:
    """The list of a run; an empty one where nothing was removed."""
    path = output / "removed.json"
    try:
        return RemovalList.model_validate_json(path.read_bytes()) if path.exists() else RemovalList()
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: damaged ({error.errors()[0]['msg']}); put back a copy of it") from None


def forget(row: dict[str, Any], output: Path) -> dict[str, Any]:
    """The row of the image table that stays of a removed picture; its file goes if this run has rendered it."""
    picture = Path(text_to_name(row["path"]))
    if picture.resolve().is_relative_to((output / "pictures").resolve()):
        picture.unlink(missing_ok=True)
    nothing = dict.fromkeys(row)
    kept = {name: row[name] for name in ("image_id", "path")}
    return nothing | kept | {"status": "removed", "error": REASON}


def finish(output: Path, labels: pa.StructType) -> None:
    """End a removal that is under way: no table, no set and no report below ``output`` holds the pictures any more.

    The set and the report are gone afterwards; they are made again from the tables. ``labels`` are the source's.
    """
    listed = read_list(output)
    if not listed.under_way:
        return
    for name in ("set.beton", "set.parquet", "set.json", "quarantine.json"):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "report", ignore_errors=True)
    remove_temporaries(output)  # of a writer that was killed
    for number in listed.under_way:
        ids = [picture.image_id for picture in listed.pictures if picture.shard == number]
        _filter_shard(output, number, ids, labels)
    write_json(output / "removed.json", listed.model_copy(update={"under_way": ()}).model_dump())


def stale_table(output: Path, number: int) -> str:
    """The first table of a shard that was not made from those before it as they are now; empty: there is none."""
    before: list[str] = []
    for name in TABLES:
        mark = read_commit(output / name, number)
        if mark is None:
            break
        if before and mark.inputs != digest(before):
            return name
        before.append(mark.sha256)
    return ""


def _filter_shard(output: Path, number: int, ids: list[str], labels: pa.StructType) -> None:
    """Take pictures out of the tables of one shard, each with the mark that it would have if made again."""
    before: list[str] = []
    for name in TABLES:
        folder = output / name
        with claim(folder, number, wait=True):
            end_replacing(folder, number)
            mark = read_commit(folder, number)
            if mark is None:
                shard_paths(folder, number)[0].unlink(missing_ok=True)  # half made
                remove_temporaries(folder, f"{number:05d}.")
                continue
            table = read_shard(folder, number)
            gone = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.string()))
            if name == "images":
                table = _forget_rows(table, gone, image_schema(labels), output)
            else:
                table = table.filter(pc.invert(gone))
            inputs = digest(before) if before else mark.inputs
            before.append(_commit_again(folder, number, table, mark, inputs).sha256)


def _forget_rows(table: pa.Table, gone: pa.ChunkedArray, schema: pa.Schema, output: Path) -> pa.Table:
    """In the schema of the stage, not of the file, which names the items of lists differently: the same bytes."""
    rows = [
        forget(row, output) if removed else row
        for row, removed in zip(table.to_pylist(), gone.to_pylist(), strict=True)
    ]
    return table_of(rows, schema)


def _commit_again(folder: Path, number: int, table: pa.Table, mark: Commit, inputs: str) -> Commit:
    stays = {name: getattr(mark, name) for name in ("stage", "version", "settings", "seconds", "timings")}
    return replace(folder, number, table, inputs=inputs, **stays)
