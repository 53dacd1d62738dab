"""A study made ready to run: engines and workload built, the space resolved, everything checked that needs no launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from autotune import engines, exporters, spaces, study, validation, workloads
from autotune.engines.base import Engine, Flag, Identity, Verdict
from autotune.errors import AutotuneError, InvalidInput, Mistake, NotFound, nearest
from autotune.score import Selector
from autotune.source import Place, Source
from autotune.space import Space
from autotune.study import Study
from autotune.trial import Configuration, Value
from autotune.workloads.base import Workload

Built = TypeVar("Built", Engine, Workload)


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
    """Per engine, the values its default configuration runs with, as the engine itself resolved them."""

    @property
    def folder(self) -> Path:
        """Where the study keeps everything."""
        return self.store / self.study.name

    @property
    def cache(self) -> Path:
        """What trials share: compile caches, synthetic models."""
        return (self.store / ".cache").resolve()

    def defaults(self) -> tuple[Configuration, ...]:
        """Each engine's default configuration, the study's first engine leading."""
        return tuple(Configuration(engine=kind) for kind in self.engines)


def read(path: Path, store: Path) -> Plan:
    """Everything that can be checked without asking the engine. Raises InvalidInput with every mistake found."""
    parsed, text = study.load(path)
    return assemble(parsed, text, store)


def assemble(parsed: Study, text: Source, store: Path) -> Plan:
    """As `read`, for a study that is already parsed."""
    collected = _Mistakes()
    built: dict[str, Engine] = {}
    for index, section in enumerate(parsed.engine):
        place: Place = ("engine",) if isinstance(text.data.get("engine"), Mapping) else ("engine", index)
        engine = collected.catch(lambda s=section, p=place: _engine(s, text, p))  # type: ignore[misc]
        if engine is not None:
            built[engine.options.kind] = engine
    workload = collected.catch(lambda: _workload(parsed.workload, text))
    if workload is not None:
        collected.extend(_workload_fits(parsed, text, built, workload))
    collected.extend(_exporters_fit(parsed, text, built))
    space = None
    if len(built) == len(parsed.engine):
        fixed = {kind: engine.options.fixed for kind, engine in built.items()}
        space = collected.catch(lambda: spaces.build(parsed, text, fixed))
    first = _first_trials(parsed, text, space, collected) if space is not None else ()
    collected.finish()
    assert workload is not None and space is not None
    return Plan(parsed, text, store, built, workload, space, first)


def confirm(plan: Plan) -> Plan:
    """Check the plan against the installed engines. Raises MissingPrerequisite, or InvalidInput with every mistake found."""
    identities = {kind: engine.identity() for kind, engine in plan.engines.items()}
    collected = _Mistakes()
    resolved: dict[str, Mapping[str, Value]] = {}
    for kind, engine in plan.engines.items():
        collected.extend(_flags_fit(plan, kind, engine.flags()))
        if collected.found:
            continue
        asked = [Configuration(engine=kind), *(c for c in plan.first if c.engine == kind)]
        verdicts = engine.preflight(asked)
        resolved[kind] = {**verdicts[0].resolved, **engine.options.fixed}
        collected.extend(_refusals(plan, kind, verdicts))
    collected.finish()
    return Plan(**{**plan.__dict__, "identities": identities, "resolved": resolved})


class _Mistakes:
    """Collects what several checks find, so that a user sees all of it at once."""

    def __init__(self) -> None:
        self.found: list[Mistake] = []

    def extend(self, mistakes: Iterator[Mistake]) -> None:
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


def _named(section: Mapping[str, Any], text: Source, place: Place, what: str, kinds: tuple[str, ...]) -> str:
    kind = section.get("kind")
    if kind is None:
        raise InvalidInput([text.mistake(place, f"The {what} section needs a 'kind'.", allowed=", ".join(kinds))])
    if kind not in kinds:
        close = nearest(str(kind), kinds)
        raise InvalidInput(
            [text.mistake((*place, "kind"), f"There is no {what} {kind!r}.", allowed=", ".join(kinds), nearest=close)]
        )
    return str(kind)


def _engine(section: Mapping[str, Any], text: Source, place: Place) -> Engine:
    found = engines.get(_named(section, text, place, "engine", engines.kinds()))
    return found(validation.validate(found.Options, dict(section), text, place))


def _workload(section: Mapping[str, Any], text: Source) -> Workload:
    found = workloads.get(_named(section, text, ("workload",), "workload", workloads.kinds()))
    return found(validation.validate(found.Options, dict(section), text, ("workload",)))


def _workload_fits(parsed: Study, text: Source, built: Mapping[str, Engine], workload: Workload) -> Iterator[Mistake]:
    for kind, engine in built.items():
        if engine.serves != workload.needs:
            problem = f"The workload {workload.kind!r} needs an engine for {workload.needs}; {kind!r} is for {engine.serves}."
            yield text.mistake(("workload", "kind"), problem)
    for index, objective in enumerate(parsed.objectives):
        yield from _selector_fits(objective.selector, text, ("objectives", index), workload)
    for index, constraint in enumerate(parsed.constraints):
        yield from _selector_fits(constraint.selector, text, ("constraints", index), workload)


def _selector_fits(selector: Selector, text: Source, place: Place, workload: Workload) -> Iterator[Mistake]:
    known = workload.metrics()
    if known and selector.metric not in known:
        close = nearest(selector.metric, known)
        yield text.mistake(place, f"The workload {workload.kind!r} does not measure {selector.metric!r}.", nearest=close)
    levels = workload.levels()
    if selector.key is not None and levels and not any(level.get(selector.key) == selector.value for level in levels):
        shown = ", ".join(f"{key}={value}" for level in levels for key, value in level.items())
        yield text.mistake(place, f"The workload has no load level {selector.key}={selector.value}.", allowed=shown)


def _exporters_fit(parsed: Study, text: Source, built: Mapping[str, Engine]) -> Iterator[Mistake]:
    for index, name in enumerate(parsed.export):
        try:
            supported = exporters.get(name).engines
        except NotFound as error:
            yield text.mistake(("export", index), str(error))
            continue
        except AutotuneError as error:
            yield text.mistake(("export", index), str(error))
            continue
        if not set(built) & set(supported):
            yield text.mistake(("export", index), f"The exporter {name!r} renders {', '.join(supported)}, not {', '.join(built)}.")


def _first_trials(parsed: Study, text: Source, space: Space, collected: _Mistakes) -> tuple[Configuration, ...]:
    found: list[Configuration] = []
    for index, values in enumerate(parsed.first_trials):
        place = ("first_trials", index)
        given = dict(values)
        kind = str(given.pop("engine", next(iter(space.engines))))
        if kind not in space.engines:
            collected.found.append(text.mistake((*place, "engine"), f"The study has no engine {kind!r}."))
            continue
        names = space.engines[kind].names()
        for name in given:
            if name not in names:
                problem = f"{name!r} is not a parameter of this study's search space."
                collected.found.append(text.mistake((*place, name), problem, nearest=nearest(name, names)))
        configuration = Configuration(engine=kind, values=space.engines[kind].complete(given))
        rule = space.forbidden(configuration)
        if rule is not None:
            collected.found.append(text.mistake(place, f"This configuration is forbidden ({rule.rule}): {rule.reason}"))
        found.append(configuration)
    return tuple(found)


def _flags_fit(plan: Plan, kind: str, flags: Mapping[str, Flag]) -> Iterator[Mistake]:
    """Every tuned and fixed name and value against the installed engine's own flags."""
    if not flags:
        return
    space, engine = plan.space.engines[kind], plan.engines[kind]
    version = f"{kind} as installed"
    for name, value in engine.options.fixed.items():
        place: Place = ("engine", "fixed", name)
        yield from _name_fits(name, flags, plan.text, place, space.replaced, version)
        if name in flags:
            yield from _value_fits(name, value, flags[name], plan.text, place)
    for name, parameter in space.parameters.items():
        section = plan.study.search_space
        where = "override" if name in section.override else "parameters" if name in section.parameters else "select"
        place = ("search_space", where, name) if where != "select" else ("search_space",)
        for member in getattr(parameter, "members", (name,)):
            yield from _name_fits(member, flags, plan.text, place, space.replaced, version)
            if member in flags and member == name:
                for value in _extremes(parameter):
                    yield from _value_fits(name, value, flags[name], plan.text, place)


def _extremes(parameter: Any) -> tuple[Value, ...]:
    """The values of a parameter that can break a flag's type, choices or range."""
    if hasattr(parameter, "values"):
        return tuple(parameter.values)
    return tuple(getattr(parameter, bound) for bound in ("low", "high", "value") if hasattr(parameter, bound))


def _name_fits(
    name: str, flags: Mapping[str, Flag], text: Source, place: Place, replaced: Mapping[str, str], engine: str
) -> Iterator[Mistake]:
    if name.startswith("env.") or name in flags:
        return
    if name in replaced:
        yield text.mistake(place, f"{name!r}: {replaced[name]}")
    else:
        yield text.mistake(place, f"{engine} has no flag for {name!r}.", nearest=nearest(name, flags))


def _value_fits(name: str, value: Value, flag: Flag, text: Source, place: Place) -> Iterator[Mistake]:
    allowed = None
    if value is None:
        return
    if flag.choices is not None and flag.type not in ("list", "json"):
        if value not in flag.choices and str(value) not in map(str, flag.choices):
            close = nearest(str(value), map(str, flag.choices))
            allowed = ", ".join(map(str, flag.choices))
            yield text.mistake(place, f"{name} cannot be {value!r}.", allowed=allowed, nearest=close)
        return
    if flag.type == "bool" and not isinstance(value, bool):
        yield text.mistake(place, f"{name} is a switch.", found=repr(value), allowed="true, false")
    elif flag.type in ("int", "float"):
        yield from _number_fits(name, value, flag, text, place)


def _number_fits(name: str, value: Value, flag: Flag, text: Source, place: Place) -> Iterator[Mistake]:
    if isinstance(value, str):
        # Engines read human sizes such as 8k and 1.5G themselves; their own cross-check judges those.
        if not value[:1].isdigit() and value not in ("auto", "-1"):
            yield text.mistake(place, f"{name} must be a number.", found=repr(value))
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or (flag.type == "int" and value != int(value)):
        yield text.mistake(place, f"{name} must be {'a whole number' if flag.type == 'int' else 'a number'}.", found=repr(value))
    elif (flag.low is not None and value < flag.low) or (flag.high is not None and value > flag.high):
        low, high = flag.low if flag.low is not None else "", flag.high if flag.high is not None else ""
        yield text.mistake(place, f"{name} is out of the engine's range.", found=repr(value), allowed=f"{low}..{high}")


def _refusals(plan: Plan, kind: str, verdicts: list[Verdict]) -> Iterator[Mistake]:
    if verdicts[0].refused is not None:
        yield plan.text.mistake(("engine",), f"{kind} refuses its default configuration for this model: {verdicts[0].refused}")
        return
    asked = [index for index, configuration in enumerate(plan.first) if configuration.engine == kind]
    for index, verdict in zip(asked, verdicts[1:], strict=True):
        if verdict.refused is not None:
            yield plan.text.mistake(("first_trials", index), f"{kind} refuses this configuration: {verdict.refused}")
