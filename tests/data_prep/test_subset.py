from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from configs import ConfigError
from data_prep.beton import Beton, read_manifest, write_beton
from data_prep.subset import draw, write_subset
from pretrain.data import Batches, DataConfig
from pretrain.distributed import Ranks

ROWS = 50


def written(path: Path, shade: int) -> Path:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(buffer, "JPEG")
    write_beton(path, [buffer.getvalue()] * ROWS, np.arange(ROWS), -np.ones(ROWS, np.int64), image_size=32)
    return path


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("whole") / "set.beton", 10)


def test_a_draw_is_sorted_different_and_part_of_a_larger_one() -> None:
    rows = draw(1000, 300, 0)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert set(rows) < set(draw(1000, 301, 0))
    assert set(rows) != set(draw(1000, 300, 1))
    assert abs(draw(100_000, 10_000, 0).mean() - 50_000) < 1500, "from everywhere"


def test_pretraining_learns_from_these_rows(
    beton: Path, tmp_path: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    out = tmp_path / "few.npy"
    words = ["subset", beton, out, "--share", "0.4", "--seed", "3"]
    result = command(*words)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}: 20 rows of {beton}\n"
    note = json.loads((tmp_path / "few.npy.json").read_text())
    assert note == {"set": read_manifest(beton).sha256, "count": 20, "seed": 3}
    config = DataConfig(path=str(beton), rows=str(out), decoder="pillow", workers=1)
    batches = Batches(config, Ranks(0, 1, 0, 1, torch.device("cpu")), batch_size=20, seed=0).from_step(0)
    assert sorted(next(batches).rows) == np.load(out).tolist() == draw(ROWS, 20, 3).tolist()
    batches.close()

    before = out.stat().st_mtime_ns
    assert command(*words).returncode == 0, "again: nothing to do"
    assert out.stat().st_mtime_ns == before
    other = command(*words[:-1], "4")
    assert other.returncode == 2
    assert "few.npy: holds other rows; give another name, or remove it" in other.stderr


def test_rows_of_another_set_are_refused(beton: Path, tmp_path: Path) -> None:
    out = tmp_path / "few.npy"
    write_subset(beton, out, seed=0, count=10, share=None)
    other = written(tmp_path / "other.beton", 200)
    assert len(Beton(other)) == ROWS, "the numbers alone would fit"
    config = DataConfig(path=str(other), rows=str(out), decoder="pillow", workers=1)
    with pytest.raises(ConfigError, match="drawn from another set"):
        Batches(config, Ranks(0, 1, 0, 1, torch.device("cpu")), batch_size=5, seed=0)


def test_stopped_between_its_two_files_it_is_written_again(beton: Path, tmp_path: Path) -> None:
    out = tmp_path / "few.npy"
    write_subset(beton, out, seed=0, count=10, share=None)
    out.unlink()
    write_subset(beton, out, seed=1, count=10, share=None)
    assert np.load(out).tolist() == draw(ROWS, 10, 1).tolist()
    assert json.loads((tmp_path / "few.npy.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("count", "share", "name", "message"),
    [
        (51, None, "a.npy", "51 rows of 50 cannot be drawn"),
        (0, None, "a.npy", "0 rows of 50"),
        (None, 1.5, "a.npy", "share: 1.5 is not"),
        (None, float("nan"), "a.npy", "share"),
        (5, None, "a.txt", r"ends in \.npy"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    beton: Path, tmp_path: Path, count: int | None, share: float | None, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_subset(beton, tmp_path / name, seed=0, count=count, share=share)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_not_whole_is_refused(beton: Path, tmp_path: Path) -> None:
    (tmp_path / "set.beton").write_bytes(beton.read_bytes())
    with pytest.raises(ConfigError, match=r"set\.json: no such file"):
        write_subset(tmp_path / "set.beton", tmp_path / "few.npy", seed=0, count=5, share=None)


def test_rows_are_chosen_by_their_labels(
    beton: Path, tmp_path: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").symlink_to(beton.with_suffix(suffix))
    split = ["train" if i % 5 else "test" for i in range(ROWS)]
    columns = {
        "split": split,
        "expression": [i % 2 for i in range(ROWS)],
        "glasses": [i < 25 for i in range(ROWS)],
    }
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    own, out = tmp_path / "set.beton", tmp_path / "train.npy"
    words = [
        "subset",
        own,
        out,
        "--where",
        "split=train",
        "--where",
        "expression=1",
        "--where",
        "glasses=True",
    ]
    result = command(*words)
    assert result.returncode == 0, result.stderr
    wanted = [i for i in range(25) if i % 5 and i % 2]
    assert np.load(out).tolist() == wanted
    note = json.loads((tmp_path / "train.npy.json").read_text())
    assert note["where"] == {"split": "train", "expression": "1", "glasses": "True"}
    write_subset(own, tmp_path / "half.npy", seed=0, share=0.5, where={"split": "train"})
    half = np.load(tmp_path / "half.npy")
    assert len(half) == 20
    assert (half % 5).all()
    for where, message in (
        ({"sex": "f"}, r"--where sex: .* has no such label \(known: split, expression, glasses"),
        ({"split": "val"}, r"--where split=val: no row .* \(there are: test, train\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_subset(own, tmp_path / "no.npy", seed=0, where=where)
    assert command("subset", own, tmp_path / "no.npy").returncode == 2
