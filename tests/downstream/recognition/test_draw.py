"""Verification sets drawn from the people of a labelled set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics import roc_auc_score

from configs import ConfigError, load
from data_prep.beton import Beton, read_manifest
from downstream.config import Random
from downstream.features import load_network, resize
from downstream.recognition.config import VerifyConfig
from downstream.recognition.draw import draw_pairs, people_of
from downstream.recognition.pairs import Pairs
from downstream.recognition.verify import inputs_hash, verify
from downstream.regimes import Split, fixed_split
from tests.downstream.conftest import hold_out

SET = Path("set.beton")


def people(sizes: list[int]) -> dict[int, np.ndarray]:
    """Person 100, 101, ... with so many pictures each."""
    ends = np.cumsum(sizes)
    return {
        100 + i: np.arange(end - size, end) for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
    }


def rows_of(found: Pairs) -> tuple[np.ndarray, np.ndarray]:
    names = np.array(found.names, np.int64)
    return names[found.left], names[found.right]


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_of_disjoint_people_with_as_many_pairs_of_each_kind(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 30, 60).tolist()
    owner = np.repeat(np.arange(60), sizes)
    found = draw_pairs(people(sizes), 400, seed, SET)
    left, right = rows_of(found)
    np.testing.assert_array_equal(owner[left] == owner[right], found.same)
    assert Counter(zip(found.fold.tolist(), found.same.tolist(), strict=True)) == {
        (fold, same): 20 for fold in range(10) for same in (True, False)
    }
    assert len({frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}) == 400
    assert (left != right).all()
    in_fold = [{*owner[left[found.fold == f]], *owner[right[found.fold == f]]} for f in range(10)]
    assert sum(map(len, in_fold)) == len(set.union(*in_fold)), "somebody is in two folds"
    assert min(np.array(sizes)[list(set.union(*in_fold))]) > 1
    again = draw_pairs(people(sizes), 400, seed, SET)
    assert (again.names, again.left.tolist()) == (found.names, found.left.tolist())
    assert draw_pairs(people(sizes), 400, seed + 1, SET).names != found.names


def test_a_person_weighs_the_same_however_many_pictures_there_are() -> None:
    """One in each fold has 200 pictures, the other nine have 40 each; pairs of two are drawn from all alike."""
    sizes = [200 if i < 10 else 40 for i in range(100)]
    owner = np.repeat(np.arange(100), sizes)
    found = draw_pairs(people(sizes), 12_000, 0, SET)
    left, right = rows_of(found)
    kinds = Counter(owner[left[found.same]].tolist())
    assert chisquare([kinds[i] for i in range(100)], 6_000 * _expected(found, owner)).pvalue > 1e-3
    # Within a person every picture has the same chance.
    large = np.bincount(
        np.concatenate([left, right])[owner[np.concatenate([left, right])] < 10], minlength=2000
    )
    assert chisquare(large).pvalue > 1e-3


def _expected(found: Pairs, owner: np.ndarray) -> np.ndarray:
    """Share of the pairs of one person that each person should have: a tenth of a fold, by its number of people."""
    left, right = rows_of(found)
    share = np.zeros(100)
    for fold in range(10):
        here = np.unique(owner[np.concatenate([left[found.fold == fold], right[found.fold == fold]])])
        share[here] = 1 / len(here) / 10
    return share


def test_every_pair_that_there_is_can_be_asked_for() -> None:
    """Three people with two pictures in each fold: three pairs of one person, twelve of two."""
    found = draw_pairs(people([2] * 30), 60, 0, SET)
    assert len(found) == 60
    with pytest.raises(ConfigError, match=r"set\.beton: 80 pairs cannot be drawn; .* make up to 60$"):
        draw_pairs(people([2] * 30), 80, 0, SET)


def test_too_few_people_or_pictures() -> None:
    with pytest.raises(ConfigError, match=r"19 of 119 people have two pictures or more; .* need 20"):
        draw_pairs(people([5] * 19 + [1] * 100), 20, 0, SET)
    with pytest.raises(ConfigError, match=r"0 of 0 people"):
        draw_pairs({}, 20, 0, SET)


# --- from the command's configuration ------------------------------------------------------------------------


@pytest.fixture
def split(labelled_set: Path, tmp_path: Path) -> tuple[Path, Split]:
    """20 of the 24 people are held out."""
    people = pq.read_table(labelled_set.with_suffix(".parquet"))["identity"].to_numpy()
    fresh = hold_out(people, read_manifest(labelled_set).sha256, 20 / 24)
    return tmp_path / "split.json", fixed_split(tmp_path / "split.json", fresh)


def config(folder: Path, backbone: Path, **which: object) -> VerifyConfig:
    path = folder / "verify.yaml"
    rows = [{"kind": "random", "name": "random", "like": str(backbone)}]
    sets = [{"kind": "identities", "name": "own", "pairs": 100, **which}]
    path.write_text(json.dumps({"output": str(folder / "out"), "initialisations": rows, "sets": sets}))
    return load(path, schema=VerifyConfig)


def test_verification_of_held_out_people(
    labelled_set: Path, split: tuple[Path, Split], backbone: Path, tmp_path: Path
) -> None:
    path, stored = split
    cfg = config(tmp_path, backbone, data=str(labelled_set), split=str(path))
    (cell,) = verify(cfg).results
    assert (cell.pairs, cell.missing) == (100, 0)

    held_out = people_of(labelled_set, path)
    assert len(held_out) == 20
    assert sorted(np.concatenate([*held_out.values()]).tolist()) == list(stored.test_rows)
    found = draw_pairs(held_out, 100, 0, labelled_set)
    left, right = rows_of(found)
    vectors = embeddings(labelled_set, np.concatenate([left, right]), backbone)
    cosine = (vectors[:100] * vectors[100:]).sum(1)
    assert cell.auc == pytest.approx(100 * roc_auc_score(found.same, cosine), abs=0.05)
    everybody = verify(config(tmp_path, backbone, data=str(labelled_set))).results[0]
    assert everybody.auc != cell.auc


def embeddings(data: Path, rows: np.ndarray, backbone: Path) -> np.ndarray:
    network = load_network(Random(kind="random", name="random", like=str(backbone)), None)
    beton = Beton(data)
    pictures = [torch.tensor(beton.image(int(row))).permute(2, 0, 1)[None] for row in rows]
    small = torch.cat([resize(picture, network.size) for picture in pictures])
    with torch.inference_mode():
        both = network.module(network.normalise(small)) + network.module(network.normalise(small.flip(-1)))
    return torch.nn.functional.normalize(both.double()).numpy()


def test_other_labels_or_another_split_are_other_figures(
    labelled_set: Path, split: tuple[Path, Split], backbone: Path, tmp_path: Path
) -> None:
    path, stored = split
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").symlink_to(labelled_set.with_suffix(suffix))
    table = pq.read_table(labelled_set.with_suffix(".parquet"))
    pq.write_table(table, tmp_path / "set.parquet")
    cfg = config(tmp_path, backbone, data=str(tmp_path / "set.beton"), split=str(path))
    hashes = [inputs_hash(cfg)]
    rolled = np.roll(table["identity"].to_numpy(), 1)
    pq.write_table(
        table.drop_columns("identity").append_column("identity", [rolled]), tmp_path / "set.parquet"
    )
    hashes.append(inputs_hash(cfg))
    path.unlink()
    part = stored.parts[0]
    fewer = part.model_copy(update={"test_rows": part.test_rows[1:]})
    fixed_split(path, stored.model_copy(update={"parts": (fewer,)}))
    hashes.append(inputs_hash(cfg))
    assert len(set(hashes)) == 3


def test_what_is_missing_is_named(
    labelled_set: Path, other_people: Path, split: tuple[Path, Split], backbone: Path, tmp_path: Path
) -> None:
    path, _ = split
    cases = [
        ({"data": str(other_people)}, "6 of 6 people have two pictures or more"),
        ({"data": str(other_people), "split": str(path)}, "divides another set"),
        ({"data": str(labelled_set), "pairs": 20_000}, "20000 pairs cannot be drawn"),
        ({"data": str(tmp_path / "no.beton")}, r"no\.json does not exist"),
        ({"data": str(labelled_set), "split": str(tmp_path / "no.json")}, r"no\.json does not exist"),
    ]
    for which, message in cases:
        with pytest.raises(ConfigError, match=message):
            verify(config(tmp_path, backbone, **which))
    with pytest.raises(ConfigError, match=r"pairs: .*multiple of 20"):
        config(tmp_path, backbone, data=str(labelled_set), pairs=50)
    with pytest.raises(ConfigError, match=r"no\.json: cannot be read"):
        people_of(labelled_set, tmp_path / "no.json")
    with pytest.raises(ConfigError, match="does not exist; run the data preparation"):
        people_of(tmp_path / "no.beton")
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").symlink_to(labelled_set.with_suffix(suffix))
    table = pq.read_table(labelled_set.with_suffix(".parquet")).drop_columns("identity")
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match=r"set\.beton has no labels 'identity'"):
        people_of(tmp_path / "set.beton")
