"""How much main memory a tree of processes holds, now and at most."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from autotune.proc import Proc
from autotune.sampling import TreeSampler

_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_memory_bytes(pids: Iterable[int]) -> int:
    """Resident memory of a tree, shared pages counted once (PSS) where the kernel tells, else the sum of resident sizes."""
    pids = list(pids)
    pss = pss_bytes(pids)
    return rss_bytes(pids) if pss is None else pss


class PeakMemory(TreeSampler):
    """Samples a tree's resident memory and keeps the highest.

    The cheap resident sum is read at every sample. The proportional size (PSS), which costs a page-table walk, is read
    only when that sum reaches a new high by 1 %; `peak_bytes` is the highest PSS, or the highest sum where the kernel
    withholds PSS (`method` says which). None until something was sampled.
    """

    def __init__(self, members: Callable[[], list[Proc]], interval_s: float = 0.25) -> None:
        super().__init__(members, interval_s)
        self.peak_bytes: int | None = None
        self.method = "pss"
        self._highest_rss = 0

    def look(self, pids: frozenset[int], anew: bool) -> None:
        rss = rss_bytes(pids)
        if not rss or rss <= self._highest_rss * 1.01:
            return
        self._highest_rss = rss
        pss = pss_bytes(pids)
        if pss is None:
            self.method = "rss"
        self.peak_bytes = max(self.peak_bytes or 0, rss if pss is None else pss)


def rss_bytes(pids: Iterable[int]) -> int:
    """Sum of resident set sizes; pages shared between the processes count once for each."""
    return sum(_statm_rss(pid) for pid in pids)


def pss_bytes(pids: Iterable[int]) -> int | None:
    """Sum of proportional set sizes: resident memory in which a shared page counts once over all who share it.

    None when the kernel does not tell for one of the processes that is still alive.
    """
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return None
        match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(match[1]) * 1024 if match else 0
    return total


def nameless_segments(pids: Iterable[int]) -> set[Path]:
    """Files of shared memory that the processes map and that have no name but a random one (Python's `psm_`, SGLang's loads).

    Once all of them have ended nobody can find such a file any more, and it holds memory until it is removed.
    """
    found = set[Path]()
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        except OSError:
            continue
        found |= {Path(name) for name in re.findall(r"/dev/shm/(?:psm_|sglang_loads_)[\w.]+(?=$)", text, re.MULTILINE)}
    return found


def remove(segments: Iterable[Path]) -> None:
    """Give back the memory of segments that are in nobody's use any more."""
    for path in segments:
        with contextlib.suppress(OSError):
            path.unlink()


def _statm_rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
