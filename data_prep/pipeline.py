"""list -> detect -> crop -> write -> report: what each stage is made from and where it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

from configs import config_hash, dump
from data_prep import crop, detect, listing
from data_prep.beton import SourceNote, read_manifest
from data_prep.config import DataPrepConfig, flatten
from data_prep.files import Commit, atomic_write, digest, write_json
from data_prep.sources import Source
from data_prep.sources.folder import Folder
from data_prep.sources.synthetic import Synthetic, SyntheticSourceConfig
from data_prep.stage import Shard, Stage, run, unfinished
from data_prep.tables import read_shard

STAGES = ("list", "detect", "crop", "write", "report")
# How the work is spread is no part of what is made.
SPEED = frozenset({"batch", "device"})
REPORT_VERSION = 1


class Pipeline:
    """The stages of one configuration. Each is a method that does what is not yet done."""

    def __init__(self, config: DataPrepConfig, retry_failed: bool = False) -> None:
        self.config = config
        self.retry_failed = retry_failed
        self.source = open_source(config)
        images, faces, crops = (config.output / name for name in ("images", "faces", "crops"))
        listed = flatten(config.source, "source") | {"shard_size": config.shard_size}
        detected = flatten(config.detect, "detect", SPEED) | flatten(config.keep, "keep")
        self.images = Stage(
            "list", images, listing.VERSION, listed, partial(listing.list_shard, self.source, images)
        )
        self.faces = Stage(
            "detect",
            faces,
            detect.VERSION,
            detected,
            partial(detect.detect_shard, images, config.detect, config.keep),
        )
        self.crops = Stage(
            "crop",
            crops,
            crop.VERSION,
            flatten(config.crop, "crop"),
            partial(crop.crop_shard, images, faces, config.crop, self.source.labels),
        )
        self.shards = self.source.shards()

    def run(self, stages: Sequence[str]) -> None:
        """Do ``stages`` in order; then leave the resolved configuration beside what it made."""
        for name in stages:
            getattr(self, name)()
        with atomic_write(self.config.output / "config.yaml", "w") as file:
            file.write(dump(self.config))

    def list(self) -> None:
        """The image table."""
        self._run(self.images, self.shards)
        self._quarantine(self.images)

    def detect(self) -> None:
        """The face table."""
        self._run(self.faces, self._after(self.images))
        self._quarantine(self.images, self.faces)

    def crop(self) -> None:
        """The crop table."""
        self._run(self.crops, self._after(self.images, self.faces))

    def write(self) -> None:
        """set.beton, set.parquet, set.json."""
        from data_prep.write import write_set

        commits = self.crops.commits(len(self.shards))
        write_set(
            self.config.output,
            self.crops.folder,
            commits,
            image_size=self.config.crop.image_size,
            label_name=self.source.label_name,
            source=self.source_note(),
            config_hash=config_hash(self.config, exclude={"workers"}),
            retry_failed=self.retry_failed,
        )

    def report(self) -> None:
        """report/index.html and report/summary.json."""
        if not self._report_is_current():
            from data_prep.report import write_report  # a second of imports: only where needed

            write_report(self, self._report_inputs())

    def finished(self) -> bool:
        """Whether all stages are done: running them would change nothing. Raises as running them would."""
        if unfinished(self.images, self.shards) or unfinished(self.faces, self._after(self.images)):
            return False
        if unfinished(self.crops, self._after(self.images, self.faces)):
            return False
        return self._set_is_current() and self._report_is_current()

    def _set_is_current(self) -> bool:
        from data_prep.write import inputs_hash

        path = self.config.output / "set.beton"
        crops = self.crops.commits(len(self.shards))
        return path.with_suffix(".json").exists() and (
            read_manifest(path).inputs == inputs_hash(crops, self.source.label_name)
        )

    def _report_inputs(self) -> str:
        manifest = read_manifest(self.config.output / "set.beton")
        faces = [commit.sha256 for commit in self.faces.commits(len(self.shards))]
        return digest([REPORT_VERSION, manifest.sha256, faces])

    def _report_is_current(self) -> bool:
        """Does the report on disk show exactly this?"""
        summary = self.config.output / "report" / "summary.json"
        return summary.exists() and json.loads(summary.read_bytes())["inputs"] == self._report_inputs()

    def source_note(self) -> SourceNote:
        """What the manifest and the report say about the source."""
        source = self.config.source
        return SourceNote(
            name=self.config.output.name,
            kind=source.kind,
            synthetic=source.synthetic,
            images=sum(shard.size for shard in self.shards),
        )

    def _quarantine(self, *stages: Stage) -> None:
        """quarantine.json: every picture that cannot be used, and why."""
        path = self.config.output / "quarantine.json"
        rows = [row for stage in stages for row in self._failed(stage)]
        if not path.exists() or json.loads(path.read_bytes()) != rows:
            write_json(path, rows)

    def _failed(self, stage: Stage) -> Iterator[dict[str, str]]:
        for number, commit in enumerate(stage.commits(len(self.shards))):
            if commit.failed:
                listed = read_shard(self.images.folder, number, ["image_id", "path"]).to_pylist()
                paths = {row["image_id"]: row["path"] for row in listed}
                for row in read_shard(stage.folder, number, ["image_id", "error"]).to_pylist():
                    if row["error"]:
                        name = row["image_id"]
                        yield {
                            "image_id": name,
                            "path": paths[name],
                            "stage": stage.name,
                            "reason": row["error"],
                        }

    def _run(self, stage: Stage, shards: Sequence[Shard]) -> Sequence[Commit]:
        return run(stage, shards, workers=self.config.workers, retry_failed=self.retry_failed)

    def _after(self, *stages: Stage) -> Sequence[Shard]:
        """The same shards, made from the tables of ``stages``."""
        commits = zip(*(stage.commits(len(self.shards)) for stage in stages), strict=True)
        return [
            Shard(shard.number, shard.size, digest([commit.sha256 for commit in made]), None)
            for shard, made in zip(self.shards, commits, strict=True)
        ]


def open_source(config: DataPrepConfig) -> Source:
    """The adapter of ``config.source``."""
    if isinstance(config.source, SyntheticSourceConfig):
        return Synthetic(config.source, config.shard_size, config.output / "pictures")
    return Folder(config.source, config.shard_size)


def finished(config: DataPrepConfig) -> bool:
    """Whether everything that ``config`` asks for is there."""
    return Pipeline(config).finished()
