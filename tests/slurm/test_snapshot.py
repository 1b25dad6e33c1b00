from __future__ import annotations

import subprocess
from pathlib import Path

from slurm.snapshot import snapshot


def _project(root: Path) -> Path:
    for name, text in {
        "configs/__init__.py": "A = 1\n",
        "pretrain/train.py": "B = 1\n",
        "pretrain/weights.bin": "heavy",
        "pretrain/__pycache__/train.pyc": "x",
        "tests/test_x.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_git_decides_what_belongs(tmp_path: Path) -> None:
    root = _project(tmp_path / "project")
    (root / ".gitignore").write_text("*.bin\n__pycache__\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "configs"], check=True)
    copy = snapshot(root, tmp_path / "run/code")
    assert _names(copy) == {"configs/__init__.py", "pretrain/train.py"}


def test_without_git_all_but_caches(tmp_path: Path) -> None:
    copy = snapshot(_project(tmp_path / "project"), tmp_path / "code")
    assert _names(copy) == {"configs/__init__.py", "pretrain/train.py", "pretrain/weights.bin"}


def test_an_edit_makes_a_second_copy_and_leaves_the_first(tmp_path: Path) -> None:
    root, code = _project(tmp_path / "project"), tmp_path / "code"
    first = snapshot(root, code)
    assert snapshot(root, code) == first
    (root / "pretrain/train.py").write_text("B = 2\n")
    second = snapshot(root, code)
    assert second != first
    assert (first / "pretrain/train.py").read_text() == "B = 1\n"
    assert (second / "pretrain/train.py").read_text() == "B = 2\n"
    assert sorted(code.iterdir()) == sorted([first, second]), "no temporary is left"
