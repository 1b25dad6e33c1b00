"""Ranks: one process, torchrun or a SLURM step, all described by the same environment variables."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import ConfigError

DeviceName = Literal["auto", "cpu", "cuda"]
BatchNormRanks = Literal["rank", "node", "global"]


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among ``world`` processes."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device

    @property
    def cores(self) -> int:
        """Cores for each process of this node, at least 1."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0


class LostRankError(RuntimeError):
    """Another rank has died or hangs."""


@contextmanager
def ranks(device: DeviceName, traces: str | os.PathLike[str] = ".") -> Iterator[Ranks]:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    Without these variables (a plain ``python -m pretrain``) there is one rank and no group.

    Args:
        device: Where to run.
        traces: Folder in which NCCL's flight recorder leaves what each rank was at when one is waited for in
            vain.

    Raises:
        ConfigError: if ``device`` is ``cuda`` and there is none.
        LostRankError: from the body, if the other ranks do not answer within the time-out.
    """
    rank, world, local, local_world = (int(os.environ.get(k, d)) for k, d in _VARIABLES)
    place = _place(device, local)
    if world == 1:
        yield Ranks(rank, world, local, local_world, place)
        return
    for name, value in _FLIGHT_RECORDER.items():
        os.environ.setdefault(name, value.format(traces=traces))
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo", rank=rank, world_size=world, timeout=_START
    )
    try:
        yield Ranks(rank, world, local, local_world, place)
    except RuntimeError as error:  # gloo has no class of its own for it
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            first = str(error).splitlines()[0]
            raise LostRankError(f"rank {rank} of {world}: another rank has died or hangs ({first})") from None
        raise
    finally:
        dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
# Until all ranks have compiled their code and met once.
_START = timedelta(minutes=30)
_FLIGHT_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "{traces}/nccl_trace_rank_",
}


def shorten_timeout(seconds: float) -> None:
    """From now on wait only so long for the other ranks."""
    if dist.is_initialized():
        # Private, but there is no other way, and torch's own trainers (torchtitan) call it.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), dist.group.WORLD)


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _place(device: DeviceName, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device: 'cuda', but torch sees no GPU here; write device=cpu or run on a GPU node")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, but only {torch.cuda.device_count()} GPUs are visible; "
            "start one task for each GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def data_parallel(module: nn.Module) -> nn.Module:
    """``module`` with its gradients averaged over the ranks; itself without a group.

    Buffers are left alone: batch-norm statistics that differ between nodes are those of the main rank in what
    is kept. The gradients travel in the same buckets at every step.
    """
    if not dist.is_initialized():
        return module
    # The name of the option changed with torch 2.15.
    known = inspect.signature(DistributedDataParallel).parameters
    options: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    # Without it DDP lays its buckets out anew after the first step of every start. The order in which more than two
    # ranks are summed depends on a number's place in its bucket, so a resumed run would differ in the last bit.
    # (torch warns once that this has a cost: it walks the graph at every step.)
    return DistributedDataParallel(
        module, gradient_as_bucket_view=True, find_unused_parameters=True, **options
    )


def all_reduce(x: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
    """``x`` reduced in place over all ranks; without a group, ``x`` itself."""
    if dist.is_initialized():
        dist.all_reduce(x, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX)
    return x


def gather(x: Tensor) -> list[Tensor]:
    """The tensors of all ranks, of one shape, in the order of the ranks."""
    if not dist.is_initialized():
        return [x]
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts


class _Gather(torch.autograd.Function):
    """The tensors of all ranks, joined; backwards the ranks' gradients of them are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return torch.cat(gather(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = all_reduce(gradient.contiguous().clone())
        return whole.chunk(dist.get_world_size())[dist.get_rank()] * ctx.factor, None


def gather_with_gradient(x: Tensor, *, loss: Literal["own", "shared"]) -> Tensor:
    """(world * B, ...) the (B, ...) tensors of all ranks; without a group, ``x`` itself.

    Args:
        x: Of this rank.
        loss: What is made of it. ``own``: each rank has a loss, and their mean counts. ``shared``: the loss is the
            same number on all ranks, and each knows a part of its gradient.
    """
    if not dist.is_initialized():
        return x
    # DDP divides by the number of ranks what is a sum already.
    joined: Tensor = _Gather.apply(x, dist.get_world_size() if loss == "shared" else 1)
    return joined


def sum_with_gradient(x: Tensor) -> Tensor:
    """``x`` added up over all ranks, for losses of which the mean over the ranks counts; without a group, ``x``."""
    if not dist.is_initialized():
        return x
    total: Tensor = _DifferentiableSum.apply(x, None)
    return total


def broadcast_int(value: int, device: torch.device) -> int:
    """The main rank's ``value`` on every rank."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor([value], device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


class _DifferentiableSum(torch.autograd.Function):
    """The sum over the ranks of a group; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the ranks of a group on CPUs, where torch's own SyncBatchNorm refuses to run.

    Every rank has the same number of pictures. The gradient flows through the reduced statistics. Equal to one
    process with the group's whole batch, up to the order of the sums.
    """

    process_group: dist.ProcessGroup | None = None

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...) over N and the trailing axes of all ranks."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        x32 = x if x.dtype == torch.float64 else x.float()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        total = x32.numel() / x32.shape[1] * dist.get_world_size(self.process_group)
        mean = _DifferentiableSum.apply(x32.sum(axes), self.process_group) / total
        # In two rounds: a mean of squares less the square of the mean would cancel in float32.
        centred = x32 - mean.view(shape)
        variance = _DifferentiableSum.apply((centred * centred).sum(axes), self.process_group) / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * (self.weight * scale if self.affine else scale).view(shape)
        if self.affine:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise_batch_norm(module: nn.Module, place: Ranks, over: BatchNormRanks = "global") -> nn.Module:
    """Replace every batch norm by one whose statistics span the ranks of a node, or all; see SyncBatchNorm."""
    if place.world == 1 or over == "rank":
        return module
    group = None
    if over == "node" and place.local_world < place.world:
        if place.local_world == 1:
            return module
        group, _ = dist.new_subgroups(place.local_world)
    if place.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
        return converted
    _replace(module, group)
    return module


def _replace(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synced = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine).to(
                child.running_mean
            )
            synced.load_state_dict(child.state_dict())
            # The parameters themselves: copies of those of a network that only follows would be trained.
            synced.weight, synced.bias = child.weight, child.bias
            synced.process_group = group
            setattr(module, name, synced)
        else:
            _replace(child, group)
