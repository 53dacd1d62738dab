"""A measured trial turned into something that starts: one file an exporter; base.py is the contract."""

from __future__ import annotations

from autotune import registry
from autotune.exporters.base import Exporter


def get(name: str) -> Exporter:
    """The exporter of a name."""
    found: type[Exporter] = registry.find("autotune.exporters", name, "exporter")
    return found()


def names() -> tuple[str, ...]:
    """Every exporter there is."""
    return registry.names("autotune.exporters")
