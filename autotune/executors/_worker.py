"""The process that one local trial runs in: evaluates the job, reports to the driver, and cleans up when the driver is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any

from autotune import gpu_memory, standby
from autotune.engines.base import Context, Engine
from autotune.evaluate import evaluate
from autotune.proc import TAG_VARIABLE
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

Message = tuple[str, Any]
"""`("progress", (label, share))`, then `("record", json)`, then `("held", what wait_memory_back says)`."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job with what the driver gives it of the machine."""

    context: Context
    job: TrialJob
    cores: tuple[int, ...]
    """Of the worker and the load clients that it starts; empty for all."""
    idle: Mapping[int, int]
    """Bytes in use on each of its GPUs when nothing runs there."""


def work(pipe: Connection[Message, Any], engine: Engine, workload: Workload, order: Order) -> None:
    """Evaluate one job. SIGTERM, or the driver's death, interrupts it once; it then stops its engine and reports."""
    _run(pipe, engine, workload, order, _begin(order.context.tag))


def stand_by(
    pipe: Connection[Message, Any],
    engine: Engine,
    workload: Workload,
    ahead: standby.Ahead,
    context: Context,
    cores: Sequence[int],
    threads: int,
) -> None:
    """As `work`, for an order that comes through the pipe, with an interpreter of the engine's importing until then.

    `cores` are that interpreter's until its launch, `threads` how many the launch will have. It is ended when none comes.
    """
    interruption = _begin(context.tag)
    waiting = standby.held(ahead, env=context.env, scratch=context.scratch, tag=context.tag, cpus=cores, threads=threads)
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError), waiting:
        order: Order = pipe.recv()
        _run(pipe, engine, workload, order, interruption)


def _begin(tag: str) -> _Interruption:
    os.setsid()  # a Ctrl-C in the driver's terminal is the driver's to handle
    os.environ[TAG_VARIABLE] = tag
    interruption = _Interruption()
    threading.Thread(target=_outlive_nobody, name="driver-watch", daemon=True).start()
    return interruption


def _run(pipe: Connection[Message, Any], engine: Engine, workload: Workload, order: Order, interruption: _Interruption) -> None:
    if order.cores:
        os.sched_setaffinity(0, order.cores)
    report = _Reporter(pipe)
    record = evaluate(order.job, engine, workload, order.context, lambda label, share: report("progress", (label, share)))
    interruption.ignore()
    report("record", record.model_dump_json())
    report("held", gpu_memory.wait_memory_back(order.idle))


class _Interruption:
    """Turns the first SIGTERM into a KeyboardInterrupt and ignores further ones, so that stopping is not itself interrupted."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._interrupt)

    def ignore(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: object) -> None:
        self.ignore()
        raise KeyboardInterrupt


class _Reporter:
    """Sends to the driver; once it is gone, nobody listens and nothing is lost by saying nothing."""

    def __init__(self, pipe: Connection[Message, Any]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def __call__(self, kind: str, content: Any) -> None:
        with self._lock:
            try:
                self._pipe.send((kind, content))
            except OSError:
                return


def _outlive_nobody() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
