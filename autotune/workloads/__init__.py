"""What is done to a launched engine: one file a workload; base.py is the contract."""

from __future__ import annotations

from autotune import registry
from autotune.workloads.base import Workload


def get(kind: str) -> type[Workload]:
    """The workload class of a kind."""
    found: type[Workload] = registry.find("autotune.workloads", kind, "workload")
    return found


def kinds() -> tuple[str, ...]:
    """Every workload kind there is."""
    return registry.names("autotune.workloads")
