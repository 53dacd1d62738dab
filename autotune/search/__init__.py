"""How configurations are proposed. The only room that knows Optuna."""

from __future__ import annotations

from autotune.search.driver import Driver, First, Proposal

__all__ = ["Driver", "First", "Proposal"]
