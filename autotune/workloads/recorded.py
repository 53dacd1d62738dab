"""The load levels of a recorded launch as a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from autotune.bar import SoFar
from autotune.engines._recorded.recording import Level, load
from autotune.engines.base import Context
from autotune.engines.recorded import DEFAULT_RECORDING, RecordedSession
from autotune.errors import AutotuneError, WrongValue, nearest
from autotune.session import Session
from autotune.trial import Measurement, Row, Scalar
from autotune.workloads.base import Progress, RequestShape, Workload, WorkloadOptions, stop_if_hopeless

LEVEL_GAP_S = 2.0
"""Seconds between two recorded levels: settling and the client's own start."""
_LATENCIES = ("ttft", "tpot", "e2e")


def _shown(*levels: Mapping[Any, float]) -> str:
    return ", ".join(f"{key}: {value:g}" for level in levels for key, value in level.items())


class RecordedWorkloadOptions(WorkloadOptions):
    """Which of the recorded traffic to replay."""

    kind: Literal["recorded"]
    data: str = DEFAULT_RECORDING
    """The same recording as the engine's."""
    traffic: str = "chat"
    """`chat` or `prefix` in the recording that comes with the package."""
    load: tuple[Mapping[Literal["request_rate", "concurrency"], float], ...] = ()
    """The levels to replay; none given means all that were recorded for the traffic."""
    min_finished: float = Field(default=0.9, gt=0, le=1)
    """An open-loop level is invalid when a smaller share of its requests finished before the deadline."""

    @model_validator(mode="after")
    def _recorded(self) -> RecordedWorkloadOptions:
        try:
            recording = load(self.data)
        except AutotuneError as error:
            raise ValueError(str(error)) from error
        kinds = recording.about.traffic
        if self.traffic not in kinds:
            close = nearest(self.traffic, kinds)
            raise WrongValue(f"The recording has no traffic {self.traffic!r}.", "traffic", allowed=", ".join(kinds), nearest=close)
        known = [dict(level.key) for level in recording.levels(self.traffic)]
        for index, wanted in enumerate(self.load):
            if dict(wanted) not in known:
                raise WrongValue(f"The recording has no load level {_shown(wanted)}.", "load", index, allowed=_shown(*known))
            if wanted in self.load[:index]:
                raise WrongValue(f"The load level {_shown(wanted)} stands twice.", "load", index)
        return self


class RecordedWorkload(Workload):
    """Replays the recorded levels, in their order unless they were arranged otherwise."""

    kind = "recorded"
    needs = "recorded"
    Options = RecordedWorkloadOptions
    options: RecordedWorkloadOptions

    def __init__(self, options: WorkloadOptions) -> None:
        super().__init__(options)
        self._order: Sequence[int] = ()

    def levels(self) -> tuple[Mapping[str, Scalar], ...]:
        return tuple(level.key for level in self._wanted(load(self.options.data).levels(self.options.traffic)))

    def arrange(self, order: Callable[[Sequence[Mapping[str, Scalar]]], Sequence[int]]) -> None:
        self._order = ()
        self._order = tuple(order(self.levels()))

    def metrics(self) -> frozenset[str]:
        latencies = {f"{name}_ms.{statistic}" for name in _LATENCIES for statistic in ("p50", "p90", "p95", "p99")}
        rates = {"requests_per_s", "sps", "output_tokens_per_s", "total_tokens_per_s", "energy_joule_per_token"}
        counts = {"preemptions", "prefix_cache_hit_rate"}
        return frozenset(latencies | rates | counts | {"peak_gpu_memory_gib", "start_s", "kv_cache_tokens"})

    def cautions(self, roles: Mapping[str, str]) -> tuple[str, ...]:
        return ("All seconds and minutes are the recorded ones; replaying a trial takes less than a second.",)

    def run(self, session: Session, context: Context, progress: Progress) -> Measurement:
        assert isinstance(session, RecordedSession)
        levels = self._wanted(session.levels(self.options.traffic))
        looks = self._probe(session, context)
        rows: list[Row] = []
        for index, level in enumerate(levels):
            progress(f"{level.name} (recorded)", index / len(levels))
            session.spend("measure", level.span + LEVEL_GAP_S if level.took_s is None else level.took_s)
            rows.append(_row(level, self.options.min_finished))
            ahead = tuple(one.key for one in levels[index + 1 :])
            if ahead:
                seen = SoFar(tuple(rows), ahead, session.resources(), looks=looks)
                stop_if_hopeless(context, seen, self._table(session, rows))
        progress("done", 1.0)
        return self._table(session, rows)

    def _probe(self, session: RecordedSession, context: Context) -> int:
        """A short first pass over the levels, where the study asks for one: how many rows it showed."""
        seconds = context.bar.probe_s if context.bar is not None else None
        if seconds is None:
            return 0
        levels, rows = self._wanted(session.levels(self.options.traffic, seconds)), list[Row]()
        noise = math.sqrt(max(1.0, *(level.span / seconds for level in levels)))
        for index, level in enumerate(levels):
            session.spend("measure", min(seconds, level.span) + LEVEL_GAP_S)
            rows.append(_row(level, self.options.min_finished))
            seen = SoFar(tuple(rows), tuple(one.key for one in levels[index + 1 :]), session.resources(), noise)
            stop_if_hopeless(context, seen, self._table(session, rows))
        return len(rows)

    def _table(self, session: RecordedSession, rows: Sequence[Row]) -> Measurement:
        facts = {
            "seconds": {"measure": session.seconds["measure"]},
            "simulated": True,
            "recorded_on": session.recording.about.device,
        }
        spans = {"window": "whole span with ramp and drain, as recorded", "traffic": self.options.traffic}
        return Measurement(rows=tuple(rows), totals=session.resources(), facts={**facts, **spans})

    def expected_seconds(self) -> float:
        levels = self._wanted(load(self.options.data).levels(self.options.traffic))
        return sum(max(level.span, 30.0) + LEVEL_GAP_S for level in levels)

    def request_shape(self) -> RequestShape:
        recording = load(self.options.data)
        traffic = recording.about.traffic[self.options.traffic]
        closed = [level.conc for level in recording.levels(self.options.traffic) if level.conc is not None]
        fields = traffic.model_dump(include={"input_tokens", "output_tokens", "shared_tokens"})
        return RequestShape(**fields, concurrency=max(closed, default=256))

    def _wanted(self, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        wanted = [dict(level) for level in self.options.load]
        found = tuple(level for level in levels if not wanted or dict(level.key) in wanted)
        return tuple(found[index] for index in self._order) if self._order else found


def _row(level: Level, min_finished: float) -> Row:
    """A closed loop is cut at the end of its window by design, so that its finished share says nothing."""
    share = level.ok / level.n
    invalid = None
    if level.rate is not None and share < min_finished:
        invalid = f"{level.ok} of {level.n} requests finished before the deadline, fewer than {min_finished:.0%}."
    elif level.ok == 0:
        invalid = "No request finished."
    latencies = {
        f"{name}_ms.{statistic}": value for name in _LATENCIES for statistic, value in getattr(level, name).model_dump().items()
    }
    rates = {
        "requests_per_s": level.rps,
        "sps": level.rps,
        "output_tokens_per_s": level.out_tps,
        "total_tokens_per_s": level.tot_tps,
        "energy_joule_per_token": level.joule / (level.out_tps * level.span),
    }
    return Row(
        level=level.key,
        metrics={**latencies, **rates, "preemptions": level.preempt, "prefix_cache_hit_rate": level.hit},
        invalid=invalid,
    )


workload = RecordedWorkload
