"""N optimiser steps after W warm-up steps, read step by step while the trainer runs.

Two honest cautions. What moves speed and memory (micro-batches, parallelism, the rollout engine) shows in 10 to 30 steps.
What moves learning (KL, learning rates, batch shape) does not: it needs longer runs over several seeds, judged by reward
after equal steps, equal samples or equal seconds. `cautions` warns where a study mixes the two in one trial length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import ClassVar, Self

from pydantic import Field, model_validator

from autotune.engines.base import Context, Engine
from autotune.errors import Mistake
from autotune.session import Serves, Session, Step, TrainingSession
from autotune.trial import FailureKind, Measurement, Origin, Phase, Scalar, TrialFailed
from autotune.workloads._progress import WINDOW, StopWhen, lost
from autotune.workloads._rivals import RUNGS, Rivals
from autotune.workloads._training_table import METRICS, table
from autotune.workloads.base import Progress, Workload, WorkloadOptions

_POLL_S = 0.1
_SEED_STRIDE = 1000
"""Between the seeds of a repeated trial and those of the next one."""
SHORT_STEPS = 30
"""Up to here a trial shows speed and memory only (the guides' 10 to 30 steps)."""


class TrainingOptions(WorkloadOptions):
    """The `workload:` section. Exactly one of `steps`, `samples` and `train_seconds` says how long a run is measured."""

    steps: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    """Trained samples: batch shapes are compared after equal data."""
    train_seconds: float | None = Field(default=None, gt=0)
    """Seconds of training: configurations are compared after equal wall-clock."""
    warm_up_steps: int = Field(default=2, ge=0)
    """Dropped: the first steps compile, allocate and fill caches."""
    seeds: tuple[int, ...] = ()
    """One run for each; empty is one run with the trial's own seed. A repeated trial takes others, and its rows keep the names
    given here, so that goals at one of them read every run."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """Wall seconds of one run, start-up aside."""
    stall_s: float = Field(default=300.0, gt=0)
    """Without a new step for so long the trainer counts as hung."""
    stop_when: StopWhen = StopWhen()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if sum(length is not None for length in (self.steps, self.samples, self.train_seconds)) != 1:
            raise ValueError("Give exactly one of 'steps', 'samples' and 'train_seconds'")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("A seed stands twice")
        return self

    def done(self, warm_up: Sequence[Step], steps: Sequence[Step]) -> float:
        """Share of the wanted length that is behind; 1 or more is enough. A run learns from its warm-up's samples too."""
        if not steps:
            return 0.0
        if self.steps is not None:
            return len(steps) / self.steps
        if self.samples is not None:
            return sum(step.samples or 0 for step in (*warm_up, *steps)) / self.samples
        assert self.train_seconds is not None
        return sum(step.metrics["step_s"] for step in steps) / self.train_seconds


class Training(Workload):
    """Measures a training run."""

    kind: ClassVar[str] = "training"
    needs: ClassVar[Serves] = "training"
    Options: ClassVar[type[WorkloadOptions]] = TrainingOptions
    options: TrainingOptions

    def against(self, engine: Engine) -> Iterator[Mistake]:
        horizon, asked = getattr(engine.options, "total_steps", None), self.options.warm_up_steps + (self.options.steps or 0)
        if horizon is not None and horizon < asked:
            yield Mistake(
                "total_steps", f"The training would end before the workload's {asked} steps, warm-up included.", str(horizon)
            )

    def levels(self) -> tuple[Mapping[str, Scalar], ...]:
        first = self.options.warm_up_steps + 1
        return tuple({"step": first + offset} for offset in range(self.options.steps or 0))

    def metrics(self) -> frozenset[str]:
        return METRICS | {"peak_memory_gib", "peak_gpu_memory_gib", "energy_joule", "gpu_utilization", "start_s"}

    def expected_seconds(self) -> float:
        return self.options.deadline_s * max(1, len(self.options.seeds))

    def run(self, session: Session, context: Context, progress: Progress) -> Measurement:
        if not isinstance(session, TrainingSession):
            raise TypeError("The training workload needs the session of a training engine.")
        # The same seeds would repeat a run to the digit: a repeat takes others, so that its spread is that of the seeds.
        shift = context.trial * _SEED_STRIDE if context.origin in (Origin.BASELINE, Origin.FINALIST) else 0
        names = self.options.seeds or (context.seed,)
        runs: dict[int, list[Step]] = {}
        rivals, spans = Rivals(context), list[tuple[float, float]]()
        for index, name in enumerate(names):
            seed = (name + shift) % 2**31
            if index or seed != context.seed:
                session.restart(seed)
            watch = _Watch(self.options, session, rivals, progress, (index, len(names)))
            runs[name] = watch.measure()
            spans.append((watch.began, time.monotonic()))
        measurement = table(runs, {**_lasting(session), **_utilization(session, spans)})
        if "sps" in measurement.totals:
            rivals.add("sps", measurement.totals["sps"])
        return measurement

    def cautions(self, roles: Mapping[str, str]) -> tuple[str, ...]:
        options = self.options
        learning = sorted(name for name, role in roles.items() if role == "algorithm")
        speed = sorted(name for name, role in roles.items() if role != "algorithm")
        found = []
        short = options.steps is not None and options.steps <= SHORT_STEPS
        moves = f"The study tunes what moves learning ({', '.join(learning)})"
        if learning and short:
            found.append(
                f"{moves}, and {options.steps} steps show little of it: give more steps and several seeds, and compare reward "
                "after equal samples or seconds."
            )
        if learning and len(options.seeds) < 2:
            found.append(f"{moves}, and one seed cannot tell luck from gain: give two or more seeds.")
        if learning and speed and options.steps is not None:
            found.append(
                f"{moves} together with what moves speed or memory ({', '.join(speed)}): one trial length of {options.steps} steps "
                "is too long for the second or too short for the first; use two studies."
            )
        return tuple(found)


class _Watch:
    """One run, followed until it has its steps, is lost, stalls, ends or dies."""

    def __init__(
        self, options: TrainingOptions, session: TrainingSession, rivals: Rivals, progress: Progress, place: tuple[int, int]
    ) -> None:
        self.options, self.session, self.rivals, self.progress, self.place = options, session, rivals, progress, place
        self.fastest = rivals.fastest()
        self.rungs = list(RUNGS)
        self.warm_up: list[Step] = []
        self.steps: list[Step] = []
        self.began = 0.0
        """Monotonic seconds at which the first measured step began."""

    def measure(self) -> list[Step]:
        began = last = self.began = time.monotonic()
        for step in self.arriving():
            now = time.monotonic()
            if step is not None:
                last = now
                self.take(step)
                if self.options.done(self.warm_up, self.steps) >= 1:
                    return self.steps
            elif now - last > self.options.stall_s:
                raise self.failed(
                    FailureKind.UNHEALTHY, f"No step was finished within {self.options.stall_s:g} s.", "Look for a hang in its log."
                )
            if now - began > self.options.deadline_s:
                raise self.failed(
                    FailureKind.INCOMPLETE,
                    f"The deadline of {self.options.deadline_s:g} s came first.",
                    "Raise workload.deadline_s.",
                )
        raise self.failed(FailureKind.INCOMPLETE, "The training ended by itself.", "Raise engine.total_steps.")

    def arriving(self) -> Iterator[Step | None]:
        """Steps as they come and None while there is none; ends with the run."""
        while True:
            ended = self.session.ended()
            steps = self.session.new_steps()
            yield from steps
            if ended and not steps:
                return
            if not steps:
                self.alive()
                yield None
                time.sleep(_POLL_S)

    def alive(self) -> None:
        try:
            self.session.check_alive()
        except TrialFailed as error:
            failed = error.failed
            raise TrialFailed(failed.kind, failed.phase, *failed.evidence, advice=failed.advice, partial=self.partial()) from error

    def take(self, step: Step) -> None:
        if len(self.warm_up) < self.options.warm_up_steps:
            self.warm_up.append(step)
            self.began = time.monotonic()
        else:
            self.steps.append(step)
        why = lost(self.steps or [step], self.options.stop_when, self.fastest) or self.halved()
        if why is not None:
            # A number that is not finite is the run's own failure; any other run could have gone on.
            kind = FailureKind.INCOMPLETE if step.broken and self.options.stop_when.nan else FailureKind.ENDED_EARLY
            advice = "Nothing: the search avoids its like."
            if "reward" in step.broken:
                advice = "See what the reward function returned; the search avoids this configuration's like."
            raise self.failed(kind, f"Ended early as lost: {why}", advice)
        index, count = self.place
        self.progress(f"step {step.number}", (index + min(1.0, self.options.done(self.warm_up, self.steps))) / count)

    def halved(self) -> str | None:
        """Successive halving at the rungs: tells the rivals where this run stands, and asks whether it may go on."""
        keep = self.options.stop_when.halving
        rewards = [step.metrics["reward"] for step in self.steps if "reward" in step.metrics]
        if keep is None or not self.rungs or not rewards or self.options.done(self.warm_up, self.steps) < self.rungs[0]:
            return None
        share, reward = self.rungs.pop(0), fmean(rewards[-WINDOW:])
        rung = f"{share:g} of run {self.place[0]}"
        why = self.rivals.beaten(rung, reward, keep)
        self.rivals.add(f"reward at {rung}", reward)
        return None if why is None else f"after {share:.0%} of its length {why}"

    def partial(self) -> Measurement | None:
        return table({0: self.steps}, {}) if self.steps else None

    def failed(self, kind: FailureKind, why: str, advice: str) -> TrialFailed:
        made = f"{len(self.steps)} steps were measured after {len(self.warm_up)} of warm-up."
        phase = Phase.MEASURE if self.steps else Phase.WARM_UP
        return TrialFailed(kind, phase, f"{why} {made}", advice=advice, partial=self.partial())


def _lasting(session: Session) -> dict[str, float]:
    """What a run used in all, without the share of time that its GPUs were busy: its start would dilute that."""
    return {name: value for name, value in session.resources().items() if name != "gpu_utilization"}


def _utilization(session: Session, spans: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How busy the GPUs were while steps were measured, start-up and warm-up aside, where the session knows."""
    known = [(stop - begin, used) for begin, stop in spans if (used := session.resources_between(begin, stop)) and stop > begin]
    seen = [(seconds, used["gpu_utilization"]) for seconds, used in known if "gpu_utilization" in used]
    whole = sum(seconds for seconds, _ in seen)
    return {"gpu_utilization": sum(seconds * share for seconds, share in seen) / whole} if seen else {}


workload = Training
