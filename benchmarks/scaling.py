"""A model of a pretraining step on many GPUs: what is computed, sent and read. No measurement: arithmetic.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rate 400 --node-bandwidth 100

Prints the table of docs/scaling.md. Change an assumption by its option; --help says where each comes from.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import nn

from pretrain import backbones
from pretrain.methods.swav import SwAV, SwAVConfig

GPUS_A_NODE = 8
BATCH = 64  # a GPU
CORPUS = 3.4e6  # pictures of Full VGG-Face
EPOCHS = 200


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rate", type=float, default=91, help="pictures/s of one GPU; SwAV's authors on V100s")
    add("--node-bandwidth", type=float, default=12.5, help="GB/s between nodes; 100 Gb/s InfiniBand")
    add("--gpu-bandwidth", type=float, default=130, help="GB/s between the GPUs of a node; NVLink of a V100")
    add("--node-latency", type=float, default=60, help="microseconds of a collective between nodes")
    add("--gpu-latency", type=float, default=25, help="microseconds of a collective in a node")
    add("--decode-rate", type=float, default=4160, help="pictures/s a core that FFCV decodes, 256 x 256")
    add("--picture-kb", type=float, default=18, help="bytes of a 256 x 256 JPEG, in kB")
    options = parser.parse_args()
    model = count_model()
    rows = [column(Cluster(gpus, options), model) for gpus in (1, 8, 64, 512)]
    print("| | " + " | ".join(row.pop("GPUs") for row in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for name in rows[0]:
        print(f"| {name} | " + " | ".join(row[name] for row in rows) + " |")


@dataclass(frozen=True)
class Model:
    """What a step sends, by count of numbers."""

    gradients: int
    norms: int  # layers
    channels: int  # of all of them
    prototypes: int


@dataclass(frozen=True)
class Cluster:
    """So many GPUs, eight a node."""

    gpus: int
    options: argparse.Namespace

    def collective(self, size: float) -> float:
        """Seconds of a ring all-reduce of ``size`` bytes over all GPUs."""
        if self.gpus == 1:
            return 0.0
        slow = self.gpus > GPUS_A_NODE
        bandwidth = self.options.node_bandwidth if slow else self.options.gpu_bandwidth
        latency = self.options.node_latency if slow else self.options.gpu_latency
        return latency * 1e-6 + 2 * (self.gpus - 1) / self.gpus * size / (bandwidth * 1e9)


def count_model() -> Model:
    """ResNet-50 with SwAV's projector and prototypes, built without memory."""
    with torch.device("meta"):
        config = SwAVConfig()
        method = SwAV(backbones.build("resnet50"), config)
    norms = [m.num_features for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Model(sum(p.numel() for p in method.parameters()), len(norms), sum(norms), config.prototypes)


def column(cluster: Cluster, model: Model) -> dict[str, str]:
    """The figures for one size."""
    options, gpus = cluster.options, cluster.gpus
    compute = BATCH / options.rate
    gradients = cluster.collective(4 * model.gradients)
    # Two passes of the backbone and one of the head, forward and backward; within a node, so the same at any size.
    node = Cluster(min(gpus, GPUS_A_NODE), options)
    each = node.collective(4 * 2 * model.channels / model.norms)
    norms = (2 * (model.norms - 1) + 1) * 2 * each
    # Three rounds of sums in float64, both assigned views at once.
    sinkhorn = 3 * cluster.collective(8 * 2 * model.prototypes)
    flags = cluster.collective(8)
    backward = compute * 2 / 3
    exposed = max(0.0, gradients - backward)
    step = compute + norms + sinkhorn + flags + exposed
    hours = CORPUS * EPOCHS / (BATCH * gpus) * step / 3600
    a_node = min(gpus, GPUS_A_NODE)
    return {
        "GPUs": f"{gpus} GPU" + "s" * (gpus > 1),
        "batch": f"{BATCH * gpus:,}",
        "compute": f"{compute * 1e3:.0f} ms",
        f"gradients, {4 * model.gradients / 1e6:.0f} MB, behind the backward pass": f"{gradients * 1e3:.1f} ms",
        "of these not hidden": f"{exposed * 1e3:.1f} ms",
        f"batch norm, {(2 * (model.norms - 1) + 1) * 2} collectives in a node": f"{norms * 1e3:.1f} ms",
        "Sinkhorn, 3 collectives": f"{sinkhorn * 1e3:.2f} ms",
        "stop and finiteness, 1 collective": f"{flags * 1e3:.2f} ms",
        "step": f"{step * 1e3:.0f} ms",
        "efficiency": f"{compute / step:.0%}",
        "200 epochs of 3.4 million": f"{hours:,.0f} h, {hours * gpus:,.0f} GPU h",
        "cores that decode, a node": f"{a_node * BATCH / step / options.decode_rate:.2f}",
        "page cache a node": f"{CORPUS * options.picture_kb / 1e6:.0f} GB",
        "pictures to a node": f"{a_node * BATCH / step * options.picture_kb / 1e3:.0f} MB/s",
    }


if __name__ == "__main__":
    main()
