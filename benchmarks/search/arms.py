"""Search policies under comparison: ours, Optuna's samplers as they come, and what published tuners do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import optuna
from surfaces import Ran, Task

from autotune.bar import Bar
from autotune.engines._recorded.recording import Recording, load
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.feasibility.ladder import Known, Ladder
from autotune.score import reached
from autotune.search import Driver, First, Proposal, grid, samplers
from autotune.search.prior import Roofline, pick
from autotune.standings import Standings
from autotune.study import Search
from autotune.trial import Configuration, Failed, FailureKind, Origin, TrialRecord, Value
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

Warm = Callable[[Task, int], Sequence[Configuration]]


class Arm(ABC):
    """Proposes configurations for one study and is told what came of them."""

    levels: Sequence[dict[str, float]] = ()
    """What each launch measures; empty for every level."""

    @abstractmethod
    def ask(self) -> Configuration | None:
        """The next configuration; None when the policy is at its end."""

    def bar(self) -> Bar | None:
        """What the launch has to be able to reach, or it is ended early."""
        return None

    @abstractmethod
    def tell(self, configuration: Configuration, ran: Ran) -> None:
        """What came of the configuration asked for last."""


class Ours(Arm):
    """The driver with its ladder, as a study runs it."""

    def __init__(
        self,
        task: Task,
        seed: int,
        prior: bool = True,
        ladder: bool = True,
        warm: Sequence[Configuration] = (),
        sampler: str = "auto",
        options: Mapping[str, Value] | None = None,
        strategy: Literal["joint", "staged"] = "joint",
        early: bool = True,
        probe_s: float | None = None,
        blur: float = 0.0,
    ) -> None:
        engine = RecordedEngine(RecordedOptions(**task.engine_options))
        resolved = engine.preflight([Configuration(engine="recorded")])[0].resolved
        whole = task.space
        memory = engine.memory_model(resolved)
        rungs = Ladder(whole, {"recorded": Known(resolved=resolved, memory=memory if ladder else None)})
        shape = RecordedWorkload(RecordedWorkloadOptions(**task.workload_options)).request_shape()
        self.roofline = Roofline(memory, engine.identity().device, shape, resolved)
        self.driver = Driver(
            whole,
            task.directions,
            [constraint.name for constraint in task.constraints],
            Search(seed=seed, sampler=sampler, strategy=strategy, options=options or {}),
            first=[First(configuration=one, origin=Origin.WARM_START) for one in warm],
            resolved={"recorded": resolved},
            feasible=rungs.feasible,
            learn=rungs.learn,
            prior=(lambda pool, begun: pick(self.predict, task.objectives, pool, begun)) if prior else None,
        )
        self.blur, self.seed = blur, seed
        self.proposal: Proposal | None = None
        self.task, self.early = task, early
        self.standings = Standings(task.objectives, task.constraints, probe_s)

    def predict(self, configuration: Configuration) -> dict[str, float]:
        """The roofline's word, its rates wrong by a factor of each configuration's own where the arm is blurred."""
        found = self.roofline.predict(configuration)
        if not self.blur or not found:
            return found
        random = np.random.default_rng([self.seed, int(configuration.digest, 16)])
        return {**found, "output_tokens_per_s": found["output_tokens_per_s"] * float(np.exp(random.normal(0, self.blur)))}

    def ask(self) -> Configuration | None:
        self.proposal = self.driver.ask()
        return None if self.proposal is None or self.proposal.duplicate_of is not None else self.proposal.configuration

    def bar(self) -> Bar | None:
        assert self.proposal is not None
        return self.standings.bar() if self.early and self.proposal.origin is not Origin.DEFAULT else None

    def tell(self, configuration: Configuration, ran: Ran) -> None:
        assert self.proposal is not None
        fields = self.proposal.model_dump(include={"number", "configuration", "origin", "point"})
        record, told = TrialRecord(**fields, outcome=ran.outcome), ran.score
        self.standings.hear(record, ran.score)
        if isinstance(ran.outcome, Failed) and ran.outcome.kind is FailureKind.ENDED_EARLY:
            assert ran.outcome.partial is not None
            told = reached(ran.outcome.partial, self.task.objectives, self.task.constraints)
        self.driver.tell(record, told)


class Plain(Arm):
    """An Optuna sampler as it comes: no default first, no rules, a crash told as FAIL; constraints are told when measured."""

    def __init__(self, task: Task, sampler: optuna.samplers.BaseSampler, levels: Sequence[dict[str, float]] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.task, self.space, self.levels = task, task.space, levels
        self.study = optuna.create_study(directions=list(task.directions), sampler=sampler)
        self.trial: optuna.trial.Trial | None = None

    def ask(self) -> Configuration:
        self.trial = trial = self.study.ask()
        return self.space.decode(self.space.suggest(lambda name, found: samplers.suggest(trial, name, found)))

    def tell(self, configuration: Configuration, ran: Ran) -> None:
        assert self.trial is not None
        if ran.score is None:
            self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)
            return
        for index, violation in enumerate(ran.score.violations):
            self.trial.set_constraint(f"slo{index}", violation)
        self.study.tell(self.trial, list(ran.score.values))


@dataclass
class Listed(Arm):
    """A fixed list: random points, or a grid."""

    configurations: Iterator[Configuration]
    told: list[Ran] = field(default_factory=list)

    def ask(self) -> Configuration | None:
        return next(self.configurations, None)

    def tell(self, configuration: Configuration, ran: Ran) -> None:
        self.told.append(ran)


def random(task: Task, seed: int) -> Arm:
    """Uniform over the whole space."""
    generator, whole = np.random.default_rng(seed), task.space
    return Listed(iter(lambda: whole.decode(grid.draw(whole, generator)), None))


def auto_tune(task: Task, seed: int) -> Arm:
    """vLLM's auto_tune script: max_num_seqs x max_num_batched_tokens at the default of everything else, in order.

    As far as the recording goes: a value outside it would be refused for a reason that the engine does not have.
    """
    pairs = [(seqs, rows) for seqs in (32, 64, 128, 256, 512, 1024) for rows in (512, 1024, 2048, 4096, 8192, 16384)]
    values = [{"max_num_seqs": seqs, "max_num_batched_tokens": rows} for seqs, rows in pairs]
    ranges = {name: seen(load(task.data), name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    known = [value for value in values if all(low <= value[name] <= high for name, (low, high) in ranges.items())]
    return Listed(Configuration(engine="recorded", values=value) for value in known)


def seen(recording: Recording, parameter: str) -> tuple[int, int]:
    """Smallest and largest value of a parameter that was launched."""
    values = [int(str(value)) for value in recording.seen(parameter)]
    return min(values), max(values)


def arms(slow: bool) -> dict[str, Callable[[Task, int], Arm]]:
    """Every arm by name; `slow` adds the Gaussian process, which takes most of the time."""
    found: dict[str, Callable[[Task, int], Arm]] = {
        "ours": lambda task, seed: Ours(task, seed),
        "ours, every launch to its end": lambda task, seed: Ours(task, seed, early=False),
        "ours, with a probe of 5 s": lambda task, seed: Ours(task, seed, probe_s=5),
        "ours, a prior off by 30 %": lambda task, seed: Ours(task, seed, blur=0.3),
        "ours, no prior": lambda task, seed: Ours(task, seed, prior=False),
        "ours, no prior, every launch to its end": lambda task, seed: Ours(task, seed, prior=False, early=False),
        "ours, no prior, no memory bound": lambda task, seed: Ours(task, seed, prior=False, ladder=False),
        "staged, one parameter after the other": lambda task, seed: Ours(task, seed, prior=False, strategy="staged"),
        "Optuna TPE": lambda task, seed: Plain(task, optuna.samplers.TPESampler(seed=seed)),
        "Optuna NSGA-II": lambda task, seed: Plain(task, optuna.samplers.NSGAIISampler(seed=seed)),
        "Optuna TPE, one load": lambda task, seed: Plain(task, optuna.samplers.TPESampler(seed=seed), [task.saturated]),
        "random": random,
        "grid of two flags": auto_tune,
    }
    if slow:
        found["ours, GP for TPE"] = lambda task, seed: Ours(task, seed, sampler="gp")
        found["ours, GP for TPE, no prior"] = lambda task, seed: Ours(task, seed, sampler="gp", prior=False)
        found["Optuna GP"] = lambda task, seed: Plain(task, optuna.samplers.GPSampler(seed=seed))
    return found
