"""A mesh over a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from downstream.morphable.draw import draw_mesh


def test_the_mesh_covers_its_pixels_and_hides_what_is_behind():
    picture = Image.new("RGB", (40, 30), (10, 10, 10))
    near = [[5, 5, 9], [25, 5, 9], [5, 25, 9]]
    far = [[5, 5, 1], [35, 5, 1], [5, 25, 4]]
    triangles = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    drawn = np.asarray(draw_mesh(picture, np.array(near + far, float), triangles))
    assert (drawn[28] == 10).all()
    assert (drawn[7, 7] > 50).all()
    assert (drawn[7, 28] != drawn[7, 7]).any()  # there only the far one, which is lit at an angle
    alone = np.asarray(draw_mesh(picture, np.array(near, float), triangles[:1]))
    np.testing.assert_array_equal(drawn[7, 7], alone[7, 7])


def test_points_without_triangles(face):
    picture = Image.new("RGB", (64, 64))
    drawn = np.asarray(draw_mesh(picture, np.array([[10.5, 20.5, 0]]), None))
    assert drawn[20, 10].any()
    assert drawn.any(axis=-1).sum() == 1
