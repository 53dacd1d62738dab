"""Imports an engine ahead of its trial, waits to be told the trial's launch, and becomes it. Of autotune it imports its neighbours.

    python waiting.py SCRIPT -- MODULE ...          later runs `python SCRIPT ...`
    python waiting.py -m PACKAGE -- MODULE ...      later runs `python -m PACKAGE ...`

Standard input is a socket. An empty line goes out over it when all is imported. One line of JSON comes in, the launch: `argv`
(the whole command), `arguments` (those for the script), `env`, `cwd`, `log`, `cpus`, `late`, `forks`. One line of JSON goes
back: `null` once the launch goes on in this interpreter, else why the command was started from its beginning instead, in this
same process. When the socket is closed this process ends.

Whether the launch can go on from what was imported is judged in `imported.py`. For processes that the launch will spawn, further
interpreters import beside this one: `spawned.py`.

Until then it runs only where and when nobody else needs the processor: on the cores it was started on, and, where that can
be undone, at idle priority. The number of threads that native libraries choose from the cores they see is that of the
cores the launch will have: `AUTOTUNE_THREADS` says how many.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Beside this file, also where PYTHONSAFEPATH keeps a script's folder out of the path.
sys.path.insert(0, str(Path(__file__).parent))
import spawned
from spawned import imported

# The name is free again for whoever else has a module of it.
del sys.path[0], sys.modules["spawned"]


def main() -> None:
    split = sys.argv.index("--")
    entry, modules = sys.argv[1:split], sys.argv[split + 1 :]
    imported.end_with_parent()
    orders = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    idle = yield_to_others()
    brood = spawned_beside(entry)
    threads = os.environ.pop("AUTOTUNE_THREADS", None)
    before = dict(os.environ)
    imported.import_all(entry, modules, threads)
    imported.end_if_it_takes_memory()
    order = await_order(orders)
    redirect(Path(order["log"]))
    os.chdir(order["cwd"])
    imported.take_cores(os.getpid(), order["cpus"], idle)
    brood.become_normal(order["cpus"], idle)
    imported.outlive_parent()
    imported.widen(os.environ.get(imported.THREADS, threads))
    differing = {name for name in {*before, *order["env"]} if before.get(name) != order["env"].get(name)}
    reason = imported.obstacle(differing, order["late"], order["forks"])
    imported.answer(orders, reason)
    if reason is not None:
        print(f"The launch starts from its beginning: {reason}.", flush=True)
        brood.end()
        os.execve(order["argv"][0], order["argv"], order["env"])
    imported.take_environment(order["env"], differing)
    brood.serve()
    run(entry, order["arguments"])


def spawned_beside(entry: Sequence[str]) -> Any:
    """The interpreters for processes that the launch will spawn; they import while this one does."""
    asked = json.loads(os.environ.pop("AUTOTUNE_SPAWNS", "{}"))
    brood = spawned.Brood()
    if asked:
        brood.start(entry=entry, **asked)
    return brood


def yield_to_others() -> bool:
    """Ask for idle priority if this process may leave it again: without the right to, it would be there for good."""
    undone: list[bool] = []

    def there_and_back() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            undone.append(True)

    trial = threading.Thread(target=there_and_back)
    trial.start()
    trial.join()
    if undone:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return bool(undone)


def await_order(orders: socket.socket) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        orders.sendall(b"\n")
    text = b""
    while not text.endswith(b"\n"):
        part = orders.recv(1 << 16)
        if not part:
            os._exit(0)
        text += part
    order: dict[str, Any] = json.loads(text)
    return order


def redirect(log: Path) -> None:
    """From here on into the trial's log, after what was said while importing."""
    sys.stdout.flush()
    sys.stderr.flush()
    said = Path(f"/proc/self/fd/{sys.stdout.fileno()}").read_bytes()
    with log.open("ab", buffering=0) as stream:
        stream.write(said)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def run(entry: Sequence[str], arguments: Sequence[str]) -> None:
    if entry[0] == "-m":
        sys.argv = ["-m", *arguments]
        runpy.run_module(entry[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [entry[0], *arguments]
        runpy.run_path(entry[0], run_name="__main__")


if __name__ == "__main__":
    main()
