"""A small labelled set from the real renderer and the real writer, and a backbone that was never trained."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.beton import SourceNote, write_beton
from data_prep.synthetic import SyntheticConfig, portrait
from downstream.protocols import People
from downstream.regimes import Split, make_split
from pretrain import backbones


def hold_out(identities: np.ndarray, data_sha256: str, share: float) -> Split:
    """The split of a set by people, as an evaluation makes it."""
    protocol = People(test_share=share)
    parts = protocol.parts(pa.table({}), identities, len(identities), 0)
    return make_split(parts, data_sha256, protocol.model_dump_json(), 0)


def write_faces(path: Path, *, people: int, pictures: int, identity_start: int = 0) -> Path:
    """``pictures`` portraits of ``people`` as set.beton, set.json and set.parquet."""
    cfg = SyntheticConfig(identity_start=identity_start, identity_count=people, face=(0.6, 0.7), occlusion=0)
    faces, jpegs = [], []
    for index in range(pictures):
        picture = portrait(seed=3, index=index, cfg=cfg)
        buffer = io.BytesIO()
        Image.fromarray(picture.image).save(buffer, "JPEG", quality=95, subsampling=0)
        jpegs.append(buffer.getvalue())
        faces.append(picture.faces[0])
    labels = {
        "face_id": [f"{index}#0" for index in range(pictures)],
        "face_size": [float((face.box[2:] - face.box[:2]).mean()) for face in faces],
        "identity": [int(face.identity) for face in faces],
        "landmarks68": [face.landmarks68.reshape(-1).tolist() for face in faces],
        "shape": [face.shape.tolist() for face in faces],
        "pose": [face.pose.tolist() for face in faces],
        "valence": [float(face.valence) for face in faces],
        "arousal": [float(face.arousal) for face in faces],
        "action_units": [face.action_units.tolist() for face in faces],
    }
    pq.write_table(pa.table(labels), path.with_suffix(".parquet"))
    note = SourceNote(name="faces", kind="synthetic", synthetic=True, images=pictures)
    write_beton(path, jpegs, np.arange(pictures), np.full(pictures, -1), sources=[note])
    return path


@pytest.fixture(scope="session")
def labelled_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 portraits of 24 people."""
    return write_faces(tmp_path_factory.mktemp("labelled") / "set.beton", people=24, pictures=240)


@pytest.fixture(scope="session")
def other_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 portraits of people who are not in ``labelled_set``."""
    path = tmp_path_factory.mktemp("others") / "set.beton"
    return write_faces(path, people=6, pictures=30, identity_start=1000)


def write_backbone(path: Path) -> Path:
    """A quarter-width ResNet-18 in a hand-off file, with random weights."""
    header = {
        "architecture": "resnet18",
        "width": "0.25",
        "image_size": "48",
        "mean": json.dumps([0.5, 0.4, 0.4]),
        "std": json.dumps([0.3, 0.3, 0.3]),
    }
    backbones.save_backbone(path, backbones.random("resnet18", 0.25, seed=11), header)
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See :func:`write_backbone`."""
    return write_backbone(tmp_path_factory.mktemp("backbone") / "backbone.safetensors")
