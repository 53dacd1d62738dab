"""Workers that wait for a trial beside the one that is measured, with an interpreter that imports its engine meanwhile."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from autotune import proc, process
from autotune.cores import Share
from autotune.engines.base import Context
from autotune.executors import _worker
from autotune.executors._workplace import Workplace, opened
from autotune.executors.base import Site
from autotune.trial import TrialJob


class Spares:
    """At most one spare worker for each slot and engine."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ahead = {kind: engine.ahead((site.store / ".cache").resolve()) for kind, engine in site.engines.items()}
        self._waiting: dict[tuple[int, str], Workplace | None] = {}

    @property
    def wanted(self) -> bool:
        """Whether any engine imports ahead."""
        return any(ahead is not None for ahead in self._ahead.values())

    def prepare(self, slot: int, job: TrialJob, share: Share, running: Context) -> None:
        """Have a worker waiting for the trial after the one that is running, which is past its start.

        Without cores of its own an interpreter would take from what is measured: then only where the study insists.
        """
        kind = job.configuration.engine
        ahead = self._ahead[kind]
        if (slot, kind) in self._waiting or ahead is None or not (share.standby or ahead.insist):
            return
        tag = process.make_tag(self._site.store, self._site.study, "standby")
        # Named after the trial, not after its folder, which has such a name itself if the trial was given to one that waited.
        own = self._site.scratch(job)
        scratch = own.with_name(f"{own.name}n")
        context = running.model_copy(update={"tag": tag, "scratch": scratch})
        threads = len(share.engine or os.sched_getaffinity(0))
        arguments = (self._site.engines[kind], self._site.workload, ahead, context, share.standby, threads)
        self._waiting[slot, kind] = None
        with contextlib.suppress(EOFError, OSError):
            self._waiting[slot, kind] = opened(self._site, _worker.stand_by, arguments, context, name=f"standby-{slot}")

    def take(self, slot: int, kind: str, order: _worker.Order) -> Workplace | None:
        """Give the trial to the worker that waits in its slot; None when there is none, or it does not answer."""
        spare = self._waiting.pop((slot, kind), None)
        if spare is None:
            return None
        own = {"tag": spare.context.tag, "scratch": spare.context.scratch}
        spare.context = order.context.model_copy(update=own)
        try:
            if _lives(spare):
                spare.pipe.send(replace(order, context=spare.context))
                return spare
        except OSError:
            pass
        spare.clean()
        return None

    def close(self) -> None:
        """End those that wait."""
        for spare in self._waiting.values():
            if spare is not None:
                spare.clean()
        self._waiting.clear()


def _lives(spare: Workplace) -> bool:
    """Whether its worker can be given a trial. That one was killed its forkserver tells a moment later than the kernel, and a trial
    given to it in between would be lost."""
    pid = spare.worker.pid
    known = proc.look(pid) if pid is not None else None
    return spare.worker.is_alive() and known is not None and not known.ended
