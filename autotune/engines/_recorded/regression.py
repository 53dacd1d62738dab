"""A small Gaussian process: squared-exponential kernel with one length scale per feature, on a few dozen points.

The length scales maximise the marginal likelihood under a log-normal prior (median 2, factor e), which keeps a feature
that 19 launches cannot tell apart from being over-fitted. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUGGET = 1e-3
"""Noise variance relative to the signal's, where launches are taken as exact."""
NUGGETS = (NUGGET, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of which the likeliest is taken where they are not."""
_STEPS = (0.5, 0.71, 1.41, 2.0)
_PASSES = 3


def _kernel(left: Array, right: Array, scales: Array) -> Array:
    gaps = (left[:, None, :] - right[None, :, :]) / scales
    result: Array = np.exp(-0.5 * np.sum(gaps * gaps, axis=-1))
    return result


def _objective(inputs: Array, targets: Array, scales: Array, nugget: float) -> float:
    """Negative log marginal likelihood with the signal variance profiled out, plus the prior."""
    count = len(inputs)
    factor = np.linalg.cholesky(_kernel(inputs, inputs, scales) + nugget * np.eye(count))
    white = np.linalg.solve(factor, targets)
    variance = float(white @ white) / count + 1e-12
    likelihood = 0.5 * count * np.log(variance) + float(np.log(np.diag(factor)).sum())
    return float(likelihood + 0.5 * np.sum(np.log(scales / 2.0) ** 2))


def fit_scales(inputs: Array, targets: Array, nugget: float = NUGGET) -> tuple[Array, float]:
    """Length scales by coordinate descent, and what was minimised; `targets` need not be centred."""
    centred = targets - targets.mean()
    scales: Array = np.full(inputs.shape[1], 2.0)
    if np.allclose(centred, 0.0):
        return scales, 0.0
    best = _objective(inputs, centred, scales, nugget)
    for _ in range(_PASSES):
        for column in range(inputs.shape[1]):
            for step in _STEPS:
                trial = scales.copy()
                trial[column] = np.clip(trial[column] * step, 0.1, 40.0)
                value = _objective(inputs, centred, trial, nugget)
                if value < best:
                    best, scales = value, trial
    return scales, best


@dataclass(frozen=True)
class Regression:
    """Posterior mean of several targets that share one kernel; columns of `weights` are targets.

    Predictions stay within the targets seen: a process that overshoots its best point would invent a configuration that
    beats everything measured.
    """

    inputs: Array
    scales: Array
    means: Array
    weights: Array
    low: Array
    high: Array

    @classmethod
    def fit(cls, inputs: Array, targets: Array, nuggets: Sequence[float] = (NUGGET,)) -> Regression:
        """`targets` has a column per target; the kernel is fitted on the first, with the likeliest of the `nuggets`."""
        fits = [(*fit_scales(inputs, targets[:, 0], nugget), nugget) for nugget in nuggets]
        scales, _, nugget = min(fits, key=lambda fit: fit[1])
        means = targets.mean(axis=0)
        kernel = _kernel(inputs, inputs, scales) + nugget * np.eye(len(inputs))
        return cls(inputs, scales, means, np.linalg.solve(kernel, targets - means), targets.min(axis=0), targets.max(axis=0))

    @classmethod
    def flat(cls, inputs: Array, targets: Array) -> Regression:
        """The mean everywhere."""
        scales, means = np.ones(inputs.shape[1]), targets.mean(axis=0)
        return cls(inputs, scales, means, np.zeros_like(targets), targets.min(axis=0), targets.max(axis=0))

    def predict(self, point: Array) -> Array:
        raw = self.means + (_kernel(point[None, :], self.inputs, self.scales) @ self.weights)[0]
        result: Array = np.clip(raw, self.low, self.high)
        return result
