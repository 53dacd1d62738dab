"""What is in use of a GPU's memory by anybody, and whether it is back after a trial."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from autotune import nvml
from autotune.nvml import ask

TOLERANCE_BYTES = 512 << 20
"""How far above its idle baseline a GPU may stay: drivers keep a few hundred MiB for a while."""
_SETTLED_BYTES = 16 << 20
_GIB = float(1 << 30)


def used_bytes(index: int) -> int | None:
    """Memory of the GPU that is in use by anybody."""
    info = ask("nvmlDeviceGetMemoryInfo", ask("nvmlDeviceGetHandleByIndex", index))
    return None if info is None else int(info.used)


def baseline(gpus: Iterable[int]) -> dict[int, int]:
    """Memory in use on each GPU now, to be taken while it is idle."""
    return {index: used for index in gpus if (used := used_bytes(index)) is not None}


def idle_baseline(gpus: Iterable[int], timeout_s: float = 10.0) -> dict[int, int]:
    """As `baseline`, once no GPU's memory falls any more: what was ended a moment ago may still be giving memory back."""
    deadline = time.monotonic() + timeout_s
    found = baseline(gpus)
    while found and time.monotonic() < deadline:
        time.sleep(0.5)
        before, found = found, baseline(found)
        if all(before[index] - used < _SETTLED_BYTES for index, used in found.items()):
            break
    return found


def wait_memory_back(
    idle: Mapping[int, int], timeout_s: float = 60.0, tolerance_bytes: int = TOLERANCE_BYTES
) -> dict[int, int | None]:
    """Wait until each GPU is back at its idle baseline. Returns the bytes still held on those that are not, None for one that the
    driver no longer answers for: it has fallen off the bus."""
    deadline = time.monotonic() + timeout_s
    while True:
        above = {index: _above(index, idle_bytes) for index, idle_bytes in idle.items()}
        held = {index: extra for index, extra in above.items() if extra is None or extra > tolerance_bytes}
        if not held or time.monotonic() >= deadline:
            return held
        time.sleep(0.2)


def _above(index: int, idle_bytes: int) -> int | None:
    """Bytes above the baseline; 0 where there is no driver to ask, None where there is one and it does not answer for this GPU."""
    used = used_bytes(index)
    if used is None:
        return None if nvml.library() is not None else 0
    return used - idle_bytes


def quarantine_message(index: int, held_bytes: int | None) -> str:
    """Says which GPU is not used any more, why, and who holds it."""
    if held_bytes is None:
        return f"GPU {index} is quarantined: the driver no longer answers for it. The study goes on without it."
    running = ask("nvmlDeviceGetComputeRunningProcesses", ask("nvmlDeviceGetHandleByIndex", index)) or []
    holders = ", ".join(str(process.pid) for process in running)
    who = f"held by process {holders}" if holders else "held by no process that the driver lists"
    return (
        f"GPU {index} is quarantined: {held_bytes / _GIB:.1f} GiB above its idle baseline did not come back after a trial ({who}). "
        "The study goes on without it."
    )
