"""Finds the files of `search_spaces/`, and turns a study's choice from them into a Space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from autotune import source
from autotune.errors import InvalidInput, Mistake, nearest
from autotune.parameters import AnyParameter, Parameter, TupleParameter
from autotune.source import Place, Source
from autotune.space import EngineSpace, Rule, Space, SpaceFile
from autotune.study import SpaceSection, Study
from autotune.trial import Value

_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(AnyParameter)
_SHAPE = {"kind", "low", "high", "step", "log", "values", "members", "expr", "value"}
"""Fields that say what a parameter's values are; the rest describes it."""


def folders() -> tuple[Path, ...]:
    """Where space files are looked for: beside the package when installed, at the top of a checkout."""
    package = Path(__file__).parent
    return package / "data" / "search_spaces", package.parent / "search_spaces"


def available() -> dict[str, Path]:
    """Name → file of every space that ships."""
    return {path.stem: path for folder in reversed(folders()) for path in sorted(folder.glob("*.yaml"))}


@cache
def load(name: str) -> SpaceFile:
    """A shipped space by name, or a file by path. Raises InvalidInput."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else available().get(name)
    if path is None:
        known = available()
        raise InvalidInput(
            [Mistake("", f"There is no search space {name!r}.", allowed=", ".join(known), nearest=nearest(name, known))]
        )
    text = source.read(path)
    return source.validate(SpaceFile, text.data, text)


def build(study: Study, text: Source, fixed: Mapping[str, Mapping[str, Value]]) -> Space:
    """The study's Space; `fixed` holds each engine's fixed parameters. Raises InvalidInput with every mistake found."""
    mistakes: list[Mistake] = []
    spaces = []
    for kind, parameters in fixed.items():
        builder = _Builder(kind, study, text, parameters)
        spaces.append(builder.build())
        mistakes += builder.mistakes
    for kind in study.search_space.engines:
        if kind not in fixed:
            place = ("search_space", "engines", kind)
            mistakes.append(text.mistake(place, f"The study has no engine {kind!r}.", nearest=nearest(kind, fixed)))
    if mistakes:
        raise InvalidInput(sorted(set(mistakes), key=lambda mistake: (mistake.line or 0, mistake.path)))
    return Space(spaces)


class _Builder:
    """One engine's part of the space; collects mistakes instead of stopping at the first."""

    def __init__(self, kind: str, study: Study, text: Source, fixed: Mapping[str, Value]) -> None:
        self.kind, self.study, self.text, self.fixed = kind, study, text, fixed
        self.mistakes: list[Mistake] = []
        self.file = SpaceFile(engine=kind, parameters={})
        self.shared = len(study.engine) > 1

    def sections(self) -> Iterator[tuple[Place, SpaceSection]]:
        yield ("search_space",), self.study.search_space
        if self.kind in self.study.search_space.engines:
            yield ("search_space", "engines", self.kind), self.study.search_space.engines[self.kind]

    def build(self) -> EngineSpace:
        chosen: dict[str, AnyParameter] = {}
        rules: list[Rule] = []
        self.include()
        for place, section in self.sections():
            chosen.update(self.selected(place, section, bool(chosen)))
            chosen.update(self.overridden(place, section, chosen))
            chosen.update(self.own(place, section))
            rules += self.rules(place, section)
        for name in [name for name in chosen if name in self.fixed]:
            if self.named(name):
                self.mistakes.append(
                    self.text.mistake(("search_space",), f"{name!r} is fixed by the engine section and tuned here; choose one.")
                )
            del chosen[name]
        if not chosen and not self.mistakes:
            self.mistakes.append(self.text.mistake(("search_space",), f"Nothing is left to tune for the engine {self.kind!r}."))
        return EngineSpace(
            engine=self.kind, parameters=chosen, forbid=(*self.file.forbid, *rules), replaced=self.file.replaced, fixed=self.fixed
        )

    def named(self, name: str) -> bool:
        """Whether the study itself asks to tune a parameter, rather than the space file's tuned set."""
        return any(name in (*(section.select or ()), *section.override, *section.parameters) for _, section in self.sections())

    def include(self) -> None:
        for place, section in self.sections():
            name = section.include or (self.kind if self.kind in available() else None)
            if name is None:
                continue
            try:
                self.file = load(name)
            except InvalidInput as error:
                here = (*place, "include")
                for mistake in error.mistakes:
                    moved = replace(mistake, line=self.text.line(here), file=self.text.file, path=source.dotted(here))
                    self.mistakes.append(mistake if mistake.file else moved)

    def find(self, name: str, place: Place) -> str | None:
        """A parameter's own name for a name or canonical name; None, with a mistake, when there is none."""
        if name in self.file.parameters:
            return name
        for own, parameter in self.file.parameters.items():
            if parameter.canonical is not None and parameter.canonical.name == name:
                return own
            if isinstance(parameter, TupleParameter) and name in parameter.members:
                return own
        if name in self.file.replaced:
            self.mistakes.append(self.text.mistake(place, f"{name!r}: {self.file.replaced[name]}"))
        elif not (self.shared and self.elsewhere(name)):
            known = [*self.file.parameters, *(p.canonical.name for p in self.file.parameters.values() if p.canonical)]
            self.mistakes.append(
                self.text.mistake(
                    place, f"The search space of {self.kind} has no parameter {name!r}.", nearest=nearest(name, known)
                )
            )
        return None

    def elsewhere(self, name: str) -> bool:
        """Whether another engine of the study has a parameter of that name, so that this one may lack it."""
        for section in self.study.engine:
            kind = section.get("kind")
            if kind != self.kind and kind in available() and name in load(str(kind)).parameters:
                return True
        return False

    def selected(self, place: Place, section: SpaceSection, already: bool) -> dict[str, AnyParameter]:
        if section.select is None:
            tuned = {name: p for name, p in self.file.parameters.items() if p.tuned}
            return {} if already or self.explicit() else tuned
        own = [self.find(name, (*place, "select", index)) for index, name in enumerate(section.select)]
        return {name: self.file.parameters[name] for name in own if name is not None}

    def explicit(self) -> bool:
        """A study that defines or selects parameters itself does not get the file's tuned set on top."""
        return any(section.select is not None or section.parameters for _, section in self.sections())

    def overridden(self, place: Place, section: SpaceSection, chosen: Mapping[str, AnyParameter]) -> dict[str, AnyParameter]:
        result: dict[str, AnyParameter] = {}
        for name, change in section.override.items():
            own = self.find(name, (*place, "override", name))
            if own is not None:
                base = chosen.get(own) or self.file.parameters[own]
                parameter = self.parameter(_merged(base, change), (*place, "override", name))
                if parameter is not None:
                    result[own] = parameter
        return result

    def own(self, place: Place, section: SpaceSection) -> dict[str, AnyParameter]:
        result: dict[str, AnyParameter] = {}
        for name, definition in section.parameters.items():
            if name in self.file.replaced:
                self.mistakes.append(self.text.mistake((*place, "parameters", name), f"{name!r}: {self.file.replaced[name]}"))
                continue
            parameter = self.parameter(_shorthand(definition), (*place, "parameters", name))
            if parameter is not None:
                result[name] = parameter
        return result

    def parameter(self, definition: Any, place: Place) -> AnyParameter | None:
        try:
            return _PARAMETER.validate_python(definition)  # type: ignore[return-value]
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self.mistakes.append(self.explain(detail, place))
            return None

    def explain(self, detail: Any, place: Place) -> Mistake:
        loc = [part for part in detail["loc"][1:] if isinstance(part, str | int)]
        message = source.sentence(str(detail["msg"]))
        if detail["type"] == "union_tag_not_found":
            return self.text.mistake(place, "A parameter needs a 'kind', or is a list of values, or a plain value that fixes it.")
        close = None
        if detail["type"] == "union_tag_invalid":
            kinds = str(detail["ctx"]["expected_tags"]).replace("'", "").split(", ")
            message, close = "This kind of parameter does not exist.", nearest(str(detail["ctx"]["tag"]), kinds)
            return self.text.mistake(
                (*place, "kind"), message, found=repr(detail["ctx"]["tag"]), allowed=", ".join(kinds), nearest=close
            )
        if detail["type"] == "extra_forbidden":
            message = f"{loc[-1]!r} is not known for this kind of parameter."
        elif detail["type"] == "missing":
            message = f"{loc[-1]!r} is missing."
        return self.text.mistake((*place, *loc), message)

    def rules(self, place: Place, section: SpaceSection) -> list[Rule]:
        result = []
        for index, raw in enumerate(section.forbid):
            given = {"rule": raw, "reason": "The study forbids it."} if isinstance(raw, str) else raw
            try:
                result.append(source.validate(Rule, given, self.text, (*place, "forbid", index)))
            except InvalidInput as error:
                self.mistakes += error.mistakes
        return result


def _shorthand(value: Any) -> Any:
    """A list stands for its values, a plain value for a fixed parameter."""
    if isinstance(value, Mapping):
        if "kind" in value:
            return value
        if "values" in value:
            return {**value, "kind": _list_kind(value["values"])}
        if {"low", "high"} <= set(value):
            whole = all(isinstance(value[key], int) for key in ("low", "high") if key in value) and isinstance(
                value.get("step", 1), int
            )
            return {**value, "kind": "int" if whole else "float"}
        return value
    return {"kind": _list_kind(value), "values": value} if isinstance(value, list) else {"kind": "fixed", "value": value}


def _list_kind(values: Any) -> str:
    if isinstance(values, Sequence) and set(map(str, values)) == {"True", "False"}:
        return "categorical"
    numbers = isinstance(values, Sequence) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return "values" if numbers and list(values) == sorted(set(values)) else "categorical"


def _merged(base: AnyParameter, change: Any) -> Any:
    """A study's override on top of a space file's parameter: a new shape replaces the old one, bounds refine it."""
    described = base.model_dump(exclude_unset=True)
    if isinstance(change, Mapping) and not ({"values", "kind", "value", "expr"} & set(change)):
        return {**described, **change}
    about = {key: value for key, value in described.items() if key not in _SHAPE}
    if isinstance(base, TupleParameter) and isinstance(change, list):
        return {**about, "kind": "tuple", "members": base.members, "values": change}
    return {**about, **_shorthand(change)}
