"""A pretraining step against what it cannot do without.

    python benchmarks/step.py --batch 64 128
    python benchmarks/step.py --method byol simsiam

Without a GPU it takes ResNet-18, 96 and 48 pixels, a batch of 8 and no torch.compile: that it runs, not a figure.

Our step of each method (views from uint8 pictures, the method, backward, agreement, LARS, followers) in bfloat16,
channels_last and compiled, against forward and backward of the method's networks alone, on ready views, in the same
precision and compile mode. SwAV is also held against the same mathematics written plainly: float32 and bfloat16,
eager, default memory format, a loop over views and tensors. The variants run in turn; the median of the rounds
counts. Prints a table and, as its last line, one JSON object with the ratios for each method and batch size:

  vs_forward_backward             how much of the rate of the networks alone is left
  views_share                     the part of our step that making the views would take alone
  vs_fp32_eager, vs_bf16_eager    SwAV: how many times as many pictures a second as the plain step
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
from pretrain.data import DataConfig
from pretrain.distributed import Ranks
from pretrain.lars import LARS, LARSConfig
from pretrain.methods import METHODS, Method, Moment, Setting, facemae
from pretrain.methods.byol import BYOL
from pretrain.methods.simfle import SimFLE
from pretrain.methods.swav import SwAV
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
    parser.add_argument("--method", nargs="+", default=COMPARED, choices=COMPARED)
    options = parser.parse_args()
    if not on_gpu:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    print(f"{name}, torch {torch.__version__}, TF32 in float32 (matmul, convolutions): {tf32}")
    ratios: dict[str, dict[int, dict[str, float]]] = {}
    for method in options.method:
        for batch in options.batch:
            rate = measure(method, batch, options)
            for variant, value in rate.items():
                print(f"{method:<14} batch {batch:4}  {variant:<26} {value:9.1f} pictures a second")
            ours = rate.pop("ours")
            found = {RATIOS[variant]: round(ours / value, 3) for variant, value in rate.items()}
            ratios.setdefault(method, {})[batch] = found
    print(json.dumps(ratios))


COMPARED = ["swav", "simfle", "byol", "simsiam", "barlow_twins", "simclr", "moco"]
RATIOS = {
    "networks alone": "vs_forward_backward",
    "views alone": "views_share",
    "plain, float32, eager": "vs_fp32_eager",
    "plain, bfloat16, eager": "vs_bf16_eager",
}


def measure(method: str, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second of each variant."""
    on_gpu = DEVICE.type == "cuda"
    sizes, architecture = ((224, 96), "resnet50") if on_gpu else ((96, 48), "resnet18")
    crops = [CropConfig(count=2, size=sizes[0], scale=(0.14, 1.0))]
    if method == "swav":
        crops.append(CropConfig(count=6, size=sizes[1], scale=(0.05, 0.14)))
    if method == "simfle":
        crops.append(CropConfig(count=1, size=112, plain=True))
    images = torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device=DEVICE)
    compiled = on_gpu and not options.no_compile
    variants = make_steps(method, images, ViewsConfig(crops=tuple(crops)), architecture, compiled=compiled)
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
    name: str, images: Tensor, config: ViewsConfig, architecture: str, compiled: bool
) -> dict[str, Callable[[int], object]]:
    """Each takes the number of the step."""
    rows = np.arange(len(images))

    def views_of(step: int) -> list[Tensor]:
        return make_views(images, config, seed=0, epoch=step, index=rows)

    ours, alone = (
        network(name, architecture, config, len(images), tuned=True, compiled=compiled) for _ in range(2)
    )
    trained = [p for p in ours.parameters() if p.requires_grad]
    optimizer, agreement = LARS(trained, LARSConfig(), 0.1), Agreement(DEVICE)
    ready = [x.clone() for x in views_of(0)]

    def our_step(step: int) -> None:
        moment, views = Moment(step, 1, 1_000_000, 0, rows), views_of(step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = ours(views, moment)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in trained if p.grad is not None]
        optimizer.found_inf = agreement.note(loss, gradients, stop=False)
        optimizer.step()
        ours.after_step(moment)
        agreement.earlier()

    def networks_alone(_: int) -> None:
        alone.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            outputs = networks(alone, ready)
        outputs.float().square().mean().backward()

    steps: dict[str, Callable[[int], object]] = {
        "ours": our_step,
        "networks alone": networks_alone,
        "views alone": views_of,
    }
    if name == "swav":
        for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            steps[f"plain, {precision}, eager"] = plain_step(views_of, config, architecture, dtype)
    return steps


def networks(method: Method, views: list[Tensor]) -> Tensor:
    """What comes out of the networks of a method when each sees what it sees in a step."""
    if isinstance(method, SimFLE):
        return networks_of_simfle(method, *views)
    parts = dict(method.named_children())
    queries = views[0].chunk(2)[0] if "key_backbone" in parts else views[0]
    seen = [queries, *views[1:]]
    outputs = torch.cat([parts["backbone"](group) for group in seen])
    for head in ("projector", "predictor"):
        outputs = parts[head](outputs) if head in parts else outputs
    for kind, followed in (("target", views[0]), ("key", views[0].chunk(2)[1])):
        if f"{kind}_backbone" in parts:
            with torch.no_grad():
                parts[f"{kind}_projector"](parts[f"{kind}_backbone"](followed))
    return outputs


def networks_of_simfle(method: SimFLE, views: Tensor, pictures: Tensor) -> Tensor:
    """Those of both branches; FaceMAE sees the same patches of all pictures."""
    gfl, sizes = method.gfl, method.config.facemae
    assert isinstance(gfl, BYOL)
    assert sizes
    assert method.grouping
    assert method.global_head
    features = method.backbone(views)
    with torch.no_grad():
        gfl.target_projector(gfl.target_backbone(views))
        maps = backbones.feature_map(method.backbone, pictures)
    patches = facemae.patchify(pictures, sizes.patch)
    kept = torch.arange(sizes.kept(patches.shape[1]), device=DEVICE).expand(len(patches), -1)
    tokens = method.encoder(facemae.take(patches, kept), kept)
    outputs = (
        gfl.predictor(gfl.projector(features)),
        method.global_head(features),
        method.grouping(maps),
        method.decoder(tokens, kept),
        method.fine_head(tokens[:, 1:].mean(1)),
    )
    return torch.cat([x.flatten() for x in outputs])


def network(
    name: str, architecture: str, views: ViewsConfig, batch: int, *, tuned: bool, compiled: bool = False
) -> Method:
    """The method with the heads of its paper."""
    torch.manual_seed(0)
    config, place = METHODS[name](name=name), Ranks(0, 1, 0, 1, DEVICE)  # type: ignore[abstract]
    if name == "moco":  # its queue is a multiple of the batch
        config = config.model_copy(update={"queue_length": 65536 // batch * batch})
    setting = Setting(backbones.build(architecture), views, DataConfig(path=""), batch, place, 0)
    method = config.build(setting).to(DEVICE)
    if tuned:
        method = method.to(memory_format=torch.channels_last)
    if compiled:
        method.compile_networks()
    return method


# --- the same step, written plainly --------------------------------------------------------------------------


def plain_step(
    views_of: Callable[[int], list[Tensor]], config: ViewsConfig, architecture: str, dtype: torch.dtype
) -> Callable[[int], object]:
    """The recipe as a first implementation has it; the views are ours, so that only the rest differs."""
    method = network("swav", architecture, config, 1, tuned=False)
    assert isinstance(method, SwAV)
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
