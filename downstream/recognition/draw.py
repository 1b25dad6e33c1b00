"""A verification set from the people of a labelled set: ten folds of disjoint people, half the pairs of one person.

People are drawn first and their pictures then, so that somebody with a thousand pictures weighs as much as somebody
with ten. The folds share no person, so the threshold of each is chosen on others. The draws are a pure function of
the seed and the people, whatever the version of numpy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from configs import ConfigError
from data_prep.beton import read_labels, read_manifest
from downstream.recognition.pairs import FOLDS, Pair, Pairs, gather
from downstream.regimes import read_split
from pretrain.views import uniforms

Rows = NDArray[np.int64]

_DRAWS = 4096  # at once


def people_of(data: Path, split: Path | None = None) -> dict[int, Rows]:
    """Person -> rows of the .beton ``data``; of those held out by the stored ``split`` only, where it is given.

    Raises:
        ConfigError: a file is missing, the set knows no people, or the split is of another set.
    """
    if not data.is_file():
        raise ConfigError(
            f"sets.data: {data} does not exist; run the data preparation of the labelled set first"
        )
    table = read_labels(data)
    if "identity" not in table.column_names:
        raise ConfigError(
            f"sets.data: {data} has no labels 'identity'; pairs can be drawn only of known people"
        )
    identities = np.asarray(pc.fill_null(table["identity"], -1).to_numpy(), dtype=np.int64)
    order = np.argsort(identities, kind="stable")
    people, starts = np.unique(identities[order], return_index=True)
    rows = dict(zip(people.tolist(), np.split(order, starts[1:]), strict=True))
    rows.pop(-1, None)
    if split is None:
        return rows
    stored = read_split(split)
    if stored.data_sha256 != read_manifest(data).sha256:
        raise ConfigError(
            f"sets.split: {split} divides another set than {data}; name the file beside this one"
        )
    held_out = set(identities[stored.test_rows].tolist())
    return {person: own for person, own in rows.items() if person in held_out}


def draw_pairs(people: Mapping[int, Rows], count: int, seed: int, data: Path) -> Pairs:
    """``count`` pairs, a twentieth of them of one person and a twentieth of two in each fold; no pair twice.

    Args:
        people: Person -> rows. Who has one picture only is left out: in pairs of two people alone such people could
            be told by themselves.
        count: A multiple of 20.
        seed: Of the folds and the pairs.
        data: Named in errors.

    Returns:
        The pairs; their names are the rows, as texts.

    Raises:
        ConfigError: fewer than 20 people have two pictures, or a fold has not so many pairs.
    """
    several = {person: rows for person, rows in people.items() if len(rows) > 1}
    if len(several) < 2 * FOLDS:
        raise ConfigError(
            f"{data}: {len(several)} of {len(people)} people have two pictures or more; {FOLDS} folds of "
            f"two people need {2 * FOLDS}"
        )
    order = sorted(several, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
    folds = [[several[person] for person in order[fold::FOLDS]] for fold in range(FOLDS)]
    possible = 2 * FOLDS * min(min(_possible(members)) for members in folds)
    if count > possible:
        raise ConfigError(
            f"{data}: {count} pairs cannot be drawn; its people's pictures make up to {possible}"
        )
    pairs: list[Pair] = []
    for fold, members in enumerate(folds):
        for same in (True, False):
            drawn = _draw(members, same, count // (2 * FOLDS), seed, fold)
            pairs += [(str(left), str(right), same, fold) for left, right in drawn]
    return gather(pairs, data)


def _possible(members: Sequence[Rows]) -> tuple[int, int]:
    """How many pairs of one person there are, and of two."""
    sizes = np.array([len(rows) for rows in members], np.int64)
    return int((sizes * (sizes - 1) // 2).sum()), int((sizes.sum() ** 2 - (sizes**2).sum()) // 2)


def _draw(members: Sequence[Rows], same: bool, count: int, seed: int, fold: int) -> list[tuple[int, int]]:
    """``count`` different pairs of rows, of one of the ``members`` each, or of two."""
    found: dict[tuple[int, int], None] = {}
    for pair in _pairs(members, same, seed, fold):
        found[pair] = None
        if len(found) == count:
            break
    return list(found)


def _pairs(members: Sequence[Rows], same: bool, seed: int, fold: int) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the smaller one first, without end."""
    for start in itertools.count(0, _DRAWS):
        numbers = np.arange(start, start + _DRAWS)
        for a, b, i, j in uniforms(seed, fold, int(same), numbers, 4).tolist():
            if same:
                rows = members[int(a * len(members))]
                pair = [int(rows[k]) for k in _two(i, j, len(rows))]
            else:
                one, other = (members[k] for k in _two(a, b, len(members)))
                pair = [int(one[int(i * len(one))]), int(other[int(j * len(other))])]
            yield min(pair), max(pair)


def _two(u: float, v: float, count: int) -> tuple[int, int]:
    """Two different ones of ``count``, each pair equally likely, from two numbers in [0, 1)."""
    first, second = int(u * count), int(v * (count - 1))
    return first, second + (second >= first)
