"""Parameters become arguments by the flag's own type."""

from __future__ import annotations

import pytest

from autotune.engines import _flags
from autotune.engines.base import Flag

SWITCH = Flag(name="x_y", option="--x-y", negation="--no-x-y", type="bool")
ONLY_ON = Flag(name="x_y", option="--x-y", type="bool")
NUMBER = Flag(name="x_y", option="--x-y", type="int")
MAPPING = Flag(name="x_y", option="--x-y", type="json")
SEVERAL = Flag(name="x_y", option="--x-y", type="list")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        (SWITCH, True, ["--x-y"]),
        (SWITCH, False, ["--no-x-y"]),
        (SWITCH, None, []),
        (ONLY_ON, True, ["--x-y"]),
        (ONLY_ON, False, []),
        (NUMBER, 8, ["--x-y", "8"]),
        (NUMBER, 0.5, ["--x-y", "0.5"]),
        (NUMBER, -1, ["--x-y=-1"]),
        (NUMBER, "8k", ["--x-y", "8k"]),
        (MAPPING, {"method": "ngram"}, ["--x-y", '{"method": "ngram"}']),
        (MAPPING, [1, 2], ["--x-y", "[1, 2]"]),
        (MAPPING, True, ["--x-y", "true"]),
        (SEVERAL, [1, 2], ["--x-y", "1", "2"]),
        (SEVERAL, 1, ["--x-y", "1"]),
        (None, True, ["--x-y"]),
        (None, False, ["--no-x-y"]),
        (None, [1, 2], ["--x-y", "1", "2"]),
        (None, "text with spaces", ["--x-y", "text with spaces"]),
    ],
)
def test_argument(flag, value, expected):
    assert _flags.argument("x_y", value, flag) == expected


def test_environment_variables_are_told_apart():
    values = {"max_num_seqs": 8, "env.OMP_NUM_THREADS": 2, "env.VLLM_X": "a b", "env.UNSET": None}
    assert _flags.split(values) == ({"max_num_seqs": 8}, {"OMP_NUM_THREADS": "2", "VLLM_X": "a b"})
