"""Lets an unmodified verl train where there is no GPU, through verl's own registries.

It registers the platform `cpu`, gives the FSDP engines that platform as a device, and adds the rollout `hf_cpu` (one process
that generates with Transformers). Loaded by verl itself in every process: VERL_USE_EXTERNAL_MODULES=autotune_verl_cpu and
VERL_PLATFORM=cpu. Ray is told of one GPU that is not there, because verl's placement asks for one.

Meant for trying a study, for tests and for CI: speed on a CPU says nothing about a GPU.
Runs in verl's own environment and imports nothing of autotune.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator, attr-defined, no-any-return"
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from autotune_verl_trial import AfterImport
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

ROLLOUT = "hf_cpu"


def _nothing(*_: Any, **__: Any) -> None:
    """What a GPU would do here has no counterpart on a CPU."""


def _status_bytes(field: str) -> int:
    """A memory field of this process, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


class CpuDevice(ModuleType):
    """Answers for `torch.cuda` where verl asks it. Device memory is this process's resident memory."""

    Event = torch.cpu.Event if hasattr(torch.cpu, "Event") else None
    Stream = torch.cpu.Stream
    set_device = synchronize = empty_cache = ipc_collect = staticmethod(_nothing)
    reset_peak_memory_stats = set_per_process_memory_fraction = staticmethod(_nothing)

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> str:
        return "cpu"

    @staticmethod
    def get_device_name(*_: Any) -> str:
        return "cpu"

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    @staticmethod
    def get_rng_state(*_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def memory_allocated(*_: Any) -> int:
        return _status_bytes("VmRSS")

    memory_reserved = memory_allocated

    @staticmethod
    def max_memory_allocated(*_: Any) -> int:
        return _status_bytes("VmHWM")

    max_memory_reserved = max_memory_allocated

    @staticmethod
    def mem_get_info(*_: Any) -> tuple[int, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    @staticmethod
    def current_stream(*_: Any) -> Any:
        return torch.cpu.current_stream()

    @staticmethod
    def stream(_: Any) -> Any:
        return contextlib.nullcontext()


_DEVICE = CpuDevice("autotune_verl_cpu_device")


@PlatformRegistry.register(platform="cpu")
class PlatformCpu(PlatformBase):
    """A machine without an accelerator."""

    set_device = synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = _nothing

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def fsdp_on_cpu(module: ModuleType) -> None:
    """`module` is verl.workers.engine.fsdp.transformer_impl: its engines are keyed by device, and offloading pins memory."""
    from verl.workers.engine.base import EngineRegistry

    for kind, engine in (("language_model", module.FSDPEngineWithLMHead), ("value_model", module.FSDPEngineWithValueHead)):
        EngineRegistry.register(model_type=kind, backend=["fsdp", "fsdp2"], device="cpu")(engine)
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def gloo_alone(module: ModuleType) -> None:
    """`module` is verl.utils.distributed: it would name a backend for the CPU twice, which torch refuses."""
    begin = module.initialize_global_process_group_ray

    def initialize(timeout_second: float | None = None, backend: str | None = None) -> None:
        begin(timeout_second=timeout_second, backend=backend or "gloo")

    module.initialize_global_process_group_ray = initialize


def rollout_adapter(module: ModuleType) -> None:
    """`module` is verl.workers.rollout.base."""
    module._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = "autotune_verl_cpu_rollout.Adapter"


def rollout_replica(module: ModuleType) -> None:
    """`module` is verl.workers.rollout.replica."""

    def load() -> type:
        from autotune_verl_cpu_rollout import Replica

        return Replica

    module.RolloutReplicaRegistry.register(ROLLOUT, load)


sys.meta_path.insert(
    0,
    AfterImport(
        {
            "verl.workers.engine.fsdp.transformer_impl": fsdp_on_cpu,
            "verl.utils.distributed": gloo_alone,
            "verl.workers.rollout.base": rollout_adapter,
            "verl.workers.rollout.replica": rollout_replica,
        }
    ),
)
