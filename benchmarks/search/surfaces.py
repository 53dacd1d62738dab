"""The recorded surfaces that search policies are compared on: what a trial returns, costs, and truly is worth."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autotune import pareto, spaces
from autotune.bar import Bar, decisive_first
from autotune.engines.base import Context
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.score import Constraint, Objective, Score, Selector, score
from autotune.search import grid
from autotune.space import EngineSpace, Space
from autotune.trial import Configuration, Failed, Frozen, Measured, Outcome, TrialFailed
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

_NOWHERE = Path("/nonexistent")


class Ran(NamedTuple):
    """One simulated trial: its outcome, its score when it has one, and the simulated seconds it cost."""

    outcome: Outcome
    score: Score | None
    seconds: float


@dataclass(frozen=True)
class Task:
    """A surface with aims. `load` restricts what each launch measures; None is every recorded level."""

    name: str
    traffic: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]

    @property
    def directions(self) -> tuple[pareto.Direction, ...]:
        return tuple(objective.direction for objective in self.objectives)

    def run(
        self,
        configuration: Configuration,
        trial: int,
        seed: int,
        noise: float,
        levels: Sequence[dict[str, float]] = (),
        bar: Bar | None = None,
    ) -> Ran:
        """One launch. With `levels`, only those are measured, and constraints at other levels stay unknown; with a `bar`, the
        launch ends after the level that shows that it cannot be cleared, and costs what it took until then."""
        engine = RecordedEngine(RecordedOptions(kind="recorded", noise=noise))
        workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded", traffic=self.traffic, load=tuple(levels)))
        if bar is not None:
            workload.arrange(lambda levels: decisive_first(levels, self.objectives, self.constraints))
        where = {"folder": _NOWHERE, "scratch": _NOWHERE, "cache": _NOWHERE}
        context = Context(study="b", trial=trial, tag="b", seed=seed, bar=bar, **where)
        session = engine.open(engine.launch(configuration, context), context)
        found: Score | None = None
        outcome: Outcome
        try:
            with session:
                session.wait_ready()
                measurement = workload.run(session, context, lambda label, share: None)
            outcome = Measured(measurement=measurement)
            found = score(measurement, self.objectives, () if levels else self.constraints)
        except TrialFailed as error:
            outcome = error.failed
        return Ran(outcome, found, sum(session.stop()["seconds"].values()))

    def truth(self, configuration: Configuration) -> Score | None:
        """The noise-free score; None for a configuration that cannot start or breaks a validity rule."""
        return _truth(self, configuration)

    def volume(self, points: Sequence[Sequence[float]]) -> float:
        """Hypervolume over no throughput and the whole card."""
        reference = pareto.Reference((0.0, 139.8))
        return pareto.hypervolume(points, self.directions, reference)


def tasks() -> tuple[Task, ...]:
    """Chat and shared-prefix traffic: tokens/s at saturation against GPU memory, under an SLO at a moderate rate."""
    memory = Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize")
    return (
        Task("chat", "chat", (_throughput(512), memory), (Constraint.parse("ttft_ms.p99 <= 150 @ request_rate=30"),)),
        Task("prefix", "prefix", (_throughput(256), memory), (Constraint.parse("ttft_ms.p99 <= 200 @ request_rate=40"),)),
    )


def space() -> Space:
    """All eight recorded parameters: 24,576 points."""
    file = spaces.load("recorded")
    return Space([EngineSpace(engine="recorded", parameters=file.parameters, forbid=file.forbid)])


class Best(Frozen):
    """The best that a surface holds: its hypervolume and its front's points."""

    volume: float
    points: tuple[tuple[float, ...], ...]
    failing_share: float


@functools.cache
def best(task: Task) -> Best:
    """Over every point of the space, kept in a file because it takes a minute."""
    kept = Path(__file__).parent / ".cache" / f"{task.name}-{space().digest}-{task.constraints[0].limit:g}.json"
    if kept.is_file():
        return Best.model_validate_json(kept.read_text())
    whole = space()
    scores = [task.truth(whole.decode(point)) for point in grid.points(whole)]
    points = sorted({found.values for found in scores if found is not None and found.feasible})
    front = tuple(points[index] for index in pareto.front(points, task.directions))
    failing = sum(found is None for found in scores) / len(scores)
    result = Best(volume=task.volume(front), points=front, failing_share=failing)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(result.model_dump(mode="json")))
    return result


@functools.lru_cache(maxsize=100_000)
def _truth(task: Task, configuration: Configuration) -> Score | None:
    ran = task.run(configuration, 0, 0, noise=0.0)
    return None if isinstance(ran.outcome, Failed) else ran.score


def _throughput(concurrency: int) -> Objective:
    return Objective(selector=Selector.parse(f"output_tokens_per_s @ concurrency={concurrency}"), direction="maximize")
