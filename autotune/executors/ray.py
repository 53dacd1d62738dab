"""Runs trials on the machines of a Ray cluster, each alone in a placement group that follows its configuration's GPUs.

What to run next stays with the driver: Ray only finds a place. A placement group is one bundle, so that its GPUs are on one
node. A trial that ends hands its group on when the next one needs the same, else the group goes: while a dead node still
counts as alive, Ray may place no new group anywhere. A trial works in folders of its node and returns its record and its
files as values; the driver alone writes the study. A node or worker that dies makes its trial a machine fault, which is
tried again once like any other. Ray Tune in between was no faster (benchmarks/results/ray.md).

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
from autotune.bar import Bar
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


@dataclass(eq=False)
class _Trial:
    """A trial that is out: waiting for its place while `result` is None."""

    job: TrialJob
    need: int
    place: PlacementGroup
    ready: Any
    result: Any = None
    started_at: float = 0.0
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
        self._out: list[_Trial] = []
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
            self._out.append(self._asked(job, need))

    def collect(self, timeout_s: float) -> TrialRecord | None:
        deadline = time.monotonic() + timeout_s
        while self._out and not self._impossible:
            awaited = {one.ready if one.result is None else one.result: one for one in self._out}
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(awaited), num_returns=1, timeout=left, fetch_local=True)
            if not ready:
                self._count_nodes()
                self._give_up_homeless()
                return None
            one = awaited[ready[0]]
            if one.result is not None:
                return self._finished(one)
            self._start(one)
        return self._impossible.pop()[1] if self._impossible else None

    def running(self) -> tuple[TrialJob, ...]:
        return (*(one.job for one in self._out), *(job for job, _ in self._impossible))

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

    def _asked(self, job: TrialJob, need: int) -> _Trial:
        wanted = {"CPU": 1, "GPU": need} if need else {"CPU": 1}
        place = placement_group([wanted], strategy="STRICT_PACK", name=f"{self.site.study}-{job.number}-{job.attempt}")
        return _Trial(job, need, place, place.ready())

    def _start(self, one: _Trial) -> None:
        strategy = PlacementGroupSchedulingStrategy(one.place, placement_group_bundle_index=0)
        name = f"{self.site.study}-{one.job.number}-{one.job.attempt}"
        task = _attempt.options(num_cpus=1, num_gpus=one.need, name=name, scheduling_strategy=strategy)
        engine = self._engines[one.job.configuration.engine]
        one.result = task.remote(engine, self._workload, one.job.model_dump_json(), self._home, self.site.bar(one.job))
        one.started_at = time.time()

    def _hand_on(self, place: PlacementGroup, need: int) -> None:
        """To the trial that waits longest when it needs the same; were it passed over, a large one would wait for ever."""
        heir = next((one for one in self._out if one.result is None), None)
        if heir is None or heir.need != need:
            remove_placement_group(place)
            return
        remove_placement_group(heir.place)
        heir.place = place
        self._start(heir)

    def _end_all(self) -> None:
        results = [one.result for one in self._out if one.result is not None]
        for result in results:
            ray.cancel(result)
        if results:
            ray.wait(results, num_returns=len(results), timeout=_CLOSE_S)
            for result in results:
                ray.cancel(result, force=True)
        for one in self._out:
            remove_placement_group(one.place)
        self._out.clear()

    def _give_up_homeless(self) -> None:
        """Answer trials that have long been too large for every node that is left: Ray would wait for ever."""
        largest, now = _ray_cluster.largest(), time.monotonic()
        for one in tuple(self._out):
            one.homeless_since = (one.homeless_since or now) if one.need > largest else None
            if one.homeless_since is not None and now - one.homeless_since >= _PATIENCE_S:
                self._out.remove(one)
                remove_placement_group(one.place)
                self._impossible.append((one.job, self._no_room(one.job, one.need)))

    def _no_room(self, job: TrialJob, need: int) -> TrialRecord:
        """More than the cluster ever had is the configuration's fault; more than is left of it is the machines'."""
        reason = f"The configuration needs {need} GPUs on one node, and the largest node has {_ray_cluster.largest()}."
        kind = FailureKind.REJECTED if need > self._largest else FailureKind.MACHINE_FAULT
        return _failed(job, kind, Phase.CHECK, reason)

    def _finished(self, one: _Trial) -> TrialRecord:
        self._out.remove(one)
        try:
            answer = ray.get(one.result)
        except ray.exceptions.RayError as error:
            remove_placement_group(one.place)
            self._count_nodes()
            return _lost(one.job, error).model_copy(update={"started_at": one.started_at})
        self._hand_on(one.place, one.need)
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


def _trial(engine: Engine, workload: Workload, job_text: str, home: _ray_node.Home, bar: Bar | None) -> _ray_node.Answer:
    return _ray_node.attempt(engine, workload, job_text, home, bar, [int(index) for index in ray.get_gpu_ids()])


def _lost(job: TrialJob, error: Exception) -> TrialRecord:
    said = str(error).strip().splitlines() or [""]
    return _failed(job, FailureKind.MACHINE_FAULT, Phase.MEASURE, f"Ray lost the trial: {type(error).__name__}: {said[0]}")


def _failed(job: TrialJob, kind: FailureKind, phase: Phase, reason: str) -> TrialRecord:
    failed = Failed(kind=kind, phase=phase, evidence=(reason,), advice=advice(kind, phase))
    return TrialRecord(**job.model_dump(exclude={"seed", "climb_from"}), outcome=failed)


_attempt: Any = ray.remote(max_retries=0)(_trial)

executor = RayExecutor
