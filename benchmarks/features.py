"""What the features of a backbone vary with: the head's pose, the expression, the person.

    python benchmarks/features.py runs/results/seed*/swav/backbone.safetensors

Of the variance of the standardised features of all faces: the share that goes with pose (angles and their products,
by least squares), what action units add to that, both adjusted for the number of columns, and the share between
people (one-way ANOVA with random effects, ICC(1)). Below each file the same network untrained. The shares need not
add up: people may differ in pose. The last line is one JSON object. Without a file it says this.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.beton import Beton, read_labels
from downstream.config import Checkpoint, Random
from downstream.features import Network, extract, load_network, read_pictures

Array = NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbones", type=Path, nargs="*")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/demo/labelled/set.beton"),
        help="with the labels pose, action_units and identity; unless given, the demo's",
    )
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    options = parser.parse_args()
    if not options.backbones:
        parser.print_help()
        return
    table = read_labels(options.data)
    pose, units = (np.array(table.column(name).to_pylist(), float) for name in ("pose", "action_units"))
    people = table.column("identity").to_numpy()
    pairs = combinations_with_replacement(range(pose.shape[1]), 2)
    turned = np.column_stack([pose, *(pose[:, i] * pose[:, j] for i, j in pairs)])
    pictures = read_pictures([Beton(options.data)], [options.size], memory=4)[options.size]
    shares = {}
    for name, network in networks(options.backbones, options.size):
        features = extract(network, pictures, np.arange(len(table)), torch.device("cpu"), name).astype(float)
        features = (features - features.mean(0)) / (features.std(0) + 1e-6)
        by_pose = explained(features, turned)
        with_units = explained(features, np.column_stack([turned, units]))
        found = {"pose": by_pose, "units": with_units - by_pose, "person": between(features, people)}
        shares[name] = {key: round(share, 3) for key, share in found.items()}
    print(f"{len(table)} faces of {len(set(people.tolist()))} people, {options.size} px")
    print(f"{'pose':>6} {'units':>6} {'person':>6}")
    for name, found in shares.items():
        print(" ".join(f"{share:>6.3f}" for share in found.values()), name)
    print(json.dumps(shares))


def networks(paths: list[Path], size: int) -> list[tuple[str, Network]]:
    """Each file's, and each time one with weights that were never trained."""
    found = []
    for seed, path in enumerate(paths):
        trained = Checkpoint(kind="checkpoint", name="trained", path=str(path))
        untrained = Random(kind="random", name="untrained", like=str(path), seed=seed)
        found.append((str(path), load_network(trained, size)))
        found.append((f"untrained, seed {seed}", load_network(untrained, size)))
    return found


def explained(features: Array, by: Array) -> float:
    """Adjusted R2 of (N, F) features by (N, D) columns, over all features together."""
    design, _ = np.linalg.qr(np.column_stack([np.ones(len(by)), by]))
    count, columns = design.shape
    residual = np.square(features - design @ (design.T @ features)).sum() / (count - columns)
    return float(1 - residual / (np.square(features - features.mean(0)).sum() / (count - 1)))


def between(features: Array, people: NDArray[np.int64]) -> float:
    """ICC(1) of (N, F) features in groups, over all features together."""
    _, group, sizes = np.unique(people, return_inverse=True, return_counts=True)
    means = np.zeros((len(sizes), features.shape[1]))
    np.add.at(means, group, features)
    means /= sizes[:, None]
    apart = (sizes[:, None] * np.square(means - features.mean(0))).sum() / (len(sizes) - 1)
    within = np.square(features - means[group]).sum() / (len(features) - len(sizes))
    size = (len(features) - np.square(sizes).sum() / len(features)) / (len(sizes) - 1)
    return float((apart - within) / (apart + (size - 1) * within))


if __name__ == "__main__":
    main()
