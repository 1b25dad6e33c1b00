"""Fetches the pictures of a list into a folder, shard by shard; what is there is never fetched again.

Below the folder: ``pictures/NNNNN/NAME``; ``downloads/NNNNN.parquet`` with one row for each record and its mark
``NNNNN.json``; ``download.json``, the number of shards and records. A picture gets its name only when it has been
decoded and is whole on the disk, so that after a kill the files themselves tell what is done; what was refused is
noted in ``downloads/.NNNNN.refused`` until its shard is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
from tqdm import tqdm

from data_prep.download.config import DownloadConfig
from data_prep.download.fetcher import Fetcher, FetchError, Gone, Passing, Refused
from data_prep.files import atomic_write, read_commit, write_json
from data_prep.images import PictureError, decode_picture, read_bytes
from data_prep.sources.corpus import table_shard
from data_prep.sources.downloaded import PICTURES, PLAN, TABLES
from data_prep.stage import Shard, Stage, run, unfinished
from data_prep.tables import read_shard, table_of

VERSION = 1
DECODERS = 2
"""Pictures decoded at once: one may have 134 million pixels (``data_prep.images.MAX_PIXELS``)."""
RECORD: dict[str, pa.DataType] = {
    "image_id": pa.string(),
    "url": pa.string(),
    "name": pa.string(),
    "error": pa.string(),
}
"""What every record has. image_id: unique. name: of the file, unique in a shard and another one for another URL.
error: why the list itself rules it out; such a record is not fetched."""
RESULT: dict[str, pa.DataType] = {
    "path": pa.string(),
    "sha256": pa.string(),
    "bytes": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "status": pa.string(),
}
"""What a fetch adds. status: ok; gone: the host says so; refused: for another lasting reason; passing: may go well
another time. width, height: px, upright."""

_STATUS: dict[type[FetchError], str] = {Gone: "gone", Refused: "refused", Passing: "passing"}


class Downloader:
    """Fetches records, a table with the columns of ``RECORD`` and others that pass through, into ``root``.

    ``settings``: the fields, by dotted name, that decide on the records; see :class:`data_prep.stage.Stage`.
    """

    def __init__(
        self, root: Path, config: DownloadConfig, settings: Mapping[str, Any], placeholder: str = ""
    ) -> None:
        self.root = root
        self.config = config
        self.fetcher = Fetcher(config, config.rate, placeholder)
        settings = {**settings, "download.shard_size": config.shard_size}
        self.stage = Stage("download", root / TABLES, VERSION, settings, self._work)

    def run(self, records: pa.Table, part: slice, retry_failed: bool) -> Counter[str]:
        """Fetch what is missing of ``part``; returns how many records of it have which status.

        Raises:
            ConfigError: the network is away or a host asks for a long silence; or the list or its settings are not
                those that the folder was filled from.
        """
        size = self.config.shard_size
        parts = (records.slice(start, size) for start in range(0, len(records), size))
        shards = [table_shard(number, own) for number, own in enumerate(parts)]
        mine = shards[part]
        # Another list is refused before anything is written.
        unfinished(self.stage, mine, len(shards), retry_failed)
        write_json(self.root / PLAN, {"shards": len(shards), "records": len(records)})
        # One process: the pace is kept per process, and the waiting is done by an event loop.
        run(self.stage, mine, len(shards), workers=1, retry_failed=retry_failed)
        for shard in mine:
            self._refused(shard.number).unlink(missing_ok=True)
        statuses = (read_shard(self.stage.folder, shard.number, ["status"])["status"] for shard in mine)
        return sum((Counter(column.to_pylist()) for column in statuses), Counter[str]())

    def _refused(self, number: int) -> Path:
        return self.stage.folder / f".{number:05d}.refused"

    def _work(self, shard: Shard) -> pa.Table:
        """The table of one shard; its pictures are in their folder when it returns."""
        records = pa.ipc.open_stream(shard.payload).read_all()
        folder = self.root / PICTURES / f"{shard.number:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".*.tmp"):  # of a process that was killed
            stale.unlink()
        schema = pa.schema({**dict(zip(records.schema.names, records.schema.types, strict=True)), **RESULT})
        rows = [
            {**record, "path": (folder / record["name"]).relative_to(self.root).as_posix()}
            for record in records.to_pylist()
        ]
        known = dict(self._known(shard.number))
        todo = []
        for row in rows:
            row.update(self._done(row, known.get(row["url"])))
            if "status" not in row:
                todo.append(row)
        if todo:
            asyncio.run(self._fetch_all(todo, shard.number))
        return table_of(rows, schema)

    def _known(self, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """What an earlier attempt at this shard found out, by URL.

        On a retry that is its table; what was refused or failed is not taken from there, but asked for again.
        """
        if read_commit(self.stage.folder, number):
            columns = ["url", "error", *RESULT]
            for row in read_shard(self.stage.folder, number, columns).to_pylist():
                if row["status"] in ("ok", "gone"):
                    row.pop("path")
                    yield row.pop("url"), row
        elif self._refused(number).exists():
            for line in self._refused(number).read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the last line of a process that was killed
                yield row.pop("url"), row

    def _done(self, row: Mapping[str, Any], known: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """The result of a record where it needs no fetch, else nothing."""
        if row["error"]:
            return {"status": "refused"}
        path = self.root / row["path"]
        if not path.exists():
            return known if known and known["status"] != "ok" else {}
        if known and known["status"] == "ok" and path.stat().st_size == known["bytes"]:
            return known
        try:
            return _measure(read_bytes(path))
        except (PictureError, Refused):
            return {}  # damaged since it was stored

    async def _fetch_all(self, rows: list[dict[str, Any]], number: int) -> None:
        """Complete ``rows``, as many at once as there are connections."""
        queue = iter(rows)
        decoding = asyncio.Semaphore(DECODERS)
        with (
            open(self._refused(number), "a") as refused,
            tqdm(total=len(rows), desc=f"shard {number}", unit="picture", leave=False, position=1) as bar,
        ):
            refused.write("\n")  # ends a line that a kill has cut off
            async with self.fetcher.session() as session:

                async def fetch_next() -> None:
                    for row in queue:
                        await self._fetch(session, row, decoding)
                        if row["status"] in ("gone", "refused"):
                            note = {name: row[name] for name in ("url", "status", "error")}
                            refused.write(json.dumps(note) + "\n")
                            refused.flush()
                        bar.update()

                tasks = [asyncio.create_task(fetch_next()) for _ in range(self.config.connections)]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(
        self, session: aiohttp.ClientSession, row: dict[str, Any], decoding: asyncio.Semaphore
    ) -> None:
        try:
            data = await self.fetcher.fetch(session, row["url"], bytes)
            async with decoding:
                row.update(await asyncio.to_thread(_store, data, self.root / row["path"]))
        except FetchError as error:
            row.update(status=_STATUS[type(error)], error=str(error))


def _store(data: bytes, path: Path) -> dict[str, Any]:
    """Write a picture that decodes; Refused if it does not."""
    result = _measure(data)
    with atomic_write(path) as file:
        file.write(data)
    return result


def _measure(data: bytes) -> dict[str, Any]:
    """``RESULT`` of a good picture, without its path; Refused if it is none."""
    try:
        width, height = decode_picture(data).size
    except PictureError as error:
        page = data[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"))
        raise Refused("a web page instead of a picture" if page else str(error)) from None
    digest = hashlib.sha256(data).hexdigest()
    return {
        "sha256": digest,
        "bytes": len(data),
        "width": width,
        "height": height,
        "status": "ok",
        "error": "",
    }
