"""The stages that can be submitted: what runs, what its config is, and what it needs."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from configs import Config, ConfigError


def _output(config: Any) -> Path:
    return Path(config.output)


def _named(reference: str) -> Any:
    """The object behind ``module:name``."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Stage:
    """One room's command line, by name: submitting needs its schema only."""

    room: str
    """``python -m ROOM``."""
    schema: str
    """``module:class`` of its config."""
    finished: tuple[str, ...] = ()
    """``module:function`` that tells for a config, and the words after it, whether its output is there; empty: it is
    quick, so it is always run."""
    command: tuple[str, ...] = ()
    """Words before the config."""
    inputs: tuple[str, ...] = ()
    """Config fields that name files which must exist before the stage starts."""
    run: Callable[[Any], Path] = _output
    """The run directory of a config, where code and logs go."""
    distributed: bool = False
    """Whether it runs as many processes as the cluster file gives; other stages are one process."""
    gpus: int = 1
    """GPUs that a single process can use."""
    shared: bool = False
    """Whether its work can be shared out to the tasks of an array, by ``--part I/N``."""

    def load(self, config: str, overrides: Sequence[str]) -> Config:
        """The checked config."""
        loaded: Config = configs.load(config, overrides, schema=_named(self.schema))
        return loaded

    def is_finished(self, config: Config) -> bool:
        """Whether running the stage would change nothing."""
        if not self.finished:
            return False
        function, *words = self.finished
        return bool(_named(function)(config, *words))

    def require_inputs(self, config: Config, source: str) -> None:
        """Refuse a stage whose data is not there yet.

        Raises:
            ConfigError: naming the field and the path.
        """
        for field in self.inputs:
            path = functools.reduce(getattr, field.split("."), config)
            if path is not None and not Path(str(path)).exists():
                raise ConfigError(
                    f"{source}: {field}: {path}: no such file; make it first, or queue behind its job with --after"
                )

    def require_batch(self, config: Config, processes: int) -> None:
        """Refuse a batch that the processes cannot share equally.

        Raises:
            ConfigError: with the numbers.
        """
        batch = getattr(config, "batch_size", processes)
        if self.distributed and batch % processes:
            raise ConfigError(
                f"batch_size: {batch} cannot be shared by {processes} processes; "
                f"give {batch - batch % processes or processes} or other nodes and GPUs"
            )


def _data_prep(stage: str, shared: bool = False) -> Stage:
    """One stage of data_prep."""
    return Stage(
        "data_prep",
        "data_prep.config:DataPrepConfig",
        finished=("data_prep.pipeline:stage_finished", stage),
        command=(stage,),
        gpus=int(stage == "detect"),
        shared=shared,
    )


STAGES = {
    "data_prep": Stage(
        "data_prep", "data_prep.config:DataPrepConfig", finished=("data_prep.pipeline:finished",)
    ),
    "list": _data_prep("list", shared=True),
    "detect": _data_prep("detect", shared=True),
    "crop": _data_prep("crop", shared=True),
    "write": _data_prep("write"),
    "data_report": _data_prep("report"),
    "union": Stage(
        "data_prep",
        "data_prep.union:UnionConfig",
        finished=("data_prep.union:finished",),
        command=("union",),
        gpus=0,
    ),
    "pretrain": Stage(
        "pretrain",
        "pretrain.train:PretrainConfig",
        finished=("pretrain.train:finished",),
        inputs=("data.path", "data.rows", "backbone.init"),
        distributed=True,
    ),
    "cells": Stage(
        "downstream",
        "downstream.config:DownstreamConfig",
        finished=("downstream.evaluate:cells_finished",),
        command=("cells",),
        inputs=("data",),
        shared=True,
    ),
    "downstream": Stage(
        "downstream",
        "downstream.config:DownstreamConfig",
        finished=("downstream.results:finished",),
        inputs=("data",),
    ),
    "verify": Stage(
        "downstream",
        "downstream.recognition.config:VerifyConfig",
        finished=("downstream.recognition.verify:finished",),
        command=("verify",),
    ),
    "convert_model": Stage(
        "downstream",
        "downstream.morphable.convert:ConvertConfig",
        command=("convert-model",),
        run=lambda config: Path(config.output).parent,
        gpus=0,
    ),
    "report": Stage(
        "downstream",
        "downstream.config:ReportConfig",
        command=("report",),
        inputs=("downstream", "pretrain", "pretrain_data"),
        run=lambda config: Path(config.results).parent,
        gpus=0,
    ),
    "tables": Stage(
        "downstream",
        "downstream.reports.printed.config:TablesConfig",
        command=("tables",),
        gpus=0,
    ),
    "results": Stage(
        "downstream",
        "downstream.config:ResultsConfig",
        command=("results",),
        run=lambda config: Path(os.path.commonpath([run for study in config.studies for run in study.runs])),
        gpus=0,
    ),
}
