"""Augmentation keeps labels right; fine-tuning learns, is the same every time, and leaves its input alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import ConfigError
from data_prep.beton import Beton, read_labels
from downstream.augment import augment, draw
from downstream.config import Checkpoint
from downstream.features import Pictures, load_network, read_pictures
from downstream.model import load_model, save_model
from downstream.recipe import Augmentation, Recipe
from downstream.tasks import make
from downstream.tasks.mirror import MIRRORS
from downstream.tasks.pose import head_rotation
from downstream.train import batch, rate, train

STRONG = Augmentation(rotation=40, scale=0.3, shift=0.1, brightness=0)
STILL = Augmentation(flip=False, rotation=0, scale=0, shift=0, brightness=0)
MIRROR = MIRRORS[68]
CPU = torch.device("cpu")


def test_pixels_and_landmarks_move_together() -> None:
    # A bright dot at each of three landmarks must be where the moved label says.
    moves = draw(STRONG, 16, seed=0, step=3)
    assert moves.flipped.any()
    assert not moves.flipped.all()
    points = np.full((16, 68, 2), 128.0)
    points[:, 30] = (90.5, 150.5)  # the nose tip keeps its name in the mirror
    images = torch.zeros(16, 3, 256, 256, dtype=torch.uint8)
    images[:, :, 148:153, 88:93] = 255
    moved = make("landmarks").move(points.reshape(16, -1), moves.affine, moves.flipped).reshape(16, 68, 2)
    result = augment(images, moves)[:, 0].numpy()
    ys, xs = np.mgrid[0:256, 0:256] + 0.5
    for picture, label in zip(result, moved[:, 30], strict=True):
        centre = [(picture * xs).sum() / picture.sum(), (picture * ys).sum() / picture.sum()]
        np.testing.assert_allclose(centre, label, atol=0.1)


def test_the_mirror_names_points_rightly(labelled_set: Path) -> None:
    assert (MIRROR[MIRROR] == np.arange(68)).all()
    # On a mean face the mirrored, renamed points lie on the face again.
    points = make("landmarks").encode(read_labels(labelled_set)).mean(axis=0).reshape(68, 2)
    mirrored = points[MIRROR] * [-1, 1] + [256, 0]
    centred = mirrored - mirrored.mean(axis=0) - (points - points.mean(axis=0))
    assert np.abs(centred).max() < 8


def test_pose_follows_mirror_and_rotation() -> None:
    pose = np.array([[25.0, -10.0, 8.0]])
    quarter = np.array([[[0.0, -1.0, 256.0], [1.0, 0.0, 0.0]]])  # clockwise on the screen, y down
    identity = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    no, yes = np.array([False]), np.array([True])
    task = make("pose")
    np.testing.assert_allclose(task.move(pose, identity, yes), [[-25, -10, -8]], atol=1e-9)
    np.testing.assert_allclose(task.move(np.zeros((1, 3)), quarter, no), [[0, 0, 90]], atol=1e-9)
    # Where the nose points to in the picture (x right, y down) turns with the picture.
    x, y, _ = head_rotation(pose)[0].as_matrix()[:, 2]
    turned_x, turned_y, _ = head_rotation(task.move(pose, quarter, no))[0].as_matrix()[:, 2]
    np.testing.assert_allclose([turned_x, -turned_y], quarter[0, :, :2] @ [x, -y], atol=1e-9)


def test_the_renderer_means_the_same_rotation(labelled_set: Path) -> None:
    # The nose tip (point 30) lies ahead of the middle of the eyes: the pose must say to which side.
    labels = read_labels(labelled_set)
    points = make("landmarks").encode(labels).reshape(-1, 68, 2)
    down = points[:, 8] - points[:, 27]
    ahead = points[:, 30] - points[:, [36, 39, 42, 45]].mean(axis=1)
    yaw = make("pose").encode(labels)[:, 0]
    assert np.corrcoef(ahead[:, 0] / np.linalg.norm(down, axis=1), yaw)[0, 1] > 0.9


def test_batches_visit_every_picture_once_an_epoch() -> None:
    seen = np.concatenate([batch(30, 8, seed=0, step=step) for step in range(15)])
    for epoch in range(4):
        assert sorted(seen[30 * epoch : 30 * (epoch + 1)]) == list(range(30))
    assert len(batch(5, 8, seed=0, step=0)) == 8


def test_nothing_moves_without_augmentation() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(augment(images, draw(STILL, 4, 0, 0)), images.float(), atol=1e-2, rtol=0)


def test_colour_and_blur_are_applied() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    for changes in ({"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.2}, {"blur": 1.0}):
        seen = augment(images, draw(STILL.model_copy(update=changes), 4, 0, 0))
        assert (seen - images).abs().mean() > 1, changes
        assert seen.min() >= 0
        assert seen.max() <= 255.001


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(warmup=0.1)
    rates = [rate(recipe, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == 1
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert rate(Recipe(schedule="constant", warmup=0), 7, 10) == 1


def test_lengths() -> None:
    assert Recipe(steps=7).length(1000, 1.0) == 7
    recipe = Recipe(epochs=60, epochs_at=((0.02, 480),), batch_size=24)
    assert recipe.length(2400, 1.0) == 6000
    assert recipe.length(240, 0.1) == 600
    assert recipe.length(48, 0.02) == 960


@pytest.fixture(scope="module")
def sixty(labelled_set: Path) -> Pictures:
    return read_pictures([Beton(labelled_set)], [48], memory=1e9)[48]


def _train(
    name: str, labelled_set: Path, backbone: Path, pictures: Pictures, folder: Path, **changes: object
) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictions on the 64 pictures that are learnt, their labels, and the leading metric."""
    frozen, settings = bool(changes.pop("frozen", False)), changes.pop("settings", {})
    recipe = Recipe(**{"steps": 40, "batch_size": 16, "augmentation": Augmentation(rotation=5)} | changes)  # type: ignore[arg-type]
    network = load_network(Checkpoint(kind="checkpoint", name="it", path=str(backbone)), None)
    task, rows = make(name, **settings), np.arange(64)  # type: ignore[arg-type]
    labels = task.encode(read_labels(labelled_set))[rows]
    before = copy.deepcopy(network.module.state_dict())
    model = train(
        network,
        task,
        pictures,
        rows,
        labels,
        recipe,
        steps=recipe.steps,
        frozen=frozen,
        seed=0,
        device=CPU,
        checkpoint=folder / "training.pt",
        name="it",
    )
    for key, value in network.module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    if frozen:
        for key, value in model.backbone.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert not (folder / "training.pt").exists()
    save_model(folder / "model.safetensors", model, {"mode": "box"}, {"row": "it"})
    prediction = model.predict_rows(pictures, rows, "it")
    again, header = load_model(folder / "model.safetensors")
    np.testing.assert_array_equal(again.predict_rows(pictures, rows, "it"), prediction)
    assert header["row"] == "it"
    return prediction, labels, task.evaluate(prediction, labels)[task.metrics[0].name]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("landmarks", {"channels": 32, "stride": 2}),
        ("landmarks", {"head_kind": "linear"}),
        ("pose", {}),
        ("affect", {}),
        ("action_units", {}),
    ],
)
def test_it_learns_and_leaves_the_backbone_alone(
    name: str,
    settings: dict[str, object],
    frozen: bool,
    labelled_set: Path,
    backbone: Path,
    sixty: Pictures,
    tmp_path: Path,
) -> None:
    steps = 90 if settings.get("channels") or frozen else 60
    prediction, labels, value = _train(
        name, labelled_set, backbone, sixty, tmp_path, settings=settings, frozen=frozen, steps=steps
    )
    task = make(name, **settings)
    constant = np.broadcast_to(task.targets(labels).mean(axis=0), prediction.shape)
    mean = task.evaluate(constant, labels)[task.metrics[0].name]
    if task.metrics[0].better == "lower":
        assert value < (0.9 if frozen else 0.7) * mean
    else:
        assert value > mean + (0.05 if frozen else 0.3)


def test_the_same_again_and_after_a_stop(
    labelled_set: Path, backbone: Path, sixty: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = _train("pose", labelled_set, backbone, sixty, tmp_path, steps=6)
    again, _, _ = _train("pose", labelled_set, backbone, sixty, tmp_path, steps=6)
    np.testing.assert_array_equal(whole, again)

    class KilledError(Exception):
        pass

    drawn = []

    def kill(*arguments: object) -> object:
        drawn.append(arguments[-1])
        if len(drawn) == 6:  # in the sixth step, with a checkpoint after the fourth
            raise KilledError
        return draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("downstream.train.draw", kill)
    with pytest.raises(KilledError):
        _train("pose", labelled_set, backbone, sixty, tmp_path, steps=6, checkpoint_every=2)
    resumed, _, _ = _train("pose", labelled_set, backbone, sixty, tmp_path, steps=6, checkpoint_every=2)
    assert drawn[6:] == [4, 5]
    np.testing.assert_array_equal(resumed, whole)


def test_pictures_that_do_not_fit_are_decoded_each_time(labelled_set: Path, sixty: Pictures) -> None:
    lazy = read_pictures([Beton(labelled_set), Beton(labelled_set)], [48, 32], memory=0)
    rows = np.array([5, 241, 0, 479])
    assert len(lazy[48]) == 480
    assert torch.equal(lazy[48].take(rows), sixty.take(rows % 240))
    assert lazy[32].take(rows).shape == (4, 3, 32, 32)


def test_a_file_that_is_no_trained_task_is_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no trained task"):
        load_model(backbone)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(tmp_path / "nowhere")
