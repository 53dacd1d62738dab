"""GPUs: which there are, and what a trial used of them.

Without NVML or a GPU everything here answers with nothing and raises nothing.
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from autotune.errors import AutotuneError
from autotune.gpu_memory import baseline
from autotune.nvml import ask
from autotune.proc import Proc
from autotune.sampling import TreeSampler

_GIB = float(1 << 30)
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. `index` is NVML's, in PCI bus order."""

    index: int
    uuid: str
    name: str
    total_bytes: int


def devices() -> list[Device]:
    """The GPUs this process may use: all that NVML lists, or those that CUDA_VISIBLE_DEVICES names."""
    found = [device for index in range(ask("nvmlDeviceGetCount") or 0) if (device := _device(index)) is not None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    named = [part.strip() for part in visible.split(",") if part.strip()]
    return [device for device in found if any(_names(part, device) for part in named)]


def indices(named: Iterable[int | str]) -> list[int]:
    """NVML's indices of GPUs that are named as in CUDA_VISIBLE_DEVICES: by index, or by the beginning of their UUID.

    Raises AutotuneError for one that NVML does not list.
    """
    return [_index(str(part)) for part in named]


def visible(gpus: Sequence[int]) -> dict[str, str]:
    """The environment that shows a process exactly these GPUs, numbered as NVML numbers them."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def near_processors(index: int) -> tuple[int, ...]:
    """The processors on the GPU's own NUMA node; empty when NVML does not tell."""
    count = (os.cpu_count() or 1) // 64 + 1
    words = ask("nvmlDeviceGetCpuAffinity", ask("nvmlDeviceGetHandleByIndex", index), count) or ()
    return tuple(64 * place + bit for place, word in enumerate(words) for bit in range(64) if int(word) >> bit & 1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the trial's GPUs together. `at` is monotonic seconds; what NVML did not tell is None."""

    at: float
    device_bytes: int | None
    process_bytes: int | None
    utilization: float | None
    energy_j: float | None


class Sampler(TreeSampler):
    """Samples a trial's GPUs until closed; without a GPU it starts no thread and has seen nothing."""

    def __init__(self, gpus: Sequence[int], members: Callable[[], list[Proc]], interval_s: float = 0.2) -> None:
        """`members` gives the trial's processes; memory is theirs where NVML tells it for each process."""
        super().__init__(members, interval_s)
        self.gpus = tuple(gpus)
        self.samples: list[Sample] = []
        self.idle_bytes = sum(baseline(gpus).values())
        self._handles = [ask("nvmlDeviceGetHandleByIndex", index) for index in gpus]
        self._clocks: list[float] = []
        self._throttles: dict[str, int] = {}

    def __enter__(self) -> Self:
        return super().__enter__() if self.gpus else self

    def totals(self) -> dict[str, float]:
        """`peak_gpu_memory_gib`, `energy_joule` and `gpu_utilization` over everything sampled; what was not measured is absent."""
        return self.between(float("-inf"), float("inf"))

    def between(self, begin: float, stop: float) -> dict[str, float]:
        """The same over a span of monotonic seconds, for one load level."""
        span = [sample for sample in self.samples if begin <= sample.at <= stop]
        found: dict[str, float] = {}
        if (peak := _peak(span, self.idle_bytes)) is not None:
            found["peak_gpu_memory_gib"] = peak / _GIB
        if (energy := _energy(self.samples, begin, stop)) is not None:
            found["energy_joule"] = energy
        utilization = [sample.utilization for sample in span if sample.utilization is not None]
        if utilization:
            found["gpu_utilization"] = sum(utilization) / len(utilization)
        return found

    def evidence(self) -> dict[str, Any]:
        """How memory was measured, clocks and throttling: facts beside the metrics."""
        facts: dict[str, Any] = {"samples": len(self.samples)}
        if self.samples:
            facts["memory_method"] = "process tree" if _by_process(self.samples) else "device total minus idle baseline"
        if self._clocks:
            facts |= {"sm_clock_mhz_min": min(self._clocks), "sm_clock_mhz_max": max(self._clocks)}
        if self._throttles:
            facts["throttled_samples"] = dict(self._throttles)
        return facts

    def look(self, pids: frozenset[int], anew: bool) -> None:
        if anew:
            self._look_at_clocks()
        self.samples.append(self._sample(pids))

    def _sample(self, pids: frozenset[int]) -> Sample:
        memory = [ask("nvmlDeviceGetMemoryInfo", handle) for handle in self._handles]
        rates = [ask("nvmlDeviceGetUtilizationRates", handle) for handle in self._handles]
        energy = [ask("nvmlDeviceGetTotalEnergyConsumption", handle) for handle in self._handles]
        return Sample(
            at=time.monotonic(),
            device_bytes=None if None in memory else sum(int(info.used) for info in memory if info is not None),
            process_bytes=_of_processes(self._handles, pids),
            utilization=None if None in rates else sum(rate.gpu for rate in rates if rate is not None) / 100 / len(rates),
            energy_j=None if None in energy else sum(float(value) for value in energy if value is not None) / 1000,
        )

    def _look_at_clocks(self) -> None:
        for handle in self._handles:
            clock = ask("nvmlDeviceGetClockInfo", handle, 1)  # 1 is NVML_CLOCK_SM
            if clock is not None:
                self._clocks.append(float(clock))
            reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
            if reasons is None:
                reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
            for bit, name in _THROTTLES.items():
                if reasons & bit:
                    self._throttles[name] = self._throttles.get(name, 0) + 1


def _device(index: int) -> Device | None:
    handle = ask("nvmlDeviceGetHandleByIndex", index)
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    if handle is None or memory is None:
        return None
    return Device(index, _text(ask("nvmlDeviceGetUUID", handle)), _text(ask("nvmlDeviceGetName", handle)), int(memory.total))


def _index(part: str) -> int:
    found = [int(part)] if part.isdecimal() else [device.index for device in devices() if _names(part, device)]
    if not found:
        raise AutotuneError(f"NVML lists no GPU {part!r} on this machine.")
    return found[0]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(part: str, device: Device) -> bool:
    return int(part) == device.index if part.isdecimal() else device.uuid.startswith(part)


def _of_processes(handles: Sequence[Any], pids: frozenset[int]) -> int | None:
    """GPU memory of the processes, None when NVML lists none of them or withholds their memory.

    Inside a container NVML may list ids of another namespace, or none; then only the device's total is known.
    """
    total, seen = 0, False
    for handle in handles:
        for process in ask("nvmlDeviceGetComputeRunningProcesses", handle) or ():
            if process.pid in pids:
                if process.usedGpuMemory is None:
                    return None
                total, seen = total + int(process.usedGpuMemory), True
    return total if seen else None


def _by_process(samples: Sequence[Sample]) -> bool:
    return any(sample.process_bytes is not None for sample in samples)


def _energy(samples: Sequence[Sample], begin: float, stop: float) -> float | None:
    """Energy between two moments, of what was sampled; the counter is read between samples by a straight line.

    Without it a window would lose the energy before its first sample and after its last, while its tokens count in full.
    """
    known = [(sample.at, sample.energy_j) for sample in samples if sample.energy_j is not None]
    low, high = (max(begin, known[0][0]), min(stop, known[-1][0])) if known else (0.0, 0.0)
    if high <= low:
        return None
    first, last = (_read_at(known, at) for at in (low, high))
    return last - first


def _read_at(known: Sequence[tuple[float, float]], at: float) -> float:
    """The energy counter at a moment inside what was sampled."""
    place = min(max(bisect.bisect_left(known, (at,)), 1), len(known) - 1)
    (before, low), (after, high) = known[place - 1], known[place]
    return low + (high - low) * (at - before) / (after - before) if after > before else high


def _peak(samples: Sequence[Sample], idle_bytes: int) -> int | None:
    by_process = [sample.process_bytes for sample in samples if sample.process_bytes is not None]
    if by_process:
        return max(by_process)
    by_device = [sample.device_bytes for sample in samples if sample.device_bytes is not None]
    return max(0, max(by_device) - idle_bytes) if by_device else None
