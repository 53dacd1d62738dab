"""A trial's worker process and what is its own: started, and cleaned up after whatever happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.context import ForkServerProcess
from typing import Any

from autotune import proc, process
from autotune.engines.base import Context
from autotune.executors import _forkserver
from autotune.executors.base import Site


@dataclass
class Workplace:
    """A worker process, what it may use of the machine, and the way to talk to it."""

    context: Context
    worker: ForkServerProcess
    pipe: Any
    identity: tuple[int, int]

    def clean(self) -> None:
        """End everything the worker may have left, itself included, and remove its scratch folder."""
        process.end(lambda: proc.members(self.context.tag, self.identity), None, 0.0)
        self.worker.join(5.0)
        self.pipe.close()
        shutil.rmtree(self.context.scratch, ignore_errors=True)


def opened(site: Site, target: Callable[..., None], arguments: tuple[Any, ...], context: Context, name: str) -> Workplace:
    """Start a worker at `target(pipe, *arguments)`. Raises EOFError or OSError when none can be started."""
    ours, theirs = Pipe()
    try:
        worker = _forkserver.start(site, target, (theirs, *arguments), name=name)
    except (EOFError, OSError):
        ours.close()
        raise
    finally:
        theirs.close()
    seen = proc.look(worker.pid or 0)
    return Workplace(context, worker, ours, seen.identity if seen else (worker.pid or 0, 0))
