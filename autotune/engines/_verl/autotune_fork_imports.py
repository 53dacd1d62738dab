"""Imports ahead what verl's workers need, in a process that others are forked from: CUDA stays out of it, no random number is
drawn of Ray's native code, and what is looked up in the environment is noted.

Runs in verl's own environment.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "_ahead"))
import imported
import untouched

sys.path.pop(0)
# The names are free again for whoever else has modules of them.
del sys.modules["imported"], sys.modules["untouched"]

CULPRITS: list[str] = []
"""The module that CUDA was initialised by."""


def import_all(modules: Iterable[str]) -> None:
    """Import what is there, note what is looked up in the environment meanwhile, and keep out of CUDA."""
    plain = os.environ.__class__
    added = "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
    # PyTorch then counts the GPUs without initialising them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.__class__ = imported.Noting
    restore: Callable[[], None] | None = None
    try:
        for module in modules:
            restore = restore or untouched.keep_out_of_cuda()
            # What cannot be imported here is for the process that needs it to complain about.
            try:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
            except untouched.WouldInitialiseError:
                print(f"Each worker imports {module} itself, which initialises CUDA.", file=sys.stderr, flush=True)
                sys.meta_path.insert(0, untouched.Returning())
            name_actors_without_ray()
            if not CULPRITS and imported.cuda_touched():
                CULPRITS.append(module)
    finally:
        if restore is not None:
            restore()
        os.environ.__class__ = plain
        imported.Noting.names.discard("PYTORCH_NVML_BASED_CUDA_CHECK")
        if added:
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


class Drawn:
    """Stands for Ray's class of the ids that it gives actor classes, which modules make as they are imported."""

    @staticmethod
    def from_random() -> Any:
        own: Any = sys.modules["ray._raylet"]
        return own.ActorClassID(os.urandom(own.ActorClassID.size()))


def name_actors_without_ray() -> None:
    """Keep Ray's native code from drawing a random number here: what is forked after that draws the same ones as every other,
    in all of its threads, and workers name what they put into the object store by them."""
    actors: Any = sys.modules.get("ray.actor")
    if actors is not None:
        actors.ActorClassID = Drawn
