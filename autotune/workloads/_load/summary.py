"""A level's request log → its row. Pure: the same requests in any order give the same row.

Latencies are those of the requests whose intended arrival falls into the window, however late they finish. Rates count
events inside the window: tokens when they arrived, requests when their last token did. A request whose token counts are
wrong, that failed or that was cut has no latency and no tokens; it counts against the finished share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.stats import describe, percentile
from autotune.trial import CLIENT_LATE, Row, Scalar, Value
from autotune.workloads._load.requests import Request
from autotune.workloads._load.span import Span
from autotune.workloads._load.steady import halves, tokens_in, unsteady

LAG_FLOOR_MS = 5.0
"""Client lag below this is never held against a level."""
LAG_SHARE = 0.05
"""Client lag above this share of the median TTFT, and above the floor, makes the level invalid."""
BUSY_SHARE = 0.9
"""A client process that used more than this share of a core could not keep up."""


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How well the client processes kept up: heartbeat delays in ms, CPU share of the busiest one, requests they issued."""

    beats_ms: Sequence[float]
    cpu_share: float
    issued: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a level valid, and a request good."""

    min_finished_share: float = 0.95
    exact_output: bool = True
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Per-request bounds of goodput and SLO attainment: `ttft_ms`, `tpot_ms`, `e2e_ms`."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The row and the evidence beside it."""

    row: Row
    facts: Mapping[str, Value]


def summarise(
    requests: Sequence[Request], span: Span, level: Mapping[str, Scalar], client: ClientHealth, rules: Rules = Rules()
) -> Summary:
    """Latencies, rates and validity of one level."""
    requests = sorted(requests, key=lambda request: (request.due, request.number, request.turn))
    whole = [request for request in requests if request.status == "finished" and request.miscount(rules.exact_output) is None]
    asked = [request for request in requests if span.holds(request.due)]
    answered = [request for request in whole if span.holds(request.due)]
    latencies = _latencies(answered)
    rates = _rates(whole, span, rules.bounds)
    lag = _lag_ms(asked, client)
    metrics = {**latencies, **rates, **_attainment(asked, answered, rules.bounds)} if answered else {}
    reasons = [
        *_log_faults(requests, client),
        *_share_faults(asked, answered, rules),
        *_client_faults(lag, latencies.get("ttft_ms.p50"), client),
    ]
    concurrency = level.get("concurrency")
    drift = unsteady(whole, requests, span, concurrency if isinstance(concurrency, int | float) else None)
    facts = {
        **_circumstances(span, client, asked, lag),
        "steady": drift is None if rates["output_tokens_per_s"] else None,
        "half_rates": [round(tokens_between(whole, half) / half.seconds, 3) for half in halves(span)],
        "finished_in_window": len(answered),
        "finished_share": len(answered) / len(asked) if asked else None,
        "errors": _errors(asked, rules),
    }
    return Summary(Row(level=level, metrics=metrics, invalid=" ".join(reasons) or None, unsteady=drift), facts)


def left(
    requests: Sequence[Request], span: Span, level: Mapping[str, Scalar], client: ClientHealth, why: str, limit_ms: float
) -> Summary:
    """A level that was left, as `why` says, for a time to first token above a limit: no numbers of it, for its slow requests are
    those that were cut. Whether the client is what was slow is measured by that limit, where a whole level has its median."""
    asked = [request for request in requests if span.holds(request.due)]
    lag = _lag_ms(asked, client)
    reasons = [*_log_faults(requests, client), *_client_faults(lag, limit_ms, client)]
    errors = dict.fromkeys(request.error for request in asked if request.error)
    facts = {**_circumstances(span, client, asked, lag), "errors": list(errors)[:5]}
    return Summary(Row(level=level, metrics={}, invalid=" ".join(reasons) or why), facts)


def _circumstances(span: Span, client: ClientHealth, asked: Sequence[Request], lag: float | None) -> dict[str, Value]:
    return {
        "window_s": round(span.seconds, 3),
        "window_from_s": round(span.start, 3),
        "requests_in_window": len(asked),
        "client_lag_p99_ms": lag,
        "client_cpu_share": round(client.cpu_share, 4),
    }


def tokens_between(requests: Sequence[Request], span: Span) -> float:
    """Generated tokens that arrived inside a span."""
    return math.fsum(tokens_in(request, span) for request in requests)


def _latencies(answered: Sequence[Request]) -> dict[str, float]:
    pooled: dict[str, Sequence[float] | np.ndarray] = {
        "ttft_ms": [request.ttft_ms for request in answered],
        "tpot_ms": [request.tpot_ms for request in answered if request.tpot_ms is not None],
        "itl_ms": np.concatenate([np.diff(request.times) * 1000 for request in answered]) if answered else [],
        "e2e_ms": [request.e2e_ms for request in answered],
    }
    found = {f"{name}.{stat}": value for name, values in pooled.items() if len(values) for stat, value in describe(values).items()}
    if found.get("tpot_ms.mean", 0) > 0:
        found["tokens_per_s_per_user"] = 1000 / found["tpot_ms.mean"]
    return found


def _rates(whole: Sequence[Request], span: Span, bounds: Mapping[str, float]) -> dict[str, float]:
    ended = [request for request in whole if span.holds(request.times[-1])]
    prompts = sum(request.prompt_tokens or 0 for request in whole if span.holds(request.times[0]))
    output = tokens_between(whole, span) / span.seconds
    rate = len(ended) / span.seconds
    rates = {
        "requests_per_s": rate,
        "sps": rate,
        "output_tokens_per_s": output,
        "total_tokens_per_s": output + prompts / span.seconds,
    }
    if bounds:
        rates["goodput_per_s"] = sum(_good(request, bounds) for request in ended) / span.seconds
    return rates


def _attainment(asked: Sequence[Request], answered: Sequence[Request], bounds: Mapping[str, float]) -> dict[str, float]:
    return {"slo_attainment": sum(_good(request, bounds) for request in answered) / len(asked)} if bounds else {}


def _good(request: Request, bounds: Mapping[str, float]) -> bool:
    """Whether every bound holds; an answer of one token has no TPOT to break, as in vLLM's `bench serve`."""
    values = {"ttft_ms": request.ttft_ms, "tpot_ms": request.tpot_ms or 0.0, "e2e_ms": request.e2e_ms}
    return all(values[name] <= limit for name, limit in bounds.items())


def _lag_ms(asked: Sequence[Request], client: ClientHealth) -> float | None:
    """The worse of the 99th percentiles of late sending and of late heartbeats."""
    late = [(request.sent - request.due) * 1000 for request in asked]
    found = [percentile(values, 99) for values in (late, client.beats_ms) if len(values)]
    return round(max(found), 3) if found else None


def _log_faults(requests: Sequence[Request], client: ClientHealth) -> list[str]:
    faults = []
    if len(requests) != client.issued:
        faults.append(f"The log holds {len(requests)} of {client.issued} requests.")
    if len({(request.number, request.turn) for request in requests}) < len(requests):
        faults.append("The log holds a request twice.")
    return faults


def _share_faults(asked: Sequence[Request], answered: Sequence[Request], rules: Rules) -> list[str]:
    if not asked:
        return ["No request fell into the window."]
    if len(answered) >= rules.min_finished_share * len(asked):
        return []
    why = ", ".join(f"{count} {reason}" for reason, count in _reasons(asked, rules).items())
    share = f"{rules.min_finished_share:.0%}"
    return [f"Only {len(answered)} of {len(asked)} requests finished as asked ({why}); the level needs {share}."]


def _reasons(asked: Sequence[Request], rules: Rules) -> dict[str, int]:
    """Why requests of the window do not count, with how many each."""
    found: dict[str, int] = {}
    for request in asked:
        if request.status != "finished":
            reason = "failed" if request.status == "failed" else "cut at the deadline"
        elif request.miscount(rules.exact_output) is not None:
            reason = "with wrong token counts"
        else:
            continue
        found[reason] = found.get(reason, 0) + 1
    return found


def _client_faults(lag: float | None, ttft_p50: float | None, client: ClientHealth) -> list[str]:
    if client.cpu_share > BUSY_SHARE:
        return [f"{CLIENT_LATE}: it used {client.cpu_share:.0%} of a core."]
    limit = max(LAG_FLOOR_MS, LAG_SHARE * (ttft_p50 or 0.0))
    if lag is not None and lag > limit:
        return [f"{CLIENT_LATE}: it was {lag:.1f} ms late (99th percentile; {limit:.1f} ms is allowed)."]
    return []


def _errors(asked: Sequence[Request], rules: Rules) -> list[str]:
    """Up to five different errors of the window, as evidence."""
    texts = (request.error or (request.miscount(rules.exact_output) if request.status == "finished" else None) for request in asked)
    return list(dict.fromkeys(text for text in texts if text))[:5]
