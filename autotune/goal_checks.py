"""Whether the engines report what a study's goals are about: some numbers exist under some settings only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.engines.base import Engine
from autotune.errors import Mistake
from autotune.search import grid
from autotune.source import Source
from autotune.space import Space
from autotune.study import Study
from autotune.trial import Configuration, Value

_DRAWS = 100
"""Enough that a setting which a fiftieth of the space has is seen in six of seven checks."""

_OF_A_GPU = ("peak_gpu_memory_gib", "gpu_utilization", "energy_joule", "energy_joule_per_token")


@dataclass(frozen=True)
class Goals:
    """A study's goals beside what its engines report. `resolved` is what each engine runs with where nobody sets anything;
    `named` are the default configurations, which lead, and the study's own."""

    study: Study
    space: Space
    engines: Mapping[str, Engine]
    resolved: Mapping[str, Mapping[str, Value]]
    named: Sequence[Configuration]

    def mistakes(self, text: Source) -> Iterator[Mistake]:
        """Goals that no configuration could be scored by."""
        silent = [self._unreported(one) for one in (*self.named, *self._drawn())]
        for place, metric in self._metrics():
            if all(metric in one for one in silent):
                yield text.mistake(place, f"No trial of this study would report {metric}: {silent[0][metric]}")

    def notes(self) -> Iterator[str]:
        """Goals that some configurations could not be scored by, the default ones above all."""
        first = [self._unreported(one) for one in self.named]
        drawn = [self._unreported(one) for one in self._drawn()]
        for metric in dict.fromkeys(metric for _, metric in self._metrics()):
            numbers = [number for number, one in enumerate(first) if metric in one]
            if numbers:
                where = " and ".join(_called(number, len(self.engines)) for number in numbers)
                why = f"{first[numbers[0]][metric]}{_loss(numbers)}"
                yield f"{metric} will be missing in {where}, which cannot be scored then: {why}"
            elif lost := [one[metric] for one in drawn if metric in one]:
                yield f"{metric} will be missing in about {len(lost) / len(drawn):.0%} of the search's trials: {lost[0]}"

    def _metrics(self) -> Iterator[tuple[tuple[str, int], str]]:
        """What the goals are about, each with its place in the study."""
        yield from ((("objectives", index), goal.selector.metric) for index, goal in enumerate(self.study.objectives))
        yield from ((("constraints", index), goal.selector.metric) for index, goal in enumerate(self.study.constraints))

    def _unreported(self, one: Configuration) -> Mapping[str, str]:
        values = {**self.resolved.get(one.engine, {}), **self.space.engines[one.engine].fixed, **one.values}
        # The machines of a cluster are not this one.
        on_cpu = values.get("device") == "cpu" and self.study.executor.kind != "ray"
        missing = dict.fromkeys(_OF_A_GPU, f"{one.engine} runs on the CPU of this machine.") if on_cpu else {}
        return {**missing, **self.engines[one.engine].unreported(values)}

    def _drawn(self) -> list[Configuration]:
        """Random configurations that no rule forbids."""
        random = np.random.default_rng(self.study.search.seed)
        found = [self.space.decode(grid.draw(self.space, random)) for _ in range(_DRAWS)]
        return [one for one in found if self.space.forbidden(one, self.resolved.get(one.engine)) is None]


def _called(place: int, defaults: int) -> str:
    """The study's own configurations have no numbers yet: what related studies offer comes before them."""
    return f"trial {place}" if place < defaults else f"first_trials[{place - defaults}]"


def _loss(numbers: Sequence[int]) -> str:
    """What a study loses with its default."""
    gain = " Trial 0 is the default: without its score no gain is told and no finalist is measured again beside it."
    return gain if 0 in numbers else ""
