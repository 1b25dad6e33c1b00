"""The configuration of a data-preparation run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from configs import Config
from data_prep.adapters import SourceConfig
from data_prep.crop import CropConfig
from data_prep.detect import DetectConfig, KeepConfig
from data_prep.download.config import DownloadConfig
from data_prep.exclude import ExcludeConfig
from data_prep.sources.csv import CSVConfig
from data_prep.sources.folder import FolderConfig
from data_prep.sources.synthetic import SyntheticSourceConfig
from data_prep.write import WriteConfig


class DataPrepConfig(Config):
    """One source, from its pictures to a set."""

    output: Path
    """The folder that everything is written to."""
    source: SourceConfig
    """Where the pictures come from."""
    from_list: Path | None = None
    """A published list, CSV with the header image_id,sha256: take these pictures only, if they are still the same."""
    detect: DetectConfig = DetectConfig()
    """Face detection."""
    keep: KeepConfig = KeepConfig()
    """Which detections become crops."""
    crop: CropConfig = CropConfig()
    """The crops."""
    exclude: ExcludeConfig = ExcludeConfig()
    """Which crops stay out of the set; the tables keep them."""
    write: WriteConfig = WriteConfig()
    """The set."""
    download: DownloadConfig = DownloadConfig()
    """How 'python -m data_prep download' fetches pictures."""
    shard_size: int = Field(256, ge=1)
    """Pictures a shard: the unit of work, of retry and of resume."""
    workers: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    """Processes; as many as this process may use cores, unless given."""

    @model_validator(mode="after")
    def _outside_of_the_source(self) -> DataPrepConfig:
        if not isinstance(self.source, SyntheticSourceConfig):
            folder = self.source.path.expanduser().resolve()
            if folder in (self.output.resolve(), *self.output.resolve().parents):
                raise ValueError(
                    f"output: {self.output} lies inside source.path; name a folder outside of it"
                )
        return self

    @model_validator(mode="after")
    def _a_person_needs_a_subject(self) -> DataPrepConfig:
        named = isinstance(self.source, FolderConfig) and self.source.identity_from == "folder"
        if named and self.keep.rule != "largest_central":
            raise ValueError(
                "source.identity_from: a folder's name says who is seen, not where; add keep.rule=largest_central"
            )
        return self

    @model_validator(mode="after")
    def _a_label_needs_a_face(self) -> DataPrepConfig:
        source = self.source
        placeless = isinstance(source, CSVConfig) and source.labels and "box" not in source.labels
        if placeless and self.keep.rule != "largest_central":
            raise ValueError(
                "source.labels: without a box they say what is seen, not where; add keep.rule=largest_central"
            )
        return self


def flatten(config: Config, prefix: str, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields of ``config`` under dotted names, as JSON values."""
    return {
        f"{prefix}.{name}": value
        for name, value in config.model_dump(mode="json").items()
        if name not in leave_out
    }
