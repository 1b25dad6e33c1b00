"""Who is held out, and which labels may be used: fixed once for a data set, stored, and reused.

The label subsets are prefixes of one random order of the training pictures, so the 2 % lie inside the 10 %. The order
is drawn from the data set's hash and a seed without a look at any label (Bulat et al. 2022: "random, one subset fixed
for all experiments"). The file keeps the choice should numpy's generator ever change.

For face recognition they keep at least a quarter of the identities at 2 %. How, they do not say; here the prefix goes
on until so many are in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic
from numpy.typing import NDArray

from configs import Config, ConfigError
from data_prep.files import write_json
from downstream.protocols import Indices, Part

QUARTER = 4
"""Recognition keeps at least a quarter of the training people at every share (Bulat et al.)."""


class PartRows(Config):
    """What is learnt from and tested on together: all there is, or one fold."""

    test_rows: tuple[int, ...]
    """Ascending."""
    train_rows: tuple[int, ...]
    """In the fixed random order whose prefixes are the label subsets."""

    def labels(self, fraction: float, people: Indices | None = None) -> Indices:
        """The rows of the training pictures whose labels may be used at ``fraction``.

        Args:
            fraction: Share of the training pictures.
            people: (M,) the person in each row of the set; given, the prefix is as long as it takes to have at
                least a quarter of the training people in it.
        """
        count = max(1, round(fraction * len(self.train_rows)))
        rows = np.array(self.train_rows, dtype=np.int64)
        if people is not None:
            _, first = np.unique(people[rows], return_index=True)
            count = max(count, int(np.sort(first)[-(-len(first) // QUARTER) - 1]) + 1)
        return rows[:count]


class Split(Config):
    """Rows of a .beton, or of two joined ones, divided."""

    data_sha256: str
    """Of the .beton."""
    seed: int
    """Of the people held out, and of the order."""
    protocol: str
    """The protocol's settings, as JSON."""
    parts: tuple[PartRows, ...]
    """One, or a part a fold."""

    @property
    def test_rows(self) -> Indices:
        """Of all parts, one after another."""
        return np.concatenate([np.array(part.test_rows, dtype=np.int64) for part in self.parts])

    @property
    def train_rows(self) -> Indices:
        """Every row that is learnt from in some part."""
        return np.unique(np.concatenate([np.array(part.train_rows, dtype=np.int64) for part in self.parts]))

    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def only(self, rows: Indices) -> Split:
        """The same split and order without the rows that are not in ``rows`` (their labels are incomplete)."""
        kept = set(rows.tolist())
        parts = tuple(
            PartRows(
                test_rows=tuple(row for row in part.test_rows if row in kept),
                train_rows=tuple(row for row in part.train_rows if row in kept),
            )
            for part in self.parts
        )
        return self.model_copy(update={"parts": parts})


def make_split(parts: Sequence[Part], data_sha256: str, protocol: str, seed: int) -> Split:
    """Draw the order of the training rows of each part."""
    entropy = [seed, int(data_sha256[:16], 16)]
    rows = []
    for number, (train, test) in enumerate(parts):
        generator = np.random.default_rng(np.random.SeedSequence([*entropy, *([number] if number else [])]))
        order: NDArray[np.int64] = generator.permutation(np.sort(train))
        rows.append(PartRows(test_rows=tuple(np.sort(test).tolist()), train_rows=tuple(order.tolist())))
    return Split(data_sha256=data_sha256, seed=seed, protocol=protocol, parts=tuple(rows))


def fixed_split(path: Path, fresh: Split) -> Split:
    """The split stored at ``path``; ``fresh`` is stored there first if there is none.

    Raises:
        ConfigError: if the file is damaged or belongs to other data or settings.
    """
    if not path.exists():
        write_json(path, {"sha256": fresh.sha256(), "split": fresh.model_dump(mode="json")})
    split = read_split(path)
    for field in ("data_sha256", "seed", "protocol"):
        if getattr(split, field) != getattr(fresh, field):
            raise ConfigError(f"{path}: made for another {field}; name another file in 'split' or delete it")
    if [_sides(part) for part in split.parts] != [_sides(part) for part in fresh.parts]:
        raise ConfigError(
            f"{path}: divides the set otherwise than its labels do now; name another file in 'split' or delete it"
        )
    return split


def _sides(part: PartRows) -> tuple[list[int], list[int]]:
    """What is learnt from and tested on, whatever the order."""
    return sorted(part.train_rows), sorted(part.test_rows)


def read_split(path: Path) -> Split:
    """A stored split.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    try:
        stored = json.loads(path.read_text())
        split = Split.model_validate_json(json.dumps(stored["split"]))
        intact = split.sha256() == stored["sha256"]
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); an evaluation of the set makes it"
        ) from None
    except (ValueError, KeyError, TypeError, pydantic.ValidationError):
        intact = False
    if not intact:
        raise ConfigError(f"{path}: damaged; delete it, it is made again")
    return split
