"""A thread that looks at a tree of processes at intervals until it is closed."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from autotune.proc import Proc

_MEMBERS_S = 1.0
"""How long a list of the tree's processes is used: to list them costs a walk over all of the machine's."""


class TreeSampler(ABC):
    """Calls `look` from a thread of its own. A context manager; what was seen stays readable after it is closed."""

    def __init__(self, members: Callable[[], list[Proc]], interval_s: float) -> None:
        """`members` gives the tree's processes; looked at every `interval_s` seconds, and once more when closed."""
        self._members = members
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=type(self).__name__, daemon=True)

    @abstractmethod
    def look(self, pids: frozenset[int], anew: bool) -> None:
        """Take one sample of the tree; `anew` when its processes were listed again just now, about once a second."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take a last sample and stop. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        pids: frozenset[int] = frozenset()
        listed = float("-inf")
        while True:
            last = self._stop.is_set()
            now = time.monotonic()
            anew = last or now - listed >= _MEMBERS_S
            if anew:
                pids, listed = frozenset(one.pid for one in self._members()), now
            self.look(pids, anew)
            if last:
                return
            self._stop.wait(self._interval_s)
