"""``python -m data_prep download``: records to verified pictures, resumed after a kill; IMDb-Face and its list."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import configs
from configs import ConfigError
from data_prep.__main__ import parse
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.download.command import download
from data_prep.download.imdbface import read_records
from data_prep.files import sha256_file
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources.imdbface import IMDbFace, IMDbFaceConfig
from data_prep.stage import parse_part
from data_prep.synthetic import SyntheticConfig, portrait
from data_prep.tables import read_shards
from tests.data_prep.web import Server, endless, in_turn, jpeg, moved, raw, send, serve, status

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
HEADER = "name,index,image,rect,height width,url"
FAST = [
    "download.rate=10000",
    "download.backoff=0.01",
    "download.deadline=5",
    'download.allow_private=["127.0.0.0/8"]',
    "workers=1",
]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "imdb").mkdir()
    return tmp_path / "imdb"


def row(url: str, number: int = 1, rect: str = "8 6 32 30", size: str = "48 64") -> str:
    return f'Some_One,nm{number:07d},rm{number}.jpg,{rect},{size},"{url}"'


def listed(root: Path, *rows: str) -> None:
    (root / "IMDb-Face.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def settings(root: Path, *overrides: str) -> DataPrepConfig:
    given = [f"source.path={root}", f"output={root.parent / 'set'}", *FAST, *overrides]
    return configs.load(ROOT / "configs/data/imdb_face.yaml", given, schema=DataPrepConfig)


def rows_of(root: Path) -> list[dict[str, Any]]:
    count = json.loads((root / "download.json").read_bytes())["shards"]
    return pa.concat_tables(read_shards(root / "downloads", count)).to_pylist()


def tree(root: Path) -> dict[str, str]:
    """Every file of a download by its hash, without the marks, which tell how long it took."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix in (".jpg", ".parquet"))
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(files)}


# --- the engine ----------------------------------------------------------------------------------------------


def test_every_record_has_a_row_and_its_reason(server: Server, root: Path) -> None:
    good = jpeg()
    answers = {
        "/good.jpg": (send(good), "ok", ""),
        "/no-type.jpg": (send(good, "application/x-unheard-of"), "ok", ""),
        "/late.jpg": (in_turn(status(503), send(good)), "ok", ""),
        "/moved.jpg": (moved("/good.jpg"), "ok", ""),
        "/404.jpg": (status(404), "gone", "HTTP 404 Not Found"),
        "/410.jpg": (status(410), "gone", "HTTP 410 Gone"),
        "/403.jpg": (status(403), "refused", "HTTP 403 Forbidden"),
        "/page.jpg": (
            send(b"\n<!DOCTYPE html><p>Sign in", "text/html"),
            "refused",
            "a web page instead of a picture",
        ),
        "/lie.jpg": (send(b"<html>sorry"), "refused", "a web page instead of a picture"),
        "/empty.jpg": (send(b""), "refused", "empty file"),
        "/text.jpg": (send(b"sorry"), "refused", "not a picture in any known format"),
        "/half.jpg": (
            raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + good[: len(good) // 2]),
            "refused",
            "damaged: image file is truncated",
        ),
        "/cut.jpg": (send(good[:100], length=len(good)), "passing", "cut off before its end"),
        "/500.jpg": (status(500), "passing", "HTTP 500 Internal Server Error"),
        "/endless.jpg": (endless, "refused", "larger than 100000 bytes"),
        "/inside.jpg": (
            moved("http://169.254.169.254/latest"),
            "refused",
            "leads to an address that is not public",
        ),
    }
    server.answers |= {path: answer for path, (answer, _, _) in answers.items()}
    listed(root, *(row(server.url(path), i) for i, path in enumerate(answers)))
    counts = download(
        settings(root, "download.tries=2", "download.max_bytes=100000", "download.shard_size=5")
    )
    assert counts == {"ok": 4, "gone": 2, "refused": 8, "passing": 2}
    rows = rows_of(root)
    assert [(row["status"], row["error"]) for row in rows] == [
        (kind, why) for _, kind, why in answers.values()
    ]
    for line in rows:
        path = root / line["path"]
        assert path.exists() == (line["status"] == "ok")
        if path.exists():
            assert path.read_bytes() == good
            assert (line["sha256"], line["bytes"]) == (sha256_file(path), len(good))
            assert (line["width"], line["height"]) == (64, 48)
    assert not [path for path in root.rglob(".*") if path.suffix != ".lock"], "nothing is left over"


def test_done_is_done_and_a_retry_asks_for_failures_alone(
    server: Server, root: Path, command: Command
) -> None:
    paths = ["/a.jpg", "/b.jpg", "/gone.jpg", "/shut.jpg", "/ill.jpg"]
    server.answers |= {"/a.jpg": send(jpeg(1)), "/b.jpg": send(jpeg(2))}
    server.answers |= {"/shut.jpg": status(403), "/ill.jpg": status(500)}
    listed(root, *(row(server.url(path)) for path in paths))
    config = settings(root, "download.tries=1", "download.shard_size=2")
    download(config)
    assert server.asked == dict.fromkeys(paths, 1)
    download(config)
    assert server.asked == dict.fromkeys(paths, 1)

    server.answers |= {"/shut.jpg": send(jpeg(3)), "/ill.jpg": send(jpeg(4))}
    (
        root / rows_of(root)[1]["path"]
    ).unlink()  # lost: it is fetched again with the failures of its shard, if any
    assert download(config, retry_failed=True) == {"ok": 4, "gone": 1}
    assert server.asked == {"/a.jpg": 1, "/b.jpg": 1, "/gone.jpg": 1, "/shut.jpg": 2, "/ill.jpg": 2}
    assert [row["status"] for row in rows_of(root)] == ["ok", "ok", "gone", "ok", "ok"]

    listed(root, *(row(server.url(path)) for path in paths[1:]))
    with pytest.raises(ConfigError, match=r"the source had more pictures|its inputs have changed"):
        download(config)
    assert json.loads((root / "download.json").read_bytes()) == {"shards": 3, "records": 5}


def test_another_list_keeps_what_is_there(server: Server, root: Path) -> None:
    for name in "abc":
        server.answers[f"/{name}.jpg"] = send(jpeg(ord(name)))
    listed(root, row(server.url("/a.jpg")), row(server.url("/b.jpg")))
    download(settings(root))
    listed(root, row(server.url("/a.jpg"), 2), row(server.url("/b.jpg")), row(server.url("/c.jpg")))
    assert download(settings(root), retry_failed=True) == {"ok": 3}
    assert server.asked == {"/a.jpg": 1, "/b.jpg": 1, "/c.jpg": 1}
    assert rows_of(root)[0]["faces"][0]["identity"] == 2


def test_parts_fetch_their_own(server: Server, root: Path) -> None:
    paths = [f"/{i}.jpg" for i in range(7)]
    server.answers |= {path: send(jpeg(i)) for i, path in enumerate(paths)}
    listed(root, *(row(server.url(path)) for path in paths))
    config = settings(root, "download.shard_size=2")
    assert download(config, part=parse_part("1/2")) == {"ok": 3}
    assert set(server.log) == {paths[i] for i in (2, 3, 6)}
    with pytest.raises(
        ConfigError, match="2 of 4 shards are not downloaded; run 'python -m data_prep download"
    ):
        Pipeline(config)
    assert download(config, part=parse_part("0/2")) == {"ok": 4}
    assert server.asked == dict.fromkeys(paths, 1)
    Pipeline(config).list()
    assert parse(["download", "some.yaml", "--part", "1/2"]).part == parse_part("1/2")


def test_what_was_damaged_on_the_disk_is_fetched_again(server: Server, root: Path) -> None:
    server.answers |= {"/a.jpg": send(jpeg(1)), "/b.jpg": in_turn(status(500), send(jpeg(2)))}
    listed(root, row(server.url("/a.jpg")), row(server.url("/b.jpg")))
    config = settings(root, "download.tries=1")
    download(config)
    path = root / rows_of(root)[0]["path"]
    path.write_bytes(path.read_bytes()[:500])
    download(config, retry_failed=True)
    assert path.read_bytes() == jpeg(1)
    assert server.asked == {"/a.jpg": 2, "/b.jpg": 2}


def test_without_a_network_nothing_is_given_up(server: Server, root: Path) -> None:
    paths = [f"/{i}.jpg" for i in range(12)]
    server.answers |= {path: send(jpeg(i)) if i < 4 else raw(b"") for i, path in enumerate(paths)}
    listed(root, *(row(server.url(path)) for path in paths))
    config = settings(root, "download.give_up_after=3", "download.tries=1", "download.connections=1")
    with pytest.raises(ConfigError, match=r"3 requests in a row failed.*check the network"):
        download(config)
    assert not (root / "downloads/00000.parquet").exists()
    server.answers |= {path: send(jpeg(i)) for i, path in enumerate(paths)}
    assert download(config) == {"ok": 12}, "the same command goes on, and no picture counts as failed"
    assert [server.asked[path] for path in paths[:4]] == [1] * 4


@pytest.mark.chaos
def test_killed_it_goes_on_and_fetches_nothing_twice(server: Server, root: Path, tmp_path: Path) -> None:
    def slowly(number: int) -> Any:
        def answer(handler: Any) -> None:
            time.sleep(0.02)
            (status(404) if number % 5 == 4 else send(jpeg(number)))(handler)

        return answer

    paths = [f"/{i}.jpg" for i in range(120)]
    server.answers |= {path: slowly(i) for i, path in enumerate(paths)}
    listed(root, *(row(server.url(path), i) for i, path in enumerate(paths)))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/IMDb-Face.csv").write_bytes((root / "IMDb-Face.csv").read_bytes())
    words = [sys.executable, "-m", "data_prep", "download", str(ROOT / "configs/data/imdb_face.yaml")]
    words += [f"source.path={root}", f"output={tmp_path / 'set'}", *FAST]
    words += ["download.shard_size=50", "download.connections=4"]
    names = {entry["name"]: urlsplit(entry["url"]).path for entry in read_records(root).to_pylist()}
    done: dict[str, int] = {}
    for enough in (20, 70):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(finished(root, names)) < enough and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        time.sleep(0.2)
        done |= {path: server.asked[path] for path in finished(root, names)}
        assert enough <= len(done) < len(paths)
    last = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert last.returncode == 0, last.stderr
    assert "96 ok, 24 gone" in last.stdout
    for path, times in done.items():
        assert server.asked[path] == times, f"{path} was there and was fetched again"
    again = {path: times for path, times in server.asked.items() if times > 1}
    assert len(again) <= 2 * 4, "at most what was under way was fetched again"

    download(settings(tmp_path / "whole", "download.shard_size=50"))
    assert tree(root) == tree(tmp_path / "whole")


def finished(root: Path, paths: dict[str, str]) -> set[str]:
    """What is done: a picture that has its name, a loss that is noted. ``paths``: of each name on the server."""
    there = {paths[path.name] for path in (root / "pictures").glob("*/[!.]*.jpg")}
    for note in (root / "downloads").glob(".*.refused"):
        lost = (json.loads(line) for line in note.read_text().splitlines() if line.endswith("}"))
        there |= {urlsplit(line["url"]).path for line in lost}
    return there


def test_stopped_with_ctrl_c_it_says_so_and_goes_on(server: Server, root: Path, tmp_path: Path) -> None:
    paths = [f"/{i}.jpg" for i in range(40)]
    server.answers |= {path: send(jpeg(i)) for i, path in enumerate(paths)}
    listed(root, *(row(server.url(path)) for path in paths))
    words = [sys.executable, "-m", "data_prep", "download", str(ROOT / "configs/data/imdb_face.yaml")]
    words += [f"source.path={root}", f"output={tmp_path / 'set'}", *FAST, "download.rate=20"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(server.log) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in errors
    assert "Traceback" not in errors
    assert len(server.log) < 40
    assert download(settings(root)) == {"ok": 40}
    assert server.asked.total() <= 40 + 8


# --- IMDb-Face -----------------------------------------------------------------------------------------------


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {entry["url"] or entry["image_id"]: entry for entry in read_records(root).to_pylist()}


def test_faces_of_one_address_are_one_record(root: Path) -> None:
    url = "https://ia.media-imdb.com/images/M/MV5B_V1_SY1000_CR0,0,666,1000_AL_.jpg"
    listed(
        root,
        row(url, 17, "1 2 30 40", "1000 666"),
        row("http://b/1.jpg", 18),
        row(url, 19, "50 2 90.5 40", "1000 666"),
        f"Some_One,nm0000020,rm20.jpg,1 2 3 4,10 20,{url}",  # without quotes
    )
    found = records(root)
    assert list(found) == [url, "http://b/1.jpg"]
    face = {"identity": 17, "box": [1, 2, 30, 40], "height": 1000, "width": 666}
    assert found[url]["faces"][:2] == [face, {**face, "identity": 19, "box": [50, 2, 90.5, 40]}]
    assert [face["identity"] for face in found[url]["faces"]] == [17, 19, 20]
    assert found[url]["name"] == f"{found[url]['image_id']}.jpg"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("just words", "1 cells instead of 6"),
        ('A,nm1,r,1 2 3 4,5 6,"http://x/1.jpg', "unexpected end of data"),
        ("A,1,r,1 2 3 4,5 6,http://x/1.jpg", "index is not nm and a number: '1'"),
        ("A,nm,r,1 2 3 4,5 6,http://x/1.jpg", "index is not nm and a number: 'nm'"),
        ("A,nm1,r,1 2 3,5 6,http://x/1.jpg", "rect is not 4 numbers: '1 2 3'"),
        ("A,nm1,r,1 2 3 nan,5 6,http://x/1.jpg", "rect is not 4 numbers: '1 2 3 nan'"),
        ("A,nm1,r,3 2 3 4,5 6,http://x/1.jpg", "rect has no extent: '3 2 3 4'"),
        ("A,nm1,r,1 2 3 4,0 6,http://x/1.jpg", "height width: '0 6' is no size"),
        ("A,nm1,r,1 2 3 4,5,http://x/1.jpg", "height width is not 2 numbers: '5'"),
        ("A,nm1,r,1 2 3 4,5 6,file:///etc/passwd", "url is neither http nor https: 'file:///etc/passwd'"),
        ("A,nm1,r,1 2 3 4,5 6,", "url is neither http nor https: ''"),
    ],
)
def test_a_damaged_line_has_its_place_and_reason(root: Path, line: str, reason: str) -> None:
    listed(root, row("http://b/1.jpg"), line, row("http://b/2.jpg"))
    found = records(root)
    assert list(found) == ["http://b/1.jpg", "IMDb-Face.csv:3", "http://b/2.jpg"]
    assert found["IMDb-Face.csv:3"]["error"] == f"IMDb-Face.csv:3: {reason}"


def test_bytes_that_are_no_text_stop_nothing(root: Path) -> None:
    (root / "IMDb-Face.csv").write_bytes(
        b"\xef\xbb\xbf" + HEADER.encode() + b"\nJos\xe9,nm7,r,1 2 3 4,5 6,http://x/1\n\xff\n\n"
    )
    found = records(root)
    assert found["http://x/1"]["faces"][0]["identity"] == 7
    assert "1 cells" in found["IMDb-Face.csv:3"]["error"]


def test_lists_that_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"IMDb-Face\.csv is not there"):
        read_records(root)
    (root / "IMDb-Face.csv").write_text("name,url,rect\n")
    with pytest.raises(ConfigError, match="its columns are name,url,rect; expected name,index"):
        read_records(root)
    (root / "IMDb-Face.csv").write_text(HEADER + "\n")
    with pytest.raises(ConfigError, match="it has no rows"):
        read_records(root)


def test_a_list_without_a_heading_loses_no_row(root: Path) -> None:
    (root / "IMDb-Face.csv").write_text(row("http://x/1.jpg") + "\n")
    assert list(records(root)) == ["http://x/1.jpg"]


def test_boxes_follow_the_size_that_was_served(server: Server, root: Path) -> None:
    """Listed as 480 x 640; served as that, half as large, as a square, and not at all."""
    for name, size in {
        "same": (640, 480),
        "half": (320, 240),
        "square": (480, 480),
        "odd": (321, 240),
    }.items():
        server.answers[f"/{name}.jpg"] = send(jpeg(0, size))
    names = ["same", "half", "square", "odd", "lost"]
    listed(
        root,
        *(row(server.url(f"/{name}.jpg"), i, "64 48 128.5 96", "480 640") for i, name in enumerate(names)),
    )
    download(settings(root))
    source = IMDbFace(IMDbFaceConfig(kind="imdb_face", path=root), 3)
    shards = source.shards()
    found = [one for shard in shards for one in source.pictures(shard)]
    boxes = [one.annotations[0]["box"] for one in found]
    assert boxes[:3] == [[64, 48, 128.5, 96], [32, 24, 64.25, 48], None]
    assert boxes[3] == pytest.approx([64 * 321 / 640, 24, 128.5 * 321 / 640, 48])
    assert boxes[4] is None
    assert [one.annotations[0]["identity"] for one in found] == list(range(5))
    assert [one.error for one in found] == ["", "", "", "", "HTTP 404 Not Found"]
    assert found[0].path.read_bytes() == jpeg(0, (640, 480))
    assert [shard.inputs for shard in source.shards()] == [shard.inputs for shard in shards]


def test_the_counts_of_the_list_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed(root, row("http://b/1.jpg", 1), row("http://b/1.jpg", 2), row("http://b/2.jpg", 2), "damaged")
    with caplog.at_level(logging.INFO):
        read_records(root)
    assert caplog.messages == ["imdb_face: 3 faces of 2 people in 2 pictures listed"]


def test_a_source_that_was_not_downloaded(root: Path, command: Command) -> None:
    with pytest.raises(
        ConfigError, match="nothing was downloaded to it; run 'python -m data_prep download CONFIG'"
    ):
        Pipeline(settings(root))
    result = command("download", ROOT / "configs/data/folder.yaml", f"source.path={root}")
    assert result.returncode == 2
    assert "source.kind=folder: only flickr and imdb_face are downloaded" in result.stderr


def test_from_the_list_to_a_set(server: Server, root: Path, command: Command) -> None:
    """A person served as listed, one twice as large, one cut differently, an address that is dead, a damaged line."""
    lines = []
    for i in range(4):
        picture = portrait(0, i, SyntheticConfig(occlusion=0))
        image = Image.fromarray(picture.image)
        box = " ".join(f"{value:.0f}" for value in picture.faces[0].box)
        lines.append(row(server.url(f"/{i}.jpg"), 100 + i, box, f"{image.height} {image.width}"))
        if i == 1:
            image = image.resize((2 * image.width, 2 * image.height))
        if i == 2:
            image = image.crop((0, 0, image.width, image.height * 4 // 5))
        path = root / "one.jpg"
        image.save(path, quality=95)
        if i != 3:
            server.answers[f"/{i}.jpg"] = send(path.read_bytes())
        path.unlink()
    listed(root, *lines, "damaged")
    config = settings(root)
    assert download(config) == {"ok": 3, "refused": 1, "gone": 1}
    Pipeline(config).run(STAGES)
    labels = read_labels(config.output / "set.beton")
    assert labels["identity"].to_pylist() == [100, 101]
    assert Beton(config.output / "set.beton").column("label").tolist() == [100, 101]
    true, seen = (np.array(labels[name].to_pylist()) for name in ("true_box", "box"))
    assert np.abs(true - seen).mean() < 40, "the listed boxes came along, in crop pixels"
    quarantine = json.loads((config.output / "quarantine.json").read_text())
    assert [entry["reason"] for entry in quarantine] == [
        "HTTP 404 Not Found",
        "IMDb-Face.csv:6: 1 cells instead of 6",
    ]
