"""The front measured again beside the default, and what may be said of it afterwards.

A search's best run is its luckiest one: its number overstates what a relaunch gives. So the front is launched again in
rounds, each round the default and every finalist once under arrivals that the search never saw, in rotating order so that
drift favours nobody. The gain that is reported is the finalists' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Literal

from autotune import pareto
from autotune.analysis import Analysis
from autotune.candidate import Candidate
from autotune.errors import NothingMeasured
from autotune.estimates import pooled
from autotune.history import Note
from autotune.score import Objective
from autotune.stats import t_tail
from autotune.study import Finalists
from autotune.trial import Configuration, Frozen, Origin, TrialJob, TrialRecord

Answer = Literal["better", "worse", "not distinguishable"]
NOTE = "finalists"
"""The ledger's note of a plan of the rounds."""
LEVEL = 0.05
"""Probability of any wrong verdict among all of them."""
LEAST_P = 1e-6
"""No smaller one is printed: a few runs that happen to agree to the last digit are no proof beyond it."""


class Verdict(Frozen):
    """A finalist against the default in one objective.

    `ratio` is finalist over default where noise grows with the value; where it does not, as with a reward that may be negative,
    `difference` is finalist less default. `low` and `high` bound the 95 % interval of the one that is given. `p` is corrected for
    how many verdicts and looks there are.
    """

    trial: int
    objective: str
    ratio: float | None = None
    difference: float | None = None
    low: float
    high: float
    p: float
    answer: Answer

    def __str__(self) -> str:
        if self.ratio is not None:
            bounds = f"{self.ratio:.3f} times the default, 95 % interval {self.low:.3f} to {self.high:.3f}"
        else:
            bounds = f"{self.difference:+.4g} against the default, 95 % interval {self.low:+.4g} to {self.high:+.4g}"
        chance = f"p = {self.p:.2g}" if self.p >= LEAST_P else f"p < {LEAST_P:g}"
        return f"Trial {self.trial}, {self.objective}: {self.answer} ({bounds}, {chance} after correction)."


def plan(analysis: Analysis, spec: Finalists, first_number: int, seed: int) -> list[TrialJob]:
    """The jobs of all rounds in order, empty when there is nothing to confirm. `seed` is the search's own."""
    default = analysis.default_candidate
    chosen = choose(analysis, spec.count)
    if not chosen or default is None:
        return []
    entrants = [(Origin.BASELINE, default.records[0].configuration)]
    entrants += [(Origin.FINALIST, one.records[0].configuration) for one in chosen]
    return _rounds(entrants, range(spec.repeats), first_number, seed)


def further(jobs: Sequence[TrialJob], spec: Finalists, first_number: int, seed: int) -> list[TrialJob]:
    """The rounds that are lacking where a study asks for more repeats than were planned before: the same entrants again."""
    entrants = list({job.configuration.digest: (job.origin, job.configuration) for job in jobs}.values())
    if not entrants:
        return []
    begun = len(jobs) // len(entrants)
    return _rounds(entrants, range(begun, spec.repeats), max(first_number, *(job.number + 1 for job in jobs)), seed)


def _rounds(entrants: Sequence[tuple[Origin, Configuration]], turns: Sequence[int], first_number: int, seed: int) -> list[TrialJob]:
    jobs: list[TrialJob] = []
    for turn in turns:
        start = turn % len(entrants)
        for origin, configuration in [*entrants[start:], *entrants[:start]]:
            number = first_number + len(jobs)
            jobs.append(TrialJob(number=number, configuration=configuration, origin=origin, seed=seed + 1 + turn))
    return jobs


def choose(analysis: Analysis, count: int) -> list[Candidate]:
    """The knee first, which would be exported, then the best of each objective and the front's other members, as many as asked;
    never the default.

    A default that is alone on the front may owe it to a lucky run, as any winner may: then the next best of each objective
    challenge it. Where all of them could fail the quality check, `_with_fallbacks` adds what would win then.
    """
    members = [analysis.feasible[index].trial for index in analysis.noisy_front.members]
    if not members or not count:
        return []
    wanted = [analysis.knee(), *(analysis.best(name) for name in analysis.objective_names), *members]
    front = [analysis.candidate(trial) for trial in dict.fromkeys(wanted)]
    others = _but_default(analysis, front)
    found = (others or list({one.trial: one for one in _next_best(analysis)}.values()))[:count]
    return _with_fallbacks(analysis, found, count) if analysis.quality.guard.asks else found


def _next_best(analysis: Analysis) -> Iterator[Candidate]:
    """The best of each objective, the default aside."""
    for objective in analysis.study.objectives:
        yield from _ranked(analysis, objective)[:1]


def _ranked(analysis: Analysis, objective: Objective) -> list[Candidate]:
    """The feasible candidates but the default, the best in an objective first."""
    sign = -1 if objective.direction == "maximize" else 1
    return sorted(_but_default(analysis, analysis.feasible), key=lambda one: sign * analysis.mean(one, objective))


def _but_default(analysis: Analysis, candidates: Sequence[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one is not analysis.default_candidate]


def _with_fallbacks(analysis: Analysis, found: list[Candidate], count: int) -> list[Candidate]:
    """The best with other lossy values while there is room, and in the last place the best that has none."""
    changes = analysis.quality.changes
    known = [changes(one.records[0].configuration) for one in found]
    added: list[Candidate] = []
    for one in _ranked(analysis, analysis.study.objectives[0]):
        values = changes(one.records[0].configuration)
        if {} not in known and values not in known:
            known.append(values)
            added.append(one)
    if not added or count < 2:
        return found
    kept = found[: count - 1]
    room = count - len(kept)
    return [*kept, *(added if len(added) <= room else [*added[: room - 1], added[-1]])]


class Rounds(Frozen):
    """The ledger's note of the rounds: all of their jobs, and of how many trials the search was that they follow."""

    searched: int
    jobs: tuple[TrialJob, ...]


def planned(notes: Iterable[Note], searched: int | None = None) -> tuple[list[TrialJob], int]:
    """The rounds as the ledger last notes them, and how many plans of them there were: 2 where rounds were added later.

    `searched` asks for those that follow a search of so many trials: a search that went on has other finalists.
    """
    plans = [rounds for rounds in (Rounds.model_validate(note.payload) for note in notes if note.kind == NOTE) if rounds.jobs]
    last = plans[-1].searched if plans and searched is None else searched
    same = [rounds for rounds in plans if rounds.searched == last]
    return list(same[-1].jobs) if same else [], len(same)


def verdicts(analysis: Analysis, jobs: Sequence[TrialJob], looks: int = 1) -> list[Verdict]:
    """What the finished rounds say of the finalists that held; empty until two rounds measured both the default and one.

    The test is Student's t on the difference of means, of logarithms where noise grows with the value, with the variance pooled
    over all entrants (one-way analysis of variance), corrected by Holm's method (1979) for the number of verdicts, and by
    Bonferroni's for the `looks`: who adds rounds because a verdict was none has another chance of a wrong one.
    """
    found: list[Verdict] = []
    by_number = {record.number: record for record in analysis.records}
    records = [by_number[job.number] for job in jobs if job.number in by_number]
    for objective in analysis.study.objectives:
        found += _compared(analysis, objective, records)
    return _corrected(found, looks)


def _compared(analysis: Analysis, objective: Objective, records: Sequence[TrialRecord]) -> list[Verdict]:
    """Uncorrected verdicts of one objective."""
    groups: dict[str, list[float]] = {}
    for record in records:
        value = analysis.value(record, objective)
        if value is not None:
            groups.setdefault(record.configuration.digest, []).append(value)
    noise = pooled(groups.values())
    baseline = next((record.configuration.digest for record in records if record.origin is Origin.BASELINE), "")
    base = groups.pop(baseline, [])
    if noise is None or len(base) < 2:
        return []
    scale, back, name = (math.log, math.exp, "ratio") if noise.logarithmic else (float, float, "difference")
    held = {one.digest: one.trial for one in analysis.feasible}
    result = []
    for digest, values in groups.items():
        if len(values) < 2 or digest not in held:
            continue
        trial = held[digest]
        difference = fmean(map(scale, values)) - fmean(map(scale, base))
        runs = len(values), len(base)
        spread, margin = noise.spread(*runs), noise.margin(*runs)
        p = t_tail(difference / spread, noise.freedom) if spread > 0 else float(difference == 0)
        better = (difference > 0) == (objective.direction == "maximize")
        bounds = {name: back(difference), "low": back(difference - margin), "high": back(difference + margin)}
        result.append(Verdict(trial=trial, objective=objective.name, **bounds, p=p, answer="better" if better else "worse"))
    return result


def _corrected(found: Sequence[Verdict], looks: int) -> list[Verdict]:
    """Holm's step-down correction, at each look anew; what does not pass it is not distinguishable."""
    order = sorted(range(len(found)), key=lambda index: found[index].p)
    worst, corrected = 0.0, dict[int, float]()
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, looks * (len(found) - rank) * found[index].p))
        corrected[index] = worst
    answers = [verdict.answer if corrected[index] < LEVEL else "not distinguishable" for index, verdict in enumerate(found)]
    return [verdict.model_copy(update={"p": corrected[index], "answer": answers[index]}) for index, verdict in enumerate(found)]


def confirmed(one: Candidate) -> bool:
    """Whether it was measured again: as a finalist, or as the default beside them."""
    return any(record.origin in (Origin.FINALIST, Origin.BASELINE) for record in one.records)


def winner(analysis: Analysis) -> Candidate:
    """What is exported: the knee of the front where it is a finalist, else the knee of what was measured again and held, the
    default among it; a tie goes to the finalist. A finalist that is better than the default in nothing beyond noise has not
    held; where none has, the default. Where none was measured again, or none keeps the constraints, the front's knee.

    Raises NothingMeasured.
    """
    knee = analysis.candidate(analysis.knee())
    again = [one for one in analysis.feasible if confirmed(one)]
    held = _held(analysis)
    if knee in held or not _but_default(analysis, again):
        return knee
    entrants = [*held, *(one for one in again if one is analysis.default_candidate)]
    if not entrants:
        return knee
    place = pareto.knee([analysis.point(one) for one in entrants], analysis.directions)
    assert place is not None, "points have a knee"
    return entrants[place]


def _held(analysis: Analysis) -> list[Candidate]:
    """Finalists that keep the constraints and are better than the default in something."""
    return [one for one in _but_default(analysis, analysis.feasible) if confirmed(one) and _better(analysis, one)]


def _better(analysis: Analysis, one: Candidate) -> bool:
    """Whether it is better than the default in some objective, beyond noise as far as that is known, or keeps what the default
    breaks."""
    if not any(other is analysis.default_candidate for other in analysis.feasible):
        return True
    return any(analysis.gain(name, one.trial).better for name in analysis.objective_names)


def on_winner(analysis: Analysis) -> str | None:
    """Which trial that is and what speaks for it, in a sentence; None where nothing can be exported."""
    try:
        one, knee = winner(analysis), analysis.candidate(analysis.knee())
    except NothingMeasured:
        return None
    best = "knee" if len(analysis.objective_names) > 1 else "best"
    if one is analysis.default_candidate:
        why = f"the {best} of what was measured again" if _held(analysis) else "nothing measured again beside it is better"
        return f"The winner is the engine's default, trial {one.trial}: {why}."
    if one is knee:
        again = "measured again beside the default" if confirmed(one) else "which was not measured again and may owe it to luck"
        return f"The winner is trial {one.trial}, the {best} of the front, {again}."
    lucky = "" if confirmed(knee) else f"; trial {knee.trial}, the {best} of the front, was not and may owe it to luck"
    return f"The winner is trial {one.trial}, the {best} of what was measured again{lucky}."


def remaining(jobs: Sequence[TrialJob], records: Mapping[int, TrialRecord]) -> list[TrialJob]:
    """Jobs of a plan that have no record yet."""
    return [job for job in jobs if job.number not in records]
