"""Optuna samplers by name, with our defaults, and one proposal out of one.

A sampler is built afresh for every proposal, from a seed that depends on the study's seed and the trial's number alone,
and reads its history from a study in memory. So a proposal depends on nothing but the finished and running trials, and a
resumed search goes on exactly as it would have.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial

from autotune.errors import InvalidInput, MissingPrerequisite, Mistake, nearest
from autotune.score import Direction
from autotune.space import Choice, Distribution, IntRange, Point, Space
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _build(name, seed, dict(options), conditional)
    except TypeError as error:
        problem = f"The sampler {name!r} does not take these options: {error}."
        raise InvalidInput([Mistake("search.options", problem)]) from error


def reads_pruned(sampler: BaseSampler) -> bool:
    """Whether it learns from a trial without values. TPE ranks those by their violations; the others ignore them."""
    return isinstance(sampler, TPESampler | RandomSampler)


def propose(sampler: BaseSampler, history: Sequence[FrozenTrial], directions: Sequence[Direction], space: Space) -> Point:
    """The next point after a history of finished and running trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=list(directions), sampler=sampler)
        study.add_trials(_with_generations(sampler, history))
        trial = study.ask()
        return space.suggest(lambda name, distribution: _suggest(trial, name, distribution))


def to_optuna(distribution: Distribution) -> BaseDistribution:
    """Optuna's form of a distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if isinstance(distribution, IntRange):
        return IntDistribution(distribution.low, distribution.high, distribution.log, distribution.step)
    return FloatDistribution(distribution.low, distribution.high, distribution.log, distribution.step)


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


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Scalar:
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.values)
    if isinstance(distribution, IntRange):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
