"""Runs trials on this machine, each in a worker process of its own, with its GPUs leased and its cores its own.

A worker that dies takes only its trial with it: the driver ends what it left and reports a machine fault. A driver that
dies is noticed by its workers, which stop their engines; what even they could not end carries a tag for the next start.
"""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import connection

from autotune import gpu, gpu_memory
from autotune.advice import failed
from autotune.cores import Cores, Parts, Share
from autotune.executors import _worker
from autotune.executors._spares import Spares
from autotune.executors._workplace import Workplace, opened
from autotune.executors.base import Executor, Site, lost, side_by_side
from autotune.leases import Leases
from autotune.trial import Configuration, Failed, FailureKind, Phase, TrialJob, TrialRecord

_CLOSE_S = 20.0
"""How long the workers get to stop their engines when the executor is closed, before everything is killed."""

_LEASE_POLL_S = 0.2
"""How often GPUs are asked for again while another driver of this machine holds them."""


@dataclass
class _Running(Workplace):
    job: TrialJob
    slot: int
    share: Share
    deadline: float
    label: str = "start"
    record: TrialRecord | None = None
    held: Mapping[int, int | None] | None = None
    """Bytes above the idle baseline by GPU; None until the worker has looked."""
    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    hung: bool = False


class LocalExecutor(Executor):
    """Trials on this machine."""

    kind = "local"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._leases = Leases(gpu.devices())
        self._idle = gpu_memory.idle_baseline(self._leases.devices)
        self._waiting: deque[TrialJob] = deque()
        self._running: list[_Running] = []
        self._impossible: deque[tuple[TrialJob, TrialRecord]] = deque()
        self._notices: list[str] = []
        atexit.register(self.close)

    @property
    def capacity(self) -> int:
        need = max(self.site.engines[kind].gpus_needed(Configuration(engine=kind)) for kind in self.site.engines)
        return side_by_side(need, self._leases.usable if self._leases.devices else None, self.site.parallel)

    def submit(self, job: TrialJob) -> None:
        self._waiting.append(job)
        self._start_waiting()

    def collect(self, timeout_s: float) -> TrialRecord | None:
        deadline = time.monotonic() + timeout_s
        while True:
            self._start_waiting()
            if self._impossible:
                return self._impossible.popleft()[1]
            left = max(0.0, deadline - time.monotonic())
            sources = {source: one for one in self._running for source in (one.pipe, one.worker.sentinel)}
            if not sources:
                time.sleep(min(left, _LEASE_POLL_S) if self._waiting else 0.0)
                if left and self._waiting:
                    continue
                return None
            for one in {id(sources[ready]): sources[ready] for ready in connection.wait(list(sources), left)}.values():
                if self._listen(one):
                    return self._finish(one)
            for one in self._running:
                if time.monotonic() >= one.deadline:
                    one.hung = True
                    return self._finish(one)
            if time.monotonic() >= deadline:
                return None

    def running(self) -> tuple[TrialJob, ...]:
        return (*(one.job for one in self._running), *self._waiting, *(job for job, _ in self._impossible))

    def notices(self) -> list[str]:
        said, self._notices = self._notices, []
        return said

    def withdraw(self) -> None:
        self._waiting.clear()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._waiting.clear()
        for one in self._running:
            one.worker.terminate()
        deadline = time.monotonic() + _CLOSE_S
        for one in self._running:
            _wait(one, deadline)
            one.clean()
        self._running.clear()
        if "_spares" in vars(self):
            self._spares.close()
        self.forget_scratch()

    def _start_waiting(self) -> None:
        """Start jobs in order while there is a slot and GPUs for the first of them."""
        while self._waiting and len(self._running) < max(1, self.capacity):
            job = self._waiting[0]
            need = self.site.gpus_needed(job) if self._leases.devices else 0
            if need > self._leases.usable:
                self._impossible.append((self._waiting.popleft(), _refused(job, need, self._leases)))
                continue
            gpus = self._leases.lease(need)
            if gpus is None:
                return
            self._try_to_start(self._waiting.popleft(), gpus)

    @cached_property
    def _spares(self) -> Spares:
        return Spares(self.site)

    @cached_property
    def _cores(self) -> Cores:
        """Divided once, so that trials compare: a GPU that is lost leaves its trials' cores idle."""
        served = self.site.workload.needs == "http"
        return Cores(self.capacity, Parts(clients=served, standby=self._spares.wanted, computing=not self._leases.devices))

    def _try_to_start(self, job: TrialJob, gpus: tuple[int, ...]) -> None:
        self.site.launched(job)
        share = self._cores.take({core for index in gpus for core in gpu.near_processors(index)})
        try:
            self._running.append(self._start(job, gpus, share))
        except (EOFError, OSError) as error:
            self._leases.give_back(gpus)
            self._cores.give_back(share)
            reason = f"No worker process could be started for the trial: {type(error).__name__} {error}."
            self._impossible.append((job, job.ended(failed(FailureKind.MACHINE_FAULT, Phase.START, reason), time.time())))

    def _start(self, job: TrialJob, gpus: tuple[int, ...], share: Share) -> _Running:
        slot = min(set(range(len(self._running) + 1)) - {one.slot for one in self._running})
        context = self.site.context(job, gpus, share.engine)
        order = _worker.Order(context, job, share.client, self._idle_of(gpus))
        place = self._spares.take(slot, job.configuration.engine, order)
        if place is None:
            arguments = (self.site.engines[job.configuration.engine], self.site.workload, order)
            place = opened(self.site, _worker.work, arguments, context, name=f"trial-{job.number}")
        return _Running(**vars(place), job=job, slot=slot, share=share, deadline=time.monotonic() + self.site.patience_s(job))

    def _idle_of(self, gpus: tuple[int, ...]) -> dict[int, int]:
        return {index: self._idle[index] for index in gpus if index in self._idle}

    def _listen(self, one: _Running) -> bool:
        """Take in what the worker says; True once it will say no more."""
        alive = one.worker.is_alive()  # asked first: what it says before it ends is read below
        while (message := _received(one)) is not None:
            kind, content = message
            if kind == "progress":
                one.label = content[0]
                self.site.watch(one.job, *content)
                if one.label != "start":
                    self._spares.prepare(one.slot, one.job, one.share, one.context)
            elif kind == "record":
                one.record = TrialRecord.model_validate_json(content)
            else:
                one.held = content
        return one.held is not None or not alive

    def _finish(self, one: _Running) -> TrialRecord:
        if not one.hung:
            _wait(one, time.monotonic() + 5.0)
        one.clean()
        self._running.remove(one)
        self._cores.give_back(one.share)
        held = gpu_memory.wait_memory_back(self._idle_of(one.context.gpus)) if one.held is None else one.held
        self._leases.give_back(one.context.gpus)
        for index, extra in held.items():
            message = gpu_memory.quarantine_message(index, extra)
            self._leases.quarantine(index, message)
            self._notices.append(message)
        if held and not self._leases.usable:
            self._notices.append("No GPU is left to run trials on.")
        gone = [index for index, extra in held.items() if extra is None]
        return _forgiven(one.record or _lost(one), gone)


def _received(one: _Running) -> _worker.Message | None:
    """The worker's next message; None when there is none, for now or for good."""
    try:
        message: _worker.Message | None = one.pipe.recv() if one.pipe.poll() else None
    except (EOFError, OSError):
        return None
    return message


def _wait(one: _Running, deadline: float) -> None:
    one.worker.join(max(0.0, deadline - time.monotonic()))


def _refused(job: TrialJob, need: int, leases: Leases) -> TrialRecord:
    """Never runnable here is the configuration's fault; not runnable any more, because GPUs were lost, is the machine's."""
    reason = f"The configuration needs {need} GPUs, and this machine has {leases.usable} to give."
    kind = FailureKind.REJECTED if need > len(leases.devices) else FailureKind.MACHINE_FAULT
    return job.ended(failed(kind, Phase.CHECK, reason, *leases.quarantined.values()), time.time())


def _forgiven(record: TrialRecord, gone: Sequence[int]) -> TrialRecord:
    """A trial whose GPU has left the machine did not fail for its configuration."""
    outcome = record.outcome
    if not gone or not isinstance(outcome, Failed) or not outcome.kind.deterministic:
        return record
    said = f"The driver no longer answers for GPU {' and '.join(map(str, gone))}, which the trial ran on."
    changed = {"kind": FailureKind.MACHINE_FAULT, "evidence": (said, *outcome.evidence), "advice": ""}
    return record.model_copy(update={"outcome": outcome.model_copy(update=changed)})


def _lost(one: _Running) -> TrialRecord:
    phase = Phase.START if one.label == "start" else Phase.MEASURE
    how = "was hung and was ended" if one.hung else f"ended with status {one.worker.exitcode}"
    reason = f"The trial's own worker process {how} while it was at {one.label!r}."
    record = lost(one.job, phase, reason, one.started_at, time.monotonic() - one.began, one.context.gpus)
    return record.model_copy(update={"folder": str(one.context.folder)})


executor = LocalExecutor
