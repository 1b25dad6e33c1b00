"""``python -m slurm.testbed start|stop [FOLDER]``: a real Slurm on this machine to try things on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.testbed import Testbed, TestbedError


def main(argv: Sequence[str] | None = None) -> int:
    """Start or stop the testbed; print how to use it."""
    parser = argparse.ArgumentParser(prog="python -m slurm.testbed", description=__doc__)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/run/facerep-slurm"))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=8, help="of a node; they need not exist")
    parser.add_argument("--gpus", type=int, default=8, help="of a node; they do nothing")
    arguments = parser.parse_args(argv)
    testbed = Testbed(arguments.folder.absolute(), arguments.nodes, arguments.cpus, arguments.gpus)
    if arguments.action == "stop":
        testbed.stop()
        return 0
    try:
        testbed.start()
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={testbed.conf}   # then sinfo, sbatch, python -m slurm submit ...", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
