"""The fixed split and the label subsets."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs import ConfigError
from downstream.protocols import People
from downstream.regimes import Split, fixed_split, make_split

SHA = "ab" * 32


def _split(seed: int = 0, sha: str = SHA, people: int = 50) -> Split:
    identities = np.arange(people * 10) // 10
    protocol = People(test_share=0.4)
    parts = protocol.parts(pa.table({}), identities, len(identities), seed)
    return make_split(parts, sha, protocol.model_dump_json(), seed)


def test_no_person_is_on_both_sides_and_no_row_is_lost() -> None:
    split = _split()
    train, test = ({row // 10 for row in rows.tolist()} for rows in (split.train_rows, split.test_rows))
    assert not train & test
    assert sorted([*split.train_rows, *split.test_rows]) == list(range(500))
    assert len(test) == 20


def test_subsets_are_nested_and_as_large_as_they_say() -> None:
    part = _split().parts[0]
    subsets = [part.labels(fraction) for fraction in (1.0, 0.1, 0.02, 0.01)]
    assert [len(rows) for rows in subsets] == [300, 30, 6, 3]
    for large, small in pairwise(subsets):
        assert set(small) < set(large)
        np.testing.assert_array_equal(large[: len(small)], small)


def test_a_quarter_of_the_people_stays() -> None:
    part, people = _split().parts[0], np.arange(500) // 10
    for fraction in (1.0, 0.1, 0.02, 0.01):
        rows = part.labels(fraction, people)
        assert len(np.unique(people[rows])) >= 30 / 4
        np.testing.assert_array_equal(rows, part.labels(1.0)[: len(rows)])
    assert len(part.labels(1.0, people)) == 300
    # Not one row more than it takes: without the last, it would be fewer.
    assert len(np.unique(people[part.labels(0.01, people)[:-1]])) == 7


def test_they_depend_on_the_data_and_the_seed_alone() -> None:
    assert _split() == _split()
    assert _split().parts[0].train_rows != _split(seed=1).parts[0].train_rows
    assert _split().parts[0].train_rows != _split(sha="cd" * 32).parts[0].train_rows


def test_a_person_stays_on_one_side_when_others_join() -> None:
    small, large = (set(_split(people=n).test_rows.tolist()) for n in (50, 55))
    moved = {i for i in range(50) if (10 * i in small) != (10 * i in large)}
    assert len(moved) <= 2


def test_rows_without_labels_are_passed_over_in_the_same_order() -> None:
    split = _split()
    kept = np.array([row for row in range(500) if row % 7])
    some = split.only(kept)
    assert list(some.parts[0].train_rows) == [row for row in split.parts[0].train_rows if row % 7]
    assert set(some.test_rows) == set(split.test_rows) & set(kept)


def test_the_file_is_made_once_and_reused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    first = fixed_split(path, _split())
    tree = json.loads(path.read_text())
    # Another numpy would draw another order; the stored one wins.
    part = first.parts[0]
    turned = part.model_copy(update={"train_rows": part.train_rows[::-1]})
    other = first.model_copy(update={"parts": (turned,)})
    assert fixed_split(path, other) == first
    tree["split"]["parts"][0]["train_rows"][0] += 1
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="damaged"):
        fixed_split(path, _split())


def test_a_file_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    fixed_split(path, _split())
    with pytest.raises(ConfigError, match="another data_sha256"):
        fixed_split(path, _split(sha="cd" * 32))


def test_a_division_that_the_labels_no_longer_say_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    first = fixed_split(path, _split())
    part = first.parts[0]
    turned = part.model_copy(update={"train_rows": part.test_rows, "test_rows": part.train_rows})
    with pytest.raises(ConfigError, match="divides the set otherwise than its labels do now"):
        fixed_split(path, first.model_copy(update={"parts": (turned,)}))
