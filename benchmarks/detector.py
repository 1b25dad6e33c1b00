"""The project's batched RetinaFace against a loop over retina-face's ``detect_faces``, and against the network alone.

    python benchmarks/detector.py --rounds 3
    python benchmarks/detector.py --device cuda --pictures 256 --batch 32 --rounds 5

ResNet-50 with the same drawn weights everywhere; decoded synthetic photographs of side x side px, so that the
letterbox and the package's own scaling with up-scaling off see the same pixels. A threshold that 30 anchors a picture
pass stands for faces. Ours goes from decoded pictures to rows of the face table, as the stage ``detect`` does it; on
the CPU everything runs on one thread, as in each of the stage's processes, and seconds are those of the processor, so
that other work on the machine counts for little. With ``--device cuda`` the loop's network runs on the GPU, too,
though the package has no way to ask for it, and seconds are those of the clock.

The variants take turns; the median of the rounds' ratios counts. Prints a table and, as its last line, one JSON
object: ``vs_loop`` (up-scaling on, the package's default), ``vs_loop_same_pixels`` (off), ``vs_forward``; the same
over the forward pass for MobileNet-0.25 with its real weights, and that network over onnxruntime on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from PIL import Image

os.environ["DEEPFACE_BACKEND_ENGINE"] = "pytorch"  # read when the package is imported
from retinaface import RetinaFace as Package
from retinaface.model.retinaface_pth_model import RetinaFace as PackageNetwork
from torch import Tensor, nn

from data_prep.detect import DetectConfig, KeepConfig, batch_of, detect_pictures
from data_prep.detector import RetinaFace
from data_prep.retinaface_mobilenet import MEAN_BGR, MobileNetRetinaFace
from data_prep.retinaface_resnet50 import ResNet50RetinaFace
from data_prep.synthetic import SyntheticConfig, photograph
from data_prep.weights import mobilenet_weights

PASSING = 30
"""Anchors a picture that score above the threshold."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--batch", type=int, help="pictures a forward pass; unless given, the stage's own")
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    cfg = SyntheticConfig(mode="photograph", width=arguments.side, height=arguments.side)
    pictures = [Image.fromarray(photograph(0, index, cfg).image) for index in range(arguments.pictures)]
    print(f"{arguments.pictures} pictures of {arguments.side} px on {arguments.device}")
    ratios = resnet50(pictures, arguments) | mobilenet(pictures, arguments)
    print(json.dumps(ratios))


def resnet50(pictures: list[Image.Image], arguments: argparse.Namespace) -> dict[str, float]:
    """Drawn weights: ours, the loop with and without up-scaling, the forward pass."""
    torch.manual_seed(0)
    network = PackageNetwork().eval().to(arguments.device)
    threshold = passing(ResNet50RetinaFace(network), pictures[:4], arguments.device)
    bgr = [np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]) for picture in pictures]

    def on_device(images: Tensor) -> list[Tensor]:
        return [output.cpu() for output in network(images.to(arguments.device))]

    def loop(allow_upscaling: bool) -> None:
        for picture in bgr:
            Package.detect_faces(picture, threshold, model=on_device, allow_upscaling=allow_upscaling)

    detector = RetinaFace(ResNet50RetinaFace(network), arguments.device, threshold)
    config = settings("resnet50", arguments)
    rates = race(
        {
            "ours": lambda: ours(pictures, detector, config),
            "loop": lambda: loop(True),
            "loop_same_pixels": lambda: loop(False),
            "forward": forward(pictures, detector, batch_of(config, arguments.device)),
        },
        arguments,
        "resnet50",
    )
    return {
        f"vs_{name}": ratio(rates["ours"], rates[name]) for name in ("loop", "loop_same_pixels", "forward")
    }


def mobilenet(pictures: list[Image.Image], arguments: argparse.Namespace) -> dict[str, float]:
    """Real weights: ours, the forward pass, and on the CPU onnxruntime on the original graph."""
    detector = RetinaFace(MobileNetRetinaFace.from_onnx(mobilenet_weights()), arguments.device, 0.5)
    config = settings("mobilenet0.25", arguments)
    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(pictures, detector, config),
        "forward": forward(pictures, detector, batch_of(config, arguments.device)),
    }
    if arguments.device == "cpu":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            mobilenet_weights(), options, providers=["CPUExecutionProvider"]
        )
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        blob = np.ascontiguousarray((pixels[..., ::-1] - np.float32(MEAN_BGR)).transpose(0, 3, 1, 2))
        variants["onnxruntime"] = lambda: session.run(None, {"input": blob})
    rates = race(variants, arguments, "mobilenet0.25")
    ratios = {"vs_forward_mobilenet": ratio(rates["ours"], rates["forward"])}
    if "onnxruntime" in rates:
        ratios["mobilenet_forward_over_onnxruntime"] = ratio(rates["forward"], rates["onnxruntime"])
    return ratios


def settings(network: Literal["mobilenet0.25", "resnet50"], arguments: argparse.Namespace) -> DetectConfig:
    """The stage's configuration."""
    return DetectConfig(network=network, size=arguments.side, batch=arguments.batch, device=arguments.device)


def ours(pictures: list[Image.Image], detector: RetinaFace, config: DetectConfig) -> None:
    """From decoded pictures to rows of the face table."""
    rows = [
        {"image_id": str(index), "width": picture.width, "height": picture.height}
        for index, picture in enumerate(pictures)
    ]
    detect_pictures(rows, lambda row: pictures[int(row["image_id"])], detector, config, KeepConfig())


def forward(pictures: list[Image.Image], detector: RetinaFace, batch: int) -> Callable[[], None]:
    """The network alone, on batches that are on the device already."""
    batches = [
        torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures[start : start + batch]]))
        .to(detector.device)
        .permute(0, 3, 1, 2)
        for start in range(0, len(pictures), batch)
    ]

    @torch.inference_mode()
    def run() -> None:
        for images in batches:
            detector.network(images)

    return run


def passing(network: nn.Module, pictures: list[Image.Image], device: str) -> float:
    """The threshold that PASSING anchors a picture pass."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    with torch.inference_mode():
        scores = network(pixels.to(device).permute(0, 3, 1, 2))[1]
    return float(scores.flatten().topk(PASSING * len(pictures)).values[-1])


def race(
    variants: dict[str, Callable[[], Any]], arguments: argparse.Namespace, title: str
) -> dict[str, list[float]]:
    """Pictures a second of each variant in each round, after a round to warm up; prints the medians."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    clock = time.perf_counter if arguments.device == "cuda" else time.process_time
    for number in range(arguments.rounds + 1):
        for name, variant in variants.items():
            start = clock()
            variant()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(arguments.pictures / (clock() - start))
    for name, values in rates.items():
        print(f"{title:>14} {name:<18} {statistics.median(values):>8.2f} pictures a second")
    return rates


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


if __name__ == "__main__":
    main()
