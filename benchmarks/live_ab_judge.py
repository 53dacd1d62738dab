"""What the rounds of `live_ab` say: each configuration's values with intervals, and each arm's hypervolume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune import estimates, pareto
from autotune.errors import AutotuneError
from autotune.estimates import Noise
from autotune.pareto import Direction, Reference
from autotune.results import StudyResults
from autotune.stats import Interval
from autotune.trial import Configuration, Measured, TrialRecord

MOST = 5
"""Members of a front that are measured again; larger fronts are thinned out."""
DRAWS = 2000


def union(fronts: Sequence[Sequence[Configuration]]) -> list[Configuration]:
    """Each configuration once, taken from the fronts in turn; without the engines' defaults, which every study runs first."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*fronts))
    return list({one.digest: one for one in turns if one is not None and one.values}.values())


@dataclass(frozen=True)
class Again:
    """A configuration measured again: `arms` whose front it is of, none for the default alone."""

    configuration: Configuration
    arms: tuple[str, ...]
    runs: tuple[tuple[float, ...], ...]
    """The objectives of each launch that gave all of them."""
    without: tuple[str, ...]
    """Why a launch gave none."""
    claims: Mapping[str, float]
    """By arm, what its own study says of its own first objective."""
    partly: tuple[tuple[float | None, ...], ...] = ()
    """The objectives, as far as they were measured, of the launches that gave not all."""

    @property
    def counts(self) -> bool:
        """Whether every launch kept the SLO at some rate."""
        return bool(self.runs) and not self.without


@dataclass(frozen=True)
class Judged:
    """What the rounds say: each configuration with the intervals of its objectives, and each arm's hypervolume."""

    again: Sequence[Again]
    cells: Sequence[tuple[Interval, ...]]
    """As `again`; empty for a configuration without numbers."""
    noises: Sequence[Noise | None]
    reference: Reference
    volumes: Mapping[str, Interval | None]
    """By arm; of no width while nothing was measured twice. None for an arm of whose front nothing was measured again."""
    ratio: Interval | None
    """The first arm's over the second's; None where either has none."""
    nadir_ratio: float | None
    """The same from a reference just outside the worst of all values, which weighs differences more."""


def gathered(arms: Mapping[str, StudyResults], rounds: Sequence[StudyResults], most: int = MOST) -> list[Again]:
    """Every configuration of the fronts and each engine's default, with its launches in the rounds."""
    fronts = {name: {one.digest: one for one in found.along_front(most)} for name, found in arms.items()}
    defaults = [Configuration(engine=str(section["kind"])) for section in rounds[0].study.engine]
    chosen = union([[one.records[0].configuration for one in front.values()] for front in fronts.values()])
    found = []
    for one in (*defaults, *chosen):
        runs = [(each, record) for each in rounds for record in each.records if record.configuration.digest == one.digest]
        scores = [(record, each.score(record)) for each, record in runs]
        mine = {name: front[one.digest] for name, front in fronts.items() if one.digest in front}
        found.append(
            Again(
                configuration=one,
                arms=tuple(mine),
                runs=tuple(score.values for _, score in scores if score is not None),
                without=tuple(why for record, score in scores if score is None and (why := own_fault(record)) is not None),
                claims={name: arms[name].point(each)[0] for name, each in mine.items()},
                partly=tuple(
                    tuple(each.value(record, objective) for objective in each.study.objectives)
                    for each, record in runs
                    if each.score(record) is None
                ),
            )
        )
    return found


def own_fault(record: TrialRecord) -> str | None:
    """Why a launch has no numbers where the configuration is to blame; None where the machine is."""
    if isinstance(record.outcome, Measured):
        climbed = any(name.startswith("slo_") for name in record.outcome.measurement.totals)
        return "without a number the study needs" if climbed else "kept the SLO at no rate"
    return str(record.outcome.kind) if record.outcome.kind.deterministic else None


def judged(again: Sequence[Again], directions: Sequence[Direction], arms: Sequence[str]) -> Judged:
    """Raises AutotuneError when no configuration has numbers."""
    counted = [one for one in again if one.counts]
    if not counted:
        raise AutotuneError("Not one configuration of the fronts kept the SLO when it was measured again.")
    noises = [estimates.pooled([[run[place] for run in one.runs] for one in counted]) for place in range(len(directions))]
    samples = {one.configuration.digest: list(zip(*one.runs, strict=True)) for one in counted}
    cells = [
        tuple(interval(column, noise) for column, noise in zip(samples.get(one.configuration.digest, ()), noises, strict=False))
        for one in again
    ]
    points = [tuple(cell.estimate for cell in row) for row in cells if row]
    nadir = pareto.nadir_reference(points, directions)
    origin = reference(again, directions)
    drawn = draws([one.runs for one in counted], noises)
    mine = {arm: [place for place, one in enumerate(counted) if arm in one.arms] for arm in arms}

    def volume(places: Sequence[int], limit: Reference) -> Callable[[Any], float]:
        return lambda values: pareto.hypervolume([tuple(values[place]) for place in places], directions, limit)

    measured = {arm: places for arm, places in mine.items() if any(arm in one.arms for one in again)}
    spread = {arm: spans(points, drawn, volume(places, origin)) for arm, places in measured.items()}
    ratio = nadir_ratio = None
    if all(arm in spread and spread[arm].estimate > 0 for arm in arms):
        first, second = (volume(mine[arm], origin) for arm in arms)
        ratio = spans(points, drawn, lambda values: quotient(first(values), second(values)))
        own, other = (volume(mine[arm], nadir)(points) for arm in arms)
        nadir_ratio = own / other if other > 0 else None
    return Judged(again, cells, noises, origin, {arm: spread.get(arm) for arm in arms}, ratio, nadir_ratio)


def reference(again: Sequence[Again], directions: Sequence[Direction]) -> Reference:
    """Where hypervolume is measured from: nothing served, and memory just outside all that any launch took.

    Nothing served is the worst there is; how much memory may be taken only the measurements say.
    """
    values = []
    for place, way in enumerate(directions):
        launches = [launch[place] for one in again for launch in (*one.runs, *one.partly)]
        known = [(value,) for value in launches if value is not None]
        values.append(0.0 if way == "maximize" else pareto.nadir_reference(known, [way]).values[0])
    return Reference(tuple(values))


def interval(samples: Sequence[float], noise: Noise | None) -> Interval:
    """A mean with its 95 % interval, of no width while the noise is unknown."""
    centre = estimates.mean(samples, noise)
    return estimates.estimate(samples, noise) or Interval(centre, centre, centre)


def draws(runs: Sequence[Sequence[tuple[float, ...]]], noises: Sequence[Noise | None]) -> np.ndarray:
    """What the true values may be: DRAWS x configurations x objectives, a mean plus Student's t with the pooled noise.

    The noise is unknown alike for all configurations, so that its own draw is theirs in common.
    """
    random_, found = np.random.default_rng(0), np.empty((DRAWS, len(runs), len(noises)))
    for place, noise in enumerate(noises):
        means = np.array([estimates.mean([run[place] for run in each], noise) for each in runs])
        if noise is None:
            found[:, :, place] = means
            continue
        deviation = noise.deviation * np.sqrt(noise.freedom / random_.chisquare(noise.freedom, (DRAWS, 1)))
        moved = random_.normal(0, 1, (DRAWS, len(runs))) * deviation / np.sqrt([len(each) for each in runs])
        found[:, :, place] = means * np.exp(moved) if noise.logarithmic else means + moved
    return found


def quotient(above: float, below: float) -> float:
    """Infinite over nothing."""
    return above / below if below > 0 else float("inf")


def spans(points: Sequence[tuple[float, ...]], drawn: np.ndarray, statistic: Callable[[Any], float]) -> Interval:
    """A figure of all configurations' values with its 95 % interval over the draws."""
    low, high = np.percentile([statistic(values) for values in drawn], (2.5, 97.5), method="nearest")
    return Interval(statistic(points), float(low), float(high))
