"""One trial, from launch to outcome: the only error boundary.

Whatever happens to a trial becomes a `Failed` outcome here: what the engine and the workload report themselves
(TrialFailed), an interruption, and also a defect of autotune, whose traceback is kept in the trial's folder. None of it
stops a study, and none of it becomes a score. Every process of the trial is ended before this returns.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from autotune import failures, metrics, proc, process
from autotune.answers import FACT
from autotune.engines.base import Context, Engine, Launch
from autotune.errors import AutotuneError
from autotune.failures import Remains
from autotune.secrets import redact, redact_argv, redact_env
from autotune.session import Session
from autotune.trial import (
    Failed,
    FailureKind,
    Measured,
    Measurement,
    Origin,
    Outcome,
    Phase,
    TrialFailed,
    TrialJob,
    TrialRecord,
    Value,
)
from autotune.workloads.base import Progress, Workload

_OF_WINDOWS = frozenset(metric.name for metric in metrics.TABLE if metric.scope == "row")
"""Over an engine's whole life these would be diluted by its start."""


def evaluate(job: TrialJob, engine: Engine, workload: Workload, context: Context, progress: Progress) -> TrialRecord:
    """Run one attempt at a trial. Never raises for anything that happens to it; a second Ctrl-C ends it at once."""
    life = _Life(job, engine, workload, context, progress)
    started_at = time.time()
    try:
        outcome = _finished(life, _attempt(life))
    finally:
        _sweep(life)
        shutil.rmtree(context.scratch, ignore_errors=True)
    launch = life.launch or Launch(argv=())
    return TrialRecord(
        number=job.number,
        configuration=job.configuration,
        origin=job.origin,
        outcome=outcome,
        point=job.point,
        effective=life.start_facts.get("effective") or {},
        command=redact_argv(launch.argv),
        environment=redact_env(launch.env),
        seconds=life.spent(),
        attempt=job.attempt,
        gpus=context.gpus,
        started_at=started_at,
        folder=str(context.folder),
    )


@dataclass
class _Life:
    """What is known so far about a trial in progress."""

    job: TrialJob
    engine: Engine
    workload: Workload
    context: Context
    progress: Progress
    phase: Phase = Phase.START
    launch: Launch | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    start_facts: Mapping[str, Value] = field(default_factory=dict)
    prepare_s: float | None = None
    """Until the engine's process was started: asking what it would take for defaults, making a synthetic model."""
    start_s: float = 0.0
    """From the engine's start until it was ready; 0 before it was."""
    stop_facts: Mapping[str, Value] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] | None = None
    """The resources at the end of the load, where something else was asked of the engine after it."""
    oom_kills: int = field(default_factory=failures.oom_kills)

    @property
    def port(self) -> int | None:
        return urlsplit(self.launch.endpoint).port if self.launch and self.launch.endpoint else None

    def spent(self) -> dict[str, float]:
        """Seconds by phase, the engine's own split of its start beside ours; a replay's simulated seconds stand for all."""
        if self.stop_facts.get("simulated"):
            return dict(self.stop_facts["seconds"])
        own = self.start_facts.get("seconds") or {}
        parts = {**({} if self.prepare_s is None else {"prepare": self.prepare_s}), **own}
        return {**self.seconds, **{f"{Phase.START.value}.{name}": float(value) for name, value in parts.items()}}

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Names the phase, for failures, and times it."""
        self.phase = phase
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase.value] = self.seconds.get(phase.value, 0.0) + time.monotonic() - before


def _attempt(life: _Life) -> Outcome:
    """Run the trial; everything that can be raised becomes an outcome."""
    try:
        return Measured(measurement=_measure(life))
    except TrialFailed as error:
        return _whole(life, error.failed)
    except KeyboardInterrupt:
        return Failed(kind=FailureKind.INTERRUPTED, phase=life.phase, evidence=("The trial was stopped before it finished.",))
    except AutotuneError as error:
        return Failed(kind=FailureKind.MACHINE_FAULT, phase=life.phase, evidence=(redact(str(error)),))
    except Exception as error:
        return failures.defect(error, life.phase, life.context.folder)


def _measure(life: _Life) -> Measurement:
    """Launch, wait, work, stop: raises TrialFailed, and anything a defect may raise."""
    context, began = life.context, time.monotonic()
    with life.during(Phase.START):
        life.progress("start", 0.0)
        life.launch = life.engine.launch(life.job.configuration, context).within(context)
        _show(life.launch, context)
        session = life.engine.open(life.launch, context)
        # Only now: what is prepared before there is a process, such as a synthetic model, the first trial alone pays for.
        before = time.monotonic()
        life.prepare_s = before - began
    try:
        with life.during(Phase.START):
            life.start_facts = session.wait_ready()
            life.start_s = time.monotonic() - before
        with life.during(Phase.MEASURE):
            measurement = life.workload.run(session, context, life.progress)
        if life.workload.prompts and life.job.origin in (Origin.BASELINE, Origin.FINALIST):
            with life.during(Phase.QUALITY):
                life.measured = session.resources()
                measurement = _with_answers(measurement, life, session)
    finally:
        _stop(life, session)
    return _checked(_merged(measurement, life, life.start_s))


def _whole(life: _Life, failed: Failed) -> Failed:
    """A failure whose partial measurement has what was learnt of the engine's whole life, as a complete one has."""
    if failed.partial is None or failed.kind is not FailureKind.ENDED_EARLY:
        return failed
    return failed.model_copy(update={"partial": _merged(failed.partial, life, life.start_s)})


def _with_answers(measurement: Measurement, life: _Life, session: Session) -> Measurement:
    """The measurement with what the engine answers to the fixed prompts; that it cannot answer undoes no measurement."""
    life.progress("quality check", 1.0)
    try:
        found: dict[str, Value] = {"answers": [one.model_dump(mode="json") for one in session.answers(life.workload.prompts)]}
    except TrialFailed as error:
        found = {"unchecked": redact(" ".join(error.failed.evidence[:1]))}
    except Exception as error:
        failures.keep_traceback(life.context.folder, error)
        found = {"unchecked": redact(f"{type(error).__name__}: {error}")}
    return measurement.model_copy(update={"facts": {**measurement.facts, FACT: found}})


def _show(launch: Launch, context: Context) -> None:
    """Writes `launch.json` into the trial's folder."""
    shown = {
        "argv": redact_argv(launch.argv),
        "env": redact_env(launch.env),
        "endpoint": launch.endpoint,
        "context": context.model_dump(mode="json"),
    }
    (context.folder / "launch.json").write_text(json.dumps(shown, indent=2) + "\n")


def _stop(life: _Life, session: Session) -> None:
    """End the session whatever state it is in. That stopping failed neither undoes a measurement nor hides an earlier failure."""
    before = time.monotonic()
    try:
        life.stop_facts = session.stop()
        life.resources = session.resources()
    except Exception as error:
        failures.keep_traceback(life.context.folder, error)
        life.stop_facts = {**life.stop_facts, "error": redact(f"{type(error).__name__}: {error}")}
    finally:
        _sweep(life)
        life.seconds[Phase.STOP.value] = time.monotonic() - before


def _sweep(life: _Life) -> None:
    """End at once whatever still carries the trial's tag, and wait for its port."""
    if not (life.launch and life.launch.argv):
        return
    tag = life.context.tag
    if proc.members(tag):
        process.end(lambda: proc.members(tag), None, 0.0)
    if life.port is not None:
        process.wait_gone(life.port, 2.0)


def _merged(measurement: Measurement, life: _Life, start_s: float) -> Measurement:
    """The workload's table with what was learnt of the engine's whole life."""
    totals = {"start_s": start_s}
    if life.start_facts.get("kv_tokens"):
        totals["kv_cache_tokens"] = float(life.start_facts["kv_tokens"])
    whole = {name: value for name, value in (life.measured or life.resources).items() if name not in _OF_WINDOWS}
    start = {name: value for name, value in life.start_facts.items() if name not in ("seconds", "effective")}
    facts = {**measurement.facts, "start": start, "stop": dict(life.stop_facts)}
    return measurement.model_copy(update={"totals": {**totals, **measurement.totals, **whole}, "facts": facts})


def _checked(measurement: Measurement) -> Measurement:
    """A table without a single valid row is no measurement."""
    reasons = [row.invalid for row in measurement.rows if row.invalid is not None]
    if len(reasons) == len(measurement.rows):
        evidence = tuple(dict.fromkeys(reasons)) or ("The workload returned no rows.",)
        raise TrialFailed(FailureKind.INCOMPLETE, Phase.MEASURE, *evidence, partial=measurement)
    return measurement


def _finished(life: _Life, outcome: Outcome) -> Outcome:
    """A failure with its reason and advice; a measurement as it is."""
    if isinstance(outcome, Measured):
        return outcome
    own = None if life.stop_facts.get("was_running") else life.stop_facts.get("returncode")
    remains = Remains(life.context.folder, own, life.job.attempt, life.oom_kills)
    return failures.explained(outcome, life.engine, remains)
