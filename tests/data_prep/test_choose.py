from __future__ import annotations

import numpy as np
import pytest

from data_prep.detect import Choice, KeepConfig, choose, pairwise_iou

BOXES = np.array(
    [[10, 10, 110, 110], [300, 200, 380, 280], [500, 20, 520, 40], [200, 10, 300, 110]], np.float32
)
SCORES = np.array([0.99, 0.95, 0.99, 0.7], np.float32)
NOBODY = np.zeros((0, 4), np.float32)


def chosen(rule: str, annotated: np.ndarray = NOBODY) -> Choice:
    return choose(BOXES, SCORES, annotated, (640, 480), KeepConfig.model_validate({"rule": rule}))


def test_all_keeps_what_passes_and_says_why_not() -> None:
    assert chosen("all").why == ["", "", "smaller than 30 px", "score below 0.9"]


def test_largest_central_prefers_the_middle() -> None:
    # The first is larger, the second is in the middle of 640 x 480.
    assert chosen("largest_central").why[:2] == ["another face is larger or more central", ""]


def test_best_iou_pairs_one_to_one() -> None:
    annotated = np.array([[300, 205, 380, 285], [12, 10, 112, 110], [10, 30, 110, 130]], np.float32)
    choice = chosen("best_iou", annotated)
    assert choice.annotation.tolist() == [1, 0, -1, -1]
    assert choice.iou[:2] == pytest.approx([98 / 102, 75 / 85], abs=1e-5)
    assert choice.why[:2] == ["", ""]


def test_best_iou_rejects_what_nobody_annotated() -> None:
    choice = chosen("best_iou", BOXES[1:2])
    assert choice.why == ["matches no annotated face", "", "smaller than 30 px", "score below 0.9"]


def test_labels_are_carried_by_the_other_rules_too() -> None:
    assert chosen("all", BOXES[1:2]).annotation.tolist() == [-1, 0, -1, -1]


def test_no_detection_and_no_annotation() -> None:
    empty = choose(NOBODY, np.zeros(0, np.float32), NOBODY, (10, 10), KeepConfig(rule="largest_central"))
    assert empty.why == []


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    assert pairwise_iou(a, b)[0] == pytest.approx([1, 1 / 3, 0])


def test_a_label_without_a_place_belongs_to_the_subject() -> None:
    nowhere = np.zeros((1, 4), np.float32)
    assert chosen("largest_central", nowhere).annotation.tolist() == [-1, 0, -1, -1]
    assert chosen("all", nowhere).annotation.tolist() == [-1, -1, -1, -1]
