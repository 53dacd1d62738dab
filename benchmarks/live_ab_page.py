"""What `live_ab` found, as a page: what was spent, the fronts as measured again, the verdict."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence

from live_ab_judge import Again, Judged

from autotune.history import History
from autotune.results import StudyResults
from autotune.stats import Interval
from autotune.trial import FailureKind, Measured, Phase, TrialRecord

FATES = ("kept the SLO", "broke the SLO", "ended early", "could not start", "failed later", "lost to the machine or interrupted")
WASTED = FATES[3:5]
"""Launches that told no number for the configuration's own fault."""


def page(arms: Mapping[str, StudyResults], rounds: Sequence[StudyResults], histories: Mapping[str, History], told: Judged) -> str:
    """Everything, as markdown. The names of `arms` are in the order of the comparison."""
    parts = [
        [
            "# Our policy against plain TPE on a live engine",
            "",
            f"{datetime.date.today()}; `python benchmarks/live_ab.py table`",
            "",
        ],
        [*(about(name, found) for name, found in arms.items()), *(about(one.name, one) for one in rounds), ""],
        ["## What each arm spent", "", *spent(arms, histories), ""],
        ["## The fronts, measured again", "", *fronts(arms, rounds, told), ""],
        ["## Hypervolume and verdict", "", *volumes(arms, rounds[0], told), ""],
    ]
    return "\n".join(line for part in parts for line in part)


def about(name: str, found: StudyResults) -> str:
    """Where a study ran, and whether it came to its end."""
    known = [note.payload for note in found.notes if note.kind == "engines"]
    engine = (
        ", ".join(f"{kind} {one['version']} on {one['device']}" for kind, one in known[-1].items()) if known else "unknown engine"
    )
    return f"- `{name}`: {engine}, {len(found.records)} trials of {found.study.budget.trials} at most."


def fate(found: StudyResults, record: TrialRecord) -> str:
    """What became of a launch, one of FATES."""
    outcome = record.outcome
    if isinstance(outcome, Measured):
        score = found.score(record)
        return "kept the SLO" if score is not None and score.feasible else "broke the SLO"
    if outcome.kind is FailureKind.ENDED_EARLY:
        return "ended early"
    if not outcome.kind.deterministic:
        return "lost to the machine or interrupted"
    return "could not start" if outcome.phase in (Phase.CHECK, Phase.START) else "failed later"


def spent(arms: Mapping[str, StudyResults], histories: Mapping[str, History]) -> Iterator[str]:
    """Launches and minutes of each arm by what became of them; an attempt that was repeated counts twice."""
    attempts = {name: [*histories[name].earlier, *histories[name].records.values()] for name in arms}
    unit = "GPU-minutes" if any(record.gpus for each in attempts.values() for record in each) else "minutes (no GPU)"
    yield f"| launches ({unit}) | " + " | ".join(arms) + " |"
    yield "|---|" + "---:|" * len(arms)
    yield row("all", [launches(each) for each in attempts.values()])
    sorted_ = {name: [(fate(arms[name], record), record) for record in each] for name, each in attempts.items()}
    for one in FATES:
        yield row(one, [launches([record for found, record in each if found == one]) for each in sorted_.values()])
    lost = {name: [record for found, record in each if found in WASTED] for name, each in sorted_.items()}
    shares = [len(lost[name]) / len(each) if each else None for name, each in attempts.items()]
    yield row("wasted: could not start or failed later", ["" if share is None else f"{share:.0%}" for share in shares])
    budgets = [found.study.budget.gpu_minutes for found in arms.values()]
    yield row("allowed", ["" if minutes is None else f"({minutes:g})" for minutes in budgets])


def launches(records: Sequence[TrialRecord]) -> str:
    return f"{len(records)} ({sum(record.gpu_minutes for record in records):.1f})"


def fronts(arms: Mapping[str, StudyResults], rounds: Sequence[StudyResults], told: Judged) -> Iterator[str]:
    """Each configuration with what its arms claimed and what it gave again, the best in the first objective leading."""
    objectives = rounds[0].study.objectives
    claims = [f"{name}: {found.study.objectives[0].name}" for name, found in arms.items()]
    yield "| " + " | ".join(["configuration", *claims, *(f"{one.name} again [95 %]" for one in objectives), "launches"]) + " |"
    yield "|---|" + "---:|" * (len(claims) + len(objectives)) + "---|"
    sign = -1 if objectives[0].direction == "maximize" else 1
    pairs = sorted(zip(told.again, told.cells, strict=True), key=lambda pair: (not pair[1], pair[1] and sign * pair[1][0].estimate))
    for one, cells in pairs:
        claimed = [f"{one.claims[name]:.4g}" if name in one.claims else "" for name in arms]
        measured = [shown(cell) for cell in cells] or [""] * len(objectives)
        yield row(rounds[0].named(one.configuration, 200), [*claimed, *measured, said(one)])
    yield ""
    yield "Each arm's own column is what its study claims of its own front, in its own first objective. " + noise_says(
        told, rounds[0]
    )


def said(one: Again) -> str:
    return ", ".join([f"{len(one.runs)} measured", *(f"1 {why}" for why in one.without)])


def noise_says(told: Judged, found: StudyResults) -> str:
    """How far two launches of one configuration lie apart."""
    known = [(name, noise) for name, noise in zip(found.objective_names, told.noises, strict=True) if noise is not None]
    if not known:
        return "Nothing was measured twice, so there are no intervals."
    each = (f"{name} {noise.deviation:.1%}" if noise.logarithmic else f"{name} {noise.deviation:.3g}" for name, noise in known)
    return (
        f"Standard deviation between launches of one configuration: {', '.join(each)} ({known[0][1].freedom} degrees of freedom)."
    )


def volumes(arms: Mapping[str, StudyResults], found: StudyResults, told: Judged) -> Iterator[str]:
    """The arms' hypervolumes, their ratio and what follows."""
    yield "| arm | members to measure again | of them counted | hypervolume [95 %] |"
    yield "|---|---:|---:|---:|"
    for name in arms:
        mine = [one for one in told.again if name in one.arms]
        volume = told.volumes[name]
        cell = "none: its front is empty" if volume is None else shown(volume)
        yield row(name, [str(len(mine)), str(sum(one.counts for one in mine)), cell])
    at = ", ".join(f"{name} {value:.4g}" for name, value in zip(found.objective_names, told.reference.values, strict=True))
    yield f"\nHypervolume is measured from {at}.\n"
    yield verdict(list(arms), told)


def verdict(names: Sequence[str], told: Judged) -> str:
    """One paragraph."""
    first, second = names
    if told.ratio is None:
        without = [name for name in names if told.volumes[name] is None or told.volumes[name].estimate == 0]  # type: ignore[union-attr]
        return f"**Verdict: no ratio.** {listed(without)} found nothing that keeps the SLO when measured again."
    ratio = f"{first} holds {shown(told.ratio)} times the hypervolume of {second}"
    if told.ratio.low == told.ratio.high:
        return f"**Verdict: undecided.** {ratio}, of unknown noise."
    answer = f"{first} is ahead" if told.ratio.low > 1 else f"{second} is ahead" if told.ratio.high < 1 else "undecided"
    other = f" From a reference just outside the worst values measured it is {told.nadir_ratio:.3g}." if told.nadir_ratio else ""
    return f"**Verdict: {answer}.** {ratio}.{other} One study of each arm was run: another seed can come out otherwise."


def listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def shown(cell: Interval) -> str:
    return f"{cell.estimate:.4g}" if cell.low == cell.high else f"{cell.estimate:.4g} [{cell.low:.4g}, {cell.high:.4g}]"


def row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"
