"""What a run tells of itself: rows of figures, probes, a heartbeat, and warnings in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from pretrain.distributed import Ranks
from pretrain.log import Row, RunLog
from pretrain.methods.swav import SwAV
from pretrain.probes import Probe, ProbeConfig
from pretrain.views import ViewsConfig

_log = logging.getLogger(__name__)


class Span(NamedTuple):
    """Where a run begins now and where it ends, in steps."""

    first: int
    total: int
    steps_per_epoch: int


class Monitor:
    """Writes the rows of a run; on the other ranks than the main one it does nothing."""

    def __init__(
        self,
        folder: Path,
        place: Ranks,
        span: Span,
        *,
        batch_size: int,
        log_every_steps: int,
        probe: ProbeConfig | None,
        views: ViewsConfig,
    ) -> None:
        self._span, self._log_every_steps = span, log_every_steps
        self._probe, self._probe_steps = None, 0
        self._log: RunLog | None = None
        self._warned: set[str] = set()
        if place.is_main:
            self._log = RunLog(folder, step=span.first, total_steps=span.total, batch_size=batch_size)
            if probe:
                self._probe = Probe(probe, views)
                self._probe_steps = max(1, round(probe.every_epochs * span.steps_per_epoch))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log:
            self._log.__exit__(kind, error, trace)

    def __call__(self, step: int, loss: Tensor, lr: float, method: SwAV) -> None:
        """Note that ``step`` steps are done, the last one with this loss and learning rate."""
        if self._log is None:
            return
        self._log.count_step(step)
        last = step == self._span.total
        probing = self._probe is not None and (last or step % self._probe_steps == 0)
        if not (probing or last or step % self._log_every_steps == 0):
            return
        row = {
            "step": step,
            "epoch": step / self._span.steps_per_epoch,
            "loss": loss.item(),
            "ln_k": method.loss_without_learning,
            "lr": lr,
            "images_per_second": self._log.rate(),
            **{name: value.item() for name, value in method.indicators().items()},
        }
        if probing and self._probe is not None:
            row |= self._probe(method.backbone)
        self._log.write(row)
        self._warn(row)

    def _warn(self, row: Row) -> None:
        """Say in words what the figures mean; each thing once, and again when it had gone."""
        for name, message in warnings(row).items():
            if name not in self._warned:
                _log.warning("step %d: %s", row["step"], message)
        self._warned = set(warnings(row))


WARM_UP_EPOCHS = 1.0  # while the prototypes are frozen and the rate rises, nothing is a sign yet
_HELP = "see docs/pretrain.md, 'When the loss stays at ln K'"
_SIGNS: dict[str, Callable[[Mapping[str, float]], str | None]] = {
    "loss": lambda row: (
        f"the loss is still ln K = {row['ln_k']:.3f}: nothing is learnt; {_HELP}"
        if row["loss"] > row["ln_k"] - 0.01
        else None
    ),
    "prototype_usage": lambda row: (
        f"{row['prototype_usage']:.0%} of the prototypes are used: collapse; {_HELP}"
        if row["prototype_usage"] < 0.1
        else None
    ),
    "duplicate_prototypes": lambda row: (
        f"{row['duplicate_prototypes']:.0%} of the prototypes are copies of another one; take fewer, "
        "or a smaller epsilon"
        if row["duplicate_prototypes"] > 0.2
        else None
    ),
    "feature_std": lambda row: (
        f"the features of all pictures are nearly the same (spread {row['feature_std']:.3f}): collapse; {_HELP}"
        if row["feature_std"] < 0.05
        else None
    ),
    "code_entropy": lambda row: (
        f"the assignments are nearly uniform (entropy {row['code_entropy']:.1%} of ln K); lower method.epsilon"
        if row["code_entropy"] > 0.98
        else None
    ),
}


def warnings(row: Row) -> dict[str, str]:
    """What is wrong in a row of figures, by the figure that tells; empty during the first epoch."""
    if row["epoch"] <= WARM_UP_EPOCHS or not math.isfinite(row["loss"]):
        return {}
    found = {name: sign(row) for name, sign in _SIGNS.items() if name in row}
    return {name: message for name, message in found.items() if message}
