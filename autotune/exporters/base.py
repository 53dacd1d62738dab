"""The contract of an exporter: a measured trial in, files that launch it out.

A new exporter is one file in this folder whose module-level name `exporter` is the Exporter subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from autotune.engines.base import Identity
from autotune.trial import Configuration, Frozen, Value


class Figure(Frozen):
    """A measured number as a file's reader should see it; `low` and `high` bound its 95 % interval when one was measured."""

    metric: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    default: float | None = None
    """The engine's default, measured in the same study."""

    def __str__(self) -> str:
        text = f"{self.metric} = {self.value:.4g} {self.unit}".rstrip()
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return text + (f" (default {self.default:.4g})" if self.default is not None else "")


class Winner(Frozen):
    """What an exporter renders: one measured trial and where its numbers come from."""

    study: str
    trial: int
    engine: Identity
    model: str
    """As the study named it."""
    model_path: str
    """What the engine was given: a local folder or a hub name."""
    configuration: Configuration
    parameters: Mapping[str, Value]
    """All parameters that the launch names, fixed, tuned and made explicit, by the engine's own names, without `env.` ones."""
    env: Mapping[str, str] = Field(default_factory=dict)
    """Tuned and fixed environment variables a launch needs; never secrets."""
    interpreter: Path | None = None
    """The interpreter of the engine's own environment, where its parser can prove a file; None is the tuner's."""
    gpus: int = 0
    options: Mapping[str, Value] = Field(default_factory=dict)
    """The study's engine section, for an exporter that needs more of it than parameters."""
    figures: tuple[Figure, ...] = ()
    measured_on: str = ""
    """Date and device, for the header."""
    unsteady: tuple[str, ...] = ()
    """Why the figures depend on when they were measured; empty when they do not."""

    cautions: tuple[str, ...] = ()
    """What to know before the files are used; a sentence each."""

    def header(self) -> list[str]:
        """Lines for a comment on top of every exported file."""
        device = self.engine.device
        return [
            f"Tuned by autotune: study {self.study}, trial {self.trial}, {self.engine.kind} {self.engine.version} on {device}.",
            *([f"Measured {self.measured_on}."] if self.measured_on else []),
            *(str(figure) for figure in self.figures),
            *(f"Not steady while measured, {reason}" for reason in self.unsteady),
            *self.cautions,
        ]


class Exporter(ABC):
    """Renders a winner as files."""

    name: ClassVar[str]
    engines: ClassVar[tuple[str, ...]]
    """Engine kinds whose winners it can render."""

    @abstractmethod
    def render(self, winner: Winner) -> Mapping[str, str]:
        """File name → text."""

    @abstractmethod
    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        """Run the target's own parser over the rendered files; returns one sentence saying what was proved.

        Raises InvalidInput when it refuses, MissingPrerequisite when its parser is not installed here.
        """
