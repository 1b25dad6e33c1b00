"""Which rows of a set can be used, and whether pretraining has seen its people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import ConfigError
from data_prep.beton import SourceNote, read_labels, write_beton
from downstream.labelled import SECOND, check_disjoint, open_labelled
from downstream.tasks import make
from tests.downstream.conftest import write_faces

POSE = [make("pose")]


@pytest.fixture(scope="module")
def jpegs(labelled_set: Path) -> list[bytes]:
    from data_prep.beton import Beton

    beton = Beton(labelled_set)
    return [beton.jpeg(i) for i in range(8)]


def _write(
    path: Path, jpegs: list[bytes], identities: list[int | None], *sources: SourceNote, **labels: object
) -> str:
    count = len(identities)
    columns = {
        "pose": [[0.0, 1.0, float(i)] for i in range(count)],
        "identity": pa.array(identities, pa.int64()),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns | labels), path.with_suffix(".parquet"))
    write_beton(path, jpegs[:count], np.arange(count), np.full(count, -1), sources=sources)
    return str(path)


def _note(kind: str, name: str = "it", offset: int = 0) -> SourceNote:
    return SourceNote(name=name, kind=kind, synthetic=False, images=8, identity_offset=offset)


def test_people_are_those_of_a_corpus(jpegs: list[bytes], tmp_path: Path) -> None:
    ours = _write(tmp_path / "a/set.beton", jpegs, [1, 1, 2, 2], _note("disfa"))
    labelled = open_labelled([ours], POSE)
    other = _write(tmp_path / "b/set.beton", jpegs, [1, 1, 3, 3], _note("vggface2"))
    assert check_disjoint(labelled, other) is None, "the numbers of two corpora mean different people"
    same = _write(tmp_path / "c/set.beton", jpegs, [3, 3, 4, 4], _note("disfa"))
    assert check_disjoint(labelled, same) is True
    union = _write(
        tmp_path / "d/set.beton", jpegs, [1, 5, 102, 103], _note("vggface2"), _note("disfa", offset=100)
    )
    with pytest.raises(ConfigError, match=r"1 people of .* are also in .* \(for example 2\)"):
        check_disjoint(labelled, union)
    some = _write(tmp_path / "e/set.beton", jpegs, [3, None, 4, 4], _note("disfa"))
    assert check_disjoint(labelled, some) is None, "nobody knows who the second is"
    mine = _write(tmp_path / "f/set.beton", jpegs, [1, 1], _note("folder", "mine"))
    yours = _write(tmp_path / "g/set.beton", jpegs, [1, 1], _note("folder", "yours"))
    assert check_disjoint(open_labelled([mine], POSE), yours) is None


def test_two_sets_keep_their_columns_and_people(jpegs: list[bytes], tmp_path: Path) -> None:
    first = _write(tmp_path / "a/set.beton", jpegs, [1, None], _note("disfa"))
    second = _write(tmp_path / "b/set.beton", jpegs, [1, 2, 2], _note("bp4d"), frontal=[True, False, True])
    labelled = open_labelled([first, second], POSE)
    assert labelled.first_test == 2
    assert labelled.identities.tolist() == [1, -1, SECOND + 1, SECOND + 2, SECOND + 2]
    assert labelled.table["frontal"].to_pylist() == [None, None, True, False, True]
    assert len(np.unique(labelled.people)) == 4
    with pytest.raises(ConfigError, match="test_data: is the set that is learnt from"):
        open_labelled([first, first], POSE)


def test_labels_of_other_pictures_are_refused(labelled_set: Path, tmp_path: Path) -> None:
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").symlink_to(labelled_set.with_suffix(suffix))
    pq.write_table(read_labels(labelled_set).slice(1), tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match=r"set\.parquet: has 239 rows for 240 pictures"):
        open_labelled([str(tmp_path / "set.beton")], POSE)


def test_synthetic_people_are_one_corpus(tmp_path: Path) -> None:
    ours = write_faces(tmp_path / "a.beton", people=2, pictures=4)
    theirs = write_faces(tmp_path / "b.beton", people=2, pictures=4, identity_start=1)
    with pytest.raises(ConfigError, match="1 people of"):
        check_disjoint(open_labelled([str(ours)], POSE), str(theirs))
