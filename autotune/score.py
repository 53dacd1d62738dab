"""From a measurement to objective values and signed constraint violations.

A selector names a number: `output_tokens_per_s`, or at one load level `ttft_ms.p99 @ request_rate=40`. Without a level, a
metric of the whole trial is that metric; a metric of the rows is taken at its best row when higher is better (what the
trial can reach) and at its worst row when lower is better (what every load level keeps to). Constraints always take the
worst row.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from autotune.errors import WrongValue, nearest
from autotune.metrics import STATISTICS, families, lookup, names
from autotune.trial import Failed, FailureKind, Frozen, Measurement, Outcome, Phase, Row, Scalar, TrialFailed

Direction = Literal["maximize", "minimize"]

_SELECTOR = re.compile(r"^\s*(?P<metric>[A-Za-z_][\w.]*)\s*(?:@\s*(?P<key>\w+)\s*=\s*(?P<value>[-\w.]+)\s*)?$")
_CONSTRAINT = re.compile(
    r"^\s*(?P<metric>[A-Za-z_][\w.]*)\s*(?P<op><=|>=)\s*(?P<limit>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(?P<at>@.*)?$"
)


class Selector(Frozen):
    """Names one number of a measurement."""

    metric: str
    key: str | None = None
    value: Scalar = None

    def __str__(self) -> str:
        return self.metric if self.key is None else f"{self.metric} @ {self.key}={self.value}"

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Raises ValueError that says what is wrong and the nearest metric."""
        match = _SELECTOR.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not of the form 'metric' or 'metric @ level=value', e.g. 'ttft_ms.p99 @ request_rate=40'"
            )
        try:
            lookup(match["metric"])
        except KeyError:
            raise _no_metric(match["metric"]) from None
        return cls(metric=match["metric"], key=match["key"], value=None if match["value"] is None else _scalar(match["value"]))

    def rows(self, measurement: Measurement) -> list[Row]:
        """The rows it looks at."""
        if self.key is None:
            return list(measurement.rows)
        return [row for row in measurement.rows if row.level.get(self.key) == self.value]


class Objective(Frozen):
    """A metric to optimise."""

    selector: Selector
    direction: Direction

    @property
    def name(self) -> str:
        """The selector's text, by which tables and trackers call the objective."""
        return str(self.selector)


class Constraint(Frozen):
    """A metric with a bound."""

    selector: Selector
    op: Literal["<=", ">="]
    limit: float

    @property
    def name(self) -> str:
        """The constraint as a study writes it, in one spelling."""
        at = str(self.selector).removeprefix(self.selector.metric)
        return f"{self.selector.metric} {self.op} {self.limit:g}{at}"

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Parse `ttft_ms.p99 <= 500 @ request_rate=40`. Raises ValueError."""
        match = _CONSTRAINT.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not of the form 'metric <= number' or 'metric >= number', with '@ level=value' after it if need be"
            )
        try:
            limit = float(match["limit"])
        except ValueError:
            raise ValueError(f"{match['limit']!r} is not a number") from None
        if not math.isfinite(limit):
            raise ValueError(f"The bound {match['limit']} is not a finite number")
        if limit == 0:
            raise ValueError("A bound of 0 cannot be scaled; give a small number instead")
        found = cls(selector=Selector.parse(match["metric"] + (match["at"] or "")), op=match["op"], limit=limit)
        if why := lookup(found.selector.metric).impossible(found.op, limit):
            raise ValueError(f"No trial can keep {found.name!r}: {why}")
        return found

    def violation(self, value: float) -> float:
        """How far the value breaks the bound, relative to it; ≤ 0 keeps it (facts: scaled as value / limit - 1)."""
        relative = (value - self.limit) / abs(self.limit)
        return relative if self.op == "<=" else -relative


class Score(Frozen):
    """What the sampler is told: objective values and constraint violations in the study's order."""

    values: tuple[float, ...]
    violations: tuple[float, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return all(violation <= 0 for violation in self.violations)


class Reached(Frozen):
    """How far a trial that was ended early had got: None for a goal that it had not measured.

    A value is that of the levels done, which a later level might have changed. It is for the sampler alone, never a score.
    """

    values: tuple[float | None, ...]
    violations: tuple[float | None, ...] = ()

    @property
    def as_score(self) -> Score | None:
        """Where the trial stood, an unmeasured constraint neither kept nor broken; None unless every objective was measured."""
        values = tuple(value for value in self.values if value is not None)
        violations = tuple(violation or 0.0 for violation in self.violations)
        return Score(values=values, violations=violations) if len(values) == len(self.values) else None


def score(measurement: Measurement, objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()) -> Score:
    """Score a measurement. Raises TrialFailed(incomplete) when a number it needs is absent or its row is invalid."""
    values = tuple(value_of(measurement, objective.selector) for objective in objectives)
    bounds = tuple(
        constraint.violation(value_of(measurement, constraint.selector, constraint.op == "<=")) for constraint in constraints
    )
    return Score(values=values, violations=bounds)


def judged(outcome: Outcome, objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()) -> Score | Failed:
    """A trial's score, or why it has none: it failed, or what it measured lacks a number the study needs."""
    if isinstance(outcome, Failed):
        return outcome
    try:
        return score(outcome.measurement, objectives, constraints)
    except TrialFailed as error:
        return error.failed


def reached(measurement: Measurement, objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()) -> Reached:
    """How far the part of a measurement got that there is."""
    values = tuple(known(measurement, objective.selector) for objective in objectives)
    bounds = [(constraint, known(measurement, constraint.selector, constraint.op == "<=")) for constraint in constraints]
    return Reached(values=values, violations=tuple(None if value is None else one.violation(value) for one, value in bounds))


def value_of(measurement: Measurement, selector: Selector, highest: bool = True) -> float:
    """The number a selector names: of several rows the highest, or the lowest for a lower bound.

    An objective takes the highest row whatever its direction: to maximise that is the best one, to minimise the worst.
    """
    if selector.key is None and selector.metric in measurement.totals:
        return measurement.totals[selector.metric]
    metric, row = selector.metric, row_of(measurement, selector, highest)
    return row.metrics[metric]


def row_of(measurement: Measurement, selector: Selector, highest: bool = True) -> Row:
    """The row that a selector's number stands in, where it is not a total. Raises TrialFailed as `score` does."""
    rows = selector.rows(measurement)
    told = measurement.facts.get("missing")
    if isinstance(told, Mapping) and selector.metric in told:
        raise _absent(selector, str(told[selector.metric]))
    if not rows:
        raise _absent(selector, "no load level of that name was measured" if selector.key else "no row was measured")
    for row in rows:
        if row.invalid is not None:
            raise _absent(selector, f"the level {dict(row.level)} is invalid: {row.invalid}")
    known = [row for row in rows if math.isfinite(row.metrics.get(selector.metric, math.nan))]
    if len(known) < len(rows):
        raise _absent(selector, f"it was measured in {len(known)} of {len(rows)} rows")
    return (max if highest else min)(known, key=lambda row: row.metrics[selector.metric])


def unsteady(measurement: Measurement, objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()) -> tuple[str, ...]:
    """What is to be said of the rows that the scored numbers stand in: each level whose window was not steady, and why. Of a
    metric of the whole trial that was read from one of them the measurement's facts tell."""
    asked = [(objective.selector, True) for objective in objectives]
    asked += [(constraint.selector, constraint.op == "<=") for constraint in constraints]
    told = measurement.facts.get("unsteady")
    found: dict[str, None] = {}
    for selector, highest in asked:
        if selector.key is None and selector.metric in measurement.totals:
            if isinstance(told, Mapping) and selector.metric in told:
                found[str(told[selector.metric])] = None
            continue
        with contextlib.suppress(TrialFailed):
            row = row_of(measurement, selector, highest)
            if row.unsteady is not None:
                found[f"{level_name(row)}: {row.unsteady}"] = None
    return tuple(found)


def known(measurement: Measurement, selector: Selector, highest: bool = True) -> float | None:
    """`value_of`; None where that would raise."""
    try:
        return value_of(measurement, selector, highest)
    except TrialFailed:
        return None


def level_name(row: Row) -> str:
    """`request_rate=40`; a rate that a climb has found to four digits, for people and not for a selector."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.level.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _no_metric(name: str) -> WrongValue:
    base = name.partition(".")[0]
    if any(known.startswith(f"{base}.") for known in names()):
        statistics = ", ".join(f"{base}.{statistic}" for statistic in STATISTICS)
        return WrongValue(f"{name!r} needs one of the statistics of {base}.", allowed=statistics, nearest=nearest(name, names()))
    close = nearest(name, names())
    return WrongValue(f"There is no metric {name!r}.", allowed=None if close else ", ".join(families(names())), nearest=close)


def _absent(selector: Selector, why: str) -> TrialFailed:
    return TrialFailed(
        FailureKind.INCOMPLETE,
        Phase.SCORE,
        f"{selector} has no value: {why.rstrip('.')}.",
        advice="Look at the row's own reason; lower the load, lengthen the window, or drop the metric from the study.",
    )


def _scalar(text: str) -> Scalar:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
