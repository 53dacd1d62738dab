"""One engine's parameters as a study chooses them: from a space file, changed by it, or its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from autotune import conditions, validation
from autotune.errors import InvalidInput, Mistake, nearest
from autotune.parameters import AnyParameter, Parameter, TupleParameter
from autotune.rules import Rule, StudyRule
from autotune.source import Place, Source
from autotune.space import EngineSpace, SpaceFile
from autotune.study import SpaceSection, Study
from autotune.trial import Value

Load = Callable[[str], SpaceFile]
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(AnyParameter)
_SHAPE = {"kind", "low", "high", "step", "log", "values", "members", "expr", "value"}
"""Fields that say what a parameter's values are; the rest describes it."""


class Selection:
    """Collects mistakes instead of stopping at the first."""

    def __init__(
        self, kind: str, study: Study, text: Source, fixed: Mapping[str, Value], load: Load, shipped: Sequence[str]
    ) -> None:
        """`load` gives a space file by name or path, and `shipped` holds the names it knows."""
        self.kind, self.study, self.text, self.fixed, self.load, self.shipped = kind, study, text, fixed, load, shipped
        self.mistakes: list[Mistake] = []
        self.file = SpaceFile(engine=kind, parameters={})
        self.places: dict[str, Place] = {}
        """Where the study itself speaks of a parameter."""
        self.foreign: list[str] = []
        """Names of other engines in what the study says about all."""

    def build(self) -> EngineSpace:
        """The engine's part of the space; worth nothing when there are mistakes."""
        chosen: dict[str, AnyParameter] = {}
        rules: list[Rule] = []
        if self.include():
            for place, section in self.sections():
                chosen.update(self.selected(place, section, bool(chosen)))
                chosen.update(self.overridden(place, section, chosen))
                chosen.update(self.own(place, section))
                rules += self.rules(place, section)
            self.without_fixed(chosen)
            self.once(chosen)
            chosen = self.ordered(chosen)
            if not chosen and not self.mistakes:
                self.note(("search_space",), f"Nothing is left to tune for the engine {self.kind!r}.")
        told = {"forbid": (*self.file.forbid, *rules), "replaced": self.file.replaced, "fixed": self.fixed}
        return EngineSpace(engine=self.kind, parameters=chosen, **told, untuned=dict(self.untuned(chosen)))

    def note(self, place: Place, problem: str, **details: str | None) -> None:
        self.mistakes.append(self.text.mistake(place, problem, **details))

    def sections(self) -> Iterator[tuple[Place, SpaceSection]]:
        """What the study says about all engines, then about this one alone."""
        yield ("search_space",), self.study.search_space
        if self.kind in self.study.search_space.engines:
            yield ("search_space", "engines", self.kind), self.study.search_space.engines[self.kind]

    def include(self) -> bool:
        """Load the space file; False when that failed, so that nothing can be said about its names."""
        for place, section in self.sections():
            name = section.include if section.include is not None else self.kind if self.kind in self.shipped else None
            if name is None:
                continue
            try:
                self.file = self.load(name)
            except InvalidInput as error:
                here = (*place, "include")
                self.mistakes += [self.text.placed(mistake, here) for mistake in error.mistakes]
                return False
        if self.file.engine == self.kind:
            return True
        several = " Give each engine its own under 'engines'." if len(self.study.engine) > 1 else ""
        problem = f"This search space is for the engine {self.file.engine!r}, not for {self.kind!r}.{several}"
        self.note(("search_space", "include"), problem)
        return False

    def find(self, name: str, place: Place) -> str | None:
        """A parameter's own name for a name or canonical name; None, with a mistake, when there is none."""
        if name in self.file.parameters:
            return name
        for own, parameter in self.file.parameters.items():
            if parameter.canonical is not None and parameter.canonical.name == name:
                return own
            if isinstance(parameter, TupleParameter) and name in parameter.members:
                return own
        known = _names(self.file)
        shared = self.others() if place[1] != "engines" else frozenset()
        if name in shared:
            self.foreign.append(name)
            return None
        if name in self.file.replaced:
            self.note(place, f"{name!r}: {self.file.replaced[name]}")
        elif shared:
            problem = f"No engine of the study has a parameter {name!r}."
            self.note(place, problem, nearest=nearest(name, sorted(known | shared)))
        else:
            self.note(place, f"The search space of {self.kind} has no parameter {name!r}.", nearest=nearest(name, known))
        return None

    def others(self) -> frozenset[str]:
        """Names of the study's other engines: what one of them has, this one may lack."""
        return frozenset[str]().union(*map(_names, self.other_files()))

    def other_files(self) -> list[SpaceFile]:
        """The space files that ship for the study's other engines."""
        kinds = (str(section.get("kind")) for section in self.study.engine)
        return [self.load(kind) for kind in kinds if kind != self.kind and kind in self.shipped]

    def untuned(self, chosen: Mapping[str, AnyParameter]) -> Iterator[tuple[str, str | None]]:
        """The names of other engines alone whose counterpart here nothing sets, each with the name that both engines share."""
        given = conditions.settable(chosen) | self.fixed.keys()
        for name in dict.fromkeys(self.foreign):
            neutral = self.neutral(name)
            own = {one: p for one, p in self.file.parameters.items() if p.canonical is not None and p.canonical.name == neutral}
            if given.isdisjoint(conditions.settable(own)):
                yield name, neutral if own else None

    def neutral(self, name: str) -> str | None:
        """The engine-neutral name of another engine's parameter; None where it has none."""
        found = (file.parameters[name].canonical for file in self.other_files() if name in file.parameters)
        return next((canonical.name for canonical in found if canonical is not None), None)

    def selected(self, place: Place, section: SpaceSection, already: bool) -> dict[str, AnyParameter]:
        """The parameters that a section names, or the file's tuned set where no section names or defines any."""
        if section.select is None:
            tuned = {name: p for name, p in self.file.parameters.items() if p.tuned}
            return {} if already or self.explicit() else tuned
        found: dict[str, AnyParameter] = {}
        for index, name in enumerate(section.select):
            here = (*place, "select", index)
            own = self.find(name, here)
            if own in found:
                same = "" if own == name else f", as {own!r}"
                self.note(here, f"{name!r} stands twice in this list{same}.")
            elif own is not None:
                found[own], self.places[own] = self.file.parameters[own], here
        return found

    def explicit(self) -> bool:
        """A study that defines or selects parameters itself does not get the file's tuned set on top."""
        return any(section.select is not None or section.parameters for _, section in self.sections())

    def overridden(self, place: Place, section: SpaceSection, chosen: Mapping[str, AnyParameter]) -> dict[str, AnyParameter]:
        """The parameters whose range a section changes."""
        result: dict[str, AnyParameter] = {}
        for name, change in section.override.items():
            here = (*place, "override", name)
            own = self.find(name, here)
            if own is None or not self.may_override(name, own, here):
                continue
            parameter = self.parameter(_merged(chosen.get(own) or self.file.parameters[own], change), here)
            if parameter is not None:
                result[own], self.places[own] = parameter, here
        return result

    def may_override(self, name: str, own: str, place: Place) -> bool:
        """Whether a range can be given under this name: not where its values mean something else."""
        parameter = self.file.parameters[own]
        if name != own and isinstance(parameter, TupleParameter):
            together = ", ".join(parameter.members)
            self.note(place, f"{name!r} is tuned as part of {own!r}, whose values are lists of {together}.", nearest=own)
            return False
        if name != own and parameter.canonical is not None and parameter.canonical.invert:
            self.note(place, f"{name!r} says the opposite of this engine's {own!r}; give the range under that name.", nearest=own)
            return False
        return True

    def own(self, place: Place, section: SpaceSection) -> dict[str, AnyParameter]:
        """The parameters that a section defines."""
        result: dict[str, AnyParameter] = {}
        for name, definition in section.parameters.items():
            here = (*place, "parameters", name)
            if name in self.file.replaced:
                self.note(here, f"{name!r}: {self.file.replaced[name]}")
                continue
            parameter = self.parameter(_shorthand(definition), here)
            if parameter is not None:
                result[name], self.places[name] = parameter, here
        return result

    def parameter(self, definition: Any, place: Place) -> AnyParameter | None:
        """A parameter out of its definition; None, with the mistakes, when it is none."""
        if not isinstance(definition, Mapping) or "kind" not in definition:
            self.note(place, "A parameter is a list of values, a 'low' and a 'high', one value that fixes it, or has a 'kind'.")
            return None
        try:
            return _PARAMETER.validate_python(definition)  # type: ignore[return-value]
        except ValidationError as error:
            self.mistakes += validation.mistakes(error, AnyParameter, self.text, place)
            return None

    def rules(self, place: Place, section: SpaceSection) -> list[Rule]:
        """The forbid rules that a section adds."""
        result: list[Rule] = []
        for index, raw in enumerate(section.forbid):
            given = {"rule": raw, "reason": "The study forbids it."} if isinstance(raw, str) else raw
            try:
                result.append(validation.validate(StudyRule, given, self.text, (*place, "forbid", index)))
            except InvalidInput as error:
                self.mistakes += error.mistakes
        return result

    def without_fixed(self, chosen: dict[str, AnyParameter]) -> None:
        """Drop what the engine section fixes; the study may not ask to tune it as well."""
        for name in list(chosen):
            parameter = chosen[name]
            members = parameter.members if isinstance(parameter, TupleParameter) else (name,)
            both = [member for member in members if member in self.fixed]
            if both and name in self.places:
                self.note(self.places[name], f"{both[0]!r} is fixed by the engine section and tuned here; choose one.")
            if both:
                del chosen[name]

    def once(self, chosen: Mapping[str, AnyParameter]) -> None:
        """Note each of the engine's names that two parameters would set."""
        owners: dict[str, str] = {}
        for name, parameter in chosen.items():
            for member in sorted(conditions.settable({name: parameter})):
                other = owners.setdefault(member, name)
                if other != name:
                    place = self.places.get(name) or self.places.get(other) or ("search_space",)
                    self.note(place, f"{member!r} is set by two parameters, {other!r} and {name!r}; choose one.")

    def ordered(self, chosen: dict[str, AnyParameter]) -> dict[str, AnyParameter]:
        """The parameters so that each comes after those its condition reads."""
        for name, place in self.places.items():
            circle = conditions.circle(name, chosen) if name in chosen else ()
            if circle:
                self.note(place, f"Parameters may not depend on each other in a circle: {' → '.join(circle)}.")
                break
        return conditions.ordered(chosen)


def _names(file: SpaceFile) -> frozenset[str]:
    """What a parameter of a space file may be called: its own name, the engine-neutral one, a member's."""
    canonical = {parameter.canonical.name for parameter in file.parameters.values() if parameter.canonical is not None}
    return conditions.settable(file.parameters) | file.parameters.keys() | canonical


def _shorthand(value: Any) -> Any:
    """A list stands for its values, a plain value for a fixed parameter."""
    if isinstance(value, Mapping):
        if "kind" in value:
            return value
        if "values" in value:
            return {**value, "kind": _list_kind(value["values"])}
        if {"low", "high"} <= set(value):
            whole = all(isinstance(value.get(key, 1), int) for key in ("low", "high", "step"))
            return {**value, "kind": "int" if whole else "float"}
        return value
    return {"kind": _list_kind(value), "values": value} if isinstance(value, list) else {"kind": "fixed", "value": value}


def _list_kind(values: Any) -> str:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return "categorical"
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return "values" if numbers and list(values) == sorted(set(values)) else "categorical"


def _merged(base: AnyParameter, change: Any) -> Any:
    """A study's override on top of a space file's parameter: a new shape replaces the old one, bounds refine it."""
    described = base.model_dump(exclude_unset=True)
    if isinstance(change, Mapping) and not ({"values", "kind", "value", "expr"} & set(change)):
        return {**_without_shape(described, change), **change}
    about = {key: value for key, value in described.items() if key not in _SHAPE}
    if isinstance(base, TupleParameter) and isinstance(change, list):
        return {**about, "kind": "tuple", "members": base.members, "values": change}
    return {**about, **_shorthand(change)}


def _without_shape(described: Mapping[str, Any], change: Mapping[str, Any]) -> Mapping[str, Any]:
    """A list of values that is given `low` and `high` becomes a range; other kinds keep their shape."""
    if described["kind"] in ("values", "categorical") and {"low", "high"} <= set(change):
        return {**{key: value for key, value in described.items() if key not in _SHAPE}, "kind": _shorthand(change)["kind"]}
    return described
