"""Which cores are whose: each trial's engine, its load clients, and the interpreter that waits for the trial after it.

Trials that run at once get cores of their own, near their GPUs where there are such; so do the parts of one trial, as far as
there are enough. Cores that share a physical one (hyper-threads) are never divided.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DIVIDED = 8
"""A trial with fewer cores than this has too few to divide between its parts."""
_CLIENT, _CLIENT_COMPUTING, _CLIENT_MOST = 4, 8, 8
"""One core in so many is the load clients'; fewer where the engine computes on its cores; never more than so many.

Four clients on an H200's host took 4 % of a core each at 6,900 tokens a second.
"""
_STANDBY, _STANDBY_MOST = 8, 2
"""One core in so many is the waiting interpreter's, where one waits: importing keeps one core busy."""

Core = tuple[int, ...]
"""One physical core: the processors, as the kernel numbers them, that it shows itself as."""


@dataclass(frozen=True)
class Share:
    """The processors of one trial by the part that runs on them; empty for all of the machine's."""

    engine: tuple[int, ...] = ()
    client: tuple[int, ...] = ()
    standby: tuple[int, ...] = ()
    whole: tuple[Core, ...] = ()
    """The physical cores that are taken."""


@dataclass(frozen=True)
class Parts:
    """What a trial has beside its engine that runs on cores, and whether the engine itself computes on them, not on GPUs."""

    clients: bool = True
    standby: bool = False
    computing: bool = False


class Cores:
    """This process's cores, divided equally among the trials that run at once."""

    def __init__(self, slots: int, parts: Parts, cores: Sequence[Core] | None = None) -> None:
        """`slots` trials run at once; `cores` are all of the machine's that this process may use when None."""
        self._free = list(physical(os.sched_getaffinity(0)) if cores is None else cores)
        self._slots = max(1, slots)
        self._size = len(self._free) // self._slots
        self._parts = parts

    def take(self, near: Collection[int] = ()) -> Share:
        """The share of one more trial, of cores whose processors are in `near` as far as there are."""
        self._free.sort(key=lambda core: (not set(core) <= set(near), core))
        taken = tuple(self._free[: self._size])
        del self._free[: self._size]
        return divided(taken, self._parts, alone=self._slots == 1)

    def give_back(self, share: Share) -> None:
        """Return a share; once."""
        self._free += share.whole


def divided(whole: tuple[Core, ...], parts: Parts, *, alone: bool) -> Share:
    """Divide a trial's cores among its parts. Too few are its engine's, or nobody's when no other trial is there to disturb."""
    client = max(1, min(len(whole) // (_CLIENT_COMPUTING if parts.computing else _CLIENT), _CLIENT_MOST)) if parts.clients else 0
    waiting = max(1, min(len(whole) // _STANDBY, _STANDBY_MOST)) if parts.standby else 0
    if len(_flat(whole)) < _DIVIDED or not 0 < client + waiting < len(whole):
        return Share(engine=() if alone else _flat(whole), whole=whole)
    engine = len(whole) - client - waiting
    return Share(
        engine=_flat(whole[:engine]),
        client=_flat(whole[engine : engine + client]),
        standby=_flat(whole[engine + client :]),
        whole=whole,
    )


def physical(processors: Iterable[int], siblings: Mapping[int, Collection[int]] | None = None) -> list[Core]:
    """The physical cores behind some processors; `siblings` names for each those that share its core (None: as the kernel says)."""
    left, found = sorted(processors), []
    while left:
        same = siblings.get(left[0], ()) if siblings is not None else _siblings(left[0])
        core = tuple(one for one in left if one == left[0] or one in same)
        left = [one for one in left if one not in core]
        found.append(core)
    return found


def _siblings(processor: int) -> set[int]:
    with contextlib.suppress(OSError, ValueError):
        return parsed(Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text())
    return {processor}


def parsed(text: str) -> set[int]:
    """The kernel's list format: `0-3,8`."""
    found = set[int]()
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def _flat(cores: Iterable[Core]) -> tuple[int, ...]:
    return tuple(sorted(processor for core in cores for processor in core))
