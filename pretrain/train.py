"""Pretraining: build, restore, loop, hand off. Read it from top to bottom.

The same command is right at every start: a run goes on from its own newest checkpoint, and a finished run
ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import configs
from configs import Config, ConfigError, environment
from data_prep.beton import read_manifest
from data_prep.files import atomic_write, lock, sha256_file, write_json
from pretrain import backbones, checkpoint, distributed
from pretrain.agreement import Agreement, StopRequest
from pretrain.backbones import BackboneConfig
from pretrain.checkpoint import CheckpointConfig, State
from pretrain.data import Batches, DataConfig, Indices
from pretrain.lars import LARSConfig, OptimizerConfig, make_optimizer
from pretrain.methods import AnyMethod, Method, Moment, Setting
from pretrain.methods.swav import SwAVConfig
from pretrain.monitor import Monitor, Span
from pretrain.probes import ProbeConfig
from pretrain.schedule import ScheduleConfig, learning_rate
from pretrain.views import ViewsConfig, make_views

_log = logging.getLogger(__name__)


class PretrainConfig(Config):
    """One pretraining run."""

    output: str = Field(description="the run's folder")
    seed: int = Field(0, ge=0)
    device: distributed.DeviceName = "auto"
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the autocast regions")
    compile: bool = Field(False, description="torch.compile the backbone and the projector; for GPUs")
    deterministic: bool = Field(
        False, description="equal bits at every start on a GPU too, slower; a CPU gives them anyway"
    )
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(4096, ge=2, description="over all ranks")
    batch_norm: distributed.BatchNormRanks = Field(
        "node",
        description="ranks that share statistics: those of a node, as in the SwAV scripts; all (global); none (rank)",
    )
    timeout_s: float = Field(
        300, gt=0, description="after the first step, so long do ranks wait for one another before they stop"
    )
    data: DataConfig
    views: ViewsConfig
    backbone: BackboneConfig = BackboneConfig()
    method: AnyMethod = SwAVConfig()
    optimizer: OptimizerConfig = LARSConfig()
    schedule: ScheduleConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig | None = Field(
        None, description="k-NN and linear probe during the run; none by default"
    )
    log_every_steps: int = Field(50, ge=1)


# Goes up when the same settings and data would lead to other weights.
VERSION = 1

# Fields that may change between restarts because the weights do not depend on them.
_FREE_FIELDS: dict[str, Any] = {
    "output": True,
    "device": True,
    "compile": True,
    "deterministic": True,
    "timeout_s": True,
    "data": {"workers"},
    "checkpoint": True,
    "probe": True,
    "log_every_steps": True,
}


def train(config: PretrainConfig, stop: StopRequest | None = None) -> Path | None:
    """Run or go on with ``config``.

    Args:
        config: The run.
        stop: Where a request to stop is noted.

    Returns:
        The path of the finished ``backbone.safetensors``; None after a stop, of which there is a checkpoint.

    Raises:
        ConfigError: if something in ``config`` is not possible here.
        FloatingPointError: if the loss or the gradient is not finite; the weights never see it.
        CheckpointError, LostRankError: when the disk is full, and when another rank has died.
        OSError: if another process is writing to the same folder.
    """
    folder = Path(config.output)
    target = folder / "backbone.safetensors"
    if finished(config):
        _log.info("%s is finished", folder)
        return target
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    with _held(folder), distributed.ranks(config.device, traces=folder) as place:
        run = _Run(config, place, stop or StopRequest())
        if place.is_main:
            _note_settings(config, folder)  # not earlier: a refused config must not claim the folder
        done = run.loop()
        if done and place.is_main:
            _hand_off(config, target, run.method.backbone, run.span.total)
        distributed.barrier()
    return target if done else None


def finished(config: PretrainConfig) -> bool:
    """Whether the backbone of exactly this run is there; another run's folder is refused."""
    _refuse_other_run(Path(config.output), _identity(config))
    backbone = Path(config.output) / "backbone.safetensors"
    return backbone.exists() and backbones.read_header(backbone).get("epochs") == str(config.epochs)


class _Run:
    """One rank's part of a run, restored to its newest checkpoint."""

    def __init__(self, config: PretrainConfig, place: distributed.Ranks, stop: StopRequest) -> None:
        self.config, self.place, self.stop = config, place, stop
        self.folder = Path(config.output)
        self.batches = Batches(config.data, place, batch_size=config.batch_size, seed=config.seed)
        if place.device.type == "cpu":  # the ranks of a node share its cores
            torch.set_num_threads(place.cores)
        self.method = build(config, place)
        self.shards = self.method.shards()
        trained = [p for p in self.method.parameters() if p.requires_grad]
        self.parameters = [*trained, *self.shards.values()]
        unscheduled = {id(p) for p in self.method.unscheduled()}
        groups = [
            {
                "params": [p for p in self.parameters if (id(p) in unscheduled) == apart],
                "scheduled": not apart,
            }
            for apart in ([False, True] if unscheduled else [False])
        ]
        self.optimizer = make_optimizer(groups, config.optimizer, config.schedule.lr)
        self.agreement = Agreement(place.device)
        first = self._restore()
        self.span = Span(first, self.batches.steps_per_epoch * config.epochs, self.batches.steps_per_epoch)
        if config.compile:
            self.method.compile_networks()
        self.model = distributed.data_parallel(self.method)

    def loop(self) -> bool:
        """Train to the end, or until somebody asks to stop; whether the end was reached."""
        config, step = self.config, self.span.first
        monitor = Monitor(
            self.folder,
            self.place,
            self.span,
            batch_size=config.batch_size,
            log_every_steps=config.log_every_steps,
            probe=config.probe,
            views=config.views,
        )
        checkpoints = self.folder / "checkpoints"
        with monitor, checkpoint.Writer(checkpoints, config.checkpoint) as writer:
            batches = islice(self.batches.from_step(step), self.span.total - step)
            before: Indices | None = None  # rows of the step whose verdict is about to be known
            for batch in batches:
                loss, lr = self._step(step, batch.images, batch.rows)
                step += 1
                if step == self.span.first + 1:
                    distributed.shorten_timeout(config.timeout_s)
                verdict = self.agreement.earlier()
                if verdict.non_finite and before is not None:
                    self._refuse_non_finite(step - 2, before)
                saving = verdict.stop or step % config.checkpoint.every_steps == 0 or step == self.span.total
                # Before a broken step is kept or described: the host waits there anyway.
                if (saving or monitor.due(step)) and self.agreement.latest().non_finite:
                    self._refuse_non_finite(step - 1, batch.rows)
                before = batch.rows
                monitor(step, loss, lr, self.method)
                if saving:
                    self._save(writer, step)
                if verdict.stop:
                    break
        return step == self.span.total

    def _step(self, step: int, images: Tensor, rows: Indices) -> tuple[Tensor, float]:
        """One step, enqueued: nothing in it waits for the device, but that supervised training looks up where each
        sample's class is. The () loss and the learning rate.
        """
        config = self.config
        moment = Moment(step, self.span.steps_per_epoch, self.span.total, config.seed, rows)
        lr = learning_rate(config.schedule, step, self.span.steps_per_epoch, self.span.total)
        for group in self.optimizer.param_groups:
            if group["scheduled"]:
                group["lr"] = lr
        views = make_views(images, config.views, seed=config.seed, epoch=int(moment.epoch), index=rows)
        autocast = config.precision == "bfloat16"
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=autocast):
            loss: Tensor = self.model(views, moment)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.method.after_backward(moment)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.optimizer.found_inf = self.agreement.note(loss, gradients, self.stop.received is not None)
        self.optimizer.step()
        self.method.after_step(moment)
        return loss.detach(), lr

    def _refuse_non_finite(self, step: int, rows: Indices) -> None:
        """Stop, and say which samples it came from; the weights are still those before that step."""
        every = distributed.gather(torch.from_numpy(rows).to(self.place.device))
        path = self.folder / "non_finite.json"
        if self.place.is_main:
            write_json(path, {"step": step, "rows_of_ranks": [part.tolist() for part in every]})
        raise FloatingPointError(
            f"step {step}: the loss or the gradient is not finite; its samples are in {path}; the weights are "
            "untouched; lower schedule.lr, or use precision=float32"
        )

    def _restore(self) -> int:
        """Load the newest good checkpoint, if any; returns the number of steps it has behind it."""
        checkpoints = self.folder / "checkpoints"
        found = checkpoint.newest(checkpoints) if self.place.is_main else None
        step = distributed.broadcast_int(found[0] if found else 0, self.place.device)
        if not step:
            return 0
        state = found[1] if found else checkpoint.load(checkpoints, step)
        self.method.load_state_dict(state["method"])
        self.method.load_rank_state(state["ranks"], self.place.rank, self.place.world)
        self.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in self.shards.items():
            parameter.data.copy_(self._part(state["ranks"][f"shard {name}"], len(parameter)))
            momentum = self._part(state["ranks"][f"momentum {name}"], len(parameter))
            self.optimizer.state[parameter]["momentum"] = momentum.to(parameter)
        _log.info("going on from step %d", step)
        return step

    def _save(self, writer: checkpoint.Writer, step: int) -> None:
        own = self.method.rank_state()
        for name, parameter in self.shards.items():
            own[f"shard {name}"] = parameter.detach()[None]
            own[f"momentum {name}"] = self.optimizer.state[parameter]["momentum"][None]
        parts = {name: torch.cat(distributed.gather(x), 1) for name, x in own.items()}
        if self.place.is_main:
            state: State = {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ranks": parts,
                "step": step,
                "world": self.place.world,
            }
            writer.write(step, state)

    def _part(self, joined: Tensor, rows: int) -> Tensor:
        """The ``rows`` of this rank out of a (1, n, ...) joined shard; beyond its end there are zeros."""
        part = joined[0, self.place.rank * rows : (self.place.rank + 1) * rows]
        return F.pad(part, [0, 0] * (part.ndim - 1) + [0, rows - len(part)])


def build(config: PretrainConfig, place: distributed.Ranks) -> Method:
    """The method with its first weights, which are a function of the config alone, on the rank's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = backbones.start(config.backbone)
        setting = Setting(backbone, config.views, config.data, config.batch_size, place, config.seed)
        method = config.method.build(setting)
    distributed.synchronise_batch_norm(method, place, config.batch_norm)
    # In place: convolutions are fastest on channels_last weights, on GPUs and CPUs alike.
    return method.to(place.device).to(memory_format=torch.channels_last)


# --- the run's folder ----------------------------------------------------------------------------------------


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a second run out of ``folder``: two writers would mix their checkpoints.

    Raises:
        OSError: if another process is still at it after a while; a run that was killed may take so long to go.
    """
    if int(os.environ.get("RANK", "0")):  # the main rank alone writes
        yield
        return
    deadline = time.monotonic() + _WAIT_FOR_FOLDER_S
    while True:
        # Beside the folder: a refused config must not claim it.
        with lock(folder.with_name(f".{folder.name}.lock"), wait=False) as mine:
            if mine:
                yield
                return
        if time.monotonic() > deadline:
            raise OSError(
                f"{folder} is in use by another process; wait for it, or give another output=FOLDER"
            )
        time.sleep(1)


_WAIT_FOR_FOLDER_S = 30


def _identity(config: PretrainConfig) -> dict[str, str]:
    """What decides the weights: settings, bytes of the data, version. Kept in the run's ``run.json``."""
    if not Path(config.data.path).exists():
        raise ConfigError(f"data.path: {config.data.path} does not exist; run data_prep first")
    data = read_manifest(config.data.path).sha256
    if config.data.rows:
        if not Path(config.data.rows).exists():
            raise ConfigError(f"data.rows: {config.data.rows} does not exist")
        data += sha256_file(config.data.rows)
    if config.backbone.init:
        if not Path(config.backbone.init).exists():
            raise ConfigError(f"backbone.init: {config.backbone.init} does not exist")
        data += sha256_file(config.backbone.init)
    for path in config.method.inputs(config.data):
        data += sha256_file(path)
    free = _FREE_FIELDS | ({"epochs": True} if config.schedule.decay == "constant" else {})
    return {"settings": configs.config_hash(config, free), "data_sha256": data, "version": str(VERSION)}


def _refuse_other_run(folder: Path, identity: dict[str, str]) -> None:
    path = folder / "run.json"
    if not path.exists():
        return
    started = json.loads(path.read_text())
    for name, what in (
        ("settings", "other settings (see its config.yaml)"),
        ("data_sha256", "other data, or another backbone.init"),
        ("version", "another version of the program"),
    ):
        if started.get(name, "1") != identity[name]:
            raise ConfigError(f"{folder} holds a run with {what}; choose another output=... or delete it")


def _note_settings(config: PretrainConfig, folder: Path) -> None:
    with atomic_write(folder / "config.yaml", "w") as file:
        file.write(configs.dump(config))
    write_json(folder / "run.json", _identity(config))
    write_json(folder / "environment.json", environment.record())


def _hand_off(config: PretrainConfig, target: Path, backbone: Any, step: int) -> None:
    """Write the backbone with all that a reader needs to feed it rightly."""
    metadata = {
        "format": "pt",
        "architecture": config.backbone.architecture,
        "width": str(config.backbone.width),
        "method": config.method.name,
        "epochs": str(config.epochs),
        "step": str(step),
        "image_size": str(max(config.views.crops, key=lambda crop: (not crop.plain, crop.size)).size),
        "mean": json.dumps(config.views.mean),
        "std": json.dumps(config.views.std),
        "data": config.data.path,
        "data_sha256": read_manifest(config.data.path).sha256,
        "config_hash": configs.config_hash(config, _FREE_FIELDS),
    }
    backbones.save_backbone(target, backbone, metadata)
