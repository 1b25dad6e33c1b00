"""``python -m pretrain CONFIG [key=value ...]``: pretrain a backbone, or go on with one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import configs
from configs import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, and print the path of the backbone as the last line."""
    from pretrain.train import PretrainConfig, train  # torch takes seconds to import: not for a typing error

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
    print(train(config))
    return cli.DONE


if __name__ == "__main__":
    cli.run(main)
