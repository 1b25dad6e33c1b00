"""``python -m slurm.testbed start|stop [FOLDER]``: a real Slurm on this machine to try things on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.testbed import Testbed, TestbedError

PARTITIONS = """\
Every node is in three partitions:
  main      the default. A job in urgent that needs its place preempts it: the job's processes get the
            signal that sbatch --signal names, for example USR2, and --grace seconds later they are killed
            and the job is queued again. It waits --requeue seconds before it may start.
  scavenge  the same without the grace: killed and queued again at once.
  urgent    preempts the other two and is never preempted itself.

To preempt all jobs of a node:    sbatch -p urgent --exclusive --nodelist=n0 --wrap='sleep 60'
To start a requeued job sooner:   scontrol update JobId=1 StartTime=now
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Start or stop the testbed; print how to use it."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm.testbed",
        description=__doc__,
        epilog=PARTITIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/run/facerep-slurm"))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=8, help="of a node; they need not exist")
    parser.add_argument("--gpus", type=int, default=8, help="of a node; they do nothing")
    parser.add_argument(
        "--grace", type=int, default=30, metavar="S", help="seconds between notice and preemption in main"
    )
    parser.add_argument(
        "--requeue", type=int, default=120, metavar="S", help="seconds that a requeued job waits"
    )
    parser.add_argument("--accounting", action="store_true", help="keep a record of all jobs, for sacct")
    arguments = parser.parse_args(argv)
    testbed = Testbed(
        arguments.folder.absolute(),
        arguments.nodes,
        arguments.cpus,
        arguments.gpus,
        grace_s=arguments.grace,
        requeue_s=arguments.requeue,
        accounting=arguments.accounting,
    )
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
