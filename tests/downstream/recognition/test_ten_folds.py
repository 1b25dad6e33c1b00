"""Packed sets of real photographs of people, against the ten-fold protocol written out from its words."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import KFold
from torch.nn import functional

from configs import load
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_labels
from data_prep.pipeline import STAGES, Pipeline
from downstream.recognition.config import VerifyConfig
from downstream.recognition.pairs import read_bin
from downstream.recognition.verify import verify
from pretrain import backbones

Float = NDArray[np.float64]


@pytest.fixture(scope="module")
def johns(dlib: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], NDArray[np.int64]]:
    """55 JPEGs of 112 x 112 px, aligned by the five landmarks found in them, and who is in each: 5 people."""
    output = tmp_path_factory.mktemp("johns")
    options = ["source.identity_from=folder", "keep.rule=largest_central", "crop.mode=align5", "workers=1"]
    Pipeline(load_config(str(dlib / "johns"), [f"output={output}", *options])).run(STAGES)
    beton = Beton(output / "set.beton")
    people = read_labels(output / "set.beton")["identity"].to_numpy()
    assert np.bincount(people).tolist() == [11] * 5
    return [bytes(beton.jpeg(row)) for row in range(len(beton))], people


def draw(people: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], list[bool]]:
    """(count, 2) rows, and whether they are one person: by turns."""
    pairs = np.random.default_rng(3).permutation(list(itertools.combinations(range(len(people)), 2)))
    same = people[pairs[:, 0]] == people[pairs[:, 1]]
    chosen = np.empty((count, 2), np.int64)
    chosen[::2], chosen[1::2] = pairs[same][: -(-count // 2)], pairs[~same][: count // 2]
    return chosen, [number % 2 == 0 for number in range(count)]


# --- the layouts -----------------------------------------------------------------------------------------------


def as_bytes(files: list[bytes], same: list[bool]) -> bytes:
    """What insightface's lfw2pack writes in Python 3."""
    return pickle.dumps((files, same), protocol=pickle.HIGHEST_PROTOCOL)


def as_column_arrays(files: list[bytes], same: list[bool]) -> bytes:
    """What its other packers write: OpenCV's encoder gave (n, 1) arrays."""
    return pickle.dumps(([np.frombuffer(file, np.uint8)[:, None] for file in files], same), protocol=4)


def python2_text(value: bytes) -> bytes:
    """SHORT_BINSTRING or BINSTRING, Python 2's ``str``."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + number(len(value)) + value


def number(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def as_python_2_arrays(files: list[bytes], same: list[bool]) -> bytes:
    """(n, 1) uint8 arrays as Python 2 with protocol 2 and the numpy of its day spelt them, opcode by opcode."""
    kind = b"cnumpy\ndtype\n(" + python2_text(b"u1") + b"K\x00K\x01tR"
    kind += b"(K\x03" + python2_text(b"|") + b"NNN" + 2 * (b"J" + number(-1)) + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + python2_text(b"b") + b"tR"
    arrays = [
        empty + b"(K\x01J" + number(len(file)) + b"K\x01\x86" + kind + b"\x89" + python2_text(file) + b"tb"
        for file in files
    ]
    flags = b"".join(b"\x88" if one else b"\x89" for one in same)
    return b"\x80\x02](" + b"".join(arrays) + b"e](" + flags + b"e\x86."


def as_python_2_texts(files: list[bytes], same: list[bool]) -> bytes:
    flags = b"".join(b"\x88" if one else b"\x89" for one in same)
    return b"\x80\x02](" + b"".join(python2_text(file) for file in files) + b"e](" + flags + b"e\x86."


# --- the protocol ----------------------------------------------------------------------------------------------


def embeddings(files: list[bytes], backbone: Path, seed: int) -> Float:
    """(N, D) unit vectors: the network's features of a picture plus those of its mirror image."""
    _, header = backbones.load(backbone)
    network = backbones.random("resnet18", 0.25, seed).eval()
    mean, std = (torch.tensor(json.loads(header[name])).view(3, 1, 1) for name in ("mean", "std"))
    vectors = []
    for file in files:
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(file)))).permute(2, 0, 1)[None].float()
        small = functional.interpolate(picture, (48, 48), mode="bilinear", antialias=True).round()
        with torch.inference_mode():
            both = [network((view / 255 - mean) / std) for view in (small, small.flip(-1))]
        vectors.append((both[0] + both[1])[0].double().numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


def ten_folds(left: Float, right: Float, same: list[bool]) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy, %.

    The pairs are cut into ten runs. For each, the threshold of 0, .01, ... 3.99 of the squared distance that tells
    most pairs of the nine others rightly, the first of several, is applied to it.
    """
    truth = np.array(same)
    distance = np.array([((a - b) ** 2).sum() for a, b in zip(left, right, strict=True)])
    accuracies = []
    for nine, one in KFold(n_splits=10, shuffle=False).split(distance):
        scores = [np.mean((distance[nine] < t) == truth[nine]) for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(scores))]
        accuracies.append(np.mean((distance[one] < threshold) == truth[one]))
    return 100 * float(np.mean(accuracies)), 100 * float(np.std(accuracies))


FORMS = [as_bytes, as_column_arrays, as_python_2_arrays, as_python_2_texts]


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_the_layouts_are_what_pickle_and_numpy_read(
    form: Callable[[list[bytes], list[bool]], bytes],
    johns: tuple[list[bytes], NDArray[np.int64]],
    tmp_path: Path,
) -> None:
    """Our own reader, and the unrestricted one that insightface opens these files with."""
    files, same = johns[0][:4], [True, False]
    content = form(files, same)
    pictures, flags = pickle.loads(content, encoding="bytes")
    assert [bytes(np.asarray(p).tobytes()) if not isinstance(p, bytes) else p for p in pictures] == files
    assert isinstance(pictures[0], bytes) or pictures[0].shape == (len(files[0]), 1)
    assert list(flags) == same
    (tmp_path / "set.bin").write_bytes(content)
    found, read = read_bin(tmp_path / "set.bin")
    assert (read, found.same.tolist()) == (files, same)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [10, 203])
def test_verification_is_the_protocol(
    form: Callable[[list[bytes], list[bool]], bytes],
    count: int,
    johns: tuple[list[bytes], NDArray[np.int64]],
    backbone: Path,
    tmp_path: Path,
) -> None:
    """Ten pairs of twenty pictures, as in the sample that insightface ships; and 203, which ten does not divide."""
    chosen, same = draw(johns[1], count)
    files = [johns[0][row] for row in chosen.reshape(-1)]
    (tmp_path / "johns.bin").write_bytes(form(files, same))
    rows = [
        {"kind": "random", "name": str(seed), "like": str(backbone), "seed": seed}
        for seed in range(3 if form is as_bytes else 1)
    ]
    sets = [{"kind": "bin", "name": "johns", "path": str(tmp_path / "johns.bin")}]
    (tmp_path / "verify.yaml").write_text(
        json.dumps({"output": str(tmp_path / "out"), "initialisations": rows, "sets": sets})
    )
    found = verify(load(tmp_path / "verify.yaml", schema=VerifyConfig)).results
    assert len(found) == len(rows)
    for seed, cell in enumerate(found):
        vectors = embeddings(johns[0], backbone, seed)
        accuracy, deviation = ten_folds(vectors[chosen[:, 0]], vectors[chosen[:, 1]], same)
        assert cell.pairs == count
        assert cell.accuracy == pytest.approx(accuracy, abs=1e-4)
        assert cell.accuracy_std == pytest.approx(deviation, abs=1e-4)
