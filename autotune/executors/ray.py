"""Runs trials on the machines of a Ray cluster: Ray Tune places each in a group that follows its configuration's GPUs.

What to run next stays with the driver: Tune only finds a place (`_ray_tune`). A trial works in folders of its node and
returns its record and its files as values; the driver alone writes the study. A node or worker that dies makes its trial a
machine fault, which is tried again once like any other.

A trial that ends leaves its group to the next one alike: while a dead node still counts as alive, Ray may place no new
group anywhere. But one alike that came after a trial with other needs gets a new group, or the other would wait for ever.

Ray does not end what a dead worker's children started. Engines carry a tag that names the worker as their driver, so the
next trial on that node, and every node when the executor closes, ends what belongs to a worker that is gone.

Every node needs this package and the engine installed, in the same versions as the driver's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from autotune.advice import failed
from autotune.executors import _ray_cluster, _ray_node
from autotune.executors._ray_desk import Held, News
from autotune.executors._ray_trial import Order
from autotune.executors._ray_tune import Placement
from autotune.executors.base import Executor, Site
from autotune.trial import Configuration, FailureKind, Phase, TrialJob, TrialRecord

_CLOSE_S = 20.0
"""How long each node gets to end and remove what is left there."""
_PATIENCE_S = 600.0
"""How long a trial waits for a node with enough GPUs after the last one has died: clusters replace nodes."""
_AHEAD = 16
"""One trial in so many is queued ahead, so that a node that finishes need not wait for the driver."""


@dataclass(eq=False)
class _Trial:
    """A trial that is out: waiting for its place until it began."""

    job: TrialJob
    need: int
    began_at: float | None = None
    """Seconds since the epoch."""
    homeless_since: float | None = None


class RayExecutor(Executor):
    """Trials on a Ray cluster: the one at the study's `address`, RAY_ADDRESS's, or a new one on this machine."""

    kind = "ray"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._cluster = _ray_cluster.join(site.address)
        self._home = _ray_node.Home(str(site.store.resolve()), site.study)
        self._placement: Placement | None = None
        self._out: dict[str, _Trial] = {}
        self._lines: Counter[int] = Counter()
        self._answered: deque[tuple[TrialJob, TrialRecord]] = deque()
        self._held: dict[str, Held] = {}
        """GPUs whose memory an attempt did not give back, by the attempt's key."""
        self._folders: set[str] = set()
        self._notices: list[str] = []
        self._nodes = set(_ray_cluster.nodes())
        self._largest = 0

    @property
    def capacity(self) -> int:
        need = max(self.site.engines[kind].gpus_needed(Configuration(engine=kind)) for kind in self.site.engines)
        slots = _ray_cluster.slots(self._usable(), need)
        if isinstance(self.site.parallel, int):
            return min(slots, self.site.parallel)
        return slots + (slots + _AHEAD - 1) // _AHEAD

    def submit(self, job: TrialJob) -> None:
        need, largest = self.site.gpus_needed(job), _ray_cluster.largest(self._usable())
        self._largest = max(self._largest, largest)
        if need > largest:
            self._answered.append((job, self._no_room(job, need)))
            return
        if any(one.began_at is None and one.need != need for one in self._out.values()):
            self._lines[need] += 1
        key = f"{job.number}-{job.attempt}"
        self._out[key] = _Trial(job, need)
        self._placed().desk.order(Order(key=key, job=job.model_dump_json(), gpus=need, line=self._lines[need]))

    def collect(self, timeout_s: float) -> TrialRecord | None:
        deadline = time.monotonic() + timeout_s
        while not self._answered:
            left = max(0.0, deadline - time.monotonic()) if self._out else 0.0
            news = self._placement.desk.heard(left) if self._placement is not None else None
            if news is None:
                self._count_nodes()
                self._give_up_homeless()
                break
            self._take_in(news)
        return self._answered.popleft()[1] if self._answered else None

    def running(self) -> tuple[TrialJob, ...]:
        return (*(one.job for one in self._out.values()), *(job for job, _ in self._answered))

    def notices(self) -> list[str]:
        said, self._notices = self._notices, []
        return said

    def close(self) -> None:
        if not ray.is_initialized():
            return
        self._end_tune()
        self._out.clear()
        _ray_cluster.on_every_node(_ray_node.leave, self._home, tuple(self._folders), timeout_s=_CLOSE_S)
        self.forget_scratch()
        self._cluster.leave()

    def _placed(self) -> Placement:
        if self._placement is None:
            self._placement = Placement(self.site.engines, self.site.workload, self._home)
        return self._placement

    def _take_in(self, news: News) -> None:
        one = self._out.get(news.key)
        match news.kind:
            case "began":
                self._begin(one)
            case "held":
                self._hold(news.key, news.content)
            case "record" if one is not None:
                self._answer(news.key, self._kept(one.job, news.content))
            case "lost":
                self._held.pop(news.key, None)
                self._count_nodes()
                self._lose(news.key, news.content)
            case "folder":
                self._folders.add(news.content)
            case "ended":
                self._start_over(news.content)

    def _begin(self, one: _Trial | None) -> None:
        assert self._placement is not None
        if one is not None:
            one.began_at = time.time()
        self._placement.desk.give_bar(one is not None, None if one is None else self.site.bar(one.job))

    def _hold(self, key: str, held: Held) -> None:
        """Tune keeps the group of such a trial, so that nothing else is placed there."""
        if held.messages and key not in self._held:
            self._held[key] = held
            self._notices += [f"On {held.host}: {message}" for message in held.messages]
        elif not held.messages and self._held.pop(key, None) is not None:
            self._notices.append(f"On {held.host}: the memory of a trial's GPUs is back after all; they are used again.")

    def _usable(self) -> dict[str, Mapping[str, float]]:
        """What each live node has, without the GPUs whose memory is not back."""
        found = _ray_cluster.nodes()
        for held in self._held.values():
            if held.node in found:
                found[held.node] = {**found[held.node], "GPU": found[held.node].get("GPU", 0) - held.gpus}
        return found

    def _give_up_homeless(self) -> None:
        """Answer trials that have long been too large for every node that is left: Ray would wait for ever."""
        largest, now = _ray_cluster.largest(self._usable()), time.monotonic()
        for key, one in tuple(self._out.items()):
            homeless = one.need > largest and one.began_at is None
            one.homeless_since = (one.homeless_since or now) if homeless else None
            if one.homeless_since is not None and now - one.homeless_since >= _PATIENCE_S:
                self._answer(key, self._no_room(one.job, one.need))

    def _no_room(self, job: TrialJob, need: int) -> TrialRecord:
        """More than the cluster ever had is the configuration's fault; more than is left of it is the machines'."""
        largest = _ray_cluster.largest(self._usable())
        reason = f"The configuration needs {need} GPUs on one node, and the largest node has {largest}."
        kind = FailureKind.REJECTED if need > self._largest else FailureKind.MACHINE_FAULT
        return job.ended(failed(kind, Phase.CHECK, reason))

    def _answer(self, key: str, record: TrialRecord) -> None:
        self._answered.append((self._out.pop(key).job, record))

    def _lose(self, key: str, why: str) -> None:
        if (one := self._out.get(key)) is not None:
            record = one.job.ended(
                failed(FailureKind.MACHINE_FAULT, Phase.MEASURE, f"Ray lost the trial: {why}"), one.began_at or time.time()
            )
            self._answer(key, record)

    def _end_tune(self) -> None:
        if self._placement is None:
            return
        self._placement.close()
        self._folders.add(str(self._placement.folder))
        while (news := self._placement.desk.heard(0.0)) is not None:
            if news.kind == "folder":
                self._folders.add(news.content)
        self._placement = None

    def _start_over(self, why: str) -> None:
        """Without Tune's loop nothing of what is out comes back; the next trial starts a new one."""
        self._end_tune()
        self._held.clear()
        for key in tuple(self._out):
            self._lose(key, f"Ray Tune ended: {why}")

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


executor = RayExecutor
