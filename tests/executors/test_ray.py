"""Trials on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from pathlib import Path

import pytest

from autotune import executors
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.errors import MissingPrerequisite
from autotune.executors.base import Site
from autotune.trial import Configuration, Failed, FailureKind, Measured, TrialJob
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

ray = pytest.importorskip("ray")
TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "contracts"):
    sys.path.insert(0, str(folder))
contract = importlib.import_module("executor")
fake = importlib.import_module("autotune_fakes.engine")
count = importlib.import_module("autotune_fakes.workload")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS / "fakes"), os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, "object_store_memory": 80 << 20})
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def make(cluster, tmp_path):
    made = []

    def make(**options):
        engine = fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=30.0, stop_timeout_s=1.0))
        workload = count.CountWorkload(count.CountOptions(kind="count"))
        site = Site(engines={"fake": engine}, workload=workload, store=tmp_path, study="s", address=cluster.address, **options)
        made.append(executors.make("ray", site))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


class TestRay(contract.ExecutorContract):
    """The fake engine takes no GPU, so its trials run on the head node."""

    @pytest.fixture(autouse=True)
    def _without_gpus(self, monkeypatch):
        monkeypatch.setattr(fake.FakeEngine, "gpus_needed", lambda self, configuration: 0)


def recorded_site(cluster, store, **options):
    engine = RecordedEngine(RecordedOptions(kind="recorded", gpus=1, **options))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded"))
    return Site(engines={"recorded": engine}, workload=workload, store=store, study="r", address=cluster.address)


def jobs(count):
    for number in range(count):
        configuration = Configuration(engine="recorded", values={"max_num_seqs": 8 + number})
        yield TrialJob(number=number, configuration=configuration, seed=1)


def test_a_node_that_dies_costs_its_trials_a_machine_fault_and_nothing_else(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20) for _ in range(3)]
    cluster.wait_for_nodes()
    with executors.make("ray", recorded_site(cluster, tmp_path, pace=0.08)) as executor:
        assert executor.capacity == 4
        for job in jobs(6):
            executor.submit(job)
        deadline = time.monotonic() + 60
        while ray.available_resources().get("GPU", 0) > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        records = contract.collect_all(executor, 6, 240.0)
        lost = [record for record in records if isinstance(record.outcome, Failed)]
        assert sorted(record.number for record in records) == list(range(6))
        # A trial whose worker had not begun is placed elsewhere by Ray itself, and not lost.
        assert len(lost) <= 1 and all(record.outcome.kind is FailureKind.MACHINE_FAULT for record in lost)
        for record in lost:
            again = record.model_dump(include={"number", "configuration", "origin", "point"})
            executor.submit(TrialJob(**again, attempt=2, seed=1))
            (retried,) = contract.collect_all(executor, 1, 120.0)
            assert isinstance(retried.outcome, Measured) and retried.attempt == 2
        assert any("left it" in notice for notice in executor.notices())
    for node in nodes[1:]:
        cluster.remove_node(node)


def test_a_trial_too_large_for_every_node_is_refused(cluster, tmp_path):
    site = recorded_site(cluster, tmp_path)
    object.__setattr__(site, "engines", {"recorded": RecordedEngine(RecordedOptions(kind="recorded", gpus=8))})
    with executors.make("ray", site) as executor:
        executor.submit(next(jobs(1)))
        (record,) = contract.collect_all(executor, 1)
    assert record.outcome.kind is FailureKind.REJECTED
    assert "needs 8 GPUs on one node" in record.outcome.evidence[0]


def test_files_of_a_trial_come_back_to_the_store(make, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.FakeEngine, "gpus_needed", lambda self, configuration: 0)
    with make() as executor:
        executor.submit(contract.job(0))
        (record,) = contract.collect_all(executor, 1)
    assert record.folder == str(tmp_path / "s" / "trials" / "0000-1")
    assert (Path(record.folder) / "launch.json").is_file()


def test_an_address_without_a_cluster_is_one_clear_message(tmp_path, cluster):
    ray.shutdown()
    site = Site(engines={}, workload=None, store=tmp_path, study="s", address="127.0.0.1:1")
    before = time.monotonic()
    with pytest.raises(MissingPrerequisite, match="ray start --head"):
        executors.make("ray", site)
    assert time.monotonic() - before < 30
