"""Parameters → command-line arguments, by the installed engine's own flags."""

from __future__ import annotations

import json
from collections.abc import Mapping

from autotune.engines.base import Flag
from autotune.trial import Value

ENV = "env."


def split(values: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, str]]:
    """Parameters and environment variables (`env.NAME`) of a configuration; variables whose value is None are left out."""
    parameters = {name: value for name, value in values.items() if not name.startswith(ENV)}
    env = {name.removeprefix(ENV): spelled(value) for name, value in values.items() if name.startswith(ENV) and value is not None}
    return parameters, env


def arguments(parameters: Mapping[str, Value], flags: Mapping[str, Flag]) -> list[str]:
    """Every parameter as its flag takes it, in the given order. A name the engine does not know is passed on for it to refuse."""
    return [part for name, value in parameters.items() for part in argument(name, value, flags.get(name))]


def argument(name: str, value: Value, flag: Flag | None) -> list[str]:
    """One parameter's arguments: none for None (the engine's default) and for a switch that is off by leaving it out."""
    option = flag.option if flag else "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool) and (flag is None or flag.type == "bool"):
        negation = flag.negation if flag else "--no-" + option.removeprefix("--")
        return [option] if value else [negation] if negation else []
    if isinstance(value, list | tuple) and (flag is None or flag.type == "list"):
        return [option, *map(spelled, value)]
    text = spelled(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def spelled(value: Value) -> str:
    """A value as text: JSON for lists, mappings and booleans."""
    return value if isinstance(value, str) else json.dumps(value)
