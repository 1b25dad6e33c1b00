"""Synthetic faces: pictures a second on one core, and what a real detector thinks of them.

    python benchmarks/synthetic.py --pictures 400

Rates are in CPU seconds of this process, so that other work on the machine counts for little. The detector is
RetinaFace MobileNet-0.25, trained on photographs; a face counts as found at score > .9 and IoU > .4.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from data_prep.detector import Detections, Detector, build
from data_prep.synthetic import Face, Picture, SyntheticConfig, photograph, portrait

YAW_BINS = (0, 15, 30, 45, 60, 90)
SIDE_BINS = (0, 40, 70, 1000)
SEED = 11


def pictures_a_second(
    draw: Callable[[int, int, SyntheticConfig], Picture], cfg: SyntheticConfig, count: int
) -> float:
    """Pictures a CPU second, after one that loads the kernels."""
    draw(SEED, 0, cfg)
    start = time.process_time()
    for index in range(1, count + 1):
        draw(SEED, index, cfg)
    return count / (time.process_time() - start)


def match(face: Face, found: Detections) -> tuple[float, float, float, float]:
    """(score, IoU, landmark error in % of the root of the box's area, side) of the detection of a face."""
    side = float(np.sqrt(np.prod(face.box[2:] - face.box[:2])))
    sides = np.minimum(face.box[2:], found.boxes[:, 2:]) - np.maximum(face.box[:2], found.boxes[:, :2])
    both = sides.clip(0).prod(1)
    overlap = both / (side**2 + (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1) - both)
    if not (overlap > 0.4).any():
        return 0.0, np.nan, np.nan, side
    best = int(overlap.argmax())
    error = np.linalg.norm(found.landmarks5[best] - face.landmarks5, axis=1).mean()
    return float(found.scores[best]), float(overlap[best]), float(100 * error / side), side


def accepted_portraits(detector: Detector, cfg: SyntheticConfig, count: int) -> list[tuple[float, ...]]:
    """(|yaw|, score, IoU, landmark error) of each portrait."""
    rows: list[tuple[float, ...]] = []
    for index in range(count):
        picture = portrait(SEED, index, cfg)
        face = picture.faces[0]
        rows.append((abs(float(face.pose[0])), *match(face, detector(picture.image[None])[0])[:3]))
    return rows


def accepted_photographs(detector: Detector, count: int) -> list[tuple[float, ...]]:
    """(side, score) of each face of which at least 60 % is shown."""
    cfg = SyntheticConfig(mode="photograph")
    rows: list[tuple[float, ...]] = []
    for index in range(count):
        picture = photograph(SEED, index, cfg)
        square = np.zeros((640, 640, 3), np.uint8)
        square[: cfg.height, : cfg.width] = picture.image
        found = detector(square[None])[0]
        for face in picture.faces:
            score, _, _, side = match(face, found)
            if face.shown > 0.6:
                rows.append((side, score))
    return rows


def binned(rows: list[tuple[float, ...]], edges: tuple[int, ...]) -> dict[str, list[float]]:
    """Means by bin of the first column: {"0-15": [count, share with score > .9, *means of the rest]}."""
    table, result = np.array(rows), {}
    for low, high in itertools.pairwise(edges):
        inside = table[(table[:, 0] >= low) & (table[:, 0] < high)]
        if len(inside):
            rest = np.nanmean(inside[:, 2:], 0).tolist() if table.shape[1] > 2 else []
            result[f"{low}-{high}"] = [len(inside), float((inside[:, 1] > 0.9).mean()), *rest]
    return result


def show(title: str, columns: str, table: dict[str, list[float]]) -> None:
    print(f"\n{title}\n{columns}")
    for name, (count, *values) in table.items():
        print(f"{name:>8} {count:7.0f} " + " ".join(f"{value:8.3f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300, help="pictures for each line of a table")
    count = parser.parse_args().pictures
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    speed = {
        f"portrait {size}": pictures_a_second(portrait, SyntheticConfig(size=size), count)
        for size in (96, 128, 256)
    }
    speed["photograph 640x480"] = pictures_a_second(
        photograph, SyntheticConfig(mode="photograph"), count // 4
    )
    print("pictures a CPU second")
    for name, rate in speed.items():
        print(f"{name:>20} {rate:7.1f}")
    detector = build("mobilenet0.25", "cpu", 0.02)
    clear = binned(accepted_portraits(detector, SyntheticConfig(yaw=90, occlusion=0), 3 * count), YAW_BINS)
    held = binned(accepted_portraits(detector, SyntheticConfig(yaw=90, occlusion=1), count), YAW_BINS)
    scenes = binned(accepted_photographs(detector, count // 2), SIDE_BINS)
    columns = "   |yaw|   faces     > .9      IoU  landmark error, % of the box's root area"
    show("portraits 256, nothing before the face", columns, clear)
    show("portraits 256, part of every face covered", columns, held)
    show("photographs, at least 60 % of the face shown", "side, px   faces     > .9", scenes)
    print(
        json.dumps({"pictures_a_second": speed, "portraits": clear, "covered": held, "photographs": scenes})
    )


if __name__ == "__main__":
    main()
