"""A study made ready to run: engines and workload built, the space resolved, everything checked that needs no launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune import answers, bar, checks, engines, flag_checks, goal_checks, gpu, spaces, study, validation, workloads
from autotune.engines.base import Engine, Identity, Verdict
from autotune.errors import InvalidInput, Mistake
from autotune.quality import Guard, Watched
from autotune.rules import OwnRules
from autotune.search import samplers
from autotune.source import Place, Source
from autotune.space import Space
from autotune.study import Study
from autotune.trial import Configuration, Value
from autotune.workloads.base import Workload


@dataclass(frozen=True)
class Plan:
    """What `autotune check` prints and `autotune run` runs."""

    study: Study
    text: Source
    store: Path
    engines: Mapping[str, Engine]
    workload: Workload
    space: Space
    first: tuple[Configuration, ...] = ()
    """The user's configurations to try right after the defaults."""
    identities: Mapping[str, Identity] = field(default_factory=dict)
    resolved: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Per engine, the values its default configuration runs with, as the engine itself resolved them, and its `device`."""

    @property
    def folder(self) -> Path:
        """Where the study keeps everything."""
        return self.store / self.study.name

    @property
    def cache(self) -> Path:
        """What trials share: compile caches, synthetic models."""
        return cache_of(self.store)

    @property
    def guard(self) -> Guard:
        """What of each engine's space can change the model's answers, and whether the finalists' rounds will look."""
        none = None if self.study.finalists.count else "the study measures no finalists again"
        return Guard(
            engines={
                kind: Watched(lossy=space.lossy(), unchecked=none or self.engines[kind].incomparable())
                for kind, space in self.space.engines.items()
            }
        )

    @property
    def own_rules(self) -> Mapping[str, OwnRules]:
        """What the study's user does not want, by engine."""
        return {kind: space.own_rules() for kind, space in self.space.engines.items()}

    @property
    def executor(self) -> str:
        """The executor that runs the trials; `auto` is resolved."""
        recorded = all(engine.serves == "recorded" for engine in self.engines.values())
        kind = self.study.executor.kind
        return kind if kind != "auto" else "inline" if recorded else "local"

    def defaults(self) -> tuple[Configuration, ...]:
        """Each engine's default configuration, the study's first engine leading."""
        return tuple(Configuration(engine=kind) for kind in self.engines)


def cache_of(store: Path) -> Path:
    """Where a store keeps what its studies share."""
    return (store / ".cache").resolve()


def read(path: Path, store: Path) -> Plan:
    """Everything that can be checked without asking the engine. Raises InvalidInput with every mistake found."""
    parsed, text = study.load(path)
    return assemble(parsed, text, store)


def assemble(parsed: Study, text: Source, store: Path) -> Plan:
    """As `read`, for a study that is already parsed."""
    collected = _Mistakes()
    built = _engines(parsed, text, collected)
    for index, section in enumerate(parsed.engine):
        engine = built.get(str(section.get("kind")))
        if engine is not None:
            collected.extend(checks.section(engine, text, checks.engine_place(text, index)))
    workload = collected.catch(lambda: _workload(parsed.workload, text, built))
    if workload is not None:
        collected.extend(checks.section(workload, text, ("workload",)))
        collected.extend(checks.goals(parsed, text, workload))
        collected.extend(checks.lengths(parsed, text, workload, built))
        if parsed.search.early_exit:
            workload.arrange(lambda levels: bar.decisive_first(levels, parsed.objectives, parsed.constraints))
    collected.extend(checks.exports(parsed, text, built))
    collected.extend(checks.quality(parsed, text))
    collected.extend(checks.machinery(parsed, text))
    space, first = None, list[Configuration]()
    if len(built) == len(parsed.engine):
        fixed = {kind: engine.options.fixed for kind, engine in built.items()}
        space = collected.catch(lambda: spaces.build(parsed, text, fixed))
    if space is not None:
        first, wrong = checks.first_trials(parsed, text, space)
        collected.extend([*wrong, *checks.stages(parsed, text, space)])
    collected.finish()
    assert workload is not None and space is not None
    plan = Plan(parsed, text, store, built, workload, space, tuple(first))
    workload.prompts = answers.prompts(parsed.quality.prompts) if plan.guard.asks else ()
    return plan


def engines_of(parsed: Study, text: Source) -> Mapping[str, Engine]:
    """The study's engines alone, for a study that has run: files it needed then may be gone. Raises InvalidInput."""
    collected = _Mistakes()
    built = _engines(parsed, text, collected)
    collected.finish()
    return built


def confirm(plan: Plan) -> Plan:
    """Check the plan against what is installed. Raises MissingPrerequisite, or InvalidInput with every mistake found."""
    samplers.check(plan.study.search.sampler, plan.study.search.options)
    identities = {kind: engine.identity() for kind, engine in plan.engines.items()}
    collected = _Mistakes()
    resolved: dict[str, Mapping[str, Value]] = {}
    known: dict[str, frozenset[str]] = {}
    for kind, engine in plan.engines.items():
        flags = engine.flags()
        wrong = list(flag_checks.FlagChecks(kind, flags, plan.study, plan.text, plan.space.engines[kind]).mistakes())
        collected.extend(wrong)
        if wrong:
            continue
        asked = [Configuration(engine=kind), *(c for c in plan.first if c.engine == kind)]
        verdicts = engine.preflight(asked)
        resolved[kind] = {"device": identities[kind].device, **verdicts[0].resolved, **engine.options.fixed}
        known[kind] = frozenset(flags) | resolved[kind].keys()
        collected.extend(_refusals(plan, kind, verdicts))
        collected.extend(_too_many_gpus(plan, kind))
    space = plan.space.knowing(resolved)
    if len(known) == len(plan.engines):
        collected.extend(flag_checks.expressions(plan.study, plan.text, plan.space, known))
        named = (*plan.defaults(), *plan.first)
        goals = goal_checks.Goals(plan.study, space, plan.engines, resolved, named)
        collected.extend(goals.mistakes(plan.text))
        collected.extend(checks.sampler(plan.study, plan.text, space))
        # Where the rules leave nothing at all, that they leave none of the first trials either says no more.
        impossible = list(checks.possible(plan.study, plan.text, space, resolved))
        collected.extend(impossible or checks.hopeless(plan.first, plan.text, space))
    collected.finish()
    return replace(plan, space=space, identities=identities, resolved=resolved)


class _Mistakes:
    """Collects what several checks find, so that a user sees all of it at once."""

    def __init__(self) -> None:
        self.found: list[Mistake] = []

    def extend(self, mistakes: Iterable[Mistake]) -> None:
        self.found += mistakes

    def catch(self, check: Callable[[], Any]) -> Any:
        """The check's result, or None after noting its mistakes."""
        try:
            return check()
        except InvalidInput as error:
            self.found += error.mistakes
            return None

    def finish(self) -> None:
        if self.found:
            raise InvalidInput(sorted(dict.fromkeys(self.found), key=lambda mistake: (mistake.line or 0, mistake.path)))


def _engines(parsed: Study, text: Source, collected: _Mistakes) -> dict[str, Engine]:
    """The engines that could be built."""
    built: dict[str, Engine] = {}
    for index, section in enumerate(parsed.engine):
        place = checks.engine_place(text, index)
        engine = collected.catch(lambda s=section, p=place: _engine(s, text, p))  # type: ignore[misc]
        if engine is not None:
            built[engine.options.kind] = engine
    return built


def _engine(section: Mapping[str, Any], text: Source, place: Place) -> Engine:
    found = engines.get(checks.named(section, text, place, "engine", engines.kinds()))
    return found(validation.validate(found.Options, dict(section), text, place))


def _workload(section: Mapping[str, Any], text: Source, built: Mapping[str, Engine]) -> Workload:
    found = workloads.get(checks.named(section, text, ("workload",), "workload", workloads.kinds()))
    unsuited = list(checks.suited(found, built, text))
    if unsuited:
        # Its options would all look wrong to a user who meant another workload.
        raise InvalidInput(unsuited)
    return found(validation.validate(found.Options, dict(section), text, ("workload",)))


def _refusals(plan: Plan, kind: str, verdicts: list[Verdict]) -> Iterator[Mistake]:
    """What the engine itself refuses of its default and of the study's own configurations."""
    if verdicts[0].refused is not None:
        index = next(index for index, section in enumerate(plan.study.engine) if section.get("kind") == kind)
        problem = f"{kind} refuses its default configuration for this model: {verdicts[0].refused}"
        yield plan.text.mistake(checks.engine_place(plan.text, index), problem)
        return
    asked = [index for index, configuration in enumerate(plan.first) if configuration.engine == kind]
    for index, verdict in zip(asked, verdicts[1:], strict=True):
        if verdict.refused is not None:
            yield plan.text.mistake(("first_trials", index), f"{kind} refuses this configuration: {verdict.refused}")


def _too_many_gpus(plan: Plan, kind: str) -> Iterator[Mistake]:
    """Configurations that this machine's GPUs are too few for; another executor's machines are not known here."""
    found = len(gpu.devices()) if plan.study.executor.kind in ("auto", "local") else 0
    index = next(index for index, section in enumerate(plan.study.engine) if section.get("kind") == kind)
    asked: list[tuple[Place, Configuration]] = [(checks.engine_place(plan.text, index), Configuration(engine=kind))]
    asked += [(("first_trials", place), one) for place, one in enumerate(plan.first) if one.engine == kind]
    for place, configuration in asked if found else []:
        need = plan.engines[kind].gpus_needed(configuration)
        if need > found:
            yield plan.text.mistake(place, f"A trial of this needs {need} GPUs, and this machine has {found}.")
            return
