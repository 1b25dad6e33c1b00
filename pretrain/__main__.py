"""``python -m pretrain CONFIG [key=value ...]``: pretrain a backbone, or go on with one.

``python -m pretrain import FILE TARGET`` takes over somebody else's weights, ``python -m pretrain export BACKBONE
TARGET`` writes ours for others, ``python -m pretrain flops CONFIG`` counts what a step costs and ``python -m pretrain
masks RUN`` draws what SimFLE masks; each has its own ``--help``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import configs
from configs import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Choose by the first word: ``import``, ``export``, ``flops``, ``masks``, or else a run."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    actions = {"import": _import, "export": _export, "flops": _flops, "masks": _masks}
    action = actions.get(words[0] if words else "")
    return action(words[1:]) if action else _pretrain(words)


def _pretrain(words: Sequence[str]) -> int:
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
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="for example epochs=10 optimizer.name=sgd",
    )
    arguments = parser.parse_args(words)
    config = configs.load(arguments.config, arguments.overrides, schema=PretrainConfig)
    with StopRequest() as stop:
        backbone = train(config, stop)
    if backbone is not None:
        print(backbone)
        return cli.DONE
    logging.info("stopped as asked, with a checkpoint; the same command goes on")
    return cli.STOPPED


def _import(words: Sequence[str]) -> int:
    from pretrain.interchange import import_backbone

    parser = argparse.ArgumentParser(
        prog="python -m pretrain import",
        description="Take the ResNet out of somebody else's checkpoint: torchvision, timm, SwAV, Bulat et al., MoCo, "
        "BYOL, SimFLE. Nothing in the file is executed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("source", type=Path, help=".pth, .pth.tar, .pt or .safetensors")
    parser.add_argument("target", type=Path, help="the backbone.safetensors to write")
    parser.add_argument("--root", help="beginning of the network's keys, where there are several")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side that it was trained on")
    parser.add_argument("--mean", type=float, nargs=3, default=(0.485, 0.456, 0.406), help="RGB, of 0..1")
    parser.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225), help="RGB, of 0..1")
    parser.add_argument("--licence", default="unknown", help="of the weights, for the record")
    arguments = parser.parse_args(words)
    header = import_backbone(**vars(arguments))
    print(f"{header['architecture']}, width {header['width']}", file=sys.stderr)
    print(arguments.target)
    return cli.DONE


def _export(words: Sequence[str]) -> int:
    from pretrain.interchange import export_backbone

    parser = argparse.ArgumentParser(
        prog="python -m pretrain export",
        description="Write a backbone for others, with a model card beside it.",
    )
    parser.add_argument("source", type=Path, help="a backbone.safetensors")
    parser.add_argument("target", type=Path, help=".pth (torchvision, timm), .safetensors (timm) or .onnx")
    parser.add_argument("--figures", type=Path, help="a metrics.json whose figures the card shall show")
    print(export_backbone(**vars(parser.parse_args(words))))
    return cli.DONE


def _flops(words: Sequence[str]) -> int:
    from pretrain.flops import step_multiply_adds
    from pretrain.train import PretrainConfig

    parser = argparse.ArgumentParser(
        prog="python -m pretrain flops",
        description="Count the multiply-adds a picture in the forward passes of a training step: convolutions, "
        "matrix products and attention, of all views and networks. Nothing is trained.",
    )
    parser.add_argument("config", help="a YAML file, for example configs/pretrain/swav.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as for a run")
    arguments = parser.parse_args(words)
    config = configs.load(arguments.config, arguments.overrides, schema=PretrainConfig)
    print(f"{step_multiply_adds(config) / 1e9:.2f} G multiply-adds a picture")
    return cli.DONE


def _masks(words: Sequence[str]) -> int:
    from pretrain.masks import draw_masks

    parser = argparse.ArgumentParser(
        prog="python -m pretrain masks",
        description="Draw what a SimFLE run masks. masking.png: for each checkpoint, where pictures that are masked "
        "at random are hardest to paint, and how often each patch is kept. reconstruction.png: pictures, what eight "
        "channel groups leave of them, and what the autoencoder makes of the first. checkpoint.keep_every_steps "
        "keeps checkpoints over the run.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, help="folder of the pictures [RUN/masks]")
    parser.add_argument("--pictures", type=int, default=64, help="of the run's data, for the averages [64]")
    parser.add_argument("--shown", type=int, default=6, help="pictures in reconstruction.png [6]")
    arguments = parser.parse_args(words)
    if not 0 < arguments.shown <= arguments.pictures:
        parser.error("--shown: give a number from 1 up to --pictures")
    output = arguments.output or arguments.run / "masks"
    for path in draw_masks(arguments.run, output, count=arguments.pictures, shown=arguments.shown):
        print(path)
    return cli.DONE


if __name__ == "__main__":
    cli.run(main)
