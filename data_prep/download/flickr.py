"""Searches Flickr: tags x years -> photographs -> records.

``flickr.photos.search`` of the REST interface, asked for one tag and one span of upload dates. Its documentation
says that a query gives at most the first 4000 results; users report that later pages repeat earlier ones. A query
with more is therefore halved by date until it has fewer, down to one second. The total that Flickr tells is an
estimate: users report some results more or fewer.

The key is posted in the body of the request, so that it is in no URL. It is never written anywhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime, timezone
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from aiohttp import ClientSession

from configs import ConfigError
from data_prep.config import flatten
from data_prep.download.config import DownloadConfig
from data_prep.download.engine import RECORD
from data_prep.download.fetcher import Fetcher, FetchError, Passing
from data_prep.sources.flickr import SUFFIX, FlickrConfig
from data_prep.stage import Shard, Stage, run
from data_prep.tables import read_shards, table_of

KEY = "FLICKR_API_KEY"
VERSION = 1
PLACEHOLDER = "photo_unavailable"
"""In the path that Flickr redirects to in place of a photograph that is gone."""
PER_PAGE = 500
"""The most that Flickr grants."""
PHOTO = pa.schema(
    {
        "id": pa.string(),
        "server": pa.string(),
        "secret": pa.string(),
        "licence": pa.int32(),
        "owner": pa.string(),
        "owner_name": pa.string(),
        "title": pa.string(),
        "tags": pa.string(),
        "uploaded": pa.int64(),
        "found_by": pa.string(),
    }
)
"""What is kept of a photograph. tags: divided by spaces, as Flickr normalises them. uploaded: seconds since 1970.
found_by: the tag of the search that found it first."""

_SEARCHED = PHOTO.append(pa.field("error", pa.string()))
_SEARCH = frozenset({"path", "size", "picture_url", "kind"})
"""Fields that a search does not depend on."""
_BAD_KEY, _PASSING = 100, {10, 105, 106}
"""Flickr's codes: invalid key; search, service or operation not available now."""
_log = logging.getLogger(__name__)


Text = Annotated[str, pydantic.AfterValidator(lambda text: text.encode(errors="replace").decode())]
"""Half a surrogate pair is valid JSON, but no text that can be stored: it becomes a question mark."""


class _Photo(pydantic.BaseModel):
    """A photograph in Flickr's answer. What becomes part of a file name or URL is checked."""

    model_config = pydantic.ConfigDict(coerce_numbers_to_str=True)

    id: Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,20}$")]
    server: Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,10}$")]
    secret: Annotated[str, pydantic.Field(pattern=r"^[0-9a-z]{1,32}$")]
    license: int
    owner: Text
    ownername: Text = ""
    title: Text = ""
    tags: Text = ""
    dateupload: Annotated[int, pydantic.Field(ge=0, lt=1 << 40)]


class _Page(pydantic.BaseModel):
    """A page of results."""

    pages: int
    total: int
    photo: list[dict[str, Any]]


class Search:
    """Fills ``search/`` in the source's folder: a shard for each tag and year."""

    def __init__(self, config: FlickrConfig, download: DownloadConfig) -> None:
        self.config = config
        self.fetcher = Fetcher(download, download.search_rate)
        settings = flatten(config, "source", _SEARCH)
        self.stage = Stage("search", config.path / "search", VERSION, settings, self._work)
        self._key = os.environ.get(KEY, "").strip()

    def run(self) -> pa.Table:
        """Do the searches that are not yet done; returns one record for each photograph, with all of ``PHOTO``.

        Raises:
            ConfigError: no key, or one that Flickr does not take; no answer; nothing found.
        """
        shards = [
            Shard(number, 1, "", span)
            for number, span in enumerate((t, *y) for t in self.config.tags for y in self._years())
        ]
        run(self.stage, shards, len(shards), workers=1)
        found = pa.concat_tables(read_shards(self.stage.folder, len(shards)))
        return self._records(found)

    def _years(self) -> Iterator[tuple[int, int]]:
        """First and last second of each calendar year, within the dates asked for."""
        first, end = self.config.uploaded_from, self.config.uploaded_before
        for year in range(first.year, end.year + 1):
            start, stop = max(first, date(year, 1, 1)), min(end, date(year + 1, 1, 1))
            if start < stop:
                yield _seconds(start), _seconds(stop) - 1

    def _work(self, shard: Shard) -> pa.Table:
        if not self._key:
            raise ConfigError(
                f"the environment variable {KEY} is not set; a key is to be had at "
                "https://www.flickr.com/services/api/misc.api_keys.html"
            )
        tag, start, end = shard.payload
        photos = asyncio.run(self._search(tag, start, end))
        rows = [_row(photo, tag, self.config.licences) for photo in photos]
        return table_of(rows, _SEARCHED)

    async def _search(self, tag: str, start: int, end: int) -> list[dict[str, Any]]:
        async with self.fetcher.session() as session:
            photos: dict[str, dict[str, Any]] = {}  # by id: what Flickr repeats is dropped
            most = self.config.most or sys.maxsize
            await self._span(session, tag, start, end, photos, most)
            return list(photos.values())[:most]

    async def _span(
        self,
        session: ClientSession,
        tag: str,
        start: int,
        end: int,
        photos: dict[str, dict[str, Any]],
        most: int,
    ) -> None:
        """Add what was uploaded between two seconds, both included, until there are ``most``."""
        page = await self._page(session, tag, start, end, 1)
        if page.total > self.config.results_per_query and start < end:
            middle = (start + end) // 2
            await self._span(session, tag, start, middle, photos, most)
            if len(photos) < most:
                await self._span(session, tag, middle + 1, end, photos, most)
            return
        if page.total > self.config.results_per_query:
            _log.warning(
                "flickr: '%s' has %d photographs in one second; the first are taken", tag, page.total
            )
        pages = min(page.pages, -(-self.config.results_per_query // PER_PAGE))
        for number in range(2, pages + 2):
            for photo in page.photo:
                photos.setdefault(str(photo.get("id")), photo)
            if number > pages or len(photos) >= most or not page.photo:
                return
            page = await self._page(session, tag, start, end, number)

    async def _page(self, session: ClientSession, tag: str, start: int, end: int, number: int) -> _Page:
        form = {
            "method": "flickr.photos.search",
            "api_key": self._key,
            "tags": tag,
            "tag_mode": "any",
            "license": ",".join(map(str, self.config.licences)),
            "min_upload_date": str(start),
            "max_upload_date": str(end),
            "sort": "date-posted-asc",
            "media": "photos",
            "extras": "license,tags,owner_name,date_upload",
            "per_page": str(PER_PAGE),
            "page": str(number),
            "format": "json",
            "nojsoncallback": "1",
        }
        try:
            return await self.fetcher.fetch(session, self.config.api_url, self._reader(), form)
        except FetchError as error:
            raise ConfigError(
                f"source.api_url={self.config.api_url}: the search for '{tag}' failed: {error}; the same command "
                "goes on later (HTTP 429: the hourly quota of the key is used up)"
            ) from None

    def _reader(self) -> Callable[[bytes], _Page]:
        def read(body: bytes) -> _Page:
            try:
                answer = json.loads(body)
                if answer["stat"] == "ok":
                    return _Page.model_validate(answer["photos"])
                code, message = int(answer["code"]), str(answer.get("message", ""))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise Passing("the answer is not what Flickr sends") from None
            message = ascii(message.replace(self._key, KEY))[1:200].rstrip("'\"")
            if code in _PASSING:
                raise Passing(f"Flickr: {message}")
            if code == _BAD_KEY:
                raise ConfigError(f"{KEY}: Flickr does not take this key: {message}; check the variable")
            raise ConfigError(
                f"source.api_url={self.config.api_url}: Flickr refuses: {message} (code {code})"
            )

        return read

    def _records(self, found: pa.Table) -> pa.Table:
        """The photographs that can be fetched, each once, with the columns of ``RECORD``."""
        damaged = found.filter(pc.not_equal(found["error"], ""))
        if len(damaged):
            _log.warning(
                "flickr: %d photographs left out; the first: %s", len(damaged), damaged["error"][0].as_py()
            )
        good = found.filter(pc.equal(found["error"], ""))
        rows = good.select(["id"]).append_column("row", pa.array(range(len(good)), pa.int64()))
        first = rows.group_by("id").aggregate([("row", "min")])["row_min"]
        photos = good.take(first.combine_chunks().sort()).combine_chunks()
        if not len(photos):
            raise ConfigError("the search found no photograph; see source.tags, licences and the dates")
        names = pc.binary_join_element_wise(photos["id"], photos["secret"], "_")
        names = pc.binary_join_element_wise(names, f"{SUFFIX[self.config.size]}.jpg", "")
        home = self.config.picture_url.rstrip("/")
        urls = pc.binary_join_element_wise(home, photos["server"], names, "/")
        columns = {
            "image_id": photos["id"],
            "url": urls,
            "name": names,
            "error": pa.array([""] * len(photos)),
        }
        return pa.table({**{name: columns[name] for name in RECORD}, **_columns(photos.select(PHOTO.names))})


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _row(photo: dict[str, Any], tag: str, licences: tuple[int, ...]) -> dict[str, Any]:
    """A row of the search table; one that cannot be used has only an error."""
    try:
        found = _Photo.model_validate(photo)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        return {
            "found_by": tag,
            "error": f"photograph {ascii(photo.get('id'))[:40]}: {field}: {first['msg']}",
        }
    if found.license not in licences:
        return {"found_by": tag, "error": f"photograph {found.id}: licence {found.license} was not asked for"}
    return {
        "id": found.id,
        "server": found.server,
        "secret": found.secret,
        "licence": found.license,
        "owner": found.owner,
        "owner_name": found.ownername,
        "title": found.title,
        "tags": found.tags,
        "uploaded": found.dateupload,
        "found_by": tag,
        "error": "",
    }


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp())
