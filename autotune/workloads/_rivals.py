"""What the other runs of a study reached, so that a run can be compared while it is still running.

Kept in a file of the store's cache, one JSON line a fact: lines are appended whole, so runs side by side do not disturb each
other. Lost facts cost a comparison, never a result. What a study of the same name measured before, set aside since or in another
store, is no rival.
"""

from __future__ import annotations

import json

from autotune.engines.base import Context
from autotune.trial import Origin

RUNGS = (0.25, 0.5)
"""Shares of a run's length at which successive halving looks at it."""
ENOUGH = 4
"""Rivals below which nothing is halved."""
_REPEATS = (Origin.DEFAULT, Origin.BASELINE, Origin.FINALIST)


class Rivals:
    """The rivals of one run. A run that measures a configuration again is compared with nobody."""

    def __init__(self, context: Context) -> None:
        self.compared = context.origin not in _REPEATS
        self._path = context.cache / "training" / f"{context.study}-{context.begun:.6f}.jsonl"

    def fastest(self) -> float | None:
        """Samples per second of the fastest run so far, None before the first."""
        return max(self._facts("sps"), default=None) if self.compared else None

    def beaten(self, rung: str, reward: float, keep: float) -> str | None:
        """Why a run with this reward at this rung is not among the share of rivals worth keeping; None when it is."""
        rivals = self._facts(f"reward at {rung}")
        better = sum(rival > reward for rival in rivals)
        if not self.compared or len(rivals) < ENOUGH or better < keep * len(rivals):
            return None
        return f"its reward of {reward:.3g} is behind {better} of {len(rivals)} rivals, and {keep:.0%} go on."

    def add(self, name: str, value: float) -> None:
        """Tell later runs; `name` is `sps`, or `reward at RUNG`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value}) + "\n")

    def _facts(self, name: str) -> list[float]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        return [fact[name] for line in lines if name in (fact := _fact(line))]


def _fact(line: str) -> dict[str, float]:
    """What a line says; nothing of one that a full disk or a killed process cut short."""
    try:
        found: dict[str, float] = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
