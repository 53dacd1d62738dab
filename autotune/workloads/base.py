"""The contract of a workload: what is done to a launched engine, and what is measured while doing it.

A new workload is one file in this folder whose module-level name `workload` is the Workload subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

from autotune.bar import SoFar
from autotune.engines.base import Context, Engine
from autotune.errors import Mistake
from autotune.session import Serves, Session
from autotune.trial import FailureKind, Frozen, Measurement, Phase, Scalar, TrialFailed

Progress = Callable[[str, float], None]
"""Called with a short label of what is running now and the share of the workload that is done (0 to 1)."""


class WorkloadOptions(Frozen):
    """The `workload:` section of a study. A workload subclasses this."""

    kind: str


def stop_if_hopeless(context: Context, seen: SoFar, partial: Measurement) -> None:
    """Raise TrialFailed(ended-early) for a trial that cannot reach the front any more; asked while something is left to do."""
    why = context.bar.hopeless(seen) if context.bar is not None else None
    if why is not None:
        raise TrialFailed(FailureKind.ENDED_EARLY, Phase.MEASURE, f"Ended early: {why}", partial=partial)


class RequestShape(Frozen):
    """Mean tokens of one request, how many of its prompt's are shared with others, and how many requests are there at once."""

    input_tokens: float
    output_tokens: float
    shared_tokens: float = 0.0
    concurrency: float = 256.0


class Workload(ABC):
    """Work for a launched engine. Holds no state between runs."""

    kind: ClassVar[str]
    needs: ClassVar[Serves]
    Options: ClassVar[type[WorkloadOptions]] = WorkloadOptions

    def __init__(self, options: WorkloadOptions) -> None:
        self.options = options
        self.prompts: tuple[str, ...] = ()
        """What a trial that is measured again asks its engine once the load is over; empty where answers are not compared."""

    def check(self) -> Iterator[Mistake]:
        """What the options show to be wrong beyond their types, each at the path of an option: a file that is not there or
        cannot be used."""
        yield from ()

    def against(self, engine: Engine) -> Iterator[Mistake]:
        """What is wrong with an engine for this workload's options, each at the path of the engine's option."""
        yield from ()

    @abstractmethod
    def levels(self) -> tuple[Mapping[str, Scalar], ...]:
        """The level keys its rows will carry, as far as known before running (an SLO climb finds its own)."""

    def arrange(self, order: Callable[[Sequence[Mapping[str, Scalar]]], Sequence[int]]) -> None:
        """Run the levels in another order from now on: `order` gives indices into the levels it is shown, where an empty one
        finds its own rates. A workload whose order means something ignores it."""
        return

    @abstractmethod
    def metrics(self) -> frozenset[str]:
        """Names of the metrics its rows and totals can hold, e.g. `ttft_ms.p99`; objectives are checked against them."""

    def remedy(self, metric: str) -> str | None:
        """The options, with an example, that would have it measure a metric that it does not as set up; None where none would."""
        return None

    @abstractmethod
    def run(self, session: Session, context: Context, progress: Progress) -> Measurement:
        """Warm up, measure, return the table. Writes raw data below `context.folder`.

        Raises TrialFailed when the engine dies or nothing valid can be measured; a row that broke a validity rule is
        returned with `invalid` set.
        """

    @abstractmethod
    def expected_seconds(self) -> float:
        """Wall seconds `run` takes, for the plan's GPU-minutes; an upper estimate."""

    def request_shape(self) -> RequestShape | None:
        """The mean request, for predictions before the first trial; None where it is not known."""
        return None

    def requests(self, level: Mapping[str, Scalar]) -> float | None:
        """How many requests one load level's numbers will rest on, on average; None where it is not known before the run."""
        return None

    def cautions(self, roles: Mapping[str, str]) -> tuple[str, ...]:
        """What a study's owner should know before its run; `roles` maps each tuned parameter to what it moves."""
        return ()
