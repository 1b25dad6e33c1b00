"""Faces that the project renders itself, as JPEG files with their ground truth. Not photographs of people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from configs import Config
from data_prep.files import digest
from data_prep.sources import Found, Published
from data_prep.stage import Shard
from data_prep.synthetic.config import SyntheticConfig
from data_prep.tables import vector

if TYPE_CHECKING:
    from data_prep.synthetic import Face, Picture

LABELS: pa.StructType = pa.struct(
    {
        "identity": pa.int64(),
        "box": vector(4),
        "landmarks5": vector(10),
        "landmarks68": vector(136),
        "visible68": vector(68, pa.bool_()),
        "action_units": vector(12),
        "shape": pa.list_(pa.float32()),
        "pose": vector(3),
        "valence": pa.float32(),
        "arousal": pa.float32(),
        "shown": pa.float32(),
    }
)


class SyntheticSourceConfig(Config):
    """Rendered faces."""

    kind: Literal["synthetic"]
    """synthetic"""
    count: int = Field(ge=1)
    """Pictures to render."""
    seed: int = Field(0, ge=0)
    """Picture i depends on (seed, i) and on the fields below, on nothing else."""
    quality: int = Field(95, ge=1, le=100)
    """Of the JPEG files, without chroma subsampling."""
    picture: SyntheticConfig = SyntheticConfig()
    """What the pictures look like."""

    @property
    def synthetic(self) -> bool:
        """Are the faces rendered rather than photographed?"""
        return True


@dataclass(frozen=True)
class Synthetic:
    """Rendered pictures under ``folder``, a sub-folder a shard; ``image_id`` is seed and number."""

    config: SyntheticSourceConfig
    shard_size: int
    folder: Path
    labels: pa.StructType = LABELS
    label_name: str = "identity"
    published: tuple[Published, ...] = ()

    def shards(self) -> list[Shard]:
        """Ranges of picture numbers."""
        starts = range(0, self.config.count, self.shard_size)
        ranges = [range(start, min(start + self.shard_size, self.config.count)) for start in starts]
        return [
            Shard(number, len(indices), digest([indices.start, indices.stop]), indices)
            for number, indices in enumerate(ranges)
        ]

    def ids(self, shard: Shard) -> list[str]:
        """Seed and number of the pictures of a shard."""
        return [self._id(index) for index in shard.payload]

    def pick(self, shard: Shard, places: list[int]) -> Shard:
        """Some pictures of a shard."""
        numbers = [shard.payload[place] for place in places]
        return Shard(shard.number, len(numbers), digest(numbers), numbers)

    def _id(self, index: int) -> str:
        return f"synthetic-{self.config.seed}-{index:07d}"

    def pictures(self, shard: Shard) -> Iterator[Found]:
        """Render the pictures of one shard; those that have a file already are drawn again."""
        # Here, not above: numba takes a second to load, and a run that finds every shard done needs none.
        from data_prep.synthetic import photograph, portrait

        draw = {"portrait": portrait, "photograph": photograph}[self.config.picture.mode]
        folder = self.folder / f"{shard.number:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in shard.payload:
            path = folder / f"{index:07d}.jpg"
            yield self._save(draw(self.config.seed, index, self.config.picture), path, index)

    def _save(self, picture: Picture, path: Path, index: int) -> Found:
        # Not synced one by one: the table holds each file's hash, so one lost in a power cut shows up in the
        # next stage, and --retry-failed draws it again.
        Image.fromarray(picture.image).save(path, "JPEG", quality=self.config.quality, subsampling=0)
        return Found(self._id(index), path, tuple(map(annotation, picture.faces)))


def annotation(face: Face) -> dict[str, Any]:
    """The ground truth of a face as the fields of ``LABELS``."""
    values = {name: np.asarray(getattr(face, name)).reshape(-1) for name in LABELS.names}
    return {
        name: value.tolist() if pa.types.is_nested(LABELS.field(name).type) else value.item()
        for name, value in values.items()
    }
