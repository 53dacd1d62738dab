"""Every metric autotune reports: name, unit, direction, meaning. This table is the documentation and the code at once; installed
packages add metrics of their own workloads to it through the entry-point group `autotune.metrics`.

A metric with a distribution is addressed as `name.statistic`, e.g. `ttft_ms.p99`; STATISTICS lists them.
TTFT, TPOT, ITL and E2E follow the definitions of vLLM's `bench serve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autotune import registry
from autotune.errors import MissingPrerequisite, nearest

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
"""Statistics over pooled requests."""

Direction = Literal["maximize", "minimize", "none"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`scope` says where it stands: in each row of a measurement, or once for the whole trial."""

    name: str
    unit: str
    direction: Direction
    scope: Literal["row", "trial"]
    meaning: str
    distribution: bool = False
    least: float | None = 0.0
    """No measurement is below it; None where there is no such bound."""
    most: float | None = None

    def impossible(self, op: str, limit: float) -> str:
        """Why no measurement can keep a bound, as part of a sentence; empty where one can."""
        if op == "<=" and self.least is not None and limit < self.least:
            return f"{self.name} is never below {self.least:g}"
        if op == ">=" and self.most is not None and limit > self.most:
            return f"{self.name} is never above {self.most:g}"
        return ""


TABLE: tuple[Metric, ...] = (
    Metric("ttft_ms", "ms", "minimize", "row", "Time to first token: intended arrival to the first generated token.", True),
    Metric(
        "tpot_ms",
        "ms",
        "minimize",
        "row",
        "Time per output token after the first: (E2E - TTFT) / (output tokens - 1), per request.",
        True,
    ),
    Metric("itl_ms", "ms", "minimize", "row", "Inter-token latency: gaps between streamed chunks, pooled over all requests.", True),
    Metric("e2e_ms", "ms", "minimize", "row", "Intended arrival to the last token.", True),
    Metric("requests_per_s", "1/s", "maximize", "row", "Finished requests per second of the steady window."),
    Metric("sps", "1/s", "maximize", "row", "Samples per second: finished requests when serving, trained samples in RL."),
    Metric("output_tokens_per_s", "tokens/s", "maximize", "row", "Generated tokens per second of the steady window."),
    Metric("total_tokens_per_s", "tokens/s", "maximize", "row", "Prompt and generated tokens per second of the steady window."),
    Metric("tokens_per_s_per_user", "tokens/s", "maximize", "row", "1000 / mean TPOT: the speed one reader sees."),
    Metric(
        "goodput_per_s",
        "1/s",
        "maximize",
        "row",
        "Finished requests per second that met every latency bound of the study on their own.",
    ),
    Metric(
        "slo_attainment",
        "ratio",
        "maximize",
        "row",
        "Share of the window's requests that finished and met every latency bound on their own (DistServe, OSDI 2024).",
        most=1.0,
    ),
    Metric(
        "kv_cache_usage", "ratio", "none", "row", "Highest share of the KV cache in use, from the engine's own metrics.", most=1.0
    ),
    Metric("preemptions", "count", "minimize", "row", "Requests preempted for lack of KV cache."),
    Metric("prefix_cache_hit_rate", "ratio", "maximize", "row", "Prompt tokens served from the prefix cache.", most=1.0),
    Metric("queue_depth", "requests", "minimize", "row", "Highest number of requests waiting inside the engine."),
    Metric("frontend_cpu_share", "cores", "minimize", "row", "Cores that the engine's HTTP process used; near 1 it is the limit."),
    Metric("gpu_utilization", "ratio", "none", "row", "Mean share of time in which a kernel ran.", most=1.0),
    Metric("energy_joule_per_token", "J", "minimize", "row", "Board energy of the level over its generated tokens."),
    Metric("peak_gpu_memory_gib", "GiB", "minimize", "trial", "Highest GPU memory of the trial's process tree, sampled by NVML."),
    Metric("peak_memory_gib", "GiB", "minimize", "trial", "Highest resident memory of the trial's process tree."),
    Metric("energy_joule", "J", "minimize", "trial", "Board energy from launch to stop."),
    Metric("start_s", "s", "minimize", "trial", "Process start to first healthy answer."),
    Metric("kv_cache_tokens", "tokens", "maximize", "trial", "KV-cache capacity that the engine reports."),
    Metric(
        "slo_request_rate", "1/s", "maximize", "trial", "Highest request rate that met the SLO and was served, found by the climb."
    ),
    Metric("slo_goodput_per_s", "1/s", "maximize", "trial", "That rate times its SLO attainment."),
    Metric(
        "logprob_drift",
        "nats",
        "minimize",
        "trial",
        "Mean absolute difference of a token's log-probability from the default's first run, over fixed prompts and answers.",
    ),
    Metric(
        "reward",
        "reward",
        "maximize",
        "row",
        "Mean reward of the step's samples; as a total, the mean over the last fifth of the steps.",
        least=None,
    ),
    Metric(
        "reward_slope", "reward/step", "maximize", "trial", "Least-squares slope of reward over the measured steps.", least=None
    ),
    Metric("reward_std", "reward", "none", "row", "Standard deviation of reward over the step's samples."),
    Metric("kl", "nats", "minimize", "row", "KL divergence from the reference policy.", least=None),
    Metric("loss", "loss", "none", "row", "Training loss.", least=None),
    Metric("entropy", "nats", "none", "row", "Policy entropy."),
    Metric("grad_norm", "norm", "none", "row", "Gradient norm."),
    Metric("train_tokens_per_s", "tokens/s", "maximize", "row", "Trained tokens per second."),
    Metric("fresh_sps", "1/s", "maximize", "row", "Newly generated samples per second; reused ones do not count."),
    Metric("step_s", "s", "minimize", "row", "Seconds per optimiser step."),
    Metric("generate_s", "s", "minimize", "row", "Seconds of a step spent generating."),
    Metric("log_prob_s", "s", "minimize", "row", "Seconds of a step spent on log-probabilities."),
    Metric("reward_s", "s", "minimize", "row", "Seconds of a step in which the reward function ran (verl: beside generation)."),
    Metric("update_s", "s", "minimize", "row", "Seconds of a step spent updating weights."),
    Metric(
        "validity_rate", "ratio", "maximize", "row", "Share of samples the reward function reports as valid (json_ok or the like)."
    ),
    Metric(
        "rollout_hit_rate",
        "ratio",
        "maximize",
        "row",
        "Prompt tokens that the rollout engine found in its prefix cache, or what the reward function reports under this name.",
    ),
    Metric("testing_s", "s", "minimize", "row", "Seconds spent validating, in the steps that did; as a total, per step."),
    Metric("save_checkpoint_s", "s", "minimize", "row", "Seconds spent saving, in the steps that did; as a total, per step."),
    Metric("weight_sync_s", "s", "minimize", "row", "Seconds of a step spent handing new weights to the rollout engine."),
    Metric("response_tokens", "tokens", "none", "row", "Mean length of the step's generated answers."),
    Metric("truncated_ratio", "ratio", "minimize", "row", "Share of answers that ran into the length limit.", most=1.0),
    Metric(
        "zero_std_ratio", "ratio", "minimize", "row", "Share of groups whose rewards are all equal: they teach nothing.", most=1.0
    ),
    Metric("clip_ratio", "ratio", "none", "row", "Share of tokens whose update was clipped.", most=1.0),
    Metric(
        "preference_accuracy",
        "ratio",
        "maximize",
        "row",
        "Share of pairs whose chosen answer scores above the rejected (DPO).",
        most=1.0,
    ),
    Metric(
        "preference_margin",
        "nats",
        "maximize",
        "row",
        "Mean difference of the implicit rewards, chosen - rejected (DPO).",
        least=None,
    ),
    Metric(
        "trainer_memory_gib", "GiB", "minimize", "row", "Highest memory of the trainer's own allocator; misses a rollout engine."
    ),
)

_BUILT_IN = {metric.name: metric for metric in TABLE}


def known() -> dict[str, Metric]:
    """Name → metric, those that installed packages add included. Raises MissingPrerequisite where one of them is broken."""
    added = registry.added("autotune.metrics", "metric")
    for name, metric in added.items():
        if not isinstance(metric, Metric) or metric.name != name or name in _BUILT_IN:
            raise MissingPrerequisite(
                f"The entry point {name!r} in the group autotune.metrics must name an autotune.metrics.Metric of that name, "
                "and one that autotune itself does not have."
            )
    return {**_BUILT_IN, **added}


def names() -> tuple[str, ...]:
    """Every addressable name, statistics spelled out."""
    return tuple(
        full
        for metric in known().values()
        for full in ([f"{metric.name}.{stat}" for stat in STATISTICS] if metric.distribution else [metric.name])
    )


def families(addressable: Iterable[str]) -> tuple[str, ...]:
    """The names once each, a distribution's statistics as one: `ttft_ms.*`."""
    return tuple(dict.fromkeys(f"{base}.*" if dot else base for base, dot, _ in (name.partition(".") for name in addressable)))


def lookup(name: str) -> Metric:
    """The metric of an addressable name such as `ttft_ms.p99`.

    Raises KeyError whose message names the nearest known one.
    """
    base, _, statistic = name.partition(".")
    metric = known().get(base)
    if metric is None or bool(statistic) != metric.distribution or (statistic and statistic not in STATISTICS):
        close = nearest(name, names())
        raise KeyError(f"There is no metric {name!r}." + (f" Did you mean {close!r}?" if close else ""))
    return metric
