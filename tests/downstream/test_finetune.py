"""Augmentation keeps labels right; fine-tuning learns, is the same every time, and leaves its input alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.beton import Beton, read_labels
from downstream.config import Checkpoint, Recipe
from downstream.features import load_network, read_pictures
from downstream.finetune import Moves, augment, batch, draw, finetune
from downstream.tasks import TASKS
from downstream.tasks.landmarks import MIRROR
from downstream.tasks.pose import head_rotation

STRONG = Recipe(rotation=40, scale=0.3, shift=0.1, brightness=0)


def test_pixels_and_landmarks_move_together() -> None:
    # A bright dot at each of three landmarks must be where the moved label says.
    moves = draw(STRONG, count=16, step=3)
    assert moves.flipped.any()
    assert not moves.flipped.all()
    points = np.full((16, 68, 2), 128.0)
    points[:, 30] = (90.5, 150.5)  # the nose tip keeps its name in the mirror
    images = torch.zeros(16, 3, 256, 256, dtype=torch.uint8)
    images[:, :, 148:153, 88:93] = 255
    moved = TASKS["landmarks"].move(points.reshape(16, -1), moves.affine, moves.flipped).reshape(16, 68, 2)
    result = augment(images, moves)[:, 0].numpy()
    ys, xs = np.mgrid[0:256, 0:256] + 0.5
    for picture, label in zip(result, moved[:, 30], strict=True):
        centre = [(picture * xs).sum() / picture.sum(), (picture * ys).sum() / picture.sum()]
        np.testing.assert_allclose(centre, label, atol=0.1)


def test_the_mirror_names_points_rightly(labelled_set: Path) -> None:
    assert (MIRROR[MIRROR] == np.arange(68)).all()
    # On a mean face the mirrored, renamed points lie on the face again.
    points = TASKS["landmarks"].encode(read_labels(labelled_set)).mean(axis=0).reshape(68, 2)
    mirrored = points[MIRROR] * [-1, 1] + [256, 0]
    centred = mirrored - mirrored.mean(axis=0) - (points - points.mean(axis=0))
    assert np.abs(centred).max() < 8


def test_pose_follows_mirror_and_rotation() -> None:
    pose = np.array([[25.0, -10.0, 8.0]])
    quarter = np.array([[[0.0, -1.0, 256.0], [1.0, 0.0, 0.0]]])  # clockwise on the screen, y down
    identity = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    no, yes = np.array([False]), np.array([True])
    task = TASKS["pose"]
    np.testing.assert_allclose(task.move(pose, identity, yes), [[-25, -10, -8]], atol=1e-9)
    np.testing.assert_allclose(task.move(np.zeros((1, 3)), quarter, no), [[0, 0, 90]], atol=1e-9)
    # Where the nose points to in the picture (x right, y down) turns with the picture.
    x, y, _ = head_rotation(pose)[0].as_matrix()[:, 2]
    turned_x, turned_y, _ = head_rotation(task.move(pose, quarter, no))[0].as_matrix()[:, 2]
    np.testing.assert_allclose([turned_x, -turned_y], quarter[0, :, :2] @ [x, -y], atol=1e-9)


def test_the_renderer_means_the_same_rotation(labelled_set: Path) -> None:
    # The nose tip (point 30) lies ahead of the middle of the eyes: the pose must say to which side.
    labels = read_labels(labelled_set)
    points = TASKS["landmarks"].encode(labels).reshape(-1, 68, 2)
    down = points[:, 8] - points[:, 27]
    ahead = points[:, 30] - points[:, [36, 39, 42, 45]].mean(axis=1)
    yaw = TASKS["pose"].encode(labels)[:, 0]
    assert np.corrcoef(ahead[:, 0] / np.linalg.norm(down, axis=1), yaw)[0, 1] > 0.9


def test_batches_visit_every_picture_once_an_epoch() -> None:
    seen = np.concatenate([batch(30, 8, seed=0, step=step) for step in range(15)])
    for epoch in range(4):
        assert sorted(seen[30 * epoch : 30 * (epoch + 1)]) == list(range(30))
    assert len(batch(5, 8, seed=0, step=0)) == 8


def test_nothing_moves_without_augmentation() -> None:
    still = Recipe(flip=False, rotation=0, scale=0, shift=0, brightness=0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(augment(images, draw(still, 4, 0)), images.float(), atol=1e-2, rtol=0)
    assert isinstance(draw(still, 4, 0), Moves)


@pytest.mark.parametrize("task", ["landmarks", "pose"])
def test_it_learns_and_leaves_the_backbone_alone(task: str, labelled_set: Path, backbone: Path) -> None:
    network = load_network(Checkpoint(kind="checkpoint", name="it", path=str(backbone)), None)
    before = copy.deepcopy(network.module.state_dict())
    pictures = read_pictures(Beton(labelled_set), [48])[48][:64]
    labels = TASKS[task].encode(read_labels(labelled_set))[:64]

    def tune(steps: int) -> np.ndarray:
        recipe = Recipe(steps=steps, batch_size=16, rotation=5)
        return finetune(network, TASKS[task], pictures, labels, pictures, recipe, torch.device("cpu"), "it")

    lead = TASKS[task].metrics[0].name
    mean = TASKS[task].evaluate(np.broadcast_to(labels.mean(axis=0), labels.shape), labels)[lead]
    tuned = tune(40)
    assert TASKS[task].evaluate(tuned, labels)[lead] < 0.7 * mean
    np.testing.assert_array_equal(tune(3), tune(3))
    for name, value in network.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
