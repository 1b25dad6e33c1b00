"""Who is learnt from and who is tested on."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from configs import Config, ConfigError

Indices = NDArray[np.int64]
Part = tuple[Indices, Indices]
"""Rows to train on, rows to test on."""


class People(Config):
    """Some people are held out: for data without a published division."""

    kind: Literal["people"] = "people"
    """people"""
    test_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the identities that is held out for testing."""

    def parts(self, labels: pa.Table, identities: Indices, _first_test: int, seed: int) -> list[Part]:
        """Those whose SHA-256 of "seed/identity" is smallest are tested on. Rows of unknown people are left out.

        Raises:
            ConfigError: no one is left on one side.
        """
        people = np.unique(identities[identities >= 0])
        if not len(people):
            raise ConfigError(
                "protocol: the set does not know its people, so none can be held out; name the division that it has, "
                "for example protocol='{kind: column, column: split}'"
            )
        # By hash and not by position: a person stays on one side when others join the set.
        ordered = sorted(people.tolist(), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
        test = ordered[: round(self.test_share * len(people))]
        if not test or len(test) == len(people):
            raise ConfigError(
                f"protocol.test_share: {self.test_share} of {len(people)} people leaves no one on one side; change it"
            )
        held_out = np.isin(identities, test)
        return [(np.flatnonzero(~held_out & (identities >= 0)), np.flatnonzero(held_out))]


class Column(Config):
    """A published division that stands in a column of the set."""

    kind: Literal["column"]
    """column"""
    column: str = "split"
    """Which column."""
    train: tuple[str | int | bool, ...] = ("train",)
    """Its values for training."""
    test: tuple[str | int | bool, ...] = ("test",)
    """Its values for testing."""

    def parts(self, labels: pa.Table, identities: Indices, _first_test: int, _seed: int) -> list[Part]:
        """One part.

        Raises:
            ConfigError: no such column, or a value that no row has.
        """
        values = column_of(labels, self.column, "protocol.column")
        if both := set(self.train) & set(self.test):
            raise ConfigError(
                f"protocol: {min(map(repr, both))} is both learnt from and tested on; take it out of one"
            )
        for value in (*self.train, *self.test):
            if value not in values:
                known = ", ".join(sorted({repr(v) for v in values if v is not None}))
                raise ConfigError(
                    f"protocol: no row has {value!r} in column '{self.column}' (there are: {known})"
                )
        train, test = (np.flatnonzero(np.isin(values, list(names))) for names in (self.train, self.test))
        return [(train, test)]


class Folds(Config):
    """Cross-validation: each fold is tested on by what was learnt from the others; all test pictures together make
    the figures.
    """

    kind: Literal["folds"]
    """folds"""
    column: str = "fold"
    """The column with the number of the fold."""

    def parts(self, labels: pa.Table, identities: Indices, _first_test: int, _seed: int) -> list[Part]:
        """A part a fold. Rows without a number are left out.

        Raises:
            ConfigError: fewer than two folds, or a person who is in two.
        """
        values = column_of(labels, self.column, "protocol.column")
        known = np.array([value is not None for value in values])
        names = sorted(set(values[known].tolist()))
        if len(names) < 2:
            raise ConfigError(f"protocol.column: '{self.column}' has {len(names)} folds; two are needed")
        people = identities[known]
        for person in np.unique(people[people >= 0]):
            folds = sorted(set(values[identities == person].tolist()) - {None})
            if len(folds) > 1:
                raise ConfigError(
                    f"protocol: person {name_of(labels, identities, person)} is in folds {folds[0]} and {folds[1]} "
                    f"of '{self.column}'; a person must be in one"
                )
        return [
            (np.flatnonzero(known & (values != name)), np.flatnonzero(known & (values == name)))
            for name in names
        ]


class Sets(Config):
    """All of ``data`` is learnt from, all of ``test_data`` is tested on."""

    kind: Literal["sets"]
    """sets"""

    def parts(self, labels: pa.Table, identities: Indices, first_test: int, _seed: int) -> list[Part]:
        """One part.

        Raises:
            ConfigError: there is no second set.
        """
        if first_test == len(labels):
            raise ConfigError("test_data: missing; protocol 'sets' tests on it")
        return [(np.arange(first_test), np.arange(first_test, len(labels)))]


Protocol = Annotated[People | Column | Folds | Sets, Field(discriminator="kind")]


def name_of(labels: pa.Table, identities: Indices, person: int) -> str:
    """What the set calls a person: a name where it has names, else the number."""
    names = labels.column("identity_name") if "identity_name" in labels.column_names else None
    known = None if names is None else names[int(np.flatnonzero(identities == person)[0])].as_py()
    return f"'{known}'" if known else str(person)


def column_of(labels: pa.Table, name: str, field: str) -> NDArray[Any]:
    """The values of a column, None where there is none.

    Raises:
        ConfigError: there is no such column.
    """
    if name not in labels.column_names:
        raise ConfigError(
            f"{field}: the set has no column '{name}' (there are: {', '.join(labels.column_names)})"
        )
    return np.array(labels.column(name).to_pylist(), dtype=object)
