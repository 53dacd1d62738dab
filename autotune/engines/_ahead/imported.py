"""What an interpreter does that imports ahead of a launch, and how it takes the launch's place. Imports nothing of autotune.

What was read at import cannot be changed afterwards, so every variable that Python code looks up meanwhile is noted. A
launch whose environment differs in one of those, or in one whose name does not begin with one of `late` (native code reads
the environment without our knowledge), is started from its beginning. So is one for which CUDA was initialised if it is to
see other GPUs, for CUDA holds on to those that were in view then, or if it forks its processes, which then cannot use CUDA.
When importing has taken memory of a GPU, where another trial is being measured, the process ends at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

PR_SET_PDEATHSIG = 1
CUDA_NOT_INITIALIZED = (3, 4)
"""cuDeviceGetCount before cuInit, and after the driver was shut down."""
DEVICES = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


class Noting(os._Environ):  # type: ignore[type-arg]
    """The environment, which notes what is looked up or set in it."""

    names: ClassVar[set[str]] = set()

    def __getitem__(self, key: str) -> str:
        self.names.add(key)
        value: str = super().__getitem__(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        self.names.add(key)
        super().__setitem__(key, value)


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.pop("AUTOTUNE_PARENT", os.getppid())):
        os._exit(0)


def outlive_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


def import_all(entry: Sequence[str], modules: Iterable[str], threads: str | None) -> None:
    """Import what the launch will need, as far as it is there, and note what is looked up in the environment meanwhile."""
    if sys.path[0] == str(Path(__file__).parent):
        sys.path[0] = str(Path(entry[0]).parent) if entry[0] != "-m" else str(Path.cwd())
    sys.argv = [entry[0]]
    native = threads if THREADS not in os.environ else None
    plain = os.environ.__class__
    os.environ.__class__ = Noting
    if native is not None:
        # Only for native code: what looks it up in Python sees an environment without it.
        os.putenv(THREADS, native)
    for module in modules:
        # What cannot be imported here is not there either when the launch looks for it, and then is its to complain about.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    if native is not None:
        os.unsetenv(THREADS)
    os.environ.__class__ = plain


def take_cores(pid: int, cpus: Iterable[int], idle: bool) -> None:
    """Give a process these cores, every thread that a library has started included, and leave idle priority.

    A thread that has ended is passed over, and cores that nobody may use here are not given, as to a launch that nobody awaited.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(name), set(cpus))
            if idle:
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(int(name), os.SCHED_OTHER, os.sched_param(0))


def take_environment(asked: Mapping[str, str], differing: Iterable[str]) -> None:
    """Take the variables that differ. What importing has set stays, as it would have been set there."""
    for name in differing:
        os.environ.pop(name, None)
        if name in asked:
            os.environ[name] = asked[name]


def obstacle(differing: Collection[str], late: Iterable[str], forks: bool) -> str | None:
    """Why a launch whose environment differs like this cannot go on here; None when it can."""
    for name in sorted(differing):
        if name in Noting.names:
            return f"{name} was looked up or set while it imported, and the launch has another value"
        if name != DEVICES and not name.startswith(tuple(late)):
            return f"{name} is not what it imported with"
    if (forks or DEVICES in differing) and cuda_touched():
        return "CUDA was initialised while it imported"
    return None


def widen(threads: str | None) -> None:
    """OpenBLAS counts the cores it sees when it is loaded, and believes no variable that names more."""
    if threads is None:
        return
    maps = Path("/proc/self/maps").read_text().split("\n")
    for path in {line.split(maxsplit=5)[5] for line in maps if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads"):
            if hasattr(library, name):
                getattr(library, name)(int(threads))


def cuda_touched() -> bool:
    """Whether the CUDA driver was initialised in this process, after which it shows the GPUs that it was shown then."""
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    count = ctypes.c_int()
    return ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) not in CUDA_NOT_INITIALIZED


def end_if_it_takes_memory() -> None:
    if cuda_touched() and cuda_holds_memory():
        print("Importing takes memory of a GPU, so nothing is imported ahead.", flush=True)
        os._exit(1)


def cuda_holds_memory() -> bool:
    """Whether an initialised CUDA has a context on one of the GPUs, which takes some hundred MiB there."""
    cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    flags, active = ctypes.c_uint(), ctypes.c_int()
    for ordinal in range(count.value):
        device = ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
        if active.value:
            return True
    return False


def answer(orders: socket.socket, reason: str | None) -> None:
    with orders, contextlib.suppress(OSError):
        orders.sendall(json.dumps(reason).encode() + b"\n")
