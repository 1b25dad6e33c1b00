"""list -> detect -> crop -> write -> report: what each stage is made from and where it goes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

from configs import ConfigError, config_hash, dump
from data_prep import crop, detect, listing, published, removed
from data_prep.adapters import adapter
from data_prep.beton import SourceNote, read_manifest
from data_prep.config import DataPrepConfig, flatten
from data_prep.files import atomic_write, digest, lock, remove_temporaries, sha256_file, write_json
from data_prep.sources import Source
from data_prep.sources.selected import Selected
from data_prep.stage import WHOLE, Shard, Stage, run, unfinished
from data_prep.tables import read_shard

IN_PARTS = ("list", "detect", "crop")
"""The stages that go through the shards one by one."""
STAGES = (*IN_PARTS, "write", "report")
# How the work is spread is no part of what is made.
SPEED = frozenset({"batch", "device", "decode_threads"})
_NOT_HASHED = {"workers": True, "output": True, "download": True, "detect": set(SPEED)}
REPORT_VERSION = 4
_log = logging.getLogger(__name__)


class Pipeline:
    """The stages of one configuration. Each is a method that does what is not yet done.

    With a ``part`` (:func:`data_prep.stage.parse_part`) only its shards are looked at, and nothing is written
    that belongs to all: other processes are at the other parts.
    """

    def __init__(self, config: DataPrepConfig, retry_failed: bool = False, part: slice = WHOLE) -> None:
        self.config = config
        self.retry_failed = retry_failed
        self.part = part
        self.source = open_source(config)
        self.shards = self.source.shards()
        images, faces, crops = (config.output / name for name in ("images", "faces", "crops"))
        listed = flatten(config.source, "source") | {"shard_size": config.shard_size}
        if config.from_list:
            listed["from_list"] = sha256_file(config.from_list)
        self.images = Stage(
            "list", images, listing.VERSION, listed, partial(listing.list_shard, self.source, images)
        )
        self.crops = Stage(
            "crop",
            crops,
            crop.VERSION,
            flatten(config.crop, "crop"),
            partial(crop.crop_shard, images, faces, config.crop, self.source.labels),
        )

    @cached_property
    def faces(self) -> Stage:
        """The stage ``detect``. Naming it takes the detector's weights, which ``list`` can do without."""
        config = self.config
        if config.detect.network == "annotated" and self.source.labels.get_field_index("box") < 0:
            raise ConfigError(f"detect.network=annotated: {config.source.kind} has no boxes; name a network")
        detected = flatten(config.detect, "detect", SPEED) | flatten(config.keep, "keep")
        return Stage(
            "detect",
            config.output / "faces",
            detect.VERSION,
            detected | {"detect.weights": detect.weights_sha256(config.detect)},
            partial(detect.detect_shard, config.output / "images", config.detect, config.keep),
            partial(detect.processes, config.detect),
        )

    def run(self, stages: Sequence[str]) -> None:
        """Do ``stages`` in order; then leave the resolved configuration beside what it made."""
        removed.finish(self.config.output, self.source.labels)
        for name in stages:
            getattr(self, name)()
        if self.part == WHOLE:
            with self._alone(), atomic_write(self.config.output / "config.yaml", "w") as file:
                file.write(dump(self.config))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold what belongs to all shards, so that of two runs at once the second finds it done by the first."""
        with lock(self.config.output / ".lock", wait=True):
            for folder in (self.config.output, self.config.output / "report"):
                remove_temporaries(folder)
            yield

    def list(self) -> None:
        """The image table."""
        news = self._run(self.images)
        if self.part == WHOLE:
            self._quarantine(self.images)
            if news and self.source.published:
                rows = self.published()
                level = logging.WARNING if published.differ(rows) else logging.INFO
                _log.log(level, "%s: %s", self.config.source.kind, published.describe(rows))
            if news and (figures := self.from_list()):
                words = ", ".join(f"{count:,} {name}" for name, count in figures.items())
                _log.info("%s: %s", self.config.from_list, words)

    def detect(self) -> None:
        """The face table."""
        self._run(self.faces, self.images)
        if self.part == WHOLE:
            self._quarantine(self.images, self.faces)

    def crop(self) -> None:
        """The crop table."""
        self._run(self.crops, self.images, self.faces)

    def write(self) -> None:
        """set.beton, set.parquet, set.json; before them quarantine.json, which parts cannot write."""
        from data_prep.write import write_set

        self._quarantine(self.images, self.faces)
        commits = self.crops.commits(len(self.shards))
        with self._alone():
            write_set(
                self.config.output,
                self.crops.folder,
                commits,
                label_name=self.source.label_name,
                source=self.source_note(),
                config_hash=config_hash(self.config, exclude=_NOT_HASHED),
                crop=self.config.crop.model_dump(),
                storage=self.config.write.storage,
                exclude=self.config.exclude,
                retry_failed=self.retry_failed,
            )

    def report(self) -> None:
        """report/index.html and report/summary.json."""
        if not self._report_is_current():
            from data_prep.report import write_report  # a second of imports: only where needed

            with self._alone():
                write_report(self, self._report_inputs())

    def finished(self, last: str) -> bool:
        """Whether the stages up to ``last`` are done: running them would change nothing.

        Raises:
            ConfigError: as running them would, where a shard on disk was made differently.
        """
        done = {
            "list": lambda: self._is_current(self.images),
            "detect": lambda: self._is_current(self.faces, self.images),
            "crop": lambda: self._is_current(self.crops, self.images, self.faces),
            "write": lambda: self._set_is_current() and self._quarantine_is_current(self.images, self.faces),
            "report": self._report_is_current,
        }
        # In order and no further than the first that is not done: each is judged by the marks of those before.
        return not removed.read_list(self.config.output).under_way and all(
            done[name]() for name in STAGES[: STAGES.index(last) + 1]
        )

    def _is_current(self, stage: Stage, *before: Stage) -> bool:
        return not unfinished(stage, self._after(*before), len(self.shards))

    def _set_is_current(self) -> bool:
        from data_prep.write import inputs_hash, standing_set

        crops = self.crops.commits(len(self.shards))
        inputs = inputs_hash(crops, self.source.label_name, self.config.write.storage, self.config.exclude)
        return standing_set(self.config.output, inputs) is not None

    def _report_inputs(self) -> str:
        manifest = read_manifest(self.config.output / "set.beton")
        stages = (self.images, self.faces, self.crops)
        marks = [commit.sha256 for stage in stages for commit in stage.commits(len(self.shards))]
        return digest([REPORT_VERSION, manifest.sha256, self.config.exclude.near_bits, marks])

    def _report_is_current(self) -> bool:
        """Does the report on disk show exactly this?"""
        summary = self.config.output / "report" / "summary.json"
        with suppress(ValueError):
            return summary.exists() and json.loads(summary.read_bytes())["inputs"] == self._report_inputs()
        return False

    def source_note(self) -> SourceNote:
        """What the manifest and the report say about the source."""
        source = self.config.source
        return SourceNote(
            name=self.config.output.name,
            kind=source.kind,
            synthetic=source.synthetic,
            images=sum(shard.size for shard in self.shards),
        )

    def from_list(self) -> dict[str, int] | None:
        """What became of the published list, see :meth:`Selected.figures`; None where there is none."""
        if not isinstance(self.source, Selected):
            return None
        errors = sum((Counter(c.errors) for c in self.images.commits(len(self.shards))), Counter[str]())
        return self.source.figures(errors)

    def published(self) -> Sequence[dict[str, Any]]:
        """The counts that the source is published with against the image table; see ``published.compare``."""
        return published.compare(self.source, self.images.folder, len(self.shards))

    def _quarantine(self, *stages: Stage) -> None:
        """quarantine.json: every picture that cannot be used, and why."""
        if not self._quarantine_is_current(*stages):
            with self._alone():
                write_json(self.config.output / "quarantine.json", [*self._failed(*stages)])

    def _quarantine_is_current(self, *stages: Stage) -> bool:
        path = self.config.output / "quarantine.json"
        with suppress(ValueError):  # a damaged one is written again
            return path.exists() and json.loads(path.read_bytes()) == [*self._failed(*stages)]
        return False

    def _failed(self, *stages: Stage) -> Iterator[dict[str, str]]:
        for stage in stages:
            for number, commit in enumerate(stage.commits(len(self.shards))):
                if commit.failed:
                    yield from self._failed_in(stage, number)

    def _failed_in(self, stage: Stage, number: int) -> Iterator[dict[str, str]]:
        listed = read_shard(self.images.folder, number, ["image_id", "path"]).to_pylist()
        paths = {row["image_id"]: row["path"] for row in listed}
        for row in read_shard(stage.folder, number, ["image_id", "error"]).to_pylist():
            if row["error"]:
                name = row["image_id"]
                yield {"image_id": name, "path": paths[name], "stage": stage.name, "reason": row["error"]}

    def _run(self, stage: Stage, *before: Stage) -> bool:
        return run(
            stage,
            self._after(*before),
            len(self.shards),
            workers=self.config.workers,
            retry_failed=self.retry_failed,
        )

    def _after(self, *stages: Stage) -> Sequence[Shard]:
        """The shards of this part, made from the tables of ``stages``, or from the source where there is none."""
        mine = self.shards[self.part]
        if not stages:
            return mine
        return [
            Shard(
                shard.number, shard.size, digest([stage.mark(shard.number).sha256 for stage in stages]), None
            )
            for shard in mine
        ]


def open_source(config: DataPrepConfig) -> Source:
    """The adapter of ``config.source``; of a published list's pictures only, where there is one."""
    source = adapter(config.source, config.shard_size, config.output / "pictures")
    return Selected(source, config.from_list, config.shard_size) if config.from_list else source


def finished(config: DataPrepConfig) -> bool:
    """Whether everything that ``config`` asks for is there."""
    return stage_finished(config, STAGES[-1])


def stage_finished(config: DataPrepConfig, stage: str) -> bool:
    """Whether ``stage``, one of ``STAGES``, and those before it are done for all shards and up to date.

    Raises:
        ConfigError: a shard on disk was made with other settings, by another version or from other inputs.
    """
    return Pipeline(config).finished(stage)
