import importlib
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune import gpu, gpu_memory, proc
from autotune import nvml as nvidia
from autotune.errors import AutotuneError
from autotune.leases import Leases

sys.path.insert(0, str(Path(__file__).parent / "executors"))


@pytest.fixture
def nvml(monkeypatch):
    library = importlib.import_module("test_local").FakeNvml()
    monkeypatch.setattr(nvidia, "library", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


def test_without_a_driver_there_is_nothing_and_nothing_is_raised(monkeypatch):
    monkeypatch.setattr(nvidia, "library", lambda: None)
    assert gpu.devices() == [] and gpu_memory.baseline([0]) == {} and gpu_memory.used_bytes(0) is None
    assert gpu_memory.wait_memory_back({}) == {}
    before = threading.active_count()
    with gpu.Sampler((), list) as sampler:
        assert threading.active_count() == before, "there is nothing to look at"
    assert sampler.totals() == {} and sampler.evidence() == {"samples": 0}


def test_the_real_library_answers_without_raising():
    nvidia.library.cache_clear()
    assert isinstance(gpu.devices(), list)


def test_devices_are_those_that_the_driver_may_see(nvml, monkeypatch):
    assert [(device.index, device.name, device.total_bytes) for device in gpu.devices()] == [
        (0, "NVIDIA Test", 80 << 30),
        (1, "NVIDIA Test", 80 << 30),
    ]
    for visible, expected in (("1", [1]), ("", []), (f"GPU-test-{os.getpid()}-0", [0]), ("7", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [device.index for device in gpu.devices()] == expected


def test_gpus_are_found_by_index_and_by_uuid(nvml):
    assert gpu.indices([1, "0", f"GPU-test-{os.getpid()}-1"]) == [1, 0, 1]
    with pytest.raises(AutotuneError, match="lists no GPU 'GPU-other'"):
        gpu.indices(["GPU-other"])


def test_a_lease_holds_against_other_drivers_and_leaves_no_file(nvml):
    mine, other = Leases(gpu.devices()), Leases(gpu.devices())
    assert mine.lease(3) is None
    assert mine.lease(1) == (0,) and other.lease(2) is None and other.lease(1) == (1,)
    other.give_back((1,))
    mine.give_back((0, 1))
    mine.quarantine(0, "lost")
    assert mine.usable == 1 and mine.lease(2) is None and mine.lease(1) == (1,)
    mine.give_back((1,))
    assert not list(Path("/tmp").glob(f"autotune-GPU-test-{os.getpid()}-*"))


def test_memory_is_awaited_until_it_is_back(nvml):
    idle = gpu_memory.baseline([0, 1])
    nvml.used[1] += 3 << 30
    assert gpu_memory.wait_memory_back(idle, timeout_s=0.05) == {1: 3 << 30}
    nvml.used[1] = idle[1] + (100 << 20)
    assert gpu_memory.wait_memory_back(idle, timeout_s=0.05) == {}


def test_a_gpu_that_the_driver_has_lost_is_not_taken_for_idle(nvml, monkeypatch):
    idle = gpu_memory.baseline([0, 1])
    known = gpu_memory.used_bytes
    monkeypatch.setattr(gpu_memory, "used_bytes", lambda index: None if index == 1 else known(index))
    assert gpu_memory.wait_memory_back(idle, timeout_s=0.05) == {1: None}
    assert "no longer answers for it" in gpu_memory.quarantine_message(1, None)


def sampled(nvml, members, act):
    with gpu.Sampler((0, 1), members, interval_s=0.02) as sampler:
        time.sleep(0.1)
        act()
        time.sleep(0.1)
    return sampler


def test_peak_memory_is_the_trees_own_where_the_driver_tells(nvml):
    me = proc.look(os.getpid())

    def act():
        nvml.used[0] += 20 << 30
        nvml.processes[0] = [SimpleNamespace(pid=me.pid, usedGpuMemory=7 << 30), SimpleNamespace(pid=1, usedGpuMemory=9 << 30)]

    sampler = sampled(nvml, lambda: [me], act)
    totals = sampler.totals()
    assert totals["peak_gpu_memory_gib"] == 7 and totals["gpu_utilization"] == 0.5 and totals["energy_joule"] > 0
    assert sampler.evidence()["memory_method"] == "process tree"
    assert sampler.evidence()["throttled_samples"]["hardware thermal slowdown"] >= 1
    assert "sm_clock_mhz_min" not in sampler.evidence()


def test_peak_memory_is_the_devices_above_idle_where_it_does_not(nvml):
    sampler = sampled(nvml, list, lambda: nvml.used.update({0: nvml.used[0] + (20 << 30)}))
    assert sampler.totals()["peak_gpu_memory_gib"] == 20
    assert sampler.evidence()["memory_method"] == "device total minus idle baseline"
    assert sampler.between(0.0, 1.0) == {}


def test_energy_of_a_window_reaches_to_its_edges():
    """100 W throughout, sampled every 0.4 s: a window of 2 s used 200 J, not what lay between the samples inside it."""
    sampler = gpu.Sampler((), list)
    sampler.samples = [gpu.Sample(at, None, None, None, 1000 + 100 * at) for at in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8)]
    assert sampler.between(0.5, 2.5)["energy_joule"] == pytest.approx(200)
    assert sampler.totals()["energy_joule"] == pytest.approx(280)
    assert sampler.between(-9.0, 99.0)["energy_joule"] == pytest.approx(280), "what was not sampled is not made up"
    assert "energy_joule" not in sampler.between(5.0, 6.0)
    sampler.samples = sampler.samples[:1]
    assert "energy_joule" not in sampler.totals()
