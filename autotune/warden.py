"""A process that outlives the one it watches, to end at once what that leaves running on its machine.

For processes whose death nobody of ours attends: what they started would keep its GPUs until somebody calls `reap` there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from autotune import proc, process, reaper

_GONE_S = 30.0
"""How long the watched process may take to be gone once it has let go of its end of the pipe."""


def watch(store: Path) -> process.Piped:
    """Have this process watched until it ends; then what it has tagged for the store is ended. Keep what is returned."""
    me = proc.look(os.getpid())
    assert me is not None, "this process is in the process table"
    argv = [sys.executable, "-m", __name__, str(store), str(me.pid), str(me.start)]
    warden = process.piped(argv, process.inherited_environment())
    warden.wait()
    return warden


def main(store: str, pid: str, start: str) -> None:
    """Wait for standard input to end, which its writer's death ends, in a child of a child: some launchers end the first."""
    if os.fork():
        os._exit(0)
    os.setsid()
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _GONE_S
    while (seen := proc.look(int(pid))) and seen.start == int(start) and not seen.ended and time.monotonic() < deadline:
        time.sleep(0.05)
    reaper.reap(Path(store))


if __name__ == "__main__":
    main(*sys.argv[1:])
