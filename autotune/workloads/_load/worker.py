"""A client process: `python -m autotune.workloads._load.worker PARENT_PID`.

Reads orders as JSON lines from standard input and answers on standard output:

    {"do": "level", ...plan}             make the level's content ready
    {"do": "go", "start": t}             begin; a report follows every REPORT_S
    {"do": "window", "from": t, "to": t} tells which requests the reports' `open` must count
    {"do": "end"}                        cut what is unfinished; the level's requests follow in one line
    end of input                         leave

All times are of the machine's monotonic clock, which every process shares. The process dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from autotune.workloads._load.level import Level
from autotune.workloads._load.traffic import Source

PR_SET_PDEATHSIG = 1
NICE = -10


class Orders:
    """Standard input as a stream of JSON lines, without blocking."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self._rest = b""

    def read(self) -> list[dict[str, Any]] | None:
        """The orders that have arrived; None at the end of input."""
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [orjson.loads(line) for line in lines]


def say(message: Mapping[str, Any]) -> None:
    """Write one line to the parent."""
    data = memoryview(orjson.dumps(message) + b"\n")
    while data:
        data = data[os.write(1, data) :]


def serve() -> None:
    """Follow orders until the parent has no more."""
    orders = Orders()
    level: Level | None = None
    plan: dict[str, Any] = {}
    source: Source | None = None
    say({"ready": os.getpid()})
    while True:
        if level is None:
            select.select([0], [], [])
        given = orders.read() if level is None or level.turn() else []
        if given is None:
            return
        for order in given:
            match order["do"]:
                case "level":
                    plan, source = order, Source(order)
                    gc.collect()
                    gc.freeze()
                    say({"prepared": True})
                case "go":
                    assert source is not None
                    level = Level(plan, source, order["start"])
                case "window" if level is not None:
                    level.window = (order["from"], order["to"])
                case "end" if level is not None:
                    say(level.end())
                    level = None
        if level is not None and level.report_due():
            say(level.report())


def main() -> None:
    """Bind the process's life to its parent, ask for priority, serve."""
    parent = int(sys.argv[1])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _ask_for_priority()
    # A connection is a file; the usual soft limit of 1024 is below the concurrency of an offline load.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    with contextlib.suppress(BrokenPipeError):
        serve()


def _ask_for_priority() -> None:
    """A client that waits for a core behind the engine measures its own wait. Not every machine allows this.

    Measured on two cores with four busy processes: timers late by 3 ms (99th percentile) at normal priority, 4 ms at
    nice -10, 0.2 ms at the lowest real-time priority. The client needs a tenth of a core, so nobody starves.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)


if __name__ == "__main__":
    main()
