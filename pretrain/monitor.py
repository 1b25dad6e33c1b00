"""What a run tells of itself: rows of figures, probes, a heartbeat, and warnings in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from pretrain.distributed import Ranks
from pretrain.log import Row, RunLog
from pretrain.methods.method import Method
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
        self._probe_steps = max(1, round(probe.every_epochs * span.steps_per_epoch)) if probe else None
        self._probe: Probe | None = None
        self._log: RunLog | None = None
        self._warned: set[str] = set()
        if place.is_main:
            self._log = RunLog(folder, step=span.first, total_steps=span.total, batch_size=batch_size)
            self._probe = Probe(probe, views) if probe else None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log:
            self._log.__exit__(kind, error, trace)

    def due(self, step: int) -> bool:
        """Whether ``step`` gets a row; the same on all ranks."""
        return self._probing(step) or step == self._span.total or step % self._log_every_steps == 0

    def __call__(self, step: int, loss: Tensor, lr: float, method: Method) -> None:
        """Note that ``step`` steps are done, the last one with this loss and learning rate."""
        if self._log is None:
            return
        self._log.count_step(step)
        if not self.due(step):
            return
        row = {
            "step": step,
            "epoch": step / self._span.steps_per_epoch,
            "loss": loss.item(),
            **({} if (blank := method.loss_without_learning) is None else {"ln_k": blank}),
            "lr": lr,
            "images_per_second": self._log.rate(),
            **{name: value.item() for name, value in method.indicators().items()},
        }
        if self._probe is not None and self._probing(step):
            row |= self._probe(method.backbone)
        self._log.write(row)
        self._warn(row)

    def _probing(self, step: int) -> bool:
        return self._probe_steps is not None and (step == self._span.total or step % self._probe_steps == 0)

    def _warn(self, row: Row) -> None:
        """Say in words what the figures mean; each thing once, and again when it had gone."""
        found = warnings(row)
        for name in found.keys() - self._warned:
            _log.warning("step %d: %s", row["step"], found[name])
        self._warned = set(found)


WARM_UP_EPOCHS = 1.0  # while the prototypes are frozen and the rate rises, nothing is a sign yet
_HELP = "see docs/pretrain.md, 'When the loss stays at ln K'"
_COLLAPSE = "collapse; see docs/pretrain.md, 'When the embeddings collapse'"
_SIGNS: dict[str, tuple[Callable[[Row], bool], str]] = {
    "loss": (
        lambda row: row["loss"] > row.get("ln_k", math.inf) - 0.01,
        "the loss is still ln K = {ln_k:.3f}: nothing is learnt; " + _HELP,
    ),
    "prototype_usage": (
        lambda row: row["prototype_usage"] < 0.1,
        "{prototype_usage:.0%} of the prototypes are used: collapse; " + _HELP,
    ),
    "duplicate_prototypes": (
        lambda row: row["duplicate_prototypes"] > 0.2,
        "{duplicate_prototypes:.0%} of the prototypes are copies of another one; take fewer, or a smaller epsilon",
    ),
    "feature_std": (
        lambda row: row["feature_std"] < 0.05,
        "the features of all pictures are nearly the same (spread {feature_std:.3f}): " + _COLLAPSE,
    ),
    "embedding_std": (
        lambda row: row["embedding_std"] < 0.06,
        "the embeddings of all pictures are nearly the same (spread {embedding_std:.3f}): " + _COLLAPSE,
    ),
    "embedding_rank": (
        lambda row: row["embedding_rank"] < 2.5,
        "the embeddings differ in hardly more than one direction (rank {embedding_rank:.2f}): " + _COLLAPSE,
    ),
    "code_entropy": (
        lambda row: row["code_entropy"] > 0.98,
        "the assignments are nearly uniform (entropy {code_entropy:.1%} of ln K); lower method.epsilon",
    ),
    "mask_ties": (
        lambda row: row["mask_ties"] > 0.2,
        "in {mask_ties:.0%} of the pictures the last kept patch and the first masked one score the same (a score map "
        "that is zero all over): position decides, and the top of the face is kept; see docs/pretrain.md, 'SimFLE'",
    ),
}


def warnings(row: Row) -> dict[str, str]:
    """What is wrong in a row of figures, by the figure that tells; empty during the first epoch."""
    if row["epoch"] <= WARM_UP_EPOCHS:
        return {}
    return {
        name: text.format_map(row) for name, (wrong, text) in _SIGNS.items() if name in row and wrong(row)
    }
