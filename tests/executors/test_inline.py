"""The inline executor runs a trial inside `collect`, so of the contract it keeps what does not speak of time."""

import importlib
import sys
from pathlib import Path

import pytest

from autotune import executors

sys.path.insert(0, str(Path(__file__).parent))
local = importlib.import_module("test_local")
contract = local.contract


@pytest.fixture
def make(tmp_path):
    return lambda **options: executors.make("inline", local.site(tmp_path, **options))


class TestInline:
    test_every_job_comes_back_once_as_it_was_submitted = (
        contract.ExecutorContract.test_every_job_comes_back_once_as_it_was_submitted
    )
    test_a_failed_trial_is_a_record = contract.ExecutorContract.test_a_failed_trial_is_a_record
    test_a_trial_is_launched_once_it_has_its_place_and_not_before = (
        contract.ExecutorContract.test_a_trial_is_launched_once_it_has_its_place_and_not_before
    )


def test_what_was_not_collected_never_runs(make, tmp_path):
    with make() as executor:
        executor.submit(contract.job(0))
        assert [job.number for job in executor.running()] == [0]
    assert executor.running() == () and not list(tmp_path.rglob("launch.json"))
