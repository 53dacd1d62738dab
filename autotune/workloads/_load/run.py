"""One run of the HTTP workload on one session: its levels in order, and the climb."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

from autotune.bar import Level, SoFar
from autotune.engines.base import Context
from autotune.score import level_name
from autotune.session import Session
from autotune.trial import CLIENT_LATE, FailureKind, Measurement, Phase, Row, TrialFailed, Value
from autotune.workloads._load import server_metrics
from autotune.workloads._load.breach import Breach
from autotune.workloads._load.climb import TOTALS, Bound, Climb, parse_bound
from autotune.workloads._load.conduct import Conductor, LevelLog
from autotune.workloads._load.crew import Crew
from autotune.workloads._load.options import HttpOptions, Load, SloClimb, Window
from autotune.workloads._load.plans import Target, client_count, level_plans, pieces
from autotune.workloads._load.requests import Request, from_json, write_log
from autotune.workloads._load.span import Span
from autotune.workloads._load.summary import Rules, Summary, left, summarise, tokens_between
from autotune.workloads.base import Progress, stop_if_hopeless

SETTLE_S = 5.0
"""Longest wait between levels for the engine to drop what was cut."""
PROBES = 500
"""Added to a level's number for its probe, so that both send different requests."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished level."""

    row: Row
    facts: Mapping[str, Value]


class Run:
    """`measure` is called once."""

    def __init__(
        self,
        options: HttpOptions,
        session: Session,
        context: Context,
        progress: Progress,
    ) -> None:
        self._options, self._session, self._context = options, session, context
        self._progress = progress
        self._target = Target(session.endpoint, session.model)
        self._vocabulary = pieces(options, session.model_folder or Path(session.model))
        self._steps = sum(load.slo_climb.max_steps if load.slo_climb else 1 for load in options.load)
        self._bounds: dict[str, float] = dict(options.goodput.items())
        self._done: list[Done] = []
        self._probed: list[Row] = []
        self._totals: dict[str, float] = {}
        self._facts: dict[str, Value] = {"clients": client_count(options)}

    def measure(self) -> Measurement:
        """Every level in turn. Raises TrialFailed, with what was measured until then, when no level is valid or the trial
        cannot reach the front any more."""
        self._context.folder.mkdir(parents=True, exist_ok=True)
        try:
            with Crew(client_count(self._options), self._context.tag, self._context.folder / "clients.log") as crew:
                self._probe(crew)
                levels = [load.level for load in self._options.load]
                for index, load in enumerate(self._options.load):
                    if load.slo_climb is not None:
                        self._climb(crew, load, load.slo_climb, levels[index + 1 :])
                    else:
                        self._level(crew, load, self._bounds)
                    self._judge(levels[index + 1 :], self._totals)
        except TrialFailed as failure:
            raise self._with_partial(failure) from failure
        if all(done.row.invalid for done in self._done):
            raise self._nothing_valid()
        return self._table()

    def _probe(self, crew: Crew) -> None:
        """A short first pass over the levels, where the study asks for one. Raises TrialFailed when it shows enough."""
        bar, full = self._context.bar, self._options.window
        if bar is None or bar.probe_s is None or bar.probe_s >= full.measure_s:
            return
        window = full.model_copy(update={"measure_s": bar.probe_s})
        noise = math.sqrt(full.measure_s / bar.probe_s)
        known = [load for load in self._options.load if load.slo_climb is None]
        for load in known:
            done, _ = self._measured(crew, load, self._bounds, PROBES + len(self._probed), window)
            self._probed.append(done.row)
            ahead = [one.level for one in self._options.load if one not in known[: len(self._probed)]]
            seen = SoFar(tuple(self._probed), tuple(ahead), self._session.resources(), noise)
            stop_if_hopeless(self._context, seen, Measurement(rows=seen.rows, facts={"probe_s": bar.probe_s}))

    def _judge(self, ahead: Sequence[Level], totals: Mapping[str, float]) -> None:
        """End the trial here when the levels ahead cannot bring it to the front. Raises TrialFailed."""
        rows = tuple(done.row for done in self._done)
        best = {**self._session.resources(), **totals}
        if ahead and rows:
            stop_if_hopeless(self._context, SoFar(rows, tuple(ahead), best, looks=len(self._probed)), self._table())

    def _level(self, crew: Crew, load: Load, bounds: Mapping[str, float], breach: Breach | None = None) -> Row:
        """Run one level and add its row. Raises TrialFailed when nothing of a level that the study asked for finished."""
        done, requests = self._measured(crew, load, bounds, len(self._done), self._options.window, breach)
        self._done.append(done)
        # A probe of the climb may well drown the engine; a level that the study asked for may not.
        if requests and "finished" not in requests and any(load is asked for asked in self._options.load):
            silence = f"Not one of the {len(requests)} requests of {_label(load)} finished."
            raise TrialFailed(FailureKind.UNHEALTHY, Phase.MEASURE, silence, *done.facts["errors"][:3])
        return done.row

    def _measured(
        self, crew: Crew, load: Load, bounds: Mapping[str, float], number: int, window: Window, breach: Breach | None = None
    ) -> tuple[Done, Sequence[str]]:
        """Run one level and keep its log; also what became of each request that was asked of it. With `breach` it ends as soon
        as that is sure."""

        def tell(share: float) -> None:
            # The pass of probes comes on top of the steps that are counted.
            self._progress(_label(load), min((len(self._done) + share) / self._steps, 1.0) if number < PROBES else 0.0)

        tell(0.0)
        self._settle(number)
        limit_s = breach.limit_s if breach else None
        plans = level_plans(self._options, load, self._target, self._vocabulary, self._seed(number), limit_s)
        watch = server_metrics.Watch(*self._target.address)
        log = Conductor(crew, self._session, window, watch, tell).run(plans, load.concurrency or 0, breach)
        write_log(self._context.folder / f"requests-{number}.jsonl", log.records)
        requests = [from_json(record) for record in log.records]
        if breach is not None and log.broke is not None:
            summary = left(requests, log.span, load.level, log.client, log.broke, breach.bound.limit)
        else:
            rules = Rules(self._options.min_finished_share, self._options.ignore_eos, bounds)
            summary = summarise(requests, log.span, load.level, log.client, rules)
        done = self._complete(summary, requests, log)
        # Where every request runs into its deadline they may all be due just before the window.
        asked = [request.status for request in requests if log.span.holds(request.due)] or [
            request.status for request in requests if request.due < log.span.stop
        ]
        return done, asked

    def _complete(self, summary: Summary, requests: list[Request], log: LevelLog) -> Done:
        """The row with the server's own metrics and the energy beside the client's."""
        low = log.start + log.span.start
        samples = [(at, sample) for at, sample in log.watch.samples if at >= low]
        metrics = {**summary.row.metrics}
        facts = {"level": dict(summary.row.level), "warm": log.warm, **summary.facts}
        if metrics:
            metrics.update(server_metrics.metrics_of(samples))
            metrics.update(self._device(low, log.start + log.span.stop, tokens_between(requests, log.span)))
        if len(samples) > 1:
            seen = Span(samples[0][0] - log.start, samples[-1][0] - log.start)
            facts["generation_tokens"] = server_metrics.cross_check(samples, tokens_between(requests, seen))
        return Done(summary.row.model_copy(update={"metrics": metrics}), facts)

    def _device(self, low: float, high: float, tokens: float) -> Mapping[str, float]:
        """What the GPUs did during the window, where the session measures it."""
        used = self._session.resources_between(low, high)
        found = {"gpu_utilization": used["gpu_utilization"]} if "gpu_utilization" in used else {}
        return (
            {**found, "energy_joule_per_token": used["energy_joule"] / tokens} if "energy_joule" in used and tokens > 0 else found
        )

    def _climb(self, crew: Crew, load: Load, wanted: SloClimb, later: Sequence[Level]) -> None:
        """Probe rates until the boundary is found; every probe is a row. `later` are the levels after the climb."""
        bounds = [parse_bound(text) for text in wanted.constraints]
        good = self._bounds or goodput_bounds(bounds)
        start, window_s = self._context.climb_from or wanted.start, self._options.window.measure_s
        # The turns of a conversation come together.
        dispersion = max(1.0, load.arrival.dispersion) * self._options.traffic.turns.highest
        climb = Climb(bounds, start, wanted.max_steps, wanted.precision, window_s, dispersion)
        breach = Breach.of(bounds, self._options.min_finished_share) if self._may_cut() else None
        rows: dict[float, Row] = {}
        while (rate := climb.next_rate()) is not None:
            # What lies below every rate that kept the SLO is measured whole, so that a trial says by how much it broke it.
            sure = breach if climb.best is not None and rate > climb.best else None
            rows[rate] = self._level(crew, load.model_copy(update={"request_rate": rate, "slo_climb": None}), good, sure)
            if CLIENT_LATE in (rows[rate].invalid or ""):
                self._facts["climb_ended"] = rows[rate].invalid
                break
            climb.observe(rate, rows[rate])
            if climb.ceiling is not None and climb.next_rate() is not None:
                self._judge([{}, *later], dict.fromkeys(TOTALS, climb.ceiling))
        self._facts["climb_found_limit"] = climb.found_limit
        if climb.best is None and climb.probes:
            self._facts["missing"] = dict.fromkeys(TOTALS, climb.never_met())
        if climb.best is not None:
            row = rows[climb.best]
            if row.unsteady is not None:
                why = f"{level_name(row)}: {row.unsteady}"
                self._facts["unsteady"] = dict.fromkeys(TOTALS, why)
            self._totals["slo_request_rate"] = climb.best
            if "slo_attainment" in row.metrics:
                # Not what ended in the window: how many requests happen to arrive there is chance, 4 % at 40 requests/s and 15 s.
                self._totals["slo_goodput_per_s"] = climb.best * row.metrics["slo_attainment"]

    def _may_cut(self) -> bool:
        """Whether a rate that has surely broken the SLO need not be measured whole: in a trial that may be ended early, whose
        study looks at no level's own numbers. The requests of a conversation follow from answers, and cannot be counted ahead."""
        bar = self._context.bar
        return bar is not None and not bar.reads_levels and self._options.traffic.turns.highest == 1

    def _settle(self, number: int) -> None:
        """Wait until the engine has dropped the last level's cut requests, then empty its caches."""
        until = perf_counter() + SETTLE_S
        while number > 0 and perf_counter() < until and self._busy():
            sleep(0.1)
        reset = self._session.reset_caches()
        self._facts["caches_reset"] = reset and self._facts.get("caches_reset", True)

    def _busy(self) -> bool:
        sample = server_metrics.scrape(*self._target.address)
        return any((server_metrics.pick(sample, names) or 0) > 0 for names in (server_metrics.RUNNING, server_metrics.WAITING))

    def _seed(self, number: int) -> int:
        """Different for each trial seed and level, the same when repeated."""
        return (self._options.seed * 1_000_003 + self._context.seed) * 1009 + number

    def _table(self) -> Measurement:
        rows = tuple(done.row for done in self._done)
        return Measurement(
            rows=rows, totals=self._totals, facts={**self._facts, "levels": [dict(done.facts) for done in self._done]}
        )

    def _with_partial(self, failure: TrialFailed) -> TrialFailed:
        failed = failure.failed
        partial = self._table() if self._done else failed.partial
        return TrialFailed(failed.kind, failed.phase, *failed.evidence, advice=failed.advice, partial=partial)

    def _nothing_valid(self) -> TrialFailed:
        reasons = dict.fromkeys(done.row.invalid for done in self._done if done.row.invalid)
        errors = dict.fromkeys(error for done in self._done for error in done.facts["errors"])
        return TrialFailed(FailureKind.INCOMPLETE, Phase.MEASURE, *reasons, *list(errors)[:3], partial=self._table())


def _label(load: Load) -> str:
    """How progress names a level: `request_rate 10`."""
    return " ".join(f"{name} {value:g}" for name, value in load.level.items() if isinstance(value, int | float))


def goodput_bounds(bounds: Sequence[Bound]) -> dict[str, float]:
    """What each request must meet on its own when the study says nothing else: the limits of the SLO's latencies."""
    named = ((bound.metric.partition(".")[0], bound) for bound in bounds)
    return {name: bound.limit for name, bound in named if bound.operator == "<=" and name in ("ttft_ms", "tpot_ms", "e2e_ms")}
