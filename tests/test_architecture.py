"""Rooms import only from the rooms to their left."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["configs", "data_prep", "pretrain", "downstream", "slurm"]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    files = list((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(path): imported_rooms(path) - allowed for path in files if imported_rooms(path) - allowed}
    assert wrong == {}


def test_every_room_has_its_tests():
    assert all((ROOT / "tests" / room).is_dir() for room in ROOMS)
