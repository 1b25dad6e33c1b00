"""resize=retinaface against retina-face's own ``detect_faces``: same pictures, same weights.

The real weights cannot be had here, so they are drawn; a threshold that lets hundreds of anchors pass takes the place
of faces. What is compared is everything around the network: scaling, anchors, decoding, clipping, suppression.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "pytorch")  # which the package reads when it is imported
from retinaface import RetinaFace as Package
from retinaface.model.retinaface_pth_model import RetinaFace as PackageNetwork

from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.detector import Detections, RetinaFace, build
from data_prep.pipeline import Pipeline
from data_prep.prepare import resize_like_package
from data_prep.retinaface_resnet50 import ResNet50RetinaFace
from data_prep.synthetic import SyntheticConfig, photograph
from data_prep.tables import array_of, read_shard

LEAST = 100
"""Boxes that must remain for a comparison to count."""


@pytest.fixture(scope="module")
def network() -> PackageNetwork:
    torch.manual_seed(0)
    return PackageNetwork().eval()


@pytest.fixture(scope="module")
def weights(network: PackageNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "retinaface.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(t1_image: Image.Image, astronaut: Image.Image) -> dict[str, Image.Image]:
    return {
        "square": astronaut.crop((130, 20, 330, 220)),
        "tall": t1_image.crop((400, 200, 560, 520)),
        "long": Image.fromarray(photograph(0, 1, SyntheticConfig(mode="photograph")).image).resize((400, 50)),
        "too long": t1_image.resize((2400, 260)),
    }


def passing(network: PackageNetwork, pixels: np.ndarray, anchors: int) -> float:
    """A threshold that ``anchors`` of the picture's scores pass, halfway to the next."""
    with torch.inference_mode():
        maps = network(torch.from_numpy(pixels[None].astype(np.float32)))
    scores = torch.cat([scores[..., 2:].flatten() for scores in maps[0::3]]).sort(descending=True).values
    return float(scores[anchors - 1 : anchors + 1].mean())


def package_faces(
    network: PackageNetwork, picture: Image.Image, threshold: float, allow_upscaling: bool
) -> list[dict[str, Any]]:
    """What the package finds; it takes BGR."""
    bgr = np.asarray(picture)[:, :, ::-1]
    found = Package.detect_faces(bgr, threshold, model=network, allow_upscaling=allow_upscaling)
    return list(found.values())


def assert_same(
    boxes: np.ndarray, scores: np.ndarray, points: np.ndarray, package: list[dict[str, Any]]
) -> None:
    """One to one: each of ours has one of theirs within 1 px (theirs are cut to whole pixels) and 1e-3 of score."""
    assert len(package) == len(scores) >= LEAST
    names = ("right_eye", "left_eye", "nose", "mouth_right", "mouth_left")
    areas = np.array([face["facial_area"] for face in package])
    landmarks = np.array([[face["landmarks"][name] for name in names] for face in package]).reshape(-1, 10)
    theirs = np.concatenate([areas, landmarks, [[1000 * face["score"]] for face in package]], axis=1)
    ours = np.concatenate([np.floor(boxes), points.reshape(-1, 10), 1000 * scores[:, None]], axis=1)
    distance = np.abs(ours[:, None] - theirs[None]).max(-1)  # 1 is 1 px, or 1e-3 of score
    match = distance.argmin(1)
    assert len(set(match.tolist())) == len(ours)
    assert distance[np.arange(len(ours)), match].max() <= 1


def compare(network: PackageNetwork, picture: Image.Image, allow_upscaling: bool, anchors: int) -> None:
    pixels, scale = resize_like_package(picture, allow_upscaling)
    threshold = passing(network, pixels, anchors)
    detector = RetinaFace(ResNet50RetinaFace(network), "cpu", threshold, like_package=True)
    (found,) = detector(pixels[None].copy(), [scale])
    package = package_faces(network, picture, threshold, allow_upscaling)
    assert_same(found.boxes, found.scores, found.landmarks5, package)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    ("name", "allow_upscaling", "anchors"),
    [("square", False, 600), ("tall", False, 600), ("too long", False, 1000), ("long", True, 1200)],
)
def test_equals_the_package(
    network: PackageNetwork, pictures: dict[str, Image.Image], name: str, allow_upscaling: bool, anchors: int
) -> None:
    compare(network, pictures[name], allow_upscaling, anchors)


@pytest.mark.slow
@pytest.mark.parametrize("allow_upscaling", [False, True])
@pytest.mark.parametrize("name", ["t1", "astronaut", "synthetic"])
def test_equals_the_package_on_whole_photographs(
    network: PackageNetwork, t1_image: Image.Image, astronaut: Image.Image, name: str, allow_upscaling: bool
) -> None:
    scene = Image.fromarray(photograph(0, 0, SyntheticConfig(mode="photograph")).image)
    picture = {"t1": t1_image, "astronaut": astronaut, "synthetic": scene}[name]
    compare(network, picture, allow_upscaling, 1600)


def test_the_stage_gives_each_picture_of_a_mixed_folder_what_the_package_gives(
    network: PackageNetwork, weights: Path, pictures: dict[str, Image.Image], tmp_path: Path
) -> None:
    """Sizes alternate, so that the order of the work is not that of the rows; one file is cut off after listing."""
    chosen = {
        "a.png": pictures["square"],
        "b.png": pictures["tall"],
        "c.png": pictures["square"].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "d.png": pictures["square"].rotate(180),
        "e.png": pictures["square"].rotate(90),
    }
    (tmp_path / "in").mkdir()
    for name, picture in chosen.items():
        picture.save(tmp_path / "in" / name)
    threshold = passing(network, np.asarray(chosen["a.png"]), 600)
    options = [
        "detect.network=resnet50",
        f"detect.weights={weights}",
        "detect.resize=retinaface",
        "workers=1",
    ]
    options += ["detect.allow_upscaling=false", f"detect.threshold={threshold}", "detect.batch=2"]
    tables = []
    for threads in (0, 3):
        output = tmp_path / f"run{threads}"
        config = load_config(
            str(tmp_path / "in"), [f"output={output}", f"detect.decode_threads={threads}", *options]
        )
        pipeline = Pipeline(config)
        pipeline.list()
        saved = (tmp_path / "in" / "d.png").read_bytes()
        (tmp_path / "in" / "d.png").write_bytes(saved[:100])
        pipeline.detect()
        (tmp_path / "in" / "d.png").write_bytes(saved)
        tables.append(read_shard(output / "faces", 0))
    table, again = tables
    assert table.equals(again), "threads that decode ahead change nothing"
    names = table["image_id"].to_pylist()
    assert names == sorted(names)
    assert names.count("d.png") == 1
    for name in ("a.png", "b.png", "c.png", "e.png"):
        rows = table.filter(np.array(names) == name)
        package = package_faces(network, chosen[name], threshold, allow_upscaling=False)
        assert_same(array_of(rows["box"]), rows["score"].to_numpy(), array_of(rows["landmarks5"]), package)


def test_without_a_path_the_package_s_own_file_is_taken(
    network: PackageNetwork, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    (tmp_path / ".deepface" / "weights").mkdir(parents=True)
    (tmp_path / ".deepface" / "weights" / "retinaface.pth").symlink_to(weights)
    detector = build("resnet50", "cpu", 0.5)
    ours, theirs = detector.network.state_dict(), network.state_dict()
    assert len(ours) == len(theirs) == 466
    assert all(torch.equal(ours[f"network.{name}"], value) for name, value in theirs.items())


def test_other_weights_are_other_settings(
    weights: Path, pictures: dict[str, Image.Image], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    pictures["square"].save(tmp_path / "in" / "a.png")
    copy, other = tmp_path / "copy.pth", tmp_path / "other.pth"
    copy.write_bytes(weights.read_bytes())
    state = torch.load(weights, weights_only=True)
    state["conv0.weight"][0, 0, 0, 0] += 1
    torch.save(state, other)

    def pipeline(path: Path) -> Pipeline:
        options = [
            f"output={tmp_path / 'run'}",
            "workers=1",
            "detect.network=resnet50",
            f"detect.weights={path}",
        ]
        return Pipeline(load_config(str(tmp_path / "in"), options))

    pipeline(weights).run(["list", "detect"])
    assert pipeline(copy).finished("detect"), "where the file lies does not matter"
    with pytest.raises(ConfigError, match=r"made with detect\.weights=\w{64}, now detect\.weights=\w{64}"):
        pipeline(other).detect()


@pytest.mark.parametrize("content", ["text", "other network", "list", "cut off", "no names"])
def test_a_file_of_something_else_is_refused(content: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "retinaface.pth"
    if content == "text":
        path.write_text("<html>not found</html>")
    elif content == "cut off":
        path.write_bytes(weights.read_bytes()[: 1 << 20])
    else:
        state = torch.nn.Linear(2, 2).state_dict()
        torch.save({"other network": state, "list": [1], "no names": {1: torch.zeros(1)}}[content], path)
    with pytest.raises(ConfigError, match=r"no weights of retina-face's ResNet-50") as caught:
        build("resnet50", "cpu", 0.5, weights=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_had_say_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigError, match=r"retinaface\.pth: .*cannot be downloaded.*detect\.weights"):
        build("resnet50", "cpu", 0.5)
    with pytest.raises(ConfigError, match=r"^detect\.weights=nowhere\.pth: no such file"):
        build("resnet50", "cpu", 0.5, weights=Path("nowhere.pth"))
    with pytest.raises(ConfigError, match=r"not for detect\.network=mobilenet0\.25"):
        load_config(str(tmp_path), ["detect.weights=nowhere.pth"])


@pytest.mark.gpu
@pytest.mark.parametrize("like_package", [False, True])
def test_a_gpu_finds_the_same_boxes(
    network: PackageNetwork, weights: Path, pictures: dict[str, Image.Image], like_package: bool
) -> None:
    """In fp32 the same boxes; where TF32 is allowed scores move, so that only those clear of the threshold count."""
    pixels = np.stack([np.asarray(pictures["square"].rotate(angle)) for angle in (0, 90, 180)])
    threshold = passing(network, pixels[0], 600)
    cpu, gpu = (
        build("resnet50", device, threshold, weights=weights, like_package=like_package)(pixels)
        for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(gpu, cpu, strict=True):
        assert len(theirs.scores) >= LEAST
        assert recovered(theirs, ours) >= (0.999 if like_package else 0.95)


@pytest.mark.gpu
def test_a_gpu_finds_the_same_faces(t1_image: Image.Image) -> None:
    square = np.zeros((1280, 1280, 3), np.uint8)
    square[: t1_image.height] = np.asarray(t1_image)
    (cpu,), (gpu,) = (build("mobilenet0.25", device, 0.5)(square[None]) for device in ("cpu", "cuda"))
    assert len(cpu.scores) == len(gpu.scores) == 6
    assert recovered(cpu, gpu) == 1


def recovered(truth: Detections, found: Detections) -> float:
    """The share of the true boxes that were found within 1 px."""
    distance = np.abs(truth.boxes[:, None] - found.boxes[None]).max(-1)
    return float((distance.min(1) <= 1).mean())
