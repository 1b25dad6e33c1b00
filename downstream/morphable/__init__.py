"""Faces as vectors of a linear 3D model: its file, its projection into pictures, and the measures of 3D faces."""
