"""What a synthetic set looks like."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs import Config


class SyntheticConfig(Config):
    """Synthetic faces."""

    mode: Literal["portrait", "photograph"] = "portrait"
    """One face a picture (size x size), or a scene of several people (width x height)."""
    size: int = Field(256, ge=32, le=2048)
    """Side of a portrait, pixels."""
    width: int = Field(640, ge=96, le=4096)
    """Width of a photograph, pixels."""
    height: int = Field(480, ge=96, le=4096)
    """Height of a photograph, pixels."""
    people: tuple[int, int] = (1, 4)
    """Fewest and most people in a photograph, within 1..4."""
    identity_start: int = Field(0, ge=0)
    """First identity. Sets whose ranges do not meet share no person."""
    identity_count: int = Field(1000, ge=1)
    """Number of identities that the pictures are drawn from."""
    yaw: float = Field(45.0, ge=0, le=90)
    """Largest turn of the head to either side, degrees; uniform."""
    pitch: float = Field(18.0, ge=0, le=45)
    """Largest nod, degrees; mostly less than half of it."""
    roll: float = Field(15.0, ge=0, le=45)
    """Largest tilt, degrees; mostly less than half of it."""
    expression: float = Field(1.0, ge=0, le=1)
    """Scale of the action units; 0 leaves every face neutral."""
    occlusion: float = Field(0.15, ge=0, le=1)
    """Share of the faces that are partly behind a hand, a cup, a phone or a surgical mask."""
    face: tuple[float, float] = (0.45, 0.65)
    """Smallest and largest height of the face box in a portrait, as shares of the picture's side."""

    @model_validator(mode="after")
    def _ordered(self) -> SyntheticConfig:
        if not 1 <= self.people[0] <= self.people[1] <= 4:
            raise ValueError("people: give two numbers within 1..4, the smaller first")
        if not 0.1 <= self.face[0] <= self.face[1] <= 0.9:
            raise ValueError("face: give two shares within 0.1..0.9, the smaller first")
        return self
