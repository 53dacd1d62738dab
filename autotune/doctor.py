"""Says what this machine can do: engines, GPUs, optional packages, the store, and the line that installs what is missing."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from autotune import engines, gpu
from autotune.engines import _environment
from autotune.errors import AutotuneError

_OPTIONAL = {
    "mlflow": ("shows studies and trials", "pip install 'mlflow>=3.7,<4'"),
    "ray": ("runs trials on many machines", "pip install 'autotune[ray]'"),
    "torch": ("the sampler 'gp' needs it", "pip install 'autotune[gp]'"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is what to do when it is not usable."""

    room: Literal["machine", "gpu", "engine", "package", "store"]
    name: str
    usable: bool
    detail: str
    remedy: str = ""


def examine(store: Path) -> list[Finding]:
    """Look at everything; nothing is changed but a probe file in the store."""
    return [*_machine(), *_gpus(), *_engines(), *_packages(), _store(store)]


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    yield Finding("machine", "python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("machine", "resources", True, f"{cores} cores, {memory:.0f} GiB of memory")


def _gpus() -> Iterator[Finding]:
    found = gpu.devices()
    if not found:
        yield Finding("gpu", "none", True, "No NVIDIA GPU was found: engines run on the CPU.")
    for device in found:
        yield Finding("gpu", str(device.index), True, f"{device.name}, {device.total_bytes / 2**30:.0f} GiB")


def _engines() -> Iterator[Finding]:
    for kind in engines.kinds():
        for cpu, python in itertools.product((False, True) if _can_go_without_gpu(kind) else (False,), _interpreters(kind)):
            answer = _engine(kind, python, cpu)
            if answer.usable:
                break
        yield answer


def _interpreters(kind: str) -> list[Path | None]:
    """The tuner's own interpreter, then that of the environment which `make engine-KIND` makes."""
    own = _environment.usual(kind)
    return [None, own] if own.exists() else [None]


def _can_go_without_gpu(kind: str) -> bool:
    """Whether a study has to say that there is no GPU, as of a training engine; serving engines see for themselves."""
    with contextlib.suppress(AutotuneError):
        return "cpu" in engines.get(kind).Options.model_fields
    return False


def _engine(kind: str, python: Path | None, cpu: bool) -> Finding:
    try:
        found = engines.get(kind)
        named = {"python": python, "cpu": True} if cpu else {"python": python}
        engine = found(found.Options.model_construct(kind=kind, model="", fixed={}, env={}, **named))
        identity = engine.identity()
    except AutotuneError as error:
        return Finding("engine", kind, False, "is not usable here.", str(error))
    detail = f"{identity.version} on {identity.device} ({identity.python})"
    said = [f"engine.python: {python}"] * (python is not None) + ["engine.cpu: true"] * cpu
    detail += f", with {' and '.join(said)}" if said else ""
    remarks = engine.remarks()
    return Finding("engine", kind, True, f"{detail}. {remarks}" if remarks else detail)


def _packages() -> Iterator[Finding]:
    for name, (use, line) in _OPTIONAL.items():
        try:
            yield Finding("package", name, True, f"{version(name)}: {use}")
        except PackageNotFoundError:
            yield Finding("package", name, False, f"is not installed: {use}.", line)


def _store(store: Path) -> Finding:
    probe = store / ".probe"
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe.write_text("autotune")
        probe.unlink()
    except OSError as error:
        return Finding(
            "store",
            str(store),
            False,
            f"cannot be written: {error.strerror}.",
            "Name another folder with --store or AUTOTUNE_STORE.",
        )
    free = psutil.disk_usage(str(store)).free / 2**30
    return Finding("store", str(store), True, f"writable, {free:.0f} GiB free")
