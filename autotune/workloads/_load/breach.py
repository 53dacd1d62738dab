"""Whether a load level has surely broken its SLO before its window is over.

The requests that arrive in a window of an open loop are known when it begins, since their times are drawn from a seed. As
soon as more of them have waited longer for their first token than a percentile's limit leaves room for, no answer to come can
mend it: on an H200 a rate at twice the engine's capacity cost 30 s, and was broken one second into its window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Self

from autotune.workloads._load.arrivals import arrivals
from autotune.workloads._load.climb import Bound


@dataclass(frozen=True, slots=True)
class Breach:
    """An upper limit on a percentile of the time to first token."""

    bound: Bound
    percentile: float
    finished_share: float = 1.0
    """Share of its requests that a level needs to finish: one that does not has no latency, however long it waited."""

    @classmethod
    def of(cls, bounds: Iterable[Bound], finished_share: float = 1.0) -> Self | None:
        """The first of the bounds that can be broken for sure while requests still come; None when there is none."""
        for bound in bounds:
            name, _, statistic = bound.metric.partition(".")
            if name == "ttft_ms" and bound.operator == "<=" and statistic.startswith("p"):
                return cls(bound, float(statistic[1:]), finished_share)
        return None

    @property
    def limit_s(self) -> float:
        """The limit in seconds."""
        return self.bound.limit / 1000

    def room(self, requests: int) -> int:
        """How many of so many requests may wait longer while the percentile, linearly interpolated, can still keep its limit:
        those above it, and as many as may yet be left out of it."""
        finished = math.ceil(self.finished_share * requests)
        return requests - 1 - math.floor(self.percentile / 100 * (finished - 1))


@dataclass(slots=True)
class Lateness:
    """How many requests of a window have waited too long, as the clients tell."""

    breach: Breach
    requests: int
    """How many the window is to hold."""
    late: dict[int, int] = field(default_factory=dict)
    """By client."""

    @property
    def fatal(self) -> bool:
        """Whether the limit is broken whatever comes."""
        return self.requests > 0 and sum(self.late.values()) > self.breach.room(self.requests)

    def says(self, seconds: float) -> str:
        """Why the level is over, so many seconds after its window began."""
        bound, late = self.breach.bound, sum(self.late.values())
        return (
            f"It broke {bound.metric} <= {bound.limit:g} for sure {seconds:.1f} s after its window began: {late} of the window's "
            f"{self.requests} requests had waited longer, and {self.breach.room(self.requests)} may."
        )


def arriving(plan: Mapping[str, Any], low: float, high: float) -> int:
    """How many requests of an open loop's plan are due between two moments, in seconds since it began."""
    due = takewhile(lambda at: at < high, arrivals(plan["request_rate"], plan["burstiness"], plan["seed"]))
    return sum(at >= low for at in due)
