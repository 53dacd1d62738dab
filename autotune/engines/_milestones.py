"""Divides the start-up of an engine into phases, by the lines of its log."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

Milestones = Sequence[tuple[str, re.Pattern[str]]]
"""Name of a start-up phase and the log line that ends it, in the order in which they come; any of them may be missing."""


@dataclass
class Clock:
    """Times the phases as their lines come by; one whose line is missing counts to the next."""

    milestones: Milestones
    last: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def read(self, line: str) -> bool:
        """Whether the line ends a phase."""
        for name, pattern in self.milestones:
            if name not in self.seconds and pattern.search(line):
                self.end(name)
                return True
        return False

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self.last
        self.last = now
