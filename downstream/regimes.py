"""Who is held out, and which labels may be used: fixed once for a data set, stored, and reused.

The split is by identity and the label subsets are prefixes of one random order of the training pictures, so the
2 % lie inside the 10 %. The order is drawn from the data set's hash and a seed without a look at any label
(Bulat et al. 2022: "random, one subset fixed for all experiments"). The file keeps the choice should numpy's
generator ever change.

For face recognition they keep at least a quarter of the identities at 2 %. How, they do not say; here the prefix goes
on until so many are in it (:meth:`Split.labels_of_people`).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pydantic
from numpy.typing import NDArray

from configs import Config, ConfigError
from data_prep.files import write_json

Indices = NDArray[np.int64]

PEOPLE = 1 / 4
"""Share of the training identities that every label share keeps for recognition (Bulat et al. 2022, supplement)."""


class Split(Config):
    """Rows of one .beton, divided."""

    data_sha256: str
    """Of the .beton."""
    seed: int
    """Of the split and of the order."""
    test_share: float
    """Share of the identities asked for."""
    test_identities: tuple[int, ...]
    """The held-out people."""
    test_rows: tuple[int, ...]
    """Rows of the .beton that show them, ascending."""
    train_rows: tuple[int, ...]
    """All other rows, in the fixed random order whose prefixes are the label subsets."""

    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def only(self, rows: Indices) -> Split:
        """The same split and order without the rows that are not in ``rows`` (their labels are incomplete)."""
        kept = set(rows.tolist())
        return self.model_copy(
            update={
                "test_rows": tuple(row for row in self.test_rows if row in kept),
                "train_rows": tuple(row for row in self.train_rows if row in kept),
            }
        )

    def labels(self, fraction: float) -> Indices:
        """The rows of the training pictures whose labels may be used at ``fraction``."""
        return np.array(self.train_rows[: max(1, round(fraction * len(self.train_rows)))], dtype=np.int64)

    def labels_of_people(self, fraction: float, identities: NDArray[np.int64]) -> Indices:
        """The same for learning to tell people apart: the prefix is extended until at least :data:`PEOPLE` of the
        training identities are in it. The order stays blind to labels, so larger fractions still hold smaller ones.

        Args:
            fraction: Share of the training pictures.
            identities: (M,) the person in each row of the .beton.
        """
        _, first = np.unique(identities[np.array(self.train_rows, dtype=np.int64)], return_index=True)
        enough = np.sort(first)[math.ceil(PEOPLE * len(first)) - 1] + 1
        return np.array(self.train_rows[: max(len(self.labels(fraction)), enough)], dtype=np.int64)


def make_split(rows: Indices, identities: Indices, data_sha256: str, test_share: float, seed: int) -> Split:
    """Divide ``rows`` (N,) of a .beton by their ``identities`` (N,)."""
    people = np.unique(identities)
    # By hash and not by position: a person stays on one side when others join the set.
    ordered = sorted(people.tolist(), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    test = sorted(ordered[: round(test_share * len(people))])
    if not test or len(test) == len(people):
        raise ConfigError(
            f"test_share: {test_share} of {len(people)} people leaves no one on one side; change it"
        )
    held_out = np.isin(identities, test)
    entropy = [seed, int(data_sha256[:16], 16)]
    order = np.random.default_rng(np.random.SeedSequence(entropy)).permutation(np.sort(rows[~held_out]))
    return Split(
        data_sha256=data_sha256,
        seed=seed,
        test_share=test_share,
        test_identities=tuple(test),
        test_rows=tuple(np.sort(rows[held_out]).tolist()),
        train_rows=tuple(order.tolist()),
    )


def fixed_split(path: Path, fresh: Split) -> Split:
    """The split stored at ``path``; ``fresh`` is stored there first if there is none.

    Raises:
        ConfigError: if the file is damaged or belongs to other data or settings.
    """
    if not path.exists():
        write_json(path, {"sha256": fresh.sha256(), "split": fresh.model_dump(mode="json")})
    split = read_split(path)
    for field in ("data_sha256", "seed", "test_share"):
        if getattr(split, field) != getattr(fresh, field):
            raise ConfigError(f"{path}: made for another {field}; name another file in 'split' or delete it")
    return split


def read_split(path: Path) -> Split:
    """The split stored at ``path``.

    Raises:
        ConfigError: there is none, or it is damaged.
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
