"""What a process has from the one that starts it, told to another that takes its place. Imports nothing of autotune, and little."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Mapping
from typing import Any

LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


def state() -> dict[str, Any]:
    """Of this process, what JSON can hold; its descriptors are handed over apart."""
    return {
        "env": dict(os.environ),
        "cwd": os.getcwd(),  # noqa: PTH109
        "umask": umask(),
        "limits": {number: resource.getrlimit(number) for number in LIMITS},
        "cpus": sorted(os.sched_getaffinity(0)),
        "ignored": [int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN],
        "blocked": sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }


def umask() -> int | None:
    """Asked with os.umask, it would be another one for a moment, in which other threads may make files."""
    with open("/proc/self/status") as lines:  # noqa: PTH123
        return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), None)


def take_surroundings(told: Mapping[str, Any]) -> None:
    """Work where that process works, under its limits, and make files as it would. Environment, cores and signals are taken at
    moments of their own."""
    os.chdir(told["cwd"])
    if told["umask"] is not None:
        os.umask(told["umask"])
    for number, limits in told["limits"].items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(int(number), tuple(limits))
