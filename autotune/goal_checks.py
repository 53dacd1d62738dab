"""Whether the engines report what a study's goals are about: some numbers exist under some settings only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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


def mistakes(
    study: Study,
    text: Source,
    space: Space,
    engines: Mapping[str, Engine],
    resolved: Mapping[str, Mapping[str, Value]],
    named: Sequence[Configuration],
) -> Iterator[Mistake]:
    """Goals that no configuration could be scored by. `named` are the default ones and the study's own."""
    tried = [*named, *_drawn(study, space, resolved)]
    silent = [_unreported(one, space, engines, resolved) for one in tried]
    places = [(("objectives", index), goal.selector.metric) for index, goal in enumerate(study.objectives)]
    places += [(("constraints", index), goal.selector.metric) for index, goal in enumerate(study.constraints)]
    for place, metric in places:
        if all(metric in one for one in silent):
            yield text.mistake(place, f"No trial of this study would report {metric}: {silent[0][metric]}")


def notes(
    study: Study,
    space: Space,
    engines: Mapping[str, Engine],
    resolved: Mapping[str, Mapping[str, Value]],
    named: Sequence[Configuration],
) -> Iterator[str]:
    """Goals that some configurations could not be scored by, the default ones above all; those lead in `named`."""
    first = [_unreported(one, space, engines, resolved) for one in named]
    drawn = [_unreported(one, space, engines, resolved) for one in _drawn(study, space, resolved)]
    goals = [objective.selector.metric for objective in study.objectives]
    for metric in dict.fromkeys([*goals, *(constraint.selector.metric for constraint in study.constraints)]):
        numbers = [number for number, one in enumerate(first) if metric in one]
        if numbers:
            where = " and ".join(_called(number, len(engines)) for number in numbers)
            yield f"{metric} will be missing in {where}, which cannot be scored then: {first[numbers[0]][metric]}{_loss(numbers)}"
        elif lost := [one[metric] for one in drawn if metric in one]:
            yield f"{metric} will be missing in about {len(lost) / len(drawn):.0%} of the search's trials: {lost[0]}"


def _called(place: int, defaults: int) -> str:
    """The study's own configurations have no numbers yet: what related studies offer comes before them."""
    return f"trial {place}" if place < defaults else f"first_trials[{place - defaults}]"


def _loss(numbers: Sequence[int]) -> str:
    """What a study loses with its default."""
    gain = " Trial 0 is the default: without its score no gain is told and no finalist is measured again beside it."
    return gain if 0 in numbers else ""


def _unreported(
    one: Configuration, space: Space, engines: Mapping[str, Engine], resolved: Mapping[str, Mapping[str, Value]]
) -> Mapping[str, str]:
    values = {**resolved.get(one.engine, {}), **space.engines[one.engine].fixed, **one.values}
    return engines[one.engine].unreported(values)


def _drawn(study: Study, space: Space, resolved: Mapping[str, Mapping[str, Value]]) -> list[Configuration]:
    """Random configurations that no rule forbids."""
    random = np.random.default_rng(study.search.seed)
    found = [space.decode(grid.draw(space, random)) for _ in range(_DRAWS)]
    return [one for one in found if space.forbidden(one, resolved.get(one.engine)) is None]
