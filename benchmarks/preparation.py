"""All stages on many synthetic photographs: pictures a second of a core, peak memory, where the time goes.

    python benchmarks/preparation.py --pictures 20000 --distinct 2915

Renders ``--distinct`` photographs of 640 x 480 px and writes each under several names, every file with other bytes (a
JPEG comment) and the same pixels. Then runs ``python -m data_prep STAGE`` in two workers. Seconds are those of the
processor, of all processes together; the peak is that of the proportional memory (PSS) of the whole process tree, in
which pages of the .beton count while it is mapped. The shares of a stage's time are those of its report, by the
clock. Prints a table and, as its last line, one JSON object: ``vs_network``, the detector's network alone over all
stages.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from data_prep.synthetic import SyntheticConfig, photograph

STAGES = ("list", "detect", "crop", "write", "report")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--distinct", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=448, help="of the letterbox")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder, "in"), arguments.pictures, arguments.distinct)
        settings = [f"output={folder}/out", f"workers={arguments.workers}", f"detect.size={arguments.size}"]
        stages = {stage: measure([stage, f"{folder}/in", *settings]) for stage in STAGES}
        summary = json.loads(Path(folder, "out/report/summary.json").read_text())
    show(stages, summary, arguments.pictures)


def write_pictures(folder: Path, count: int, distinct: int) -> None:
    """``count`` JPEG files of ``distinct`` photographs, a thousand in a folder."""
    cfg = SyntheticConfig(mode="photograph", width=640, height=480, identity_count=1000)
    jpegs = []
    for index in tqdm(range(distinct), desc="rendering"):
        buffer = io.BytesIO()
        Image.fromarray(photograph(77, index, cfg).image).save(buffer, "JPEG", quality=95)
        jpegs.append(buffer.getvalue())
    for number in range(count):
        comment = f"copy {number // distinct}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        jpeg = jpegs[number % distinct]
        path.write_bytes(jpeg[:2] + segment + jpeg[2:])


def measure(words: list[str]) -> dict[str, float]:
    """Wall and processor seconds and peak memory, GiB, of ``python -m data_prep``."""
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "data_prep", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.monotonic() - started, "cpu": spent, "peak": peak / 2**30}


def memory(pid: int) -> int:
    """PSS of a process and all below it, bytes."""
    total = 0
    try:
        for process in [(parent := psutil.Process(pid)), *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one has just ended
        pass
    return total


def show(stages: dict[str, dict[str, float]], summary: dict[str, Any], pictures: int) -> None:
    """The table, and the ratio as JSON."""
    throughput, total = summary["throughput"], sum(stage["cpu"] for stage in stages.values())
    rows = [
        [
            name,
            round(stage["wall"], 1),
            round(stage["cpu"], 1),
            round(pictures / stage["cpu"], 1),
            f"{stage['cpu'] / total:.0%}",
            round(stage["peak"], 2),
            ", ".join(f"{k} {v:.0%}" for k, v in throughput.get(name, {}).get("shares", {}).items()),
        ]
        for name, stage in stages.items()
    ]
    print(f"{pictures} pictures, {summary['written']} faces")
    head = ["stage", "wall s", "cpu s", "pictures/s/core", "of the cpu", "peak GiB", "of the stage's time"]
    print(tabulate(rows, headers=head, tablefmt="github"))
    print(f"{pictures / total:.1f} pictures a second of a core through all stages")
    network = stages["detect"]["cpu"] * throughput["detect"]["shares"]["network"]
    print(json.dumps({"vs_network": round(network / total, 2)}))


if __name__ == "__main__":
    main()
