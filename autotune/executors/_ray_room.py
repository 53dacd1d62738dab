"""What room a Ray cluster has for trials: nodes that come and go, and GPUs that are kept back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autotune.advice import failed
from autotune.executors import _ray_cluster
from autotune.executors._ray_desk import Held
from autotune.trial import FailureKind, Phase, TrialJob, TrialRecord

_PATIENCE_S = 600.0
"""How long trials wait for a node with enough GPUs where there is none, or none any more: clusters start and replace nodes."""


_FAULTS = 2
"""How often in a row the machine has to fail trials of a node, and how many of them, until it is given no more."""


@dataclass
class _Faults:
    """What a node's machine has failed since it last did not: attempts that ran side by side count once."""

    rounds: int = 0
    last: float = 0.0
    """When the last one that counts ended, in seconds since the epoch."""
    trials: set[int] = field(default_factory=set)


class Room:
    """Looks at the live nodes whenever it is asked. `notices` is what the user should know of them, for others to empty."""

    def __init__(self, parallel: int | Literal["auto"]) -> None:
        self._parallel = parallel
        self.notices: list[str] = []
        self._said: set[str] = set()
        self._nodes = set(_ray_cluster.nodes())
        self._held: dict[str, Held] = {}
        """GPUs whose memory an attempt did not give back, by the attempt's key."""
        self._faults: dict[str, _Faults] = {}
        self._shunned: dict[str, str] = {}
        """Why nothing more runs on a node, by its id."""
        self._largest = 0
        self._see_largest()
        self._lacking: dict[int, float] = {}
        """Since when no node has had room for trials of so many GPUs, by the monotonic clock."""

    @property
    def lacking(self) -> bool:
        """Whether trials wait for a node to join."""
        return bool(self._lacking)

    def slots(self, need: int, without: str = "") -> int:
        """How many trials of so many GPUs run at once, a node left out; 0 when there is no node for one."""
        usable = {node: has for node, has in self.usable().items() if node != without}
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
            wanted = f"{need} GPUs and a CPU" if need else "a CPU"
            waits = f"Such trials wait {_PATIENCE_S / 60:g} minutes for one to join."
            refused = f" It would have to be another than those refused: {self.shunned()}" if self._shunned else ""
            self.notices.append(f"No node of the cluster has {wanted} for a trial now. {waits}{refused}")
        return time.monotonic() - self._lacking[need] < _PATIENCE_S

    def beyond(self, need: int) -> bool:
        """Whether it is more than any node has had, of a cluster that has GPUs."""
        return need > self._see_largest() > 0

    def refused(self, job: TrialJob, need: int) -> TrialRecord:
        """More than the cluster ever had is the configuration's fault; more than is left of it is the machines'."""
        reason = f"The configuration needs {need} GPUs on one node, and the largest node has {_ray_cluster.largest(self.usable())}."
        kind = FailureKind.REJECTED if self.beyond(need) else FailureKind.MACHINE_FAULT
        reason = reason if need else "No node of the cluster has a CPU for the trial."
        return job.ended(failed(kind, Phase.CHECK, reason, *self._shunned.values()))

    def shun(self, node: str, host: str, why: str) -> None:
        """Count on a node no more, and say so."""
        if node not in self._shunned:
            self._shunned[node] = f"No trial runs on {host}: {why}"
            self.notices.append(self._shunned[node])

    def fault(self, node: str, trial: int, began_at: float) -> None:
        """The machine failed a trial there."""
        known = self._faults.setdefault(node, _Faults())
        known.trials.add(trial)
        if began_at >= known.last:
            known.rounds, known.last = known.rounds + 1, time.time()

    def well(self, node: str) -> None:
        """A trial there ended otherwise."""
        self._faults.pop(node, None)

    def failing(self, node: str, need: int) -> str:
        """Why a trial of so many GPUs is better placed elsewhere, where it can be; empty otherwise.

        What fails fast is always free: left alone, such a node takes one trial after the other, each with its second attempt.
        """
        known = self._faults.get(node, _Faults())
        if min(known.rounds, len(known.trials)) < _FAULTS or not self.slots(need, without=node):
            return ""
        return f"its machine failed the last {len(known.trials)} trials there, one after the other."

    def shunned(self, node: str | None = None) -> str:
        """Why nothing more runs on a node, or (None) on any; empty where it does."""
        if node is not None:
            return self._shunned.get(node, "")
        return " ".join(dict.fromkeys(self._shunned.values()))

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
        """What each live node has that trials may be given, without the GPUs whose memory is not back."""
        found = {node: has for node, has in _ray_cluster.nodes().items() if node not in self._shunned}
        for held in self._held.values():
            if held.node in found:
                found[held.node] = {**found[held.node], "GPU": found[held.node].get("GPU", 0) - held.gpus}
        return found

    def look_around(self) -> None:
        """Say which nodes came and went, and what speaks against comparing their trials."""
        found = _ray_cluster.nodes()
        self._see_largest()
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

    def _see_largest(self) -> int:
        """GPUs of the largest node there has been, those that are there now included."""
        self._largest = max(self._largest, _ray_cluster.largest(_ray_cluster.nodes()))
        return self._largest

    def say_once(self, sentence: str) -> None:
        """Among the notices, unless it was said before."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.notices.append(sentence)
