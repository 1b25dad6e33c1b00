"""The search for near-duplicates equals brute force; copies of pictures are found in the hashes of their crops."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import ConfigError
from data_prep import duplicates
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels
from data_prep.duplicates import copies, distinct, groups, near_pairs, nearest, repeats
from data_prep.images import difference_hashes
from data_prep.pipeline import STAGES, Pipeline
from data_prep.tables import read_shard

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def clouds(seed: int, count: int = 700) -> np.ndarray:
    """(count, 2) hashes: copies of some with up to six bits flipped, flat ones, equal ones, and some with one half
    in common.
    """
    generator = np.random.default_rng(seed)
    middles = generator.integers(0, 2**64, (count // 4, 2), np.uint64, endpoint=False)
    middles[::5, 0] = middles[0, 0]
    middles[:10] = 0
    hashes = middles[generator.integers(0, len(middles), count)]
    for _ in range(6):
        flip = np.uint64(1) << generator.integers(0, 64, hashes.shape, np.uint64)
        hashes ^= np.where(generator.random(hashes.shape) < 0.5, flip, np.uint64(0))
    hashes[-50:] = hashes[:50]
    return hashes


def brute_force(a: np.ndarray, b: np.ndarray, bits: int) -> np.ndarray:
    """(len(a), len(b)) near? By counting the digits of each pair in Python."""
    near = np.zeros((len(a), len(b)), bool)
    for i, (across, down) in enumerate(a.tolist()):
        for j, (other_across, other_down) in enumerate(b.tolist()):
            near[i, j] = (
                bin(across ^ other_across).count("1") <= bits and bin(down ^ other_down).count("1") <= bits
            )
    return near


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 8, 16])
def test_pairs_are_those_of_brute_force(bits: int) -> None:
    hashes = clouds(bits, 500)
    hashes = hashes[distinct(hashes)[0]]
    wanted = np.argwhere(np.triu(brute_force(hashes, hashes, bits), 1))
    np.testing.assert_array_equal(near_pairs(hashes, bits), wanted)
    assert len(wanted) > 0 or bits < 3


def test_distinct_rows_keep_their_order() -> None:
    hashes = clouds(1)
    firsts, position = distinct(hashes)
    np.testing.assert_array_equal(hashes[firsts][position], hashes)
    rows = [tuple(row) for row in hashes.tolist()]
    assert firsts.tolist() == [i for i, row in enumerate(rows) if rows.index(row) == i]
    assert [part.shape for part in distinct(hashes[:0])] == [(0,), (0,)]


def test_groups_are_what_chains_of_pairs_join() -> None:
    hashes = clouds(2, 400)
    near = brute_force(hashes, hashes, 4)
    reached = near
    while (further := (reached @ reached) > 0).sum() > reached.sum():
        reached = further
    np.testing.assert_array_equal(groups(hashes, 4), reached.argmax(axis=1))
    assert len(set(reached.argmax(axis=1).tolist())) < 340


def test_each_repeat_is_near_a_row_before_it_that_stays() -> None:
    hashes = clouds(3, 400)
    near = brute_force(hashes, hashes, 4)
    gone = np.zeros(len(hashes), bool)
    for row in range(len(hashes)):
        gone[row] = (near[row, :row] & ~gone[:row]).any()
    np.testing.assert_array_equal(repeats(hashes, 4), gone)
    assert 50 < gone.sum() < 390


def test_the_nearest_row_of_another_set() -> None:
    hashes = clouds(4, 600)
    mine, theirs = hashes[:250], hashes[250:]
    near = brute_force(mine, theirs, 5)
    apart = np.bitwise_count(mine[:, None] ^ theirs[None]).sum(-1).astype(int)
    wanted = np.where(near, apart, 1000)
    match, distance = nearest(mine, theirs, 5)
    assert near.any(axis=1).sum() > 50
    np.testing.assert_array_equal(match >= 0, near.any(axis=1))
    found = match >= 0
    np.testing.assert_array_equal(match[found], wanted.argmin(axis=1)[found])
    np.testing.assert_array_equal(distance[found], wanted.min(axis=1)[found])
    assert (nearest(mine, theirs[:0], 5)[0] == -1).all()


def test_copies_of_a_file_but_not_faces_of_one_picture() -> None:
    sha256 = np.array([5, 5, 7, 5, 7, 9])
    picture = np.array([0, 0, 1, 2, 1, 3])
    assert copies(sha256, picture).tolist() == [False, False, False, True, False, False]


def test_many_equal_and_flat_hashes_are_no_burden() -> None:
    """A third of 300,000 hashes is equal, a third has all but a few bits in common: pairs of all are 45 billion."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, (300_000, 2), np.uint64, endpoint=False)
    hashes[:100_000] = 0
    hashes[100_000:200_000, 0] &= np.uint64(0xFF)
    first = groups(hashes, 4)
    assert (first[:100_000] == 0).all()
    assert len(np.unique(first)) > 190_000


def test_hashes_that_say_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100_000)
    hashes = np.stack([np.zeros(1000, np.uint64), np.arange(1000, dtype=np.uint64)], axis=1)
    with pytest.raises(ConfigError, match="take fewer bits"):
        near_pairs(hashes, 10)


# --- pictures ------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_a_copy_is_near_in_both_directions_and_a_mirrored_picture_is_not(astronaut: Image.Image) -> None:
    def apart(other: Image.Image) -> list[int]:
        both = zip(difference_hashes(astronaut), difference_hashes(other), strict=True)
        return [(a ^ b).bit_count() for a, b in both]

    assert max(apart(jpeg(astronaut, 40))) <= 4
    assert max(apart(astronaut.resize((250, 250)))) <= 4
    assert apart(astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0] > 16
    assert apart(astronaut.transpose(Image.Transpose.FLIP_TOP_BOTTOM))[1] > 16


def test_hashes_are_those_of_a_slow_definition(astronaut: Image.Image) -> None:
    grey = np.asarray(astronaut.convert("L"), np.float64)[:504, :504]
    across = grey.reshape(8, 63, 9, 56).mean((1, 3))
    down = grey.reshape(9, 56, 8, 63).mean((1, 3))
    wanted = [
        "".join("01"[int(bit)] for bit in (cells.reshape(-1)))
        for cells in (across[:, :-1] > across[:, 1:], down[:-1] > down[1:])
    ]
    for number, bits in zip(difference_hashes(astronaut.crop((0, 0, 504, 504))), wanted, strict=True):
        # cells are rounded to whole grey levels before they are compared: ties may fall either way
        assert (number ^ int(bits, 2)).bit_count() <= 2


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, t1: bytes, astronaut: Image.Image) -> tuple[Path, Path]:
    """A: t1 (six faces) and the astronaut. B: t1 as the same file, the astronaut cut and compressed anew, another
    person."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / f"group_{name}.jpg").write_bytes(t1)
    astronaut.save(folder / "a" / "astronaut.png")
    astronaut.crop((4, 0, 508, 500)).save(folder / "b" / "cut.jpg", quality=85)
    Image.open(io.BytesIO(t1)).crop((0, 0, 420, 500)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        folder / "b" / "mirrored.png"
    )
    for name in ("a", "b"):
        output = folder / f"run_{name}"
        Pipeline(load_config(str(folder / name), [f"output={output}", "workers=1"])).run(STAGES)
    return folder / "run_a", folder / "run_b"


def test_the_set_has_the_hashes_of_its_crops_and_of_their_files(sets: tuple[Path, Path]) -> None:
    a, _ = sets
    labels, beton = read_labels(a / "set.beton"), Beton(a / "set.beton")
    pictures = {row["image_id"]: row for row in read_shard(a / "images", 0).to_pylist()}
    for i, row in enumerate(labels.to_pylist()):
        assert row["picture_sha256"] == pictures[row["image_id"]]["sha256"]
        stored = difference_hashes(Image.fromarray(beton.image(i)))
        for name, number in zip(("dhash", "dhash_down"), stored, strict=True):
            assert (number ^ row[name]).bit_count() <= 2, "the JPEG may have tipped a tie"


@pytest.mark.parametrize("alone", [False, True])
def test_what_two_sets_share(alone: bool, sets: tuple[Path, Path], command: Command, tmp_path: Path) -> None:
    """``alone``: the set was copied away from the tables of its run."""
    a, b = sets
    if alone:
        a = tmp_path / "copied"
        a.mkdir()
        for name in ("set.beton", "set.parquet", "set.json"):
            (a / name).write_bytes((sets[0] / name).read_bytes())
        a = a / "set.beton"
    result = command("compare", a, b, f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == f"report: {tmp_path / 'out' / 'index.html'}"
    assert ("by SHA-256 only" in result.stdout) == alone
    assert "Identities: not compared" in result.stdout
    with open(tmp_path / "out" / "matches.csv") as file:
        rows = list(csv.DictReader(file))
    first = [row for row in rows if row["in"] == "run_b"]
    pictures = {row["id"]: (row["match"], row["most_like"]) for row in first if row["what"] == "picture"}
    assert pictures["group_a.jpg"] == ("exact", "group_b.jpg")
    crops = {row["id"]: row for row in first if row["what"] == "crop"}
    assert {name for name in crops if name.startswith("group")} == {f"group_a.jpg#{i}" for i in range(6)}
    assert all(crops[f"group_a.jpg#{i}"]["most_like"] == f"group_b.jpg#{i}" for i in range(6))
    assert crops["astronaut.png#0"]["most_like"] == "cut.jpg#0"
    assert crops["astronaut.png#0"]["match"] == "near"
    assert not [row for row in rows if "mirrored" in row["id"]]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('alt="crop"') == 14


def test_compare_names_what_is_missing(command: Command, tmp_path: Path, sets: tuple[Path, Path]) -> None:
    result = command("compare", sets[0], tmp_path)
    assert result.returncode == 2
    assert f"B={tmp_path}: {tmp_path / 'set.beton'} does not exist" in result.stderr
