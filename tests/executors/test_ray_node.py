"""What happens on a node, without Ray."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import gpu
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.executors import _ray_node
from autotune.trial import Configuration, Measured, TrialJob, TrialRecord
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def nvml(monkeypatch):
    library = importlib.import_module("test_local").FakeNvml()
    monkeypatch.setattr(gpu, "_nvml", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    waited = gpu.wait_memory_back
    monkeypatch.setattr(gpu, "wait_memory_back", lambda idle: waited(idle, timeout_s=0.1))
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
    monkeypatch.setattr(gpu, "_nvml", lambda: None)
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
