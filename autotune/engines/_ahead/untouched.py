"""Imports that leave a GPU alone, so that processes can be forked from the one that has done them. Imports nothing of autotune."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import sys
from collections.abc import Callable
from typing import Any


class WouldInitialiseError(BaseException):
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
        raise WouldInitialiseError

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
