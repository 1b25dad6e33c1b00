"""The tables of mirrored points against the published pairs, and against each other by what the points mean."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.tasks.mirror import MIRRORS

# HRNet-Facial-Landmark-Detection, lib/utils/transforms.py, MATCHED_PARTS; all but the last count from 1.
PUBLISHED = {
    68: """1-17 2-16 3-15 4-14 5-13 6-12 7-11 8-10 18-27 19-26 20-25 21-24 22-23 32-36 33-35 37-46 38-45 39-44 40-43
        41-48 42-47 49-55 50-54 51-53 62-64 61-65 68-66 59-57 60-56""",
    19: "1-6 2-5 3-4 7-12 8-11 9-10 13-15 16-18",
    29: "1-2 5-7 3-4 6-8 9-10 11-12 13-15 17-18 14-16 19-20 23-24",
    98: """0-32 1-31 2-30 3-29 4-28 5-27 6-26 7-25 8-24 9-23 10-22 11-21 12-20 13-19 14-18 15-17 33-46 34-45 35-44
        36-43 37-42 38-50 39-49 40-48 41-47 60-72 61-71 62-70 63-69 64-68 65-75 66-74 67-73 55-59 56-58 76-82 77-81
        78-80 87-83 86-84 88-92 89-91 95-93 96-97""",
}
# Of WFLW's points those that stand for the 68 of iBUG, in their order (PIPNet, lib/preprocess.py).
OF_98 = [
    *range(0, 33, 2),
    *range(33, 38),
    *range(42, 47),
    *range(51, 60),
    *(60, 61, 63, 64, 65, 67),
    *(68, 69, 71, 72, 73, 75),
    *range(76, 96),
]


@pytest.mark.parametrize("count", [19, 29, 68, 98])
def test_twice_mirrored_is_as_before_and_the_pairs_are_the_published_ones(count: int) -> None:
    table = MIRRORS[count]
    assert table.shape == (count,)
    assert np.array_equal(table[table], np.arange(count))
    first = 0 if count == 98 else 1
    pairs = {frozenset(int(end) - first for end in pair.split("-")) for pair in PUBLISHED[count].split()}
    assert {frozenset({i, int(j)}) for i, j in enumerate(table) if i != j} == pairs


def test_98_points_swap_as_the_68_that_they_stand_for() -> None:
    assert len(OF_98) == 68
    assert MIRRORS[98][OF_98].tolist() == np.array(OF_98)[MIRRORS[68]].tolist()


def means(*points: tuple[int, ...]) -> np.ndarray:
    """(n, 68): points as means of some of the 68."""
    matrix = np.zeros((len(points), 68))
    for row, members in zip(matrix, points, strict=True):
        row[list(members)] = 1 / len(members)
    return matrix


# What the points mean, from memory: AFLW's brows, eyes, nose, mouth and chin from left to right; COFW's likewise, but
# each point beside the one that it becomes.
LEFT_EYE, RIGHT_EYE = tuple(range(36, 42)), tuple(range(42, 48))
MADE_OF = {
    19: means(
        (17,), (19,), (21,), (22,), (24,), (26,), (36,), LEFT_EYE, (39,), (42,), RIGHT_EYE, (45,), (31,), (30,),
        (35,), (48,), (62, 66), (54,), (8,),
    ),
    29: means(
        (17,), (26,), (21,), (22,), (19,), (18, 20), (24,), (23, 25), (36,), (45,), (39,), (42,), (37, 38), (40, 41),
        (43, 44), (46, 47), LEFT_EYE, RIGHT_EYE, (31,), (35,), (30,), (33,), (48,), (54,), (51,), (62,), (66,), (57,),
        (8,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("count", [19, 29])
def test_points_made_of_the_68_swap_with_them(count: int) -> None:
    """Mirrored and then made of the 68, or made of the 68 and then mirrored: the same for every face."""
    made = MADE_OF[count]
    np.testing.assert_allclose(made[:, MIRRORS[68]], made[MIRRORS[count]])
