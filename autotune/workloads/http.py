"""Streaming HTTP traffic against a serving engine: open and closed loop levels, trace replay, and the climb to an SLO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, cast

from autotune import metrics as metric_table
from autotune.engines.base import Context, Engine
from autotune.errors import Mistake
from autotune.session import Serves, Session
from autotune.trial import FailureKind, Measurement, Phase, Scalar, TrialFailed
from autotune.workloads._load import contexts
from autotune.workloads._load.climb import TOTALS
from autotune.workloads._load.options import HttpOptions
from autotune.workloads._load.plans import recorded_faults
from autotune.workloads._load.run import Run
from autotune.workloads.base import Progress, RequestShape, Workload, WorkloadOptions

_DISTRIBUTIONS = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
_PLAIN = (
    "requests_per_s", "sps", "output_tokens_per_s", "total_tokens_per_s", "tokens_per_s_per_user", "kv_cache_usage",
    "preemptions", "prefix_cache_hit_rate", "queue_depth", "frontend_cpu_share",
    "gpu_utilization", "energy_joule_per_token",
)  # fmt: skip
SETTLE_S = 3.0
"""Added to each level in the estimate: the last requests' drain and the caches' reset."""


class HttpWorkload(Workload):
    """See `HttpOptions` for what a study can say."""

    kind: ClassVar[str] = "http"
    needs: ClassVar[Serves] = "http"
    Options: ClassVar[type[WorkloadOptions]] = HttpOptions

    def __init__(self, options: WorkloadOptions) -> None:
        super().__init__(options)
        self._options = cast(HttpOptions, options)

    def check(self) -> Iterator[Mistake]:
        yield from recorded_faults(self._options)

    def against(self, engine: Engine) -> Iterator[Mistake]:
        """Requests that the engine would refuse: too many of them, and every level of every trial would be invalid."""
        bound = contexts.limit(engine.options)
        if bound is None:
            return
        place, tokens = bound
        needed = contexts.needed(self._options.traffic)
        share = sum(one > tokens for one in needed) / max(len(needed), 1)
        if share > 1 - self._options.min_finished_share:
            problem = f"About {share:.0%} of the workload's requests need a longer context, prompt and answer together: up to "
            yield Mistake(place, f"{problem}{max(needed)} tokens.", str(tokens))

    def levels(self) -> tuple[Mapping[str, Scalar], ...]:
        return tuple(load.level for load in self._options.load if load.slo_climb is None)

    def arrange(self, order: Callable[[Sequence[Mapping[str, Scalar]]], Sequence[int]]) -> None:
        chosen = order([load.level for load in self._options.load])
        self._options = self._options.model_copy(update={"load": tuple(self._options.load[index] for index in chosen)})
        self.options = self._options

    def metrics(self) -> frozenset[str]:
        found = {f"{name}.{statistic}" for name in _DISTRIBUTIONS for statistic in metric_table.STATISTICS} | set(_PLAIN)
        climbs = any(load.slo_climb is not None for load in self._options.load)
        if self._options.goodput or climbs:
            found |= {"goodput_per_s", "slo_attainment"}
        return frozenset(found.union(TOTALS) if climbs else found)

    def remedy(self, metric: str) -> str | None:
        if metric in ("goodput_per_s", "slo_attainment"):
            return "the limits that a good request keeps, e.g. 'goodput: {ttft_ms: 500, tpot_ms: 50}' in the workload section"
        if metric in TOTALS:
            climb = """'load: [{slo_climb: {constraints: ["ttft_ms.p99 <= 500"], start: 4}}]'"""
            return f"a climb to the SLO, e.g. {climb} in the workload section"
        return None

    def expected_seconds(self) -> float:
        window = self._options.window
        steps = sum(load.slo_climb.max_steps if load.slo_climb else 1 for load in self._options.load)
        return steps * (window.warm_up_s + window.measure_s + SETTLE_S)

    def request_shape(self) -> RequestShape | None:
        """Turns count as requests of their own; each shares all that was said before. None for a dataset or trace."""
        traffic = self._options.traffic
        if traffic.input_tokens is None or traffic.output_tokens is None:
            return None
        fresh, answer, turns = traffic.input_tokens.mean, traffic.output_tokens.mean, traffic.turns.mean
        prefix = float(traffic.shared_prefix.tokens) if traffic.shared_prefix else 0.0
        shared = prefix + (turns - 1) / 2 * (fresh + answer)
        known = {"input_tokens": shared + fresh, "output_tokens": answer, "shared_tokens": shared}
        together = max((load.concurrency or 0 for load in self._options.load), default=0)
        return RequestShape(**known, concurrency=together) if together else RequestShape(**known)

    def requests(self, level: Mapping[str, Scalar]) -> float | None:
        """A closed loop's follow from how fast it is answered."""
        rate = level.get("request_rate")
        return rate * self._options.window.measure_s if isinstance(rate, int | float) else None

    def run(self, session: Session, context: Context, progress: Progress) -> Measurement:
        for fault in self.check():
            raise TrialFailed(FailureKind.MACHINE_FAULT, Phase.WARM_UP, str(fault))
        return Run(self._options, session, context, progress).measure()


workload = HttpWorkload
