"""Pretraining: build, restore, loop, hand off. Read it from top to bottom.

The same command is right at every start: a run goes on from its own newest checkpoint, and a finished run
ends at once.
"""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import configs
from configs import Config, ConfigError, environment
from data_prep.beton import read_manifest
from data_prep.files import atomic_write, write_json
from pretrain import backbones, checkpoint, distributed
from pretrain.backbones import BackboneConfig
from pretrain.checkpoint import CheckpointConfig, State
from pretrain.data import Batches, DataConfig, Indices
from pretrain.lars import LARSConfig, OptimizerConfig, make_optimizer
from pretrain.log import RunLog
from pretrain.methods.swav import SwAV, SwAVConfig
from pretrain.probes import KNNProbe, ProbeConfig
from pretrain.schedule import ScheduleConfig, learning_rate
from pretrain.views import ViewsConfig, make_views

_log = logging.getLogger(__name__)


class PretrainConfig(Config):
    """One pretraining run."""

    output: str = Field(description="the run's folder")
    seed: int = Field(0, ge=0)
    device: distributed.DeviceName = "auto"
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the autocast regions")
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(4096, ge=2, description="over all ranks")
    data: DataConfig
    views: ViewsConfig
    backbone: BackboneConfig = BackboneConfig()
    method: SwAVConfig = SwAVConfig()
    optimizer: OptimizerConfig = LARSConfig()
    schedule: ScheduleConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig | None = Field(None, description="k-NN probe during the run; none by default")
    log_every_steps: int = Field(50, ge=1)


# Fields that may change between restarts because the weights do not depend on them.
_FREE_FIELDS: Any = {
    "output": True,
    "device": True,
    "data": {"workers"},
    "checkpoint": True,
    "probe": True,
    "log_every_steps": True,
}


def train(config: PretrainConfig) -> Path:
    """Run or go on with ``config``; returns the path of the finished ``backbone.safetensors``."""
    folder = Path(config.output)
    target = folder / "backbone.safetensors"
    if finished(config):
        _log.info("%s is finished", folder)
        return target
    identity = _identity(config)
    with distributed.ranks(config.device) as place:
        batches = Batches(config.data, place, batch_size=config.batch_size, seed=config.seed)
        if place.device.type == "cpu":  # after FFCV, which changes it for the whole process
            torch.set_num_threads(place.cores)
        method = _build(config, place)
        optimizer = make_optimizer(method.parameters(), config.optimizer, config.schedule.lr)
        step = _restore(folder, method, optimizer, place)
        if place.is_main:
            with atomic_write(folder / "config.yaml", "w") as file:
                file.write(configs.dump(config))
            write_json(
                folder / "run.json", identity
            )  # not earlier: a refused config must not claim the folder
            write_json(folder / "environment.json", environment.record())
        _loop(config, folder, place, batches, method, optimizer, step)
        if place.is_main:
            _hand_off(config, target, method.backbone, batches.steps_per_epoch * config.epochs)
        distributed.barrier()
    return target


def finished(config: PretrainConfig) -> bool:
    """Whether the backbone of exactly this run is there; another run's folder is refused."""
    folder = Path(config.output)
    _refuse_other_run(folder, _identity(config))
    return (folder / "backbone.safetensors").exists()


def _build(config: PretrainConfig, place: distributed.Ranks) -> SwAV:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = backbones.build(config.backbone.architecture, config.backbone.width)
        method = SwAV(backbone, config.method, place.world)
    distributed.synchronise_batch_norm(method, place.device)
    # In place: convolutions are fastest on channels_last weights, on GPUs and CPUs alike.
    return method.to(place.device).to(memory_format=torch.channels_last)


def _loop(
    config: PretrainConfig,
    folder: Path,
    place: distributed.Ranks,
    batches: Batches,
    method: SwAV,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    total = batches.steps_per_epoch * config.epochs
    model: nn.Module = method
    if place.world > 1:
        # Batch-norm statistics are already equal on all ranks, so there is no buffer to broadcast.
        model = DistributedDataParallel(method, broadcast_buffers=False)
    with Reporter(config, folder, place, batches.steps_per_epoch, step) as report:
        for batch in islice(batches.from_step(step), total - step):
            epoch = step / batches.steps_per_epoch
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config.schedule, step, batches.steps_per_epoch, total)
            views = make_views(
                batch.images, config.views, seed=config.seed, epoch=int(epoch), index=batch.rows
            )
            with torch.autocast(place.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, indicators = model(views, epoch)
            _refuse_non_finite(loss, folder, step, place.rank, batch.rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            method.after_backward(epoch)
            optimizer.step()
            step += 1
            report(step, loss, indicators, method, optimizer)
            if step % config.checkpoint.every_steps == 0 or step == total:
                _save(folder, step, method, optimizer, place, config.checkpoint)


class Reporter:
    """Logs rows, runs the probe; on the main rank only."""

    def __init__(
        self, config: PretrainConfig, folder: Path, place: distributed.Ranks, steps_per_epoch: int, step: int
    ) -> None:
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._total = steps_per_epoch * config.epochs
        self._log: RunLog | None = None
        self._probe: KNNProbe | None = None
        if place.is_main:
            self._log = RunLog(folder, step=step, total_steps=self._total, batch_size=config.batch_size)
            self._probe = KNNProbe(config.probe, config.views) if config.probe else None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._log:
            self._log.__exit__(*error)

    def __call__(
        self,
        step: int,
        loss: Tensor,
        indicators: dict[str, Tensor],
        method: SwAV,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Note that ``step`` steps are done."""
        if self._log is None:
            return
        self._log.count_step()
        last = step == self._total
        probing = self._probe is not None and (last or step % self._probe_steps == 0)
        if not (probing or last or step % self._config.log_every_steps == 0):
            return
        row = {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "loss": loss.item(),
            "ln_k": method.loss_without_learning,
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_second": self._log.rate(),
            **{name: value.item() for name, value in indicators.items()},
        }
        if probing and self._probe is not None:
            row["knn"] = self._probe(method.backbone)
        self._log.write(row)

    @property
    def _probe_steps(self) -> int:
        assert self._config.probe is not None
        return max(1, round(self._config.probe.every_epochs * self._steps_per_epoch))


def _refuse_non_finite(loss: Tensor, folder: Path, step: int, rank: int, rows: Indices) -> None:
    """Stop before a loss that is not a number reaches the weights; say which samples it came from."""
    if torch.isfinite(loss):
        return
    dump = folder / f"non_finite_rank{rank}.json"
    dump.parent.mkdir(parents=True, exist_ok=True)
    dump.write_text(json.dumps({"step": step, "rank": rank, "rows": rows.tolist()}))
    raise FloatingPointError(
        f"the loss of step {step} is {loss.item()}; the samples are in {dump}; "
        "lower schedule.lr, raise method.epsilon, or use precision=float32"
    )


# --- state on disk -------------------------------------------------------------------------------------------


def _identity(config: PretrainConfig) -> dict[str, str]:
    """What decides the weights: the settings and the bytes of the data. Kept in the run's ``run.json``."""
    if not Path(config.data.path).exists():
        raise ConfigError(f"data.path: {config.data.path} does not exist; run data_prep first")
    return {
        "settings": configs.config_hash(config, _FREE_FIELDS),
        "data_sha256": read_manifest(config.data.path).sha256,
    }


def _refuse_other_run(folder: Path, identity: dict[str, str]) -> None:
    path = folder / "run.json"
    if not path.exists():
        return
    started = json.loads(path.read_text())
    for name, what in (("settings", "other settings (see its config.yaml)"), ("data_sha256", "other data")):
        if started[name] != identity[name]:
            raise ConfigError(f"{folder} holds a run with {what}; choose another output=... or delete it")


def _restore(folder: Path, method: SwAV, optimizer: torch.optim.Optimizer, place: distributed.Ranks) -> int:
    """Load the newest good checkpoint, if any; returns the number of steps it has behind it."""
    checkpoints = folder / "checkpoints"
    found = checkpoint.newest(checkpoints) if place.is_main else None
    step = distributed.broadcast_int(found[0] if found else 0, place.device)
    if not step:
        return 0
    state = found[1] if found else checkpoint.load(checkpoints, step)
    method.load_state_dict(state["method"])
    method.load_rank_state(state["ranks"], place.rank, place.world)
    optimizer.load_state_dict(state["optimizer"])
    _log.info("going on from step %d", step)
    return step


def _save(
    folder: Path,
    step: int,
    method: SwAV,
    optimizer: torch.optim.Optimizer,
    place: distributed.Ranks,
    config: CheckpointConfig,
) -> None:
    parts = {name: torch.cat(distributed.gather(x), 1) for name, x in method.rank_state().items()}
    state: State = {
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ranks": parts,
        "step": step,
        "world": place.world,
    }
    if place.is_main:
        checkpoint.save(folder / "checkpoints", step, state, config)
    distributed.barrier()


def _hand_off(config: PretrainConfig, target: Path, backbone: Any, step: int) -> None:
    """Write the backbone with all that a reader needs to feed it rightly."""
    metadata = {
        "format": "pt",
        "architecture": config.backbone.architecture,
        "width": str(config.backbone.width),
        "method": config.method.name,
        "step": str(step),
        "image_size": str(max(crop.size for crop in config.views.crops)),
        "mean": json.dumps(config.views.mean),
        "std": json.dumps(config.views.std),
        "data": config.data.path,
        "data_sha256": read_manifest(config.data.path).sha256,
        "config_hash": configs.config_hash(config, _FREE_FIELDS),
    }
    backbones.save_backbone(target, backbone, metadata)
