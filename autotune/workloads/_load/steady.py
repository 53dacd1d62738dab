"""Whether a window was steady: whether its rates and latencies would have been the same a window earlier or later.

Two things make a window unsteady. Its halves made tokens at different rates: the engine was still speeding up or slowing
down. Or requests piled up: more were under way at its end than at its start, because the load is above what the engine
sustains, and then every latency depends on how long the window was. Either must also exceed chance, as open-loop arrivals
come in clusters: three standard deviations of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autotune.workloads._load.requests import Request
from autotune.workloads._load.span import Span

SHARE = 0.1
"""Halves that differ by less than this share of their mean, and a pile below this share of the arrivals, are steady."""
SIGMAS = 3.0


def unsteady(whole: Sequence[Request], everyone: Sequence[Request], span: Span, concurrency: float | None) -> str | None:
    """Why the window was not steady, None when it was.

    `whole` are the requests whose tokens count, `everyone` all of the level's; `concurrency` is None in an open loop.
    """
    reasons = [_drift(whole, span, concurrency), None if concurrency is not None else _pile(everyone, span)]
    return " ".join(reason for reason in reasons if reason is not None) or None


def halves(span: Span) -> tuple[Span, Span]:
    """The window's two halves."""
    middle = (span.start + span.stop) / 2
    return Span(span.start, middle), Span(middle, span.stop)


def tokens_in(request: Request, span: Span) -> float:
    """Generated tokens of one request that arrived inside a span.

    The server counts tokens per answer; an answer's events share them evenly, but for the first, which is one token.
    """
    if request.output_tokens is None or not request.times:
        return 0.0
    times = np.asarray(request.times)
    if len(times) == 1:
        return float(request.output_tokens * span.holds(request.times[0]))
    inside = int(np.count_nonzero((times[1:] >= span.start) & (times[1:] < span.stop)))
    return span.holds(request.times[0]) + inside * (request.output_tokens - 1) / (len(times) - 1)


def _drift(whole: Sequence[Request], span: Span, concurrency: float | None) -> str | None:
    """The halves' output rates, where they differ.

    Chance: in an open loop requests fall into either half independently, so the difference varies by what each adds to
    it. In a closed loop as many are under way at any time, and one token of each is the grain.
    """
    first, second = halves(span)
    parts = [(tokens_in(request, first), tokens_in(request, second)) for request in whole]
    one, other = math.fsum(a for a, _ in parts), math.fsum(b for _, b in parts)
    chance = SIGMAS * math.sqrt(math.fsum((a - b) ** 2 for a, b in parts)) if concurrency is None else concurrency
    if abs(one - other) <= max(SHARE * (one + other) / 2, chance):
        return None
    rates = f"{one / first.seconds:.4g} tokens/s in the window's first half and {other / second.seconds:.4g} in its second"
    return f"The output rate was {rates}."


def _pile(everyone: Sequence[Request], span: Span) -> str | None:
    """How many more requests were under way at the window's end than at its start, where that is too many."""
    before, after = _under_way(everyone, span.start), _under_way(everyone, span.stop)
    arrived = sum(span.holds(request.due) for request in everyone)
    if after - before <= max(SHARE * arrived, SIGMAS * math.sqrt(before + after)):
        return None
    return f"Requests piled up: {before} were under way at the window's start and {after} at its end."


def _under_way(everyone: Sequence[Request], at: float) -> int:
    """Requests that had arrived and were not over. One that was cut at its deadline was under way until then."""
    return sum(
        request.due <= at and (request.status == "cut" or (request.status == "finished" and request.times[-1] > at))
        for request in everyone
    )
