"""The surface through a recording: a measured configuration is replayed exactly, one between measured ones is interpolated.

Interpolation is a Gaussian process per load level and family of metrics, in log space. Its features are those that a
batch of decoding requests depends on: the concurrency that the configuration can reach at all (the smaller of
`max_num_seqs`, the KV cache over a request's tokens and the offered concurrency), the prefill chunk, the KV cache's
size, the block size, and the flags. KV capacity comes from the memory model, not from the process. `errors` tells how
far off the surface is where a configuration is left out, and whether the mean of the others would have done as well; nothing
is answered outside the range of what was recorded. A configuration that was launched several times is the mean of its launches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from autotune.engines._recorded.recording import LaunchRecord, Level, Percentiles, Recording, load
from autotune.engines._recorded.regression import NUGGET, NUGGETS, Array, Regression
from autotune.trial import Value

_STATISTICS = ("p50", "p90", "p95", "p99")
_LATENCIES = ("ttft", "tpot", "e2e")
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "rates": ("out_tps", "rps", "tot_tps", "span", "joule"),
    "ttft": _STATISTICS,
    "tpot": _STATISTICS,
    "e2e": _STATISTICS,
    "counts": ("ok", "cut", "preempt", "hit"),
}
"""Metrics that share a kernel, fitted on the first of them."""
STOP_S = 2.0
"""Seconds a recorded launch took to stop; the failed ones ended 1 to 2 s after their last sign of life."""


KNOWN = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "block_size",
    "kv_cache_dtype",
    "enforce_eager",
    "async_scheduling",
    "enable_prefix_caching",
)
"""Parameters with a feature of their own; any other is taken as the number that it is."""


class Error(NamedTuple):
    """How far interpolation is off when a configuration is left out, relative to what was measured.

    `mem_gib` is the memory beside the KV cache; the cache itself is `kv_tokens`, as the memory model has it.
    """

    level: str
    metric: str
    median: float
    root_mean_square: float
    of_mean: float
    """Root mean square of answering the mean of the other launches instead; a surface that is no better knows nothing."""

    @property
    def informed(self) -> bool:
        return self.root_mean_square < self.of_mean


class Outside(Exception):
    """The configuration has a parameter or value that the recording cannot answer."""


class Surface:
    """Answers configurations of a recording. Kernels are fitted when first needed."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.memory = recording.memory()
        self.working = tuple(launch for launch in recording.distinct if launch.levels)
        self.nuggets = NUGGETS if recording.about.noisy else (NUGGET,)
        self.others = tuple(name for name in recording.about.defaults if name not in KNOWN)
        self._fits: dict[tuple[str, str], Regression] = {}

    def answer(self, values: Mapping[str, Value], interpolate: bool = True) -> LaunchRecord:
        """The launch of a configuration: recorded, or predicted with `idx` -1. Raises Outside."""
        self.check(values, interpolate)
        recorded = self.recording.find(values)
        if recorded is not None:
            return recorded
        full = self.recording.resolve(values)
        refused = self.memory.too_small(full, slack_gib=0.0)
        return self._failure(full, refused) if refused else self._predicted(full)

    def errors(self) -> list[Error]:
        """Cross-validated errors: for each configuration, kernels are fitted without its launches and asked for it."""
        names = [level.name for level in self.working[0].levels]
        chosen = [(name, family) for name in names for family in ("rates", *_LATENCIES)] + [("", "memory"), ("", "start")]
        return [*(self._left_out(level, family) for level, family in chosen), self._capacity_left_out()]

    def _left_out(self, level: str, family: str) -> Error:
        inputs, targets = self._features(level), self._targets(level, family)
        column = _STATISTICS.index("p99") if family in _LATENCIES else 0
        missed, plain = [], []
        for index in range(len(self.working)):
            rest = np.arange(len(self.working)) != index
            predicted = Regression.fit(inputs[rest], targets[rest], self.nuggets).predict(inputs[index])
            missed.append(math.exp(predicted[column] - targets[index, column]) - 1)
            plain.append(math.exp(targets[rest, column].mean() - targets[index, column]) - 1)
        metric = {"rates": "out_tps", "memory": "mem_gib", "start": "start_s"}.get(family, f"{family}.p99")
        return Error(level, metric, float(np.median(np.abs(missed))), _root_mean_square(missed), _root_mean_square(plain))

    def _capacity_left_out(self) -> Error:
        """Of the memory model's KV cache, corrected by the other launches only."""
        known = [launch for launch in self.working if launch.kv_tokens is not None]
        about = replace(self.memory, corrections=())
        missed, plain = [], []
        for one in known:
            rest = [launch for launch in known if launch is not one]
            model = about
            for launch in rest:
                model = model.calibrated(self.recording.resolve(launch.config), launch.kv_tokens or 0)
            missed.append(model.need(self.recording.resolve(one.config)).kv_tokens / (one.kv_tokens or 1) - 1)
            plain.append(math.exp(np.mean([math.log(launch.kv_tokens or 1) for launch in rest])) / (one.kv_tokens or 1) - 1)
        return Error("", "kv_tokens", float(np.median(np.abs(missed))), _root_mean_square(missed), _root_mean_square(plain))

    def check(self, values: Mapping[str, Value], interpolate: bool = True) -> None:
        """Raise Outside when the recording cannot answer these values."""
        for name, value in values.items():
            if name not in self.recording.about.defaults:
                raise Outside(f"The recording knows no parameter {name!r}; it has {', '.join(self.recording.about.defaults)}.")
            seen = self.recording.seen(name)
            numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (value, *seen))
            if value not in seen if not numeric else not min(seen) <= value <= max(seen):
                shown = f"{min(seen)} to {max(seen)}" if numeric else ", ".join(map(str, seen))
                raise Outside(f"{name}={value} lies outside what was recorded ({shown}).")
        if not interpolate and self.recording.find(values) is None:
            raise Outside("This configuration was not recorded, and interpolation is switched off.")

    def _failure(self, full: Mapping[str, Value], error: str) -> LaunchRecord:
        failed = [launch for launch in self.recording.launches if launch.error is not None]
        started = float(np.median([launch.start_s for launch in failed])) if failed else self._start(full)
        return LaunchRecord(idx=-1, config=full, start_s=started, total_s=started + STOP_S, error=error)

    def _start(self, full: Mapping[str, Value]) -> float:
        return float(math.exp(self._fit("", "start").predict(self._point("", full, self._kv_tokens(full)))[0]))

    def _kv_tokens(self, full: Mapping[str, Value]) -> int:
        block = int(full["block_size"])
        return max(block, int(self.memory.need(full).kv_tokens) // block * block)

    def _predicted(self, full: Mapping[str, Value]) -> LaunchRecord:
        tokens = self._kv_tokens(full)
        start = self._start(full)
        held = self.memory.need(full).kv_gib
        beside = math.exp(self._fit("", "memory").predict(self._point("", full, tokens))[0])
        levels = tuple(self._level(pattern, full, tokens, held + beside) for pattern in self.working[0].levels)
        gaps = float(np.median([_gap(launch) for launch in self.working]))
        total = start + STOP_S + sum(level.span + gaps for level in levels)
        return LaunchRecord(idx=-1, config=full, start_s=round(start, 1), total_s=round(total, 1), kv_tokens=tokens, levels=levels)

    def _level(self, pattern: Level, full: Mapping[str, Value], tokens: int, memory_gib: float) -> Level:
        point = self._point(pattern.name, full, tokens)
        rates = np.exp(self._fit(pattern.name, "rates").predict(point))
        ok, cut, preempted, hit = self._fit(pattern.name, "counts").predict(point)
        finished = round(min(1.0, max(0.0, ok)) * pattern.n)
        unfinished = round(min(1.0, max(0.0, cut)) * pattern.n) if finished < pattern.n else 0
        return pattern.model_copy(
            update={
                "ok": finished,
                "cut": min(unfinished, pattern.n - finished),
                "preempt": float(round(max(0.0, math.expm1(preempted)))),
                "hit": min(1.0, max(0.0, float(hit))) if full["enable_prefix_caching"] else 0.0,
                "mem_gib": memory_gib,
                "took_s": None if pattern.took_s is None else rates[_FAMILIES["rates"].index("span")] + self._around(pattern.name),
                **dict(zip(_FAMILIES["rates"], map(float, rates), strict=True)),
                **{name: self._percentiles(pattern.name, name, point) for name in _LATENCIES},
            }
        )

    def _around(self, level: str) -> float:
        """Seconds that a level takes beyond its span, where the recording says."""
        rows = (one for launch in self.working for one in launch.levels if one.name == level)
        return float(np.median([(one.took_s or one.span) - one.span for one in rows]))

    def _percentiles(self, level: str, family: str, point: Array) -> Percentiles:
        rising = np.maximum.accumulate(np.exp(self._fit(level, family).predict(point)))
        return Percentiles(**dict(zip(_STATISTICS, map(float, rising), strict=True)))

    def _fit(self, level: str, family: str) -> Regression:
        if (level, family) not in self._fits:
            inputs, targets = self._features(level), self._targets(level, family)
            flat = f"{level} {family}".strip() in self.recording.about.flat
            self._fits[level, family] = Regression.flat(inputs, targets) if flat else Regression.fit(inputs, targets, self.nuggets)
        return self._fits[level, family]

    def _features(self, level: str) -> Array:
        resolved = [(self.recording.resolve(launch.config), launch.kv_tokens or 0) for launch in self.working]
        return np.array([self._point(level, full, tokens) for full, tokens in resolved])

    def _point(self, level: str, full: Mapping[str, Value], tokens: int) -> Array:
        """Features scaled so that one unit is about one noticeable step."""
        kind, _, offered = level.partition("/")
        traffic = self.recording.about.traffic.get(kind)
        limit = float(offered.split("/")[1]) if offered.startswith("concurrency") else 512.0
        each = traffic.tokens_per_request if traffic else 1024
        cached = bool(full["enable_prefix_caching"])
        if traffic and cached and traffic.shared_tokens:
            each -= traffic.shared_tokens
        reached = min(float(full["max_num_seqs"]), tokens / each, limit)
        weight = 3.0 if traffic and traffic.shared_tokens else 1.0
        return np.array(
            [
                math.log2(max(reached, 1.0)),
                0.5 * math.log2(full["max_num_batched_tokens"]),
                0.3 * math.log2(tokens),
                (math.log2(full["block_size"]) - 4) / 6,
                float(str(full["kv_cache_dtype"]).startswith("fp8")),
                float(full["enforce_eager"]),
                float(full["async_scheduling"]),
                weight * cached,
                0.5 * math.log2(full["max_num_seqs"]) if not level else 0.0,
                *(_step(full[name]) for name in self.others),
            ]
        )

    def _targets(self, level: str, family: str) -> Array:
        if family == "start":
            return np.log([[launch.start_s] for launch in self.working])
        if family == "memory":
            return np.log([[self._beside_kv(launch)] for launch in self.working])
        rows = [next(item for item in launch.levels if item.name == level) for launch in self.working]
        return np.array([_family(row, family) for row in rows])

    def _beside_kv(self, launch: LaunchRecord) -> float:
        full = self.recording.resolve(launch.config)
        tokens = launch.kv_tokens or 0
        held = tokens * self.memory.model.kv_bytes_per_token(str(full["kv_cache_dtype"])) / 2**30
        return max(level.mem_gib for level in launch.levels) - held


def _step(value: Value) -> float:
    """A parameter without a feature of its own: half its logarithm, so that four times as much is a noticeable step."""
    return float(value) if isinstance(value, bool) else 0.5 * math.log2(max(1.0, float(value)))


def _family(row: Level, family: str) -> Sequence[float]:
    if family == "counts":
        return [row.ok / row.n, row.cut / row.n, math.log1p(row.preempt), row.hit]
    if family == "rates":
        return [math.log(getattr(row, name)) for name in _FAMILIES["rates"]]
    percentiles: Percentiles = getattr(row, family)
    return [math.log(getattr(percentiles, name)) for name in _STATISTICS]


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _gap(launch: LaunchRecord) -> float:
    """Seconds a launch spent on each level beyond the level's own span."""
    spent = sum(level.span for level in launch.levels)
    return max(0.0, (launch.total_s - launch.start_s - STOP_S - spent) / len(launch.levels))


@functools.lru_cache(maxsize=8)
def surface(data: str) -> Surface:
    """The surface of a recording, fitted once in a process. Raises NotFound or InvalidInput."""
    return Surface(load(data))
