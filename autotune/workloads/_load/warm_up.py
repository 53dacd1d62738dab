"""When a level has warmed up: enough requests have finished, and their time to first token no longer drifts."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

FLAT_SHARE = 0.1
"""The medians of the last two stretches agree within this share."""
FLAT_FLOOR_S = 0.002
"""Differences below this are flat whatever their share."""
RAMPS = 2
"""Longest answers that an open loop must have run for."""
STRETCH = 8
"""Requests in a stretch, at least."""


class WarmUp:
    """Collects first-token times as they are reported. `users`: requests in flight, each of which must finish once first.

    In an open loop, which has no users, as many requests are under way as an answer takes to arrive: the level must have
    run for twice the longest answer, else the window holds the ramp although the first tokens come as fast as ever.
    """

    def __init__(self, users: int = 0, start: float = 0.0) -> None:
        self._seen: list[tuple[float, float]] = []
        self._users, self._start = users, start
        self._now, self._longest = start, 0.0

    def add(self, ttfts: Iterable[tuple[float, float]], now: float | None = None) -> None:
        """Take in (moment, time to first token in seconds) of finished requests, which were over by `now`."""
        for moment, ttft in ttfts:
            self._seen.append((moment, ttft))
            self._now = moment if now is None else now
            self._longest = max(self._longest, self._now - (moment - ttft))

    @property
    def turned_over(self) -> bool:
        """Whether as many requests have finished as there are users."""
        return len(self._seen) >= self._users

    @property
    def flat(self) -> bool:
        """Whether measuring can begin."""
        stretch = max(STRETCH, self._users // 2)
        if len(self._seen) < max(3 * stretch, 2 * self._users):
            return False
        if not self._users and self._now - self._start < RAMPS * self._longest:
            return False
        values = [ttft for _, ttft in sorted(self._seen)]
        last, before = median(values[-stretch:]), median(values[-2 * stretch : -stretch])
        return abs(last - before) <= max(FLAT_SHARE * before, FLAT_FLOOR_S)
