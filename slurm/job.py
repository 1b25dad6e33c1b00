"""What runs inside a job: one stage, with the rendezvous of its processes in the environment."""

from __future__ import annotations

import logging
import os
import runpy
import sys
import zlib
from dataclasses import dataclass

import submitit

from configs import cli


@dataclass(frozen=True)
class StageJob:
    """``python -m room argv`` in ``folder``; submitit pickles it and calls it in every process.

    A stage finds its own progress on disk, so the same call is right at every restart.
    """

    room: str
    argv: tuple[str, ...]
    folder: str

    def __call__(self) -> None:
        """Run the stage.

        Raises:
            RuntimeError: when the stage ended with exit code 1 or 2; its message is on stderr.
        """
        # The process started in the code snapshot, where imports come from; paths in configs start here.
        os.chdir(self.folder)
        os.environ.update(rendezvous(submitit.JobEnvironment()))
        sys.argv[1:] = self.argv
        logging.getLogger("submitit").propagate = False  # its notes have their own format and place
        try:
            runpy.run_module(self.room, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            if stop.code in (cli.FAILED, cli.BAD_USAGE):
                sys.tracebacklimit = 0  # the stage has said what is wrong
                raise RuntimeError(f"{self.room} ended with exit code {stop.code}") from None
            # Any other code but 0 is submitit's own way out when it requeues the job.
            if stop.code:
                raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again after a preemption or a time-out."""
        return submitit.helpers.DelayedSubmission(self)


def rendezvous(job: submitit.JobEnvironment) -> dict[str, str]:
    """The variables that torchrun would set; empty for a single process."""
    if job.num_tasks == 1:
        return {}
    return {
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
        # The batch script's node is the first of the job. Its address needs no name service, and node names
        # need not be host names.
        "MASTER_ADDR": os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
        "MASTER_PORT": str(port(job.job_id, os.environ.get("SLURM_RESTART_COUNT", "0"))),
    }


def port(job_id: str, restart: str) -> int:
    """A port in 20000..59999 that differs between jobs and between restarts of one job.

    The same number again could still be held by a dying process of the period before.
    """
    return 20000 + zlib.crc32(f"{job_id}/{restart}".encode()) % 40000
