"""What is wrong with a study that the flags of the installed engines tell: every tuned, fixed and tried name and value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autotune import checks, conditions
from autotune.engines.base import Flag
from autotune.errors import Mistake, nearest
from autotune.expression import parse
from autotune.parameters import Parameter, TupleParameter
from autotune.source import Place, Source
from autotune.space import EngineSpace, Space
from autotune.study import SpaceSection, Study
from autotune.trial import Value

_SIZE = re.compile(r"-1|\d[\d_]*(\.\d+)?(e[+-]?\d+)?\s*[A-Za-z]{0,3}")
"""A number as engines read one in words: 8192, 8k, 1.5G, 4 GiB."""


@dataclass(frozen=True)
class FlagChecks:
    """One engine's flags beside what a study asks of them."""

    kind: str
    flags: Mapping[str, Flag]
    study: Study
    text: Source
    space: EngineSpace

    def mistakes(self) -> Iterator[Mistake]:
        """Everything but the rules."""
        if not self.flags:
            return
        yield from self.fixed()
        for name, parameter in self.space.parameters.items():
            place = place_of(self.study, self.kind, name, parameter)
            members = parameter.members if isinstance(parameter, TupleParameter) else (name,)
            for member in members:
                yield from self.name(member, place)
            yield from self.extremes(name, parameter, place)
        for index, values in enumerate(self.study.first_trials):
            if values.get("engine", self.study.engine[0].get("kind")) == self.kind:
                for name, value in values.items():
                    own, meant = self.space.translated(name, value)
                    if own in self.flags:
                        yield from self.value(own, meant, ("first_trials", index, name))

    def fixed(self) -> Iterator[Mistake]:
        """The engine section's own parameters."""
        index = next(index for index, section in enumerate(self.study.engine) if section.get("kind") == self.kind)
        for name, value in self.space.fixed.items():
            place = (*checks.engine_place(self.text, index), "fixed", name)
            yield from self.name(name, place)
            if name in self.flags:
                yield from self.value(name, value, place)

    def extremes(self, name: str, parameter: Any, place: Place) -> Iterator[Mistake]:
        """The values of a parameter that can break a flag's type, choices or range, each at its own line."""
        if isinstance(parameter, TupleParameter):
            for index, entry in enumerate(parameter.values):
                for position, (member, value) in enumerate(zip(parameter.members, entry, strict=True)):
                    if member in self.flags:
                        yield from self.value(member, value, self.exact(place, "values", index, position))
        elif name in self.flags:
            for index, value in enumerate(getattr(parameter, "values", ())):
                yield from self.value(name, value, self.exact(place, "values", index))
            for bound in ("low", "high", "value"):
                if hasattr(parameter, bound):
                    yield from self.value(name, getattr(parameter, bound), self.exact(place, bound))

    def exact(self, place: Place, field: str, *below: int) -> Place:
        """The value's own place, whether its list is written out or stands for itself; the parameter's where it has none."""
        for inner in ((*place, field, *below), (*place, *below)):
            if inner in self.text.lines:
                return inner
        return place

    def name(self, name: str, place: Place) -> Iterator[Mistake]:
        """Whether the engine has a flag of that name."""
        if name in self.space.replaced:
            yield self.text.mistake(place, f"{name!r}: {self.space.replaced[name]}")
        elif not name.startswith("env.") and name not in self.flags:
            problem = f"{self.kind} as installed has no flag for {name!r}."
            yield self.text.mistake(place, problem, nearest=nearest(name, self.flags))

    def value(self, name: str, value: Value, place: Place) -> Iterator[Mistake]:
        """Whether the engine's flag takes that value."""
        flag = self.flags[name]
        if value is None:
            return
        if flag.choices is not None and flag.type not in ("list", "json"):
            known = [str(choice) for choice in flag.choices]
            if value not in flag.choices and str(value) not in known:
                close = nearest(str(value), known)
                yield self.text.mistake(place, f"{name} cannot be {value!r}.", allowed=", ".join(known), nearest=close)
        elif flag.type == "bool" and not isinstance(value, bool):
            yield self.text.mistake(place, f"{name} is a switch.", found=repr(value), allowed="true, false")
        elif flag.type in ("int", "float"):
            yield from self.number(flag, value, place)

    def number(self, flag: Flag, value: Value, place: Place) -> Iterator[Mistake]:
        """Whether a number is one, and in the flag's range."""
        if isinstance(value, str) and (_SIZE.fullmatch(value) or value == "auto"):
            # Engines read human sizes such as 8k and 1.5G themselves; their own cross-check judges those.
            return
        whole = flag.type == "int"
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            yield self.text.mistake(place, f"{flag.name} must be {kind}.", found=repr(value))
        elif (flag.low is not None and value < flag.low) or (flag.high is not None and value > flag.high):
            yield self.text.mistake(place, f"{flag.name} is out of the engine's range.", found=repr(value), allowed=_range(flag))


def expressions(study: Study, text: Source, space: Space, known: Mapping[str, frozenset[str]]) -> Iterator[Mistake]:
    """Names in the study's own rules, conditions and derived values that nothing gives a value.

    `known` holds each engine's flags and what it resolved beside them.
    """
    for place, section, kinds in _sections(study, tuple(space.engines)):
        names = frozenset[str]().union(
            *(
                known[kind] | conditions.settable(space.engines[kind].parameters) | space.engines[kind].fixed.keys()
                for kind in kinds
            )
        )
        for at, expression in _written(section):
            for name in sorted(parse(expression).names - names):
                problem = f"{name!r} is no parameter of {' or '.join(kinds)}; a text value stands in quotes."
                yield text.mistake((*place, *at), problem, nearest=nearest(name, names))


def _written(section: SpaceSection) -> Iterator[tuple[Place, str]]:
    """The expressions that a section itself writes."""
    for index, raw in enumerate(section.forbid):
        yield ("forbid", index), raw if isinstance(raw, str) else str(raw["rule"])
    for field in ("override", "parameters"):
        for name, definition in getattr(section, field).items():
            for part in ("when", "expr"):
                if isinstance(definition, Mapping) and isinstance(definition.get(part), str):
                    yield (field, name, part), definition[part]


def place_of(study: Study, kind: str, name: str, parameter: Parameter) -> Place:
    """Where a study speaks of a parameter: most exactly where it gives values, else where it brings in the space file."""
    names = [name, *([parameter.canonical.name] if parameter.canonical is not None else [])]
    names += parameter.members if isinstance(parameter, TupleParameter) else []
    for place, section, _ in reversed(list(_sections(study, (kind,)))):
        for field in ("parameters", "override"):
            for known in names:
                if known in getattr(section, field):
                    return (*place, field, known)
        for index, selected in enumerate(section.select or ()):
            if selected in names:
                return (*place, "select", index)
    return ("search_space", "include")


def _range(flag: Flag) -> str:
    low, high = ("" if bound is None else f"{bound:g}" for bound in (flag.low, flag.high))
    return f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less"


def _sections(study: Study, kinds: tuple[str, ...]) -> Iterator[tuple[Place, SpaceSection, tuple[str, ...]]]:
    """The parts of the search-space section and the engines each is for."""
    yield ("search_space",), study.search_space, kinds
    for kind in kinds:
        if kind in study.search_space.engines:
            yield ("search_space", "engines", kind), study.search_space.engines[kind], (kind,)
