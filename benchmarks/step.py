"""A pretraining step against what it cannot do without.

    python benchmarks/step.py --batch 64 128

Without a GPU it takes ResNet-18, 2x96 + 6x48 views, a batch of 8 and no torch.compile: that it runs, not a figure.

Our step (views from uint8 pictures, SwAV, backward, agreement, LARS) in bfloat16, channels_last and compiled, against
the same mathematics written plainly: float32 and bfloat16, eager, default memory format, a loop over views and
tensors. And against forward and backward of backbone and projector alone, on ready views, in our own precision and
compile mode. The variants run in turn; the median of the rounds counts. Prints a table and, as its last line, one
JSON object with the ratios for each batch size:

  vs_fp32_eager, vs_bf16_eager    how many times as many pictures a second as the plain step
  vs_forward_backward             how much of the rate of forward and backward alone is left
  views_share                     the part of our step that making the views would take alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import backbones
from pretrain.agreement import Agreement
from pretrain.lars import LARS, LARSConfig
from pretrain.methods.swav import SwAV, SwAVConfig
from pretrain.views import CropConfig, ViewsConfig, make_views

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = DEVICE.type == "cuda"
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128] if on_gpu else [8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="in a round")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile on our side")
    options = parser.parse_args()
    if not on_gpu:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    print(f"{name}, torch {torch.__version__}, TF32 in float32 (matmul, convolutions): {tf32}")
    ratios = {}
    for batch in options.batch:
        rate = measure(batch, options)
        for variant, value in rate.items():
            print(f"batch {batch:4}  {variant:<30} {value:9.1f} pictures a second")
        ours = rate["ours"]
        ratios[batch] = {
            "vs_fp32_eager": round(ours / rate["plain, float32, eager"], 2),
            "vs_bf16_eager": round(ours / rate["plain, bfloat16, eager"], 2),
            "vs_forward_backward": round(ours / rate["forward and backward alone"], 2),
            "views_share": round(ours / rate["views alone"], 3),
        }
    print(json.dumps(ratios))


def measure(batch: int, options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second of each variant."""
    on_gpu = DEVICE.type == "cuda"
    sizes, architecture = ((224, 96), "resnet50") if on_gpu else ((96, 48), "resnet18")
    views = ViewsConfig(
        crops=(
            CropConfig(count=2, size=sizes[0], scale=(0.14, 1.0)),
            CropConfig(count=6, size=sizes[1], scale=(0.05, 0.14)),
        )
    )
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device=DEVICE)
    variants = make_steps(images, views, architecture, compiled=on_gpu and not options.no_compile)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds + 1):  # the first one compiles and warms up
        for name, step in variants.items():
            _wait()
            start = time.perf_counter()
            for i in range(options.steps):
                step(options.steps * number + i)
            _wait()
            if number:
                times[name].append((time.perf_counter() - start) / options.steps)
    return {name: batch / statistics.median(found) for name, found in times.items()}


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def make_steps(
    images: Tensor, config: ViewsConfig, architecture: str, compiled: bool
) -> dict[str, Callable[[int], object]]:
    """Each takes the number of the step."""
    rows = np.arange(len(images))

    def views_of(step: int) -> list[Tensor]:
        return make_views(images, config, seed=0, epoch=step, index=rows)

    ours, alone = (network(architecture, tuned=True, compiled=compiled) for _ in range(2))
    optimizer, agreement = LARS(ours.parameters(), LARSConfig(), 0.1), Agreement(DEVICE)
    ready = [x.clone() for x in views_of(0)]

    def our_step(step: int) -> None:
        views = views_of(step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = ours(views, 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in ours.parameters() if p.grad is not None]
        optimizer.found_inf = agreement.note(loss, gradients, stop=False)
        optimizer.step()
        agreement.earlier()

    def forward_and_backward(_: int) -> None:
        alone.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            embedding = alone.projector(torch.cat([alone.backbone(group) for group in ready]))
        embedding.float().square().mean().backward()

    return {
        "ours": our_step,
        "forward and backward alone": forward_and_backward,
        "views alone": views_of,
        "plain, float32, eager": plain_step(views_of, architecture, torch.float32),
        "plain, bfloat16, eager": plain_step(views_of, architecture, torch.bfloat16),
    }


def network(architecture: str, *, tuned: bool, compiled: bool = False) -> SwAV:
    """SwAV with the projector and prototypes of the paper."""
    torch.manual_seed(0)
    method = SwAV(backbones.build(architecture), SwAVConfig()).to(DEVICE)
    if tuned:
        method = method.to(memory_format=torch.channels_last)
    if compiled:
        method.compile_networks()
    return method


# --- the same step, written plainly --------------------------------------------------------------------------


def plain_step(
    views_of: Callable[[int], list[Tensor]], architecture: str, dtype: torch.dtype
) -> Callable[[int], object]:
    """The recipe as a first implementation has it; the views are ours, so that only the rest differs."""
    method = network(architecture, tuned=False)
    weights = list(method.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, foreach=False)

    def step(number: int) -> float:
        groups = [group.contiguous() for group in views_of(number)]
        with torch.no_grad():
            method.prototypes.weight.copy_(F.normalize(method.prototypes.weight))
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = torch.cat([method.backbone(group) for group in groups])
            embedding = F.normalize(method.projector(features).float())
        scores = (embedding @ method.prototypes.weight.T).unflatten(0, (8, -1))
        loss = torch.zeros((), device=DEVICE)
        for assigned in range(2):
            codes = plain_sinkhorn(scores[assigned].detach())
            for other in set(range(8)) - {assigned}:
                loss = loss - (codes * F.log_softmax(scores[other] / 0.1, 1)).sum(1).mean() / 14
        optimizer.zero_grad()
        loss.backward()
        adapt(weights)
        optimizer.step()
        return loss.item()

    return step


def plain_sinkhorn(scores: Tensor) -> Tensor:
    """The paper's algorithm on one view's (B, K) scores."""
    q = torch.exp(scores / 0.05).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def adapt(weights: list[nn.Parameter]) -> None:
    """LARC as a loop over the tensors."""
    with torch.no_grad():
        for weight in weights:
            norm, gradient = weight.norm(), weight.grad.norm()
            if norm != 0 and gradient != 0:
                ratio = 1e-3 * norm / (gradient + 1e-6 * norm + 1e-8)
                weight.grad = ratio * (weight.grad + 1e-6 * weight)


if __name__ == "__main__":
    main()
