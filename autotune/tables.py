"""The rows of a study's tables, for the terminal and for the report alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune import bands, diagnosis, effects
from autotune.analysis import Analysis
from autotune.errors import NothingMeasured
from autotune.score import level_name
from autotune.secrets import redact
from autotune.trial import Failed, Row, TrialRecord


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: its columns and cells; an absent value is None."""

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]


def gain_lines(analysis: Analysis) -> list[str]:
    """A sentence per objective: the gain over the default, or why there is none."""
    lines, default = [], analysis.default_candidate
    for name in analysis.objective_names:
        try:
            gain = analysis.gain(name)
        except NothingMeasured as error:
            lines.append(str(error))
            continue
        best = default is not None and gain.trial == default.trial
        lines.append(
            f"{name}: no configuration is better than the default{_beyond(analysis)}." if best else f"{gain}, trial {gain.trial}."
        )
    return list(
        dict.fromkeys(
            [*lines, *_yardstick_line(analysis), *_knee_line(analysis), *quality_lines(analysis), *_unsteady_lines(analysis)]
        )
    )


def quality_lines(analysis: Analysis) -> list[str]:
    """What was found of each change that can spoil answers; one that was not checked is told where the front holds it."""
    return [
        str(check)
        for check in analysis.quality.checks
        if check.answer == "failed"
        or (check.changes and (check.answer == "passed" or any(trial in analysis.membership for trial in check.trials)))
    ]


def _unsteady_lines(analysis: Analysis) -> list[str]:
    """What to know of the default and the front's members before their numbers are believed."""
    default = analysis.default_candidate
    shown = [analysis.feasible[index] for index in analysis.noisy_front.members] + ([default] if default else [])
    trials = sorted({record.number for one in shown for record in one.records if analysis.unsteady(record)})
    if not trials:
        return []
    first = analysis.unsteady(analysis.record(trials[0]))[0]
    advice = "Their numbers depend on when and how long was measured: lengthen workload.window, or lower that load."
    return [f"Not steady while measured: trial {_numbers(trials)}. Trial {trials[0]} at {first} {advice}"]


def _yardstick_line(analysis: Analysis) -> list[str]:
    """That the default cannot win, where the study forbids it."""
    default = analysis.default_candidate
    if default is None or default.forbidden is None:
        return []
    return [f"The engine's default, trial {default.trial}, is measured as the yardstick and cannot win: {default.forbidden}"]


def _knee_line(analysis: Analysis) -> list[str]:
    """The knee against the default in every objective: what a compromise costs and gains."""
    default = analysis.default_candidate
    if len(analysis.objective_names) < 2 or default is None or not analysis.feasible or analysis.knee() == default.trial:
        return []
    knee = analysis.knee()
    gains = [analysis.gain(name, knee) for name in analysis.objective_names]
    return [f"The knee of the front, trial {knee}: {'; '.join(map(str, gains))}."]


def losers(analysis: Analysis) -> Rows:
    """Why trials have no place on the front: failures by kind with advice, broken constraints, and the beaten."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for record in analysis.records:
        reason = _reason(analysis, record)
        if reason is not None:
            kind, advice, evidence = reason
            groups.setdefault((kind, advice), []).append((record.number, evidence))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    cells = tuple(
        (kind, len(found), _numbers([number for number, _ in found]), redact(advice), redact(found[0][1]) or None)
        for (kind, advice), found in ordered
    )
    return Rows("Why the others lost", ("outcome", "count", "trials", "advice", "for instance"), cells)


def front_rows(analysis: Analysis) -> Rows:
    """The front and its contenders, then the default where it is not among them."""
    found, default = analysis.noisy_front, analysis.default_candidate
    shown = [(analysis.feasible[index], "member", found.ties[index]) for index in found.members]
    shown += [(analysis.feasible[index], "contender", found.ties[index]) for index in found.contenders]
    if default is not None and all(one is not default for one, _, _ in shown):
        shown.append((default, "default", ()))
    cells = []
    for one, mark, ties in shown:
        values = [_with_interval(analysis, one.trial, name) for name in analysis.objective_names]
        tied = _numbers([analysis.feasible[index].trial for index in ties])
        label = f"{mark}, default" if one is default and mark != "default" else mark
        label += ", forbidden" if one.forbidden else ""
        label += ", not steady" if any(analysis.unsteady(record) for record in one.records) else ""
        cells.append((one.trial, *values, label, tied or None, len(one.records), analysis.named(one.records[0].configuration, 200)))
    columns = ("trial", *analysis.objective_names, "place", "tied with", "runs", "configuration")
    return Rows("Front", columns, tuple(cells))


def trial_rows(analysis: Analysis) -> Rows:
    """Every trial with its outcome and objective values."""
    cells = []
    for record in analysis.records:
        found = analysis.score(record)
        values = found.values if found else (None,) * len(analysis.objective_names)
        seconds = record.total_seconds
        where = (None if seconds is None else round(seconds, 1), analysis.named(record.configuration, 200))
        cells.append((record.number, str(record.origin), _outcome(analysis, record), *values, *where))
    columns = ("trial", "origin", "outcome", *analysis.objective_names, "seconds", "configuration")
    return Rows("All trials", columns, tuple(cells))


def window_rows(record: TrialRecord) -> Rows:
    """How each row of a measurement was measured: the window, how many requests it rests on, whether it was steady and valid."""
    rows = record.measurement.rows if record.measurement else ()
    facts = record.measurement.facts.get("levels", ()) if record.measurement else ()
    told: list[Mapping[str, Any]] = [fact for fact in facts if isinstance(fact, Mapping)]
    known = told if len(told) == len(rows) else [{}] * len(rows)
    cells = tuple(
        (level_name(row), fact.get("window_s"), fact.get("finished_in_window"), fact.get("client_lag_p99_ms"), _validity(row))
        for row, fact in zip(rows, known, strict=True)
        if fact or row.invalid or row.unsteady
    )
    return Rows("Windows", ("level", "seconds", "finished requests", "client lag ms p99", "verdict"), cells)


def _validity(row: Row) -> str:
    """What may be done with a row's numbers."""
    said = [f"Not scored. {row.invalid}" if row.invalid else "", f"Not steady. {row.unsteady}" if row.unsteady else ""]
    return " ".join(filter(None, said)) or "steady"


def health_rows(analysis: Analysis, trial: int) -> Rows:
    """The guides' health bands beside what a trial measured, at its worst load level."""
    cells = tuple(
        (one.band.name, one.value, one.level or None, bands.text(one.band), "inside" if one.inside else one.band.outside)
        for one in bands.readings(analysis.record(trial))
    )
    return Rows(f"Health bands of the guides, trial {trial}", ("metric", "value", "at", "band", "reading"), cells)


def finding_rows(analysis: Analysis, trials: Sequence[int]) -> Rows:
    """What limits each of some trials, and what only all of them together show, with the guides' remedies."""
    found = [(str(trial), one) for trial in trials for one in diagnosis.findings(analysis.record(trial).outcome)]
    found += [("all", one) for one in diagnosis.across(analysis.records)]
    cells = tuple((trial, one.name, one.evidence, one.remedy) for trial, one in found)
    return Rows("What limits them", ("trial", "finding", "evidence", "remedy"), cells)


def effect_rows(analysis: Analysis) -> Rows:
    """What the objectives depend on, strongest first."""
    cells = tuple((one.parameter, one.objective, one.share, one.trials) for one in effects.effects(analysis))
    return Rows("What the objectives depend on", ("parameter", "objective", "share of variance", "configurations"), cells)


def _reason(analysis: Analysis, record: TrialRecord) -> tuple[str, str, str] | None:
    """Outcome, advice and evidence of a trial off the front; None for one on it."""
    found = analysis.judged(record)
    if isinstance(found, Failed):
        return analysis.outcome(record), found.advice, " ".join(found.evidence[:1])
    broken = [bound.name for bound, value in zip(analysis.study.constraints, found.violations, strict=True) if value > 0]
    if broken:
        return "breaks a constraint", f"Broken: {'; '.join(broken)}.", ""
    if record.number in analysis.membership:
        return None
    if (rule := analysis.forbidden(record.configuration)) is not None:
        return "forbidden", str(rule), ""
    check = analysis.quality.check(record.configuration)
    if check is not None and check.answer == "failed":
        return "changes answers", "Leave these values to the default, or allow more by quality.max_drift_nats.", str(check)
    if not analysis.candidate(record.number).feasible:
        return "did not hold", "The same configuration failed or broke a constraint when it was measured again.", ""
    return "beaten", f"Another configuration is at least as good in every objective{_beyond(analysis)}.", ""


def _beyond(analysis: Analysis) -> str:
    """Whether values were compared beyond their noise, which nobody knows before something was measured twice."""
    known = all(analysis.noise(objective) is not None for objective in analysis.study.objectives)
    return " beyond noise" if known else " by value; how far noise reaches is unknown, since nothing was measured twice"


def _outcome(analysis: Analysis, record: TrialRecord) -> str:
    found = analysis.score(record)
    reused = f", reused from {record.reused_from}" if record.reused_from else ""
    steady = ", not steady" if analysis.unsteady(record) else ""
    broken = "" if found is None or found.feasible else ", breaks a constraint"
    forbidden = "" if found is None or analysis.forbidden(record.configuration) is None else ", forbidden"
    return analysis.outcome(record) + broken + forbidden + steady + reused


def _with_interval(analysis: Analysis, trial: int, metric: str) -> str:
    one, objective = analysis.candidate(trial), analysis.objective(metric)
    interval = analysis.interval(one, objective)
    value = f"{analysis.mean(one, objective):.4g}"
    return value if interval is None else f"{value} [{interval.low:.4g}, {interval.high:.4g}]"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
