"""What all ranks agree on at every step: whether something is not finite, and whether one was asked to stop.

Both are reduced on the device in one small collective, and the host looks at them a step late: the device
never waits for the host. Until the host has looked, the optimiser's ``found_inf`` keeps the weights as they
were.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain import distributed


class Verdict(NamedTuple):
    """Of one step, the same on all ranks."""

    non_finite: bool
    stop: bool


class Agreement:
    """The verdicts of a run's steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flags = torch.zeros(2, device=device)
        self._on_host: deque[tuple[Tensor, torch.cuda.Event | None]] = deque(maxlen=2)

    @torch.no_grad()
    def note(self, loss: Tensor, gradients: Iterable[Tensor], stop: bool) -> Tensor:
        """Tell what this rank saw in a step; returns ``found_inf`` for the optimiser.

        Once it is 1 it stays 1: no later step may build on a broken one.

        Args:
            loss: () of this rank.
            gradients: Of all parameters, already averaged over the ranks.
            stop: Whether this rank was asked to stop.
        """
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        broken = ~(torch.isfinite(loss) & torch.isfinite(norm))
        stopping = torch.full((), float(stop), device=self._device)
        seen = torch.maximum(self._flags, torch.stack([broken.float(), stopping]))
        self._flags = distributed.all_reduce(seen, "max")
        self._on_host.append(_to_host(self._flags))
        return self._flags[0]

    def earlier(self) -> Verdict:
        """Of the step before the last one; before there are two, that nothing is wrong."""
        return _read(*self._on_host[0]) if len(self._on_host) == 2 else Verdict(False, False)

    def latest(self) -> Verdict:
        """Of the last step; waits for the device."""
        return _read(*self._on_host[-1])


def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if flags.device.type == "cpu":
        return flags, None
    copy = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def _read(flags: Tensor, event: torch.cuda.Event | None) -> Verdict:
    if event is not None:
        event.synchronize()
    non_finite, stop = flags.tolist()
    return Verdict(bool(non_finite), bool(stop))


class StopRequest:
    """Notes SIGUSR2, SIGTERM and SIGINT while its body runs; the handler does nothing but that.

    A handler that somebody else has set for SIGTERM stays: submitit ignores it on purpose, as Slurm sends it
    along with SIGUSR2. A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._take(signal.SIGUSR2)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a script
            self._take(signal.SIGINT)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._take(signal.SIGTERM)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: signal.Signals) -> None:
        self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
