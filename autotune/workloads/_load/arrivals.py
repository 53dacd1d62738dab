"""When open-loop requests are due: an endless, seeded series of seconds since the level began."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count


def arrivals(rate: float, burstiness: float | None, seed: int) -> Iterator[float]:
    """Due times of a renewal process with a mean of `rate` per second.

    Gaps are gamma distributed with shape `burstiness` as in vLLM's `bench serve`: 1 is Poisson, None is constant spacing.
    """
    draw = random.Random(seed)
    at = 0.0
    while True:
        at += 1 / rate if burstiness is None else draw.gammavariate(burstiness, 1 / (rate * burstiness))
        yield at


def replay(timestamps_ms: Sequence[float], speed: float) -> Iterator[float]:
    """Due times of a recorded trace at `speed` times its own pace, from its first request on; begins again at its end."""
    first = timestamps_ms[0]
    offsets = [(stamp - first) / 1000 / speed for stamp in timestamps_ms]
    period = offsets[-1] + (offsets[-1] / (len(offsets) - 1) if len(offsets) > 1 and offsets[-1] > 0 else 1 / speed)
    for cycle in count():
        yield from (cycle * period + offset for offset in offsets)
