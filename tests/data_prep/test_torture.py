"""The whole command on a folder of what a crawl may contain; tests/data_prep/torture.py makes it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from data_prep.beton import Beton, read_labels
from data_prep.names import name_to_text, text_to_name
from data_prep.tables import read_shard
from tests.data_prep import torture

GOOD = 200
# The superuser reads everything. Without these two of its powers the permission bits count for it, too.
BOUND = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]


@dataclass(frozen=True)
class Run:
    folder: torture.Folder
    output: Path
    result: subprocess.CompletedProcess[str]
    peak: int
    """Bytes: the largest sum, over the processes alive at one time, of the most memory that each ever held."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    root = tmp_path_factory.mktemp("torture")
    folder = torture.build(root, seed=0, good=GOOD)
    bound = BOUND if os.geteuid() == 0 else []
    if bound and subprocess.run([*bound, "true"], capture_output=True).returncode:
        bound = []  # not even setpriv may do it here: this one kind is left out
        folder.reasons = {name: why for name, why in folder.reasons.items() if b"unreadable" not in name}
        torture.make_readable(root)
    output = tmp_path_factory.mktemp("output") / "set"
    words = [
        *bound,
        sys.executable,
        "-m",
        "data_prep",
        root,
        f"output={output}",
        "workers=2",
        "shard_size=64",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks = [0]
    threading.Thread(target=watch_memory, args=(process.pid, peaks), daemon=True).start()
    out, errors = process.communicate(timeout=500)
    print(f"peak {max(peaks) / 2**30:.2f} GiB")
    yield Run(folder, output, subprocess.CompletedProcess(words, process.returncode, out, errors), max(peaks))
    torture.make_readable(root)


def watch_memory(pid: int, peaks: list[int]) -> None:
    try:
        process = psutil.Process(pid)
        while process.is_running():
            peaks.append(sum(map(high_water, [process, *process.children(recursive=True)])))
            threading.Event().wait(0.1)
    except psutil.NoSuchProcess:
        pass


def high_water(process: psutil.Process) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def names(ids: pa.ChunkedArray) -> list[bytes]:
    return [os.fsencode(text_to_name(text)) for text in ids.to_pylist()]


@pytest.fixture(scope="module")
def images(run: Run) -> pa.Table:
    count = len(list((run.output / "images").glob("*.parquet")))
    return pa.concat_tables(read_shard(run.output / "images", number) for number in range(count))


def test_it_ends_well_in_little_memory(run: Run) -> None:
    assert run.result.returncode == 0, run.result.stderr
    assert 0 < run.peak < 4 << 30, run.peak
    # Not a word about any of the files: what is wrong with them is in the table.
    lines = [line for line in re.split(r"[\r\n]+", run.result.stderr) if line.strip()]
    assert [line for line in lines if not re.match(r"(list|detect|crop|write): ", line)] == []


def test_every_input_is_listed_once(run: Run, images: pa.Table) -> None:
    listed = names(images["image_id"])
    assert len(listed) == len(set(listed)) >= 1000 + GOOD
    assert set(listed) == run.folder.reasons.keys() | run.folder.faces.keys()
    # One id a line, in a list or on a terminal.
    assert all(len(text.splitlines()) == 1 and "\x1b" not in text for text in images["image_id"].to_pylist())


def test_every_rejected_one_is_listed_with_its_reason_and_nothing_else_is(run: Run) -> None:
    rows = json.loads((run.output / "quarantine.json").read_text("utf-8"))
    assert {row["stage"] for row in rows} == {"list"}
    found = {os.fsencode(text_to_name(row["image_id"])): row["reason"] for row in rows}
    assert found.keys() == run.folder.reasons.keys()
    wrong = {
        name: (reason, run.folder.reasons[name])
        for name, reason in found.items()
        if not reason.startswith(run.folder.reasons[name])
    }
    assert wrong == {}


def test_every_face_arrives(run: Run) -> None:
    arrived = names(read_labels(run.output / "set.beton")["image_id"])
    expected = {name for name, face in run.folder.faces.items() if face}
    assert len(expected) >= 2 * GOOD
    assert expected - set(arrived) == set()
    assert len(Beton(run.output / "set.beton")) == len(arrived)


def test_the_path_in_the_table_opens_the_file(run: Run, images: pa.Table) -> None:
    good = [row for row in images.to_pylist() if row["status"] == "ok"]
    assert {os.fsencode(text_to_name(row["image_id"])) for row in good} == run.folder.faces.keys()
    for row in good:
        assert hashlib.sha256(Path(text_to_name(row["path"])).read_bytes()).hexdigest() == row["sha256"]


def test_the_report_shows_them(run: Run) -> None:
    page = (run.output / "report" / "index.html").read_text("utf-8")
    assert "is a directory, not a file" in page
    summary = json.loads((run.output / "report" / "summary.json").read_text())
    assert summary["pictures"]["failed"] == len(run.folder.reasons)
    assert summary["pictures"]["listed"] == len(run.folder.reasons) + len(run.folder.faces)


# --- names ---------------------------------------------------------------------------------------------------


def test_any_name_has_a_text_of_its_own_and_comes_back() -> None:
    dice = torture.Dice(1).rng
    alphabet = [
        b"\\",
        b"x",
        b"\xff",
        b"\xc3",
        b"\xa9",
        b"\n",
        b"\x85",
        b"a",
        b"5",
        "\u2028".encode(),
        "é".encode(),
    ]
    raw = {b"".join(dice.choice(alphabet, dice.integers(1, 9))) for _ in range(20_000)}
    texts = {name: name_to_text(os.fsdecode(name)) for name in raw}
    assert len(set(texts.values())) == len(raw)
    for name, text in texts.items():
        assert text.encode().decode() == text
        assert len(text.splitlines()) == 1
        assert os.fsencode(text_to_name(text)) == name


def test_usual_names_stay_as_they_are() -> None:
    for name in ("a/b c/é.jpg", "日本語.png", "100%.jpg", "emoji \U0001f469\u200d\U0001f467"):
        assert name_to_text(name) == name
