"""The contract of a launched engine, as a workload works on it: it serves or trains until it is stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import FiniteFloat

from autotune.answers import Answer
from autotune.trial import FailureKind, Frozen, Phase, TrialFailed, Value

Serves = Literal["http", "training", "recorded"]
"""What a session offers a workload: an HTTP endpoint, a training run's metrics, or recorded measurements."""


class Session(ABC):
    """A launched engine. A context manager: leaving it stops the engine whatever happened."""

    endpoint: str | None = None
    """Base URL for a serving engine."""
    model: str = ""
    """The model name the endpoint answers to, or the model's path."""
    model_folder: Path | None = None
    """The model's files where they are local; a workload reads the vocabulary and the tokenizer there."""

    @abstractmethod
    def wait_ready(self) -> Mapping[str, Value]:
        """Block until the engine serves or trains. Returns start-up facts: `seconds` by phase, `kv_tokens`,
        `compile_cache` (`cold`/`warm`), `effective` (the confirmed values), `version`.

        Raises TrialFailed (start-timeout, crashed, invalid-config, out-of-memory, unhealthy, ...).
        """

    @abstractmethod
    def check_alive(self) -> None:
        """Raise TrialFailed when the engine is dead or not the one answering; cheap enough to call every second."""

    @abstractmethod
    def stop(self) -> Mapping[str, Value]:
        """End every process of the trial and prove it. Idempotent. Returns facts: `seconds`, `returncode`, `killed`, and
        `was_running` where the engine had not ended by itself, so that its status says nothing of it."""

    def reset_caches(self) -> bool:
        """Drop prefix caches between load levels. Returns whether the engine did; False when it has no such thing."""
        return False

    def resources(self) -> Mapping[str, float]:
        """Metrics of the whole life so far: `peak_gpu_memory_gib` or `peak_memory_gib`, `energy_joule`, ... when measured."""
        return {}

    def resources_between(self, begin: float, end: float) -> Mapping[str, float]:
        """`energy_joule` and `gpu_utilization` of one load level, given by two moments of the monotonic clock, when measured."""
        return {}

    def answers(self, prompts: Sequence[str]) -> tuple[Answer, ...]:
        """What the engine gives the tokens of each prompt and of its greedy answer, one prompt after the other.

        Raises TrialFailed when it cannot answer; what was measured before stands all the same.
        """
        raise TrialFailed(FailureKind.UNHEALTHY, Phase.QUALITY, "This engine gives no log-probabilities.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class Step(Frozen):
    """One finished optimiser step, by autotune's metric names; what the trainer did not report is absent."""

    number: int
    """1-based, as the trainer counts."""
    metrics: Mapping[str, FiniteFloat]
    """Holds `step_s`, the step's wall seconds, always."""
    samples: int | None = None
    """Samples trained on in this step, over all processes."""
    fresh_samples: int | None = None
    """Samples newly generated for this step: 0 when it only reused earlier ones, None for a trainer that generates nothing."""
    tokens: int | None = None
    """Prompt and answer tokens trained on."""
    broken: tuple[str, ...] = ()
    """Metrics that the trainer reported as not finite."""


class TrainingSession(Session):
    """A running training run, whose steps can be read while it runs."""

    @abstractmethod
    def new_steps(self) -> tuple[Step, ...]:
        """Steps finished since the last call, in order; empty when there are none. Never blocks."""

    @abstractmethod
    def ended(self) -> bool:
        """Whether the run has ended by itself, with success; steps may remain to be read."""

    @abstractmethod
    def restart(self, seed: int) -> None:
        """End the current run and begin the same one with another seed; returns when it trains. Raises TrialFailed."""
