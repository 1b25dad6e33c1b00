"""One stage to one job: check, record, queue."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

import configs
from configs import Config
from slurm import cluster as clusters
from slurm.cluster import Cluster
from slurm.job import StageJob
from slurm.snapshot import destination, snapshot
from slurm.stages import STAGES, Stage

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Submission:
    """A checked stage, ready to be shown (:meth:`text`) or queued (:meth:`send`)."""

    name: str
    stage: Stage
    config: Config
    cluster: Cluster
    after: tuple[str, ...] = ()
    """Ids of the jobs that must end well before this one starts."""

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.stage.run(self.config)

    @property
    def logs(self) -> Path:
        """The folder of the next submission of this run: ``logs/001``, ``logs/002``, ..."""
        taken = (int(p.name) for p in (self.run / "logs").glob("[0-9]*") if p.name.isdigit())
        return (self.run / "logs" / f"{max(taken, default=0) + 1:03d}").absolute()

    def text(self) -> str:
        """The sbatch file that submitit would write, or for this machine the command line of each process."""
        command = f"{self.launcher(destination(ROOT, self.run / 'code'))} -u -m submitit.core._submit "
        command += shlex.quote(str(self.logs))
        if self.cluster.executor == "local":
            return f"# {self.cluster.tasks} process(es) on this machine\n{command}"
        return _make_sbatch_string(command=command, folder=self.logs, **self.slurm_parameters())

    def send(self) -> submitit.Job[None]:
        """Record the code and the config in the run directory, and queue the job.

        Raises:
            configs.ConfigError: when there is no sbatch, or when it refuses; the message is then sbatch's own.
        """
        if self.cluster.executor == "slurm" and shutil.which("sbatch") is None:
            raise configs.ConfigError("there is no sbatch here; submit from a login node, or add --local")
        logs, job = self._record()
        executor = self._executor(logs, self.launcher(snapshot(ROOT, self.run / "code")))
        try:
            with _output_to(logs / "controller.log"):
                return executor.submit(job)
        except FailedJobError as error:
            raise configs.ConfigError(f"sbatch refused the job: {' '.join(str(error).split())}") from None

    def run_here(self) -> None:
        """Run the stage in this process, from the working tree, with pdb after an error."""
        logs, job = self._record()
        submitit.DebugExecutor(logs).submit(job).results()

    def behind(self, jobs: Sequence[str]) -> Submission:
        """A copy that starts when ``jobs`` ended well."""
        return replace(self, after=tuple(jobs))

    def launcher(self, code: Path) -> str:
        """The shell words that start Python in the snapshot with the job's environment."""
        threads = self.cluster.cpus_per_task
        variables = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        if self.cluster.executor == "local":
            mine = clusters.visible_gpus()[: self.cluster.gpus_per_node]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        variables |= self.cluster.environment
        assignments = [f"{name}={value}" for name, value in variables.items()]
        return shlex.join(["env", f"--chdir={code}", *assignments, sys.executable])

    def slurm_parameters(self) -> dict[str, Any]:
        """What submitit's SLURM executor is given, in its own words."""
        c = self.cluster
        cpus = [] if c.cpus_per_task is None else [f"--cpus-per-task={c.cpus_per_task}"]
        parameters: dict[str, Any] = {
            "job_name": self.name,
            "partition": c.partition,
            "account": c.account,
            "constraint": c.constraint,
            "nodes": c.nodes,
            "ntasks_per_node": c.tasks,
            "gpus_per_node": c.gpus_per_node or None,
            "cpus_per_task": c.cpus_per_task,
            "mem": c.memory,
            "time": c.minutes,
            "signal_delay_s": c.signal_delay_s,
            "setup": list(c.setup) or None,
            "srun_args": [*cpus, *c.srun_args],
        }
        if self.after:
            # Without kill-on-invalid-dep a job whose predecessor failed would wait for ever.
            parameters["dependency"] = "afterok:" + ":".join(self.after)
            parameters["additional_parameters"] = {"kill-on-invalid-dep": "yes"}
        return {name: value for name, value in parameters.items() if value is not None}

    def _record(self) -> tuple[Path, StageJob]:
        """Write down the config that was checked; it, not the file it came from, is what runs."""
        logs = self.logs
        logs.mkdir(parents=True)
        # Only what was set: a default such as "as many workers as cores" belongs to the machine of the job.
        (logs / "config.json").write_text(self.config.model_dump_json(exclude_unset=True, indent=1) + "\n")
        argv = (*self.stage.command, str(logs / "config.json"))
        return logs, StageJob(self.stage.room, argv, folder=os.getcwd())

    def _executor(self, logs: Path, python: str) -> submitit.Executor:
        c = self.cluster
        if c.executor == "slurm":
            executor: submitit.Executor = submitit.SlurmExecutor(logs, python=python)
            executor.update_parameters(**self.slurm_parameters())
            return executor
        executor = submitit.LocalExecutor(logs, python=python)
        executor.update_parameters(
            timeout_min=c.minutes, signal_delay_s=c.signal_delay_s, tasks_per_node=c.tasks
        )
        return executor


def prepare(
    stage_name: str,
    config_path: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    name: str | None = None,
    after: Sequence[str] = (),
    inputs_to_come: bool = False,
) -> Submission:
    """Check everything that can be checked before anything is queued.

    Args:
        stage_name: A key of :data:`slurm.stages.STAGES`.
        config_path: The stage's config.
        overrides: ``a.b=c`` for the stage's config; ``cluster.a=c`` goes to the cluster file.
        cluster: A cluster file; None: SLURM when this machine belongs to one, else this machine.
        name: The job's name; the stage's by default.
        after: Job ids to wait for.
        inputs_to_come: Whether an earlier stage still has to write the input files.

    Raises:
        ConfigError: with one line that says what to do.
    """
    stage = STAGES[stage_name]
    of_cluster = [o.removeprefix("cluster.") for o in overrides if o.startswith("cluster.")]
    config = stage.load(config_path, [o for o in overrides if not o.startswith("cluster.")])
    if not inputs_to_come and not after:
        stage.require_inputs(config, config_path)
    where = choose_cluster(cluster, of_cluster)
    where = where.for_stage(None if stage.distributed else stage.gpus)
    stage.require_batch(config, where.nodes * where.tasks)
    if after and where.executor == "local":
        raise configs.ConfigError(
            "--after: local jobs start at once; list the stages in a pipeline file instead"
        )
    return Submission(name or stage_name, stage, config, where, tuple(after))


def choose_cluster(path: str | None, overrides: Sequence[str] = ()) -> Cluster:
    """The cluster file at ``path``, or the default one for where we are."""
    if path is None:
        path = str(ROOT / (clusters.DEFAULT_SLURM if clusters.slurm_answers() else clusters.LOCAL))
    return configs.load(path, overrides, schema=Cluster)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Give processes started inside ``log`` for stdout and stderr.

    submitit's local controller outlives this process and would keep the terminal's pipe open:
    ``id=$(python -m slurm submit ...)`` would wait for the end of the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for fd, terminal in zip((1, 2), kept, strict=True):
            os.dup2(terminal, fd)
            os.close(terminal)
