"""An engine's own environment: what is installed in it, asked without importing the engine, and where it keeps what it compiles."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune import process
from autotune.engines.base import Identity
from autotune.errors import MissingPrerequisite
from autotune.secrets import MASK, redact

_READ = ("VLLM_", "SGLANG_", "SGL_", "VERL_", "ACCELERATE_", "NCCL_", "PYTORCH_")
"""How the variables begin by which engines, and what they run on, are told what no flag says."""
_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[2:]:
    try: found[name] = version(name)
    except PackageNotFoundError: pass
device = "cpu"
if sys.argv[1] == "gpu":
    import torch
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
print(json.dumps({"packages": found, "device": device, "python": sys.version.split()[0]}))
"""


def interpreter(python: Path | None) -> str:
    """The interpreter of the engine's environment; the tuner's own when the study names none."""
    return str(python.absolute()) if python is not None else sys.executable


def told_by_shell() -> dict[str, str]:
    """The variables of this shell that reach every trial and may change what it measures, credentials aside."""
    found = sorted(process.inherited_environment().items())
    overwritten = compiled(Path())
    return {
        name: value for name, value in found if name.startswith(_READ) and name not in overwritten and MASK not in redact(value)
    }


def usual(kind: str) -> Path:
    """The interpreter of the environment that `make engine-KIND` makes, from the top of a checkout."""
    return Path(".venvs") / kind / "bin" / "python"


def identity(kind: str, python: Path | None, packages: Sequence[str], cpu: bool, install: str) -> Identity:
    """What is installed; the first of `packages` is the engine itself.

    Raises MissingPrerequisite when it is not there, or when there is no GPU and the study does not say `cpu: true`.
    """
    asked = process.run([interpreter(python), "-c", _ASK, "cpu" if cpu else "gpu", *packages], timeout_s=120)
    if asked.returncode != 0:
        raise MissingPrerequisite(f"{interpreter(python)} cannot say what it has installed: {asked.stderr.strip()[-300:]}")
    told = json.loads(asked.stdout)
    if packages[0] not in told["packages"]:
        raise MissingPrerequisite(
            f"The engine {kind!r} needs {packages[0]}, which {interpreter(python)} does not have. Name one that has it as "
            f"engine.python, such as {usual(kind)} of: {install}"
        )
    if not told["device"]:
        raise MissingPrerequisite(f"The engine {kind!r} finds no GPU here; a study that trains on the CPU says engine.cpu: true.")
    return Identity(
        kind=kind,
        version=told["packages"][packages[0]],
        python=told["python"],
        device=told["device"],
        packages=told["packages"],
        variables=told_by_shell(),
    )


def compiled(folder: Path) -> dict[str, str]:
    """Variables for vLLM, PyTorch and Triton: they keep what they compile in this folder of the store, for every trial to find, and
    not in the temporary folder, which goes with its trial, or in the user's home."""
    return {
        "VLLM_CACHE_ROOT": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(folder),
    }
