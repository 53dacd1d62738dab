"""What limits a trial, read from what was measured: findings, each with its numbers and the guides' remedy. Pure.

Shares of a step and thresholds are rules of thumb of the tuning guides; a finding explains a measurement, it never changes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, linear_regression

from autotune.trial import Failed, FailureKind, Frozen, Measured, Measurement, Outcome, TrialRecord

MOST_OF_A_STEP = 0.6
"""A phase that takes this share of a step is what bounds it."""
SLOW_REWARD = 0.2
SLOW_SYNC = 0.15
SLOW_UPKEEP = 0.15
BUSY_CORE = 0.85
"""A process that Python's lock keeps to one core, and that uses this much of it, makes others wait."""
FLAT = 0.05
"""Samples per second that differ by less over all trials are flat."""
ENOUGH_ROWS = 10


class Finding(Frozen):
    """One thing that limits a trial. `name` is stable; `evidence` holds the numbers it was read from."""

    name: str
    evidence: str
    remedy: str


def findings(outcome: Outcome) -> tuple[Finding, ...]:
    """Everything that is to be said about a trial, the most urgent first."""
    if isinstance(outcome, Failed):
        found = [_out_of_memory(outcome)] if outcome.kind is FailureKind.OUT_OF_MEMORY else []
        return (*found, *(_of(outcome.partial) if outcome.partial is not None else ()))
    return tuple(_of(outcome.measurement))


def across(records: Sequence[TrialRecord]) -> tuple[Finding, ...]:
    """What only several trials together show."""
    totals = [record.outcome.measurement.totals for record in records if isinstance(record.outcome, Measured)]
    speeds = [one["sps"] for one in totals if "sps" in one]
    if len(speeds) < 5 or max(speeds) - min(speeds) > FLAT * max(speeds):
        return ()
    busy = [one["gpu_utilization"] for one in totals if "gpu_utilization" in one]
    gpus = f" with GPUs busy {min(busy):.0%} to {max(busy):.0%} of the time" if busy else ""
    evidence = f"{len(speeds)} configurations made between {min(speeds):.4g} and {max(speeds):.4g} samples/s{gpus}."
    remedy = (
        "Look whether parallelism is real (GPU utilisation, number of processes), whether the run saves or validates too often "
        "(save_freq, test_freq), and whether the reward function waits; then tune other parameters."
    )
    return (Finding(name="samples-per-second-flat", evidence=evidence, remedy=remedy),)


def _of(measurement: Measurement) -> Iterator[Finding]:
    for rule in _RULES:
        found = rule(measurement)
        if found is not None:
            yield found


def _out_of_memory(failed: Failed) -> Finding:
    return Finding(
        name="out-of-memory",
        evidence=failed.evidence[0] if failed.evidence else f"It ran out of memory during {failed.phase}.",
        remedy=failed.advice
        or "Lower the micro-batch first, then the memory share of the engine, then lengths; restart against fragmentation.",
    )


def _reward_flat(measurement: Measurement) -> Finding | None:
    """The slope's own standard error decides: a reward that only jitters has |t| < 2 (the 95 % bound for many steps)."""
    points = [(float(index), row["reward"]) for index, row in enumerate(_one_seed(measurement)) if "reward" in row]
    if len(points) < ENOUGH_ROWS:
        return None
    xs, ys = zip(*points, strict=True)
    line = linear_regression(xs, ys)
    rest = sum((y - line.intercept - line.slope * x) ** 2 for x, y in points)
    spread = math.sqrt(rest / (len(points) - 2) / sum((x - fmean(xs)) ** 2 for x in xs))
    if abs(line.slope) >= 2 * spread and line.slope != 0:
        return None
    idle = measurement.totals.get("zero_std_ratio")
    groups = f"; {idle:.0%} of the groups have equal rewards, which teach nothing" if idle is not None and idle > 0.3 else ""
    evidence = f"The reward's slope is {line.slope:.2g} ± {2 * spread:.2g} per step over {len(points)} steps{groups}."
    remedy = (
        "Reward the main thing only, and check that answers to one prompt differ in it; raise the learning rate; a KL weight of "
        "2e-3 to 5e-3 helps when the reward is noisy, 5e-4 when progress is slow. Very short trials cannot show learning."
    )
    return Finding(name="reward-flat", evidence=evidence, remedy=remedy)


def _kl_running_away(measurement: Measurement) -> Finding | None:
    kl = [row["kl"] for row in _one_seed(measurement) if "kl" in row]
    if len(kl) < ENOUGH_ROWS:
        return None
    fifth = len(kl) // 5
    middle, last = fmean(kl[2 * fifth : 3 * fifth]), fmean(kl[-fifth:])
    if last < 1.0 or last < 2 * middle:
        return None
    evidence = f"KL to the reference rose from {middle:.3g} to {last:.3g} nats between the middle and the end."
    remedy = (
        "Raise the KL weight (in the reward or in the loss, never both), halve the learning rate, or pass fewer times over the "
        "same answers."
    )
    return Finding(name="kl-running-away", evidence=evidence, remedy=remedy)


def _share(measurement: Measurement, *phases: str) -> float | None:
    """Share of a step's seconds that phases take; None unless all of them and the step were measured."""
    totals = measurement.totals
    if "step_s" not in totals or not totals["step_s"] or any(phase not in totals for phase in phases):
        return None
    return sum(totals[phase] for phase in phases) / totals["step_s"]


def _bound(measurement: Measurement, name: str, what: str, phases: tuple[str, ...], above: float, remedy: str) -> Finding | None:
    share = _share(measurement, *phases)
    if share is None or share <= above:
        return None
    evidence = f"{what} takes {share:.0%} of a step's {measurement.totals['step_s']:.3g} s."
    return Finding(name=name, evidence=evidence, remedy=remedy)


def _rollout_bound(measurement: Measurement) -> Finding | None:
    remedy = (
        "Give the rollout engine more memory (gpu_memory_utilization 0.5 to 0.7), more sequences and tokens at once (max_num_seqs, "
        "max_num_batched_tokens), a smaller tensor-parallel size for more replicas, and shorter answers; generate with an engine."
    )
    return _bound(measurement, "rollout-bound", "Generation", ("generate_s",), MOST_OF_A_STEP, remedy)


def _update_bound(measurement: Measurement) -> Finding | None:
    remedy = (
        "Raise the micro-batch up to the GPU's share of the mini-batch, pack by tokens (use_dynamic_bsz), switch gradient "
        "checkpointing off if memory allows, use fused kernels, and take offloading back."
    )
    return _bound(measurement, "update-bound", "The update", ("update_s",), MOST_OF_A_STEP, remedy)


def _reward_slow(measurement: Measurement) -> Finding | None:
    remedy = (
        "Take regular expressions, logging and JSON parsing out of the reward function, run it in parallel (reward.num_workers), "
        "and cache what tools return."
    )
    return _bound(measurement, "reward-function-slow", "The reward function", ("reward_s",), SLOW_REWARD, remedy)


def _sync_bound(measurement: Measurement) -> Finding | None:
    remedy = "Enlarge the weight bucket, keep trainer and engine on one node, and sleep at level 1 where memory allows."
    return _bound(measurement, "communication-bound", "Handing over weights", ("weight_sync_s",), SLOW_SYNC, remedy)


def _upkeep_bound(measurement: Measurement) -> Finding | None:
    known = tuple(name for name in ("testing_s", "save_checkpoint_s") if name in measurement.totals)
    remedy = "Validate and save less often (test_freq, save_freq), or validate on fewer prompts."
    return _bound(measurement, "upkeep-bound", "Validating and saving", known, SLOW_UPKEEP, remedy)


def _answers_cut(measurement: Measurement) -> Finding | None:
    cut = measurement.totals.get("truncated_ratio")
    if cut is None or cut <= 0.5:
        return None
    remedy = "Allow longer answers, or reward short ones: a cut answer often earns nothing for what it would have said."
    return Finding(name="answers-cut", evidence=f"{cut:.0%} of the answers ran into the length limit.", remedy=remedy)


def _highest(measurement: Measurement, metric: str) -> float | None:
    return max((row.metrics[metric] for row in measurement.rows if metric in row.metrics), default=None)


def _client_bound(measurement: Measurement) -> Finding | None:
    reasons = [row.invalid for row in measurement.rows if row.invalid is not None and "client" in row.invalid.lower()]
    if not reasons:
        return None
    return Finding(
        name="client-bound", evidence=reasons[0], remedy="Give the load client more cores or processes, or offer less load."
    )


def _frontend_bound(measurement: Measurement) -> Finding | None:
    busy = [row for row in measurement.rows if row.metrics.get("frontend_cpu_share", 0.0) >= BUSY_CORE]
    if not busy:
        return None
    worst = max(busy, key=lambda row: row.metrics["frontend_cpu_share"]).metrics
    waiting = f", with {worst['queue_depth']:.0f} requests waiting inside the engine at most" if "queue_depth" in worst else ""
    evidence = f"The engine's HTTP process used {worst['frontend_cpu_share']:.0%} of a core{waiting}."
    remedy = (
        "Tokens wait there to be parsed and sent, not for the GPU: raise api_server_count, or stream_interval where readers "
        "can take several tokens at once."
    )
    return Finding(name="frontend-bound", evidence=evidence, remedy=remedy)


def _preempted(measurement: Measurement) -> Finding | None:
    count = _highest(measurement, "preemptions")
    if not count:
        return None
    usage = _highest(measurement, "kv_cache_usage")
    full = f", with up to {usage:.0%} of the KV cache in use" if usage is not None else ""
    remedy = "Raise gpu_memory_utilization, lower max_num_seqs or the lengths, or store KV in 8 bits."
    return Finding(name="preemptions", evidence=f"{count:.0f} requests were preempted at one load level{full}.", remedy=remedy)


def _kv_full(measurement: Measurement) -> Finding | None:
    usage = _highest(measurement, "kv_cache_usage")
    if usage is None or usage < 0.95:
        return None
    remedy = (
        "More memory for the cache, shorter max_model_len, fewer sequences, or KV in 8 bits; below saturation it costs nothing."
    )
    return Finding(name="kv-cache-full", evidence=f"Up to {usage:.0%} of the KV cache was in use.", remedy=remedy)


def _queueing(measurement: Measurement) -> Finding | None:
    depth = _highest(measurement, "queue_depth")
    if depth is None or depth < 32:
        return None
    remedy = (
        "Raise max_num_seqs while the KV cache has room, add replicas, or offer less load; time to first token is queueing here."
    )
    return Finding(name="queueing", evidence=f"Up to {depth:.0f} requests waited inside the engine.", remedy=remedy)


def _one_seed(measurement: Measurement) -> list[Mapping[str, float]]:
    """Rows of the first seed: a curve over several runs end to end is no curve."""
    if not measurement.rows:
        return []
    seed = measurement.rows[0].level.get("seed")
    return [row.metrics for row in measurement.rows if row.level.get("seed") == seed]


_RULES: tuple[Callable[[Measurement], Finding | None], ...] = (
    _client_bound, _frontend_bound, _preempted, _kv_full, _queueing, _kl_running_away, _reward_flat, _reward_slow,
    _rollout_bound, _update_bound, _sync_bound, _upkeep_bound, _answers_cut,
)  # fmt: skip
