"""Photographs of Flickr that carry one of the tags of the paper (Bulat et al., 2022) and a free licence.

``python -m data_prep download`` searches and fetches them; see ``data_prep/download/flickr.py``. The photographs
have no labels. Who made each, and under which licence, is in ``downloads/*.parquet``.

Flickr-Face of the paper is 1,793,119 faces that were found in photographs with these tags. When they were
searched, and how many photographs there were, it does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from data_prep.sources import Photographs
from data_prep.sources.downloaded import Downloaded
from data_prep.tables import NO_LABELS

TAGS = (
    "human", "people", "person", "face", "fashion", "portrait", "emotion", "expression", "affect", "happy", "sad",
    "anger", "angry", "smile", "laugh", "joy", "surprise", "disgust", "confused", "fear", "horror", "adult", "lady",
    "ladies", "beauty", "gentleman", "gentlemen", "man", "men", "woman", "women", "baby", "infant", "toddler", "kid",
    "child", "children", "senior", "father", "mother", "dad", "mom", "elderly", "grandfather", "grandmother",
    "grandpa", "grandma", "grandparent", "ancestor", "40s", "50s", "60s", "70s", "80s", "90s", "couple", "family",
    "brother", "sister", "sibling", "cousin", "wedding", "marriage", "funeral", "party", "formal", "boy", "girl",
    "teen", "teenager", "youth", "friend", "classmate", "group photo", "team", "gathering", "teacher", "professor",
    "lecturer", "coach", "tutor", "worker", "boss", "celebrity", "sport", "self", "selfie", "photoshoot", "concert",
    "gigs", "band", "dance", "marathon", "passenger", "army", "soldier", "marching", "military", "protest", "crowds",
)  # fmt: skip
"""The 100 tags of the paper's supplement, in its order."""

LICENCES = {4: "CC BY 2.0", 9: "CC0 1.0", 10: "Public Domain Mark 1.0"}
"""Flickr's numbers for the licences that the authors' own scraper asked for."""

SUFFIX = {240: "_m", 320: "_n", 400: "_w", 500: "", 640: "_z", 800: "_c", 1024: "_b"}
"""The end of a picture's file name, for its longer side in px. Larger ones have a secret of their own."""

FIRST_DAY = date(2004, 2, 1)
"""Nothing is older: Flickr opened in February 2004."""


class FlickrConfig(Photographs):
    """Photographs of Flickr by tag and licence."""

    kind: Literal["flickr"]
    """flickr"""
    path: Path
    """The folder that is filled and read."""
    tags: tuple[str, ...] = Field(TAGS, min_length=1)
    """Photographs with any of these tags; the 100 of the paper unless given."""
    licences: tuple[int, ...] = Field(tuple(LICENCES), min_length=1)
    """Flickr's numbers of the licences that are taken; 4: CC BY, 9: CC0, 10: public domain mark."""
    uploaded_from: date = FIRST_DAY
    """Uploaded on this day (UTC) or later."""
    uploaded_before: date
    """Uploaded before this day (UTC); one that is over, so that the same search finds the same photographs."""
    most: int | None = Field(None, ge=1)
    """Take so many photographs of each tag and year, the earliest; null: all."""
    size: Literal[240, 320, 400, 500, 640, 800, 1024] = 500
    """Longer side, px; the authors took 500."""
    results_per_query: int = Field(4000, ge=500)
    """A query with more results than this is split: Flickr repeats what comes after the first 4000."""
    api_url: str = "https://api.flickr.com/services/rest/"
    """Where the searches go."""
    picture_url: str = "https://live.staticflickr.com"
    """Where the pictures are."""

    @model_validator(mode="after")
    def _sensible(self) -> FlickrConfig:
        if self.uploaded_from >= self.uploaded_before:
            raise ValueError(f"uploaded_before: {self.uploaded_before} is not after {self.uploaded_from}")
        for tag in self.tags:
            if not tag.strip() or "," in tag:
                raise ValueError(f"tags: '{tag}' is no tag; a comma divides tags")
        return self


@dataclass(frozen=True)
class Flickr(Downloaded):
    """Photographs in the order of the search; ``image_id`` is Flickr's number."""

    config: FlickrConfig
    shard_size: int
    labels: pa.StructType = NO_LABELS
    label_name: str = "none"
