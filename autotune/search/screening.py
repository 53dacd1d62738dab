"""What the default's own measurement says about the study, before GPU-minutes are spent on a search.

It reads records and returns sentences. Below the knee of the load curve there is nothing to tune, and an
arrival-limited benchmark measures its client; both are cheap to see and common in practice.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from autotune.metrics import lookup
from autotune.score import Objective, Score
from autotune.search import stopping
from autotune.stats import coefficient_of_variation
from autotune.study import Study
from autotune.trial import Configuration, Origin, Row, TrialRecord

FOLLOWS = 0.9
"""Throughput that grows by at least this share of the load's growth has not met the engine's limit."""
FIRST_TRIALS = 8
EVERY = 10
"""Trials between two statements of what the next one may bring."""
_REPEATS = (Origin.BASELINE, Origin.FINALIST)


class Screening:
    """Hears every finished trial and says what a user should know while there is still time to change the study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._trials: dict[int, tuple[TrialRecord, Score | None]] = {}
        self._warned = False
        self.growth = stopping.Growth([objective.direction for objective in study.objectives])
        self._searched = 0

    def hear(self, record: TrialRecord, found: Score | None, wanted: bool = True) -> list[str]:
        """Take a finished trial; returns sentences for the user. What the study forbids adds nothing to the front's growth."""
        self._trials[record.number] = record, found
        said = default_says(record) if record.origin is Origin.DEFAULT else []
        said += self._affordable(record) if record.origin is Origin.DEFAULT else []
        said += self._noise() if record.origin is Origin.BASELINE else []
        if record.origin in _REPEATS:
            return said
        self.growth.add(found if wanted else None)
        self._searched += 1
        if self._searched % EVERY == 0:
            gain = stopping.next_gain(self.growth.volumes)
            said += [f"The next trial is expected to add {gain:.1%} to the hypervolume."] if gain is not None else []
        return said

    def _affordable(self, record: TrialRecord) -> list[str]:
        limit = self.study.budget.gpu_minutes
        bought = trials_affordable(record.gpu_minutes, limit)
        if bought is None or bought >= self.study.budget.trials:
            return []
        return [f"At the default's cost, {limit:g} GPU-minutes buy about {bought:.0f} of the {self.study.budget.trials} trials."]

    def _noise(self) -> list[str]:
        """Each re-measured default sharpens the noise; whether the first trials differ beyond it is said once.

        Of several engines the first one's default is the baseline; another's differs from it by more than noise.
        """
        baseline = Configuration(engine=str(self.study.engine[0].get("kind")))
        repeats = [(each, found) for each, found in self._trials.values() if each.configuration == baseline and found is not None]
        searched = [found for each, found in self._trials.values() if each.origin not in _REPEATS and found is not None]
        objectives = self.study.objectives
        said = noise_says([each for each, _ in repeats], [found for _, found in repeats], objectives)
        if said and not self._warned:
            spreads = _spreads([found for _, found in repeats], objectives)
            warning = first_trials_say(searched, spreads, objectives)
            self._warned = bool(warning)
            said += warning
        return said


def default_says(record: TrialRecord, goodput: str = "output_tokens_per_s") -> list[str]:
    """Where the default's load curve bends, and what of it cannot be believed."""
    if record.measurement is None:
        return []
    said = [f"The default's load level {_name(row)} is invalid: {row.invalid}" for row in record.measurement.rows if row.invalid]
    rates = sorted(
        (float(row.level["request_rate"] or 0), row.metrics[goodput])
        for row in record.measurement.rows
        if "request_rate" in row.level and row.metrics.get(goodput, 0) > 0 and row.invalid is None
    )
    closed = [
        row.metrics[goodput]
        for row in record.measurement.rows
        if "concurrency" in row.level and goodput in row.metrics and row.invalid is None
    ]
    if len(rates) < 2 or "climb_found_limit" in record.measurement.facts:
        # A climb chooses its rates itself, and ends where its constraints do.
        return said
    knee = next((low[0] for low, high in itertools.pairwise(rates) if _bends(low, high)), None)
    if knee is not None:
        return [
            *said,
            f"The default follows the load up to {knee:g} requests/s and bends before the next level: the study looks at the knee.",
        ]
    top = rates[-1]
    if closed and max(closed) <= 1.05 * top[1]:
        return [*said, f"The default is near its limit at {top[0]:g} requests/s."]
    return [
        *said,
        f"The default serves all of {top[0]:g} requests/s, the highest rate of the study: below its limit throughput measures the "
        "client, not the engine. Add a higher request_rate or a concurrency level.",
    ]


def noise_says(records: Sequence[TrialRecord], scores: Sequence[Score | None], objectives: Sequence[Objective]) -> list[str]:
    """How noisy this machine is, from every launch of the default; empty before the second."""
    default = [
        found for record, found in zip(records, scores, strict=True) if not record.configuration.values and found is not None
    ]
    if len(default) < 2:
        return []
    pairs = zip(objectives, _spreads(default, objectives), strict=True)
    shown = ", ".join(
        f"{one.name} {spread:.1%}" if _sized(one) else f"{one.name} {spread:.3g} (standard deviation)" for one, spread in pairs
    )
    return [f"{len(default)} launches of the default differ by (coefficient of variation): {shown}."]


def first_trials_say(scores: Sequence[Score], noise: Sequence[float], objectives: Sequence[Objective]) -> list[str]:
    """Whether the first trials differ at all. `noise` is the spread of relaunches in each objective, by `_spreads`."""
    if len(scores) < FIRST_TRIALS:
        return []
    spreads = _spreads(scores[:FIRST_TRIALS], objectives)
    flat = [one.name for one, spread, own in zip(objectives, spreads, noise, strict=True) if spread <= 1.5 * own]
    if len(flat) < len(objectives):
        return []
    return [
        f"The first {FIRST_TRIALS} trials differ in {' and '.join(flat)} by no more than relaunches of one configuration do: "
        "there may be nothing to tune at this load."
    ]


def trials_affordable(each: float, gpu_minutes: float | None, spent: float = 0.0) -> float | None:
    """How many more trials of `each` GPU-minutes the budget buys; None without a limit or a cost."""
    return None if gpu_minutes is None or each <= 0 else max(0.0, gpu_minutes - spent) / each


def _bends(low: tuple[float, float], high: tuple[float, float]) -> bool:
    return high[1] / low[1] < 1 + FOLLOWS * (high[0] / low[0] - 1)


def _spreads(scores: Sequence[Score], objectives: Sequence[Objective]) -> list[float]:
    """Of each objective the coefficient of variation; of one that may be negative, such as a reward, the standard deviation."""
    columns = [[found.values[index] for found in scores] for index in range(len(objectives))]
    return [_spread(values, _sized(one)) for values, one in zip(columns, objectives, strict=True)]


def _sized(objective: Objective) -> bool:
    """Whether the metric has a zero that is its least: a share of a mean that may be near zero says nothing."""
    return lookup(objective.selector.metric).least is not None


def _spread(values: Sequence[float], relative: bool) -> float:
    if len(values) < 2:
        return 0.0
    if not relative:
        return statistics.stdev(values)
    return coefficient_of_variation(values) if statistics.fmean(values) else 0.0


def _name(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.level.items())
