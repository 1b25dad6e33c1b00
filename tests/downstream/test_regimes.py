"""The fixed split and the label subsets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import ConfigError
from downstream.regimes import Split, fixed_split, make_split, read_split

SHA = "ab" * 32


def _split(seed: int = 0, sha: str = SHA, people: int = 50) -> Split:
    rows = np.arange(people * 10)
    return make_split(rows, rows // 10, sha, test_share=0.4, seed=seed)


def test_no_person_is_on_both_sides_and_no_row_is_lost() -> None:
    split = _split()
    train, test = ({row // 10 for row in rows} for rows in (split.train_rows, split.test_rows))
    assert not train & test
    assert test == set(split.test_identities)
    assert sorted(split.train_rows + split.test_rows) == list(range(500))
    assert len(test) == 20


def test_subsets_are_nested_and_as_large_as_they_say() -> None:
    split = _split()
    sizes = [len(split.labels(fraction)) for fraction in (1.0, 0.1, 0.02)]
    assert sizes == [300, 30, 6]
    assert set(split.labels(0.02)) < set(split.labels(0.1)) < set(split.labels(1.0))


def test_they_depend_on_the_data_and_the_seed_alone() -> None:
    assert _split() == _split()
    assert _split().train_rows != _split(seed=1).train_rows
    assert _split().train_rows != _split(sha="cd" * 32).train_rows
    # The subset looks at no label: shuffled people beyond the split change nothing in the order of equal rows.
    rows = np.arange(100)
    a = make_split(rows, np.repeat([0, 1], 50), SHA, 0.5, 0)
    b = make_split(rows, np.repeat([7, 9], 50), SHA, 0.5, 0)
    assert a.train_rows == b.train_rows or set(a.train_rows) == set(b.test_rows)


def test_a_person_stays_on_one_side_when_others_join() -> None:
    small, large = _split(people=50), _split(people=55)
    moved = {i for i in range(50) if (i in small.test_identities) != (i in large.test_identities)}
    assert len(moved) <= 2


def test_rows_without_labels_are_passed_over_in_the_same_order() -> None:
    split = _split()
    kept = np.array([row for row in range(500) if row % 7])
    some = split.only(kept)
    assert list(some.train_rows) == [row for row in split.train_rows if row % 7]
    assert set(some.test_rows) == set(split.test_rows) & set(kept.tolist())


def test_the_file_is_made_once_and_reused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    first = fixed_split(path, _split())
    tree = json.loads(path.read_text())
    # Another numpy would draw another order; the stored one wins.
    other = first.model_copy(update={"train_rows": first.train_rows[::-1]})
    assert fixed_split(path, other) == first
    tree["split"]["train_rows"][0] += 1
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="damaged"):
        fixed_split(path, _split())


def test_a_file_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    fixed_split(path, _split())
    with pytest.raises(ConfigError, match="another data_sha256"):
        fixed_split(path, _split(sha="cd" * 32))


def test_a_share_that_leaves_a_side_empty_is_refused() -> None:
    rows = np.arange(10)
    with pytest.raises(ConfigError, match="test_share"):
        make_split(rows, np.zeros(10, dtype=int), SHA, 0.4, 0)


@pytest.mark.parametrize("fraction", [1.0, 0.1, 0.02, 0.001])
def test_for_recognition_a_quarter_of_the_people_is_kept(fraction: float) -> None:
    """People whose pictures are many and people whose are few: the prefix of 2 % alone would lose most of the few."""
    identities = np.concatenate([np.repeat(np.arange(20), 100), np.arange(20, 220)])
    split = make_split(np.arange(len(identities)), identities, SHA, test_share=0.4, seed=0)
    plain, extended = split.labels(fraction), split.labels_of_people(fraction, identities)
    order = list(split.train_rows)
    assert extended.tolist() == order[: len(extended)]
    everyone, kept = len(set(identities[order])), len(set(identities[extended]))
    assert kept >= everyone / 4
    if len(extended) > len(plain):  # not one picture more than it takes
        assert fraction < 1
        assert len(set(identities[extended[:-1]])) < everyone / 4
    else:
        np.testing.assert_array_equal(extended, plain)


def test_for_recognition_larger_shares_hold_smaller_ones_and_rows_may_be_missing() -> None:
    identities = np.arange(500) // 10
    split = _split().only(np.array([row for row in range(500) if row % 7]))
    shares = [split.labels_of_people(fraction, identities) for fraction in (0.02, 0.1, 1.0)]
    assert set(shares[0]) <= set(shares[1]) < set(shares[2])
    assert len(np.unique(identities[shares[0]])) >= 30 / 4
    assert set(shares[2]) == set(split.train_rows)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split\.json: cannot be read"):
        read_split(tmp_path / "split.json")
    stored = fixed_split(tmp_path / "split.json", _split())
    assert read_split(tmp_path / "split.json") == stored
