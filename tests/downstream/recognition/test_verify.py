"""Backbones on verification sets, from the command line, against the protocols computed directly."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from configs import ConfigError, load
from data_prep.beton import Beton
from downstream.recognition.config import VerifyConfig
from downstream.recognition.verify import VerificationResults, verify
from pretrain import backbones

PAIRS = 100


@pytest.fixture(scope="module")
def faces(labelled_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``labelled_set`` with the names and scores that the data preparation gives, one picture left out."""
    folder = tmp_path_factory.mktemp("faces")
    table = pq.read_table(labelled_set.with_suffix(".parquet"))
    names = [f"P{person}/P{person}_{row:04d}.jpg" for row, person in enumerate(table["identity"].to_pylist())]
    scores = np.linspace(0.6, 1, len(names)).astype(np.float32)
    table = table.append_column("image_id", pa.array(names)).append_column("score", pa.array(scores))
    pq.write_table(table, folder / "set.parquet")
    for suffix in (".beton", ".json"):
        (folder / f"set{suffix}").symlink_to(labelled_set.with_suffix(suffix))
    return folder / "set.beton"


def draw(identities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (PAIRS,), (PAIRS,), and whether they are one person: half and half in each tenth."""
    rng = np.random.default_rng(5)
    left, right, same = [], [], []
    while len(left) < PAIRS:
        a, b = rng.integers(0, len(identities), 2).tolist()
        wanted = len(left) % 2 == 0
        if a != b and (identities[a] == identities[b]) == wanted:
            left.append(a)
            right.append(b)
            same.append(wanted)
    return np.array(left), np.array(right), np.array(same)


@pytest.fixture(scope="module")
def drawn(faces: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(pq.read_table(faces.with_suffix(".parquet"))["identity"].to_numpy())


@pytest.fixture(scope="module")
def config(
    faces: Path, drawn: tuple[np.ndarray, ...], backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same pairs as a .bin and as LFW's list."""
    folder = tmp_path_factory.mktemp("verify")
    left, right, same = drawn
    beton = Beton(faces)
    files = [beton.jpeg(int(row)) for pair in zip(left, right, strict=True) for row in pair]
    (folder / "small.bin").write_bytes(pickle.dumps((files, same.tolist())))
    names = pq.read_table(faces.with_suffix(".parquet"))["image_id"].to_pylist()
    # LFW's list has the pairs of one person first in each fold.
    lines = ["10\t5"]
    for fold in range(10):
        tenth = np.arange(fold * 10, fold * 10 + 10)
        for pair in [*tenth[same[tenth]], *tenth[~same[tenth]]]:
            (a, i), (b, j) = (
                (names[row].split("/")[0], names[row][-8:-4]) for row in (left[pair], right[pair])
            )
            lines.append("\t".join([a, i, j] if a == b else [a, i, b, j]))
    (folder / "pairs.txt").write_text("\n".join(lines))
    path = folder / "verify.yaml"
    path.write_text(
        json.dumps(
            {
                "output": str(folder / "out"),
                "initialisations": [
                    {"kind": "random", "name": "random", "like": str(backbone)},
                    {"kind": "pixels", "name": "pixels", "size": 16},
                ],
                "sets": [
                    {"kind": "bin", "name": "packed", "path": str(folder / "small.bin")},
                    {"kind": "lfw", "name": "listed", "pairs": str(folder / "pairs.txt"), "data": str(faces)},
                ],
                "fars": [0.01, 0.1],
            }
        )
    )
    return path


def features(faces: Path, rows: np.ndarray, backbone: Path) -> np.ndarray:
    """The random network's features of the pictures plus those of their mirror images, as plainly as can be."""
    _, header = backbones.load(backbone)
    module = backbones.random("resnet18", 0.25, 0).eval()
    beton, found = Beton(faces), []
    mean, std = (torch.tensor(json.loads(header[name])).view(3, 1, 1) for name in ("mean", "std"))
    for row in rows:
        picture = torch.from_numpy(beton.image(int(row)).copy()).permute(2, 0, 1)[None].float()
        small = (
            functional.interpolate(picture, (48, 48), mode="bilinear", antialias=True).round().clamp(0, 255)
        )
        with torch.inference_mode():
            both = [module((view / 255 - mean) / std) for view in (small, small.flip(-1))]
        found.append((both[0] + both[1])[0].double().numpy())
    return np.stack(found)


def test_from_the_command_line(
    config: Path, faces: Path, drawn: tuple[np.ndarray, ...], backbone: Path
) -> None:
    command = [sys.executable, "-m", "downstream", "verify", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| packed | random" in " ".join(done.stdout.split())
    out = config.parent / "out"
    assert done.stdout.splitlines()[-1] == f"{out}/verification.json"
    found = VerificationResults.model_validate_json((out / "verification.json").read_bytes())
    cells = {(cell.set, cell.row): cell for cell in found.results}
    assert set(cells) == {(s, r) for s in ("packed", "listed") for r in ("random", "pixels")}
    assert (out / "verification.md").read_text() in done.stdout
    assert (out / "roc.svg").read_text().startswith("<?xml")

    left, right, same = drawn
    a, b = features(faces, left, backbone), features(faces, right, backbone)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    for name in ("packed", "listed"):  # the same pairs, another order inside the folds
        cell = cells[name, "random"]
        assert (cell.pairs, cell.missing) == (PAIRS, 0)
        assert cell.auc == pytest.approx(100 * roc_auc_score(same, cosine), abs=0.05)
    assert cells["packed", "random"].accuracy == pytest.approx(cells["listed", "random"].accuracy, abs=1e-3)
    assert cells["packed", "pixels"].auc == pytest.approx(cells["listed", "pixels"].auc, abs=1e-3)

    before = (out / "verification.json").stat().st_mtime_ns
    assert verify(load(config, schema=VerifyConfig)) == found
    assert (out / "verification.json").stat().st_mtime_ns == before


def test_a_picture_without_a_face_counts_as_another_person(config: Path, tmp_path: Path, faces: Path) -> None:
    cfg = load(config, [f"output={tmp_path}"], schema=VerifyConfig)
    whole = verify(cfg).results[3]
    listed = cfg.sets[1]
    lines = Path(listed.pairs).read_text().splitlines()  # type: ignore[union-attr]
    name, _, j = lines[1].split()
    lines[1] = f"{name}\t9999\t{j}"
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    other = listed.model_copy(update={"pairs": tmp_path / "pairs.txt"})
    cfg = cfg.model_copy(update={"output": str(tmp_path / "out"), "sets": (other,)})
    cell = verify(cfg).results[1]
    assert cell.missing == 1
    assert cell.tar["0.1"] <= whole.tar["0.1"]
    assert "1 pictures are missing" in (tmp_path / "out" / "verification.md").read_text()


def test_templates(faces: Path, config: Path, tmp_path: Path) -> None:
    table = pq.read_table(faces.with_suffix(".parquet"))
    names, people = table["image_id"].to_pylist(), table["identity"].to_numpy()
    # Two templates a person, of two media each; and all pairs of them.
    template = np.empty(len(names), int)
    for person in np.unique(people):
        own = np.flatnonzero(people == person)
        template[own] = 2 * person + (np.arange(len(own)) % 2)
    media = np.arange(len(names)) % 3
    (tmp_path / "face.txt").write_text(
        "".join(f"{n} {t} {m}\n" for n, t, m in zip(names, template, media, strict=True))
    )
    numbers = np.unique(template)
    left, right = (side.reshape(-1) for side in np.meshgrid(numbers, numbers))
    keep = left < right
    left, right = left[keep], right[keep]
    same = left // 2 == right // 2
    (tmp_path / "pair.txt").write_text(
        "".join(f"{a} {b} {int(s)}\n" for a, b, s in zip(left, right, same, strict=True))
    )
    ijb = {"kind": "ijb", "name": "ijb", "faces": f"{tmp_path}/face.txt", "pairs": f"{tmp_path}/pair.txt"}
    sets = json.dumps([ijb | {"data": str(faces)}])
    cfg = load(config, [f"output={tmp_path / 'out'}", f"sets={sets}"], schema=VerifyConfig)
    cell = verify(cfg).results[1]
    assert cell.accuracy is None
    assert cell.pairs == len(left)

    beton, pooled = Beton(faces), {}
    small = [
        functional.interpolate(
            torch.from_numpy(beton.image(row).copy()).permute(2, 0, 1)[None].float(),
            (16, 16),
            mode="bilinear",
            antialias=True,
        ).round()
        for row in range(len(names))
    ]
    vectors = np.stack([((x + x.flip(-1)) / 255).flatten().double().numpy() for x in small])
    vectors *= table["score"].to_numpy()[:, None]
    for number in numbers:
        own = template == number
        pooled[number] = sum(vectors[own & (media == m)].mean(0) for m in np.unique(media[own]))
        pooled[number] /= np.linalg.norm(pooled[number])
    cosine = [float(pooled[a] @ pooled[b]) for a, b in zip(left, right, strict=True)]
    assert cell.auc == pytest.approx(100 * roc_auc_score(same, cosine), abs=1e-3)

    # A picture that is missing counts for nothing in its medium; a template without any is nobody.
    lost = numbers[0]
    lines = (tmp_path / "face.txt").read_text().splitlines()
    lines = [f"gone_{line}" if f" {lost} " in line else line for line in lines]
    lines.append(f"gone.jpg {numbers[1]} {media[template == numbers[1]][0]}")
    (tmp_path / "face.txt").write_text("\n".join(lines))
    missing = verify(cfg).results[1]
    cosine = np.where((left == lost) | (right == lost), -1.0, cosine)
    assert missing.auc == pytest.approx(100 * roc_auc_score(same, cosine), abs=1e-3)
    assert missing.missing == (template == lost).sum() + 1

    (tmp_path / "pair.txt").write_text("0 1 1\n0 9999 0\n")
    with pytest.raises(ConfigError, match=r"pair\.txt, line 2: template 9999 has no face"):
        verify(cfg)
    (tmp_path / "pair.txt").write_text("0 1 one\n")
    with pytest.raises(ConfigError, match=r"pair\.txt: expected lines of left, right, same"):
        verify(cfg)


def test_a_network_that_gives_nan_is_refused(config: Path, backbone: Path, tmp_path: Path) -> None:
    module, header = backbones.load(backbone)
    with torch.no_grad():
        module.conv1.weight.fill_(float("nan"))
    backbones.save_backbone(tmp_path / "broken.safetensors", module, header)
    rows = json.dumps([{"kind": "checkpoint", "name": "broken", "path": f"{tmp_path}/broken.safetensors"}])
    cfg = load(config, [f"output={tmp_path / 'out'}", f"initialisations={rows}"], schema=VerifyConfig)
    with pytest.raises(ConfigError, match="not finite"):
        verify(cfg)
    assert not list((tmp_path / "out").iterdir())


def test_pictures_of_another_dataset_are_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1\t1\nNobody\t1\t2\nNobody\t1\tNone\t1\n")
    cfg = load(config, [f"output={tmp_path / 'out'}"], schema=VerifyConfig)
    other = cfg.sets[1].model_copy(update={"pairs": tmp_path / "pairs.txt"})
    with pytest.raises(
        ConfigError, match=r"has none of the 3 pictures, for example 'Nobody/Nobody_0001\.jpg'"
    ):
        verify(cfg.model_copy(update={"sets": (other,)}))


def test_a_picture_in_the_bin_that_cannot_be_decoded_is_named(config: Path, tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.new("RGB", (112, 112)).save(good, "JPEG")
    files = [good.getvalue(), good.getvalue()[:200], good.getvalue(), good.getvalue()]
    (tmp_path / "bad.bin").write_bytes(pickle.dumps((files, [True, False])))
    sets = json.dumps([{"kind": "bin", "name": "bad", "path": f"{tmp_path}/bad.bin"}])
    cfg = load(config, [f"output={tmp_path / 'out'}", f"sets={sets}"], schema=VerifyConfig)
    with pytest.raises(ConfigError, match=r"bad\.bin: picture 1 cannot be decoded"):
        verify(cfg)
