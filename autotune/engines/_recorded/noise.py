"""How a replayed launch differs from the recorded one: as much as relaunches of a configuration differ from each other."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from autotune.engines._recorded.recording import Level, Noise, Percentiles

UNKNOWN_NOISE = 0.03
"""Relative noise of rates where the recording holds no configuration twice."""


class Spread(NamedTuple):
    """Relative standard deviations between launches: of rates, and of latencies beyond what follows from the rates."""

    rates: float
    ttft: float
    tpot: float
    e2e: float

    @classmethod
    def of(cls, asked: float | None, fitted: Noise | None) -> Spread:
        if asked is not None or fitted is None:
            rates = UNKNOWN_NOISE if asked is None else asked
            return cls(rates, 2 * rates, 2 * rates, 2 * rates)
        own = (math.sqrt(max(0.0, one**2 - fitted.rates**2)) for one in (fitted.ttft, fitted.tpot, fitted.e2e))
        return cls(fitted.rates, *own)


def noisy(level: Level, noise: Spread, relaunch: float, random: np.random.Generator, more: float = 1.0) -> Level:
    """Half the variance is the relaunch's own and common to its levels, half is the level's, which a short one has `more` of."""
    if not any(noise):
        return level
    speed = float(np.exp(noise.rates * (relaunch + more * random.normal(0, 1)) / np.sqrt(2)))
    own = {name: getattr(noise, name) * more for name in ("ttft", "tpot", "e2e")}
    stretch = {name: float(np.exp(size * random.normal(0, 1))) / speed for name, size in own.items()}
    scaled = {name: getattr(level, name) * speed for name in ("rps", "out_tps", "tot_tps")}
    slower = {name: _scaled(getattr(level, name), factor) for name, factor in stretch.items()}
    return level.model_copy(update={**scaled, **slower, "span": level.span / speed})


def _scaled(percentiles: Percentiles, factor: float) -> Percentiles:
    return Percentiles(**{name: value * factor for name, value in percentiles.model_dump().items()})
