"""From a .beton to SwAV's eight views on a CPU: what each way to get there costs.

    python benchmarks/loader.py --rounds 5

One process with all the cores it may use, the same pictures, the variants in turn; the median of the rounds counts.
Prints a table and, as its last line, one JSON object with the ratios:

  vs_naive_ffcv    our loader, to uint8 pictures in host memory, against FFCV with a pipeline (and a decoding) a view
  vs_torchvision   the same against a DataLoader whose workers decode with Pillow and crop uint8 tensors, and
  vs_torchvision_pil ... whose workers crop the Pillow picture
  vs_decode_only   the same against FFCV's decoder alone
  vs_naive_ready   all eight views ready, with equal operations after the crop: our views against FFCV's crops
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from data_prep.beton import Beton, write_beton
from data_prep.synthetic import SyntheticConfig, portrait
from pretrain import views
from pretrain.data import Batches, DataConfig
from pretrain.distributed import Ranks
from pretrain.views import CropConfig, ViewsConfig

PICTURES, BATCH = 2048, 64
CORES = len(os.sched_getaffinity(0))
CPU = torch.device("cpu")
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
        few, many = (make_beton(Path(folder) / f"{rows}.beton", rows) for rows in (4 * BATCH, PICTURES))
        variants = make_variants(few, many)
        torch.set_num_threads(CORES)  # after FFCV, which changes it
        rate = measure(variants, rounds)
    print(f"{CORES} cores, {PICTURES} pictures of 256 x 256, batches of {BATCH}, torch {torch.__version__}")
    for name, value in rate.items():
        print(f"{name:<58} {value:9.0f} pictures a second")
    ours, ready = rate["loader: ours, FFCV"], rate["eight views ready: ours"]
    ratios = {
        "vs_naive_ffcv": ours / rate["loader: FFCV, a pipeline a view"],
        "vs_torchvision": ours / rate["loader: DataLoader, Pillow and uint8 tensors"],
        "vs_torchvision_pil": ours / rate["loader: DataLoader, Pillow pictures"],
        "vs_decode_only": ours / rate["loader: FFCV's decoder alone"],
        "vs_naive_ready": ready / rate["eight views ready: FFCV, a pipeline a view"],
        "vs_torchvision_ready": ready / rate["eight views ready: DataLoader, torchvision v2 on tensors"],
        "vs_torchvision_pil_ready": ready / rate["eight views ready: DataLoader, torchvision v2 on Pillow"],
        "ffcv_vs_pillow": ours / rate["loader: ours, Pillow"],
        "crop_one_by_one_vs_batched": rate["crop to 224: one after another"]
        / rate["crop to 224: batched product (the GPU path)"],
    }
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


def make_variants(few: Beton, many: Beton) -> dict[str, Callable[[], int]]:
    """Each runs over all of ``many`` pictures, or over ``few`` if it is slow, and returns how many."""
    ours, our_pillow, our_few = (
        our_batches(many, "ffcv"),
        our_batches(many, "pillow"),
        our_batches(few, "ffcv"),
    )
    naive, naive_few, alone = naive_loader(many), naive_loader(few), decoder_alone(many)
    cropping, finishing = torchvision_loader(many, finish=False), torchvision_loader(few, finish=True)
    cropping_pil = torchvision_loader(many, finish=False, tensors=False)
    finishing_pil = torchvision_loader(few, finish=True, tensors=False)
    pictures = torch.from_numpy(np.stack([few.image(i) for i in range(BATCH)]))
    rows = np.arange(BATCH)
    box = views.draw(VIEWS, VIEWS.crops[0], (256, 256), seed=0, epoch=0, index=rows, view=0).box

    def crop(path: Callable[..., torch.Tensor]) -> Callable[[], int]:
        return lambda: len(path(pictures, box, 224))

    return {
        "loader: ours, FFCV": lambda: count(batch.images for batch in epoch(ours)),
        "loader: ours, Pillow": lambda: count(batch.images for batch in epoch(our_pillow)),
        "loader: FFCV's decoder alone": lambda: count(images for (images,) in alone),
        "loader: FFCV, a pipeline a view": lambda: count(crops[0] for crops in naive),
        "loader: DataLoader, Pillow and uint8 tensors": lambda: count(crops[0] for crops in cropping),
        "loader: DataLoader, Pillow pictures": lambda: count(crops[0] for crops in cropping_pil),
        "eight views ready: ours": lambda: count(
            views.make_views(batch.images, VIEWS, seed=0, epoch=0, index=batch.rows)[0][:BATCH]
            for batch in epoch(our_few)
        ),
        "eight views ready: FFCV, a pipeline a view": lambda: count(
            finish(crops)[0][:BATCH] for crops in naive_few
        ),
        "eight views ready: DataLoader, torchvision v2 on tensors": lambda: count(
            crops[0] for crops in finishing
        ),
        "eight views ready: DataLoader, torchvision v2 on Pillow": lambda: count(
            crops[0] for crops in finishing_pil
        ),
        "crop to 224: one after another": crop(views._crop_each),
        "crop to 224: batched product (the GPU path)": crop(views.crop_batched),
    }


def measure(variants: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Pictures a second of each, the median of the rounds; a round before them compiles and warms up."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in tqdm(range(rounds + 1), desc="rounds"):
        for name, run in variants.items():
            start = time.perf_counter()
            done = run()
            if number:
                rates[name].append(done / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def count(batches: Iterator[torch.Tensor]) -> int:
    """How many pictures; touches each batch."""
    return sum(len(batch) for batch in batches if batch.flatten()[0] is not None)


# --- the ways ------------------------------------------------------------------------------------------------


def our_batches(beton: Beton, decoder: str) -> Batches:
    """Our loader with one thread a core."""
    config = DataConfig(path=str(beton.path), decoder=decoder, workers=CORES)
    return Batches(config, Ranks(0, 1, 0, 1, CPU), batch_size=BATCH, seed=0)


def epoch(batches: Batches) -> Iterator[Any]:
    """One epoch."""
    source = batches.from_step(0)
    for _ in range(batches.steps_per_epoch):
        yield next(source)
    source.close()


def decoder_alone(beton: Beton) -> Loader:
    """FFCV as it decodes, in its own order."""
    return loader(beton, {"image": [SimpleRGBImageDecoder(), ToTensor()]})


def naive_loader(beton: Beton) -> Loader:
    """A pipeline, and so a decoding, for each of the eight views: random crop and flip."""
    pipelines = {}
    for crop in VIEWS.crops:
        for i in range(crop.count):
            decode = RandomResizedCropRGBImageDecoder((crop.size, crop.size), scale=crop.scale)
            steps = [RandomHorizontalFlip(), ToTensor()]
            pipelines[f"view_{crop.size}_{i}"] = PipelineSpec("image", decode, steps)
    return loader(beton, {**pipelines, "image": None})


def loader(beton: Beton, pipelines: dict[str, Any]) -> Loader:
    """FFCV's loader over the picture's field."""
    return Loader(
        str(beton.path),
        batch_size=BATCH,
        num_workers=CORES,
        order=OrderOption.RANDOM,
        pipelines={**pipelines, "index": None, "label": None},
    )


def finish(crops: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What is left to do on (B, s, s, 3) crops, by the operations of our own views: colour, blur, normalise."""
    groups, view = [], 0
    for crop in VIEWS.crops:
        parts = [
            views.draw(VIEWS, crop, (256, 256), seed=0, epoch=0, index=np.arange(BATCH), view=view + i)
            for i in range(crop.count)
        ]
        parameters = views._concatenate(parts)
        x = torch.cat(crops[view : view + crop.count]).permute(0, 3, 1, 2).float().contiguous() / 255
        x = views.blur(views.colour(x, parameters), parameters.sigma)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (VIEWS.mean, VIEWS.std))
        groups.append(((x - mean) / std).contiguous(memory_format=torch.channels_last))
        view += crop.count
    return groups


class JPEGs(Dataset[list[torch.Tensor]]):
    """The eight views of a picture as a torchvision user writes them, on uint8 tensors or on Pillow pictures."""

    def __init__(self, beton: Beton, finish: bool, tensors: bool) -> None:
        self._jpegs = [beton.jpeg(i) for i in range(len(beton))]
        self._tensors = tensors
        colour = [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
        normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(VIEWS.mean, VIEWS.std)]
        self._transforms = [
            v2.Compose(
                [
                    v2.RandomResizedCrop(crop.size, crop.scale, antialias=True),
                    v2.RandomHorizontalFlip(),
                    *(colour if finish else []),
                    *([] if tensors else [v2.PILToTensor()]),
                    *(normalise if finish else []),
                ]
            )
            for crop in VIEWS.crops
            for _ in range(crop.count)
        ]

    def __len__(self) -> int:
        return len(self._jpegs)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        picture = Image.open(io.BytesIO(self._jpegs[i])).convert("RGB")
        inputs = v2.functional.pil_to_tensor(picture) if self._tensors else picture
        return [transform(inputs) for transform in self._transforms]


def torchvision_loader(beton: Beton, finish: bool, tensors: bool = True) -> DataLoader[list[torch.Tensor]]:
    """A worker a core, kept alive."""
    return DataLoader(
        JPEGs(beton, finish, tensors),
        BATCH,
        shuffle=True,
        num_workers=CORES,
        persistent_workers=True,
        drop_last=True,
    )


def make_beton(path: Path, rows: int) -> Beton:
    """256 synthetic portraits, over and over, at JPEG quality 95, as data_prep writes them."""
    jpegs = []
    for i in range(256):
        buffer = io.BytesIO()
        Image.fromarray(portrait(0, i, SyntheticConfig()).image).save(
            buffer, "JPEG", quality=95, subsampling=0
        )
        jpegs.append(buffer.getvalue())
    write_beton(path, jpegs * (rows // 256), np.arange(rows), -np.ones(rows, np.int64))
    return Beton(path)


if __name__ == "__main__":
    main()
