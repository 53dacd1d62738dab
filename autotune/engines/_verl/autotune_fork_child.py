"""What a forked worker takes over from the process that Ray has started for it. Imports nothing but a neighbour of `_ahead`."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "_ahead"))
import inherited

# The name is free again for whoever else has a module of it.
del sys.path[0], sys.modules["inherited"]


@dataclass
class Origin:
    """What this interpreter began with."""

    environment: dict[str, str]
    folder: str
    """What stands at the head of `sys.path` for the driver."""


def become(order: Mapping[str, Any]) -> None:
    """Take over everything of the process that Ray has started, then tell it who its child is."""
    for number, stream in enumerate(order["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    if order["leads_group"]:
        os.setpgid(0, 0)
    inherited.take_surroundings(order)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, order["cpus"])
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, order["priority"])
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(order["oom_score"])
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    origin = order["origin"]
    take_environment(order["env"], origin.environment, order["looked_up"])
    sys.argv = list(order["argv"])
    # What is imported puts folders of its own before or behind it, as it would in a worker.
    sys.path[sys.path.index(origin.folder)] = str(Path(sys.argv[0]).parent)
    refresh()
    connection = order["connection"]
    connection.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    connection.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])


def refresh() -> None:
    """Have done again what native code and libraries do once, as they are loaded: read the environment, draw a seed."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    ray: Any = sys.modules.get("ray._raylet")
    if ray is not None:
        ray.Config.initialize("")
        if hasattr(ray, "AuthenticationTokenLoader"):
            ray.AuthenticationTokenLoader.instance().reset_cache()


def take_environment(asked: Mapping[str, str], began: Mapping[str, str], looked_up: Collection[str]) -> None:
    """The worker's own variables. What importing has set stays, as it would have been set in the worker."""
    for name in {*asked, *os.environ}:
        if asked.get(name) == began.get(name) != os.environ.get(name) and name in looked_up:
            continue
        if name in asked:
            os.environ[name] = asked[name]
        else:
            os.environ.pop(name, None)
