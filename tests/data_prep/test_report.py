"""The figures of the report, against the truth of rendered faces and against the tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from data_prep.__main__ import load_config
from data_prep.config import DataPrepConfig
from data_prep.pipeline import STAGES, Pipeline
from data_prep.summary import YAW_EDGES, yaw_proxy
from data_prep.synthetic import SyntheticConfig, portrait
from data_prep.tables import array_of, read_shard

SYNTHETIC = Path(configs.__file__).parent / "data" / "synthetic_portraits.yaml"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "run"
    words = [f"output={output}", "source.count=24", "shard_size=8", "workers=1", "detect.batch=8"]
    Pipeline(configs.load(SYNTHETIC, words, schema=DataPrepConfig)).run(STAGES)
    return output


def test_the_proxy_follows_the_yaw_of_rendered_heads() -> None:
    """Sign, order and a head that looks straight ahead."""
    faces = [portrait(0, i, SyntheticConfig(yaw=60.0, occlusion=0.0)).faces[0] for i in range(80)]
    yaw = np.array([face.pose[0] for face in faces])
    proxy = yaw_proxy(np.array([face.landmarks5.reshape(10) for face in faces]))
    turned = np.abs(yaw) > 10
    assert turned.sum() > 40
    np.testing.assert_array_equal(np.sign(proxy[turned]), np.sign(yaw[turned]))
    assert np.corrcoef(proxy, yaw)[0, 1] > 0.95


def test_the_proxy_turns_and_grows_with_the_picture_not() -> None:
    points = np.array([[30, 40], [70, 40], [60, 60], [35, 80], [65, 80]], np.float32)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]], np.float32)
    proxy = yaw_proxy(np.stack([points.reshape(10), (3 * points @ turn + 7).reshape(10)]))
    np.testing.assert_allclose(proxy, 0.25, atol=1e-6)
    assert np.isfinite(yaw_proxy(np.zeros((1, 10), np.float32))).all()


def test_the_histogram_of_detected_faces_is_that_of_the_tables(output: Path) -> None:
    summary = json.loads((output / "report" / "summary.json").read_text())
    proxies, kept, truth = [], [], []
    for number in range(3):
        faces = read_shard(output / "faces", number)
        images = {row["image_id"]: row for row in read_shard(output / "images", number).to_pylist()}
        proxies += yaw_proxy(array_of(faces["landmarks5"])).tolist()
        kept += faces["kept"].to_pylist()
        truth += [images[name]["annotations"][0]["pose"][0] for name in faces["image_id"].to_pylist()]
    counts = np.histogram(np.clip(proxies, -1.5, 1.5), YAW_EDGES)[0]
    shown = summary["yaw"]
    assert (np.array(shown["kept"]) + shown["rejected"]).tolist() == counts.tolist()
    assert sum(shown["kept"]) == sum(kept) > 20
    assert np.corrcoef(proxies, truth)[0, 1] > 0.8, "the detector's landmarks say it too"


def test_where_the_time_went(output: Path) -> None:
    summary = json.loads((output / "report" / "summary.json").read_text())
    shares = {name: stage["shares"] for name, stage in summary["throughput"].items()}
    assert [*shares] == [*summary["seconds"]] == ["list", "detect", "crop", "write"]
    assert {name: set(parts) for name, parts in shares.items()} == {
        "list": {"read", "decode"},
        "detect": {"read", "decode", "network"},
        "crop": {"read", "decode", "crop", "encode"},
        "write": set(),
    }
    assert all(0 <= share <= 1 for parts in shares.values() for share in parts.values())
    assert all(0 < sum(parts.values()) <= 1 for name, parts in shares.items() if name != "write")
    for name, seconds in summary["seconds"].items():
        rate = summary["throughput"][name]["pictures_per_second"]
        assert rate * seconds == pytest.approx(24, rel=0.2, abs=0.01 * rate)
    marks = [json.loads(path.read_text()) for path in (output / "faces").glob("*.json")]
    assert len(marks) == 3
    assert all(mark["timings"]["network"] <= mark["seconds"] for mark in marks)


def test_pages_without_a_face_or_a_duplicate_are_drawn_too(tmp_path: Path, astronaut: Image.Image) -> None:
    """One shard has no face at all."""
    (tmp_path / "pictures").mkdir()
    astronaut.save(tmp_path / "pictures" / "a.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "pictures" / "b.png")
    words = [f"output={tmp_path / 'run'}", "shard_size=1", "workers=1"]
    Pipeline(load_config(str(tmp_path / "pictures"), words)).run(STAGES)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "None is left out" in page
    assert page.count("<svg") == 3
    assert 'alt="near-duplicate"' not in page
