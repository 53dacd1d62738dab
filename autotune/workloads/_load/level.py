"""One load level inside a client process: sends each request when it is due, and keeps a record of every answer."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from time import perf_counter, process_time
from typing import Any

from autotune.workloads._load.arrivals import arrivals, replay
from autotune.workloads._load.exchange import Answer
from autotune.workloads._load.traffic import Ask, Conversation, Source, recorded_rows
from autotune.workloads._load.wire import Wire

REPORT_S = 0.2
BEAT_S = 0.02
"""The loop's heartbeat: how late it comes is how long an event may have waited before it was stamped."""
PATIENCE = 50
"""Errors in a row after which a closed loop pauses RETRY_S before each further request, so as not to spin."""
RETRY_S = 0.1


@dataclass(slots=True)
class Flight:
    """A request to come or under way. `user` is None in an open loop."""

    number: int
    turn: int
    due: float
    user: int | None
    conversation: Conversation | None = None
    ask: Ask | None = None
    sent: float = 0.0
    part: float = 1.0
    """Share of the drawn answer length that is asked for."""


class Level:
    """See `plans.level_plans` for the plan's fields."""

    def __init__(self, plan: Mapping[str, Any], source: Source, start: float) -> None:
        self.window: tuple[float, float] | None = None
        self._start = start
        self._deadline_s: float = plan["deadline_s"]
        self._think_s: float = plan["traffic"]["think_s"]
        self._ttft_limit_s: float | None = plan["ttft_limit_s"]
        self._late = 0
        self._source = source
        self._head = request_head(plan)
        self._wire = Wire((plan["host"], plan["port"]), self._on_answer, self._on_broken)
        self._order = count()
        self._due: list[tuple[float, int, Flight]] = []
        self._flying: dict[int, Flight] = {}
        self._cutoffs: list[tuple[float, int]] = []
        self._records: list[dict[str, Any]] = []
        self._ttfts: list[tuple[float, float]] = []
        self._beats: list[float] = []
        self._issued = self._finished = self._failed = self._errors_in_a_row = 0
        self._next_beat = self._next_report = self._start
        share, shares = plan["share"], plan["shares"]
        self._numbers = iter(range(share, sys.maxsize if plan["requests"] is None else plan["requests"], shares))
        self._arrivals = islice(due_times(plan), share, None, shares)
        for user in range(share, plan["concurrency"] or 0, shares):
            # Each user begins somewhere in the middle of an answer, as in steady state; else all answers end in waves.
            part = (user + 0.5) / plan["concurrency"] if plan["requests"] is None else 1.0
            self._plan_user(user, start, part)
        self._plan_arrival()
        self._wire.open(len(self._due))
        self._cpu, self._began = process_time(), start

    def turn(self) -> bool:
        """One turn of the loop; returns whether there are orders to read."""
        self._fire(perf_counter())
        until = min(self._next_beat, self._due[0][0]) if self._due else self._next_beat
        return self._wire.wait(until - perf_counter())

    def report_due(self) -> bool:
        """Whether it is time to say how far things are."""
        return perf_counter() >= self._next_report

    def report(self) -> dict[str, Any]:
        """How far things are. `open`: requests that are due before the window's end and unfinished. `late`: requests of the
        window whose first token took, or is taking, longer than the plan's limit. `idle`: whether nothing is asked just now."""
        now = perf_counter()
        self._next_report = now + REPORT_S
        ttfts, self._ttfts = self._ttfts, []
        waiting = 0
        if self.window is not None:
            _, high = self.window
            flights = [*self._flying.values(), *(flight for _, _, flight in self._due)]
            waiting = int(now < high) + sum(flight.due < high for flight in flights)
        late = self._late + self._late_under_way(now)
        idle = not self._flying and not (self._due and self._due[0][0] <= now)
        counts = {"finished": self._finished, "failed": self._failed, "open": waiting, "late": late}
        return {"at": now, "ttft": ttfts, "idle": idle, **counts}

    def _late_under_way(self, now: float) -> int:
        if self._ttft_limit_s is None:
            return 0
        return sum(self._is_late(flight, self._wire.first(key), now) for key, flight in self._flying.items())

    def _is_late(self, flight: Flight, first: float | None, now: float) -> bool:
        """Whether a request of the window has waited too long for its first token, which has not come yet when it is None."""
        if self._ttft_limit_s is None or self.window is None:
            return False
        low, high = self.window
        return low <= flight.due < high and (now if first is None else first) - flight.due > self._ttft_limit_s

    def end(self) -> dict[str, Any]:
        """Cut what is unfinished, close everything and hand over the records."""
        wall, cpu = perf_counter() - self._began, process_time() - self._cpu
        for key in list(self._flying):
            self._over(key, self._wire.cut(key), "cut", "")
        self._wire.close()
        return {"requests": self._records, "issued": self._issued, "cpu_s": cpu, "wall_s": wall, "beats": self._beats}

    def _fire(self, now: float) -> None:
        """Do everything whose time has come."""
        while self._due and self._due[0][0] <= now:
            flight = heapq.heappop(self._due)[2]
            self._send(flight)
            if flight.user is None and flight.turn == 0:
                self._plan_arrival()
        if now >= self._next_beat:
            self._beats.append(now - self._next_beat)
            self._next_beat = now + BEAT_S
            while self._cutoffs and self._cutoffs[0][0] <= now:
                self._cut(heapq.heappop(self._cutoffs)[1], now)

    def _plan_flight(self, flight: Flight) -> None:
        """Make the content now, so that nothing but sending is left when it is due."""
        if flight.conversation is None:
            flight.conversation = self._source.begin(flight.number, flight.part)
        flight.ask = flight.conversation.ask()
        heapq.heappush(self._due, (flight.due, next(self._order), flight))

    def _plan_user(self, user: int, due: float, part: float = 1.0) -> None:
        number = next(self._numbers, None)
        if number is not None:
            self._plan_flight(Flight(number, 0, due, user, part=part))

    def _plan_arrival(self) -> None:
        offset = next(self._arrivals, None)
        number = None if offset is None else next(self._numbers, None)
        if offset is not None and number is not None:
            self._plan_flight(Flight(number, 0, self._start + offset, None))

    def _send(self, flight: Flight) -> None:
        assert flight.ask is not None
        self._issued += 1
        key = next(self._order)
        self._flying[key] = flight
        heapq.heappush(self._cutoffs, (flight.due + self._deadline_s, key))
        request = self._head % len(flight.ask.body) + flight.ask.body
        flight.sent = perf_counter()
        self._wire.ask(key, request, self._source.collect)

    def _on_answer(self, key: int, answer: Answer) -> None:
        if not answer.times:
            self._on_broken(key, answer, "The answer holds no generated content.")
            return
        flight = self._over(key, answer, "finished", "")
        self._finished += 1
        self._errors_in_a_row = 0
        self._ttfts.append((answer.times[0], answer.times[0] - flight.due))
        self._late += self._is_late(flight, answer.times[0], answer.times[0])
        self._go_on(flight, answer, perf_counter())

    def _on_broken(self, key: int, answer: Answer | None, reason: str) -> None:
        flight = self._over(key, answer, "failed", reason)
        self._failed += 1
        self._errors_in_a_row += 1
        self._go_on(flight, None, perf_counter() + (RETRY_S if self._errors_in_a_row > PATIENCE else 0.0))

    def _cut(self, key: int, now: float) -> None:
        if key in self._flying:
            self._failed += 1
            self._go_on(self._over(key, self._wire.cut(key), "cut", ""), None, now)

    def _go_on(self, flight: Flight, answer: Answer | None, now: float) -> None:
        """The user's next turn or, in a closed loop, next conversation. A failure ends the conversation."""
        conversation = flight.conversation
        if answer is not None and conversation is not None and conversation.turns:
            conversation.answered(answer.ids, "".join(answer.texts), answer.output_tokens or 0)
            self._plan_flight(Flight(flight.number, flight.turn + 1, now + self._think_s, flight.user, conversation))
        elif flight.user is not None:
            self._plan_user(flight.user, now)

    def _over(self, key: int, answer: Answer | None, status: str, error: str) -> Flight:
        """Move a request from the flying ones to the records; times count from the level's start."""
        flight = self._flying.pop(key)
        ask, start = flight.ask, self._start
        assert ask is not None
        self._records.append(
            {
                "number": flight.number,
                "turn": flight.turn,
                "status": status,
                "due": round(flight.due - start, 6),
                "sent": round(flight.sent - start, 6),
                "times": [round(time - start, 6) for time in answer.times] if answer else [],
                "prompt_tokens": answer.prompt_tokens if answer else None,
                "output_tokens": answer.output_tokens if answer else None,
                "asked_prompt_tokens": ask.prompt_tokens,
                "asked_output_tokens": ask.output_tokens,
                **({"error": error} if error else {}),
            }
        )
        return flight


def due_times(plan: Mapping[str, Any]) -> Iterator[float]:
    """Every client's due times, of which this one takes its share; none in a closed loop."""
    if plan["request_rate"] is not None:
        return arrivals(plan["request_rate"], plan["burstiness"], plan["seed"])
    if plan["replay"] is not None:
        rows = recorded_rows(plan["traffic"], plan["seed"])
        assert rows is not None
        return replay([row["timestamp"] for row in rows], plan["replay"])
    return iter(())


def request_head(plan: Mapping[str, Any]) -> bytes:
    """The HTTP head of every request, with a place for the body's length."""
    path = "/v1/chat/completions" if plan["endpoint"] == "chat" else "/v1/completions"
    lines = (f"POST {path} HTTP/1.1", f"Host: {plan['host']}:{plan['port']}", "Content-Type: application/json", "Content-Length: ")
    return "\r\n".join(lines).replace("%", "%%").encode() + b"%d\r\n\r\n"
