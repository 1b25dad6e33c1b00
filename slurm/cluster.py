"""Where a job runs and what it is given: the schema of ``configs/cluster/*.yaml``."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Literal

from pydantic import Field, model_validator

from configs import Config, ConfigError

LOCAL = "configs/cluster/local.yaml"
DEFAULT_SLURM = "configs/cluster/university.yaml"


# In a '#SBATCH' line: a second line would be a command.
_ONE_LINE = r"^[^\r\n]+$"


class Cluster(Config):
    """The machine and the share of it that one job gets."""

    executor: Literal["slurm", "local"] = "slurm"
    """slurm: through sbatch. local: processes on this machine."""
    partition: str | None = Field(default=None, pattern=_ONE_LINE)
    """SLURM partition; null: the cluster's default."""
    account: str | None = Field(default=None, pattern=_ONE_LINE)
    """SLURM account that is charged."""
    constraint: str | None = Field(default=None, pattern=_ONE_LINE)
    """SLURM features a node must have, for example 'a100&nvlink'."""
    nodes: int = Field(default=1, ge=1)
    """Nodes of a distributed stage; the other stages take one."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs on each node; null: none on SLURM, those that are visible on this machine."""
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Processes on each node of a distributed stage; null: one for each GPU."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """CPUs, and OMP threads, of a process; null: SLURM's default, an equal share of this machine."""
    memory: str | None = Field(default=None, pattern=r"^[0-9]+[KMGT]?B?$")
    """Memory of a node, for example 512GB; null: the cluster's default, '0': all of it."""
    minutes: int = Field(default=24 * 60, ge=1)
    """Time limit. A preempted or timed-out job goes on from its checkpoint in a new period of this length."""
    signal_delay_s: int = Field(default=120, ge=1)
    """Seconds between the notice (SIGUSR2) and the end of the period: long enough to write a checkpoint."""
    allow_short: bool = False
    """Accept a limit of ten minutes or less, of which starting and stopping take most."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on the first node before the job, for example 'module load cuda'."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every process."""
    container: tuple[str, ...] = ()
    """Words put before 'python' in every process, for example [apptainer, exec, --nv, facerep.sif]; empty: the
    Python that submits runs them."""
    images_per_second: float | None = Field(default=None, gt=0)
    """Pictures a second of one GPU in pretraining, for the estimate of a pipeline's GPU hours; null: none is made."""
    array_at_once: int = Field(default=256, ge=1)
    """Tasks of a job array that may run at the same time."""
    srun_args: tuple[str, ...] = ("--kill-on-bad-exit=1",)
    """Further arguments of srun; --cpus-per-task is always passed on, which SLURM 22.05+ does not do itself."""

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.executor == "local":
            if self.nodes > 1 or self.setup or self.container:
                raise ValueError(
                    "the local executor has one node, no setup lines and no container; set executor: slurm"
                )
            return self
        if self.minutes <= 10 and not self.allow_short:
            raise ValueError(
                f"minutes: {self.minutes} is too short, a start alone may take minutes, and Slurm sends its notice "
                "up to one early; give more than 10 or set allow_short: true"
            )
        if self.signal_delay_s >= 0.5 * self.minutes * 60 and not self.allow_short:
            raise ValueError(
                f"signal_delay_s: must be under half of the {self.minutes} minutes, found {self.signal_delay_s} s"
            )
        return self

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node or 0)

    def for_stage(self, gpus: int | None) -> Cluster:
        """What a stage gets: the whole, or one process with at most ``gpus`` GPUs.

        On this machine the nulls are replaced by what there is.

        Raises:
            ConfigError: when more GPUs are asked for than this machine has.
        """
        here = self._with_visible_gpus() if self.executor == "local" else self
        if gpus is not None:
            mine = min(gpus, here.gpus_per_node or 0)
            here = here.model_copy(update={"nodes": 1, "tasks_per_node": 1, "gpus_per_node": mine})
        if self.executor == "local" and self.cpus_per_task is None:
            share = max(1, len(os.sched_getaffinity(0)) // here.tasks)
            here = here.model_copy(update={"cpus_per_task": share})
        return here

    def _with_visible_gpus(self) -> Cluster:
        visible = len(visible_gpus())
        wanted = visible if self.gpus_per_node is None else self.gpus_per_node
        if wanted > visible:
            raise ConfigError(
                f"gpus_per_node: {wanted} asked for, there are {visible}; add cluster.gpus_per_node={visible}"
            )
        return self.model_copy(update={"gpus_per_node": wanted})


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def slurm_answers() -> bool:
    """Whether this machine belongs to a SLURM cluster.

    Raises:
        ConfigError: when it does, but the controller is down: running a day's work here instead helps nobody.
    """
    if shutil.which("sbatch") is None:
        return False
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    if ping.returncode and "Slurmctld" in ping.stdout:
        raise ConfigError(f"{ping.stdout.strip()}; try again later, or add --local to run on this machine")
    return ping.returncode == 0
