"""Synthetic faces with full ground truth: a procedural 3D head, drawn in portraits and photographs.

    from data_prep.synthetic import SyntheticConfig, portrait
    picture = portrait(seed=0, index=0, cfg=SyntheticConfig())

Everything follows from (seed, index) alone. No person is depicted. See docs/synthetic.md.
"""

from __future__ import annotations

from data_prep.synthetic.affect import valence_arousal
from data_prep.synthetic.config import SyntheticConfig
from data_prep.synthetic.mesh import Array, Triangles
from data_prep.synthetic.model import deform, head
from data_prep.synthetic.scene import photograph, portrait
from data_prep.synthetic.truth import Face, Picture

__all__ = [
    "Face", "Picture", "SyntheticConfig", "photograph", "portrait", "triangles", "valence_arousal", "vertices",
]  # fmt: skip


def vertices(face: Face) -> Array:
    """The face's mesh before its pose: (V, 3) float32, cm in head coordinates (x right, y up, z to the viewer)."""
    return deform(face.shape, face.action_units)


def triangles() -> Triangles:
    """(T, 3) int32 indices of the vertices, the same for every face."""
    return head().triangles
