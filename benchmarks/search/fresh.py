"""TPE that passes over what its driver has run or cut, for the comparison of unrepeated.py."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from optuna.samplers import TPESampler

from autotune.search import Driver
from autotune.search.samplers import to_optuna
from autotune.trial import Scalar


class FreshTPE(TPESampler):
    """Proposes the best of its candidates that was neither run nor cut, and the best of all where each was.

    For spaces without conditions. The method that scores the candidates is Optuna's own and may change.
    """

    driver: ClassVar[Driver]
    """The one that asks: a sampler named by its import path is given a seed and options, nothing else."""

    def _compute_acquisition_func(self, samples: dict[str, np.ndarray], *estimators: Any) -> np.ndarray:
        scores = super()._compute_acquisition_func(samples, *estimators)
        left = scores.copy()
        for _ in scores:
            best = int(np.argmax(left))
            if not self._tried({name: values[best].item() for name, values in samples.items()}):
                return left
            left[best] = -np.inf
        return scores

    def _tried(self, candidate: dict[str, float]) -> bool:
        def value(name: str, distribution: Any) -> Scalar:
            return to_optuna(distribution).to_external_repr(candidate[name])

        space = self.driver.space
        digest = space.decode(space.suggest(value)).digest
        return digest in self.driver._numbers or digest in self.driver._cut
