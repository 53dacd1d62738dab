"""The contract of an executor: where trials run.

    executor.submit(job)           accepted at once; it starts when its GPUs are free, of which `site.launched` is told first
    executor.collect(timeout_s)    the next finished trial, or None when none finished in time
    executor.close()               ends every running trial now and leaves nothing behind; what ran has no record

A new executor is one file in this folder whose module-level name `executor` is the Executor subclass.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self

from autotune import process
from autotune.advice import failed
from autotune.bar import Bar
from autotune.engines.base import Context, Engine
from autotune.trial import FailureKind, Phase, TrialJob, TrialRecord
from autotune.workloads.base import Workload

Watch = Callable[[TrialJob, str, float], None]
"""Called with a running job, what it is doing, and the share of its workload that is done."""

_OVERRUN_S = 300.0
"""How far beyond its start time-out and twice its workload's own upper estimate a trial may go before its worker counts as hung."""

MAX_PARALLEL = 4
"""Trials at once on one machine, unless the study asks for another number: more would disturb each other's clients."""


def side_by_side(need: int, gpus: int | None, asked: int | Literal["auto"]) -> int:
    """How many trials of so many GPUs each one machine runs at once, as the study asks; `gpus` None is a machine without any."""
    if not need or gpus is None:
        return asked if isinstance(asked, int) else 1
    return min(gpus // need, asked if isinstance(asked, int) else MAX_PARALLEL)


def _unwatched(job: TrialJob, label: str, share: float) -> None:
    return


def _unheard(job: TrialJob) -> None:
    return


def _no_bar(job: TrialJob) -> Bar | None:
    return None


_STUDIES: dict[tuple[Path, str], int] = {}
"""The studies whose trials this process has begun, in their order."""


@dataclass(frozen=True)
class Site:
    """What an executor runs and where it keeps it. Engines and workload travel to other processes, so they must pickle."""

    engines: Mapping[str, Engine]
    workload: Workload
    store: Path
    study: str
    begun: float = 0.0
    """Unix seconds at which the study began."""
    parallel: int | Literal["auto"] = "auto"
    address: str | None = None
    watch: Watch = _unwatched
    launched: Callable[[TrialJob], None] = _unheard
    """Told when a submitted trial has its place and begins to run, before anything of it is started. A trial of which it was not
    told only waited, as far as the ledger knows, and is never taken for what its driver died of."""
    bar: Callable[[TrialJob], Bar | None] = _no_bar
    """Asked when a trial begins for what it has to be able to reach."""

    def gpus_needed(self, job: TrialJob) -> int:
        """GPUs the job must be leased."""
        return self.engines[job.configuration.engine].gpus_needed(job.configuration)

    def patience_s(self, job: TrialJob) -> float:
        """Seconds from its beginning after which a trial's worker counts as hung."""
        options = self.engines[job.configuration.engine].options
        return options.start_timeout_s + options.stop_timeout_s + 2 * self.workload.expected_seconds() + _OVERRUN_S

    def scratch(self, job: TrialJob) -> Path:
        """Short, whatever the study is called: engines put sockets there, whose paths may have 107 characters. Another study
        of the same process is told apart by its turn."""
        turn = _STUDIES.setdefault((self.store.resolve(), self.study), len(_STUDIES))
        return process.scratch_root() / (f"{job.number}-{job.attempt}" + (f"-{turn}" if turn else ""))

    def context(self, job: TrialJob, gpus: Sequence[int] = (), cpus: Sequence[int] = ()) -> Context:
        """A context of its own for one attempt: tag, folder, scratch; made in the driver, whose life the tag carries."""
        name = f"{job.number:04d}-{job.attempt}"
        return Context(
            study=self.study,
            begun=self.begun,
            trial=job.number,
            attempt=job.attempt,
            tag=process.make_tag(self.store, self.study, job.number, job.attempt),
            folder=(self.store / self.study / "trials" / name).resolve(),
            scratch=self.scratch(job),
            cache=(self.store / ".cache").resolve(),
            gpus=tuple(gpus),
            cpus=tuple(cpus),
            seed=job.seed,
            origin=job.origin,
            bar=self.bar(job),
            climb_from=job.climb_from,
        )


class Executor(ABC):
    """Runs trials. A context manager: leaving it closes it. Used from one thread."""

    kind: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many trials run at once now; 0 when no place is left to run any."""

    @abstractmethod
    def submit(self, job: TrialJob) -> None:
        """Take a job. One that can never run here is answered by `collect` as a failed trial."""

    @abstractmethod
    def collect(self, timeout_s: float) -> TrialRecord | None:
        """The next finished trial; None when none finishes within the time. Never raises for what happens to a trial."""

    @abstractmethod
    def running(self) -> tuple[TrialJob, ...]:
        """Jobs that were submitted and not yet collected."""

    def withdraw(self) -> None:
        """Forget submitted jobs that have not begun: nothing new is to start."""
        return

    @abstractmethod
    def close(self) -> None:
        """End every running trial now, all of its processes with it, and call `forget_scratch`. Idempotent."""

    def notices(self) -> list[str]:
        """What the user should know since the last call, such as a quarantined GPU."""
        return []

    def forget_scratch(self) -> None:
        """Remove the driver's scratch folder, from which each trial has removed its own."""
        with contextlib.suppress(OSError):
            process.scratch_root().rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def lost(
    job: TrialJob, phase: Phase, reason: str, started_at: float, spent_s: float | None, gpus: Sequence[int] = ()
) -> TrialRecord:
    """The record of an attempt of which nothing came back, by the machine's fault; `spent_s` is None for one that never began.

    How its seconds divide nobody knows any more, but they were spent, on all of its GPUs.
    """
    record = job.ended(failed(FailureKind.MACHINE_FAULT, phase, reason), started_at)
    return record if spent_s is None else record.model_copy(update={"seconds": {phase.value: spent_s}, "gpus": tuple(gpus)})
