"""The live comparison, replayed: the surface keeps what was measured, and a study on it ends with its minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autotune.trial import Configuration

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "search"))

import live_replay


def test_the_surface_is_near_what_it_was_fitted_to():
    at, launches = live_replay.world(), live_replay.climbed()
    for one in launches:
        rate, memory = at.truth(Configuration(engine="vllm", values=one.values))
        assert rate == pytest.approx(one.rate, rel=0.35)
        assert memory == pytest.approx(one.memory_gib, rel=0.08)


@pytest.mark.parametrize("name", ["ours", "TPE at 36 requests/s, as it ran live"])
def test_a_study_is_worth_more_the_longer_it_ran_and_never_all(name):
    course = live_replay.arms()[name](live_replay.world(), 0)
    assert len(course.minutes) > 15 and course.minutes[-2] < live_replay.MINUTES[-1] <= course.minutes[-1]
    assert 0.5 < course.at(45) <= 1.0
    assert course.at(0.1) == 0.0 and course.at(20) <= course.at(45) + 0.1
