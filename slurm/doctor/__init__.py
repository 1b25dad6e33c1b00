"""``python -m slurm doctor``: is this machine, is the cluster fit for a run, and what has to be changed?

Each check is a function that returns a :class:`Finding`; this module chooses which ones are asked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import ConfigError, cli
from slurm.cluster import Cluster
from slurm.doctor import machine, scheduler, storage
from slurm.doctor.findings import Finding, Verdict
from slurm.doctor.scheduler import Slurm
from slurm.submit import choose_cluster

__all__ = ["Finding", "Verdict", "examine", "main"]

ABOUT = """\
Checks this machine and the cluster, and says what to change. One line a check:

  ok    fine
  warn  it runs, but slower or less safely than it could; after -> what to do
  FAIL  a run would stop here; after -> what to do
  skip  cannot be asked here, for example a GPU on a login node

Nothing is queued; a temporary is written to the run folder, and removed.
"""
EXAMPLES = """\
on a login node, about the cluster:
  python -m slurm doctor --cluster mine.yaml --beton runs/data/vggface2/set.beton --run runs/pretrain

on a compute node, about its GPUs, limits and view of the files (-l names the node that speaks):
  srun -l --partition=NAME --nodes=1 --gpus-per-node=8 python -m slurm doctor --cluster mine.yaml

between nodes (sbatch, as srun meets at the node it is called on):
  sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 --wrap 'srun python -m slurm.doctor.ring'

exit codes: 0 nothing FAILs, 1 something does, 2 bad usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings, one a line as they come, then their counts; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm doctor",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cluster", metavar="FILE", help="the cluster file to hold against SLURM; default: as for submit"
    )
    parser.add_argument(
        "--beton", type=Path, metavar="PATH", help="the data: is it whole, does it fit in memory?"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs are written [runs]"
    )
    arguments = parser.parse_args(argv)
    counts: Counter[Verdict] = Counter()
    for finding in examine(arguments.cluster, arguments.beton, arguments.run):
        print(finding, flush=True)
        counts[finding.verdict] += 1
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("ok", "warn", "FAIL", "skip")))
    return cli.FAILED if counts["FAIL"] else cli.DONE


def examine(cluster_file: str | None, beton: Path | None, run: Path) -> Iterator[Finding]:
    """Every check that applies, in an order in which a cause comes before what follows from it."""
    cluster, refused = _cluster(cluster_file)
    if refused:
        yield refused
    yield machine.python()
    yield from (machine.package(name) for name in machine.REQUIRED)
    yield machine.torch_works()
    yield machine.ffcv()
    yield machine.container(cluster.container)
    yield machine.gpus()
    nccl = machine.nccl()
    yield nccl
    if nccl.verdict == "skip":
        yield machine.gloo()
    yield machine.open_files()
    yield machine.locked_memory()
    yield machine.shared_memory()
    yield machine.tcp_port()
    yield machine.address(cluster.nodes)
    yield from storage.folder(run, shared=cluster.executor == "slurm")
    findings, slurm = scheduler.examine(cluster)
    yield from findings
    if beton is not None:
        whole = storage.beton(beton)
        yield whole
        if whole.verdict == "ok":
            yield _page_cache(beton, cluster, slurm)


def _cluster(path: str | None) -> tuple[Cluster, Finding | None]:
    """The cluster file to hold against SLURM; where it cannot be had, the defaults and why."""
    try:
        return choose_cluster(path), None
    except ConfigError as error:
        return Cluster(), Finding(
            "cluster file", "FAIL", str(error), "until then the rest is held against the defaults"
        )


def _page_cache(beton: Path, cluster: Cluster, slurm: Slurm | None) -> Finding:
    """Hold the data against the memory that a job gets on a node: what it asks for, the smallest node's, or here."""
    memory, whose = storage.memory_here(), "this machine"
    partition = slurm.partition(cluster.partition) if slurm else None
    if slurm and partition and (nodes := slurm.nodes_of(partition)):
        memory, whose = min(map(scheduler.memory_of, nodes)), "the partition's smallest node"
    asked = scheduler.memory_bytes(cluster.memory or "0")
    if cluster.executor == "slurm" and 0 < asked < memory:
        memory, whose = asked, "the job (memory: in the cluster file)"
    return storage.page_cache(beton.stat().st_size, memory, cluster.tasks, whose)
