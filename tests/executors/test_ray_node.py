"""What happens on a node, without Ray."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import gpu_memory
from autotune import nvml as nvidia
from autotune.engines.base import Identity
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.errors import MissingPrerequisite
from autotune.executors import _ray_node
from autotune.trial import Configuration, Measured, TrialJob, TrialRecord
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
fake = importlib.import_module("autotune_fakes.engine")


@pytest.fixture
def nvml(monkeypatch):
    library = importlib.import_module("test_local").FakeNvml()
    monkeypatch.setattr(nvidia, "library", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    waited = gpu_memory.wait_memory_back
    monkeypatch.setattr(gpu_memory, "wait_memory_back", lambda idle: waited(idle, timeout_s=0.1))
    return library


def attempted(seat, number=0):
    engine = RecordedEngine(RecordedOptions(kind="recorded"))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded"))
    job = TrialJob(number=number, configuration=Configuration(engine="recorded", values={}), seed=1)
    text, files = seat.attempt(engine, workload, job, None)
    return TrialRecord.model_validate_json(text), files


@pytest.fixture
def home(tmp_path):
    return _ray_node.Home(str(tmp_path), "s")


def test_without_a_gpu_there_is_no_memory_to_wait_for(home, monkeypatch):
    monkeypatch.setattr(nvidia, "library", lambda: None)
    seat = _ray_node.Seat(home, ())
    record, _ = attempted(seat)
    assert isinstance(record.outcome, Measured) and not seat.watched and seat.held() == []


def test_memory_that_a_trial_leaves_counts_against_what_was_idle_before_the_first(home, nvml):
    seat = _ray_node.Seat(home, (1,))
    attempted(seat)
    assert seat.watched and seat.held() == []
    nvml.used[1] += 400 << 20
    attempted(seat, 1)
    assert seat.held() == []
    nvml.used[1] += 400 << 20
    attempted(seat, 2)
    (message,) = seat.held()
    assert "GPU 1 is quarantined: 0.8 GiB" in message
    nvml.used[1] = 100 << 20
    assert seat.held() == []


def test_what_is_installed_is_asked_of_the_node_and_not_of_the_engine_that_travelled(monkeypatch):
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake"))
    wanted = _ray_node.described(engine.identity())
    assert _ray_node.unlike(_ray_node.installed(pickle.loads(pickle.dumps(engine))), wanted) == []
    monkeypatch.setenv("FAKE_VERSION", "2")
    assert _ray_node.unlike(_ray_node.installed(pickle.loads(pickle.dumps(engine))), wanted) == ["fake 2 instead of 1"]


def test_everything_that_an_installation_differs_in_is_named(monkeypatch):
    monkeypatch.setattr(_ray_node, "measured_by", lambda: "0.1")
    packages = {"vllm": "0.32.0", "torch": "2.11", "flashinfer": "0.6"}
    wanted = _ray_node.described(Identity(kind="vllm", version="0.32.0", python="3.11.2", device="NVIDIA H200", packages=packages))
    monkeypatch.setattr(_ray_node, "measured_by", lambda: "0.2")
    other = Identity(kind="vllm", version="0.31.0", python="3.11.2", device="NVIDIA H100", packages={"torch": "2.11"})
    assert _ray_node.unlike(_ray_node.described(other), wanted) == [
        "autotune 0.2 instead of 0.1",
        "device NVIDIA H100 instead of NVIDIA H200",
        "flashinfer missing instead of 0.6",
        "vllm 0.31.0 instead of 0.32.0",
    ]


def test_an_engine_that_cannot_run_on_a_node_says_why(monkeypatch):
    def missing(self):
        raise MissingPrerequisite("The engine is not installed here.")

    monkeypatch.setattr(fake.FakeEngine, "identity", missing)
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake"))
    assert _ray_node.installed(engine) == "The engine is not installed here."


def test_a_file_that_goes_while_files_are_packed_costs_no_measurement(tmp_path, monkeypatch):
    """What an engine started may outlive it for a moment, and remove its own files."""
    for name in ("stays", "goes"):
        (tmp_path / name).write_text(name)
    looked = Path.is_file

    def is_file(path):
        found = looked(path)
        if path.name == "goes":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    assert _ray_node.packed(tmp_path) == {"stays": b"stays"}


def test_leaving_ends_what_dead_processes_left_and_removes_folders(home, tmp_path):
    run = tmp_path / "artifacts" / "today" / "tune-1"
    (run / "working_dirs").mkdir(parents=True)
    (tmp_path / "else").write_text("stays")
    code = (
        "import subprocess as sub, os; from pathlib import Path; from autotune import process, proc;"
        f"env = {{**os.environ, proc.TAG_VARIABLE: process.make_tag(Path({str(tmp_path)!r}), 's', 0)}};"
        "print(sub.Popen(['sleep', '600'], env=env, stdout=sub.DEVNULL, stderr=sub.DEVNULL).pid)"
    )
    left = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert Path(f"/proc/{left}").exists()
    _ray_node.leave(home, (str(run), str(tmp_path / "never" / "made")))
    ended = Path(f"/proc/{left}/stat")
    assert not ended.exists() or ended.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else"]
