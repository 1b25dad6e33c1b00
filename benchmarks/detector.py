"""The project's RetinaFace MobileNet-0.25 in torch against onnxruntime on the published graph, one CPU thread.

    python benchmarks/detector.py --rounds 5

Network only, the same synthetic photographs, the two in turn; the median of the rounds counts. Prints a table and,
as its last line, one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import onnxruntime
import torch
from PIL import Image

from data_prep.detector import MEAN_BGR, MobileNetRetinaFace, mobilenet_weights
from data_prep.synthetic import SyntheticConfig, photograph

SIZES = (256, 448, 640)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(mobilenet_weights(), options, providers=["CPUExecutionProvider"])
    network = MobileNetRetinaFace.from_onnx(mobilenet_weights()).to(memory_format=torch.channels_last).eval()
    cfg = SyntheticConfig(mode="photograph")
    scenes = [Image.fromarray(photograph(0, i, cfg).image) for i in range(arguments.batch)]
    ratios = {}
    print(f"{'side px':>8} {'torch':>10} {'onnxruntime':>12}   pictures a second")
    for size in SIZES:
        pixels = np.stack([np.asarray(scene.resize((size, size))) for scene in scenes])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        blob = np.ascontiguousarray((pixels[..., ::-1] - np.float32(MEAN_BGR)).transpose(0, 3, 1, 2))
        seconds: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
        for number in range(arguments.rounds + 1):  # the first round warms up
            start = time.perf_counter()
            with torch.inference_mode():
                network(images)
            middle = time.perf_counter()
            session.run(None, {"input": blob})
            if number:
                seconds["torch"].append(middle - start)
                seconds["onnxruntime"].append(time.perf_counter() - middle)
        rate = {name: arguments.batch / statistics.median(times) for name, times in seconds.items()}
        print(f"{size:>8} {rate['torch']:>10.1f} {rate['onnxruntime']:>12.1f}")
        ratios[f"torch_over_onnxruntime_{size}"] = round(rate["torch"] / rate["onnxruntime"], 2)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
