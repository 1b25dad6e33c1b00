"""What the fixed letterbox misses: against each picture at its own size, and with retina-face's up-scaling.

    python benchmarks/letterbox.py                     # 24 synthetic photographs of 1920 x 1280 px
    python benchmarks/letterbox.py FOLDER ...          # photographs

MobileNet-0.25, faces that the defaults keep. The reference is resize=retinaface, with allow_upscaling=false and true.
Of its faces: how many each letterbox finds again (one to one, overlap 0.5 or more), with what overlap; how many more
it finds; and the pictures a second of one thread. Prints a table and, as its last line, one JSON object with the
shares that the default letterbox finds again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.detect import DetectConfig, KeepConfig, choose, detect_pictures
from data_prep.detector import build
from data_prep.images import PictureError, decode_picture, read_bytes
from data_prep.synthetic import SyntheticConfig, photograph

VARIANTS = {
    "full size": DetectConfig(resize="retinaface", allow_upscaling=False, batch=1),
    "up-scaled": DetectConfig(resize="retinaface", allow_upscaling=True, batch=1),
    **{f"letterbox {size}": DetectConfig(size=size, batch=4) for size in (320, 640, 1024, 1280)},
}
REFERENCES = ("full size", "up-scaled")
DEFAULT = "letterbox 640"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--pictures", type=int, default=24, help="synthetic ones, where there is no folder")
    options = parser.parse_args()
    pictures = photographs(options.folders) or synthetic(options.pictures)
    found = {}
    for name, config in VARIANTS.items():
        start = time.perf_counter()
        found[name] = faces(pictures, config)
        rate = len(pictures) / (time.perf_counter() - start)
        print(f"{name:<15} {sum(map(len, found[name])):>5} faces {rate:>7.1f} pictures a second")
    shares = {}
    print(f"\n{'':<15} {'reference':<12} {'found':>6} {'overlap':>8} {'more':>5}")
    for reference in REFERENCES:
        for name in VARIANTS:
            again, overlap, more = agreement(found[reference], found[name])
            print(f"{name:<15} {reference:<12} {again:>6.3f} {overlap:>8.3f} {more:>5}")
            if name == DEFAULT:
                shares[f"of_{reference.replace(' ', '_').replace('-', '')}"] = round(again, 3)
    print(json.dumps({"pictures": len(pictures), **shares}))


def photographs(folders: list[Path]) -> list[Image.Image]:
    """Every picture below ``folders``."""
    pictures = []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        try:
            pictures.append(decode_picture(read_bytes(path)))
        except PictureError as error:
            tqdm.write(f"{path.name}: {error}")
    return pictures


def synthetic(count: int) -> list[Image.Image]:
    """Scenes with one to four people."""
    cfg = SyntheticConfig(mode="photograph", width=1920, height=1280)
    return [Image.fromarray(photograph(0, index, cfg).image) for index in range(count)]


def faces(pictures: list[Image.Image], config: DetectConfig) -> list[np.ndarray]:
    """(M, 4) boxes a picture, of the faces that are kept."""
    like_package = config.resize == "retinaface"
    detector = build(config.network, "cpu", config.threshold, like_package=like_package)
    # A shard of one picture each: no picture's letterbox depends on the others'.
    boxes = []
    for picture in tqdm(pictures, leave=False):
        listed: list[dict[str, Any]] = [{"image_id": "", "width": picture.width, "height": picture.height}]
        rows = detect_pictures(listed, lambda _, picture=picture: picture, detector, config, KeepConfig())
        boxes.append(np.array([row["box"] for row in rows if row["kept"]], np.float32).reshape(-1, 4))
    return boxes


def agreement(reference: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float, int]:
    """The share of the reference's faces that are found, their mean overlap, and how many others are found."""
    matched, total, others, overlaps = 0, 0, 0, []
    for truth, boxes in zip(reference, found, strict=True):
        rule = KeepConfig(rule="best_iou", min_score=0, min_size=0, min_iou=0.5)
        choice = choose(boxes, np.ones(len(boxes), np.float32), truth, (0, 0), rule)
        hits = int((choice.annotation >= 0).sum())
        overlaps += choice.iou[choice.annotation >= 0].tolist()
        matched, total, others = matched + hits, total + len(truth), others + len(boxes) - hits
    return matched / max(total, 1), float(np.mean(overlaps)) if overlaps else 0.0, others


if __name__ == "__main__":
    main()
