"""Optuna samplers by name, with our defaults, and one proposal out of one.

A sampler is built afresh for every proposal, from a seed that depends on the study's seed and the trial's number alone,
and reads its history from a study in memory. So a proposal depends on nothing but the finished and running trials, and a
resumed search goes on exactly as it would have.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autotune.distributions import Choice, Distribution, IntRange
from autotune.errors import AutotuneError, InvalidInput, MissingPrerequisite, Mistake, nearest
from autotune.score import Direction
from autotune.space import Point, Space
from autotune.trial import Scalar, Value

NAMES = ("auto", "tpe", "gp", "random", "grid", "nsga2")

optuna.logging.set_verbosity(optuna.logging.ERROR)


def check(name: str, options: Mapping[str, Value]) -> None:
    """Raise InvalidInput or MissingPrerequisite when a sampler of that name cannot be built."""
    if name != "grid":
        build(name, 0, options, conditional=False)


def build(name: str, seed: int, options: Mapping[str, Value], conditional: bool) -> BaseSampler:
    """The sampler of a name, or of an import path `package.module:Class`."""
    try:
        with _quiet():
            return _build(name, seed, dict(options), conditional)
    except (TypeError, ValueError) as error:
        problem = f"The sampler {name!r} does not take these options: {error}."
        raise InvalidInput([Mistake("search.options", problem)]) from error


def reads_pruned(sampler: BaseSampler) -> bool:
    """Whether it learns from a trial without values. TPE ranks those by their violations; the others ignore them."""
    return isinstance(sampler, TPESampler | RandomSampler)


class Conversation:
    """Several proposals after one history. Each counts as running, so that the next one keeps away from it."""

    def __init__(self, sampler: BaseSampler, history: Sequence[FrozenTrial], directions: Sequence[Direction], space: Space) -> None:
        self._space = space
        self._name = type(sampler).__name__
        storage = InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(storage=storage, directions=list(directions), sampler=sampler)
        # The study would check every trial again, at every proposal; `told` has done so when it made them.
        study = storage.get_study_id_from_name(self._study.study_name)
        for trial in _with_generations(sampler, history):
            storage.create_new_trial(study, trial)
        self._last: Trial | None = None

    def ask(self) -> Point:
        """The next point. Raises AutotuneError where the sampler cannot give one."""
        try:
            with _quiet():
                self._last = trial = self._study.ask()
                return self._space.suggest(lambda name, distribution: suggest(trial, name, distribution))
        except Exception as error:
            # Whatever a sampler that is not ours, or one with options of the user's, may raise.
            raise AutotuneError(f"The sampler {self._name} cannot search this study: {type(error).__name__}: {error}") from error

    def reject(self, violations: Mapping[str, float]) -> None:
        """Tell that the last point cannot be run."""
        if self._last is not None:
            for name, violation in violations.items():
                self._last.set_constraint(name, violation)
            self._study.tell(self._last, state=TrialState.PRUNED)


class SharedTrial(FrozenTrial):
    """A frozen trial that storages may copy without copying what it holds, which is never changed. Copying the
    distributions of 300 trials took most of the time of a proposal, and reading their constraints a tenth of it."""

    @functools.cached_property
    def constraints(self) -> dict[str, float]:
        """What the sampler was told of each constraint."""
        return super().constraints

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTrial:
        shared = object.__new__(SharedTrial)
        shared.__dict__.update(self.__dict__)
        return shared


def told(
    point: Mapping[str, Scalar],
    distributions: Mapping[str, BaseDistribution],
    state: TrialState,
    values: Sequence[float] | None,
    constraints: Mapping[str, float] | None,
) -> SharedTrial:
    """A trial as the sampler reads it."""
    trial = create_trial(
        state=state,
        values=values,
        params=dict(point),
        distributions=dict(distributions),
        constraints=None if constraints is None else dict(constraints),
    )
    shared = SharedTrial.__new__(SharedTrial)
    shared.__dict__.update(trial.__dict__, constraints=trial.constraints)
    return shared


def to_optuna(distribution: Distribution) -> BaseDistribution:
    """Optuna's form of a distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if isinstance(distribution, IntRange):
        return IntDistribution(distribution.low, distribution.high, distribution.log, distribution.step)
    return FloatDistribution(distribution.low, distribution.high, distribution.log, distribution.step)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Samplers with constraints and multivariate TPE warn that they are experimental at every construction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _build(name: str, seed: int, options: dict[str, Any], conditional: bool) -> BaseSampler:
    if name in ("auto", "tpe"):
        # The driver draws the random start itself, so the model is used as soon as it is asked.
        defaults: dict[str, Any] = {"multivariate": True, "group": conditional, "n_startup_trials": 1}
        return TPESampler(seed=seed, **{**defaults, **options})
    if name == "random":
        return RandomSampler(seed=seed, **options)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, **{"population_size": 20, **options})
    if name == "gp":
        return _gp(seed, options)
    if ":" in name:
        return _imported(name, seed, options)
    known = ", ".join(NAMES)
    problem = f"There is no sampler {name!r}."
    raise InvalidInput([Mistake("search.sampler", problem, allowed=f"{known}, package.module:Class", nearest=nearest(name, NAMES))])


def _gp(seed: int, options: dict[str, Any]) -> BaseSampler:
    for package in ("torch", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingPrerequisite(
                f"The sampler 'gp' needs the package {package!r}, which is not installed: pip install 'autotune[gp]'"
            )
    return optuna.samplers.GPSampler(seed=seed, **{"n_startup_trials": 1, **options})


def _imported(path: str, seed: int, options: dict[str, Any]) -> BaseSampler:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput([Mistake("search.sampler", f"The sampler {path!r} cannot be imported: {error}.")]) from error
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise InvalidInput([Mistake("search.sampler", f"{path!r} is not a subclass of optuna.samplers.BaseSampler.")])
    return found(**{"seed": seed, **options})


def _with_generations(sampler: BaseSampler, history: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """A genetic sampler counts its generations in attributes it writes on trials; a fresh study has to restore them."""
    if not isinstance(sampler, BaseGASampler):
        return history
    size = sampler.population_size or 1
    for index, trial in enumerate(history):
        trial.system_attrs[f"{type(sampler).__name__}:generation"] = index // size
    return history


def suggest(trial: Trial, name: str, distribution: Distribution) -> Scalar:
    """Ask a trial for one parameter."""
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.values)
    if isinstance(distribution, IntRange):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
