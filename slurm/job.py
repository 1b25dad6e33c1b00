"""What runs inside a job: one stage, with the rendezvous of its processes in the environment."""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import submitit

from configs import cli
from slurm import attempts


@dataclass(frozen=True)
class StageJob:
    """``python -m room argv`` in ``folder``; submitit pickles it and calls it in every process. ``logs`` is where the
    main process notes how it ended.

    A stage finds its own progress on disk, so the same call is right at every restart.
    """

    room: str
    argv: tuple[str, ...]
    folder: str
    logs: Path

    def __call__(self) -> None:
        """Run the stage.

        Raises:
            RuntimeError: when the stage ended with exit code 1 or 2; its message is on stderr.
            SystemExit: with 75 when it was told to stop and has kept everything.
        """
        environment = submitit.JobEnvironment()
        # The process started in the code snapshot, where imports come from; paths in configs start here.
        os.chdir(self.folder)
        os.environ.update(rendezvous(environment))
        sys.argv[1:] = self.argv
        logging.getLogger("submitit").propagate = False  # its notes have their own format and place
        requeue = signal.signal(signal.SIGUSR2, partial(_stop, os.getpid()))
        code = _exit_code(self.room)
        if code == cli.DONE:
            self._note(environment, "done")
        elif code == cli.STOPPED:
            self._note(environment, "notice")
            if environment.cluster == "local" and callable(requeue):
                requeue(signal.SIGUSR2, None)  # submitit's
            elif environment.global_rank == 0:
                sys.exit(code)  # the batch script queues the job again, see slurm/attempts.py
            # The other ranks end well: srun would kill the main one at a bad end, before it has said so.
        else:
            if code == cli.BAD_USAGE:
                self._note(environment, "refused", f"{self.room} refused its input: see its error above")
            sys.tracebacklimit = 0  # the stage has said what is wrong
            raise RuntimeError(f"{self.room} ended with exit code {code}") from None

    def _note(
        self,
        environment: submitit.JobEnvironment,
        event: Literal["done", "notice", "refused"],
        why: str | None = None,
    ) -> None:
        if environment.global_rank == 0 or event == "refused":
            seen = attempts.Event(event=event, time=time.time(), why=why)
            attempts.note(self.logs, environment.job_id, seen)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit's local executor starts again after a time-out."""
        return submitit.helpers.DelayedSubmission(self)


def _exit_code(room: str) -> int:
    """Run ``python -m room``; what it would exit with."""
    try:
        runpy.run_module(room, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else cli.FAILED if stop.code else cli.DONE
    return cli.DONE


def _stop(process: int, *_: object) -> None:
    """For stages that do not handle the signal: their work is kept piece by piece, so leaving at once is right."""
    if os.getpid() == process:  # forked worker processes inherit the handler
        sys.exit(cli.STOPPED)


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
