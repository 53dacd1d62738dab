"""The values that travel: Configuration, Measurement, Outcome, TrialRecord.

All are frozen pydantic models, so `model_dump_json` and `model_validate_json` encode and decode them without loss.
Nothing here imports anything else of autotune.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Scalar = bool | int | float | str | None
Value = Any
"""A JSON value: a scalar for most flags, a list or mapping for flags that take JSON."""


class Frozen(BaseModel):
    """Base of every value: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Phase(StrEnum):
    """Where in its life a trial is."""

    CHECK = "check"
    START = "start"
    WARM_UP = "warm-up"
    MEASURE = "measure"
    QUALITY = "quality"
    """Asked the fixed prompts, after its load was measured."""
    STOP = "stop"
    SCORE = "score"


class FailureKind(StrEnum):
    """Why a trial has no score."""

    REJECTED = "rejected"
    """Cut before launch by a rule, a model limit or the memory bound."""
    INVALID_CONFIG = "invalid-config"
    """The engine itself refused the flags."""
    OUT_OF_MEMORY = "out-of-memory"
    START_TIMEOUT = "start-timeout"
    CRASHED = "crashed"
    UNHEALTHY = "unhealthy"
    """Alive but not serving: hung, or wrong answers."""
    INCOMPLETE = "incomplete"
    """Measured only in part: too few requests or steps, wrong token counts, or the client was the bottleneck."""
    ENDED_EARLY = "ended-early"
    """Cut short by autotune while it ran well, because it could not reach the front or fell behind its rivals."""
    MACHINE_FAULT = "machine-fault"
    """Not the configuration's fault; retried once and never told to the sampler as a result."""
    INTERRUPTED = "interrupted"
    """The user or a signal ended it; re-queued on resume."""

    @property
    def deterministic(self) -> bool:
        """Whether the same configuration would fail the same way again, so that the sampler should learn from it."""
        return self not in (FailureKind.MACHINE_FAULT, FailureKind.INTERRUPTED)


class Configuration(Frozen):
    """One point of the space: the engine and the parameters that differ from its defaults.

    `values` are keyed by the engine's own parameter names; environment variables are keyed `env.NAME`.
    An empty mapping is the engine's default configuration.
    """

    engine: str
    values: Mapping[str, Value] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve hex digits that identify the configuration, whatever the order of its values."""
        return digest_of({"engine": self.engine, "values": dict(self.values)})

    def __hash__(self) -> int:
        return hash(self.digest)


def digest_of(value: Any) -> str:
    """Twelve hex digits over the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


CLIENT_LATE = "The client was the bottleneck"
"""How a row says that it is invalid by no fault of the configuration."""


class Row(Frozen):
    """One load level or one training step of a measurement.

    `level` names it (`{"request_rate": 10}`, `{"concurrency": 64}`, `{"step": 3}`). A metric that was not measured is
    absent from `metrics`. An invalid row says why, and is never scored. An `unsteady` row says why its numbers depend on
    when and how long was measured; it is scored, and whatever shows its numbers says so.
    """

    level: Mapping[str, Scalar]
    metrics: Mapping[str, FiniteFloat]
    invalid: str | None = None
    unsteady: str | None = None


class Measurement(Frozen):
    """The table a workload returns, and `totals`: metrics of the whole trial such as peak memory or energy.

    `facts` is evidence that is not a metric: window lengths, client lag, clocks, the server's own counters; `missing` among them
    tells of a metric why there is no number, `unsteady` of one of the totals in which unsteady row it stood.
    """

    rows: tuple[Row, ...]
    totals: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    facts: Mapping[str, Value] = Field(default_factory=dict)


class Measured(Frozen):
    """A complete, valid measurement."""

    status: Literal["measured"] = "measured"
    measurement: Measurement


class Failed(Frozen):
    """No score, and why: `evidence` holds the engine's own decisive log lines, `advice` what a user can do.

    `partial` keeps what was measured before the failure as evidence only; it is never scored.
    """

    status: Literal["failed"] = "failed"
    kind: FailureKind
    phase: Phase
    evidence: tuple[str, ...] = ()
    advice: str = ""
    partial: Measurement | None = None


Outcome = Annotated[Measured | Failed, Field(discriminator="status")]


class Origin(StrEnum):
    """Why a trial was run."""

    DEFAULT = "default"
    WARM_START = "warm-start"
    USER = "user"
    SEARCH = "search"
    AUDIT = "audit"
    FINALIST = "finalist"
    BASELINE = "baseline"
    """The default measured again: the drift gauge, and the finalists' partner."""


class TrialJob(Frozen):
    """One attempt at a trial, as handed to an executor. `seed` makes the attempt's random choices repeatable."""

    number: int
    configuration: Configuration
    origin: Origin = Origin.SEARCH
    point: Mapping[str, Scalar] = Field(default_factory=dict)
    attempt: int = 1
    seed: int = 0
    climb_from: float | None = None
    """Request rate at which a climb to the SLO begins, from what earlier trials sustained; None is the load's own `start`."""

    def ended(self, outcome: Measured | Failed, started_at: float = 0.0) -> TrialRecord:
        """The attempt's record with its outcome and nothing else that is known of it."""
        return TrialRecord(**self.model_dump(exclude={"seed", "climb_from"}), outcome=outcome, started_at=started_at)


class TrialRecord(Frozen):
    """Everything kept about one finished trial; the ledger's unit.

    `seconds` is wall time by phase (`start.imports`, `measure`, `stop`, ...). `effective` is what the engine confirmed
    that it runs. `point` is the sampler's own encoding, kept so that a resumed search continues exactly.
    """

    number: int
    configuration: Configuration
    origin: Origin
    outcome: Outcome
    point: Mapping[str, Scalar] = Field(default_factory=dict)
    effective: Mapping[str, Value] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = Field(default_factory=dict)
    seconds: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    attempt: int = 1
    gpus: tuple[int, ...] = ()
    started_at: float = 0.0
    """Unix seconds."""
    reused_from: str | None = None
    """`study/trial` when the result was taken from the trial cache instead of run."""
    folder: str | None = None

    @property
    def measurement(self) -> Measurement | None:
        """The complete measurement, or None for a failed trial."""
        return self.outcome.measurement if isinstance(self.outcome, Measured) else None

    @property
    def gpu_minutes(self) -> float:
        """Minutes of every phase times GPUs held, one where there is none; a reused trial cost nothing."""
        if self.reused_from is not None:
            return 0.0
        return (self.total_seconds or 0.0) * max(1, len(self.gpus)) / 60

    @property
    def total_seconds(self) -> float | None:
        """Wall seconds of the trial; None when none were kept."""
        whole = [seconds for phase, seconds in self.seconds.items() if "." not in phase]
        return sum(whole) if whole else None

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase without overlap: a phase that was split (`start.imports`) by its parts and what they leave."""
        flat: dict[str, float] = {}
        for phase, seconds in self.seconds.items():
            if "." in phase:
                continue
            parts = {name: part for name, part in self.seconds.items() if name.startswith(f"{phase}.")}
            rest = seconds - sum(parts.values())
            # Parts that overlap one another exceed the whole, and say nothing about how it divides.
            flat |= {phase: seconds} if not parts or rest < -0.01 * seconds else {**parts, f"{phase}, rest": max(rest, 0.0)}
        return flat


class TrialFailed(Exception):
    """Raised below `evaluate`, which alone turns it into a `Failed` outcome."""

    def __init__(
        self, kind: FailureKind, phase: Phase, *evidence: str, advice: str = "", partial: Measurement | None = None
    ) -> None:
        self.failed = Failed(kind=kind, phase=phase, evidence=tuple(evidence), advice=advice, partial=partial)
        super().__init__(f"{kind} during {phase}: {' | '.join(evidence)}")
