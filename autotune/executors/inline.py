"""Runs trials one by one in the driver's own process: for recorded engines, and for a debugger's sake."""

from __future__ import annotations

from collections import deque

from autotune.evaluate import evaluate
from autotune.executors.base import Executor, Site
from autotune.trial import TrialJob, TrialRecord


class InlineExecutor(Executor):
    """No process of its own, so a trial that takes the process down takes the driver with it."""

    kind = "inline"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._waiting: deque[TrialJob] = deque()

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job: TrialJob) -> None:
        self._waiting.append(job)

    def collect(self, timeout_s: float) -> TrialRecord | None:
        if not self._waiting:
            return None
        job = self._waiting.popleft()
        self.site.launched(job)
        engine = self.site.engines[job.configuration.engine]
        return evaluate(
            job, engine, self.site.workload, self.site.context(job), lambda label, share: self.site.watch(job, label, share)
        )

    def running(self) -> tuple[TrialJob, ...]:
        return tuple(self._waiting)

    def close(self) -> None:
        self._waiting.clear()
        self.forget_scratch()


executor = InlineExecutor
