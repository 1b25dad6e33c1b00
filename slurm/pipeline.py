"""A chain of stages from one YAML: in order on this machine, by dependencies on SLURM."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator
from tabulate import tabulate

import configs
from configs import Config, ConfigError, cli
from data_prep.beton import read_manifest
from slurm.stages import STAGES
from slurm.submit import Submission, prepare
from slurm.watch import follow


class Step(Config):
    """One stage of the chain."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Its name in this file, on the command line and in the queue."""
    stage: str
    """What runs: one of those of ``python -m slurm submit --help``."""
    config: str
    """The stage's config."""
    overrides: tuple[str, ...] = ()
    """``a.b=c`` for that config, ``cluster.a=c`` for the cluster file."""
    cluster: str | None = None
    """Cluster file of this stage; null: the one of the command line, else the default."""
    array: int | None = Field(default=None, ge=1)
    """On SLURM, the number of jobs that share the work; on this machine one does it all."""
    after: tuple[str, ...] = ()
    """Names of the stages, above this one, that must end well before it starts."""

    @model_validator(mode="after")
    def _check(self) -> Step:
        if self.stage not in STAGES:
            close = difflib.get_close_matches(self.stage, STAGES, n=1)
            mend = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(STAGES)}"
            raise ValueError(f"stage '{self.stage}' is not known; {mend}")
        return self


class Pipeline(Config):
    """The chain, in an order in which it can run."""

    stages: tuple[Step, ...] = Field(min_length=1)
    """The stages; each may name only stages above it in 'after'."""

    @model_validator(mode="after")
    def _check(self) -> Pipeline:
        above: list[str] = []
        for step in self.stages:
            if step.name in above:
                raise ValueError(f"two stages are named '{step.name}'; rename one")
            for other in step.after:
                if other not in above:
                    raise ValueError(
                        f"stage '{step.name}': after: '{other}' is no stage above it; move or rename it"
                    )
            above.append(step.name)
        return self


def run(path: str, overrides: Sequence[str], cluster: str | None, dry_run: bool) -> int:
    """Run or queue the pipeline at ``path``; the exit code.

    A stage whose output is there and up to date is passed over.

    Args:
        path: The pipeline file.
        overrides: ``NAME.a.b=c`` for the config of the stage NAME.
        cluster: A cluster file for the stages that name none.
        dry_run: Print what would be queued, and queue nothing.

    Raises:
        ConfigError: before anything runs, when any stage's config or cluster file is wrong.
    """
    pipeline = configs.load(path, schema=Pipeline)
    extra = _by_stage(pipeline, overrides)
    # All are checked before the first one starts.
    plans = [_plan(step, extra[step.name], cluster) for step in pipeline.stages]
    if len({plan.cluster.executor for plan in plans}) > 1:
        raise ConfigError(
            f"{path}: some stages would run on SLURM and some here; give them one kind of cluster file"
        )
    if dry_run:
        _show(pipeline, plans)
        return cli.DONE
    return _queue(pipeline, plans) if plans[0].cluster.executor == "slurm" else _run_here(plans)


def _show(pipeline: Pipeline, plans: Sequence[Submission]) -> None:
    """The graph with its resources, then what each stage would be queued with."""
    rows = []
    for step, plan in zip(pipeline.stages, plans, strict=True):
        c = plan.cluster
        finished = _is_finished(plan)
        rows.append(
            {
                "stage": step.name,
                "waits for": ", ".join(step.after),
                "jobs": plan.array or 1,
                "nodes": c.nodes,
                "processes": c.nodes * c.tasks,
                "GPUs": c.nodes * (c.gpus_per_node or 0),
                "limit (h)": f"{c.minutes / 60:.1f}",
                "GPU hours": "0" if finished else gpu_hours(plan),
                "now": "finished" if finished else "to run",
            }
        )
    print(tabulate(rows, headers="keys") + "\n")
    for step, plan in zip(pipeline.stages, plans, strict=True):
        print(f"### {step.name}\n{plan.behind([f'ID_OF_{name}' for name in step.after]).text()}")


def gpu_hours(plan: Submission) -> str:
    """An estimate for pretraining where ``images_per_second`` is known, else the most that the time limit allows."""
    c = plan.cluster
    gpus = c.nodes * (c.gpus_per_node or 0)
    data = getattr(plan.config, "data", None)
    if plan.stage == "pretrain" and gpus and c.images_per_second and data and Path(data.path).exists():
        count = len(np.load(data.rows, mmap_mode="r")) if data.rows else read_manifest(data.path).count
        pictures = count * getattr(plan.config, "epochs", 0)
        return f"about {pictures / c.images_per_second / 3600:,.0f}"
    return f"at most {gpus * (plan.array or 1) * c.minutes / 60:,.0f} a period" if gpus else "0"


def _queue(pipeline: Pipeline, plans: Sequence[Submission]) -> int:
    plans[0].warn_of_preemption()
    # Asked of all before the first one is queued: a folder with other settings is refused here.
    under_way = [plan.under_way() for plan in plans]
    finished = [_is_finished(plan) for plan in plans]
    ids: dict[str, str] = {}
    for step, plan, job, done in zip(pipeline.stages, plans, under_way, finished, strict=True):
        before = [ids[name] for name in step.after if name in ids]
        if job:
            ids[step.name] = job
            print(f"{step.name}: job {job} is under way, run {plan.run}")
        elif done and not before:
            print(f"{step.name}: finished already, {plan.run}")
        else:
            try:
                ids[step.name] = plan.behind(before).send().note.job
            except ConfigError as error:
                print(f"{step.name}: {error}\nthe stages before it are queued", file=sys.stderr)
                return cli.FAILED
            print(f"{step.name}: job {ids[step.name]}, run {plan.run}")
    return cli.DONE


def _run_here(plans: Sequence[Submission]) -> int:
    for plan in plans:
        if _passed_over(plan):
            continue
        if reason := follow(plan.send(), plan.name):
            print(f"stage {plan.name}: {reason}\nthe stages after it were not started", file=sys.stderr)
            return cli.FAILED
    return cli.DONE


def _is_finished(plan: Submission) -> bool:
    """Whether there is nothing to do for ``plan``; without its inputs there always is."""
    stage = STAGES[plan.stage]
    try:
        stage.require_inputs(plan.config, plan.name)
    except ConfigError:
        return False
    return stage.is_finished(plan.config)


def _passed_over(plan: Submission) -> bool:
    """Whether ``plan`` is finished; says so."""
    if done := _is_finished(plan):
        print(f"{plan.name}: finished already, {plan.run}")
    return done


def _plan(step: Step, extra: Sequence[str], cluster: str | None) -> Submission:
    return prepare(
        step.stage,
        step.config,
        (*step.overrides, *extra),
        cluster=step.cluster or cluster,
        name=step.name,
        array=step.array,
        inputs_to_come=bool(step.after),
    )


def _by_stage(pipeline: Pipeline, overrides: Sequence[str]) -> dict[str, list[str]]:
    """``NAME.a.b=c`` sorted to the stages as ``a.b=c``."""
    sorted_out: dict[str, list[str]] = {step.name: [] for step in pipeline.stages}
    for override in overrides:
        name, _, rest = override.partition(".")
        if name not in sorted_out or "=" in name:
            close = difflib.get_close_matches(name, sorted_out, n=1)
            mend = f"did you mean '{close[0]}.'?" if close else f"stages: {', '.join(sorted_out)}"
            raise ConfigError(f"override '{override}': write it as STAGE.field=value; {mend}")
        sorted_out[name].append(rest)
    return sorted_out
