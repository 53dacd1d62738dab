"""Imports ahead what verl's workers need, in a process that others are forked from: CUDA stays out of it, no random number is
drawn of Ray's native code, and what is looked up in the environment is noted.

Runs in verl's own environment.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "_ahead"))
import waiting

sys.path.pop(0)
# The name is free again for whoever else has a module of it.
del sys.modules["waiting"]

CULPRITS: list[str] = []
"""The module that CUDA was initialised by."""


def import_all(modules: Iterable[str]) -> None:
    """Import what is there, note what is looked up in the environment meanwhile, and keep out of CUDA."""
    plain = os.environ.__class__
    added = "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
    # PyTorch then counts the GPUs without initialising them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.__class__ = waiting.Noting
    restore: Callable[[], None] | None = None
    try:
        for module in modules:
            restore = restore or keep_out_of_cuda()
            # What cannot be imported here is for the process that needs it to complain about.
            try:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
            except LeftToWorkersError:
                print(f"Each worker imports {module} itself, which initialises CUDA.", file=sys.stderr, flush=True)
                sys.meta_path.insert(0, Returning())
            name_actors_without_ray()
            if not CULPRITS and waiting.cuda_touched():
                CULPRITS.append(module)
    finally:
        if restore is not None:
            restore()
        os.environ.__class__ = plain
        waiting.Noting.names.discard("PYTORCH_NVML_BASED_CUDA_CHECK")
        if added:
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


class LeftToWorkersError(BaseException):
    """An import would initialise CUDA. No Exception, so that a module which goes on without what it cannot import does not."""


class Returning:
    """Gives a package that is imported anew the submodules that stayed when its first import was given up. Python binds a
    submodule only as it imports it, and to import these twice would register twice what they register."""

    def __init__(self) -> None:
        self.kept: dict[str, list[str]] = {}
        for name in sys.modules:
            package, _, leaf = name.rpartition(".")
            if package and package not in sys.modules:
                self.kept.setdefault(package, []).append(leaf)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in self.kept else None
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def bind_and_execute(module: Any) -> None:
                for leaf in self.kept[name]:
                    if (submodule := sys.modules.get(f"{name}.{leaf}")) is not None:
                        setattr(module, leaf, submodule)
                execute(module)

            loader.exec_module = bind_and_execute
        return spec


def keep_out_of_cuda() -> Callable[[], None] | None:
    """Have PyTorch ask NVML what a GPU can, as verl's kernels do while they are imported, and give up an import that asks for
    more: what it needed is there, and each worker imports the rest itself. Returns what undoes it; None before PyTorch is
    there, and where it sees no GPU."""
    cuda: Any = sys.modules.get("torch.cuda")
    if cuda is None or not cuda.is_available():
        return None
    plain = {name: getattr(cuda, name) for name in ("get_device_capability", "_lazy_init")}

    def capability(device: Any = None) -> tuple[int, int]:
        found = nvml_capability(device) if device is None or isinstance(device, int) else None
        return found or plain["get_device_capability"](device)

    def give_up() -> None:
        raise LeftToWorkersError

    def restore() -> None:
        for name, own in plain.items():
            setattr(cuda, name, own)

    cuda.get_device_capability, cuda._lazy_init = capability, give_up
    return restore


def nvml_capability(device: int | None) -> tuple[int, int] | None:
    """The compute capability of a visible GPU by NVML; None when it does not tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    try:
        name = visible.split(",")[device or 0].strip() if visible is not None else str(device or 0)
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()
        if name.isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(handle))
        else:
            failed = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        failed = failed or nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    except (OSError, AttributeError, IndexError):
        return None
    return None if failed else (major.value, minor.value)


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
