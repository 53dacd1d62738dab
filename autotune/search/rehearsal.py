"""Asks a sampler that a study brings or sets up for a point of its space, before a GPU second is spent on the first."""

from __future__ import annotations

import numpy as np

from autotune.score import Score
from autotune.search import grid, samplers
from autotune.search.history import History
from autotune.space import Space
from autotune.study import Study

_TRIALS = 12
"""What it is told of: numbers drawn at random, as a search has them when its model takes over."""


def rehearse(study: Study, space: Space) -> None:
    """Raise InvalidInput or MissingPrerequisite for a sampler that cannot be built, AutotuneError for one that cannot search."""
    search = study.search
    samplers.check(search.sampler, search.options)
    if search.sampler == "grid" or not (":" in search.sampler or search.options):
        return
    random = np.random.default_rng(search.seed)
    history = History(space, [one.direction for one in study.objectives], [one.name for one in study.constraints])
    for number in range(_TRIALS):
        values, violations = random.random(len(study.objectives)), random.random(len(study.constraints)) - 1
        told = Score(values=tuple(values.tolist()), violations=tuple(violations.tolist()))
        history.tell(history.entry(number, grid.draw(space, random), told))
    sampler = samplers.build(search.sampler, search.seed, search.options, history.conditional)
    seen = history.trials(impute=not samplers.reads_pruned(sampler))
    samplers.Conversation(sampler, seen, history.directions, space).ask()
