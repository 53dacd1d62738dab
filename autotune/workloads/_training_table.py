"""A training run's steps as a measurement: rows, and totals over them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, linear_regression

from autotune.session import Step
from autotune.trial import Measurement, Row

_PER_STEP_MEANS = (
    "step_s", "update_s", "response_tokens", "truncated_ratio", "validity_rate", "rollout_hit_rate", "zero_std_ratio", "clip_ratio",
)  # fmt: skip
"""Totals that are means over the measured steps."""
_OF_GENERATING = ("generate_s", "log_prob_s", "reward_s", "weight_sync_s")
"""Seconds that a step spends only when it generates. Their totals are per step, as `step_s` is."""
_NOW_AND_THEN = ("testing_s", "save_checkpoint_s")
"""Seconds of what happens every so many steps, reported in those steps only. Their totals are per step too."""
_AT_THE_END = ("reward", "reward_std", "kl", "loss", "entropy", "grad_norm", "preference_accuracy", "preference_margin")
"""Totals that are means over the last fifth of the steps that report them: where the run has got to."""
_HIGHEST = ("trainer_memory_gib",)
_RATES = ("sps", "fresh_sps", "train_tokens_per_s")
METRICS = frozenset((*_PER_STEP_MEANS, *_OF_GENERATING, *_NOW_AND_THEN, *_AT_THE_END, *_HIGHEST, *_RATES, "reward_slope"))
"""Everything that rows and totals can hold."""


def table(runs: Mapping[int, Sequence[Step]], resources: Mapping[str, float]) -> Measurement:
    """Rows of every measured step of every seed, and totals: each seed's own, then their mean."""
    many = len(runs) > 1
    rows = tuple(
        Row(level={"seed": seed, "step": step.number} if many else {"step": step.number}, metrics=step.metrics)
        for seed, steps in runs.items()
        for step in steps
    )
    of_seeds = {seed: totals(steps) for seed, steps in runs.items()}
    shared = frozenset.intersection(*(frozenset(one) for one in of_seeds.values()))
    means = {name: fmean(one[name] for one in of_seeds.values()) for name in sorted(shared)}
    facts = {"seeds": {str(seed): dict(one) for seed, one in of_seeds.items()}} if many else {}
    window = sum(step.metrics["step_s"] for steps in runs.values() for step in steps)
    return Measurement(rows=rows, totals={**means, **resources}, facts={**facts, "window_s": window})


def totals(steps: Sequence[Step]) -> dict[str, float]:
    """One run's totals. Rates are sums over sums, so a short fast step does not weigh as much as a long one."""
    found: dict[str, float] = {}
    timed = whole_cycles(steps)
    seconds = sum(step.metrics["step_s"] for step in timed)
    counts: dict[str, list[int | None]] = {
        "sps": [step.samples for step in timed],
        "fresh_sps": [step.fresh_samples for step in timed],
        "train_tokens_per_s": [step.tokens for step in timed],
    }
    for name, values in counts.items():
        known = [value for value in values if value is not None]
        if len(known) == len(timed):
            found[name] = sum(known) / seconds
    found |= {name: fmean(gathered) for name in _PER_STEP_MEANS if (gathered := _present(timed, name))}
    for name in (*_OF_GENERATING, *_NOW_AND_THEN):
        if gathered := _present(timed, name):
            found[name] = sum(gathered) / (len(gathered) + _without(timed, name))
    found |= {name: max(gathered) for name in _HIGHEST if (gathered := _present(steps, name))}
    for name in _AT_THE_END:
        if reported := _present(steps, name):
            found[name] = fmean(reported[-max(1, len(reported) // 5) :])
    rewards = [(step.number, step.metrics["reward"]) for step in steps if "reward" in step.metrics]
    if len(rewards) >= 3:
        found["reward_slope"] = linear_regression(*zip(*rewards, strict=True)).slope
    return found


def whole_cycles(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps from the first generation up to the last one, where some steps reuse what others generated.

    A step that generates takes several times as long as one that reuses. Over a part of a cycle a rate would depend on
    where the window fell, and on how long the cycle is that the study tunes. With fewer than two generations, all steps.
    """
    generating = [index for index, step in enumerate(steps) if step.fresh_samples]
    reuses = any(step.fresh_samples == 0 for step in steps)
    return steps[generating[0] : generating[-1]] if reuses and len(generating) > 1 else steps


def _without(steps: Sequence[Step], name: str) -> int:
    """Steps in which a phase did not happen, as against those whose trainer did not tell of it."""
    silent = [step for step in steps if name not in step.metrics]
    return sum(name in _NOW_AND_THEN or step.fresh_samples == 0 for step in silent)


def _present(steps: Sequence[Step], metric: str) -> list[float]:
    return [step.metrics[metric] for step in steps if metric in step.metrics]
