"""A stretch of a level's time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The steady window or a part of it, in seconds since the level began."""

    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.stop - self.start

    def holds(self, at: float) -> bool:
        """Whether a moment lies inside; the end is outside."""
        return self.start <= at < self.stop
