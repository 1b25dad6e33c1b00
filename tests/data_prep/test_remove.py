"""A person leaves everything that a run has made, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import configs
from configs import ConfigError
from data_prep import removed
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels, read_manifest
from data_prep.config import DataPrepConfig
from data_prep.files import read_commit, sha256_file
from data_prep.pipeline import STAGES, Pipeline, finished
from data_prep.remove import Request, read_requests, remove
from data_prep.tables import read_shards

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SYNTHETIC = Path(configs.__file__).parent / "data" / "synthetic_portraits.yaml"
COUNT, SHARDS, SHARD = 20, 5, 4


def settings(output: Path) -> list[str]:
    people = "source.picture={mode: portrait, size: 256, identity_count: 5}"
    return [f"output={output}", f"source.count={COUNT}", f"shard_size={SHARD}", "workers=1", people]


def config_of(output: Path) -> DataPrepConfig:
    return configs.load(SYNTHETIC, settings(output), schema=DataPrepConfig)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("removal") / "run"
    Pipeline(config_of(output)).run(STAGES)
    return output


@pytest.fixture
def output(prepared: Path) -> Path:
    """A run of its own for each test, at the place where it was made: the tables hold the pictures' paths."""
    kept = prepared.with_name("kept")
    if kept.exists():
        shutil.rmtree(prepared)
    else:
        shutil.copytree(prepared, kept)
        shutil.rmtree(prepared)
    shutil.copytree(kept, prepared)
    return prepared


def rows(output: Path, name: str, count: int = SHARDS) -> list[dict[str, Any]]:
    return [row for table in read_shards(output / name, count) for row in table.to_pylist()]


def identity_of(row: dict[str, Any]) -> int:
    return int(row["annotations"][0]["identity"])


def everything(output: Path) -> bytes:
    """The bytes of all files but the list of what was removed, which must name the files that it keeps out."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "removed.json"]
    return b"".join(path.read_bytes() for path in files)


def crops_of(output: Path, image_ids: set[str]) -> list[bytes]:
    return [row["jpeg"] for row in rows(output, "crops") if row["image_id"] in image_ids]


def test_nothing_of_a_person_is_left_and_the_others_are_as_before(output: Path) -> None:
    images, labels, beton = (
        rows(output, "images"),
        read_labels(output / "set.beton").to_pylist(),
        Beton(output / "set.beton"),
    )
    person = identity_of(images[0])
    gone = {row["image_id"] for row in images if identity_of(row) == person}
    shards = {
        number
        for number in range(SHARDS)
        for row in images[SHARD * number :][:SHARD]
        if row["image_id"] in gone
    }
    assert 1 < len(gone) < COUNT
    assert 0 < len(shards) < SHARDS, "the test needs a shard without the person"
    jpegs = crops_of(output, gone)
    files = [Path(row["path"]).read_bytes() for row in images if row["image_id"] in gone]
    hashes = [hashlib.sha256(data).hexdigest() for data in (*jpegs, *files)]
    before = everything(output)
    assert all(data in before for data in (*jpegs, *files))
    stored = {row["face_id"]: beton.jpeg(i) for i, row in enumerate(labels)}
    others = {
        name: [row for row in rows(output, name) if row["image_id"] not in gone] for name in removed.TABLES
    }
    untouched = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for number in set(range(SHARDS)) - shards
        for path in output.glob(f"*/{number:05d}.*")
    }
    old_set = sha256_file(output / "set.beton")

    remove(config_of(output), [Request("identity", str(person))], "asked by letter")

    after = everything(output)
    assert not any(data in after or data[200:800] in after for data in (*jpegs, *files))
    assert not any(digest.encode() in after for digest in hashes)
    for name, expected in others.items():
        assert [row for row in rows(output, name) if row["image_id"] not in gone] == expected, name
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in untouched} == untouched
    for row in (row for row in rows(output, "images") if row["image_id"] in gone):
        filled = {name: value for name, value in row.items() if value is not None}
        assert filled == {
            "image_id": row["image_id"],
            "path": row["path"],
            "status": "removed",
            "error": "removed on request",
        }
    table, beton = read_labels(output / "set.beton").to_pylist(), Beton(output / "set.beton")
    assert table == [row for row in labels if row["image_id"] not in gone]
    assert [beton.jpeg(i) for i in range(len(beton))] == [stored[row["face_id"]] for row in table]
    assert beton.column("label").tolist() == [row["identity"] for row in table]
    assert read_manifest(output / "set.beton").sha256 == sha256_file(output / "set.beton") != old_set
    summary = json.loads((output / "report" / "summary.json").read_text())
    assert summary["pictures"]["listed"] == COUNT
    assert summary["pictures"]["removed"] == len(gone)
    assert summary["pictures"]["failed"] == 0
    quarantine = json.loads((output / "quarantine.json").read_text())
    assert {(row["image_id"], row["reason"]) for row in quarantine} == {
        (name, removed.REASON) for name in gone
    }
    listed = removed.read_list(output)
    assert not listed.under_way
    assert {picture.image_id for picture in listed.pictures} == gone
    assert {picture.why for picture in listed.pictures} == {"asked by letter"}


def test_it_holds_for_every_later_run(output: Path) -> None:
    name = rows(output, "images")[5]["image_id"]
    (jpeg,) = crops_of(output, {name})
    remove(config_of(output), [Request("image-id", name)])
    (picture,) = removed.read_list(output).pictures
    assert picture.shard == 1
    times = {path: path.stat().st_mtime_ns for path in output.rglob("[!.]*.*") if path.name != "config.yaml"}

    assert finished(config_of(output))
    Pipeline(config_of(output)).run(STAGES)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    marks = {name: read_commit(output / name, 1) for name in ("faces", "crops")}
    Pipeline(config_of(output), retry_failed=True).run(STAGES)
    assert {name: read_commit(output / name, 1) for name in marks} == marks, "the retry lists the same table"
    assert jpeg not in everything(output)

    sets = {name: (output / name).read_bytes() for name in ("set.beton", "set.parquet")}
    for name in ("images", "faces", "crops", "report", "pictures"):
        shutil.rmtree(output / name)
    (output / "set.json").unlink()
    Pipeline(config_of(output)).run(STAGES)  # all anew, the pictures rendered again
    assert jpeg not in everything(output)
    assert not Path(rows(output, "images")[5]["path"]).exists()
    assert {name: (output / name).read_bytes() for name in sets} == sets


def test_a_copy_of_the_file_goes_too_and_does_not_come_back(
    tmp_path: Path, t1: bytes, astronaut: Any
) -> None:
    """A file that could not be read when it was removed under another name is known by its hash."""
    folder, output = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(t1)
    (folder / "c.jpg").write_bytes(t1[:5000])
    astronaut.save(folder / "d.png")
    config = load_config(str(folder), [f"output={output}", "shard_size=1", "workers=1"])
    Pipeline(config).run(STAGES)
    remove(config, [Request("sha256", hashlib.sha256(t1).hexdigest().upper())])
    assert [row["status"] for row in rows(output, "images", 4)] == ["removed", "removed", "failed", "ok"]
    assert len(Beton(output / "set.beton")) == 1
    assert (folder / "a.jpg").read_bytes() == t1, "the source is not touched"
    (folder / "c.jpg").write_bytes(t1)
    Pipeline(config, retry_failed=True).run(STAGES)
    assert [row["status"] for row in rows(output, "images", 4)] == ["removed", "removed", "removed", "ok"]
    assert len(Beton(output / "set.beton")) == 1


def test_a_picture_without_a_crop_is_found_and_the_last_face_may_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No face passes keep.min_size in the end: the person is known from the annotation alone."""
    config = configs.load(
        SYNTHETIC,
        [*settings(tmp_path / "run"), "source.count=4", "keep.rule=all"],
        schema=DataPrepConfig,
    )
    Pipeline(config).run(STAGES)
    images = rows(config.output, "images", 1)
    path = Path(images[2]["path"])
    path.write_bytes(path.read_bytes()[:-50])  # its crop cannot be made again
    shutil.rmtree(config.output / "crops")
    (config.output / "set.json").unlink()
    Pipeline(config).run(("crop", "write", "report"))
    assert {row["image_id"]: bool(row["error"]) for row in rows(config.output, "crops", 1)}[
        images[2]["image_id"]
    ]
    remove(config, [Request("identity", str(identity_of(images[2])))])
    assert rows(config.output, "images", 1)[2]["status"] == "removed"
    everybody = {str(identity_of(row)) for row in rows(config.output, "images", 1) if row["status"] == "ok"}
    capsys.readouterr()
    remove(config, [Request("identity", person) for person in everybody])
    assert "No face is left" in capsys.readouterr().out
    assert not list(config.output.glob("set.*"))
    assert not (config.output / "report").exists()


def test_the_command_says_what_it_cannot_reach(output: Path, command: Command, tmp_path: Path) -> None:
    """By a file of requests; asked a second time it says so."""
    images = rows(output, "images")
    wanted = tmp_path / "requests.txt"
    wanted.write_text(
        f"# from the office\n\nimage-id {images[1]['image_id']}\nsha256 {images[2]['sha256']}\n"
    )
    old = sha256_file(output / "set.beton")
    words = ("remove", SYNTHETIC, *settings(output), "--from-file", wanted)
    result = command(*words)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "removed: 2 pictures"
    assert lines[-1] == f"report: {output / 'report' / 'index.html'}"
    for phrase in ("the source's own files", old, "backbones that were trained on it", "backups"):
        assert phrase in result.stdout
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("removed: 0 pictures, 2 before")


def test_unknown_people_are_named_and_nothing_happens(output: Path, command: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("[!.]*.*")}
    result = command(
        "remove",
        SYNTHETIC,
        *settings(output),
        "--identity=999",
        "--image-id=synthetic-0-0000001",
        "--sha256=00ff",
    )
    assert result.returncode == 2
    assert f"{output / 'images'}: none of the 20 pictures" in result.stderr
    assert "identity 999; sha256 00ff; nothing was removed" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_bad_requests_cost_one_line(tmp_path: Path, t1: bytes) -> None:
    bad = tmp_path / "list.txt"
    bad.write_text("image-id x\nname Jane\n")
    with pytest.raises(ConfigError, match=r"list\.txt, line 2: expected 'identity ID'"):
        read_requests(bad)
    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read"):
        read_requests(tmp_path / "nowhere.txt")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(t1)
    config = load_config(str(folder), [f"output={tmp_path / 'run'}", "workers=1"])
    with pytest.raises(ConfigError, match="the source 'folder' names no identities"):
        remove(config, [Request("identity", "5")])
    with pytest.raises(ConfigError, match="stage 'list' is not done"):
        remove(config, [Request("image-id", "a.jpg")])


def test_tables_that_are_not_up_to_date_are_refused(output: Path) -> None:
    mark = output / "faces" / "00000.json"
    mark.write_text(mark.read_text().replace('"inputs": "', '"inputs": "other'))
    name = rows(output, "images")[0]["image_id"]
    with pytest.raises(ConfigError, match=r"faces/00000\.parquet: not up to date"):
        remove(config_of(output), [Request("image-id", name)])
    assert not (output / "removed.json").exists()


SLOW = (  # the command, with a pause wherever a file gets its name, so that a kill can hit between any two
    "import sys, time; from data_prep import files; publish = files.publish\n"
    "def slow(temporary, path):\n    time.sleep(0.15); publish(temporary, path); time.sleep(0.15)\n"
    "files.publish = slow\n"
    "sys.argv = ['data_prep', *sys.argv[1:]]; from data_prep.__main__ import main; main()"
)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("go_on", ["remove", "all"])
def test_killed_in_the_middle_it_goes_on(go_on: str, output: Path, tmp_path: Path, command: Command) -> None:
    """At six moments; then either the same command or the ordinary run ends it."""
    person = identity_of(rows(output, "images")[0])
    gone = {row["image_id"] for row in rows(output, "images") if identity_of(row) == person}
    jpegs = crops_of(output, gone)
    kept = output.with_name("kept")
    undisturbed: dict[str, bytes] = {}
    states = set()
    for moment in (None, 0.1, 0.5, 1.0, 1.8, 2.8, 4.5):
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        words = ["remove", str(SYNTHETIC), *settings(output), f"--identity={person}"]
        if moment is not None:
            with subprocess.Popen(
                [sys.executable, "-c", SLOW, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                deadline = time.monotonic() + 60
                while not (output / "removed.json").exists() and process.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(moment)
                os.kill(process.pid, signal.SIGKILL)
            states.add((bool(removed.read_list(output).under_way), (output / "set.json").exists()))
        result = command(*words) if go_on == "remove" or moment is None else command(*words[1:-1])
        assert result.returncode == 0, result.stderr
        assert not any(jpeg in everything(output) for jpeg in jpegs)
        assert not list(output.rglob("*.tmp"))
        tables = {
            str(path.relative_to(output)): path.read_bytes()
            for path in output.rglob("*")
            if path.suffix in (".parquet", ".beton") or path.name in ("quarantine.json", "set.json")
        }
        undisturbed = undisturbed or tables
        assert tables == undisturbed
        assert finished(config_of(output))
    assert {(True, False)} < states, "the kills must hit the tables and what comes after them"
