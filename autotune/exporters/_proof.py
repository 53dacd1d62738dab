"""Proof of a file by the engine's own parser: what it reads must be what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune import engines
from autotune.engines.base import Engine, Flag
from autotune.errors import AutotuneError, InvalidInput, MissingPrerequisite, Mistake
from autotune.exporters.base import Winner
from autotune.trial import Value


def engine_of(winner: Winner) -> Any:
    """The winner's engine, in the environment that it was measured in."""
    found = engines.get(winner.engine.kind)
    return found(found.Options(kind=winner.engine.kind, model=winner.model, python=winner.interpreter))


def configured(winner: Winner) -> Any:
    """The winner's engine with all of the study's engine section, for a file that holds more than parameters."""
    found = engines.get(winner.engine.kind)
    return found(found.Options.model_validate({"kind": winner.engine.kind, "model": winner.model, **winner.options}))


def flags_of(engine: Engine) -> Mapping[str, Flag]:
    """The engine's flags; none where it is not installed, and values are then written by their own type."""
    try:
        return engine.flags()
    except MissingPrerequisite:
        return {}


def prove(engine: Any, argv: Sequence[str], winner: Winner, file: str) -> str:
    """One sentence when the engine's parser reads from `argv` what was measured.

    Raises InvalidInput when it refuses or reads something else, MissingPrerequisite when the engine is not installed here.
    """
    try:
        parsed: Mapping[str, Value] = engine.parse(argv)
    except MissingPrerequisite:
        raise
    except AutotuneError as error:
        raise InvalidInput([Mistake("", str(error), file=file)]) from error
    compare(winner.parameters, parsed, same, "The engine", file)
    identity = engine.identity()
    count = len(winner.parameters)
    return f"The parser of {identity.kind} {identity.version} read {file} and found all {count} parameters as they were measured."


def compare(
    asked: Mapping[str, Value], read: Mapping[str, Value], same: Callable[[Value, Value], bool], reader: str, file: str
) -> None:
    """Raise InvalidInput with every value that `reader` reads otherwise than it was measured."""
    wrong = [
        Mistake(name, f"{reader} reads another value.", found=repr(read.get(name)), allowed=repr(value), file=file)
        for name, value in asked.items()
        if not same(read.get(name), value)
    ]
    if wrong:
        raise InvalidInput(wrong)


def same(parsed: Value, value: Value) -> bool:
    """Whether the parser's value is the measured one. A mapping counts as read: parsers turn it into objects of their own."""
    if isinstance(value, Mapping):
        return True
    if value is None or value is False:
        return parsed in (None, False)
    if isinstance(value, int | float) and isinstance(parsed, int | float):
        return float(value) == float(parsed)
    if isinstance(value, list | tuple) and isinstance(parsed, list | tuple):
        return [str(part) for part in parsed] == [str(part) for part in value]
    return bool(parsed == value or str(parsed) == str(value))
