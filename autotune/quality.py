"""Whether a configuration changes what the model answers: its log-probabilities against those of the engine's default.

A smaller type of weights or KV cache can win every objective and still spoil the answers. Each engine of the finalists'
rounds is therefore asked the same fixed prompts, and what it gives each token is compared with what the default's first
run gave it (`answers`). What separates the default's own runs is the noise floor. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

from pydantic import Field

from autotune.answers import Drift, drift, fact, given
from autotune.trial import Configuration, Frozen, Origin, TrialRecord, Value, digest_of

_HARMLESS: tuple[Value, ...] = (None, "auto")
"""Values that leave the choice to the engine, as its default does."""


QUALITY = "quality"
"""The kind of the ledger's note that holds a study's Guard."""


class Watched(Frozen):
    """What is to be watched of one engine of a study."""

    lossy: Mapping[str, Value] = Field(default_factory=dict)
    """Each tuned parameter that can change the answers, with the value that the default runs with where that is known."""
    unchecked: str | None = None
    """Why this engine's answers are not compared; None when they are."""

    def changes(self, configuration: Configuration) -> dict[str, Value]:
        """The values of a configuration that can change the answers."""
        values = configuration.values
        return {
            name: values[name]
            for name, default in self.lossy.items()
            if name in values and values[name] not in (*_HARMLESS, default)
        }


class Guard(Frozen):
    """What is to be watched in a study, by engine; the ledger keeps it as a note."""

    engines: Mapping[str, Watched] = Field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether engines are to be asked at all."""
        return any(one.lossy and one.unchecked is None for one in self.engines.values())


class Check(Frozen):
    """The quality check of all configurations that change the answers in the same way."""

    engine: str
    changes: Mapping[str, Value]
    """The lossy values they share; empty for a configuration in which nothing is known to change answers."""
    trials: tuple[int, ...]
    answer: Literal["passed", "failed", "not checked"]
    limit: float
    nats: float | None = None
    """The largest drift of its runs."""
    agreement: float | None = None
    floor: float | None = None
    """The largest drift between the default's own runs; None where it ran once."""
    why: str = ""
    """Why it was not checked."""

    def __str__(self) -> str:
        what = ", ".join(f"{name}={value}" for name, value in self.changes.items()) or "nothing that is known to change answers"
        numbers = ", ".join(map(str, self.trials[:8])) + (f" and {len(self.trials) - 8} more" if len(self.trials) > 8 else "")
        who = f"{what} (trial {numbers})"
        if self.nats is None or self.answer == "not checked":
            return f"Quality: {who} can change the model's answers and was not checked: {self.why}."
        verdict = "passes the check" if self.answer == "passed" else "fails the check and cannot win"
        floor = "" if self.floor is None else f", the default's own runs differ by {self.floor:.2g}"
        same = "" if self.agreement is None else f"; the likeliest next token is the same in {self.agreement:.1%} of all places"
        distance = f"{self.nats:.2g} nats a token from the default's log-probabilities"
        return f"Quality: {who} {verdict}: {distance} (at most {self.limit:g} allowed{floor}){same}."


class Review:
    """The quality checks of a study's trials, as far as they have been run."""

    def __init__(self, guard: Guard, limit: float, records: Iterable[TrialRecord]) -> None:
        self.guard, self.limit, self.records = guard, limit, tuple(records)

    def changes(self, configuration: Configuration) -> dict[str, Value]:
        """The values of a configuration that can change the model's answers."""
        return self.guard.engines.get(configuration.engine, Watched()).changes(configuration)

    def drift(self, record: TrialRecord) -> Drift | None:
        """A trial's distance from the default's first run; None where either was not asked, and for that run itself."""
        return self._drifts.get((record.number, record.attempt))

    def check(self, configuration: Configuration) -> Check | None:
        """What is known of a configuration's answers; None for the default, and where nothing changes or was asked.

        Batch sizes and schedules do not change what a type of numbers costs, so that configurations with the same lossy
        values share one check.
        """
        return self._checks.get(self._kind(configuration))

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them, in the order of their first trials."""
        return tuple(self._checks.values())

    @cached_property
    def _reference(self) -> TrialRecord | None:
        """The first run of the default that was asked."""
        runs = [record for record in self.records if record.origin in (Origin.DEFAULT, Origin.BASELINE)]
        return next((run for run in runs if run.configuration == runs[0].configuration and given(run)), None)

    @cached_property
    def _drifts(self) -> Mapping[tuple[int, int], Drift]:
        first = self._reference
        found = {
            (record.number, record.attempt): drift(given(record), given(first))
            for record in self.records
            if first is not None and record is not first and given(record)
        }
        return {key: one for key, one in found.items() if one is not None}

    @cached_property
    def _checks(self) -> Mapping[str, Check]:
        default = next((one.configuration for one in self.records if one.origin in (Origin.DEFAULT, Origin.BASELINE)), None)
        groups: dict[str, list[TrialRecord]] = {}
        for record in self.records:
            if record.measurement is not None and record.configuration != default:
                groups.setdefault(self._kind(record.configuration), []).append(record)
        own = [self._drifts[key] for one in self.records if (key := (one.number, one.attempt)) in self._drifts
               and one.configuration == default]  # fmt: skip
        floor = max((one.nats for one in own), default=None)
        checks = {kind: self._checked(runs, floor) for kind, runs in groups.items()}
        return {kind: one for kind, one in checks.items() if one is not None}

    def _checked(self, runs: Sequence[TrialRecord], floor: float | None) -> Check | None:
        engine, changes = runs[0].configuration.engine, self.changes(runs[0].configuration)
        found = [one for run in runs if (one := self.drift(run)) is not None]
        if not changes and not found:
            return None
        known = {
            "engine": engine,
            "changes": changes,
            "trials": tuple(sorted({run.number for run in runs})),
            "limit": self.limit,
            "floor": floor,
        }
        if not found:
            return Check(**known, answer="not checked", why=self._why(runs))
        worst = max(found, key=lambda one: one.nats)
        known |= {"nats": worst.nats, "agreement": None if math.isnan(worst.agreement) else worst.agreement}
        if worst.nats > self.limit and floor is not None and floor > self.limit:
            why = f"the default's own runs differ by {floor:.2g} nats a token, more than the limit of {self.limit:g}"
            return Check(**known, answer="not checked", why=why)
        return Check(**known, answer="passed" if worst.nats <= self.limit else "failed")

    def _why(self, runs: Sequence[TrialRecord]) -> str:
        unchecked = self.guard.engines.get(runs[0].configuration.engine, Watched()).unchecked
        if unchecked is not None:
            return unchecked
        said = [reason for run in runs if (reason := fact(run).get("unchecked"))]
        if said:
            return str(said[0])
        if not any(given(run) for run in runs):
            return "no finalist has these values"
        return "the default was not asked" if self._reference is None else "it reads the prompts as other tokens than the default"

    def _kind(self, configuration: Configuration) -> str:
        """What configurations share that change the answers in the same way; without such a change each is of its own."""
        changes = self.changes(configuration)
        return digest_of([configuration.engine, changes]) if changes else configuration.digest
