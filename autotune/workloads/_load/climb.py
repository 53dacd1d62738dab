"""The search for the highest request rate that meets an SLO, within one launch.

The rate doubles until a constraint breaks or throughput gains stop, then the boundary is bisected in log space. Where gains stop
while the constraints are kept, as one on TPOT is however many requests wait for their first token, the boundary is what the
engine serves: a rate above it keeps them only until its window ends, and twice the rate does so too.

Probes are noisy: whether a rate is good is read from the worst constraint's excess (value / limit - 1), smoothed to be
non-decreasing in the rate, so that one lucky or unlucky probe does not move the boundary by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune import metrics
from autotune.stats import isotonic
from autotune.trial import Row

TOTALS = ("slo_request_rate", "slo_goodput_per_s")
"""What a climb finds: metrics of the whole trial."""
LEAST_GAIN = 0.05
"""Throughput that grows by less than this share while the rate doubles has stopped growing."""
SIGMAS = 3.0
"""By how many standard deviations of what chance brings fewer requests must finish than are due for the engine to be why."""
BROKEN = 1.0
"""The excess of a probe that could not be measured, such as one whose requests did not finish: twice the limit."""
_BOUND = re.compile(r"^\s*([\w.]+)\s*(<=|>=)\s*([0-9.eE+-]+)\s*$")


@dataclass(frozen=True, slots=True)
class Bound:
    """One constraint of an SLO."""

    metric: str
    operator: str
    limit: float

    def excess(self, values: Mapping[str, float]) -> float:
        """value / limit - 1, signed so that positive is broken; BROKEN when the metric was not measured."""
        if self.metric not in values:
            return BROKEN
        share = values[self.metric] / self.limit - 1
        return share if self.operator == "<=" else -share


def parse_bound(text: str) -> Bound:
    """A constraint from its text. Raises ValueError whose message says what is wrong."""
    match = _BOUND.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form 'metric <= number', e.g. 'ttft_ms.p99 <= 500'")
    name, operator, number = match.groups()
    try:
        metric = metrics.lookup(name)
        limit = float(number)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    except ValueError:
        raise ValueError(f"{number!r} in {text!r} is not a number") from None
    if metric.scope != "row" or not math.isfinite(limit) or limit <= 0:
        raise ValueError(f"{text!r} needs a metric of a load level and a limit above zero")
    if why := metric.impossible(operator, limit):
        raise ValueError(f"No rate can keep {text!r}: {why}")
    return Bound(name, operator, limit)


@dataclass(slots=True)
class Climb:
    """Ask `next_rate`, measure it, tell `observe`; None says that the boundary is found or the steps are used up."""

    bounds: Sequence[Bound]
    start: float
    max_steps: int
    precision: float
    window_s: float = math.inf
    """Seconds in which a probe's requests are counted: at a low rate chance alone may bring as few as at half of it."""
    dispersion: float = 1.0
    """Variance of that count over its mean: 1 for Poisson arrivals, more for burstier ones."""
    probes: list[tuple[float, float, float]] = field(default_factory=list)
    """Rate, excess, and finished requests per second of each probe, in order."""

    def observe(self, rate: float, row: Row) -> None:
        """Take in a probe. An invalid row means that the rate was not sustained."""
        excess = BROKEN if row.invalid else max(bound.excess(row.metrics) for bound in self.bounds)
        self.probes.append((rate, excess, row.metrics.get("requests_per_s", 0.0)))

    def next_rate(self) -> float | None:
        """The next rate to probe."""
        if not self.probes:
            return self.start
        if len(self.probes) >= self.max_steps:
            return None
        good, broken = self._bracket()
        if broken is None:
            return 2 * max(rate for rate, _, _ in self.probes)
        if good is None:
            return min(rate for rate, _, _ in self.probes) / 2
        return None if broken <= good * (1 + self.precision) else math.sqrt(good * broken)

    @property
    def best(self) -> float | None:
        """The highest probed rate that met the SLO and was sustained, by itself and by the smoothed excess; None when none was."""
        good, _ = self._bracket()
        return good

    @property
    def ceiling(self) -> float | None:
        """The lowest rate above every good one that broke the SLO or was not sustained: `best` stays below it. None before one
        was."""
        return self._bracket()[1]

    @property
    def found_limit(self) -> bool:
        """Whether a rate was found that breaks the SLO or is not sustained; without one, `best` is only a lower bound."""
        return self._bracket()[1] is not None

    def never_met(self) -> str:
        """What to say of a climb in which no rate met the SLO and was sustained."""
        rate, excess, finished = min(self.probes)
        asked = " and ".join(f"{bound.metric} {bound.operator} {bound.limit:g}" for bound in self.bounds)
        by = "it could not be measured" if excess == BROKEN else f"it is broken by {excess:.0%}"
        if excess <= 0:
            by = f"only {finished:.3g} of them finished a second"
        return (
            f"none of the {len(self.probes)} rates that the climb tried kept {asked}; at {rate:g} requests/s, the lowest, {by}. "
            "Loosen it, or lower the climb's start"
        )

    def _bracket(self) -> tuple[float | None, float | None]:
        """The highest good rate, and the lowest broken one above it."""
        ordered, limit = sorted(self.probes), self._sustained()
        excesses = [BROKEN if rate > limit else excess for rate, excess, _ in ordered]
        probed = zip(ordered, excesses, isotonic(excesses), strict=True)
        good = max((rate for (rate, _, _), excess, level in probed if level <= 0 and excess <= 0), default=None)
        above = [rate for rate, _, _ in ordered if good is None or rate > good]
        return good, min(above, default=None)

    def _sustained(self) -> float:
        """What the engine serves at most, where the highest rate keeps the SLO and doubling brought next to no throughput, and
        fewer requests than arrive by chance; infinite where that is not seen."""
        rate, excess, finished = max(self.probes, default=(0.0, BROKEN, 0.0))
        slower = [probe for probe in self.probes if probe[0] <= rate / 2]
        lacking = rate - finished > SIGMAS * math.sqrt(self.dispersion * rate / self.window_s)
        if excess > 0 or not slower or not lacking or finished >= max(slower)[2] * (1 + LEAST_GAIN):
            return math.inf
        return (1 + LEAST_GAIN) * max(served for _, _, served in self.probes)
