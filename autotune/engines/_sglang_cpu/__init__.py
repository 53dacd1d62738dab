"""What SGLang needs to run on a machine without a GPU, and what of it is a stand-in.

SGLang's CPU kernels are on no package index: they are built from its source. Its plain path, torch_native attention on a
dense model, imports their names and never calls them. `launch.py` here starts SGLang's own server after it has put two
stand-ins in place, each only where the real thing is missing:

- the module `sgl_kernel`, whose every name raises NotImplementedError when it is called: a configuration that needs a real
  kernel dies, and its trial says so;
- the schemas of two torchvision operators, which a torchvision built for CUDA cannot register beside a torch built for CPU.

Nothing of SGLang's own code is replaced. Triton kernels run interpreted, in numpy (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
"""Runs in the engine's interpreter in the place of `python -m sglang.launch_server`."""

ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
}
"""One OpenMP thread: with two on two shared cores the same configuration gave 20 to 508 output tokens/s, with one 342 to 601."""


def cpu_support() -> str:
    """What `autotune doctor` says about SGLang on a machine without a GPU."""
    return (
        "On a machine without a GPU, SGLang runs with two stand-ins that autotune puts in place when it launches it: a module "
        "sgl_kernel whose functions raise when called (SGLang's CPU kernels are built from source only) and the schemas of two "
        "torchvision operators. Dense models run on torch_native attention; fp8 KV cache, speculative decoding, hierarchical "
        "cache, torch.compile and tensor parallelism fail to start there, honestly. Its figures are for trying autotune out, "
        "not for choosing an engine."
    )
