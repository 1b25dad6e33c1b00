"""What a loading process holds in memory when the set has millions of rows.

    python benchmarks/loader_memory.py --rows 3400000

Writes a .beton of that many rows in a temporary folder (a few hundred MB: all rows point to the same few pictures),
opens it in a fresh process, reads some batches, and compares the memory that is the process's own, page cache aside,
with that after the imports. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = 3_400_000
BATCH, BATCHES = 64, 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.beton"
        write(path, rows)
        found = {}
        for decoder in ("ffcv", "pillow"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[decoder] = pool.apply(load, (str(path), decoder))
    for decoder, (imports, loading) in found.items():
        print(f"{decoder:<7} {imports:7.0f} MB after the imports, {loading:7.0f} MB more with {rows:,} rows")
    print(json.dumps({f"{decoder}_mb": round(loading) for decoder, (_, loading) in found.items()}))


def load(path: str, decoder: str) -> tuple[float, float]:
    """MB after the imports, and how many more after some batches."""
    import torch

    from pretrain.data import Batches, DataConfig
    from pretrain.distributed import Ranks

    if decoder == "ffcv":
        import ffcv.loader  # noqa: F401 - counts as an import

    before = anonymous_memory()
    place = Ranks(0, 1, 0, 1, torch.device("cpu"))
    config = DataConfig(path=path, decoder=decoder, workers=1)
    source = Batches(config, place, batch_size=BATCH, seed=0).from_step(0)
    for _ in range(BATCHES):
        next(source)
    return before, anonymous_memory() - before


def anonymous_memory() -> float:
    """MB of this process that no file stands behind: what the page cache cannot give back."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1000


def write(path: Path, rows: int) -> None:
    """A .beton whose rows share 64 pictures: written small, then its tables are repeated."""
    from data_prep import beton

    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(64):
        buffer = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        jpegs.append(buffer.getvalue())
    start = -(-(beton.METADATA_START + rows * beton.METADATA.itemsize) // beton.PAGE_SIZE) * beton.PAGE_SIZE
    lengths = np.array([len(jpeg) for jpeg in jpegs])
    pointers = start + np.concatenate([[0], lengths.cumsum()[:-1]])
    which = np.arange(rows) % len(jpegs)
    metadata, allocations = np.zeros(rows, beton.METADATA), np.zeros(rows, beton.ALLOCATION)
    metadata["image"]["width"] = metadata["image"]["height"] = 256
    metadata["image"]["data_ptr"] = allocations["ptr"] = pointers[which]
    metadata["index"] = allocations["sample_id"] = np.arange(rows)
    allocations["size"] = lengths[which]
    with open(path, "wb") as file:
        file.write(beton._header(rows, start + beton.PAGE_SIZE) + metadata.tobytes())
        file.seek(start)
        file.write(b"".join(jpegs))
        file.seek(start + beton.PAGE_SIZE)
        file.write(allocations.tobytes())


if __name__ == "__main__":
    main()
