"""How a verl launch has Ray's workers forked from one process that has imported everything, instead of importing it in each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from autotune.engines._verl_hydra import A
from autotune.trial import Value

_FOLDER = Path(__file__).parent / "_verl"
_SERVER, _CLIENT = _FOLDER / "autotune_fork_server.py", _FOLDER / "autotune_fork_client.py"
_WAIT_S, _RAY_WAITS_S = 120, 300
"""How long a worker waits for the server to have imported everything, before it starts by itself; how long Ray waits for it then.
On a bare machine, or a very busy one, imports take minutes."""
PY_EXECUTABLE = "ray_kwargs.ray_init.runtime_env.py_executable"
_SHARED = (
    "hydra",
    "ray",
    "ray.util.scheduling_strategies",
    "torch",
    "transformers",
    "verl",
    "verl.utils.config",
    "verl.trainer.ppo.utils",
)
"""What verl's driver imports itself."""
_MODULES = (
    "ray._private.workers.default_worker",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.single_controller.ray",
    "verl.experimental.agent_loop",
    "verl.experimental.reward_loop",
    "verl.workers.rollout.replica",
    "verl.utils.tracking",
)
"""What verl's workers import beside what its driver does; what a version has not is passed over."""
_ROLLOUTS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("verl.workers.rollout.vllm_rollout.vllm_async_server", "verl.workers.rollout.vllm_rollout"),
    "hf_cpu": ("autotune_verl_cpu_rollout",),
}
_EXPECTED = {
    "NCCL_DEBUG": "WARN",
    "VLLM_LOGGING_LEVEL": "WARN",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "VLLM_BATCH_INVARIANT": "0",
    "VERL_FULL_DETERMINISM": "0",
    "VERL_RL_INSIGHT_ENABLE": "0",
}
"""What verl 0.9 sets for its workers and vLLM looks up while it is imported. Where verl sets something else nothing is forked."""


def argv(python: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The command that becomes verl's driver with these arguments."""
    return (python, str(_SERVER), "-m", "verl.trainer.main_ppo", *arguments)


def parameters(python: str, place: Path) -> dict[str, Value]:
    """What verl is told, so that Ray starts its workers through the client."""
    return {PY_EXECUTABLE: shlex.join([python, "-I", "-S", str(_CLIENT), str(place), str(_WAIT_S), python])}


def environment(asked: Mapping[str, Value], place: Path) -> dict[str, str]:
    """What the server is told, which neither driver nor workers see, and how patient Ray has to be."""
    rollout = _ROLLOUTS.get(str(asked.get(f"{A}.rollout.name")), ())
    told = {"socket": str(place), "shared": _SHARED, "modules": (*_MODULES, *rollout), "expected": _EXPECTED}
    return {"AUTOTUNE_FORK": json.dumps(told), "RAY_worker_register_timeout_seconds": str(_RAY_WAITS_S)}
