"""Why a worker cannot be forked from this process.

What was read at import cannot be changed afterwards. Every variable that Python code looks up while it imports is noted; a
worker that is to have another value of one of those, or of a variable that is not known to be read late, starts with imports of
its own. So does every one when CUDA was initialised here, or a thread runs here that a child would miss.

Runs in verl's own environment.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune_fork_imports import CULPRITS, imported

LATE = ("RAY_", "NCCL_", "VLLM_", "HCCL_", "HSA_", "VERL_", "WG_", "TRANSFER_QUEUE_")
"""How names of variables begin that Ray and verl give their workers, and that native code reads when it needs them."""
LATE_NAMES = frozenset(
    {"TOKENIZERS_PARALLELISM", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)
OF_A_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "PS1", "PS2"})
"""Ray starts workers through a shell, which keeps these for itself, or drops them where it talks to nobody: an activated virtual
environment exports PS1."""
NATIVE = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(os.getpid())}
"""What Ray's native code reads once, when it is loaded, and workers alone use: the job, which is the first of its cluster, and
the process without which a worker ends. That is the raylet's; the driver's, which is this one's, ends with it."""
HARMLESS_THREADS = re.compile(r"jemalloc_bg_thd|cuda[0-9a-f]{11}")
"""Threads by the kernel's name that a library starts again, or does without, in a forked child. The second is the CUDA driver's
(580), which has it before CUDA is initialised; vLLM's engine, forked from a process like that, serves on an H200."""


def alike() -> bool:
    """Whether forked processes draw the same from Ray's native code; two that are forked to try it tell."""
    ray: Any = sys.modules.get("ray._raylet")
    if ray is None:
        return False
    ours, theirs = os.pipe()
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(theirs, ray.NodeID.from_random().binary())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as drawn:
        return bool(drawn.read(ray.NodeID.size()) == drawn.read(ray.NodeID.size()))


def obstacle() -> str | None:
    """Why nothing can be forked from this process; None when it can."""
    if imported.cuda_touched():
        return f"CUDA was initialised while {' and '.join(CULPRITS) or 'something'} was imported"
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    threads = {(task / "comm").read_text().strip() for task in tasks}
    missed = sorted(name for name in threads if not HARMLESS_THREADS.fullmatch(name))
    return f"a thread named {missed[0]} runs, which a forked process would miss" if missed else None


def differs(order: Mapping[str, Any], began: Mapping[str, str]) -> str | None:
    """Why the worker of an order cannot go on from what was imported here, with the variables that this interpreter `began` with;
    None when it can."""
    script = order["argv"][0] if order["argv"] else ""
    if not script.endswith(".py"):
        return f"it is not a script ({script!r})"
    asked, now = order["env"], os.environ
    if asked.get("RAY_JOB_ID", NATIVE["RAY_JOB_ID"]) != NATIVE["RAY_JOB_ID"]:
        return "it is of a second job"
    for name in sorted({*asked, *began, *now} - OF_A_SHELL):
        if asked.get(name) in (now.get(name), began.get(name)):
            continue
        if name in imported.Noting.names:
            return f"{name} was looked up or set while importing, and a worker has another value"
        if name not in LATE_NAMES and not name.startswith(LATE):
            return f"{name} is not what was imported with"
    return None
