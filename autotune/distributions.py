"""How a sampler sees a parameter: a range, or a choice of unordered values."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from autotune.trial import Scalar, Value


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from low to high, both included."""

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True)
class FloatRange:
    """Numbers from low to high, both included; `step` None is continuous."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """Unordered values."""

    values: tuple[Scalar, ...]


Distribution = IntRange | FloatRange | Choice


def within(distribution: Distribution | None, value: Value) -> Scalar:
    """`value` when the distribution holds it. Raises LookupError."""
    if isinstance(distribution, Choice):
        if any(type(value) is type(option) and value == option for option in distribution.values):
            return value  # type: ignore[no-any-return]
    elif distribution is not None and isinstance(value, int | float) and not isinstance(value, bool):
        inside = distribution.low <= value <= distribution.high
        steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
        if inside and abs(steps - round(steps)) < 1e-6:
            return value
    raise LookupError(f"{value!r} is outside {distribution}")


def category(value: Value) -> Scalar:
    """A category as the sampler stores it: scalars as they are, lists and mappings as canonical JSON."""
    if value is None or isinstance(value, list | dict | tuple):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return value  # type: ignore[no-any-return]


def size(distribution: Distribution | None) -> float:
    """How many values it holds; infinite for a continuous one."""
    if isinstance(distribution, Choice):
        return len(distribution.values)
    if isinstance(distribution, IntRange):
        return (distribution.high - distribution.low) // distribution.step + 1
    if isinstance(distribution, FloatRange) and distribution.step is not None:
        return math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return math.inf
