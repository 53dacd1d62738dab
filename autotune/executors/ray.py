"""Runs trials on the machines of a Ray cluster, each in a placement group of its own.

What to run next stays with the driver: Ray only finds a place. A trial's placement group is one bundle with the GPUs that
its configuration needs, so that they are on one node, and goes when the trial ends. A trial works in folders of its node
and returns its record and its files as values; the driver alone writes the study. A node or worker that dies makes its
trial a machine fault, which is tried again once like any other.

Ray does not end what a dead worker's children started. Engines carry a tag that names the worker as their driver, so the
next trial on that node, and every node when the executor closes, ends what belongs to a worker that is gone.

Every node needs this package and the engine installed, in the same versions as the driver's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from autotune.advice import advice
from autotune.engines.base import Engine
from autotune.executors import _ray_cluster, _ray_node
from autotune.executors.base import Executor, Site
from autotune.trial import Configuration, Failed, FailureKind, Phase, TrialJob, TrialRecord
from autotune.workloads.base import Workload

_CLOSE_S = 20.0
"""How long running trials get to stop their engines when the executor is closed."""
_PATIENCE_S = 600.0
"""How long a trial waits for a node with enough GPUs after the last one has died: clusters replace nodes."""
_AHEAD = 16
"""One trial in so many is queued ahead, so that a node that finishes need not wait for the driver."""


@dataclass
class _Running:
    job: TrialJob
    need: int
    place: PlacementGroup
    result: Any
    submitted_at: float
    homeless_since: float | None = None


class RayExecutor(Executor):
    """Trials on a Ray cluster: the one at the study's `address`, RAY_ADDRESS's, or a new one on this machine."""

    kind = "ray"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._cluster = _ray_cluster.join(site.address)
        self._home = _ray_node.Home(str(site.store.resolve()), site.study)
        self._engines = {kind: ray.put(engine) for kind, engine in site.engines.items()}
        self._workload = ray.put(site.workload)
        self._running: list[_Running] = []
        self._impossible: list[tuple[TrialJob, TrialRecord]] = []
        self._notices: list[str] = []
        self._nodes = set(_ray_cluster.nodes())
        self._largest = 0

    @property
    def capacity(self) -> int:
        need = max(self.site.engines[kind].gpus_needed(Configuration(engine=kind)) for kind in self.site.engines)
        slots = _ray_cluster.slots(need)
        if isinstance(self.site.parallel, int):
            return min(slots, self.site.parallel)
        return slots + (slots + _AHEAD - 1) // _AHEAD

    def submit(self, job: TrialJob) -> None:
        need = self.site.gpus_needed(job)
        largest = _ray_cluster.largest()
        self._largest = max(self._largest, largest)
        if need > largest:
            self._impossible.append((job, self._no_room(job, need)))
        else:
            self._running.append(self._placed(job, need))

    def collect(self, timeout_s: float) -> TrialRecord | None:
        if self._impossible:
            return self._impossible.pop()[1]
        if not self._running:
            return None
        ready, _ = ray.wait([one.result for one in self._running], num_returns=1, timeout=timeout_s, fetch_local=True)
        if not ready:
            self._count_nodes()
            self._give_up_homeless()
            return None
        one = next(one for one in self._running if one.result == ready[0])
        self._forget(one)
        return self._finished(one)

    def running(self) -> tuple[TrialJob, ...]:
        return (*(one.job for one in self._running), *(job for job, _ in self._impossible))

    def notices(self) -> list[str]:
        said, self._notices = self._notices, []
        return said

    def close(self) -> None:
        if not ray.is_initialized():
            return
        self._end_all()
        _ray_cluster.on_every_node(_ray_node.clean, self._home.store, timeout_s=_CLOSE_S)
        self.forget_scratch()
        self._cluster.leave()

    def _placed(self, job: TrialJob, need: int) -> _Running:
        wanted = {"CPU": 1, "GPU": need} if need else {"CPU": 1}
        name = f"{self.site.study}-{job.number}-{job.attempt}"
        place = placement_group([wanted], strategy="STRICT_PACK", name=name)
        strategy = PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=0)
        task = _attempt.options(num_cpus=1, num_gpus=need, name=name, scheduling_strategy=strategy)
        engine = self._engines[job.configuration.engine]
        return _Running(job, need, place, task.remote(engine, self._workload, job.model_dump_json(), self._home), time.time())

    def _end_all(self) -> None:
        results = [one.result for one in self._running]
        for result in results:
            ray.cancel(result)
        if results:
            ray.wait(results, num_returns=len(results), timeout=_CLOSE_S)
            for result in results:
                ray.cancel(result, force=True)
        for one in tuple(self._running):
            self._forget(one)

    def _give_up_homeless(self) -> None:
        """Answer trials that have long been too large for every node that is left: Ray would wait for ever."""
        largest, now = _ray_cluster.largest(), time.monotonic()
        for one in tuple(self._running):
            one.homeless_since = (one.homeless_since or now) if one.need > largest else None
            if one.homeless_since is not None and now - one.homeless_since >= _PATIENCE_S:
                ray.cancel(one.result)
                self._forget(one)
                self._impossible.append((one.job, self._no_room(one.job, one.need)))

    def _forget(self, one: _Running) -> None:
        self._running.remove(one)
        remove_placement_group(one.place)

    def _no_room(self, job: TrialJob, need: int) -> TrialRecord:
        """More than the cluster ever had is the configuration's fault; more than is left of it is the machines'."""
        reason = f"The configuration needs {need} GPUs on one node, and the largest node has {_ray_cluster.largest()}."
        kind = FailureKind.REJECTED if need > self._largest else FailureKind.MACHINE_FAULT
        return _failed(job, kind, Phase.CHECK, reason)

    def _finished(self, one: _Running) -> TrialRecord:
        try:
            answer = ray.get(one.result)
        except ray.exceptions.RayError as error:
            self._count_nodes()
            return _lost(one.job, error).model_copy(update={"started_at": one.submitted_at})
        return self._kept(one.job, answer)

    def _kept(self, job: TrialJob, answer: _ray_node.Answer) -> TrialRecord:
        """The record of a trial whose files are now in the store."""
        text, files = answer
        folder = self.site.context(job).folder
        _ray_node.unpack(folder, files)
        return TrialRecord.model_validate_json(text).model_copy(update={"folder": str(folder)})

    def _count_nodes(self) -> None:
        now = set(_ray_cluster.nodes())
        if gone := len(self._nodes - now):
            self._notices.append(f"{gone} of the cluster's nodes left it; their trials are run again elsewhere.")
        if come := len(now - self._nodes):
            self._notices.append(f"{come} nodes joined the cluster.")
        self._nodes = now


def _trial(engine: Engine, workload: Workload, job_text: str, home: _ray_node.Home) -> _ray_node.Answer:
    return _ray_node.attempt(engine, workload, job_text, home, [int(index) for index in ray.get_gpu_ids()])


def _lost(job: TrialJob, error: Exception) -> TrialRecord:
    said = str(error).strip().splitlines() or [""]
    return _failed(job, FailureKind.MACHINE_FAULT, Phase.MEASURE, f"Ray lost the trial: {type(error).__name__}: {said[0]}")


def _failed(job: TrialJob, kind: FailureKind, phase: Phase, reason: str) -> TrialRecord:
    failed = Failed(kind=kind, phase=phase, evidence=(reason,), advice=advice(kind, phase))
    return TrialRecord(**job.model_dump(exclude={"seed"}), outcome=failed)


_attempt: Any = ray.remote(max_retries=0)(_trial)

executor = RayExecutor
