from __future__ import annotations

from pathlib import Path

import pytest

from slurm import watch
from slurm.watch import _Tail


@pytest.fixture
def tail(tmp_path: Path) -> tuple[Path, _Tail]:
    path = tmp_path / "log"
    return path, _Tail(path, "swav")


def test_lines_are_printed_once_and_only_when_whole(
    tail: tuple[Path, _Tail], capfd: pytest.CaptureFixture[str]
) -> None:
    path, lines = tail
    lines.print_new()
    path.write_text("one\ntw")
    lines.print_new()
    assert capfd.readouterr().out == "[swav 0:00] one\n"
    path.write_text("one\ntwo\nsubmitit INFO (now) - noise\nthree")
    lines.print_new()
    assert capfd.readouterr().out == "[swav 0:00] two\n"
    lines.finish()
    assert capfd.readouterr().out == "[swav 0:00] three\n"


def test_of_a_progress_bar_the_end_is_left(
    tail: tuple[Path, _Tail], capfd: pytest.CaptureFixture[str]
) -> None:
    path, lines = tail
    path.write_text("\r 0%\r 50%\r100%\n")
    lines.print_new()
    path.write_text("\r 0%\r 50%\r100%\n\r 0%\r 90%")
    lines.finish()
    assert capfd.readouterr().out == "[swav 0:00] 100%\n[swav 0:00] 90%\n"


def test_a_wiped_bar_leaves_nothing(tail: tuple[Path, _Tail], capfd: pytest.CaptureFixture[str]) -> None:
    path, lines = tail
    path.write_text("\r 0%\r 50%\r      \r")
    lines.finish()
    assert capfd.readouterr().out == ""


def test_without_a_terminal_a_bar_is_told_twice_a_minute(
    tail: tuple[Path, _Tail], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tail
    path.write_text("\r 50%")
    lines.print_new()
    assert capfd.readouterr().out == ""
    now = watch.time.monotonic()
    monkeypatch.setattr(watch.time, "monotonic", lambda: now + 31)
    lines.print_new()
    lines.print_new()
    assert capfd.readouterr().out == "[swav 0:31] 50%\n"
