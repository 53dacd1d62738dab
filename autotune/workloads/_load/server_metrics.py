"""The engine's own counters, read from its `/metrics` while a level runs. vLLM's and SGLang's names are known.

An engine that does not offer a series leaves its metric out.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from autotune.trial import Value

TIMEOUT_S = 2.0
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)

KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
PREEMPTIONS = ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total")
CACHE_QUERIES = ("vllm:prefix_cache_queries_total", "sglang:prompt_tokens_total")
CACHE_HITS = ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total")
FRONTEND_CPU = ("process_cpu_seconds_total",)
"""Prometheus' own series of the process that answers. One that shares its metrics with others does not offer it."""
GENERATED = ("vllm:generation_tokens_total", "sglang:generation_tokens_total")

_FROM_THE_FIRST_EVENT = {
    "sglang:num_retracted_requests_total": "sglang:num_queue_reqs",
    "sglang:cached_tokens_total": "sglang:prompt_tokens_total",
}
"""Counters that SGLang (0.5.17 to 0.5.23) shows only once they have counted something, each with a series beside it that it shows
before: until then they are 0, and not unknown."""
_HIGHEST = frozenset(KV_USAGE)
"""Series of which the highest label set counts; all others are summed over label sets (one per data-parallel engine)."""


def parse(text: str) -> dict[str, float]:
    """Prometheus text → a number per series name; what is not finite was not measured."""
    found: dict[str, float] = {}
    for name, raw in _SAMPLE.findall(text):
        with contextlib.suppress(ValueError):
            value = float(raw)
            if not math.isfinite(value):
                continue
            found[name] = max(found.get(name, value), value) if name in _HIGHEST else found.get(name, 0.0) + value
    return {**{name: 0.0 for name, sign in _FROM_THE_FIRST_EVENT.items() if sign in found}, **found}


def scrape(host: str, port: int) -> dict[str, float]:
    """What the server's /metrics says now; empty when it says nothing."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        return parse(response.read().decode(errors="replace")) if response.status == 200 else {}
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


@dataclass(slots=True)
class Watch:
    """Samples of one level. `take` is called about once a second; a server that gave nothing twice is left alone."""

    host: str
    port: int
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _misses: int = 0

    def take(self) -> dict[str, float]:
        """Read the server's metrics once and keep them."""
        if self._misses >= 2:
            return {}
        found = scrape(self.host, self.port)
        self._misses = 0 if found else self._misses + 1
        if found:
            self.samples.append((perf_counter(), found))
        return found


def metrics_of(samples: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Row metrics from the samples of a window, oldest first. Counters need two samples, gauges one."""
    found: dict[str, float] = {}
    for name, series in (("kv_cache_usage", KV_USAGE), ("queue_depth", WAITING)):
        values = [value for _, sample in samples if (value := pick(sample, series)) is not None]
        if values:
            found[name] = max(values)
    preempted, queries, hits = (delta(samples, series) for series in (PREEMPTIONS, CACHE_QUERIES, CACHE_HITS))
    if preempted is not None:
        found["preemptions"] = preempted
    if queries and hits is not None:
        found["prefix_cache_hit_rate"] = hits / queries
    if (cpu_s := delta(samples, FRONTEND_CPU)) is not None and (wall_s := samples[-1][0] - samples[0][0]) > 0:
        found["frontend_cpu_share"] = cpu_s / wall_s
    return found


def delta(samples: Sequence[tuple[float, Mapping[str, float]]], series: Sequence[str]) -> float | None:
    """How much a counter grew between the first and the last sample; None when unknown or restarted."""
    if len(samples) < 2:
        return None
    first, last = pick(samples[0][1], series), pick(samples[-1][1], series)
    return last - first if first is not None and last is not None and last >= first else None


def pick(sample: Mapping[str, float], series: Sequence[str]) -> float | None:
    """The first of several names that the server offers."""
    return next((sample[name] for name in series if name in sample), None)


def cross_check(samples: Sequence[tuple[float, Mapping[str, float]]], counted: float) -> Mapping[str, Value] | None:
    """The server's count of generated tokens beside the client's over the same seconds; None when the server has none."""
    server = delta(samples, GENERATED)
    if server is None:
        return None
    return {"server": server, "client": round(counted, 1), "seconds": round(samples[-1][0] - samples[0][0], 3)}
