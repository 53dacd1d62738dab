"""What the parameters of a space read of each other: `when` conditions and derived expressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autotune.expression import parse
from autotune.parameters import AnyParameter, DerivedParameter, TupleParameter


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
        for read in sorted(reads(parameters[name]) & owners.keys()):
            place(owners[read], (*above, name))
        result[name] = parameters[name]

    for name in parameters:
        place(name, ())
    return result


def circle(name: str, parameters: Mapping[str, AnyParameter]) -> tuple[str, ...]:
    """The way from a parameter over those it reads back to itself; empty when there is none."""
    owners = {member: owner for owner, parameter in parameters.items() for member in settable({owner: parameter})}

    def way(here: str, passed: tuple[str, ...]) -> tuple[str, ...]:
        for read in sorted(owners[known] for known in reads(parameters[here]) & owners.keys()):
            if read == name:
                return (*passed, here, name)
            if read not in (*passed, here):
                found = way(read, (*passed, here))
                if found:
                    return found
        return ()

    return way(name, ())


def reads(parameter: AnyParameter) -> frozenset[str]:
    """The names that a parameter's condition and expression read."""
    return frozenset[str]().union(*(parse(text).names for _, text in texts(parameter)))


def texts(parameter: AnyParameter) -> Iterator[tuple[str, str]]:
    """The expressions of a parameter by the field they stand in."""
    if parameter.when is not None:
        yield "when", parameter.when
    if isinstance(parameter, DerivedParameter):
        yield "expr", parameter.expr
