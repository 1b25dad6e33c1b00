"""Flickr: tags x years to photographs, against a server that answers as its interface is known to."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.beton import read_labels
from data_prep.config import DataPrepConfig
from data_prep.download.command import download
from data_prep.download.flickr import KEY as VARIABLE
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources.flickr import TAGS, Flickr, FlickrConfig
from data_prep.synthetic import SyntheticConfig, portrait
from data_prep.tables import read_shards
from tests.data_prep.web import KEY, FakeFlickr, Server, in_turn, jpeg, moved, photo, raw, send, serve, status

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
FAST = [
    "download.rate=10000",
    "download.search_rate=10000",
    "download.backoff=0.01",
    "download.tries=2",
    "download.deadline=5",
    'download.allow_private=["127.0.0.0/8"]',
    "workers=1",
]


def day(year: int, month: int = 1, number: int = 1) -> int:
    return int(datetime(year, month, number, tzinfo=timezone.utc).timestamp())


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def words(server: Server, root: Path, *overrides: str) -> list[str]:
    return [
        str(ROOT / "configs/data/flickr.yaml"),
        f"source.path={root / 'flickr'}",
        f"output={root / 'set'}",
        f"source.api_url={server.url('/services/rest/')}",
        f"source.picture_url={server.url('')}",
        "source.uploaded_from=2019-07-01",
        *FAST,
        *overrides,
    ]


def settings(server: Server, root: Path, *overrides: str) -> DataPrepConfig:
    path, *given = words(server, root, 'source.tags=["smile","group photo"]', *overrides)
    return configs.load(path, given, schema=DataPrepConfig)


def rows_of(root: Path) -> list[dict[str, Any]]:
    count = json.loads((root / "flickr/download.json").read_bytes())["shards"]
    return pa.concat_tables(read_shards(root / "flickr/downloads", count)).to_pylist()


def test_the_tags_are_those_of_the_paper() -> None:
    assert len(TAGS) == len(set(TAGS)) == 100
    assert (TAGS[0], TAGS[49], TAGS[-1]) == ("human", "40s", "crowds")
    assert "group photo" in TAGS


def test_photographs_come_with_who_made_them(server: Server, tmp_path: Path) -> None:
    flickr = FakeFlickr(
        server,
        [
            photo(5, "smile child", day(2019, 8)),
            photo(3, "smile", day(2020, 2), licence=9, title="Ünïcode\u2028 \U0001f642 \ud83d"),
            photo(9, "smile", day(2019, 9), licence=1),
            photo(2, "smile", day(2019, 1)),
            photo(4, "smile", day(2021)),
            photo(1, "smile", day(2020, 12, 31) + 86_399, licence=10),
        ],
    )
    assert download(settings(server, tmp_path)) == {"ok": 3}
    rows = rows_of(tmp_path)
    assert [row["image_id"] for row in rows] == ["5", "3", "1"], (
        "by upload, within the dates, of the licences"
    )
    first = {
        name: rows[0][name]
        for name in ("server", "secret", "licence", "owner", "owner_name", "title", "tags")
    }
    assert first == {
        "server": "65535",
        "secret": "0000000005",
        "licence": 4,
        "owner": "5@N00",
        "owner_name": "Ängström 5",
        "title": "Title, 5",
        "tags": "smile child",
    }
    assert rows[0]["url"] == server.url("/65535/5_0000000005.jpg")
    assert (tmp_path / "flickr" / rows[0]["path"]).read_bytes() == jpeg(5)
    assert rows[1]["title"] == "Ünïcode\u2028 \U0001f642 ?", "half a character becomes a question mark"
    assert {query["tags"] for query in flickr.queries} == {"smile", "group photo"}
    assert all(query["tag_mode"] == "any" and query["license"] == "4,9,10" for query in flickr.queries)
    assert len(flickr.queries) == 4, "one for each tag and year: none has a second page"


def test_a_photograph_with_two_tags_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server_photos = [photo(1, "smile group photo", day(2020)), photo(2, "group", day(2020, 2))]
    flickr = FakeFlickr(server, server_photos)
    assert download(settings(server, tmp_path, 'source.tags=["group","smile","photo"]')) == {"ok": 2}
    assert [(row["image_id"], row["found_by"]) for row in rows_of(tmp_path)] == [
        ("1", "group"),
        ("2", "group"),
    ]
    assert server.asked["/65535/1_0000000001.jpg"] == 1
    assert len(flickr.queries) == 6


@pytest.mark.parametrize("spread", ["even", "one day"])
def test_more_than_4000_results_are_split_by_date(server: Server, tmp_path: Path, spread: str) -> None:
    step = 3000 if spread == "even" else 8
    flickr = FakeFlickr(server, [photo(i, "smile", day(2020) + step * i) for i in range(1, 9001)])
    config = settings(server, tmp_path, 'source.tags=["smile"]', "source.uploaded_from=2020-01-01")
    from data_prep.download.flickr import Search

    records = Search(config.source, config.download).run()
    assert records["image_id"].to_pylist() == [str(i) for i in range(1, 9001)]
    pages = {(q["min_upload_date"], q["max_upload_date"], q["page"]) for q in flickr.queries}
    assert len(pages) == len(flickr.queries), "no query is made twice"
    assert len(flickr.queries) < 45
    assert max(int(query["page"]) for query in flickr.queries) <= 8


def test_more_than_4000_in_a_second_are_cut(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FakeFlickr(server, [photo(i, "smile", day(2020)) for i in range(1, 4502)])
    config = settings(server, tmp_path, 'source.tags=["smile"]', "source.uploaded_from=2020-01-01")
    from data_prep.download.flickr import Search

    assert len(Search(config.source, config.download).run()) == 4000
    assert "'smile' has 4501 photographs in one second" in caplog.text


def test_most_bounds_each_tag_and_year(server: Server, tmp_path: Path) -> None:
    tags = {2: "smile group", 3: "group"}
    everything = [
        photo(year * 1000 + i, tags.get(i % 4, "smile"), day(year, 8) + i)
        for year in (2019, 2020)
        for i in range(40)
    ]
    FakeFlickr(server, everything)
    assert download(settings(server, tmp_path, 'source.tags=["smile","group"]', "source.most=3")) == {
        "ok": 10
    }
    found = [(row["found_by"], row["image_id"]) for row in rows_of(tmp_path)]
    years = {"smile": ["2019000", "2019001", "2019002", "2020000", "2020001", "2020002"]}
    years["group"] = ["2019003", "2019006", "2020003", "2020006"]  # 2019002 was found by smile
    assert found == [(tag, number) for tag, numbers in years.items() for number in numbers]


@pytest.mark.parametrize("size", [240, 1024])
def test_the_size_is_part_of_the_address(server: Server, tmp_path: Path, size: int) -> None:
    FakeFlickr(server, [photo(7, "smile", day(2020))])
    path = f"/65535/7_0000000007_{'m' if size == 240 else 'b'}.jpg"
    server.answers[path] = send(jpeg(0, (size, 100)))
    assert download(settings(server, tmp_path, f"source.size={size}")) == {"ok": 1}
    assert rows_of(tmp_path)[0]["width"] == size


def test_the_placeholder_is_no_photograph(server: Server, tmp_path: Path) -> None:
    FakeFlickr(server, [photo(7, "smile", day(2020))])
    server.answers["/65535/7_0000000007.jpg"] = moved("/images/photo_unavailable.png")
    server.answers["/images/photo_unavailable.png"] = send(jpeg())
    assert download(settings(server, tmp_path)) == {"gone": 1}
    assert rows_of(tmp_path)[0]["error"] == "a placeholder instead of the picture"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": "../../etc/passwd"}, "photograph '../../etc/passwd': id: String should match pattern"),
        ({"secret": "a/../b"}, "secret: String should match pattern"),
        ({"server": "evil.example/"}, "server: String should match pattern"),
        ({"license": 0}, "photograph 7: licence 0 was not asked for"),
        ({"dateupload": 10**30}, "dateupload: "),
        ({"dateupload": "soon"}, "dateupload: "),
        ({"id": {"a": []}}, "id: Input should be a valid string"),
        ({"owner": None}, "owner: Input should be a valid string"),
    ],
)
def test_a_photograph_that_cannot_be_right_is_left_out(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], reason: str
) -> None:
    answer = {"pages": 1, "total": 2, "photo": [photo(7, "smile", day(2020)) | change, photo(8, "smile", 5)]}
    body = json.dumps({"stat": "ok", "photos": answer}).encode()
    server.answers["/services/rest/"] = send(body, "application/json")
    server.answers["/65535/8_0000000008.jpg"] = send(jpeg())
    assert download(settings(server, tmp_path)) == {"ok": 1}
    assert reason in caplog.text
    files = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"flickr"}


# --- the service ---------------------------------------------------------------------------------------------


def fail(code: int, message: str = "Sorry") -> Any:
    return send(json.dumps({"stat": "fail", "code": code, "message": message}).encode(), "application/json")


@pytest.mark.parametrize(
    ("answer", "reason", "asked"),
    [
        (fail(100, f"Invalid API Key ({KEY})"), "FLICKR_API_KEY: Flickr does not take this key", 1),
        (fail(3, "Parameterless searches"), "Flickr refuses: Parameterless searches .code 3.", 1),
        (fail(105), "the search for 'smile' failed: Flickr: Sorry", 2),
        (
            status(429),
            "HTTP 429 Too Many Requests; the same command goes on later .HTTP 429: the hourly quota",
            2,
        ),
        (status(403), "HTTP 403 Forbidden", 1),
        (send(b"<html>", "text/html"), "the answer is not what Flickr sends", 2),
        (send(b'{"stat": "ok"}', "application/json"), "the answer is not what Flickr sends", 2),
        (send(b"[" * 100_000, "application/json"), "the answer is not what Flickr sends", 2),
        (moved("http://example.org/"), "redirected, although a form was posted", 1),
        (status(429, Retry_After="1800"), "asks to be left alone for 1800 s", 1),
    ],
)
def test_the_search_stops_with_a_reason(
    server: Server, tmp_path: Path, answer: Any, reason: str, asked: int
) -> None:
    server.answers["/services/rest/"] = answer
    with pytest.raises(ConfigError, match=reason) as caught:
        download(settings(server, tmp_path))
    assert KEY not in str(caught.value)
    assert len(server.log) == asked
    FakeFlickr(server, [photo(7, "smile", day(2020))])
    assert download(settings(server, tmp_path)) == {"ok": 1}, "the same command goes on"


def test_nothing_found(server: Server, tmp_path: Path) -> None:
    FakeFlickr(server, [])
    with pytest.raises(ConfigError, match="the search found no photograph"):
        download(settings(server, tmp_path))


def test_an_interrupted_search_goes_on(server: Server, tmp_path: Path) -> None:
    flickr = FakeFlickr(server, [photo(7, "smile", day(2019, 8)), photo(8, "smile", day(2020))])
    search = server.answers["/services/rest/"]
    server.answers["/services/rest/"] = in_turn(search, raw(b""), raw(b""), status(403))
    with pytest.raises(ConfigError):
        download(settings(server, tmp_path))
    server.answers["/services/rest/"] = search
    flickr.queries.clear()
    assert download(settings(server, tmp_path)) == {"ok": 2}
    assert len(flickr.queries) == 3, "the first of four searches was done"


def test_parts_at_once_share_the_searches(server: Server, tmp_path: Path) -> None:
    flickr = FakeFlickr(server, [photo(i, "smile", day(2020) + i) for i in range(8)])
    given = words(server, tmp_path, 'source.tags=["smile","sad","team"]', "download.shard_size=2")
    command = [sys.executable, "-m", "data_prep", "download", *given, "--part"]
    both = [subprocess.Popen([*command, part], stdout=subprocess.PIPE, text=True) for part in ("0/2", "1/2")]
    assert [process.communicate(timeout=120)[0] for process in both] == ["flickr: 4 ok\n"] * 2
    assert len(flickr.queries) == 6, "each tag and year once"
    assert [row["image_id"] for row in rows_of(tmp_path)] == [str(i) for i in range(8)]
    assert max(server.asked[f"/65535/{i}_{i:010x}.jpg"] for i in range(8)) == 1


def test_pictures_need_no_key_once_the_search_is_done(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeFlickr(server, [photo(7, "smile", day(2020))])
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match="the environment variable FLICKR_API_KEY is not set"):
        download(settings(server, tmp_path))
    monkeypatch.setenv(VARIABLE, KEY)
    server.answers["/65535/7_0000000007.jpg"] = in_turn(status(403), send(jpeg()))
    assert download(settings(server, tmp_path)) == {"refused": 1}
    monkeypatch.delenv(VARIABLE)
    assert download(settings(server, tmp_path), retry_failed=True) == {"ok": 1}


def test_other_tags_are_another_search(server: Server, tmp_path: Path) -> None:
    FakeFlickr(server, [photo(7, "smile", day(2020))])
    download(settings(server, tmp_path))
    with pytest.raises(ConfigError, match=r"made with source\.tags="):
        download(settings(server, tmp_path, 'source.tags=["sad","smile"]'))
    with pytest.raises(ConfigError, match=r"made with source\.size=500, now source\.size=640"):
        download(settings(server, tmp_path, "source.size=640"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("source.uploaded_before=2019-07-01", "2019-07-01 is not after 2019-07-01"),
        ('source.tags=["a,b"]', "'a,b' is no tag; a comma divides tags"),
        ("source.size=512", "source.size"),
        ('download.contact="a\\nb"', "download.contact"),
        ('download.allow_private=["everything"]', "download.allow_private"),
    ],
)
def test_settings_that_are_refused(server: Server, tmp_path: Path, override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        settings(server, tmp_path, override)


# --- all the way ---------------------------------------------------------------------------------------------


def test_from_the_search_to_a_set_without_a_trace_of_the_key(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FakeFlickr(server, [photo(i, "smile", day(2020) + i) for i in range(4)])
    for i in range(3):
        path = tmp_path / "one.jpg"
        Image.fromarray(portrait(0, i, SyntheticConfig(occlusion=0)).image).save(path, quality=95)
        server.answers[f"/65535/{i}_{i:010x}.jpg"] = send(path.read_bytes())
        path.unlink()
    server.answers["/65535/3_0000000003.jpg"] = status(410)
    given = words(server, tmp_path, 'source.tags=["smile"]')
    command = [sys.executable, "-m", "data_prep", "download", *given]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "flickr: 3 ok, 1 gone\n"
    config = configs.load(given[0], given[1:], schema=DataPrepConfig)
    with caplog.at_level(logging.DEBUG):
        Pipeline(config).run(STAGES)
    assert sorted(read_labels(config.output / "set.beton")["image_id"].to_pylist()) == ["0", "1", "2"]
    quarantine = json.loads((config.output / "quarantine.json").read_text())
    assert [(entry["image_id"], entry["reason"]) for entry in quarantine] == [("3", "HTTP 410 Gone")]
    assert isinstance(Pipeline(config).source, Flickr)
    assert isinstance(config.source, FlickrConfig)

    assert KEY not in result.stderr + result.stdout + caplog.text
    assert not [path for path in server.log if KEY in path], "it is in no URL either"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
            if path.suffix == ".parquet":  # its pages are compressed
                assert KEY not in str(pq.read_table(path, partitioning=None).to_pylist()), path
    assert KEY not in os.fspath(tmp_path)
