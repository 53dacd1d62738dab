"""The ladder of what is rejected before a launch, cheapest and most certain first.

forbid rules of the space       certain
limits of the model and machine certain
out-of-memory of another trial  likely: it needed no more in any parameter, and died
the memory bound                likely: calibrated by every KV cache that this study's trials reported
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.feasibility.cut import Cut
from autotune.feasibility.dominance import Dominance
from autotune.feasibility.limits import broken
from autotune.feasibility.memory import MemoryModel
from autotune.models import ModelFacts
from autotune.space import Space
from autotune.trial import Configuration, Failed, FailureKind, TrialRecord, Value


@dataclass(frozen=True)
class Known:
    """What is known of one engine before its first trial.

    `resolved` holds its default configuration's values, fixed parameters among them. `gpus` is how many GPUs the machine
    has for it, None where it needs none.
    """

    resolved: Mapping[str, Value] = field(default_factory=dict)
    model: ModelFacts | None = None
    memory: MemoryModel | None = None
    gpus: int | None = None


class Ladder:
    """Answers whether a configuration may be launched, and learns from every trial."""

    def __init__(self, space: Space, known: Mapping[str, Known]) -> None:
        self.space = space
        self.known = {kind: known.get(kind, Known()) for kind in space.engines}
        self.memory = {kind: one.memory for kind, one in self.known.items()}
        self._dominance = {kind: Dominance(engine) for kind, engine in space.engines.items()}

    def feasible(self, configuration: Configuration) -> Cut | None:
        """Why a configuration is not to be launched; None when it may be."""
        kind, values = configuration.engine, self._values(configuration)
        rule = self.space.forbidden(configuration, self.known[kind].resolved)
        if rule is not None:
            return Cut(rule="forbidden", reason=str(rule), certainty="certain", configuration=configuration)
        limit = next(broken(values, self.known[kind].model, self.known[kind].gpus), None)
        if limit is not None:
            return Cut(rule="model", reason=limit, certainty="certain", configuration=configuration)
        trial = self._dominance[kind].by(values)
        if trial is not None:
            reason = f"Trial {trial} ran out of memory and needed no more than this in any parameter."
            return Cut(rule="dominance", reason=reason, certainty="likely", configuration=configuration)
        memory = self.memory[kind]
        small = memory.too_small(values) if memory else None
        return Cut(rule="memory", reason=small, certainty="likely", configuration=configuration) if small else None

    def learn(self, record: TrialRecord) -> None:
        """Take up what a finished trial says about memory. Reused trials count: they ran on equal hardware."""
        kind, values = record.configuration.engine, self._values(record.configuration)
        if kind not in self.memory:
            return
        outcome = record.outcome
        if isinstance(outcome, Failed) and outcome.kind is FailureKind.OUT_OF_MEMORY:
            self._dominance[kind].failed(record.number, values)
        seen = record.measurement
        if seen is not None:
            self._dominance[kind].measured(values)
        elif isinstance(outcome, Failed) and outcome.kind is FailureKind.ENDED_EARLY:
            seen = outcome.partial
        memory, tokens = self.memory[kind], seen.totals.get("kv_cache_tokens") if seen else None
        if memory is not None and tokens:
            self.memory[kind] = memory.calibrated({**values, **record.effective}, tokens)

    def _values(self, configuration: Configuration) -> dict[str, Value]:
        known = self.known.get(configuration.engine, Known())
        return {**known.resolved, **configuration.values}
