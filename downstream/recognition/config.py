"""What a verification is made of: the backbones and the sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Config
from downstream.config import Initialisation


class BinSet(Config):
    """A packed set of insightface: aligned pictures and pairs in one file."""

    kind: Literal["bin"]
    """bin"""
    name: str
    """Its name in tables."""
    path: Path
    """The .bin."""

    @property
    def files(self) -> list[Path]:
        """What decides its pairs and its pictures."""
        return [self.path]


class ListSet(Config):
    """A list of pairs, and the pictures in a .beton made from the dataset's folder."""

    kind: Literal["lfw", "calfw", "cplfw", "cfp_fp", "cfp_ff", "agedb"]
    """Whose list it is."""
    name: str
    """Its name in tables."""
    pairs: Path
    """pairs.txt of LFW, pairs_CALFW.txt, pairs_CPLFW.txt, the folder Protocol of CFP, or the .mat of AgeDB."""
    data: Path
    """The .beton; make it with keep.rule=largest_central from the folder that holds the pictures."""

    @property
    def files(self) -> list[Path]:
        """What decides its pairs and its pictures; of CFP's folder, the files in it."""
        listed = sorted(self.pairs.rglob("*.txt")) if self.pairs.is_dir() else [self.pairs]
        return [self.data.with_suffix(".json"), *listed]


class IjbSet(Config):
    """IJB-B or IJB-C: templates of many pictures, and pairs of templates."""

    kind: Literal["ijb"]
    """ijb"""
    name: str
    """Its name in tables."""
    faces: Path
    """ijbc_face_tid_mid.txt: a line 'picture template medium' for each face."""
    pairs: Path
    """ijbc_template_pair_label.txt: lines 'template template 0-or-1'."""
    data: Path
    """The .beton of the pictures; its detector's scores weigh the faces."""

    @property
    def files(self) -> list[Path]:
        """What decides its pairs and its pictures."""
        return [self.data.with_suffix(".json"), self.pairs, self.faces]


class IdentitiesSet(Config):
    """Pairs drawn from the people of a labelled set of one's own; their number and seed fix them."""

    kind: Literal["identities"]
    """identities"""
    name: str
    """Its name in tables."""
    data: Path
    """A .beton whose set.parquet has the column identity."""
    split: Path | None = None
    """The file in which an evaluation keeps its split, set.split-SEED-SHARE.json beside the .beton: then only the
    people held out by it are compared."""
    pairs: int = Field(default=6000, ge=20, multiple_of=20)
    """Pairs in all; a tenth in each fold, half of them of one person. 6000 as LFW has."""
    seed: int = Field(default=0, ge=0)
    """Of the folds and the pairs."""

    @property
    def files(self) -> list[Path]:
        """What decides its pairs and its pictures."""
        beside = [self.data.with_suffix(suffix) for suffix in (".json", ".parquet")]
        return beside + ([self.split] if self.split else [])


PairSet = BinSet | ListSet | IdentitiesSet
VerificationSet = Annotated[PairSet | IjbSet, Field(discriminator="kind")]


class VerifyConfig(Config):
    """Backbones x verification sets: 10-fold accuracy, TAR at a FAR, ROC."""

    output: str
    """Folder for verification.json, verification.md and roc.svg."""
    initialisations: tuple[Initialisation, ...] = Field(min_length=1)
    """The rows to compare."""
    sets: tuple[VerificationSet, ...] = Field(min_length=1)
    """The columns."""
    image_size: int | None = Field(default=None, ge=16)
    """Pixels a side at which every network sees the pictures; null: the size named in its header."""
    flip: bool = True
    """Add the features of the mirror image, as the published protocols do."""
    standardise: bool = False
    """Centre and scale each feature over the set's pictures first, without labels: features of a backbone that was
    not trained to tell people apart are not centred, and their cosines all near 1."""
    fars: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (1e-4, 1e-3, 1e-2)
    """False accept rates at which the true accept rate is given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes a GPU when there is one."""

    @model_validator(mode="after")
    def _names_differ(self) -> VerifyConfig:
        for field in ("initialisations", "sets"):
            names = [entry.name for entry in getattr(self, field)]
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: two have the same name; name each differently")
        return self
