"""What is launched and tuned: one file an engine; base.py is the contract."""

from __future__ import annotations

from autotune import registry
from autotune.engines.base import Engine


def get(kind: str) -> type[Engine]:
    """The engine class of a kind; nothing of other engines is imported."""
    found: type[Engine] = registry.find("autotune.engines", kind, "engine")
    return found


def kinds() -> tuple[str, ...]:
    """Every engine kind there is."""
    return registry.names("autotune.engines")
