"""One stage to one job: check, record, queue."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

import configs
from configs import Config, environment
from data_prep.files import lock, write_json
from slurm import attempts, runs
from slurm import cluster as clusters
from slurm.attempts import AGAIN
from slurm.cluster import Cluster
from slurm.job import StageJob
from slurm.snapshot import destination, snapshot
from slurm.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Submission:
    """A checked stage, ready to be shown (:meth:`text`) or queued (:meth:`send`)."""

    name: str
    stage: str
    config: Config
    cluster: Cluster
    after: tuple[str, ...] = ()
    """Ids of the jobs that must end well before this one starts."""
    array: int | None = None
    """Number of array tasks that share the stage's work; None: one job does it all."""

    @property
    def run(self) -> Path:
        """The run directory."""
        return STAGES[self.stage].run(self.config)

    @property
    def logs(self) -> Path:
        """The folder of the next submission of this run: ``logs/001``, ``logs/002``, ..."""
        taken = (int(p.name) for p in (self.run / "logs").glob("[0-9]*") if p.name.isdigit())
        return (self.run / "logs" / f"{max(taken, default=0) + 1:03d}").absolute()

    def text(self) -> str:
        """The sbatch file that submitit would write, or for this machine the command line of each process."""
        python = self.launcher(destination(ROOT, self.run / "code"))
        command = f"{python} -u -m submitit.core._submit {shlex.quote(str(self.logs))}"
        if self.cluster.executor == "local":
            return f"# {self.cluster.tasks} process(es) on this machine\n{command}"
        parameters = self.slurm_parameters(python, self.logs) | (
            {"map_count": self.array} if self.array else {}
        )
        return _make_sbatch_string(command=command, folder=self.logs, **parameters)

    def send(self) -> runs.Submission:
        """Record the code and the config in the run directory, and queue the job.

        Raises:
            configs.ConfigError: when there is no sbatch, or when it refuses; the message is then sbatch's own.
                Also while such a job of this run is queued or running.
        """
        if self.cluster.executor == "slurm" and shutil.which("sbatch") is None:
            raise configs.ConfigError("there is no sbatch here; submit from a login node, or add --local")
        with lock(self.run / "logs" / ".lock", wait=True):
            return self._send()

    def _send(self) -> runs.Submission:
        if job := self.under_way():
            raise configs.ConfigError(
                f"{self.run} is in use: job {job} is queued or running; wait for it, cancel it "
                f"(python -m slurm cancel {self.run}), or give another output=FOLDER"
            )
        logs = self._record()
        executor = self._executor(logs, self.launcher(snapshot(ROOT, self.run / "code")))
        try:
            with _output_to(logs / "controller.log"):
                jobs = (
                    executor.submit_array(self._jobs(logs))
                    if self.array
                    else [executor.submit(self._job(logs))]
                )
        except FailedJobError as error:
            raise configs.ConfigError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
        note = self._note(str(jobs[0].job_id).partition("_")[0])
        runs.write_note(logs, note)
        return runs.Submission(logs, note)

    def run_here(self) -> None:
        """Run the stage in this process, from the working tree, with pdb after an error."""
        logs = self._record()
        submitit.DebugExecutor(logs).submit(self._job(logs)).results()

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
        python = [*self.cluster.container, "python"] if self.cluster.container else [sys.executable]
        return shlex.join(["env", f"--chdir={code}", *assignments, *python])

    def slurm_parameters(self, python: str, logs: Path) -> dict[str, Any]:
        """What submitit's SLURM executor is given, in its own words."""
        c = self.cluster
        cpus = [] if c.cpus_per_task is None else [f"--cpus-per-task={c.cpus_per_task}"]
        # Without kill-on-invalid-dep a job whose predecessor failed would wait for ever.
        dependency = "afterok:" + ":".join(self.after) if self.after else None
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
            "array_parallelism": c.array_at_once,
            "setup": [*c.setup, *again_lines(python, logs)],
            "srun_args": [*cpus, *c.srun_args],
            "dependency": dependency,
            "additional_parameters": {"requeue": True}
            | ({"kill-on-invalid-dep": "yes"} if dependency else {}),
        }
        return {name: value for name, value in parameters.items() if value is not None}

    def warn_of_preemption(self) -> None:
        """Say so on stderr where SLURM would stop the job without a word, or too soon after it."""
        from slurm.doctor import scheduler  # here: it imports this module

        if self.cluster.executor == "slurm" and shutil.which("scontrol"):
            finding = scheduler.preemption(scheduler.Slurm.ask(), self.cluster)
            if finding.verdict == "warn":
                print(f"note: {finding.found} -> {finding.mend}", file=sys.stderr)

    def under_way(self) -> str | None:
        """The id of a job that is at the same already.

        Raises:
            configs.ConfigError: when that cannot be told now.
        """
        for logs, note in runs.submissions(self.run):
            alive = runs.live(note) if note.stage == self.stage else False
            if alive is None and not attempts.over(logs, note):
                raise configs.ConfigError(
                    f"{self.run}: SLURM does not say whether job {note.job} still runs; try again later, or if it is "
                    f"gone for sure remove {logs}/job.json"
                )
            if alive:
                return note.job
        return None

    def _record(self) -> Path:
        """Write down the config that was checked; it, not the file it came from, is what runs."""
        logs = self.logs
        logs.mkdir(parents=True)
        # Only what was set: a default such as "as many workers as cores" belongs to the machine of the job.
        (logs / "config.json").write_text(self.config.model_dump_json(exclude_unset=True, indent=1) + "\n")
        write_json(logs / "environment.json", environment.record())
        return logs

    def _job(self, logs: Path, *part: str) -> StageJob:
        stage = STAGES[self.stage]
        argv = (*stage.command, str(logs / "config.json"), *part)
        return StageJob(stage.room, argv, folder=os.getcwd(), logs=logs)

    def _jobs(self, logs: Path) -> list[StageJob]:
        return [self._job(logs, "--part", f"{i}/{self.array}") for i in range(self.array or 0)]

    def _note(self, job: str) -> runs.JobNote:
        c = self.cluster
        return runs.JobNote(
            job=job,
            executor=c.executor,
            stage=self.stage,
            name=self.name,
            run=str(self.run.absolute()),
            tasks=c.nodes * c.tasks,
            array=self.array,
            minutes=c.minutes,
            signal_delay_s=c.signal_delay_s,
            after=self.after,
            submitted=time.time(),
            host=socket.gethostname(),
        )

    def _executor(self, logs: Path, python: str) -> submitit.Executor:
        c = self.cluster
        if c.executor == "slurm":
            executor: submitit.Executor = submitit.SlurmExecutor(logs, python=python)
            executor.update_parameters(**self.slurm_parameters(python, logs))
            return executor
        executor = submitit.LocalExecutor(logs, python=python)
        executor.update_parameters(
            timeout_min=c.minutes, signal_delay_s=c.signal_delay_s, tasks_per_node=c.tasks
        )
        return executor


def again_lines(python: str, logs: Path) -> list[str]:
    """Shell lines that note an attempt's beginning and end, and queue the job again where slurm.attempts says so.

    Bash runs the EXIT trap also when Slurm ends the job, by SIGTERM: then at once, and with the exit code 0.
    """
    notes = f"{python} -m slurm.attempts"
    folder = shlex.quote(str(logs))
    # By the id of the array task: its raw id may be that of the whole array.
    job = '"${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"'
    return [
        "# notes each attempt; after a crash or the time limit queues the job again while it makes progress",
        f"{notes} begin {folder} || exit",
        "again() {",
        "  for try in 1 2 3 4 5; do  # the controller may be restarting",
        # Slurm ends it from here: a script that ended by itself would be a failed job again.
        f"    scontrol requeue {job} && exec sleep 600",
        "    sleep 30",
        "  done",
        "}",
        "ended() {",
        "  code=$?",
        f"  {notes} end {folder} $code $SECONDS && exit 0",
        f"  [ $? -ne {AGAIN} ] || again",
        "  exit $code",
        "}",
        "trap ended EXIT",
    ]


def prepare(
    stage_name: str,
    config_path: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    name: str | None = None,
    after: Sequence[str] = (),
    array: int | None = None,
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
        array: Number of array tasks that share the work.
        inputs_to_come: Whether an earlier stage still has to write the input files.

    Raises:
        ConfigError: with one line that says what to do.
    """
    stage = STAGES[stage_name]
    of_cluster = [o.removeprefix("cluster.") for o in overrides if o.startswith("cluster.")]
    config = stage.load(config_path, [o for o in overrides if not o.startswith("cluster.")])
    if not inputs_to_come and not after:
        stage.require_inputs(config, config_path)
    if array is not None and not stage.shared:
        can = ", ".join(name for name, other in STAGES.items() if other.shared)
        raise configs.ConfigError(f"array: the stage '{stage_name}' cannot be shared out; these can: {can}")
    where = choose_cluster(cluster, of_cluster)
    where = where.for_stage(None if stage.distributed else stage.gpus)
    stage.require_batch(config, where.nodes * where.tasks)
    if after and where.executor == "local":
        raise configs.ConfigError(
            "--after: local jobs start at once; list the stages in a pipeline file instead"
        )
    # This machine does all parts in one job: its workers fill the cores.
    parts = array if where.executor == "slurm" and array != 1 else None
    return Submission(name or stage_name, stage_name, config, where, tuple(after), parts)


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
    # In the background of a script Ctrl-C is ignored; inherited, the controller could not be cancelled by it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = os.dup(1), os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for fd, terminal in zip((1, 2), kept, strict=True):
            os.dup2(terminal, fd)
            os.close(terminal)
