"""From .beton to views on a CPU: what each choice costs against the plain way to do it.

    python benchmarks/input.py --rounds 5

Everything runs on one thread over the same pictures, the variants in turn, and the median of the rounds counts.
Prints a table and, as its last line, one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from data_prep.beton import Beton, write_beton
from data_prep.synthetic import SyntheticConfig, portrait
from pretrain import views
from pretrain.data import FFCVDecoder, PillowDecoder
from pretrain.views import CropConfig, ViewsConfig

PICTURES, BATCH = 256, 64
VIEWS = ViewsConfig(
    crops=(CropConfig(count=2, size=224, scale=(0.14, 1.0)), CropConfig(count=6, size=96, scale=(0.05, 0.14)))
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        beton = make_beton(Path(folder) / "set.beton")
        decoders = {"ffcv": FFCVDecoder(beton, BATCH, 1), "pillow": PillowDecoder(beton, BATCH, 1)}
        torch.set_num_threads(1)
        order = np.arange(PICTURES)
        pictures = torch.from_numpy(np.stack([beton.image(i) for i in range(BATCH)]))
        box = np.concatenate(
            [views.draw(VIEWS, VIEWS.crops[0], (256, 256), seed=0, epoch=0, index=order[:BATCH], view=0).box]
            * 2
        )
        variants: dict[str, tuple[int, Callable[[], object]]] = {
            "decode: FFCV": (PICTURES, lambda: [x.sum() for x in decoders["ffcv"].epoch(order, BATCH)]),
            "decode: Pillow": (PICTURES, lambda: [x.sum() for x in decoders["pillow"].epoch(order, BATCH)]),
            "views: ours": (
                BATCH,
                lambda: views.make_views(pictures, VIEWS, seed=0, epoch=0, index=order[:BATCH]),
            ),
            "views: torchvision v2, a sample at a time": (BATCH, lambda: torchvision_views(pictures)),
            "crop to 224: one sample after another": (
                2 * BATCH,
                lambda: views._crop_each(pictures, box, 224),
            ),
            "crop to 224: batched product (the GPU path)": (
                2 * BATCH,
                lambda: views.crop_batched(pictures, box, 224),
            ),
        }
        seconds = {name: [] for name in variants}
        for number in range(rounds + 1):  # the first round compiles and warms up
            for name, (_, run) in variants.items():
                start = time.perf_counter()
                run()
                if number:
                    seconds[name].append(time.perf_counter() - start)
    rate = {name: variants[name][0] / statistics.median(times) for name, times in seconds.items()}
    for name, value in rate.items():
        print(f"{name:<46} {value:9.0f} a second")
    names = list(rate)
    ratios = {
        "decode_ffcv_over_pillow": rate[names[0]] / rate[names[1]],
        "views_ours_over_torchvision": rate[names[2]] / rate[names[3]],
        "crop_one_by_one_over_batched_on_cpu": rate[names[4]] / rate[names[5]],
    }
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


def make_beton(path: Path) -> Beton:
    """PICTURES synthetic portraits at JPEG quality 95, as data_prep writes them."""
    jpegs = []
    for i in range(PICTURES):
        buffer = io.BytesIO()
        Image.fromarray(portrait(0, i, SyntheticConfig()).image).save(
            buffer, "JPEG", quality=95, subsampling=0
        )
        jpegs.append(buffer.getvalue())
    write_beton(path, jpegs, np.arange(PICTURES), -np.ones(PICTURES, np.int64))
    return Beton(path)


def torchvision_views(pictures: torch.Tensor) -> list[torch.Tensor]:
    """The same augmentation as a torchvision user writes it, on uint8 tensors."""
    groups = []
    for crop in VIEWS.crops:
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(crop.size, crop.scale, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(VIEWS.mean, VIEWS.std),
            ]
        )
        chw = pictures.permute(0, 3, 1, 2)
        groups.append(torch.stack([transform(x) for _ in range(crop.count) for x in chw]))
    return groups


if __name__ == "__main__":
    main()
