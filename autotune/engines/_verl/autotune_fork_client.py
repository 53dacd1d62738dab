"""Stands for the interpreter of a worker that Ray starts: has it forked from the trial's server, or starts it plainly.

    python -I -S autotune_fork_client.py SOCKET SECONDS PYTHON SCRIPT ...       stands for `PYTHON SCRIPT ...`

Waits up to SECONDS for the server to be there for it, for as long as its child runs once it has one, and ends as the child
did; descriptors that the raylet watches its workers by stay open here that long. Signals that end a process are passed on;
when this process is killed, the server ends the child. Without a server, or where it refuses, this process becomes
`PYTHON SCRIPT ...`. Runs in verl's own environment and imports nothing of autotune but its neighbour of `_ahead`.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, __file__.rsplit("/", 2)[0] + "/_ahead")
import inherited

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_S = 5.0
"""How long a child may take to end in order after its raylet has ended."""
UNKNOWN = 1 << 8


def main() -> None:
    place, seconds, python, *argv = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = None
    try:
        connection.settimeout(float(seconds))
        connection.connect(place)
        if connection.recv(1) == b"?":
            pid = ask(connection, argv)
    except (OSError, ValueError):
        pid = None
    if pid is None:
        connection.close()
        os.execv(python, [python, *argv])
    end(await_child(connection, pid))


def ask(connection: socket.socket, argv: Sequence[str]) -> int | None:
    """Have a child forked; None when the server refuses or dies, in which case there is none."""
    text = json.dumps(order(argv)).encode()
    socket.send_fds(connection, [struct.pack("!I", len(text))], [0, 1, 2])
    connection.sendall(text)
    # From here on the server is there and forks, which is quick; a child that was made must not be doubled.
    connection.settimeout(None)
    answer = line(connection)
    return None if answer is None else answer.get("pid")


def order(argv: Sequence[str]) -> dict[str, Any]:
    """What this process is, for the child to be."""
    with open("/proc/self/oom_score_adj") as stream:  # noqa: PTH123
        oom_score = stream.read().strip()
    return {
        **inherited.state(),
        "argv": list(argv),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": oom_score,
        "leads_group": os.getpgrp() == os.getpid(),
    }


def line(connection: socket.socket) -> dict[str, Any] | None:
    """The next thing the server or the child says; None when nobody is there any more."""
    text = b""
    while not text.endswith(b"\n"):
        try:
            part = connection.recv(1)
        except OSError:
            return None
        if not part:
            return None
        text += part
    said: dict[str, Any] = json.loads(text)
    return said


def await_child(connection: socket.socket, pid: int) -> int:
    """The child's wait status; that of a plain failure when the server died and nobody can know it."""
    child, raylet = opened(pid), opened(int(os.environ.get("RAY_RAYLET_PID", "0")))
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: pass_on(child, number))
    if raylet >= 0:
        # A worker ends with its raylet; a forked one looks at the driver instead, and may see it only later.
        ready, _, _ = select.select([connection.fileno(), raylet], [], [])
        if connection.fileno() not in ready and child >= 0:
            pass_on(child, signal.SIGTERM)
            if child not in select.select([child], [], [], GRACE_S)[0]:
                pass_on(child, signal.SIGKILL)
    said = line(connection)
    if said is not None:
        return int(said["status"])
    if child >= 0:
        select.select([one for one in (child, raylet) if one >= 0], [], [])
        # The server is gone: whichever of the two has ended, the child is to end.
        pass_on(child, signal.SIGKILL)
    return UNKNOWN


def opened(pid: int) -> int:
    """A descriptor of a process, which can be waited for; -1 when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def pass_on(child: int, number: int) -> None:
    if child >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, number)


def end(status: int) -> None:
    """End as the child did."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


if __name__ == "__main__":
    main()
