"""What room a Ray cluster has for trials: nodes that come and go, and GPUs that are kept back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from autotune.advice import failed
from autotune.executors import _ray_cluster
from autotune.executors._ray_desk import Held
from autotune.trial import FailureKind, Phase, TrialJob, TrialRecord

_PATIENCE_S = 600.0
"""How long trials wait for a node with enough GPUs where there is none, or none any more: clusters start and replace nodes."""


class Room:
    """Looks at the live nodes whenever it is asked. `notices` is what the user should know of them, for others to empty."""

    def __init__(self, parallel: int | Literal["auto"]) -> None:
        self._parallel = parallel
        self.notices: list[str] = []
        self._said: set[str] = set()
        self._nodes = set(_ray_cluster.nodes())
        self._held: dict[str, Held] = {}
        """GPUs whose memory an attempt did not give back, by the attempt's key."""
        self._largest = 0
        """GPUs of the largest node there has been."""
        self._lacking: dict[int, float] = {}
        """Since when no node has had room for trials of so many GPUs, by the monotonic clock."""

    @property
    def lacking(self) -> bool:
        """Whether trials wait for a node to join."""
        return bool(self._lacking)

    def slots(self, need: int) -> int:
        """How many trials of so many GPUs run at once; 0 when there is no node for one."""
        usable = self.usable()
        self._largest = max(self._largest, _ray_cluster.largest(usable))
        return _ray_cluster.slots(usable, need, _ray_cluster.cpus(usable, need, self._parallel))

    def cpus(self, need: int) -> int:
        """CPUs that a trial of so many GPUs asks for."""
        return _ray_cluster.cpus(self.usable(), need, self._parallel)

    def fits(self, need: int, cpus: int) -> bool:
        """Whether a trial that asked for so much when there were other nodes still finds it."""
        return bool(_ray_cluster.slots(self.usable(), need, cpus))

    def may_have(self, need: int) -> bool:
        """Whether there is a node for a trial of so many GPUs, or one may still join."""
        if self.slots(need):
            self._lacking.pop(need, None)
            return True
        if need not in self._lacking:
            self._lacking[need] = time.monotonic()
            self.notices.append(
                f"No node of the cluster has {need} GPUs and a CPU for a trial now. "
                f"Such trials wait {_PATIENCE_S / 60:g} minutes for one to join."
            )
        return time.monotonic() - self._lacking[need] < _PATIENCE_S

    def beyond(self, need: int) -> bool:
        """Whether it is more than any node has had, of a cluster that has GPUs."""
        self.slots(need)
        return need > self._largest > 0

    def refused(self, job: TrialJob, need: int) -> TrialRecord:
        """More than the cluster ever had is the configuration's fault; more than is left of it is the machines'."""
        reason = f"The configuration needs {need} GPUs on one node, and the largest node has {_ray_cluster.largest(self.usable())}."
        kind = FailureKind.REJECTED if self.beyond(need) else FailureKind.MACHINE_FAULT
        return job.ended(failed(kind, Phase.CHECK, reason if need else "No node of the cluster has a CPU for the trial."))

    def hold(self, key: str, held: Held) -> None:
        """Tune keeps the group of such a trial, so that nothing else is placed there."""
        if held.messages and key not in self._held:
            self._held[key] = held
            self.notices += [f"On {held.host}: {message}" for message in held.messages]
        elif not held.messages and self._held.pop(key, None) is not None:
            self.notices.append(f"On {held.host}: the memory of a trial's GPUs is back after all; they are used again.")

    def let_go(self, key: str | None = None) -> None:
        """The group of an attempt, or (None) of all, is gone, and with it what was known of its memory."""
        for one in tuple(self._held) if key is None else (key,):
            self._held.pop(one, None)

    def usable(self) -> dict[str, Mapping[str, float]]:
        """What each live node has, without the GPUs whose memory is not back."""
        found = _ray_cluster.nodes()
        for held in self._held.values():
            if held.node in found:
                found[held.node] = {**found[held.node], "GPU": found[held.node].get("GPU", 0) - held.gpus}
        return found

    def look_around(self) -> None:
        """Say which nodes came and went, and what speaks against comparing their trials."""
        found = _ray_cluster.nodes()
        for need in tuple(self._lacking):
            self.may_have(need)
        if len(kinds := _ray_cluster.kinds(found)) > 1:
            self.say_once(
                f"The cluster has different GPUs: {', '.join(kinds)}. Trials on one do not compare with trials on another."
            )
        if gone := len(self._nodes - set(found)):
            self.notices.append(f"{gone} of the cluster's nodes left it; their trials are run again elsewhere.")
        if come := len(set(found) - self._nodes):
            self.notices.append(f"{come} nodes joined the cluster." if come > 1 else "A node joined the cluster.")
        self._nodes = set(found)

    def say_once(self, sentence: str) -> None:
        """Among the notices, unless it was said before."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.notices.append(sentence)
