from __future__ import annotations

import pytest

from downstream.morphable.convert import synthetic_model
from downstream.morphable.model import MorphableModel


@pytest.fixture(scope="session")
def face() -> MorphableModel:
    return synthetic_model()
