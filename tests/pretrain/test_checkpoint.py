"""Checkpoints: the newest good one, and nothing that a broken file can run."""

import hashlib
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch

from pretrain import checkpoint
from pretrain.checkpoint import CheckpointConfig, Writer

CONFIG = CheckpointConfig(keep=2)


def steps(folder):
    return sorted(path.name for path in folder.glob("step_*.pt"))


def test_newest_wins_and_old_ones_go(tmp_path):
    for step in (10, 20, 30, 100):
        checkpoint.save(tmp_path, step, {"step": step, "x": torch.full((2,), float(step))}, CONFIG)
    assert steps(tmp_path) == ["step_00000030.pt", "step_00000100.pt"]
    step, state = checkpoint.newest(tmp_path)
    assert step == 100
    assert torch.equal(state["x"], torch.full((2,), 100.0))


def test_every_nth_is_kept(tmp_path):
    config = CheckpointConfig(keep=2, keep_every_steps=20)
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(tmp_path, step, {"step": step}, config)
    assert steps(tmp_path) == ["step_00000020.pt", "step_00000040.pt", "step_00000050.pt"]


@pytest.mark.chaos
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "flipped bit"])
def test_a_broken_file_is_set_aside_for_the_next_older(tmp_path, damage, caplog):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"x": torch.randn(1000)}, CONFIG)
    newest = tmp_path / "step_00000020.pt"
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4  # in the middle of a weight
    damaged = {"cut": whole[:2000], "empty": b"", "noise": os.urandom(3000), "flipped bit": flipped}
    newest.write_bytes(damaged[damage])
    step, _ = checkpoint.newest(tmp_path)
    assert step == 10
    assert (tmp_path / "step_00000020.unreadable").exists()
    assert "set aside" in caplog.text


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    zipped = io.BytesIO()
    torch.save({"x": Evil()}, zipped)
    for step, content in enumerate([pickle.dumps(Evil()), zipped.getvalue()]):
        (tmp_path / f"step_{step:08d}.pt").write_bytes(content + hashlib.sha256(content).digest())
    assert checkpoint.newest(tmp_path) is None
    assert not (tmp_path / "executed").exists()


def test_a_plain_torch_load_reads_it_too(tmp_path):
    path = checkpoint.save(tmp_path, 7, {"x": torch.arange(5)}, CONFIG)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.arange(5))


def test_what_is_written_is_the_state_at_the_call(tmp_path):
    weight = torch.zeros(200_000)
    with Writer(tmp_path, CONFIG) as writer:
        for step in (1, 2, 3):
            weight.fill_(step)
            writer.write(step, {"nested": [{"x": weight}]})
            weight.fill_(-1)
    for step in (2, 3):
        (nested,) = checkpoint.load(tmp_path, step)["nested"]
        assert torch.equal(nested["x"], torch.full((200_000,), float(step)))


FULL_DISK = """
import resource, signal, sys, logging, torch
from pathlib import Path
from pretrain.checkpoint import CheckpointConfig, Writer
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with Writer(Path(sys.argv[1]), CheckpointConfig(on_error=sys.argv[2])) as writer:
    writer.write(1, {"x": torch.zeros(1_000)})
    writer.write(2, {"x": torch.zeros(1_000_000)})
    writer.write(3, {"x": torch.zeros(1_000)})
"""


@pytest.mark.chaos
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_no_room_for_a_checkpoint(tmp_path, on_error):
    """The kernel refuses the bytes beyond 100 kB, in the middle of a write, as on a full disk."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), on_error]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "could not be written (File too large); the newest whole one is step_00000001.pt" in ended.stderr
    assert ended.returncode == (on_error == "stop")
    assert steps(tmp_path) == ["step_00000001.pt", "step_00000003.pt"][: 1 if on_error == "stop" else 2]
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"
    assert checkpoint.newest(tmp_path) is not None


def test_half_written_files_of_a_killed_process_go(tmp_path):
    (tmp_path / ".step_00000003.pt.4711.tmp").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "checkpoints") is None
