"""Reads the steps that verl's file logger writes, under autotune's metric names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.engines._training import Begin, finite
from autotune.engines._verl_hydra import A
from autotune.engines.base import Step

_METRICS: Mapping[str, tuple[str, ...]] = {
    "step_s": ("timing_s/step", "perf/time_per_step"),
    "generate_s": ("timing_s/gen",),
    "reward_s": ("autotune/reward_s", "timing_s/reward"),
    "weight_sync_s": ("timing_s/update_weights",),
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "reward_std": ("autotune/reward_std",),
    "zero_std_ratio": ("autotune/zero_std_ratio",),
    "validity_rate": ("autotune/reward/validity_rate", "autotune/reward/json_ok", "autotune/reward/valid"),
    "rollout_hit_rate": ("autotune/rollout_hit_rate", "autotune/reward/rollout_hit_rate"),
    "testing_s": ("timing_s/testing",),
    "save_checkpoint_s": ("timing_s/save_checkpoint",),
    "kl": ("actor/kl_loss", "actor/reward_kl_penalty"),
    "loss": ("actor/pg_loss", "actor/loss"),
    "entropy": ("actor/entropy",),
    "grad_norm": ("actor/grad_norm",),
    "clip_ratio": ("actor/pg_clipfrac",),
    "response_tokens": ("response_length/mean",),
    "truncated_ratio": ("response_length/clip_ratio",),
    "trainer_memory_gib": ("actor/perf/max_memory_allocated_gb", "perf/max_memory_allocated_gb"),
}
"""Autotune's metric → verl's (or what a trial adds), the first that is reported. critic/score is the reward before a KL penalty."""
_SUMS: Mapping[str, tuple[str, ...]] = {
    "log_prob_s": ("timing_s/old_log_prob", "timing_s/ref", "timing_s/values"),
    "update_s": ("timing_s/update_actor", "timing_s/update_critic"),
}
_MUST_BE_FINITE = ("loss", "grad_norm", "reward", "kl", "entropy")


def samples_per_step(argv: Sequence[str]) -> int:
    """Answers trained on in one step: prompts times answers to each, verl's defaults where the launch says nothing."""
    asked = dict(part.lstrip("+").split("=", 1) for part in argv if "=" in part)
    return int(asked.get("data.train_batch_size", 1024)) * int(asked.get(f"{A}.rollout.n", 1))


def reader(samples: int) -> Callable[[Mapping[str, Any]], Step | Begin | None]:
    """Reads one line of verl's file logger."""

    def read(record: Mapping[str, Any]) -> Step | None:
        data = {key: float(value) for key, value in record.get("data", {}).items() if isinstance(value, int | float)}
        metrics: dict[str, float | None] = {
            name: next((data[theirs] for theirs in names if theirs in data), None) for name, names in _METRICS.items()
        }
        seconds = metrics["step_s"]
        if seconds is None:
            return None
        # verl stops a step's clock before it validates; the run waits for that all the same.
        metrics["step_s"] = seconds = seconds + (metrics["testing_s"] or 0.0)
        for name, parts in _SUMS.items():
            known = [data[part] for part in parts if part in data]
            metrics[name] = sum(known) if known else None
        tokens = data.get("perf/total_num_tokens")
        metrics |= {"sps": samples / seconds, "fresh_sps": samples / seconds}
        metrics["train_tokens_per_s"] = None if tokens is None else tokens / seconds
        kept = finite(metrics)
        broken = tuple(name for name in _MUST_BE_FINITE if metrics.get(name) is not None and name not in kept)
        return Step(
            number=int(record["step"]),
            metrics=kept,
            samples=samples,
            fresh_samples=samples,
            tokens=None if tokens is None else int(tokens),
            broken=broken,
        )

    return read
