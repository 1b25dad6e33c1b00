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


VerificationSet = Annotated[BinSet | ListSet | IjbSet, Field(discriminator="kind")]


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
