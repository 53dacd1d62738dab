"""Runs one load level: start, warm-up, window, drain, end. The driver's side; the clients send and stamp on their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from autotune.session import Session
from autotune.trial import FailureKind, Phase, TrialFailed
from autotune.workloads._load.breach import Breach, Lateness, arriving
from autotune.workloads._load.crew import Crew, Message
from autotune.workloads._load.options import Window
from autotune.workloads._load.server_metrics import Watch
from autotune.workloads._load.span import Span
from autotune.workloads._load.summary import ClientHealth
from autotune.workloads._load.warm_up import WarmUp

CHECK_S = 1.0
"""Between looks at the engine: is it alive, what do its counters say."""
LEAD_S = 0.05
"""From the order to the level's first request, so that every client begins at the same moment."""
GRACE_S = 2.0
"""Past the deadline of the window's last request, before the drain is given up."""


@dataclass(frozen=True, slots=True)
class LevelLog:
    """Everything a level left: request records, its window, the clients' health, samples of the server's counters."""

    records: Sequence[Mapping[str, Any]]
    span: Span
    client: ClientHealth
    start: float
    watch: Watch
    warm: bool
    """Whether the time to first token was flat when the window began."""
    broke: str | None = None
    """Why the level was left before all that its window asked was over; `span` may then hold only a part of the window."""


class Conductor:
    """One level under way. `tell` is called with the share of the level that is done."""

    def __init__(self, crew: Crew, session: Session, window: Window, watch: Watch, tell: Callable[[float], None]) -> None:
        self._crew, self._session, self._window, self._watch, self._tell = crew, session, window, watch, tell
        self._next_check = 0.0
        self._watching = True
        self._heard = 0.0
        self._finished = self._failed = 0
        self._counts: dict[int, tuple[int, int]] = {}
        self._open: dict[int, tuple[float, int]] = {}
        self._idle: dict[int, bool] = {}
        self._lateness: Lateness | None = None

    def run(self, plans: Sequence[Mapping[str, Any]], users: int, breach: Breach | None = None) -> LevelLog:
        """Run the level, to its end unless that has surely broken its SLO before. Raises TrialFailed when the engine dies or
        answers nothing."""
        self._crew.order([{"do": "level", **plan} for plan in plans])
        self._crew.collect("prepared")
        start = self._heard = perf_counter() + LEAD_S
        self._crew.order({"do": "go", "start": start})
        warm = self._warm_up(start, WarmUp(users, start))
        low = perf_counter()
        high = low + self._window.measure_s
        self._crew.order({"do": "window", "from": low, "to": high})
        self._look()
        if breach is not None:
            self._lateness = Lateness(breach, arriving(plans[0], low - start, high - start))
        self._turn_until(high, start)
        self._look()
        self._watching = False
        left = self._drain(high, start)
        ended = perf_counter()
        # An engine that has died under the load is no measurement, even if its last answer came in time.
        self._session.check_alive()
        self._crew.order({"do": "end"})
        ends = self._crew.collect("requests")
        return LevelLog(
            records=[record for end in ends for record in end["requests"]],
            span=Span(low - start, min(high, ended) - start),
            client=health_of(ends),
            start=start,
            watch=self._watch,
            warm=warm,
            broke=self._lateness.says(ended - low) if left and self._lateness else None,
        )

    def _warm_up(self, start: float, warm_up: WarmUp) -> bool:
        """Until TTFT is flat or the time for it is up; a closed loop's first wave has to be through in any case.

        That wave starts as one burst of prefills, and a window that holds it measures the burst: on an H200 with 512 users
        the first half of such a window ran at half the rate of the second.
        """
        until = start + self._window.warm_up_s
        latest = until + self._window.deadline_s
        while not warm_up.flat and ((now := perf_counter()) < until or (not warm_up.turned_over and now < latest)):
            for _, message in self._turn(start):
                warm_up.add(message["ttft"], message["at"])
        return warm_up.flat

    def _turn_until(self, moment: float, start: float) -> None:
        while (left := moment - perf_counter()) > 0 and not self._hopeless:
            self._turn(start, min(left, 0.2))

    @property
    def _hopeless(self) -> bool:
        return self._lateness is not None and self._lateness.fatal

    def _drain(self, high: float, start: float) -> bool:
        """Keep the load up until all that arrived before the window's end has finished or met its deadline. Returns whether it
        was left before that, as the level has surely broken its SLO."""
        until = high + self._window.deadline_s + GRACE_S
        while perf_counter() < until:
            told = [left for at, left in self._open.values() if at >= high]
            if len(told) == self._crew.clients and not any(told):
                return False
            if self._hopeless:
                return True
            self._turn(start)
        return self._hopeless

    def _turn(self, start: float, seconds: float = 0.2) -> list[Message]:
        """Hear the clients, look at the engine when it is time, say how far things are."""
        messages = [(worker, message) for worker, message in self._crew.poll(seconds) if "open" in message]
        for worker, message in messages:
            self._open[worker] = (message["at"], message["open"])
            self._counts[worker] = (message["finished"], message["failed"])
            self._idle[worker] = message["idle"]
            if self._lateness:
                self._lateness.late[worker] = message["late"]
        finished, failed = (sum(counts[place] for counts in self._counts.values()) for place in (0, 1))
        now = perf_counter()
        # Only who is asked can be silent: a slow rate, a pause to think or a trace may ask nothing for longer than a deadline.
        unasked = len(self._idle) == self._crew.clients and all(self._idle.values()) and failed == self._failed
        if finished > self._finished or unasked:
            self._finished, self._failed, self._heard = finished, failed, now
        if now >= self._next_check:
            self._session.check_alive()
            if self._watching:
                self._look()
            self._next_check = perf_counter() + CHECK_S
            self._tell(min((now - start) / (self._window.warm_up_s + self._window.measure_s), 1.0))
        if now - self._heard > self._window.deadline_s + GRACE_S:
            self._give_up()
        return messages

    def _give_up(self) -> None:
        self._session.check_alive()
        failed = sum(count for _, count in self._counts.values())
        silence = f"No request finished within {self._window.deadline_s:g} s; {failed} failed or were cut meanwhile."
        self._crew.order({"do": "end"})
        errors = dict.fromkeys(
            record["error"] for end in self._crew.collect("requests") for record in end["requests"] if "error" in record
        )
        raise TrialFailed(FailureKind.UNHEALTHY, Phase.MEASURE, silence, *list(errors)[:3])

    def _look(self) -> None:
        self._watch.take()


def health_of(ends: Sequence[Mapping[str, Any]]) -> ClientHealth:
    """How the clients kept up, from what each said at the end."""
    return ClientHealth(
        beats_ms=[beat * 1000 for end in ends for beat in end["beats"]],
        cpu_share=max(end["cpu_s"] / end["wall_s"] if end["wall_s"] > 0 else 0.0 for end in ends),
        issued=sum(end["issued"] for end in ends),
    )
