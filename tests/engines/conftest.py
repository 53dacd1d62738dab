"""What the tests of training engines share."""

import pytest

from autotune import process
from autotune.engines.base import Context


@pytest.fixture
def context(tmp_path):
    return Context(
        study="s",
        trial=3,
        tag=process.make_tag(tmp_path, "s", 3),
        folder=tmp_path / "folder",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
        seed=11,
    )
