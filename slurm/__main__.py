"""``python -m slurm submit|pipeline|status|watch|cancel|doctor``: the command line."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import configs.cli
from configs import ConfigError
from slurm import cluster as clusters
from slurm import pipeline, runs
from slurm.cluster import Cluster
from slurm.stages import STAGES
from slurm.submit import ROOT, prepare
from slurm.watch import follow

EXAMPLES = """
examples:
  python -m slurm submit pretrain configs/pretrain/demo.yaml --local --watch
  python -m slurm submit pretrain CONFIG epochs=100 cluster.nodes=4 --cluster configs/cluster/dgx.yaml
  ID=$(python -m slurm submit detect A.yaml --array 32 | tail -1); python -m slurm submit crop A.yaml --after $ID
  python -m slurm pipeline configs/demo.yaml pretrain.epochs=4 --dry-run
  python -m slurm status; python -m slurm watch runs/demo/pretrain; python -m slurm cancel runs/demo/pretrain

exit codes: 0 done (or queued), 1 the job failed, 2 bad usage or config; nothing was queued

fields of a cluster file:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv``, do it, and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["doctor"]:
        from slurm import doctor  # here: only this command tries out torch and FFCV

        return doctor.main(words[1:])
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    # argparse gives up on key=value words that come after an option.
    if rest and (arguments.command not in _TAKE_OVERRIDES or any(_is_no_override(word) for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command in _TAKE_OVERRIDES:
        arguments.overrides = [*arguments.overrides, *rest]
        arguments.cluster = str(ROOT / clusters.LOCAL) if arguments.local else arguments.cluster
    code: int = arguments.do(arguments)
    return code


_TAKE_OVERRIDES = ("submit", "pipeline")


def _is_no_override(word: str) -> bool:
    return word.startswith("-") or "=" not in word


def _submit(arguments: argparse.Namespace) -> int:
    submission = prepare(
        arguments.stage,
        arguments.config,
        arguments.overrides,
        cluster=arguments.cluster,
        after=arguments.after,
        array=arguments.array,
        inputs_to_come=arguments.dry_run,
    )
    if arguments.dry_run:
        print(submission.text())
        return configs.cli.DONE
    if arguments.debug:
        submission.run_here()
        return configs.cli.DONE
    submission.warn_of_preemption()
    sent = submission.send()
    print(f"run {submission.run}, log {sent.logs / sent.note.ids[0]}_0_log.out", file=sys.stderr)
    reason = follow(sent, submission.name) if arguments.watch else None
    if reason:
        print(f"job {sent.note.job} failed: {reason}", file=sys.stderr)
    print(sent.note.job)
    return configs.cli.FAILED if reason else configs.cli.DONE


def _pipeline(arguments: argparse.Namespace) -> int:
    return pipeline.run(arguments.config, arguments.overrides, arguments.cluster, arguments.dry_run)


def _watch(arguments: argparse.Namespace) -> int:
    sent = runs.submissions(arguments.run)
    if not sent:
        raise ConfigError(f"{arguments.run}: nothing was submitted for this run; give a run directory")
    reason = follow(sent[-1], sent[-1].note.name, owned=False)
    if reason:
        print(f"job {sent[-1].note.job} failed: {reason}", file=sys.stderr)
    return configs.cli.FAILED if reason else configs.cli.DONE


def _status(arguments: argparse.Namespace) -> int:
    from slurm import status

    return status.show(arguments.runs, as_json=arguments.json, verbose=arguments.verbose)


def _cancel(arguments: argparse.Namespace) -> int:
    from slurm import status

    return status.cancel(arguments.runs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slurm",
        description="Run a stage, or a chain of them, on a SLURM cluster or on this machine.",
        epilog=EXAMPLES + configs.cli.describe(Cluster),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="one stage as one job; the last line printed is the job id")
    submit.set_defaults(do=_submit)
    submit.add_argument("stage", choices=STAGES)
    chain = commands.add_parser("pipeline", help="all stages of a YAML, in order or by dependencies")
    chain.set_defaults(do=_pipeline)
    for command in (submit, chain):
        command.add_argument("config", help="YAML file")
        command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=_OVERRIDES)
        place = command.add_mutually_exclusive_group()
        place.add_argument("--cluster", metavar="FILE", help="where to run; default: SLURM if there is one")
        place.add_argument("--local", action="store_true", help="run on this machine")
        command.add_argument("--dry-run", action="store_true", help="print the sbatch file, queue nothing")
    submit.add_argument(
        "--after", action="append", default=[], metavar="ID", help="start when job ID ended well"
    )
    submit.add_argument("--array", type=_count, metavar="N", help="share the stage's work out to N jobs")
    submit.add_argument(
        "--watch", action="store_true", help="print the log until the end; exit with its outcome"
    )
    submit.add_argument("--debug", action="store_true", help="run in this process, with pdb after an error")
    status = commands.add_parser("status", help="a table of the runs; exit code 1 if one failed or hangs")
    status.set_defaults(do=_status)
    status.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], help="folders; default: runs")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.add_argument("--verbose", action="store_true", help="also where each log is")
    watch = commands.add_parser("watch", help="print a run's log until it ends; exit with its outcome")
    watch.set_defaults(do=_watch)
    watch.add_argument("run", type=Path, help="a run directory")
    cancel = commands.add_parser("cancel", help="end the jobs of a run")
    cancel.set_defaults(do=_cancel)
    cancel.add_argument("runs", nargs="+", type=Path, help="run directories")
    commands.add_parser("doctor", help="try out this machine and the cluster, and say what to change")
    return parser


def _count(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise argparse.ArgumentTypeError(f"a number of jobs, found '{word}'")
    return int(word)


_OVERRIDES = "fields of the config (in a pipeline STAGE.key=value); cluster.key=value for the cluster file"


if __name__ == "__main__":
    # A watched local job is cancelled when its watcher is told to stop, by Ctrl-C or by SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(configs.cli.FAILED))
    configs.cli.run(main)
