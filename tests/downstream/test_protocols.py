"""Who is learnt from and who is tested on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from configs import ConfigError
from downstream.protocols import Column, Folds, People, Sets

UNKNOWN = np.full(6, -1)
SPLITS = pa.table({"split": ["train", "train", "common", None, "challenge", "test"]})


def test_people_who_are_not_known_are_left_out() -> None:
    identities = np.array([3, 3, 4, -1, 5, 5])
    [(train, test)] = People(test_share=0.4).parts(SPLITS, identities, 6, 0)
    assert sorted([*train, *test]) == [0, 1, 2, 4, 5]
    assert not set(identities[train]) & set(identities[test])
    with pytest.raises(ConfigError, match="leaves no one on one side"):
        People(test_share=0.4).parts(SPLITS, np.zeros(6, int), 6, 0)
    with pytest.raises(ConfigError, match="does not know its people"):
        People().parts(SPLITS, UNKNOWN, 6, 0)


def test_a_column_says_it() -> None:
    protocol = Column(kind="column", test=("common", "challenge"))
    [(train, test)] = protocol.parts(SPLITS, UNKNOWN, 6, 0)
    assert train.tolist() == [0, 1]
    assert test.tolist() == [2, 4]
    with pytest.raises(
        ConfigError, match=r"no row has 'val' in column 'split' \(there are: 'challenge', 'common'"
    ):
        Column(kind="column", test=("val",)).parts(SPLITS, UNKNOWN, 6, 0)
    numbers = pa.table({"fold": pa.array([0, 1, 2, 0, None, 2])})
    protocol = Column.model_validate_json(
        '{"kind": "column", "column": "fold", "train": [0, 1], "test": [2]}'
    )
    [(train, test)] = protocol.parts(numbers, UNKNOWN, 6, 0)
    assert (train.tolist(), test.tolist()) == ([0, 1, 3], [2, 5])
    with pytest.raises(ConfigError, match=r"no row has '2' in column 'fold' \(there are: 0, 1, 2\)"):
        Column(kind="column", column="fold", train=(0, 1), test=("2",)).parts(numbers, UNKNOWN, 6, 0)
    with pytest.raises(ConfigError, match="'test' is both learnt from and tested on"):
        Column(kind="column", train=("train", "test")).parts(SPLITS, UNKNOWN, 6, 0)
    with pytest.raises(ConfigError, match=r"no column 'part' \(there are: split\)"):
        Column(kind="column", column="part").parts(SPLITS, UNKNOWN, 6, 0)


def test_folds_keep_people_together() -> None:
    table = pa.table({"fold": pa.array([1, 1, 2, None, 3, 3], pa.int32())})
    people = np.array([7, 7, 8, 9, 6, 6])
    parts = Folds(kind="folds").parts(table, people, 6, 0)
    assert [test.tolist() for _, test in parts] == [[0, 1], [2], [4, 5]]
    assert [train.tolist() for train, _ in parts] == [[2, 4, 5], [0, 1, 4, 5], [0, 1, 2]]
    with pytest.raises(ConfigError, match="person 7 is in folds 1 and 2"):
        Folds(kind="folds").parts(table, np.array([7, 7, 7, 9, 6, 6]), 6, 0)
    named = table.append_column("identity_name", pa.array(["Ann", "Ann", "Ann", "Bea", "Cy", None]))
    with pytest.raises(ConfigError, match="person 'Ann' is in folds 1 and 2"):
        Folds(kind="folds").parts(named, np.array([7, 7, 7, 9, 6, 6]), 6, 0)
    with pytest.raises(ConfigError, match="has 1 folds"):
        Folds(kind="folds").parts(pa.table({"fold": [1] * 6}), people, 6, 0)


def test_two_sets() -> None:
    [(train, test)] = Sets(kind="sets").parts(SPLITS, UNKNOWN, 4, 0)
    assert train.tolist() == [0, 1, 2, 3]
    assert test.tolist() == [4, 5]
    with pytest.raises(ConfigError, match="test_data: missing"):
        Sets(kind="sets").parts(SPLITS, UNKNOWN, 6, 0)
