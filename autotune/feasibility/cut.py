"""What a configuration is cut for before it costs a launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autotune.trial import Configuration, Frozen, Scalar

Certainty = Literal["certain", "likely"]


class Cut(Frozen):
    """A configuration that is not launched, and why. Only a `likely` one may be audited by running it.

    `number` and `attempt` say which ask of the search it came from, and `point` is the sampler's encoding; both are
    empty for a configuration that somebody named.
    """

    rule: Literal["forbidden", "model", "memory", "dominance"]
    reason: str
    certainty: Certainty
    configuration: Configuration
    number: int = -1
    attempt: int = 0
    point: Mapping[str, Scalar] = {}
