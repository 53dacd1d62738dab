"""Runs trials on the machines of a Ray cluster: Ray Tune places each in a group that follows its configuration's GPUs.

What to run next stays with the driver: Tune only finds a place (`_ray_tune`). A trial works in folders of its node and
returns its record and its files as values; the driver alone writes the study. A node or worker that dies makes its trial a
machine fault, which is tried again once like any other.

A trial that ends leaves its group to the next one alike: while a dead node still counts as alive, Ray may place no new
group anywhere. But one alike that came after a trial with other needs gets a new group, or the other would wait for ever.

Ray does not end what a dead worker's children started. Engines carry a tag that names the worker as their driver: what
belongs to a worker that is gone is ended by its warden, by the next trial on that node, and when the executor closes.

Every node needs this package and the engine installed, in the same versions as the driver's.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import ray

from autotune.advice import failed
from autotune.errors import MachineUnusable
from autotune.executors import _ray_cluster, _ray_node
from autotune.executors._ray_desk import News, Order, Reply, Seen
from autotune.executors._ray_room import Room
from autotune.executors._ray_tune import Placement
from autotune.executors.base import Executor, Site, lost
from autotune.trial import Configuration, Failed, FailureKind, Phase, TrialJob, TrialRecord

_CLOSE_S = 20.0
"""How long each node gets to end and remove what is left there."""
_STALLED_S = 120.0
_STALLED = "No trial has begun for minutes: the cluster's CPUs or GPUs are in use by others, or its workers start slowly."
_HEADLESS = (
    "The head of the Ray cluster does not answer. Ray ends this study when it stays away for a minute; continue it with the "
    "same command once there is a cluster. Nothing measured was lost."
)
_AHEAD = 16
"""One trial in so many is queued ahead, so that a node that finishes need not wait for the driver."""


@dataclass(eq=False)
class _Trial:
    """A trial that is out: waiting for its place until it began."""

    job: TrialJob
    need: int
    cpus: int
    submitted: float = field(default_factory=time.monotonic)
    began_at: float | None = None
    """Seconds since the epoch."""
    node: str = ""
    gpus: tuple[int, ...] = ()
    """Where it has run since then, and on which GPUs there."""
    deadline: float = math.inf
    """When its worker counts as hung, by the monotonic clock."""


class RayExecutor(Executor):
    """Trials on a Ray cluster: the one at the study's `address`, RAY_ADDRESS's, or a new one on this machine."""

    kind = "ray"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._cluster = _ray_cluster.join(site.address)
        self._home = _ray_node.Home(str(site.store.resolve()), site.study, site.begun)
        self._placement: Placement | None = None
        self._out: dict[str, _Trial] = {}
        self._lines: Counter[int] = Counter()
        self._turns = itertools.count()
        self._alike = set[tuple[str, str]]()
        """Nodes, and the engines of which each has what the driver's machine has."""
        self._described = functools.cache(lambda kind: _ray_node.described(site.engines[kind].identity()))
        self._answered: deque[tuple[TrialJob, TrialRecord]] = deque()
        self._folders: set[str] = set()
        self._room = Room(site.parallel)

    @property
    @_ray_cluster.reached()
    def capacity(self) -> int:
        need = max(self.site.engines[kind].gpus_needed(Configuration(engine=kind)) for kind in self.site.engines)
        slots = self._room.slots(need)
        if not slots:
            return int(self._room.may_have(need))
        if isinstance(self.site.parallel, int):
            return min(slots, self.site.parallel)
        return slots + (slots + _AHEAD - 1) // _AHEAD

    @_ray_cluster.reached()
    def submit(self, job: TrialJob) -> None:
        need = self.site.gpus_needed(job)
        if self._room.beyond(need):
            self._answered.append((job, self._room.refused(job, need)))
            return
        self._order(job, need)

    @_ray_cluster.reached()
    def collect(self, timeout_s: float) -> TrialRecord | None:
        deadline = time.monotonic() + timeout_s
        while not self._answered:
            left = max(0.0, deadline - time.monotonic()) if self._out else 0.0
            news = self._placement.desk.heard(left) if self._placement is not None else None
            if news is None:
                self._look_around()
                break
            self._take_in(news)
        return self._answered.popleft()[1] if self._answered else None

    def running(self) -> tuple[TrialJob, ...]:
        return (*(one.job for one in self._out.values()), *(job for job, _ in self._answered))

    def notices(self) -> list[str]:
        said, self._room.notices = self._room.notices, []
        return said

    def withdraw(self) -> None:
        for key in [key for key, one in self._out.items() if one.began_at is None]:
            del self._out[key]

    def close(self) -> None:
        if ray.is_initialized():
            with contextlib.suppress(MachineUnusable), _ray_cluster.reached():
                self._end_tune()
                _ray_cluster.on_every_node(_ray_node.leave, self._home, tuple(self._folders), timeout_s=_CLOSE_S)
            self._cluster.leave()
        self._out.clear()
        self.forget_scratch()

    def _order(self, job: TrialJob, need: int) -> None:
        if any(one.began_at is None and one.need != need for one in self._out.values()):
            self._lines[need] += 1
        key = f"{job.number}-{job.attempt}-{next(self._turns)}"
        one = self._out[key] = _Trial(job, need, self._room.cpus(need))
        order = Order(key=key, job=job.model_dump_json(), gpus=need, cpus=one.cpus, line=self._lines[need])
        self._placed().desk.order(order)

    def _placed(self) -> Placement:
        if self._placement is None:
            self._placement = Placement(self.site.engines, self.site.workload, self._home)
        return self._placement

    def _take_in(self, news: News) -> None:
        one = self._out.get(news.key)
        match news.kind:
            case "placed":
                self._begin(news.key, one, news.content)
            case "held":
                self._room.hold(news.key, news.content)
            case "record" if one is not None:
                self._answer(news.key, self._kept(one.job, news.content))
            case "lost":
                self._room.let_go(news.key)
                self._room.look_around()
                if one is not None and one.began_at is None and self._some_are_broken():
                    self._place_elsewhere(news.key, one)
                self._lose(news.key, f"Ray lost the trial: {news.content}")
            case "folder":
                self._folders.add(news.content)
            case "ended":
                self._start_over(news.content)

    def _begin(self, key: str, one: _Trial | None, seen: Seen) -> None:
        """Let an attempt begin where it was placed, unless its numbers would not compare there: then somewhere else."""
        desk = self._placed().desk
        if one is not None and not self._room.shunned(seen.node):
            known = seen.node, one.job.configuration.engine
            if seen.installed is None and known not in self._alike:
                desk.reply(Reply("tell"))
                return
            if why := self._unlike(one.job, seen) or self._room.failing(seen.node, one.need):
                self._room.shun(seen.node, seen.host, why)
            self._alike.add(known)
        if self._room.shunned(seen.node):
            desk.reply(Reply("stay"))
            if one is not None:
                self._place_elsewhere(key, one)
        elif one is None:
            desk.reply(Reply("go"))
        else:
            self.site.launched(one.job)
            one.began_at, one.deadline = time.time(), time.monotonic() + self.site.patience_s(one.job)
            one.node, one.gpus = seen.node, seen.gpus
            desk.reply(Reply("run", self.site.bar(one.job)))

    def _unlike(self, job: TrialJob, seen: Seen) -> str:
        """Why what is measured there would not compare with other trials; empty where it would."""
        if seen.installed is None or isinstance(seen.installed, str):
            return seen.installed or ""
        here = self._described(job.configuration.engine)
        found = ", ".join(_ray_node.unlike(seen.installed, here))
        return found and f"beside the driver's machine it has {found}, so that its numbers would not compare."

    def _some_are_broken(self) -> bool:
        """Whether there are nodes on which no trial can even be placed; such a one would take them all, one after the other."""
        found = self._placed().broken()
        for node, why in found.items():
            if not self._room.shunned(node):
                self._room.shun(node, _ray_cluster.host(node), f"{why}. Install there what the driver's machine has.")
                _ray_cluster.occupy(node)
        return bool(found)

    def _place_elsewhere(self, key: str, one: _Trial) -> None:
        """Raises MachineUnusable when nothing is left to run on."""
        del self._out[key]
        if not self._room.slots(one.need) and all(other.began_at is None for other in self._out.values()):
            raise MachineUnusable(
                f"No node of the Ray cluster is like the driver's machine. {self._room.shunned()} "
                "Mend it and continue with the same command; nothing measured was lost."
            )
        self._order(one.job, one.need)

    def _look_around(self) -> None:
        """Answer trials for which no node has been large enough for long, and those that are hung: Ray would wait for ever."""
        if not _ray_cluster.head_answers():
            self._room.say_once(_HEADLESS)
            return
        self._room.look_around()
        now = time.monotonic()
        # Asked once for all trials alike: each time the cluster has to list its nodes.
        may_have, fits = functools.cache(self._room.may_have), functools.cache(self._room.fits)
        for key, one in tuple(self._out.items()):
            if one.began_at is None and not may_have(one.need):
                self._answer(key, self._room.refused(one.job, one.need))
            elif one.began_at is None and not self._room.lacking and not fits(one.need, one.cpus):
                self._lose(key, "The nodes with enough CPUs for the trial left the cluster before it began.")
            elif now >= one.deadline:
                self._placed().desk.end(key)
                self._lose(key, "The trial's worker was hung and was ended.")
        waiting = [one.submitted for one in self._out.values() if one.began_at is None]
        if 0 < len(waiting) == len(self._out) and now - min(waiting) >= _STALLED_S and not self._room.lacking:
            self._room.say_once(_STALLED)

    def _answer(self, key: str, record: TrialRecord) -> None:
        one = self._out.pop(key)
        if one.began_at is not None and isinstance(record.outcome, Failed) and record.outcome.kind is FailureKind.MACHINE_FAULT:
            self._room.fault(one.node, one.job.number, one.began_at)
        else:
            self._room.well(one.node)
        self._answered.append((one.job, record))

    def _lose(self, key: str, why: str) -> None:
        if (one := self._out.get(key)) is not None:
            now = time.time()
            spent_s = None if one.began_at is None else now - one.began_at
            self._answer(key, lost(one.job, Phase.MEASURE, why, one.began_at or now, spent_s, one.gpus))

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
        self._room.let_go()
        for key in tuple(self._out):
            self._lose(key, f"Ray lost the trial: Ray Tune ended: {why}")

    def _kept(self, job: TrialJob, answer: tuple[str, _ray_node.Files | str]) -> TrialRecord:
        """The record of a trial whose files are now in the store, if they arrived; otherwise they are the reason."""
        text, files = answer
        folder = self.site.context(job).folder
        try:
            if isinstance(files, str):
                self._room.notices.append(f"The files of trial {job.number} did not arrive from its node: {files}.")
            else:
                _ray_node.unpack(folder, files)
        except OSError as error:
            self._room.notices.append(f"The files of trial {job.number} could not be kept in {folder}: {error.strerror}.")
        try:
            return TrialRecord.model_validate_json(text).model_copy(update={"folder": str(folder)})
        except ValueError:
            reason = "A node answered with a record that is not understood here. Install the same version of autotune on all nodes."
            return job.ended(failed(FailureKind.MACHINE_FAULT, Phase.MEASURE, reason), time.time())


executor = RayExecutor
