"""``python -m pretrain CONFIG [key=value ...]``: pretrain a backbone, or go on with one."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import configs
from configs import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, and print the path of the backbone as the last line.

    Returns:
        0 when it is finished, 75 when it was asked to stop and the same command will go on.
    """
    from pretrain.agreement import StopRequest
    from pretrain.train import PretrainConfig, train

    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description=__doc__,
        epilog="Fields of CONFIG, each of which key=value overrides:\n" + cli.describe(PretrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file, for example configs/pretrain/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example epochs=10 optimizer.name=sgd"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = configs.load(arguments.config, arguments.overrides, schema=PretrainConfig)
    with StopRequest() as stop:
        backbone = train(config, stop)
    if backbone is not None:
        print(backbone)
        return cli.DONE
    logging.info("stopped as asked, with a checkpoint; the same command goes on")
    if requeue := stop.handler_before():
        # submitit's, from the main line and not in the middle of a step. It ends the process on the main rank;
        # on the others it returns, and they must end well, or Slurm would kill the main one at it.
        requeue(signal.SIGUSR2, None)
        return cli.DONE
    return cli.STOPPED


if __name__ == "__main__":
    cli.run(main)
