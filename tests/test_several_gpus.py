"""Trials an hour of several GPUs: only what ran in the study counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autotune.errors import AutotuneError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from several_gpus import pace


def test_a_trial_taken_from_another_study_takes_none_of_this_ones_time(make_record):
    """Each takes 31 s, and one begins every 60."""
    ran = [make_record(number) for number in range(3)]
    reused = make_record(4).model_copy(update={"reused_from": "other/4", "started_at": 1.7e9})
    assert pace(ran) == pace([*ran, reused]) == (3, pytest.approx(151.0))


def test_a_pause_between_two_calls_is_not_counted(make_record):
    first, second = make_record(0), make_record(5)
    assert pace([first, second]) == (2, pytest.approx(62.0))


def test_a_study_in_which_nothing_ran_is_said_to_have_no_pace():
    with pytest.raises(AutotuneError, match="no trial ran"):
        pace([])
