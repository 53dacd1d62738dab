import importlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune import executors, gpu_memory, process
from autotune import nvml as nvidia
from autotune.executors.base import Site
from autotune.trial import Failed, FailureKind, Measured, Phase

TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "contracts"):
    sys.path.insert(0, str(folder))
contract = importlib.import_module("executor")
fake = importlib.import_module("autotune_fakes.engine")
count = importlib.import_module("autotune_fakes.workload")
LOCAL = importlib.import_module("autotune.executors.local")
job, collect_all, leftovers = contract.job, contract.collect_all, contract.leftovers


def site(store, **options):
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=20.0, stop_timeout_s=1.0))
    return Site(
        engines={"fake": engine}, workload=count.CountWorkload(count.CountOptions(kind="count")), store=store, study="s", **options
    )


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**options):
        made.append(executors.make("local", site(tmp_path, **options)))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


class TestLocal(contract.ExecutorContract):
    pass


def test_trials_run_at_once_on_ports_and_cores_of_their_own(make):
    seen = []
    with make(parallel=2, watch=lambda one, label, share: seen.append((one.number, label))) as executor:
        assert executor.capacity == 2
        for number in range(2):
            executor.submit(job(number, start_s=1.0))
        records = collect_all(executor, 2)
    assert all(isinstance(record.outcome, Measured) for record in records)
    ports = {record.command[record.command.index("--port") + 1] for record in records}
    starts = sorted(
        (record.started_at, record.started_at + sum(record.seconds[p] for p in ("start", "measure"))) for record in records
    )
    assert len(ports) == 2 and starts[1][0] < starts[0][1]
    assert {(0, "start"), (1, "start"), (0, "concurrency 1")} <= set(seen)


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_worker_costs_one_machine_fault_and_nothing_else(make, tmp_path):
    with make() as executor:
        executor.submit(job(0, start_s=30))
        wait_until(lambda: leftovers(tmp_path))
        os.kill(executor._running[0].worker.pid, signal.SIGKILL)
        (record,) = collect_all(executor, 1)
        assert isinstance(record.outcome, Failed) and record.outcome.kind is FailureKind.MACHINE_FAULT
        assert "status -9" in record.outcome.evidence[0]
        assert leftovers(tmp_path) == []
        executor.submit(job(0, attempt=2))
        (record,) = collect_all(executor, 1)
        assert isinstance(record.outcome, Measured) and record.attempt == 2


def test_a_killed_fork_server_costs_at_most_one_machine_fault(make, tmp_path):
    with make() as executor:
        for number in range(3):
            executor.submit(job(number))
            collect_all(executor, 1)
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        executor.submit(job(3, start_s=30))
        wait_until(lambda: leftovers(tmp_path))
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        (record,) = collect_all(executor, 1)
        assert record.outcome.kind is FailureKind.MACHINE_FAULT
        assert leftovers(tmp_path) == []
        executor.submit(job(3, attempt=2))
        (record,) = collect_all(executor, 1)
        assert isinstance(record.outcome, Measured)


def test_a_worker_that_cannot_be_started_is_a_machine_fault(make, monkeypatch):
    def fails(*arguments, **options):
        raise EOFError("unexpected EOF")

    with make() as executor:
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("autotune.executors._forkserver"), "start", fails)
            executor.submit(job(0))
        assert [one.number for one in executor.running()] == [0], "until it is collected, or the loop would not wait for it"
        (record,) = collect_all(executor, 1)
        assert record.outcome.kind is FailureKind.MACHINE_FAULT and "unexpected EOF" in record.outcome.evidence[0]
        executor.submit(job(0, attempt=2))
        (record,) = collect_all(executor, 1)
        assert isinstance(record.outcome, Measured)


def test_a_hung_worker_is_ended_at_its_deadline(make, tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.executors.base._OVERRUN_S", -20.0)
    with make() as executor:
        executor.submit(job(0, start_s=30))
        wait_until(lambda: leftovers(tmp_path))
        os.kill(executor._running[0].worker.pid, signal.SIGSTOP)
        (record,) = collect_all(executor, 1)
    assert record.outcome.kind is FailureKind.MACHINE_FAULT and "was hung" in record.outcome.evidence[0]
    assert leftovers(tmp_path) == []


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_local, executor as contract
from autotune import executors
if __name__ == "__main__":
    with executors.make("local", test_local.site(Path(sys.argv[1]))) as one:
        one.submit(contract.job(0, start_s=float(sys.argv[2])))
        print("submitted", flush=True)
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        record = None
        while record is None:
            record = one.collect(1.0)
        print(record.outcome.status, flush=True)
"""


@pytest.fixture
def driver(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(paths=[str(Path(__file__).parent), str(TESTS / "fakes"), str(TESTS / "contracts")]))
    started = []

    def driver(start_s):
        argv = [sys.executable, str(script), str(tmp_path), str(start_s)]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout.readline() == "submitted\n"
        wait_until(lambda: leftovers(tmp_path))
        return started[-1]

    yield driver
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()
    process.reap(tmp_path)


def test_a_killed_driver_leaves_nothing_even_before_the_next_start(driver, tmp_path):
    one = driver(30)
    one.kill()
    one.wait()
    wait_until(lambda: not leftovers(tmp_path), 10)


def test_ctrl_c_in_the_terminal_reaches_the_driver_alone(driver):
    one = driver(0.5)
    os.killpg(one.pid, signal.SIGINT)
    assert one.stdout.readline() == "measured\n"


class FakeNvml:
    """Two GPUs with an idle 100 MiB; `used` is what they hold now."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.used = {0: 100 << 20, 1: 100 << 20}
        self.energy = 0
        self.processes = {0: [], 1: []}

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30, used=self.used[handle])

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-test-{os.getpid()}-{handle}"

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA Test"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.processes[handle]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy += 1000
        return self.energy

    def nvmlDeviceGetClockInfo(self, handle, kind):
        raise self.NVMLError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x40


@pytest.fixture
def nvml(monkeypatch):
    library = FakeNvml()
    monkeypatch.setattr(nvidia, "library", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


def needing(monkeypatch, gpus):
    monkeypatch.setattr(fake.FakeEngine, "gpus_needed", lambda self, configuration: configuration.values.get("tp", gpus))


def test_each_trial_is_leased_gpus_of_its_own(make, nvml, monkeypatch):
    needing(monkeypatch, 1)
    with make() as executor:
        assert executor.capacity == 2
        for number in range(3):
            executor.submit(job(number, speed=1 + number))
        assert len(executor._running) == 2
        records = collect_all(executor, 3)
    assert {record.gpus for record in records} == {(0,), (1,)}
    assert {record.environment["CUDA_VISIBLE_DEVICES"] for record in records} == {"0", "1"}


def test_a_configuration_that_needs_more_gpus_than_there_are_is_refused_unrun(make, nvml, monkeypatch):
    needing(monkeypatch, 1)
    with make() as executor:
        executor.submit(job(0, tp=4))
        assert [one.number for one in executor.running()] == [0]
        (record,) = collect_all(executor, 1)
        assert executor.running() == ()
    assert record.outcome.kind is FailureKind.REJECTED and "needs 4 GPUs" in record.outcome.evidence[0]


def test_a_gpu_whose_memory_does_not_come_back_is_quarantined(make, nvml, monkeypatch, tmp_path):
    needing(monkeypatch, 1)
    waited = gpu_memory.wait_memory_back
    monkeypatch.setattr(gpu_memory, "wait_memory_back", lambda idle: waited(idle, timeout_s=0.1))
    with make(parallel=1) as executor:
        executor.submit(job(0, start_s=30))
        wait_until(lambda: leftovers(tmp_path))
        nvml.used[0] = 5 << 30
        nvml.processes[0] = [SimpleNamespace(pid=4242, usedGpuMemory=1)]
        os.kill(executor._running[0].worker.pid, signal.SIGKILL)
        collect_all(executor, 1)
        (notice,) = executor.notices()
        assert "GPU 0 is quarantined: 4.9 GiB" in notice and "process 4242" in notice and executor.notices() == []
        executor.submit(job(1))
        (record,) = collect_all(executor, 1)
        assert record.gpus == (1,)
        executor._leases.quarantine(1, "GPU 1 is quarantined.")
        assert executor.capacity == 0
        executor.submit(job(2))
        (record,) = collect_all(executor, 1)
        assert record.outcome.kind is FailureKind.MACHINE_FAULT and "GPU 1 is quarantined." in record.outcome.evidence


@pytest.mark.parametrize("kind", ["crashed", "machine-fault"])
def test_a_trial_whose_gpu_has_left_the_machine_is_not_held_against_its_configuration(make, nvml, monkeypatch, kind):
    """Its engine dies of it like of its own doing, and the sampler would learn that the configuration crashes."""
    failure = Failed(kind=FailureKind(kind), phase=Phase.MEASURE, evidence=("CUDA error: an illegal access.",), advice="Mend it.")
    needing(monkeypatch, 1)
    monkeypatch.setattr(gpu_memory, "wait_memory_back", lambda idle: dict.fromkeys(idle))
    with make(parallel=1) as executor:
        executor.submit(job(0, start_s=30))
        wait_until(lambda: executor._running and executor._running[0].context.gpus)
        one = executor._running[0]
        one.record = one.job.ended(failure)
        os.kill(one.worker.pid, signal.SIGKILL)
        (record,) = collect_all(executor, 1)
        assert "driver no longer answers" in executor.notices()[0]
    assert record.outcome.kind is FailureKind.MACHINE_FAULT
    assert ("no longer answers for GPU 0" in record.outcome.evidence[0]) == (kind == "crashed")
