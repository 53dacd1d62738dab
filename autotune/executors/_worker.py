"""The process that one local trial runs in: evaluates the job, reports to the driver, and cleans up when the driver is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any

from autotune import gpu
from autotune.engines.base import Context, Engine
from autotune.evaluate import evaluate
from autotune.proc import TAG_VARIABLE
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

Message = tuple[str, Any]
"""`("progress", (label, share))`, then `("record", json)`, then `("held", bytes above the idle baseline by GPU)`."""


def work(
    pipe: Connection[Message, None], engine: Engine, workload: Workload, job: TrialJob, context: Context, idle: Mapping[int, int]
) -> None:
    """Evaluate one job. SIGTERM, or the driver's death, interrupts it once; it then stops its engine and reports."""
    os.setsid()  # a Ctrl-C in the driver's terminal is the driver's to handle
    os.environ[TAG_VARIABLE] = context.tag
    interruption = _Interruption()
    threading.Thread(target=_outlive_nobody, name="driver-watch", daemon=True).start()
    report = _Reporter(pipe)
    record = evaluate(job, engine, workload, context, lambda label, share: report("progress", (label, share)))
    interruption.ignore()
    report("record", record.model_dump_json())
    report("held", gpu.wait_memory_back(idle))


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

    def __init__(self, pipe: Connection[Message, None]) -> None:
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
