"""Expressions: how action units are drawn, and valence and arousal as functions of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.fields import ACTION_UNITS

# Emotion-like combinations (after EMFACS): units with their typical share of the full intensity.
COMBINATIONS: dict[str, dict[int, float]] = {
    "joy": {6: 0.8, 12: 0.95, 25: 0.6},
    "grin": {6: 0.6, 12: 0.9, 25: 0.9, 26: 0.25},
    "smile": {12: 0.75},
    "sadness": {1: 0.9, 4: 0.5, 15: 0.9, 17: 0.5},
    "surprise": {1: 0.95, 2: 0.95, 5: 0.9, 25: 0.6, 26: 0.85},
    "fear": {1: 0.9, 2: 0.6, 4: 0.5, 5: 0.9, 20: 0.9, 25: 0.6},
    "anger": {4: 1.0, 5: 0.6, 17: 0.6, 9: 0.3},
    "shouting": {4: 0.95, 5: 0.7, 9: 0.4, 25: 0.9, 26: 0.8},
    "disgust": {9: 1.0, 4: 0.4, 15: 0.5, 17: 0.5, 6: 0.3},
    "calm": {12: 0.2},
}

# Weights of the action units (at full intensity) in valence and in arousal, in the order of ACTION_UNITS.
#                     1     2     4     5     6     9     12    15    17    20    25    26
VALENCE = np.array([-0.20, 0.10, -0.55, 0.00, 0.45, -0.55, 0.95, -0.70, -0.25, -0.35, 0.05, 0.00])
AROUSAL = np.array([0.20, 0.30, 0.30, 0.55, 0.15, 0.25, 0.15, -0.25, 0.00, 0.40, 0.25, 0.45])
CALM = 0.35  # a neutral face has arousal -tanh(.35)


def valence_arousal(action_units: NDArray[np.floating]) -> tuple[float, float]:
    """Valence and arousal in [-1, 1] of intensities (12,) in 0..5.

    valence = tanh(VALENCE . a / 5), arousal = tanh(1.2 AROUSAL . a / 5 - .35). A definition for synthetic faces,
    made so that both can be read from the face and from nothing else; no psychology is claimed.
    """
    a = np.asarray(action_units, np.float64) / 5
    return float(np.tanh(VALENCE @ a)), float(np.tanh(1.2 * AROUSAL @ a - CALM))


def draw(rng: np.random.Generator, scale: float) -> NDArray[np.float32]:
    """Intensities (12,) float32 in 0..5: 1 in 8 faces neutral, 5 in 8 a combination, 2 in 8 units at random."""
    units = np.zeros(12)
    kind = rng.random()
    if kind > 0.125:
        if kind < 0.75:
            combination = list(COMBINATIONS.values())[rng.integers(len(COMBINATIONS))]
            strength = rng.uniform(0.5, 1.05)
            for unit, share in combination.items():
                units[ACTION_UNITS.index(unit)] = 5 * share * strength * rng.uniform(0.8, 1.15)
        extra = rng.random(12) < (0.06 if kind < 0.75 else 0.3)
        units = np.maximum(units, extra * rng.uniform(1.0, 5.0, 12))
    units = np.clip(units * scale, 0, 5)
    part, jaw = ACTION_UNITS.index(25), ACTION_UNITS.index(26)
    units[part] = max(units[part], min(units[jaw], 5) * 0.5)  # a dropped jaw parts the lips
    return units.astype(np.float32)
