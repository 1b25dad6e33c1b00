"""From the model into pictures and back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from data_prep.sources.w300lp import project_pose
from data_prep.synthetic import SyntheticConfig, portrait
from data_prep.synthetic.render import rotation
from downstream.morphable import geometry
from downstream.tasks.mirror import MIRRORS


def heads(count, face, seed=0):
    """Poses (N, 3) of the project, cameras and coefficients of random heads in 256 px."""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(-1, 1, (count, 3)) * [85, 40, 60]
    turn = np.stack([rotation(angles) for angles in pose]).astype(np.float64)
    cameras = np.zeros((count, 3, 4))
    cameras[..., :3] = rng.uniform(5, 12, (count, 1, 1)) * (geometry.FLIP_Y @ turn)
    cameras[:, :2, 3] = rng.uniform(90, 160, (count, 2))
    coefficients = np.concatenate([rng.normal(size=(count, 36)), rng.uniform(0, 5, (count, 12))], axis=1)
    return pose, cameras, coefficients


def matlab_points(pose_para, shape, height):
    """Pixels as MATLAB counts them, from the text of Zhu et al.: three elementary rotations, one point at a time."""
    pitch, yaw, roll, tx, ty, tz, f = pose_para
    rx = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    ry = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    rz = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    points = []
    for point in shape:
        x, y, z = f * (rx @ ry @ rz @ point) + [tx, ty, tz]
        points.append((x, height + 1 - y, z))
    return np.array(points)


def test_fitted_cameras_follow_3ddfa(face):
    rng = np.random.default_rng(2)
    for _ in range(5):
        pose_para = np.array([*rng.uniform(-1.2, 1.2, 3), *rng.uniform(100, 300, 3), rng.uniform(5, 9)])
        shape = face.mean[::500].astype(np.float64)
        expected = matlab_points(pose_para, shape, 450)
        camera = geometry.fitted_cameras(pose_para[None], 450)
        pixels = geometry.project(camera, shape[None])[0]
        np.testing.assert_allclose(pixels[:, :2], expected[:, :2] - 0.5, atol=1e-9)
        np.testing.assert_allclose(np.diff(pixels[:, 2]), np.diff(expected[:, 2]), atol=1e-9)
        np.testing.assert_allclose(geometry.head_pose(camera)[0], project_pose(pose_para[:3]), atol=1e-9)
        np.testing.assert_allclose(np.radians(geometry.fitted_angles(camera)[0]), pose_para[:3], atol=1e-9)


def test_head_pose_is_the_renderers(face):
    pose, cameras, _ = heads(40, face)
    np.testing.assert_allclose(geometry.head_pose(cameras), pose, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 33.0])
def test_image_model_image(face, axes, flip, angle):
    """Points in a picture -> camera -> all vertices -> the moved picture: equal to moving the pixels themselves."""
    _, cameras, coefficients = heads(20, face, seed=1)
    marks = geometry.project(cameras, face.vertices(coefficients, face.landmarks))
    dense = geometry.project(cameras, face.vertices(coefficients))
    fitted = geometry.fit_cameras(face.vertices(coefficients, face.landmarks), marks[..., :axes])
    if flip:
        marks = marks[:, MIRRORS[68]] * [-1, 1, 1] + [256, 0, 0]
        dense = dense[:, face.mirror] * [-1, 1, 1] + [256, 0, 0]
        matrix, offset = face.mirroring
        fitted, coefficients = geometry.mirror(fitted, 256), coefficients @ matrix.T + offset
    zoom, turn = 1.1, np.radians(angle)
    affine = zoom * np.array([[np.cos(turn), -np.sin(turn), 7.0], [np.sin(turn), np.cos(turn), -3.0]])
    marks, dense = (
        np.concatenate([points[..., :2] @ affine[:, :2].T + affine[:, 2], zoom * points[..., 2:]], axis=-1)
        for points in (marks, dense)
    )
    fitted = geometry.follow(fitted, np.broadcast_to(affine, (20, 2, 3)))
    reached = geometry.project(fitted, face.vertices(coefficients))
    assert np.abs(reached - dense)[..., :2].max() < 0.01
    assert np.abs(reached - dense).max() < 0.05
    assert np.abs(reached[:, face.landmarks] - marks).max() < 0.05
    back = geometry.unproject(fitted, dense)
    assert np.abs(back - face.vertices(coefficients)).max() < 0.01  # cm


@pytest.mark.parametrize("axes", [2, 3])
def test_the_fit_is_the_least_squares_one(face, axes):
    """Against SciPy's general minimiser, on points with noise."""
    _, cameras, coefficients = heads(6, face, seed=3)
    vertices = face.vertices(coefficients, face.landmarks)
    rng = np.random.default_rng(0)
    points = geometry.project(cameras, vertices)[..., :axes]
    points = points + rng.normal(0, 4, points.shape)
    fitted = geometry.fit_cameras(vertices, points)
    for k in range(6):

        def residual(p, k=k):
            matrix = p[0] * geometry.FLIP_Y @ Rotation.from_rotvec(p[1:4]).as_matrix()
            return ((vertices[k] @ matrix.T + p[4:7])[:, :axes] - points[k]).ravel()

        start = Rotation.from_matrix(
            geometry.FLIP_Y @ cameras[k, :, :3] / geometry.scales(cameras[k])
        ).as_rotvec()
        best = least_squares(
            residual, [geometry.scales(cameras[k]), *start, 100, 100, 0], xtol=1e-12, ftol=1e-12
        )
        free = fitted[k].copy()
        if axes == 3:  # the depth's offset is dropped from the camera
            free[2, 3] = (points[k] - vertices[k] @ free[:, :3].T)[:, 2].mean()
        own = (vertices[k] @ free[:, :3].T + free[:, 3])[:, :axes] - points[k]
        assert (own**2).sum() <= 2 * best.cost * (1 + 1e-6)


def test_points_that_determine_no_camera_are_refused(face):
    with pytest.raises(ValueError, match="4 points"):
        geometry.fit_cameras(np.eye(3)[None], np.zeros((1, 3, 2)))
    flat = np.random.default_rng(0).normal(size=(1, 9, 3)) * [1, 1, 0]
    with pytest.raises(ValueError, match="one plane"):
        geometry.fit_cameras(flat, flat[..., :2])


def test_renders_are_perspective_and_the_fit_is_near(face):
    """The renderer's camera is a pinhole; what weak perspective misses is bounded here and told in the docs."""
    cfg = SyntheticConfig(face=(0.6, 0.7), occlusion=0, yaw=90)
    truths = [portrait(3, index, cfg).faces[0] for index in range(12)]
    coefficients = np.stack([np.concatenate([t.shape, t.action_units]) for t in truths]).astype(np.float64)
    vertices = face.vertices(coefficients, face.landmarks)
    points = np.stack([t.landmarks68 for t in truths]).astype(np.float64)
    cameras = geometry.fit_cameras(vertices, points)
    missed = np.linalg.norm(geometry.project(cameras, vertices)[..., :2] - points, axis=-1).mean(axis=1)
    assert missed.mean() < 2
    assert np.abs(geometry.head_pose(cameras) - [t.pose for t in truths]).max() < 10
