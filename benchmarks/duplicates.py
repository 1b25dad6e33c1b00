"""Near-duplicates: what the hashes of crops tell apart, and how long the search takes.

    python benchmarks/duplicates.py --portraits 500 --rows 3400000
    python benchmarks/duplicates.py --pictures FOLDER --rows 0        # photographs instead of rendered faces

Every picture is changed in four ways; the detector finds its face again and the crop is cut again. Printed is which
part of the copies is found, and how many of the pairs of different pictures are taken for copies, by one hash and
by both. Then as many hashes as ``--rows`` are drawn with the bias and the correlation of the bits of rendered
faces' crops, 1 % of them copies with up to two bits flipped and 1 % flat pictures with up to one, and searched.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri
from tabulate import tabulate

from data_prep.crop import CropConfig, box_affine, crop
from data_prep.detect import letterbox
from data_prep.detector import Detector, build
from data_prep.duplicates import Hashes, differing, distinct, near_pairs
from data_prep.images import decode_picture, difference_hashes
from data_prep.synthetic import SyntheticConfig, portrait

BITS = (2, 4, 6, 8)
CROP = CropConfig()


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode_picture(buffer.getvalue())


def copies(image: Image.Image) -> dict[str, Image.Image]:
    w, h = image.size
    cut = image.crop((w // 20, h // 20, w - w // 20, h - h // 20))
    return {
        "JPEG of quality 75": encoded(image, 75),
        "JPEG of quality 30": encoded(image, 30),
        "half the size": encoded(image.resize((w // 2, h // 2), Image.Resampling.LANCZOS), 90),
        "5 % cut off each side": encoded(cut, 90),
    }


def face(image: Image.Image, detector: Detector) -> tuple[int, int] | None:
    """The hashes of the crop of the best face."""
    letter, scale = letterbox(image, min(640, -(-max(image.size) // 32) * 32))
    found = detector(letter[None])[0]
    if not len(found.scores):
        return None
    return difference_hashes(
        crop(np.asarray(image), box_affine(found.boxes[0] / np.float32(scale), CROP), CROP)
    )


def table(pictures: Iterator[Image.Image], detector: Detector) -> Hashes:
    """Print what is found of which copies; returns the hashes of the pictures' crops."""
    hashes: list[tuple[int, int]] = []
    apart: dict[str, list[NDArray[np.int64]]] = {}
    for image in pictures:
        if (own := face(image, detector)) is None:
            continue
        hashes.append(own)
        for name, copy in copies(image).items():
            if (other := face(copy, detector)) is not None:
                apart.setdefault(name, []).append(
                    differing(np.array(own, np.uint64), np.array(other, np.uint64))
                )
    every = np.array(hashes, np.uint64)
    rows, columns = np.triu_indices(len(every), 1)
    cases = {name: np.array(d) for name, d in apart.items()}
    cases["different pictures"] = differing(every[rows], every[columns])
    shown = []
    for name, d in cases.items():
        one, both = ([int((values <= k).sum()) for k in BITS] for values in (d[:, 0], d.max(axis=1)))
        shown.append([name, len(d), *one, *both])
    heads = [f"{hash_} <= {k}" for hash_ in ("one", "both") for k in BITS]
    print(tabulate(shown, headers=["", "pairs", *heads]))
    return every


def drawn(like: Hashes, count: int) -> Hashes:
    """Hashes with the bias and the correlation of the bits of ``like``: a Gaussian copula."""
    shifts = np.arange(64, dtype=np.uint64)
    bits = (like[:, :, None] >> shifts & np.uint64(1)).reshape(len(like), 128).astype(np.float64)
    noisy = bits + np.random.default_rng(0).normal(0, 0.01, bits.shape)
    values, vectors = np.linalg.eigh(np.sin(np.pi / 2 * np.corrcoef(noisy.T)))
    mix = vectors * np.sqrt(values.clip(1e-3))
    mix /= np.linalg.norm(mix, axis=1, keepdims=True)
    threshold = ndtri(bits.mean(0).clip(0.01, 0.99))
    out = np.zeros((count, 2), np.uint64)
    generator = np.random.default_rng(1)
    for start in range(0, count, 100_000):
        part = out[start : start + 100_000]
        ones = (
            generator.standard_normal((len(part), 128), np.float32) @ mix.T.astype(np.float32)
        ) < threshold
        part[:] = (ones.reshape(-1, 2, 64).astype(np.uint64) << shifts).sum(-1, dtype=np.uint64)
    hundredth = count // 100
    out[-hundredth:] = flipped(out[:hundredth], 2, generator)
    out[-2 * hundredth : -hundredth] = flipped(np.zeros((hundredth, 2), np.uint64), 1, generator)
    return out


def flipped(hashes: Hashes, most: int, generator: np.random.Generator) -> Hashes:
    """Copies with up to ``most`` bits of each hash flipped."""
    copy = hashes.copy()
    for _ in range(most):
        bit = np.uint64(1) << generator.integers(0, 64, copy.shape, dtype=np.uint64)
        copy ^= np.where(generator.random(copy.shape) < 0.5, bit, np.uint64(0))
    return copy


def brute_force(hashes: Hashes, bits: int) -> float:
    """Seconds a pair of numpy."""
    some = hashes[:5000]
    start = time.perf_counter()
    for row in some:
        (differing(some, row) <= bits).all(axis=1).sum()
    return (time.perf_counter() - start) / len(some) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--portraits", type=int, default=100)
    parser.add_argument("--pictures", type=Path, help="a folder of photographs")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--bits", type=int, default=4)
    args = parser.parse_args()
    if args.pictures:
        files = sorted(path for path in args.pictures.rglob("*") if path.suffix in (".jpg", ".png"))
        pictures = (decode_picture(path.read_bytes()) for path in files)
    else:
        numbers = range(args.portraits)
        pictures = (Image.fromarray(portrait(0, i, SyntheticConfig()).image) for i in numbers)
    like = table(pictures, build("mobilenet0.25", "cpu", 0.9))
    if not args.rows:
        return
    near_pairs(like[distinct(like)[0]], 1)  # compiles
    hashes = drawn(like, args.rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    firsts, _ = distinct(hashes)
    pairs = near_pairs(hashes[firsts], args.bits)
    seconds = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(
        f"{len(firsts):,} different of {len(hashes):,} hashes, {len(pairs):,} pairs within {args.bits} bits,"
    )
    cpu = time.process_time() - cpu
    print(f"{seconds:.1f} s, {cpu:.1f} s of the processor, {more:.2f} GiB more than before")
    slow = brute_force(hashes, args.bits) * len(hashes) ** 2 / 2
    print(
        json.dumps(
            {"rows": len(hashes), "seconds": round(seconds, 1), "vs_brute_force": round(slow / seconds)}
        )
    )


if __name__ == "__main__":
    main()
