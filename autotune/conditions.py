"""What the parameters of a space read of each other: `when` conditions and derived expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from autotune.errors import nearest
from autotune.expression import parse
from autotune.parameters import AnyParameter, DerivedParameter, TupleParameter
from autotune.trial import Value

Problem = tuple[tuple[str, ...], str, dict[str, str | None]]
"""Where below the parameter, what is wrong, and the details of a Mistake."""


def settable(parameters: Mapping[str, AnyParameter]) -> frozenset[str]:
    """The engine's names that the parameters set."""
    found: set[str] = set()
    for name, parameter in parameters.items():
        found.update(parameter.members if isinstance(parameter, TupleParameter) else [name])
    return frozenset(found)


def ordered(parameters: Mapping[str, AnyParameter]) -> dict[str, AnyParameter]:
    """Each parameter after those it reads, else in the given order; members of a circle stay where they are."""
    owners = {member: name for name, parameter in parameters.items() for member in settable({name: parameter})}
    result: dict[str, AnyParameter] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in result or name in above:
            return
        for _, text in _texts(parameters[name]):
            for read in sorted(parse(text).names & owners.keys()):
                place(owners[read], (*above, name))
        result[name] = parameters[name]

    for name in parameters:
        place(name, ())
    return result


def unreadable(
    name: str, parameters: Mapping[str, AnyParameter], fixed: Mapping[str, Value], known: Iterable[str]
) -> Iterator[Problem]:
    """Why a parameter's condition or expression can never be decided. `known` holds every name that may stand in one."""
    known = set(known)
    given = settable(parameters) | fixed.keys()
    for part, text in _texts(parameters[name]):
        names = parse(text).names
        at = (part,)
        for unknown in sorted(names - known):
            yield (
                at,
                f"{unknown!r} is not a parameter of this engine's search space; a text value stands in quotes.",
                {"nearest": nearest(unknown, known)},
            )
        if names <= known and names and not names & given:
            missing = ", ".join(map(repr, sorted(names)))
            yield at, f"{text!r} is never decided: the study neither tunes nor fixes {missing}.", {}
        elif name in names:
            yield at, f"{name!r} cannot depend on itself.", {}


def _texts(parameter: AnyParameter) -> Iterator[tuple[str, str]]:
    """The expressions of a parameter by the field they stand in."""
    if parameter.when is not None:
        yield "when", parameter.when
    if isinstance(parameter, DerivedParameter):
        yield "expr", parameter.expr
