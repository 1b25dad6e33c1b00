"""The protocols of face verification: accuracy in ten folds, TAR at a FAR, templates of many pictures.

Every one of them takes what was measured (distances, similarities) and who is who, and knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from configs import ConfigError

Float = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]

THRESHOLDS: Float = np.arange(0, 4, 0.01)
"""Of the squared distance of two unit vectors, which lies in [0, 4]: the grid of the published LFW protocol code
(facenet, insightface)."""


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy on each fold, with the threshold that was best on the others."""

    accuracy: Float
    """(F,) shares."""
    threshold: Float
    """(F,) squared distances."""

    @property
    def mean(self) -> float:
        """Of the folds."""
        return float(self.accuracy.mean())

    @property
    def std(self) -> float:
        """Of the folds, divided by F as the protocol's code does (ddof 0)."""
        return float(self.accuracy.std())


def fold_accuracy(distance: Float, same: Bools, fold: Indices) -> FoldAccuracy:
    """LFW's protocol, "unrestricted" (Huang et al. 2007): the threshold is chosen on all folds but one.

    A pair is called the same person where its distance is *below* the threshold; of several best thresholds of
    :data:`THRESHOLDS` the smallest counts.

    Args:
        distance: (P,) squared Euclidean distances of unit vectors, in [0, 4].
        same: (P,) whether the two pictures show one person.
        fold: (P,) the fold of each pair, 0 .. F-1, F at least 2.

    Raises:
        ConfigError: not finite, one fold only, or the folds are not numbered without a gap.
    """
    _finite(distance)
    folds = np.unique(fold)
    if len(folds) < 2 or not np.array_equal(folds, np.arange(len(folds))):
        raise ConfigError(f"pairs: folds {folds.tolist()}; the protocol needs two or more, numbered from 0")
    right = (distance < THRESHOLDS[:, None]) == same
    hits = np.stack([right[:, fold == number].sum(axis=1) for number in folds], axis=1)
    sizes = np.bincount(fold)
    best = np.argmax(hits.sum(axis=1, keepdims=True) - hits, axis=0)
    return FoldAccuracy(hits[best, folds] / sizes, THRESHOLDS[best])


@dataclass(frozen=True)
class Roc:
    """False and true accept rates over all thresholds, ascending, from (0, 0) to (1, 1)."""

    far: Float
    tar: Float

    def tar_at(self, far: float) -> float:
        """The largest true accept rate among thresholds whose false accept rate is at most ``far``: what can be
        promised. (scikit-learn's curve, no interpolation.)
        """
        return float(self.tar[np.searchsorted(self.far, far, side="right") - 1])

    def tar_nearest(self, far: float) -> float:
        """The true accept rate at the threshold whose false accept rate is nearest to ``far``, either side, as
        insightface's IJB evaluation reports; of equally near ones that of the larger rate.
        """
        gap = np.abs(self.far - far)
        return float(self.tar[len(gap) - 1 - np.argmin(gap[::-1])])

    @property
    def auc(self) -> float:
        """Area under the curve."""
        return float(np.trapezoid(self.tar, self.far))


def roc(similarity: Float, same: Bools) -> Roc:
    """The curve of (P,) similarities, larger for the same person.

    Raises:
        ConfigError: not finite, or all pairs are of one kind: then there is nothing to tell apart.
    """
    _finite(similarity)
    if same.all() or not same.any():
        kind = "the same person" if same.all() else "different people"
        raise ConfigError(f"pairs: all {len(same)} are of {kind}; a ROC needs both kinds")
    far, tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    return Roc(far, tar)


def template_embeddings(embedding: Float, template: Indices, media: Indices) -> tuple[Indices, Float]:
    """IJB's templates (Whitelam et al. 2017) as insightface pools them: the mean of each medium, then the sum.

    The frames of one video count as much as one still picture. Embeddings are taken as they are, not normalised
    each, so that the network's own confidence, their length, weighs.

    Args:
        embedding: (N, D) of the faces, each already the sum with its mirror image.
        template: (N,) the template of each face.
        media: (N,) the still or the video that it comes from; numbers count within a template.

    Returns:
        (T,) the templates, ascending, and (T, D) their unit vectors.
    """
    _finite(embedding)
    keys, member = np.unique(np.stack([template, media], axis=1), axis=0, return_inverse=True)
    member = member.reshape(-1)
    means = np.zeros((len(keys), embedding.shape[1]))
    np.add.at(means, member, embedding)
    means /= np.bincount(member)[:, None]
    templates, owner = np.unique(keys[:, 0], return_inverse=True)
    pooled = np.zeros((len(templates), embedding.shape[1]))
    np.add.at(pooled, owner, means)
    return templates, unit(pooled)


def unit(vectors: Float) -> Float:
    """(N, D) -> the same directions at length 1; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def pair_similarity(vectors: Float, left: Indices, right: Indices, block: int = 1 << 16) -> Float:
    """(P,) dot products of (N, D) vectors; IJB has 16 million pairs, so a block at a time."""
    parts: Sequence[Float] = [
        np.einsum("ij,ij->i", vectors[left[start : start + block]], vectors[right[start : start + block]])
        for start in range(0, len(left), block)
    ]
    return np.concatenate([np.empty(0), *parts])


def _finite(values: Float) -> None:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"{len(bad)} of {len(values)} values are not finite, the first is number {bad[0]}: the network gives "
            "NaN or infinity there; check its weights and its normalisation"
        )
