"""Predicts a serving engine's GPU memory: weights, KV blocks, activations.

KV bytes per token = 2 x layers x KV heads x head dim x bytes, divided over tensor- and pipeline-parallel ranks. What an
engine takes beyond weights and KV blocks is modelled as a base plus the larger of the prefill activations
(`max_num_batched_tokens` rows of 3 x intermediate + 2 x hidden values), the sampler's logits and the CUDA graph pool;
the constants were fitted on 19 launches of vLLM 0.26.0 on an H200 and are corrected by what a study's own trials
measured.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autotune.models import ModelFacts
from autotune.trial import Value

GIB = 2**30
BASE_GIB = 0.30
"""CUDA context and allocator slack inside the engine's own accounting."""
GRAPHS_GIB = 0.95
"""Captured CUDA graphs of a dense model; nothing in eager mode."""
UNEXPLAINED_GIB = 0.25
"""A launch is cut only when it misses by more than this; the largest error on the fitting data is 0.15 GiB."""
UNCALIBRATED_GIB = 2.0
"""The same before any trial of the study has reported its KV cache: another engine version may differ by as much."""
_UNKNOWN = (
    "quantization",
    "cpu_offload_gb",
    "kv_cache_memory_bytes",
    "speculative_config",
    "enable_lora",
    "num_gpu_blocks_override",
)
"""Parameters whose memory the model does not know; a configuration that sets one is never cut by it."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The configuration's memory by the model, GiB on each GPU. `kv_tokens` is what fits, negative when nothing does."""

    budget_gib: float
    weights_gib: float
    overhead_gib: float
    kv_tokens: float
    needed_kv_tokens: int

    @property
    def missing_gib(self) -> float:
        """How much the budget lacks to hold one request of the longest length; <= 0 when it fits."""
        per_token = self.kv_gib / self.kv_tokens if self.kv_tokens else 0.0
        return per_token * self.needed_kv_tokens - self.kv_gib

    @property
    def kv_gib(self) -> float:
        """What is left for the KV cache; negative where not even the rest fits."""
        return self.budget_gib - self.weights_gib - self.overhead_gib


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """The bound of one model, which must be `counted`, on one kind of GPU.

    `corrections` are measured minus predicted overheads, GiB, in ascending order.
    """

    model: ModelFacts
    device_memory_gib: float
    max_model_len: int
    default_utilization: float = 0.92
    default_batched_tokens: int = 8192
    default_seqs: int = 256
    corrections: tuple[float, ...] = field(default=())

    @property
    def bias_gib(self) -> float:
        """The median correction; 0 before anything was measured."""
        seen = self.corrections
        return (seen[(len(seen) - 1) // 2] + seen[len(seen) // 2]) / 2 if seen else 0.0

    def need(self, values: Mapping[str, Value]) -> MemoryNeed:
        """The memory of a configuration, by vLLM's parameter names."""
        ranks = _ranks(values)
        per_token = self.model.kv_bytes_per_token(_kv_dtype(values)) / ranks / GIB
        weights = self.model.weights_gib / ranks
        overhead = self.overhead_gib(values) + self.bias_gib
        budget = self.budget_gib(values)
        longest = _number(values.get("max_model_len"), self.max_model_len)
        return MemoryNeed(budget, weights, overhead, (budget - weights - overhead) / per_token, int(longest))

    def budget_gib(self, values: Mapping[str, Value]) -> float:
        """What `gpu_memory_utilization` lets the engine take of one GPU."""
        return _number(values.get("gpu_memory_utilization"), self.default_utilization) * self.device_memory_gib

    def overhead_gib(self, values: Mapping[str, Value]) -> float:
        """What the engine takes beyond weights and KV blocks, before the study's own correction."""
        rows = _number(values.get("max_num_batched_tokens"), self.default_batched_tokens)
        sequences = _number(values.get("max_num_seqs"), self.default_seqs)
        tensor = max(1.0, _number(values.get("tensor_parallel_size"), 1))
        width = 3 * (self.model.intermediate or 0) / tensor + 2 * self.model.hidden
        activations = rows * width * self.model.dtype_bytes / GIB
        logits = sequences * self.model.vocab * 4 / GIB
        graphs = 0.0 if values.get("enforce_eager") else GRAPHS_GIB
        return BASE_GIB + max(activations, logits, graphs)

    def too_small(self, values: Mapping[str, Value], slack_gib: float | None = None) -> str | None:
        """Why the configuration cannot start, as a sentence; None when it may, or misses by no more than the slack."""
        if any(values.get(name) for name in _UNKNOWN) or values.get("dtype") not in (None, "auto"):
            return None
        if slack_gib is None:
            slack_gib = UNEXPLAINED_GIB if self.corrections else UNCALIBRATED_GIB
        need = self.need(values)
        if need.missing_gib <= slack_gib:
            return None
        return (
            f"The GPU memory budget of {need.budget_gib:.1f} GiB holds {need.weights_gib:.1f} GiB of weights and about "
            f"{need.overhead_gib:.1f} GiB of activations and graphs, which leaves {need.kv_gib:.1f} GiB for the KV cache; "
            f"one request of {need.needed_kv_tokens} tokens needs {need.kv_gib + need.missing_gib:.1f} GiB."
        )

    def calibrated(self, values: Mapping[str, Value], kv_tokens: float) -> MemoryModel:
        """The model after one more trial that reported its KV-cache capacity in tokens."""
        ranks = _ranks(values)
        per_token = self.model.kv_bytes_per_token(_kv_dtype(values)) / ranks / GIB
        measured = self.budget_gib(values) - self.model.weights_gib / ranks - kv_tokens * per_token
        found = list(self.corrections)
        bisect.insort(found, measured - self.overhead_gib(values))
        return replace(self, corrections=tuple(found))


def _ranks(values: Mapping[str, Value]) -> float:
    sizes = (_number(values.get(name), 1) for name in ("tensor_parallel_size", "pipeline_parallel_size"))
    product = 1.0
    for size in sizes:
        product *= max(1.0, size)
    return product


def _number(value: Value, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(default)


def _kv_dtype(values: Mapping[str, Value]) -> str:
    return str(values.get("kv_cache_dtype") or "auto")
