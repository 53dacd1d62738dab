"""TCP ports: choosing a free one, and proving whose process answers on one. Reads `/proc`, ends nothing."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from autotune import proc
from autotune.errors import AutotuneError

_LISTEN = "0A"
_POLL_S = 0.05


def free_port() -> int:
    """A TCP port that nobody listens on at this moment, below the range that outgoing connections take theirs from."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(200):
        port = random.SystemRandom().randrange(min(20000, low - 5000), low)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AutotuneError("There is no free TCP port on this machine.")


def wait_gone(port: int, timeout_s: float = 10.0) -> bool:
    """Wait until nobody listens on the port; False when somebody still does."""
    deadline = time.monotonic() + timeout_s
    while listener_inodes(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def listener_inodes(port: int) -> set[str]:
    """Socket inodes that listen on the TCP port, on any address."""
    found = set[str]()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def holders(inodes: set[str], pids: Iterable[int] | None = None) -> dict[str, list[int]]:
    """Which of the processes (all that are visible, by default) hold each socket inode open."""
    found: dict[str, list[int]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for pid in proc.table() if pids is None else pids:
        for target in _descriptors(pid):
            if target in wanted:
                found.setdefault(wanted[target], []).append(pid)
    return found


def port_listener(port: int) -> int | None:
    """The lowest id of the processes listening on the port; None when nobody does or its owner cannot be seen."""
    inodes = listener_inodes(port)
    if not inodes:
        return None
    return min((pid for pids in holders(inodes).values() for pid in pids), default=None)


def answers_for(port: int, tag: str) -> bool:
    """Whether the port is listened on, and every socket that listens there is held by a process of the tag's tree."""
    inodes = listener_inodes(port)
    return bool(inodes) and set(holders(inodes, [one.pid for one in proc.members(tag)])) == inodes


def _descriptors(pid: int) -> Iterable[str]:
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield str(link.readlink())
