"""Which parameters an objective depends on, from the trials alone. Pure.

The measure is epsilon squared: the share of an objective's variance between a parameter's values, less what chance alone
would give (Kelley 1935; Okada 2013 finds it the least biased of the family at small samples). It looks at one parameter at
a time and cannot see interactions; with some thirty trials it is a hint, and `trials` says how many stand behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.analysis import Analysis
from autotune.trial import Value

GROUPS = 4
"""A number with more distinct values than this, and fewer than three trials for each, is cut at its quartiles."""


@dataclass(frozen=True, slots=True)
class Effect:
    """How much of an objective a parameter explains, 0 to 1, and the objective's mean at each value or range of it."""

    parameter: str
    objective: str
    share: float
    means: Mapping[str, float]
    trials: int


def effects(analysis: Analysis) -> tuple[Effect, ...]:
    """Of every parameter that varied on every objective, strongest first. Empty below five measured configurations."""
    names = dict.fromkeys(name for one in analysis.candidates for name in one.records[0].configuration.values)
    points = [analysis.point(one) for one in analysis.candidates]
    found = []
    for name in names:
        values = [_value(analysis, index, name) for index in range(len(points))]
        groups = _groups(values)
        for column, objective in enumerate(analysis.objective_names):
            effect = _effect(name, objective, groups, [point[column] for point in points])
            found += [effect] if effect else []
    return tuple(sorted(found, key=lambda effect: -effect.share))


def _value(analysis: Analysis, index: int, name: str) -> Value:
    record = analysis.candidates[index].records[0]
    return record.configuration.values.get(name, record.effective.get(name))


def _groups(values: Sequence[Value]) -> list[str | None]:
    """A label per trial: its value, or the quarter that it lies in; None where the value is not known."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    known = [value for value in values if value is not None]
    if len(numbers) < len(known) or len(set(numbers)) <= max(GROUPS, len(numbers) // 3):
        return [None if value is None else str(value) for value in values]
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, GROUPS + 1)))
    places = [None if value is None else min(int(np.searchsorted(edges, value, "right")), len(edges) - 1) for value in values]
    return [None if place is None else f"{edges[place - 1]:g} to {edges[place]:g}" for place in places]


def _effect(name: str, objective: str, labels: Sequence[str | None], numbers: Sequence[float]) -> Effect | None:
    members: dict[str, list[float]] = {}
    for label, number in zip(labels, numbers, strict=True):
        if label is not None:
            members.setdefault(label, []).append(number)
    known = [number for group in members.values() for number in group]
    # A variance of equal numbers is seldom 0 to the last digit, and its shares would be those of the rounding.
    if len(known) < 5 or len(members) < 2 or len(known) <= len(members) or min(known) == max(known):
        return None
    total = float(np.var(known)) * len(known)
    within = sum(float(np.var(group)) * len(group) for group in members.values())
    share = 1 - (within / (len(known) - len(members))) / (total / (len(known) - 1))
    means = {label: float(np.mean(group)) for label, group in members.items()}
    return Effect(name, objective, max(0.0, share), means, len(known))
