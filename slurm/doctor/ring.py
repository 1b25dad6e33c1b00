"""``python -m slurm.doctor.ring``: do the processes reach each other, and how fast?

    sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 --wrap 'srun python -m slurm.doctor.ring'

One all-reduce of as many bytes as the gradients of a ResNet-50, between all processes of the step: NCCL where
there are GPUs, gloo elsewhere. torchrun starts it as well, and it runs alone. The first process prints one line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from slurm.doctor.findings import first_line
from slurm.job import port

PARAMETERS = 28_000_000
"""Of a ResNet-50 with its projector."""
ROUNDS = 5


def main() -> int:
    """Take part; 1, with one line on stderr, when the others cannot be reached or the sum is wrong."""
    rank, world, local, address = rendezvous(os.environ)
    try:
        line = measure(rank, world, local, address)
    except (RuntimeError, OSError) as error:  # torch's DistError is a RuntimeError
        print(f"process {rank} of {world} at {address}: {first_line(error)}", file=sys.stderr)
        return 1
    if rank == 0:
        print(line, flush=True)
    return 0


def rendezvous(variables: Mapping[str, str]) -> tuple[int, int, int, str]:
    """Rank, world, local rank and ``tcp://`` address from torchrun's variables, else srun's, else one process."""
    if "RANK" in variables:
        host, number = variables["MASTER_ADDR"], variables["MASTER_PORT"]
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in variables:
        # Where srun was called: the first node in a batch script, but a login node after salloc.
        host = variables.get("MASTER_ADDR") or variables.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        # Not the port of the job itself, which may be in use.
        number = str(port(variables["SLURM_JOB_ID"], f"ring {variables.get('SLURM_STEP_ID', '0')}"))
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return 0, 1, 0, f"tcp://127.0.0.1:{port(str(os.getpid()), 'ring')}"
    rank, world, local = (int(variables[name]) for name in names)
    return rank, world, local, f"tcp://{host}:{number}"


def measure(rank: int, world: int, local: int, address: str, seconds: float = 120) -> str:
    """Sum a tensor over ``world`` processes; how many there were, over what, and how fast, in one line.

    Raises:
        RuntimeError: the others did not answer within ``seconds``, or the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        # With --gpus-per-task a process sees one GPU only, which is then number 0.
        torch.cuda.set_device(local % torch.cuda.device_count())
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
    )
    try:
        x = torch.ones(PARAMETERS if cuda else PARAMETERS // 100, device="cuda" if cuda else "cpu")
        dist.all_reduce(x)  # connects
        if x[0].item() != world or x[-1].item() != world:
            raise RuntimeError(f"the sum of {world} ones came back as {x[0].item()}")
        start = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(x)
        x[0].item()  # waits for the GPU
        took = (time.perf_counter() - start) / ROUNDS
    finally:
        dist.destroy_process_group()
    # What goes over each process's link: NCCL's "bus bandwidth".
    rate = 2 * (world - 1) / world * x.numel() * x.element_size() / took / 1e9
    speed = f", {rate:.1f} GB/s" if world > 1 else ""
    size = x.numel() * x.element_size() / 1e6
    return f"{world} processes agree over {backend}: {size:.0f} MB in {took * 1e3:.1f} ms{speed}"


if __name__ == "__main__":
    sys.exit(main())
