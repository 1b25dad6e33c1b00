"""Runs of ``python -m pretrain`` in processes of their own, as the tests start, watch and kill them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = """
epochs: 16
batch_size: 16
device: cpu
views:
  crops:
    - {count: 2, size: 32, scale: [0.14, 1.0]}
    - {count: 2, size: 24, scale: [0.05, 0.14]}
backbone: {architecture: resnet18, width: 0.25}
method: {name: swav, prototypes: 20, hidden_dim: 32, projection_dim: 16, queue_length: 64, queue_start_epoch: 2}
optimizer: {name: lars, trust_coefficient: 0.02}
schedule: {lr: 0.5, warmup_epochs: 1}
checkpoint: {every_steps: 5}
log_every_steps: 3
"""


class Run:
    """The ranks of a run, started as Slurm starts them: nobody watches over them but themselves.

    Not by torchrun: its workers are sessions of their own, which outlive it when it is killed.
    """

    def __init__(self, config: Path, data: Path, output: Path, world: int = 1, *overrides: str) -> None:
        command = _command(config, data, output, overrides)
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        self.output = output
        self.ranks = [
            _popen(command, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)
        ]

    def signal(self, number: int) -> None:
        """To all ranks."""
        for rank in self.ranks:
            rank.send_signal(number)

    def end(self) -> tuple[list[int], str]:
        """Exit codes and the outputs, joined."""
        outputs = [rank.communicate(timeout=240)[0] for rank in self.ranks]
        return [rank.returncode for rank in self.ranks], "".join(outputs)

    def finish(self) -> str:
        """The output of a run that must end well."""
        codes, output = self.end()
        assert not any(codes), output
        return output

    def refuse(self, reason: str) -> None:
        """A run that must end with one line."""
        codes, output = self.end()
        assert codes == [2]
        assert reason in output
        assert output.count("\n") == 1


def killed_and_gone_on(config: Path, data: Path, folder: Path) -> Path:
    """A run of two ranks that is killed after its first checkpoint, and started again; its folder.

    Beside it, in ``whole``, is one that nobody disturbed, and both end with the same bytes.
    """
    whole, part = folder / "whole", folder / "part"
    Run(config, data, whole, 2).finish()
    run = Run(config, data, part, 2, "checkpoint.every_steps=3")
    while not list((part / "checkpoints").glob("step_*.pt")) and run.ranks[0].poll() is None:
        pass
    run.signal(9)
    assert run.end()[0] == [-9, -9], "it had ended before it was killed"
    Run(config, data, part, 2).finish()
    name = "backbone.safetensors"
    assert (part / name).read_bytes() == (whole / name).read_bytes()
    return part


def torchrun(config: Path, data: Path, output: Path, world: int, *overrides: str) -> None:
    """A whole run of ``world`` ranks under torchrun."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(world),
        "--master_port",
        str(free_port()),
    ]
    command = _command(config, data, output, overrides)
    process = _popen([command[0], *launch, *command[1:]], {})
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text


def _command(config: Path, data: Path, output: Path, overrides: Sequence[str]) -> list[str]:
    fields = [f"data.path={data}", f"output={output}", *overrides]
    return [sys.executable, "-m", "pretrain", str(config), *fields]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _popen(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
