"""The recorded surfaces that search policies are compared on: what a trial returns, costs, and truly is worth."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autotune import pareto, spaces
from autotune.bar import Bar, decisive_first
from autotune.engines.base import Context
from autotune.engines.recorded import DEFAULT_RECORDING, RecordedEngine, RecordedOptions
from autotune.score import Constraint, Objective, Score, Selector, score
from autotune.search import grid
from autotune.space import EngineSpace, Space
from autotune.trial import Configuration, Failed, Frozen, Measured, Outcome, TrialFailed, digest_of
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

DATA = Path(__file__).parents[1] / "data"
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
    data: str = DEFAULT_RECORDING
    space_file: str = "recorded"
    note: str = ""
    """What has to be known of the surface to read a result."""

    @property
    def space(self) -> Space:
        """All parameters of the recording."""
        file = spaces.load(self.space_file)
        return Space([EngineSpace(engine="recorded", parameters=file.parameters, forbid=file.forbid)])

    @property
    def digest(self) -> str:
        """What the task's truth depends on: its space and, where it is no packaged one, its recording."""
        path = Path(self.data)
        files = [file.read_text() for file in (path, path.with_suffix(".json"))] if path.is_file() else []
        return digest_of([self.space.digest, *files]) if files else self.space.digest

    @property
    def saturated(self) -> dict[str, float]:
        """The closed loop that throughput is measured at."""
        selector = self.objectives[0].selector
        return {str(selector.key): float(str(selector.value))}

    @property
    def engine_options(self) -> dict[str, str]:
        return {"kind": "recorded", "data": self.data}

    @property
    def workload_options(self) -> dict[str, str]:
        return {**self.engine_options, "traffic": self.traffic}

    @property
    def directions(self) -> tuple[pareto.Direction, ...]:
        return tuple(objective.direction for objective in self.objectives)

    def run(
        self,
        configuration: Configuration,
        trial: int,
        seed: int,
        noise: float | None,
        levels: Sequence[dict[str, float]] = (),
        bar: Bar | None = None,
    ) -> Ran:
        """One launch, with the recording's own noise where none is given. With `levels`, only those are measured, and constraints
        at other levels stay unknown; with a `bar`, the launch ends after the level that shows that it cannot be cleared, and
        costs what it took until then."""
        engine = RecordedEngine(RecordedOptions(**self.engine_options, noise=noise))
        workload = RecordedWorkload(RecordedWorkloadOptions(**self.workload_options, load=tuple(levels)))
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
            known = [each for each in self.constraints if not levels or _holds(levels, each.selector)]
            found = score(measurement, self.objectives, known)
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


def own() -> tuple[Task, ...]:
    """A study of ours as a surface: tokens/s of 256 users against GPU memory, under an SLO on what each user waits for a token."""
    memory = Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize")
    limit = Constraint.parse("tpot_ms.p99 <= 35 @ concurrency=256")
    data, space_file = DATA / "h200-chat-8b.jsonl", Path(__file__).parent / "chat-8b.yaml"
    note = (
        "Made by `scripts/recording.py --only 'max_num_seqs >= 64'` from the ledger of studies/h200/chat-8b-vllm.yaml. "
        "The TTFT at 30 requests/s, which the study aimed at too, is no aim here: relaunches of one configuration differ by as "
        "much as configurations do. The study's one launch with 32 sequences, which drowned at 30 requests/s, is left out: with "
        "nothing measured between 32 and 64, nobody knows where drowning begins, and a surface through it fits worse than the mean."
    )
    return (Task("chat-8b", "chat", (_throughput(256), memory), (limit,), str(data), str(space_file), note),)


def space() -> Space:
    """All eight parameters of the packaged recording: 24,576 points."""
    return tasks()[0].space


class Best(Frozen):
    """The best that a surface holds: its hypervolume and its front's points."""

    volume: float
    points: tuple[tuple[float, ...], ...]
    failing_share: float


@functools.cache
def best(task: Task) -> Best:
    """Over every point of the space, kept in a file because it takes a minute."""
    kept = Path(__file__).parent / ".cache" / f"{task.name}-{task.digest}-{task.constraints[0].limit:g}.json"
    if kept.is_file():
        return Best.model_validate_json(kept.read_text())
    whole = task.space
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


def _holds(levels: Sequence[Mapping[str, float]], selector: Selector) -> bool:
    return any(level.get(str(selector.key)) == selector.value for level in levels)


def _throughput(concurrency: int) -> Objective:
    return Objective(selector=Selector.parse(f"output_tokens_per_s @ concurrency={concurrency}"), direction="maximize")
