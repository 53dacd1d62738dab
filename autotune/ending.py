"""Ends a tree of processes and awaits its end. Each process is signalled through a pidfd, after a look at its start time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable

from autotune import proc
from autotune.proc import Proc
from autotune.resident import nameless_segments, remove

_POLL_S = 0.05
_TERM_OTHERS_S = 3.0
"""How long the leader's children get after their own TERM, once the leader is gone."""
_KILL_WAIT_S = 15.0
"""How long a killed process may take to vanish; a GPU driver unmaps memory of a killed process for seconds."""


def end(
    members: Callable[[], list[Proc]], leader: int | None, grace_s: float, reap_child: Callable[[], object] = lambda: None
) -> tuple[int, tuple[int, ...]]:
    """End a tree: TERM to the leader (to all when it is gone), TERM to what outlives it, then KILL.

    Shared memory that nobody can find once all of them have ended is removed: those that would remove it are often killed by
    their own parents on the way out. Returns how many needed KILL and which ids survived even that.
    """
    deadline = time.monotonic() + grace_s
    present = members()
    shared = nameless_segments(one.pid for one in present)
    _signal_all([one for one in present if one.pid == leader] or present, signal.SIGTERM)
    left = _await(members, deadline, reap_child, until=lambda left: all(one.pid != leader for one in left))
    if left and time.monotonic() < deadline:
        _signal_all(left, signal.SIGTERM)
        left = _await(members, min(deadline, time.monotonic() + _TERM_OTHERS_S), reap_child)
    killed = set[tuple[int, int]]()
    deadline = time.monotonic() + _KILL_WAIT_S
    while left and time.monotonic() < deadline:
        killed |= {one.identity for one in left}
        _signal_all(left, signal.SIGKILL)
        left = _await(members, min(deadline, time.monotonic() + 0.5), reap_child)
    if not left:
        remove(shared)
    return len(killed), tuple(one.pid for one in left)


def _signal_all(targets: Iterable[Proc], number: signal.Signals) -> None:
    for target in targets:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(target.pid)
            try:
                now = proc.look(target.pid)
                if now is not None and now.start == target.start:
                    signal.pidfd_send_signal(handle, number)
                    if number is signal.SIGTERM:
                        signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process cannot act on TERM
            finally:
                os.close(handle)


def _await(
    members: Callable[[], list[Proc]],
    deadline: float,
    reap_child: Callable[[], object],
    until: Callable[[list[Proc]], bool] = lambda left: False,
) -> list[Proc]:
    """Wait for the tree to be empty, for `until`, or for the deadline; returns who is left."""
    while True:
        reap_child()
        left = members()
        if not left or until(left) or time.monotonic() >= deadline:
            return left
        time.sleep(_POLL_S)
