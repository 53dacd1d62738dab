"""Finds an engine, workload, exporter or executor by its file name, importing nothing else.

`find("autotune.engines", "vllm", "engine")` imports `autotune.engines.vllm` and returns its `engine`. Third parties add
theirs through the entry-point group of the same dotted name.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from autotune.errors import MissingPrerequisite, NotFound, nearest


def names(package: str) -> tuple[str, ...]:
    """Every name the package offers, built-in ones and entry points, sorted."""
    folder = importlib.import_module(package).__path__
    built_in = {module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_") and module.name != "base"}
    return tuple(sorted(built_in | {point.name for point in _points(package)}))


def find(package: str, name: str, attribute: str) -> Any:
    """The object registered as `name`.

    Raises NotFound (with the nearest name) or MissingPrerequisite (a package that the module imports is not installed, or the
    one that names it in an entry point does not hold it).
    """
    points = {point.name: point for point in _points(package)}
    if name in points:
        return _loaded(points[name], attribute)
    if name not in names(package):
        close = nearest(name, names(package))
        hint = f" Did you mean {close!r}?" if close else ""
        raise NotFound(f"There is no {attribute} named {name!r}; there are {', '.join(names(package))}.{hint}")
    try:
        return getattr(importlib.import_module(f"{package}.{name}"), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("autotune"):
            raise
        raise MissingPrerequisite(
            f"The {attribute} {name!r} needs the package {error.name!r}, which is not installed: pip install {error.name}"
        ) from error


def added(group: str, kind: str) -> dict[str, Any]:
    """Everything that installed packages add to a group, by name. Raises MissingPrerequisite."""
    return {point.name: _loaded(point, kind) for point in _points(group)}


def _loaded(point: EntryPoint, kind: str) -> Any:
    """What an entry point names. Importing it runs a stranger's code, which may fail in any way."""
    try:
        return point.load()
    except Exception as error:
        owner = "an installed package" if point.dist is None else f"the installed package {point.dist.name!r}"
        why = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise MissingPrerequisite(
            f"The {kind} {point.name!r} of {owner} cannot be loaded from {point.value!r} ({why}). Mend or remove that package."
        ) from error


def _points(package: str) -> EntryPoints:
    return _installed(package, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Reading the metadata of every installed package takes a tenth of a second, and a command asks several times."""
    return entry_points(group=group)
