from __future__ import annotations

import numpy as np
import pytest

from configs import ConfigError
from downstream.recognition import protocols

RNG = np.random.default_rng(7)


def pairs(count: int, separation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances, some of them equal, of pairs in ten contiguous folds."""
    same = RNG.random(count) < 0.5
    distance = np.where(same, 1.0, 1.0 + separation) + RNG.normal(0, 0.3, count)
    return distance.clip(0, 4).round(2), same, np.repeat(np.arange(10), count // 10)


@pytest.mark.parametrize("separation", [0.0, 0.3, 2.0])
def test_fold_accuracy_equals_the_protocol_written_out(separation: float) -> None:
    distance, same, fold = pairs(600, separation)
    accuracies, thresholds = [], []
    for held_out in range(10):
        best, chosen = -1.0, 0.0
        for step in range(400):  # smallest of the best
            threshold = np.arange(0, 4, 0.01)[step]
            hits = [
                (d < threshold) == s for d, s, f in zip(distance, same, fold, strict=True) if f != held_out
            ]
            if np.mean(hits) > best:
                best, chosen = float(np.mean(hits)), threshold
        test = [(d < chosen) == s for d, s, f in zip(distance, same, fold, strict=True) if f == held_out]
        accuracies.append(np.mean(test))
        thresholds.append(chosen)
    found = protocols.fold_accuracy(distance, same, fold)
    np.testing.assert_allclose(found.accuracy, accuracies, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.threshold, thresholds)
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies))


def test_folds_of_unequal_size_are_each_their_own_share() -> None:
    distance = np.array([0.1, 3.0, 0.1, 0.1, 3.0])
    same = np.array([True, False, True, True, True])
    found = protocols.fold_accuracy(distance, same, np.array([0, 0, 1, 1, 1]))
    np.testing.assert_allclose(found.accuracy, [1 / 2, 2 / 3])  # the first by 3.01, the second by 0.11


def test_a_single_fold_or_a_gap_is_refused() -> None:
    values, same = np.array([0.1, 0.2]), np.array([True, False])
    with pytest.raises(ConfigError, match="two or more"):
        protocols.fold_accuracy(values, same, np.array([0, 0]))
    with pytest.raises(ConfigError, match="numbered from 0"):
        protocols.fold_accuracy(values, same, np.array([0, 2]))


def test_nan_is_refused_and_its_place_named() -> None:
    values, same = np.array([0.1, np.nan]), np.array([True, False])
    for measure in (
        lambda: protocols.fold_accuracy(values, same, np.array([0, 1])),
        lambda: protocols.roc(values, same),
    ):
        with pytest.raises(ConfigError, match="the first is number 1"):
            measure()


@pytest.mark.parametrize("kind", [True, False])
def test_pairs_of_one_kind_have_no_roc(kind: bool) -> None:
    with pytest.raises(ConfigError, match="both kinds"):
        protocols.roc(np.array([0.5, 0.1]), np.array([kind, kind]))


@pytest.mark.parametrize("decimals", [1, 8])  # 1: hardly a value that does not come twice
def test_tar_at_far_equals_counting(decimals: int) -> None:
    similarity = RNG.normal(0, 1, 400).round(decimals)
    same = RNG.random(400) < 0.3
    similarity[same] += 1
    similarity = similarity.round(decimals)
    curve = protocols.roc(similarity, same)
    thresholds = [np.inf, *np.unique(similarity)[::-1]]
    far = np.array([(similarity[~same] >= t).mean() for t in thresholds])
    tar = np.array([(similarity[same] >= t).mean() for t in thresholds])
    for wanted in (0.001, 0.01, 0.1, 0.5, 0.9):
        assert curve.tar_at(wanted) == pytest.approx(tar[far <= wanted].max())
        nearest = np.abs(far - wanted)
        assert curve.tar_nearest(wanted) in tar[nearest == nearest.min()]
    mates, others = similarity[same], similarity[~same]
    wins = (mates[:, None] > others).mean() + 0.5 * (mates[:, None] == others).mean()
    assert curve.auc == pytest.approx(wins)


def test_constant_similarity_is_chance() -> None:
    curve = protocols.roc(np.zeros(10), np.arange(10) < 5)
    assert curve.auc == pytest.approx(0.5)
    assert curve.tar_at(0.1) == 0


def test_templates_are_the_sum_over_media_of_their_means() -> None:
    embedding = RNG.normal(size=(9, 4))
    template = np.array([7, 7, 7, 7, 2, 2, 2, 5, 5])
    media = np.array([0, 0, 1, 3, 0, 0, 0, 4, 1])  # medium 0 of template 7 is not medium 0 of template 2
    names, found = protocols.template_embeddings(embedding, template, media)
    expected = []
    for name in (2, 5, 7):
        total = np.zeros(4)
        for medium in set(media[template == name]):
            total += embedding[(template == name) & (media == medium)].mean(axis=0)
        expected.append(total / np.linalg.norm(total))
    assert names.tolist() == [2, 5, 7]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_similarity_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = RNG.normal(size=(20, 3))
    left, right = RNG.integers(0, 20, 50), RNG.integers(0, 20, 50)
    expected = [float(vectors[a] @ vectors[b]) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(protocols.pair_similarity(vectors, left, right, block=7), expected)
    assert protocols.pair_similarity(vectors, left[:0], right[:0]).shape == (0,)


def test_a_zero_vector_stays_zero() -> None:
    np.testing.assert_array_equal(protocols.unit(np.array([[0.0, 0], [3, 4]])), [[0, 0], [0.6, 0.8]])
