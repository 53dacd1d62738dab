"""What is wrong with a study that its file, this machine's files and the registries alone can tell; no engine is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from autotune import answers, executors, exporters, workloads
from autotune.engines.base import Engine
from autotune.errors import AutotuneError, InvalidInput, MissingPrerequisite, Mistake, WrongValue, nearest
from autotune.metrics import families
from autotune.score import Selector
from autotune.search import grid, samplers
from autotune.search.rehearsal import rehearse
from autotune.source import Place, Source
from autotune.space import EngineSpace, Space
from autotune.study import Study
from autotune.trial import Configuration, Value
from autotune.workloads.base import Workload

URI_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
"""What MLflow takes as a tracking server."""
_DRAWS = 300
"""More than the search draws for a trial before it takes the space for exhausted."""


def engine_place(text: Source, index: int) -> Place:
    """Where an engine's section stands: a study with one engine need not make a list of it."""
    return ("engine",) if isinstance(text.data.get("engine"), Mapping) else ("engine", index)


def named(section: Mapping[str, Any], text: Source, place: Place, what: str, kinds: Sequence[str]) -> str:
    """The `kind` of a section. Raises InvalidInput when it is missing or nobody knows it."""
    kind = section.get("kind")
    known = ", ".join(kinds)
    if kind is None:
        raise InvalidInput([text.mistake(place, f"The {what} section needs a 'kind'.", allowed=known)])
    if kind not in kinds:
        close = nearest(str(kind), kinds)
        raise InvalidInput([text.mistake((*place, "kind"), f"There is no {what} {kind!r}.", allowed=known, nearest=close)])
    return str(kind)


def section(part: Engine | Workload, text: Source, place: Place) -> Iterator[Mistake]:
    """What an engine or a workload itself finds wrong with its options."""
    for mistake in part.check():
        yield text.placed(mistake, (*place, *filter(None, mistake.path.split("."))))


def suited(workload: type[Workload], engines: Mapping[str, Engine], text: Source) -> Iterator[Mistake]:
    """Whether a workload can work on the engines."""
    for kind, engine in engines.items():
        if engine.serves != workload.needs:
            fitting = [name for name in workloads.kinds() if workloads.get(name).needs == engine.serves]
            problem = f"The engine {kind!r} cannot be measured by the workload {workload.kind!r}."
            yield text.mistake(("workload", "kind"), problem, allowed=", ".join(fitting))


def lengths(study: Study, text: Source, workload: Workload, engines: Mapping[str, Engine]) -> Iterator[Mistake]:
    """What the workload's options show to be wrong with an engine's."""
    for index, part in enumerate(study.engine):
        if (engine := engines.get(str(part.get("kind")))) is not None:
            for mistake in workload.against(engine):
                yield text.placed(mistake, (*engine_place(text, index), *mistake.path.split(".")))


_OF_THE_TRIAL = frozenset({"start_s", "kv_cache_tokens", "peak_memory_gib", "peak_gpu_memory_gib", "energy_joule"})
"""Totals that every trial gets beside its workload's: measured over the engine's whole life."""


def goals(study: Study, text: Source, workload: Workload) -> Iterator[Mistake]:
    """Whether the workload measures what the study wants."""
    for index, objective in enumerate(study.objectives):
        yield from _selector(objective.selector, text, ("objectives", index), workload)
    for index, constraint in enumerate(study.constraints):
        yield from _selector(constraint.selector, text, ("constraints", index), workload)


def _selector(selector: Selector, text: Source, place: Place, workload: Workload) -> Iterator[Mistake]:
    known = workload.metrics() | _OF_THE_TRIAL if workload.metrics() else frozenset()
    if known and selector.metric not in known:
        base = selector.metric.partition(".")[0]
        close = nearest(selector.metric, [name for name in known if name.startswith(f"{base}.")])
        shown, remedy = ", ".join(sorted(families(known))), workload.remedy(selector.metric)
        problem = f"The workload {workload.kind!r} as set up here does not measure {selector.metric!r}"
        problem += f": that needs {remedy}." if remedy else "."
        yield text.mistake(place, problem, allowed=None if remedy else shown, nearest=close)
        return
    levels = workload.levels()
    if selector.key is not None and levels and not any(level.get(selector.key) == selector.value for level in levels):
        names = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for one in levels for key, value in one.items()
        ]
        asked = f"{selector.key}={selector.value}"
        close = nearest(asked, names)
        yield text.mistake(place, f"The workload has no load level {asked}.", allowed=", ".join(names), nearest=close)


def exports(study: Study, text: Source, engines: Mapping[str, Engine]) -> Iterator[Mistake]:
    """Whether each exporter exists and renders one of the engines."""
    for index, name in enumerate(study.export):
        place = ("export", index)
        try:
            if name not in exporters.names():
                named({"kind": name}, text, place, "exporter", exporters.names())
            supported = exporters.get(name).engines
        except InvalidInput as error:
            yield from (text.mistake(place, m.problem, allowed=m.allowed, nearest=m.nearest) for m in error.mistakes)
        except AutotuneError as error:
            yield text.mistake(place, str(error))
        else:
            if engines and not set(engines) & set(supported):
                yield text.mistake(place, f"The exporter {name!r} renders {', '.join(supported)}, not {', '.join(engines)}.")
            if name in study.export[:index]:
                yield text.mistake(place, f"The exporter {name!r} stands twice in this list.")


def quality(study: Study, text: Source) -> Iterator[Mistake]:
    """Whether the study's own prompts can be asked."""
    try:
        answers.prompts(study.quality.prompts)
    except InvalidInput as error:
        yield from (text.placed(mistake, mistake.path.split(".")) for mistake in error.mistakes)


def machinery(study: Study, text: Source) -> Iterator[Mistake]:
    """Sampler, executor and tracking server."""
    kinds = ("auto", *executors.names())
    if study.executor.kind not in kinds:
        close = nearest(study.executor.kind, kinds)
        problem = f"There is no executor {study.executor.kind!r}."
        yield text.mistake(("executor", "kind"), problem, allowed=", ".join(kinds), nearest=close)
    if study.executor.address is not None and study.executor.kind in ("auto", "inline", "local"):
        yield text.mistake(("executor", "address"), "Trials on this machine need no address; the executor 'ray' takes one.")
    try:
        samplers.check(study.search.sampler, study.search.options)
    except InvalidInput as error:
        yield from (text.placed(mistake, mistake.path.split(".")) for mistake in error.mistakes)
    except MissingPrerequisite:
        # Told by the check against what is installed, after everything that is wrong with the file.
        pass
    if study.tracking.uri is not None:
        try:
            _tracking_uri(study.tracking.uri)
        except WrongValue as error:
            yield text.mistake(("tracking", "uri"), error.problem, found=repr(study.tracking.uri), **error.details)


def sampler(study: Study, text: Source, space: Space) -> Iterator[Mistake]:
    """Whether the sampler gives points of this space for these goals. Raises MissingPrerequisite."""
    try:
        rehearse(study, space)
    except InvalidInput as error:
        yield from (text.placed(mistake, mistake.path.split(".")) for mistake in error.mistakes)
    except MissingPrerequisite:
        raise
    except AutotuneError as error:
        yield text.mistake(("search", "options" if study.search.options else "sampler"), str(error))


def _tracking_uri(uri: str) -> None:
    """Raise WrongValue for what MLflow could not open; that it answers is seen only when it is asked."""
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError as error:
        raise WrongValue(f"This is not an address: {error}.") from None
    if "://" not in uri:
        raise WrongValue("A tracking server is named by its address, e.g. http://host:5000 or sqlite:///mlflow.db.")
    if scheme not in URI_SCHEMES:
        known = ", ".join(URI_SCHEMES)
        raise WrongValue(
            f"MLflow knows no address that begins with {scheme!r}.", allowed=known, nearest=nearest(scheme, URI_SCHEMES)
        )
    if scheme in ("http", "https") and not host:
        raise WrongValue("This address names no host.")


def first_trials(study: Study, text: Source, space: Space) -> tuple[list[Configuration], list[Mistake]]:
    """The study's own configurations, and what is wrong with them."""
    found: list[Configuration] = []
    mistakes: list[Mistake] = []
    for index, values in enumerate(study.first_trials):
        try:
            found.append(_first_trial(values, text, ("first_trials", index), space))
        except InvalidInput as error:
            mistakes += error.mistakes
    return found, mistakes


def hopeless(first: Sequence[Configuration], text: Source, space: Space) -> Iterator[Mistake]:
    """First trials that cannot win, as they leave a parameter at a default that the study forbids."""
    for index, one in enumerate(first):
        rules = space.engines[one.engine].own_rules()
        rule = rules.forbid(one)
        if rule is not None:
            left = {name: rules.known[name] for name in sorted(rule.expression.names & rules.known.keys() - one.values.keys())}
            values = ", ".join(f"{name} at {value!r}" for name, value in left.items())
            problem = f"This configuration leaves {values}, which is forbidden ({rule.rule}): {rule.reason}"
            yield text.mistake(("first_trials", index), problem)


def stages(study: Study, text: Source, space: Space) -> Iterator[Mistake]:
    """Whether the groups of a staged search hold parameters that the search chooses, each once, and are read at all."""
    if study.search.stages and study.search.strategy != "staged":
        yield text.mistake(("search", "stages"), "Stages are for 'strategy: staged'; a joint search has none.")
    chosen = [name for engine in space.engines.values() for name, _ in engine.sampled()]
    seen: set[str] = set()
    for index, group in enumerate(study.search.stages):
        for position, name in enumerate(group):
            place = ("search", "stages", index, position)
            if name not in chosen:
                problem = f"{name!r} is not a parameter that this study's search chooses."
                yield text.mistake(place, problem, nearest=nearest(name, chosen))
            elif name in seen:
                yield text.mistake(place, f"{name!r} stands in the stages twice.")
            seen.add(name)


def possible(study: Study, text: Source, space: Space, resolved: Mapping[str, Mapping[str, Value]]) -> Iterator[Mistake]:
    """Whether the rules leave anything to search; a grid is walked point by point, and finds what is left by itself."""
    random = np.random.default_rng(study.search.seed)
    drawn = (space.decode(grid.draw(space, random)) for _ in range(_DRAWS))
    broken = [space.forbidden(one, resolved.get(one.engine)) for one in drawn] if study.search.sampler != "grid" else [None]
    rules = [rule.rule for rule in broken if rule is not None]
    if len(rules) == len(broken):
        most = max(rules, key=rules.count)
        place = ("search_space", "forbid") if study.search_space.forbid else ("search_space",)
        yield text.mistake(place, f"The rules forbid all of {_DRAWS} random configurations, most of them by {most!r}.")


def _first_trial(values: Mapping[str, Any], text: Source, place: Place, space: Space) -> Configuration:
    given = dict(values)
    kind = str(given.pop("engine", next(iter(space.engines))))
    if kind not in space.engines:
        known = ", ".join(space.engines)
        close = nearest(kind, space.engines)
        raise InvalidInput([text.mistake((*place, "engine"), f"The study has no engine {kind!r}.", allowed=known, nearest=close)])
    if not given:
        raise InvalidInput([text.mistake(place, "This is the engine's default configuration, which every study runs first.")])
    here = space.engines[kind]
    configuration = Configuration(engine=kind, values=here.complete(_own_words(given, text, place, here)))
    rule = space.forbidden(configuration)
    if rule is not None:
        raise InvalidInput([text.mistake(place, f"This configuration is forbidden ({rule.rule}): {rule.reason}")])
    return configuration


def _own_words(given: Mapping[str, Any], text: Source, place: Place, here: EngineSpace) -> dict[str, Value]:
    """What a first trial sets by the engine's own names, whichever the study used. Raises InvalidInput."""
    found: dict[str, Value] = {}
    mistakes: list[Mistake] = []
    for name, value in given.items():
        try:
            own, meant = here.translated(name, value)
        except WrongValue as error:
            mistakes.append(text.mistake((*place, name), error.problem, **error.details))
            continue
        if own not in here.names():
            mistakes.append(_unknown(name, text, (*place, name), here))
        elif own in found:
            mistakes.append(text.mistake((*place, name), f"{own!r} is set twice here, by its own name and the engine-neutral one."))
        found[own] = meant
    if mistakes:
        raise InvalidInput(mistakes)
    return found


def _unknown(name: str, text: Source, place: Place, here: EngineSpace) -> Mistake:
    """Why a first trial cannot set a name."""
    if name in here.replaced:
        return text.mistake(place, f"{name!r}: {here.replaced[name]}")
    if name in here.fixed:
        return text.mistake(place, f"{name!r} is fixed by the engine section for every trial.")
    close = nearest(name, sorted(here.names() | here.neutral().keys()))
    return text.mistake(place, f"{name!r} is not a parameter of this study's search space.", nearest=close)
