"""Where a morphable model lies in a picture: cameras, how they follow the picture, and fitting them to points.

A *camera* is a (3, 4) matrix that leads from the model's coordinates (x right, y up, z to the viewer) to pixels: x to
the right, y down, the middle of the first pixel at (0.5, 0.5), and z to the viewer in pixels, so that the nearer of
two points has the larger z. Weak perspective: camera = [s F R | t] with a scale s, a rotation R, F = diag(1, -1, 1).
The depth counts from the model's origin (t_z = 0): no picture tells how far a face is away.

300W-LP and AFLW2000-3D (3DDFA, Zhu et al. 2016) write V = f R S + t with R = Rx Ry Rz, rotations that turn against
the mathematical sense, and V lies in column V_x and row h + 1 - V_y of a picture of h rows as MATLAB counts from 1:
here at x = V_x - 0.5, y = h + 0.5 - V_y.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

FLIP_Y = np.diag([1.0, -1.0, 1.0])
_MIRROR_X = np.diag([-1.0, 1.0, 1.0])


def fitted_cameras(pose_para: Array, height: float) -> Array:
    """Pose_Para (N, 7) = pitch, yaw, roll in radians, tx, ty, tz, f -> (N, 3, 4) cameras of the source picture.

    ``height`` is that picture's, in pixels.
    """
    turn = Rotation.from_euler("XYZ", -pose_para[:, :3]).as_matrix()
    place = np.stack([pose_para[:, 3] - 0.5, height + 0.5 - pose_para[:, 4], 0 * pose_para[:, 5]], axis=-1)
    return np.concatenate([pose_para[:, 6, None, None] * (FLIP_Y @ turn), place[..., None]], axis=-1)


def project(cameras: Array, vertices: Array) -> Array:
    """(..., 3, 4) cameras, (..., V, 3) vertices of the model -> (..., V, 3) x, y, z in pixels."""
    return np.asarray(vertices @ np.swapaxes(cameras[..., :3], -1, -2) + cameras[..., None, :, 3])


def unproject(cameras: Array, pixels: Array) -> Array:
    """The inverse of :func:`project`."""
    inverse = np.linalg.inv(cameras[..., :3])
    return np.asarray((pixels - cameras[..., None, :, 3]) @ np.swapaxes(inverse, -1, -2))


def follow(cameras: Array, affine: Array) -> Array:
    """(N, 3, 4) cameras after the picture is moved by similarities (N, 2, 3), old to new pixels, with its depth."""
    scale = np.sqrt(np.linalg.det(affine[:, :, :2]))
    picture = np.zeros((len(affine), 3, 3))
    picture[:, :2, :2], picture[:, 2, 2] = affine[:, :, :2], scale
    moved = picture @ cameras
    moved[:, :2, 3] += affine[:, :, 2]
    return np.asarray(moved)


def mirror(cameras: Array, width: float) -> Array:
    """(N, 3, 4) cameras of the mirror image of a picture ``width`` px wide, for the mirrored face of the model."""
    mirrored = _MIRROR_X @ cameras @ np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored[:, 0, 3] += width
    return np.asarray(mirrored)


def scales(cameras: Array) -> Array:
    """(..., 3, 4) -> (...): pixels of one unit of the model."""
    return np.asarray(np.cbrt(np.abs(np.linalg.det(cameras[..., :3]))))


def rotations(cameras: Array) -> Rotation:
    """The N rotations R of (N, 3, 4) cameras."""
    return Rotation.from_matrix(FLIP_Y @ cameras[..., :3] / scales(cameras)[..., None, None])


def head_pose(cameras: Array) -> Array:
    """(N, 3) yaw, pitch, roll in degrees as the label ``pose`` has them: R = Ry(yaw) Rx(-pitch) Rz(-roll)."""
    return np.asarray(rotations(cameras).as_euler("YXZ", degrees=True) * [1, -1, -1])


def fitted_angles(cameras: Array) -> Array:
    """(N, 3) pitch, yaw, roll in degrees in the order and sense of Pose_Para, by which AFLW2000-3D is sorted."""
    return np.asarray(-rotations(cameras).as_euler("XYZ", degrees=True))


def fit_cameras(vertices: Array, points: Array, steps: int = 20) -> Array:
    """The weak-perspective cameras that bring known vertices closest to observed points, by least squares.

    The unconstrained linear fit, its rotation cleaned by a singular value decomposition, starts Gauss-Newton in
    scale, rotation and translation. Where x, y and z are observed, t_z is fitted and then dropped: z has no origin.

    Args:
        vertices: (N, n, 3) points of the model, at least 4 of them, not in one plane.
        points: (N, n, 2) or (N, n, 3) where they were seen, in pixels.
        steps: Of Gauss-Newton; it converges in fewer.

    Returns:
        (N, 3, 4) cameras.

    Raises:
        ValueError: fewer than 4 points, or vertices in one plane.
    """
    middle, seen_middle = vertices.mean(axis=1, keepdims=True), points.mean(axis=1, keepdims=True)
    model, seen = vertices - middle, points - seen_middle
    spread = np.linalg.svd(model, compute_uv=False)
    if vertices.shape[1] < 4 or (spread[:, 2] < 1e-6 * spread[:, 0]).any():
        raise ValueError("a camera needs at least 4 points that are not in one plane")
    linear = np.swapaxes(np.linalg.pinv(model) @ seen, 1, 2)[:, :2]  # (N, 2, 3)
    left, size, right = np.linalg.svd(linear, full_matrices=False)
    rows = left @ right
    turn = FLIP_Y @ np.concatenate([rows, -np.cross(rows[:, :1], rows[:, 1:])], axis=1)
    scale = size.mean(axis=1)
    axes = points.shape[-1]
    flip = FLIP_Y[:axes]
    for _ in range(steps):
        turned = model @ np.swapaxes(turn, 1, 2)  # (N, n, 3)
        residual = seen - scale[:, None, None] * turned @ flip.T
        # d(turned) = w x turned for a small rotation w, and d(scale) = scale * e.
        cross = -scale[:, None, None, None] * flip @ _cross(turned)
        slopes = np.concatenate([cross, (scale[:, None, None] * turned @ flip.T)[..., None]], axis=-1)
        system = slopes.reshape(len(model), -1, 4)
        step = (np.linalg.pinv(system) @ residual.reshape(len(model), -1, 1))[..., 0]
        turn = Rotation.from_rotvec(step[:, :3]).as_matrix() @ turn
        scale = scale * np.exp(step[:, 3])
    cameras = np.zeros((len(model), 3, 4))
    cameras[..., :3] = scale[:, None, None] * (FLIP_Y @ turn)
    place = seen_middle[:, 0] - (cameras[:, :axes, :3] @ middle[:, 0, :, None])[..., 0]
    cameras[:, :2, 3] = place[:, :2]
    return cameras


def _cross(vectors: Array) -> Array:
    """(..., 3) v -> (..., 3, 3) matrices [v]x with [v]x w = v x w."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack(
        [np.stack([zero, -z, y], -1), np.stack([z, zero, -x], -1), np.stack([-y, x, zero], -1)], axis=-2
    )
