"""A corpus from its folder to a set, with the real detector."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from data_prep.beton import Beton, read_labels
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.sources.corpus import visible_files
from data_prep.synthetic import SyntheticConfig, portrait

ROOT = Path(__file__).parents[2]


def test_vggface2_from_its_folder_to_a_set(tmp_path: Path) -> None:
    """The second picture has no landmarks, the third no box, the fourth a damaged line, the last is no JPEG."""
    corpus, people = tmp_path / "corpus", (1, 1, 2, 3, 3)
    boxes, points, names = (
        ["NAME_ID,X,Y,W,H"],
        ["NAME_ID," + ",".join(f"P{i}X,P{i}Y" for i in range(1, 6))],
        [],
    )
    for i, person in enumerate(people):
        picture = portrait(0, i, SyntheticConfig(occlusion=0))
        face = picture.faces[0]
        names.append(f"n{person:06d}/{i:04d}_01")
        path = corpus / "train" / f"{names[-1]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.image).save(path, quality=95)
        x0, y0, x1, y1 = face.box.tolist()
        if i != 2:
            boxes.append(
                f'"{names[-1]}",{x0:.0f},{y0:.0f},{x1 - x0:.0f},' + ("?" if i == 3 else f"{y1 - y0:.0f}")
            )
        if i != 1:
            points.append(f'"{names[-1]}",' + ",".join(f"{x:.3f}" for x in face.landmarks5.reshape(-1)))
    (corpus / "train" / f"{names[-1]}.jpg").write_bytes(b"no picture")
    (corpus / "bb_landmark").mkdir()
    (corpus / "bb_landmark/loose_bb_train.csv").write_text("\n".join(boxes) + "\n")
    (corpus / "bb_landmark/loose_landmark_train.csv").write_text("\n".join(points) + "\n")

    given = [f"source.path={corpus}", "source.splits=[train]", f"output={tmp_path / 'set'}", "workers=1"]
    config = configs.load(
        ROOT / "configs/data/vggface2.yaml", [*given, "shard_size=2"], schema=DataPrepConfig
    )
    Pipeline(config).run(STAGES)
    labels = read_labels(tmp_path / "set/set.beton")
    assert labels["identity"].to_pylist() == [1, 1], "without a box nobody is matched"
    assert Beton(tmp_path / "set/set.beton").column("label").tolist() == [1, 1]
    first, second = labels["true_landmarks5"].to_pylist()
    assert second is None
    seen = np.array(labels["landmarks5"].to_pylist()[0])
    assert np.abs(np.array(first) - seen).mean() < 12, "they moved along with the crop"
    summary = json.loads((tmp_path / "set/report/summary.json").read_text())
    assert [(row["what"], row["listed"], row["usable"], row["missing"]) for row in summary["published"]] == [
        ("pictures of train", 5, 3, 3_141_887),
        ("people of train", 3, 2, 8_629),
    ]
    assert "<td>pictures of train</td>" in (tmp_path / "set/report/index.html").read_text()
    quarantine = (tmp_path / "set/quarantine.json").read_text()
    assert "loose_bb_train.csv:4: not NAME_ID,X,Y,W,H" in quarantine
    assert "n000003/0004_01.jpg" in quarantine

    alone = [*given[:2], f"output={tmp_path / 'alone'}", "workers=1", "keep.rule=largest_central"]
    (corpus / "bb_landmark/loose_bb_train.csv").unlink()
    config = configs.load(ROOT / "configs/data/vggface2.yaml", alone, schema=DataPrepConfig)
    Pipeline(config).run(STAGES[:-1])
    labels = read_labels(tmp_path / "alone/set.beton")
    assert labels["identity"].to_pylist() == [1, 1, 2, 3], "a picture's label is its subject's"


def test_a_name_that_is_no_utf8_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (b"a.jpg", b"caf\xe9.jpg", b".hidden.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert [entry.name for entry in visible_files(tmp_path)] == ["a.jpg"]
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["caf\\xe9.jpg"]
