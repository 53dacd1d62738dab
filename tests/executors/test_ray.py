"""Trials on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from autotune import executors, proc, process
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.errors import MachineUnusable, MissingPrerequisite
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

tunes = importlib.import_module("autotune.executors._ray_tune")
desks = importlib.import_module("autotune.executors._ray_desk")
rooms = importlib.import_module("autotune.executors._ray_room")
Held, News = desks.Held, desks.News

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def temporary():
    """The temporary folder of every node: short, since Ray puts sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


IDLE = 100 << 20


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A file with what every GPU of every node uses, in bytes."""
    path = tmp_path_factory.mktemp("nvml") / "used"
    path.write_text(str(IDLE))
    return path


@pytest.fixture(scope="module")
def far_port():
    return process.free_port()


@pytest.fixture(scope="module")
def cluster(temporary, memory, far_port):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        folders = [str(TESTS / "fakes"), str(TESTS / "fakes" / "nvml"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        patch.setenv("FAKE_NVML", str(memory))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = {"num_cpus": 4, "include_dashboard": False, "ray_client_server_port": far_port}
            found = Cluster(initialize_head=True, head_node_args={**NODE, **head})
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def add_node(cluster):
    """Adds a node with some GPUs; nodes that a test leaves are removed."""
    added = []

    def add_node(gpus, **variables):
        added.append(cluster.add_node(**NODE, num_gpus=gpus, env_vars=variables or None))
        return added[-1]

    yield add_node
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def make(cluster, tmp_path):
    made = []

    def make(**options):
        engine = fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=90.0, stop_timeout_s=1.0))
        workload = count.CountWorkload(count.CountOptions(kind="count"))
        address = {"address": cluster.address, **options}
        site = Site(engines={"fake": engine}, workload=workload, store=tmp_path, study="s", **address)
        made.append(executors.make("ray", site))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


@pytest.fixture
def by_speed(monkeypatch):
    """The fake engine needs a GPU for each hundred of its speed, so that what a trial needs is its configuration's."""
    monkeypatch.setattr(fake.FakeEngine, "gpus_needed", lambda self, configuration: configuration.values.get("speed", 100) // 100)


class TestRay(contract.ExecutorContract):
    """The fake engine takes no GPU, so its trials run on the head node."""


def recorded_site(cluster, store, **options):
    engine = RecordedEngine(RecordedOptions(kind="recorded", gpus=1, **options))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded"))
    return Site(engines={"recorded": engine}, workload=workload, store=store, study="r", address=cluster.address)


def jobs(count):
    for number in range(count):
        configuration = Configuration(engine="recorded", values={"max_num_seqs": 8 + number})
        yield TrialJob(number=number, configuration=configuration, seed=1)


def wait_until(true, timeout_s=90.0):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def only_gpus(executor, count):
    """Wait until the cluster has so many: nodes of earlier tests count as alive for a while."""
    wait_until(lambda: sum(has.get("GPU", 0) for has in executor._room.usable().values()) == count)


def scratch_folders(temporary):
    """What trials left in the temporary folder of the nodes; the cache is meant to stay."""
    return [path for path in temporary.glob("autotune-*") if path.name != "autotune-cache"]


def groups_left(cluster):
    """Placement groups that still exist after a driver left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=cluster.address, namespace="autotune", log_to_driver=False, logging_level="ERROR")
    try:
        return [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
    finally:
        ray.shutdown()


def of_tune(temporary):
    """What Ray Tune keeps of its runs in the folders of the nodes' sessions."""
    return [path for path in temporary.glob("ray/session_2*/artifacts/*") if not path.is_symlink()]


def test_a_node_that_dies_costs_its_trials_a_machine_fault_and_nothing_else(cluster, add_node, tmp_path):
    nodes = [add_node(1) for _ in range(3)]
    with executors.make("ray", recorded_site(cluster, tmp_path, pace=0.08)) as executor:
        assert executor.capacity == 4
        for job in jobs(6):
            executor.submit(job)
        records = [record for record in (executor.collect(3.0),) if record]
        cluster.remove_node(nodes[0], allow_graceful=False)
        records += contract.collect_all(executor, 6 - len(records), 240.0)
        lost = [record for record in records if isinstance(record.outcome, Failed)]
        assert sorted(record.number for record in records) == list(range(6))
        # A node on which no trial had begun yet costs none.
        assert len(lost) <= 1 and all(record.outcome.kind is FailureKind.MACHINE_FAULT for record in lost)
        for record in lost:
            again = record.model_dump(include={"number", "configuration", "origin", "point"})
            executor.submit(TrialJob(**again, attempt=2, seed=1))
            (retried,) = contract.collect_all(executor, 1, 120.0)
            assert isinstance(retried.outcome, Measured) and retried.attempt == 2
        assert any("left it" in notice for notice in executor.notices())
    assert groups_left(cluster) == []


def test_an_engine_whose_node_died_is_ended_by_the_next_trial_there(cluster, add_node, make, by_speed, tmp_path, temporary):
    node = add_node(1)
    executor = make()
    executor.submit(contract.job(0, speed=100, start_s=80))
    wait_until(lambda: executor.collect(0.1) or contract.leftovers(tmp_path))
    engine = contract.leftovers(tmp_path)
    cluster.remove_node(node, allow_graceful=False)
    (lost,) = contract.collect_all(executor, 1, 120.0)
    assert lost.outcome.kind is FailureKind.MACHINE_FAULT and lost.attempt == 1
    assert lost.seconds["measure"] > 0, "what it took counts against the budget"
    add_node(1)
    executor.submit(contract.job(1, speed=100))
    (record,) = contract.collect_all(executor, 1, 120.0)
    assert isinstance(record.outcome, Measured)
    assert not set(engine) & set(contract.leftovers(tmp_path))
    executor.close()
    assert contract.leftovers(tmp_path) == [] and scratch_folders(temporary) == []


def test_a_lost_trial_cost_the_time_of_all_its_gpus(cluster, add_node, make, by_speed, tmp_path):
    node = add_node(2)
    with make() as executor:
        executor.submit(contract.job(0, speed=200, start_s=80))
        wait_until(lambda: executor.collect(0.1) or contract.leftovers(tmp_path))
        cluster.remove_node(node, allow_graceful=False)
        (lost,) = contract.collect_all(executor, 1, 120.0)
    assert lost.gpus == (0, 1)
    assert lost.gpu_minutes == pytest.approx(2 * lost.seconds["measure"] / 60) and lost.seconds["measure"] > 0


def test_a_node_with_another_engine_runs_no_trial(add_node, make, by_speed):
    """The engine that travels there knows what is installed on the driver's machine; its node's own answer counts."""
    add_node(1, FAKE_VERSION="2")
    with make() as executor:
        only_gpus(executor, 1)
        executor.site.engines["fake"].identity()
        executor.submit(contract.job(0, speed=100))
        with pytest.raises(MachineUnusable, match="fake 2 instead of 1") as raised:
            contract.collect_all(executor, 1, 120.0)
        assert "would not compare" in str(raised.value) and "No trial runs on" in executor.notices()[0]


def test_trials_go_on_where_the_driver_s_engine_is_installed(add_node, make, by_speed, tmp_path):
    for _ in range(2):
        add_node(1, FAKE_VERSION="2")
    add_node(1)
    with make() as executor:
        for number in range(4):
            executor.submit(contract.job(number, speed=100, **{"env.SHOWN": number}))
        records = contract.collect_all(executor, 4, 240.0)
        told = [notice for notice in executor.notices() if "fake 2 instead of 1" in notice]
        assert len(told) <= 2
    assert sorted(record.number for record in records) == [0, 1, 2, 3]
    assert all(isinstance(record.outcome, Measured) and record.attempt == 1 for record in records)
    assert {record.configuration.values["env.SHOWN"] for record in records} == {0, 1, 2, 3}
    assert not [path for path in tmp_path.rglob("launch.json") if "FAKE_VERSION" in path.read_text()]


def test_a_node_that_cannot_import_what_a_trial_is_made_of_costs_no_attempt(add_node, make, by_speed):
    """It comes first, so that the trials meet it before there is any other."""
    add_node(1, PYTHONPATH=str(Path(executors.__file__).parents[2]))
    with make() as executor:
        only_gpus(executor, 1)
        executor.submit(contract.job(0, speed=100))
        with pytest.raises(MachineUnusable, match="No module named 'autotune_fakes'"):
            contract.collect_all(executor, 1, 120.0)
    with make() as executor:
        add_node(1)
        for number in range(3):
            executor.submit(contract.job(number, speed=100))
        records = contract.collect_all(executor, 3, 240.0)
        told = [notice for notice in executor.notices() if "Install there what the driver's machine has" in notice]
    assert all(isinstance(record.outcome, Measured) and record.attempt == 1 for record in records)
    assert len(told) <= 1


def test_a_node_that_fails_every_trial_is_given_no_more(add_node, make, by_speed):
    """It is free when the others are busy, and would take one trial after the other."""
    add_node(1, FAKE_BROKEN="1")
    add_node(1)
    with make() as executor:
        records, number = [], 0
        while len(records) < 12:
            while len(executor.running()) < 2:
                executor.submit(contract.job(number, speed=100, start_s=2))
                number += 1
            records += [record for record in (executor.collect(0.5),) if record]
        failed = [record for record in records if isinstance(record.outcome, Failed)]
        assert len(failed) == 2, [record.outcome for record in failed]
        assert any("failed the last 2 trials there" in notice for notice in executor.notices())


def test_a_trial_is_placed_where_its_configuration_finds_its_gpus(cluster, add_node, make, by_speed, tmp_path, temporary):
    """The nodes have one GPU and two; the two are wanted while one-GPU trials are there too."""
    add_node(1)
    add_node(2)
    with make() as executor:
        for number, speed in enumerate((100, 200, 100, 200)):
            executor.submit(contract.job(number, speed=speed))
        records = contract.collect_all(executor, 4, 240.0)
        assert {record.number: len(record.gpus) for record in records} == {0: 1, 1: 2, 2: 1, 3: 2}
        assert all(isinstance(record.outcome, Measured) for record in records)
        shown = {record.number: record.environment["CUDA_VISIBLE_DEVICES"] for record in records}
        assert shown[1] == shown[3] == "0,1"
    assert groups_left(cluster) == []
    assert contract.leftovers(tmp_path) == [] and scratch_folders(temporary) == []


def test_a_trial_too_large_for_every_node_is_refused(cluster, add_node, make, by_speed):
    add_node(2)
    with make() as executor:
        executor.submit(contract.job(0, speed=800))
        assert [job.number for job in executor.running()] == [0]
        (record,) = contract.collect_all(executor, 1)
        assert executor.running() == ()
    assert record.outcome.kind is FailureKind.REJECTED
    assert "needs 8 GPUs on one node, and the largest node has 2" in record.outcome.evidence[0]


def test_a_trial_whose_only_node_died_does_not_wait_for_ever(cluster, add_node, make, by_speed, tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "_PATIENCE_S", 3.0)
    node = add_node(2)
    with make() as executor:
        executor.submit(contract.job(0, speed=200, start_s=80))
        wait_until(lambda: executor.collect(0.1) or contract.leftovers(tmp_path))
        executor.submit(contract.job(1, speed=200))
        cluster.remove_node(node, allow_graceful=False)
        records = contract.collect_all(executor, 2, 120.0)
    assert {record.number: record.outcome.kind for record in records} == dict.fromkeys((0, 1), FailureKind.MACHINE_FAULT)
    assert "needs 2 GPUs" in next(record for record in records if record.number == 1).outcome.evidence[0]


def test_the_next_trial_begins_once_the_memory_of_its_gpu_is_back(add_node, make, by_speed, tmp_path, memory):
    """It is asked for its bar then and not before."""
    add_node(1)
    asked = []
    with make(bar=lambda job: asked.append(job.number)) as executor:
        executor.submit(contract.job(0, speed=100, start_s=3))
        executor.submit(contract.job(1, speed=100))
        wait_until(lambda: executor.collect(0.1) or contract.leftovers(tmp_path))
        memory.write_text(str(10 << 30))
        try:
            contract.collect_all(executor, 1)
            assert all(executor.collect(0.5) is None for _ in range(10)) and 1 not in asked
        finally:
            memory.write_text(str(IDLE))
        (record,) = contract.collect_all(executor, 1)
    assert isinstance(record.outcome, Measured) and 1 in asked


def test_gpus_whose_memory_is_held_take_no_trials(add_node, make, by_speed, monkeypatch):
    monkeypatch.setattr(rooms, "_PATIENCE_S", 0.0)
    add_node(2)
    with make() as executor:
        only_gpus(executor, 2)
        node = next(node for node, has in executor._room.usable().items() if has.get("GPU"))
        held = News("held", "0-1", Held(node, "a-node", 2, ("GPU 0 is quarantined: 4.9 GiB",)))
        before = executor.capacity
        executor._take_in(held)
        executor._take_in(held)
        assert executor.notices() == ["On a-node: GPU 0 is quarantined: 4.9 GiB"]
        assert executor.capacity == 0 < before
        assert "No node of the cluster has 1 GPUs" in executor.notices()[0]
        executor._take_in(held._replace(content=held.content._replace(messages=())))
        assert executor.capacity == before and "used again" in executor.notices()[0]


def test_trials_are_run_again_when_tunes_own_loop_ends(make, monkeypatch, tmp_path):
    def fails(*arguments, **named):
        raise RuntimeError("boom")

    with make() as executor:
        with monkeypatch.context() as patch:
            patch.setattr(tunes.Listener, "on_trial_start", fails)
            for number in range(2):
                executor.submit(contract.job(number))
            lost = contract.collect_all(executor, 2)
        assert executor.running() == ()
        assert {record.outcome.kind for record in lost} == {FailureKind.MACHINE_FAULT}
        assert "Ray Tune ended: RuntimeError: boom" in lost[0].outcome.evidence[0]
        executor.submit(contract.job(2))
        (record,) = contract.collect_all(executor, 1)
    assert isinstance(record.outcome, Measured)


def test_an_engine_has_the_threads_of_its_node_and_not_of_its_bundle(make, tmp_path):
    """Ray sets OMP_NUM_THREADS in its workers, which would slow down whatever computes on cores there."""
    with make() as executor:
        executor.submit(contract.job(0, start_s=60))
        wait_until(lambda: executor.collect(0.1) or len(contract.leftovers(tmp_path)) == 2)
        assert [proc.variable(pid, "OMP_NUM_THREADS") for pid in contract.leftovers(tmp_path)] == [None, None]


def test_what_a_killed_worker_leaves_is_ended_without_another_trial(make, tmp_path, temporary):
    with make() as executor:
        executor.submit(contract.job(0, mode="stubborn", start_s=60))
        wait_until(lambda: executor.collect(0.1) or len(contract.leftovers(tmp_path)) == 2)
        time.sleep(1.0)
        os.kill(proc.parse_tag(proc.tag_of(contract.leftovers(tmp_path)[0])).driver, signal.SIGKILL)
        wait_until(lambda: not contract.leftovers(tmp_path) and not scratch_folders(temporary))


def test_a_hung_worker_costs_its_trial_and_makes_room(make, monkeypatch, tmp_path):
    with make(parallel=1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(Site, "patience_s", lambda self, job: 4.0)
            executor.submit(contract.job(0, start_s=80))
            (lost,) = contract.collect_all(executor, 1)
        assert lost.outcome.kind is FailureKind.MACHINE_FAULT and "hung" in lost.outcome.evidence[0]
        wait_until(lambda: not contract.leftovers(tmp_path))
        executor.submit(contract.job(1))
        (record,) = contract.collect_all(executor, 1)
        assert record.number == 1 and isinstance(record.outcome, Measured)


def test_what_is_withdrawn_never_begins(make, add_node, by_speed, tmp_path):
    add_node(1)
    with make() as executor:
        executor.submit(contract.job(0, speed=100, start_s=6))
        executor.submit(contract.job(1, speed=100))
        wait_until(lambda: executor.collect(0.1) or contract.leftovers(tmp_path))
        executor.withdraw()
        assert [job.number for job in executor.running()] == [0]
        (record,) = contract.collect_all(executor, 1)
        assert record.number == 0 and isinstance(record.outcome, Measured)
        executor.submit(contract.job(2, speed=100))
        assert [one.number for one in contract.collect_all(executor, 1)] == [2]
    assert not (tmp_path / "s" / "trials" / "0001-1").exists()


def test_a_trial_waits_for_the_first_node_that_can_run_it(make, add_node, by_speed):
    """A driver may begin before the cluster's GPU nodes have joined."""
    with make() as executor:
        wait_until(lambda: not any(has.get("GPU") for has in executor._room.usable().values()))
        assert executor.capacity == 1
        executor.submit(contract.job(0, speed=100))
        assert executor.collect(1.0) is None and "wait 10 minutes for one to join" in executor.notices()[0]
        add_node(1)
        (record,) = contract.collect_all(executor, 1, 120.0)
    assert isinstance(record.outcome, Measured)


def test_files_that_cannot_be_kept_undo_no_measurement(make, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "trials").write_text("in the way")
    with make() as executor:
        executor.submit(contract.job(0))
        (record,) = contract.collect_all(executor, 1)
        assert isinstance(record.outcome, Measured)
        assert any("files of trial 0 could not be kept" in notice for notice in executor.notices())


def test_files_that_did_not_arrive_undo_no_measurement(make, monkeypatch):
    monkeypatch.setattr(tunes, "_fetched", lambda key, record, files: News("record", key, (ray.get(record), "a slow network")))
    with make() as executor:
        executor.submit(contract.job(0))
        (record,) = contract.collect_all(executor, 1)
        assert isinstance(record.outcome, Measured)
        assert executor.notices() == ["The files of trial 0 did not arrive from its node: a slow network."]


def test_files_of_a_trial_come_back_to_the_store(make, tmp_path, temporary):
    with make() as executor:
        executor.submit(contract.job(0))
        (record,) = contract.collect_all(executor, 1)
    assert of_tune(temporary) == []
    assert record.folder == str(tmp_path / "s" / "trials" / "0000-1")
    assert (Path(record.folder) / "launch.json").is_file()


def test_signals_stay_with_the_study(make):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        ray.shutdown()
        make()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_an_address_without_a_cluster_is_one_clear_message(tmp_path, cluster):
    ray.shutdown()
    site = Site(engines={}, workload=None, store=tmp_path, study="s", address="127.0.0.1:1")
    before = time.monotonic()
    with pytest.raises(MissingPrerequisite, match="ray start --head"):
        executors.make("ray", site)
    assert time.monotonic() - before < 30


STUDY = """
name: alone
engine: {kind: recorded}
workload: {kind: recorded}
search_space: {include: recorded}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 3}
finalists: {count: 0}
executor: {kind: ray}
tracking: {enabled: false}
"""


def test_a_study_without_an_address_starts_ray_and_leaves_nothing_of_it(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))
    try:
        (tmp_path / "study.yaml").write_text(STUDY)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"TMPDIR": str(folder)}
        argv = [sys.executable, "-m", "autotune.cli", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
        ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0 and not ran.stderr, ran.stdout + ran.stderr
        left = [path for path in folder.rglob("*") if path.is_file() or path.is_socket()]
        assert not list(folder.glob("ray/session_2*")) and scratch_folders(folder) == [], left
        wait_until(lambda: processes_of(folder) == [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_study_outside_the_cluster_reaches_it_across_ray_client(cluster, far_port, tmp_path, temporary):
    (tmp_path / "study.yaml").write_text(STUDY.replace("{kind: ray}", f"{{kind: ray, address: 'ray://127.0.0.1:{far_port}'}}"))
    argv = [sys.executable, "-m", "autotune.cli", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
    for _ in range(3):
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        # Ray gives the server that it starts for a client 30 s, whatever else the machine has to do.
        if "Initialization failure" not in ran.stdout + ran.stderr:
            break
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "store" / "alone" / "trials" / "0002-1").is_dir()
    assert scratch_folders(temporary) == [] and of_tune(temporary) == []


def test_a_study_outside_the_cluster_says_so_when_the_cluster_is_gone(tmp_path, temporary, monkeypatch):
    from ray.cluster_utils import Cluster

    port = process.free_port()
    monkeypatch.setenv("TMPDIR", str(temporary))
    own = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port, "object_store_memory": 80 << 20}
    text = STUDY.replace("{kind: ray}", f"{{kind: ray, address: 'ray://127.0.0.1:{port}'}}").replace(
        "{kind: recorded}\nwork", "{kind: recorded, pace: 1.0}\nwork"
    )
    (tmp_path / "study.yaml").write_text(text)
    argv = [sys.executable, "-m", "autotune.cli", "run", str(tmp_path / "study.yaml"), "--store", str(tmp_path / "store")]
    ledger = tmp_path / "store" / "alone" / "ledger.jsonl"
    alone = Cluster(initialize_head=True, head_node_args=own)
    try:
        for _ in range(3):
            with (tmp_path / "said").open("w") as said:
                ran = subprocess.Popen(argv, stdout=said, stderr=subprocess.STDOUT)
            deadline = time.monotonic() + 240
            while ran.poll() is None and time.monotonic() < deadline and not (ledger.is_file() and '"begin"' in ledger.read_text()):
                time.sleep(0.2)
            if "Initialization failure" not in (tmp_path / "said").read_text():
                break
        time.sleep(5.0)
        alone.shutdown()
        assert ran.wait(240) == 6, (tmp_path / "said").read_text()
    finally:
        ran.kill()
        alone.shutdown()
    told = (tmp_path / "said").read_text()
    assert "The Ray cluster does not answer any more" in told and "Traceback" not in told


def processes_of(folder):
    """Processes that were started with the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        found += [command] if str(folder).encode() in command else []
    return found
