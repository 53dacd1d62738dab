"""The search space: parameters, conditions, forbid rules and names the engine has dropped, as data.

A point is the sampler's encoding (`{"vllm/max_num_seqs": 7}` is an exponent); a Configuration is what is launched. `decode`
goes from one to the other, `encode` back. A space over several engines makes `engine` a parameter and every other one
conditional on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from pydantic import Field

from autotune.conditions import settable
from autotune.distributions import Choice, Distribution, size
from autotune.errors import WrongValue
from autotune.expression import Unknown, parse
from autotune.parameters import AnyParameter, DerivedParameter, FixedParameter, Parameter, TupleParameter
from autotune.rules import OwnRules, Rule, StudyRule, of_the_default
from autotune.trial import Configuration, Frozen, Scalar, Value, digest_of

Point = dict[str, Scalar]
"""The sampler's encoding of a configuration."""

Choose = Callable[[str, Distribution], Scalar]


class SpaceFile(Frozen):
    """The content of a file in `search_spaces/`."""

    engine: str
    versions: str = ""
    about: str = ""
    parameters: Mapping[str, AnyParameter]
    forbid: tuple[Rule, ...] = ()
    replaced: Mapping[str, str] = Field(default_factory=dict)


class EngineSpace(Frozen):
    """The part of a space that one engine has."""

    engine: str
    parameters: Mapping[str, AnyParameter]
    forbid: tuple[Rule, ...] = ()
    replaced: Mapping[str, str] = Field(default_factory=dict)
    fixed: Mapping[str, Value] = Field(default_factory=dict)
    """The study's fixed parameters: visible to conditions and rules, not part of a configuration."""
    known: Mapping[str, Value] = Field(default_factory=dict)
    """What the engine runs with where a configuration says nothing, and its `device`; empty until the engine was asked."""
    untuned: Mapping[str, str | None] = Field(default_factory=dict)
    """What the study tunes by another engine's name, and not in this one → the name that both engines share, where there is one."""

    def lossy(self) -> dict[str, Value]:
        """The engine's parameters that can change the model's answers, with what the default runs with where that is known."""
        marked = [(name, parameter) for name, parameter in self.parameters.items() if parameter.lossy]
        names = [one for name, each in marked for one in (each.members if isinstance(each, TupleParameter) else (name,))]
        return {name: self.known.get(name) for name in names}

    def sampled(self) -> Iterator[tuple[str, AnyParameter]]:
        """Parameters the sampler chooses, in an order in which conditions can be decided."""
        for name, parameter in self.parameters.items():
            if parameter.distribution() is not None:
                yield name, parameter

    def names(self) -> frozenset[str]:
        """Every engine parameter that a configuration can set."""
        return settable(self.parameters)

    def neutral(self) -> dict[str, str]:
        """The engine-neutral names of what a configuration can set → the engine's own; a name that the engine itself has is its."""
        own = self.names()
        named = ((one.canonical.name, name) for name, one in self.parameters.items() if one.canonical is not None and name in own)
        return {neutral: name for neutral, name in named if neutral not in own}

    def translated(self, name: str, value: Value) -> tuple[str, Value]:
        """A name and its value in the engine's own words, both unchanged where the name is not an engine-neutral one.

        Raises WrongValue for a value that has no opposite where the engine's flag says the opposite of the name.
        """
        own = self.neutral().get(name, name)
        canonical = None if own == name else self.parameters[own].canonical
        if canonical is None or not canonical.invert or value is None:
            return own, value
        if not isinstance(value, bool):
            raise WrongValue(f"{name!r} is a switch, the opposite of {own!r}.", found=repr(value), allowed="true, false")
        return own, not value

    def telling(self) -> Iterator[Rule]:
        """The rules that a configuration can break: they read something that it sets."""
        yield from (rule for rule in self.forbid if not rule.expression.names.isdisjoint(self.names()))

    def own_rules(self) -> OwnRules:
        """The study's own rules that a configuration can break, with what is known of the default."""
        rules = tuple(rule for rule in self.telling() if isinstance(rule, StudyRule))
        read = frozenset[str]().union(*(rule.expression.names for rule in rules))
        when = {name: condition for name, condition in self._conditions() if name in read}
        read = read.union(*(parse(condition).names for condition in when.values()))
        given = {**self.known, **self.fixed}
        return OwnRules(rules=rules, known={name: given[name] for name in sorted(read) if name in given}, when=when)

    def _conditions(self) -> Iterator[tuple[str, str]]:
        """The condition of every engine parameter that has one."""
        for name, parameter in self.parameters.items():
            if parameter.when is not None:
                members = parameter.members if isinstance(parameter, TupleParameter) else (name,)
                yield from ((member, parameter.when) for member in members)

    def active(self, parameter: Parameter, values: Mapping[str, Value]) -> bool:
        """Whether a parameter's condition holds; an undecidable condition does not."""
        return parameter.when is None or parse(parameter.when).holds({**self.known, **self.fixed, **values})

    def complete(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """`values` with the derived and fixed parameters computed."""
        result = dict(values)
        for name, parameter in self.parameters.items():
            if not self.active(parameter, result):
                continue
            if isinstance(parameter, DerivedParameter):
                try:
                    result[name] = parse(parameter.expr)({**self.known, **self.fixed, **result})
                except Unknown:
                    continue
            elif isinstance(parameter, FixedParameter):
                result[name] = parameter.value
        return result


class Space:
    """Everything a study may choose from."""

    def __init__(self, engines: Sequence[EngineSpace]) -> None:
        self.engines: Mapping[str, EngineSpace] = {space.engine: space for space in engines}

    def knowing(self, known: Mapping[str, Mapping[str, Value]]) -> Space:
        """The same space, its conditions reading what each engine resolved."""
        return Space([space.model_copy(update={"known": known.get(kind, {})}) for kind, space in self.engines.items()])

    @property
    def digest(self) -> str:
        """Changes when a parameter's kind, range or condition changes; a new space starts a new search."""
        return digest_of([space.model_dump(mode="json", include={"engine", "parameters"}) for space in self.engines.values()])

    def key(self, engine: str, name: str) -> str:
        """The sampler's name of a parameter."""
        return name if len(self.engines) == 1 else f"{engine}/{name}"

    def suggest(self, choose: Choose) -> Point:
        """One point, asked for parameter by parameter so that conditions hold."""
        point: Point = {}
        engine = next(iter(self.engines))
        if len(self.engines) > 1:
            engine = str(choose("engine", Choice(tuple(self.engines))))
            point["engine"] = engine
        space = self.engines[engine]
        values: dict[str, Value] = {}
        for name, parameter in space.sampled():
            if space.active(parameter, values):
                distribution = parameter.distribution()
                assert distribution is not None
                internal = choose(self.key(engine, name), distribution)
                point[self.key(engine, name)] = internal
                values.update(parameter.decode(name, internal))
        return point

    def decode(self, point: Mapping[str, Scalar]) -> Configuration:
        """What to launch for a point."""
        engine = str(point.get("engine") or next(iter(self.engines)))
        space = self.engines[engine]
        values: dict[str, Value] = {}
        for name, parameter in space.sampled():
            if self.key(engine, name) in point:
                values.update(parameter.decode(name, point[self.key(engine, name)]))
        return Configuration(engine=engine, values=space.complete(values))

    def encode(self, configuration: Configuration, resolved: Mapping[str, Value]) -> Point | None:
        """The point of a configuration, unset parameters taken from `resolved`; None when it lies outside the space."""
        space = self.engines.get(configuration.engine)
        if space is None:
            return None
        known = {**space.fixed, **resolved, **configuration.values}
        point: Point = {} if len(self.engines) == 1 else {"engine": configuration.engine}
        try:
            for name, parameter in space.sampled():
                if space.active(parameter, known):
                    point[self.key(configuration.engine, name)] = parameter.encode(name, known)
        except LookupError:
            return None
        return point

    def distributions(self, point: Mapping[str, Scalar]) -> dict[str, Distribution]:
        """The distribution of every parameter of a point."""
        found: dict[str, Distribution] = {}

        def choose(name: str, distribution: Distribution) -> Scalar:
            found[name] = distribution
            return point[name]

        self.suggest(choose)
        return found

    def forbidden(self, configuration: Configuration, facts: Mapping[str, Value] | None = None) -> Rule | None:
        """The first rule that forbids a configuration.

        `facts` are values the rules may read beside the parameters: what the engine resolved for its default. A rule of the
        space file that holds for those alone says nothing about a configuration, since the engine does run its default. One
        that the study wrote is what its user wants, so it holds of whatever sets a parameter that it reads.
        """
        space = self.engines.get(configuration.engine)
        if space is None:
            return None
        given = {**(facts or {}), **space.fixed}
        values = {**given, **configuration.values}
        broken = (rule for rule in space.forbid if rule.expression.holds(values))
        return next((rule for rule in broken if not (facts and of_the_default(rule, given, configuration))), None)

    def size(self) -> float:
        """How many points there are; infinite with a continuous parameter. Conditions are ignored."""
        return sum(math.prod(size(p.distribution()) for _, p in space.sampled()) for space in self.engines.values())
