"""What is read off a face, one file a task."""

from __future__ import annotations

from downstream.tasks.action_units import ACTION_UNITS
from downstream.tasks.affect import AFFECT
from downstream.tasks.identity import IDENTITY
from downstream.tasks.landmarks import LANDMARKS
from downstream.tasks.pose import POSE
from downstream.tasks.task import Metric, Task

TASKS = {task.name: task for task in (LANDMARKS, POSE, AFFECT, ACTION_UNITS, IDENTITY)}

__all__ = ["TASKS", "Metric", "Task"]
