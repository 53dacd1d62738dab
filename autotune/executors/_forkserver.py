"""The server that local workers are forked from, so that a worker starts in hundredths of a second."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from autotune import proc, process
from autotune.executors import _worker
from autotune.executors.base import Site

_STARTS = 5
_LONGEST_FOLDER = 70
"""A longer folder leaves no room for a socket's name, which the kernel limits to 107 bytes with its path."""


def start(site: Site, target: Callable[..., None], arguments: tuple[Any, ...], name: str) -> ForkServerProcess:
    """Start a worker. A server that dies meanwhile is started again, a few times; then its error is raised."""
    for left in reversed(range(_STARTS)):
        worker = _running(site).Process(target=target, args=arguments, name=name)
        try:
            worker.start()
            break
        except (EOFError, OSError):
            if not left:
                raise
            time.sleep(0.1)
    return worker


def _running(site: Site) -> ForkServerContext:
    """Start the server unless it runs. One serves the whole driver.

    It carries a tag, which workers inherit, and keeps its socket in the driver's scratch folder, so that a reaper finds
    both after a killed driver.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_modules(site))
    root = process.scratch_root()
    tag, folder = os.environ.get(proc.TAG_VARIABLE), tempfile.tempdir
    os.environ[proc.TAG_VARIABLE] = process.make_tag(site.store, site.study, "workers")
    try:
        _removed_at_exit(root)
        if len(str(root)) <= _LONGEST_FOLDER:
            tempfile.tempdir = str(root)
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = folder
        os.environ.pop(proc.TAG_VARIABLE)
        if tag is not None:
            os.environ[proc.TAG_VARIABLE] = tag
    return context


@functools.cache
def _removed_at_exit(root: Path) -> None:
    """After multiprocessing's own clean-up, which has the priority -100 and runs before lower ones."""
    util.Finalize(None, shutil.rmtree, args=(root, True), exitpriority=-200)


def _modules(site: Site) -> list[str]:
    """What a worker needs, imported once."""
    return [_worker.__name__, *sorted({type(part).__module__ for part in (*site.engines.values(), site.workload)})]
