"""Where trials run: one file for each kind of place. `base` holds the contract."""

from __future__ import annotations

from autotune import registry
from autotune.executors.base import Executor, Site


def names() -> tuple[str, ...]:
    """Every executor there is."""
    return registry.names(__name__)


def make(kind: str, site: Site) -> Executor:
    """Build an executor. Raises NotFound or MissingPrerequisite."""
    built: Executor = registry.find(__name__, kind, "executor")(site)
    return built
