"""study.yaml → frozen models. Nothing runs here; engine and workload sections stay raw until their own room validates them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from autotune import source, validation
from autotune.errors import WrongValue, nearest
from autotune.score import Constraint, Objective, Selector
from autotune.source import Source
from autotune.trial import Frozen, Value, digest_of

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


def _objective(value: Any) -> Any:
    if isinstance(value, Objective):
        return value
    known = ("maximize", "minimize")
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError("An objective is one of 'maximize: METRIC' or 'minimize: METRIC'")
    direction, text = next(iter(value.items()))
    if direction not in known:
        raise WrongValue(
            f"{direction!r} is not a direction.", direction, allowed=", ".join(known), nearest=nearest(direction, known)
        )
    if not isinstance(text, str):
        raise WrongValue(f"The metric to {direction} must be a name.", direction)
    return Objective(selector=Selector.parse(text), direction=direction)


def _constraint(value: Any) -> Any:
    if isinstance(value, Constraint):
        return value
    if not isinstance(value, str):
        raise ValueError("A constraint is a text such as 'ttft_ms.p99 <= 500'")
    return Constraint.parse(value)


class Budget(Frozen):
    """What a study may spend; it stops at whichever comes first."""

    trials: int = Field(default=30, ge=1, le=100_000)
    """Trials of the search, the default configuration included; finalists come on top."""
    gpu_minutes: float | None = Field(default=None, gt=0)
    """GPU-minutes of all trials together, start-up included; on a machine without GPUs, minutes of running trials."""


class Search(Frozen):
    """How configurations are proposed."""

    sampler: str = "auto"
    """`auto`, `tpe`, `gp`, `random`, `grid`, `nsga2`, or `package.module:Class`."""
    strategy: Literal["joint", "staged"] = "joint"
    """`joint` varies everything at once; `staged` one group of parameters after the other, each freezing its winner."""
    stages: tuple[tuple[str, ...], ...] = ()
    """The groups of `staged`, by the engine's parameter names; what they leave out follows one by one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    startup_trials: int = Field(default=10, ge=0)
    """Random configurations before the sampler's model is trusted."""
    options: Mapping[str, Value] = Field(default_factory=dict)
    """Passed to the sampler's constructor."""
    warm_start: bool = True
    """Whether fronts of related studies in the same store are tried first."""
    baseline_every: int = Field(default=10, ge=0)
    """The default is measured again after every so many trials, as the drift gauge; 0 never."""
    early_exit: bool = True
    """Whether a trial is ended between load levels once it cannot reach the front any more, or breaks a constraint, and its climb
    leaves a rate once that has surely broken its SLO."""
    probe_s: float | None = Field(default=None, gt=0)
    """Seconds of a first pass over all load levels of a launch, after which a hopeless trial is ended; None leaves it out.

    It pays where levels are much longer than it and a start is short; on recorded launches of a minute's start it does not.
    """
    plateau: int = Field(default=0, ge=0)
    """Stop after so many trials without 1 % growth of the hypervolume; 0 never."""

    @model_validator(mode="after")
    def _probe_ends_something(self) -> Search:
        if self.probe_s is not None and not self.early_exit:
            raise WrongValue("A probe serves to end trials early, and early_exit is false.", "probe_s")
        return self


class Finalists(Frozen):
    """The front measured again beside the default; `count: 0` switches it off."""

    count: int = Field(default=3, ge=0, le=5)
    repeats: int = Field(default=3, ge=2, le=20)

    @property
    def trials(self) -> int:
        """How many trials the rounds take at most: each measures every finalist and the default once."""
        return (self.count + 1) * self.repeats if self.count else 0


class QualitySpec(Frozen):
    """What a finalist that changes the model's answers must keep to, where the weights are real."""

    max_drift_nats: float = Field(default=0.1, gt=0)
    """Largest mean absolute difference of a token's log-probability from the default's.

    A quantised model whose distributions are K nats of Kullback-Leibler divergence away moves them by about sqrt(2 K). For
    Llama 3 8B against its 16-bit weights llama.cpp publishes 0.0014, 0.0055 and 0.031 at 8, 6 and 4 bits
    (tools/perplexity/README.md), hence 0.05, 0.10 and 0.25: the default lets 8 bits pass and stops 4.
    """
    prompts: Path | None = None
    """JSONL with a `prompt` a line; None takes the two dozen texts that ship."""


class ExecutorSpec(Frozen):
    """Where trials run. `auto` is this machine: in the driver's own process for a recorded engine, else one process a trial."""

    kind: str = "auto"
    parallel: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    address: str | None = None


class TrackingSpec(Frozen):
    """The MLflow server that results are shown in; None is a SQLite file beside the study."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = Field(default="autotune", min_length=1)


class SpaceSection(Frozen):
    """A study's choice from a space file, or parameters of its own.

    `select` names the parameters to tune (engine's names or canonical ones); without it the file's `tuned` set.
    `override` changes a parameter's range; a list stands for values, a plain value fixes it.
    """

    include: str | None = None
    select: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    override: Mapping[str, Any] = Field(default_factory=dict)
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    forbid: tuple[Any, ...] = ()


class SearchSpaceSection(SpaceSection):
    """As SpaceSection for every engine of the study; `engines` adds to it for one engine alone."""

    engines: Mapping[str, SpaceSection] = Field(default_factory=dict)


class Study(Frozen):
    """One tuning job."""

    name: str
    about: str = ""
    engine: tuple[Mapping[str, Any], ...] = Field(min_length=1)
    """One raw section per engine; several make the engine a parameter."""
    workload: Mapping[str, Any]
    search_space: SearchSpaceSection = SearchSpaceSection()
    objectives: tuple[Annotated[Objective, BeforeValidator(_objective)], ...] = Field(min_length=1, max_length=4)
    constraints: tuple[Annotated[Constraint, BeforeValidator(_constraint)], ...] = ()
    budget: Budget = Budget()
    search: Search = Search()
    first_trials: tuple[Mapping[str, Any], ...] = ()
    """Configurations to try right after the default: parameter, by the engine's name or the canonical one, → value, and `engine`
    where there are several."""
    finalists: Finalists = Finalists()
    quality: QualitySpec = QualitySpec()
    executor: ExecutorSpec = ExecutorSpec()
    tracking: TrackingSpec = TrackingSpec()
    reuse: bool = False
    """Whether equal trials of earlier studies in the store are taken over instead of run."""
    export: tuple[str, ...] = ()
    """Exporters that run for the winner at the end."""

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not _NAME.match(value):
            raise ValueError("A study's name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit")
        return value

    @field_validator("engine", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _distinct(self) -> Study:
        for field, names in (
            ("objectives", [objective.name for objective in self.objectives]),
            ("constraints", [constraint.name for constraint in self.constraints]),
            ("engine", [str(section.get("kind")) for section in self.engine]),
        ):
            for index, name in enumerate(names):
                if name in names[:index]:
                    raise WrongValue(f"{name!r} stands twice in this list.", field, index)
        return self

    @model_validator(mode="after")
    def _together(self) -> Study:
        for index, one in enumerate(self.constraints):
            for other in self.constraints[:index]:
                low, high = (one, other) if one.op == ">=" else (other, one)
                if (low.op, high.op) == (">=", "<=") and low.selector == high.selector and low.limit > high.limit:
                    raise WrongValue(f"No trial can keep {one.name!r} and {other.name!r}.", "constraints", index)
        return self

    @property
    def search_trials(self) -> int:
        """How many trials the search takes at most: its budget, and the default again after every so many of it."""
        every = self.search.baseline_every
        return self.budget.trials + ((self.budget.trials - 1) // every if every else 0)

    @property
    def identity(self) -> str:
        """Digest of what a measurement depends on. A study whose identity changed cannot be continued."""
        return digest_of({"engine": [dict(section) for section in self.engine], "workload": dict(self.workload)})


def load(path: Path) -> tuple[Study, Source]:
    """Read and validate a study file. Raises InvalidInput with every mistake found."""
    return validate(source.read(path))


def validate(text: Source) -> tuple[Study, Source]:
    """Validate a parsed study. Raises InvalidInput."""
    return validation.validate(Study, text.data, text), text
