"""A stage of a few lines with the interface of the real ones: a command line and a config with ``output``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import configs.cli


class TinyConfig(configs.Config):
    """What the tests vary."""

    output: str
    """Run directory."""
    data: str | None = None
    """An input file."""
    lines: int = 3
    """Lines to print."""
    seconds: float = 0.0
    """Pause after each line."""
    fail: bool = False
    """Raise at the end."""
    fail_part: str | None = None
    """The part of an array that raises, as 1/3."""
    kill_rank: int | None = None
    """The rank that kills itself."""
    refuse: bool = False
    """Find the config wrong."""
    batch_size: int = 64
    """Pictures a step, over all ranks."""
    gather: bool = False
    """All ranks meet and add up their numbers."""


def finished(config: TinyConfig) -> bool:
    """Whether the stage has run."""
    return (Path(config.output) / "rank_0.json").exists()


def main() -> int:
    """Print, meet, and leave ``rank_N.json`` with what this process saw."""
    config = configs.load(sys.argv[1], schema=TinyConfig)
    part = sys.argv[3] if sys.argv[2:3] == ["--part"] else "0/1"
    for i in range(config.lines):
        print(f"line {i}", flush=True)
        print(f"bar {i}\r", end="", file=sys.stderr, flush=True)
        time.sleep(config.seconds)
    rank = int(os.environ.get("RANK", "0"))
    if config.kill_rank == rank:
        os.kill(os.getpid(), 9)
    if config.refuse:
        raise configs.ConfigError("data: nothing in it")
    if config.fail or part == config.fail_part:
        raise ValueError("the picture is upside down")
    seen = {name: os.environ.get(name) for name in SEEN}
    seen |= {"cwd": os.getcwd(), "configs": configs.__file__, "argv": sys.argv[1:]}
    if config.gather:
        seen["sum"] = _sum_of_ranks(rank)
    name = f"rank_{rank}.json" if part == "0/1" else f"part_{part.replace('/', '_of_')}.json"
    (Path(config.output) / name).write_text(json.dumps(seen))
    return 0


SEEN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def _sum_of_ranks(rank: int) -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    number = torch.tensor(float(rank))
    dist.all_reduce(number)
    dist.destroy_process_group()
    return number.item()


if __name__ == "__main__":
    configs.cli.run(main)
