"""``python -m slurm submit|pipeline``: the command line."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

import configs.cli
from slurm import cluster as clusters
from slurm import pipeline
from slurm.cluster import Cluster
from slurm.stages import STAGES
from slurm.submit import ROOT, prepare
from slurm.watch import follow

EXAMPLES = """
examples:
  python -m slurm submit pretrain configs/pretrain/demo.yaml --local --watch
  python -m slurm submit pretrain CONFIG epochs=100 cluster.nodes=4 --cluster configs/cluster/dgx.yaml
  ID=$(python -m slurm submit data_prep A.yaml | tail -1); python -m slurm submit pretrain B.yaml --after $ID
  python -m slurm pipeline configs/demo.yaml pretrain.epochs=4

exit codes: 0 done (or queued), 1 the job failed, 2 bad usage or config; nothing was queued

fields of a cluster file:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv``, do it, and return the exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives up on key=value words that come after an option.
    if wrong := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    overrides = [*arguments.overrides, *rest]
    where = str(ROOT / clusters.LOCAL) if arguments.local else arguments.cluster
    if arguments.command == "pipeline":
        return pipeline.run(arguments.config, overrides, where, arguments.dry_run)
    submission = prepare(
        arguments.stage,
        arguments.config,
        overrides,
        cluster=where,
        after=arguments.after,
        inputs_to_come=arguments.dry_run,
    )
    if arguments.dry_run:
        print(submission.text())
        return configs.cli.DONE
    if arguments.debug:
        submission.run_here()
        return configs.cli.DONE
    job = submission.send()
    print(f"run {submission.run}, log {job.task(0).paths.stdout}", file=sys.stderr)
    reason = follow(job, submission.name) if arguments.watch else None
    if reason:
        print(f"job {job.job_id} failed: {reason}", file=sys.stderr)
    print(job.job_id)
    return configs.cli.FAILED if reason else configs.cli.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slurm",
        description="Run a stage, or a chain of them, on a SLURM cluster or on this machine.",
        epilog=EXAMPLES + configs.cli.describe(Cluster),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="one stage as one job; the last line printed is the job id")
    submit.add_argument("stage", choices=STAGES)
    chain = commands.add_parser("pipeline", help="all stages of a YAML, in order or by dependencies")
    for command in (submit, chain):
        command.add_argument("config", help="YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)
        place = command.add_mutually_exclusive_group()
        place.add_argument("--cluster", metavar="FILE", help="where to run; default: SLURM if there is one")
        place.add_argument("--local", action="store_true", help="run on this machine")
        command.add_argument("--dry-run", action="store_true", help="print the sbatch file, queue nothing")
    submit.add_argument(
        "--after", action="append", default=[], metavar="ID", help="start when job ID ended well"
    )
    submit.add_argument(
        "--watch", action="store_true", help="print the log until the end; exit with its outcome"
    )
    submit.add_argument("--debug", action="store_true", help="run in this process, with pdb after an error")
    return parser


_OVERRIDES = "fields of the config (in a pipeline STAGE.key=value); cluster.key=value for the cluster file"


if __name__ == "__main__":
    # A watched local job is cancelled when its watcher is told to stop, by Ctrl-C or by SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(configs.cli.FAILED))
    configs.cli.run(main)
