"""What a roofline says of a configuration before anything was measured.

A decode step reads the weights and the KV cache of its batch once: bytes over the card's bandwidth. Prefill computes
2 FLOPs a parameter and token: over the card's peak. The batch is what `max_num_seqs`, the KV cache and the offered
concurrency allow. It knows nothing of kernels, schedulers or Python, so it only orders the first random candidates; how
well it ordered them is reported beside what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune import pareto
from autotune.feasibility.memory import MemoryModel
from autotune.score import Objective
from autotune.trial import Configuration, Value
from autotune.workloads.base import RequestShape

CARDS: Mapping[str, tuple[float, float]] = {
    "B200": (8.0e12, 2250e12),
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100": (3.35e12, 989e12),
    "A100": (2.0e12, 312e12),
    "L40S": (0.864e12, 362e12),
    "L40": (0.864e12, 181e12),
    "L4": (0.3e12, 121e12),
    "A10G": (0.6e12, 70e12),
    "A10": (0.6e12, 125e12),
}
"""Memory bytes/s and dense bf16 FLOP/s by product name, from the vendor's data sheets; the first name that ends a word counts."""
BANDWIDTH_REACHED = 0.8
FLOPS_REACHED = 0.6
"""Shares of the data sheet that real kernels reach; they shift all predictions alike and so do not change the order much."""
ENOUGH = 4
"""Measured trials from which the predictions are held against what came out."""
EAGER_STEP_S = 0.004
"""Added to each step without CUDA graphs, as one of more sequences than were captured is: the launches of some 300 kernels."""


@dataclass(frozen=True)
class Roofline:
    """Predicts a serving engine's metrics from its model, its card and its traffic."""

    memory: MemoryModel
    device: str
    shape: RequestShape
    resolved: Mapping[str, Value]

    @property
    def card(self) -> tuple[float, float] | None:
        """Bandwidth and FLOP/s of the device; None for a card that is not known."""
        return next((numbers for name, numbers in CARDS.items() if re.search(rf"{name}\b", self.device)), None)

    def predict(self, configuration: Configuration) -> dict[str, float]:
        """Metrics by name; empty when the card is not known or the configuration cannot hold a request."""
        card = self.card
        values = {**self.resolved, **configuration.values}
        need = self.memory.need(values)
        if card is None or need.kv_tokens <= 0:
            return {}
        cached = bool(values.get("enable_prefix_caching")) and self.shape.shared_tokens > 0
        prompt = self.shape.input_tokens - (self.shape.shared_tokens if cached else 0)
        held = prompt + self.shape.output_tokens
        batch = max(1.0, min(float(values.get("max_num_seqs") or 256), need.kv_tokens / held, self.shape.concurrency))
        step = self._step(values, batch, card)
        prefill = 2 * (self.memory.model.parameters or 0) * prompt / (card[1] * FLOPS_REACHED)
        request_s = self.shape.output_tokens * step / batch + prefill
        rate = 1 / request_s
        calm = min(batch, _graphs(values) or batch)
        sustained = 1 / (self.shape.output_tokens * self._step(values, calm, card) / calm + prefill)
        gpu = need.budget_gib if need.budget_gib else 0.0
        return {
            "requests_per_s": rate,
            "sps": rate,
            **dict.fromkeys(("goodput_per_s", "slo_request_rate", "slo_goodput_per_s"), sustained),
            "output_tokens_per_s": rate * self.shape.output_tokens,
            "total_tokens_per_s": rate * (self.shape.input_tokens + self.shape.output_tokens),
            "tpot_ms": 1000 * (step + batch * prefill / max(1.0, self.shape.output_tokens)),
            "ttft_ms": 1000 * (prefill + step + max(0.0, self.shape.concurrency - batch) * request_s),
            "peak_gpu_memory_gib": gpu,
            "kv_cache_tokens": need.kv_tokens,
        }

    def _step(self, values: Mapping[str, Value], batch: float, card: tuple[float, float]) -> float:
        """Seconds of one decode step."""
        model = self.memory.model
        parameters = model.parameters or 0
        context = self.shape.input_tokens + self.shape.output_tokens / 2
        cache = batch * context * model.kv_bytes_per_token(str(values.get("kv_cache_dtype") or "auto"))
        read = (parameters * model.dtype_bytes + cache) / (card[0] * BANDWIDTH_REACHED)
        compute = 2 * parameters * batch / (card[1] * FLOPS_REACHED)
        captured = not values.get("enforce_eager") and batch <= (_graphs(values) or batch)
        return max(read, compute) + (0.0 if captured else EAGER_STEP_S)


def _graphs(values: Mapping[str, Value]) -> float | None:
    """The largest batch that CUDA graphs were captured for, which is also about as many sequences as keep a bound on TPOT; None
    where nothing says. On an H200 a climb of llama-3.1-8b to a TPOT p95 of 25 ms ended at 8 requests/s with graphs up to 16
    sequences, at 24 with 64 and at 41 with 128 (studies/results/h200-ab-ours)."""
    size = values.get("max_cudagraph_capture_size")
    return float(size) if isinstance(size, int | float) and size > 0 and not values.get("enforce_eager") else None


Predict = Callable[[Configuration], Mapping[str, float]]


class Begun(NamedTuple):
    """A trial that was begun, and the objectives' values where it was measured."""

    configuration: Configuration
    values: tuple[float, ...] | None = None


def pick(predict: Predict, objectives: Sequence[Objective], pool: Sequence[Configuration], begun: Sequence[Begun]) -> int | None:
    """Which of a pool is predicted to add most hypervolume to what was begun; None when the predictions cannot say, or were
    contradicted by what was measured.

    So the picks spread along the predicted front, its middle first. Where none adds anything, the one that holds most. An
    objective that is not predicted may be what the others are traded for: ordered by memory alone, every pick is the smallest.
    """
    told = [predict(configuration) for configuration in pool]
    if not any(told) or not all(_base(objective) in one for objective in objectives for one in told if one):
        return None
    seen = [(one, trial.values) for trial in begun if (one := predict(trial.configuration))]
    if _contradicted(objectives, [(one, values) for one, values in seen if values is not None]):
        return None
    directions = [objective.direction for objective in objectives]
    points = [(index, tuple(one[_base(each)] for each in objectives)) for index, one in enumerate(told) if one]
    before = [tuple(one[_base(each)] for each in objectives) for one, _ in seen]
    reference = pareto.nadir_reference([*(point for _, point in points), *before], directions)
    best = [points[place] for place in pareto.front([point for _, point in points], directions)]
    covered = [before[place] for place in pareto.front(before, directions)]

    def gains(front: Sequence[tuple[float, ...]]) -> list[float]:
        held = pareto.hypervolume(front, directions, reference)
        return [pareto.hypervolume([*front, point], directions, reference) - held for _, point in best]

    added = gains(covered)
    chosen = added if max(added) > 0 else gains([])
    return best[int(np.argmax(chosen))][0]


def _contradicted(objectives: Sequence[Objective], told: Sequence[tuple[Mapping[str, float], tuple[float, ...]]]) -> bool:
    """Whether the predictions rank the measured trials the wrong way round in some objective."""
    if len(told) < ENOUGH:
        return False
    pairs = [
        (place, _base(objective)) for place, objective in enumerate(objectives) if all(_base(objective) in one for one, _ in told)
    ]
    found = [agreement([one[name] for one, _ in told], [values[place] for _, values in told]) for place, name in pairs]
    return any(one is not None and one < 0 for one in found)


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's rank correlation of prediction and measurement; None with fewer than three pairs or without spread."""
    if len(predicted) < 3 or min(np.ptp(predicted), np.ptp(measured)) == 0:
        return None
    return float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Equal values share the mean of their ranks: a roofline predicts the same of all that differ in what it does not know."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _base(objective: Objective) -> str:
    return objective.selector.metric.partition(".")[0]
