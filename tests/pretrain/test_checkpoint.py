"""Checkpoints: the newest good one, and nothing that a broken file can run."""

import os
import pickle

import pytest
import torch

from pretrain import checkpoint
from pretrain.checkpoint import CheckpointConfig

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
@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_broken_file_is_set_aside_for_the_next_older(tmp_path, damage, caplog):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"x": torch.randn(1000)}, CONFIG)
    newest = tmp_path / "step_00000020.pt"
    whole = newest.read_bytes()
    newest.write_bytes({"cut": whole[:2000], "empty": b"", "noise": os.urandom(3000)}[damage])
    step, _ = checkpoint.newest(tmp_path)
    assert step == 10
    assert (tmp_path / "step_00000020.unreadable").exists()
    assert "set aside" in caplog.text


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "step_00000001.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"x": Evil()}, tmp_path / "step_00000002.pt")
    assert checkpoint.newest(tmp_path) is None
    assert not (tmp_path / "executed").exists()


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "checkpoints") is None
