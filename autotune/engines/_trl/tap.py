"""Runs a TRL training script unchanged and writes what every optimiser step measured: `tap.py STEPS SCRIPT [arguments]`.

SCRIPT is a file or a module (`trl.scripts.grpo`). A callback is added to whatever Trainer the script builds; it writes one
JSON line when training begins, and one a step, to the file STEPS. Phases are timed on the trainer's own methods, with the
GPU drained at their borders, since kernels run behind the Python that launched them. A vLLM that TRL builds inside the trainer
keeps its statistics, which it does not by default, so that its prefix cache's hit rate is known.

Runs in TRL's own environment and imports nothing of autotune.
"""

from __future__ import annotations

import functools
import json
import math
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers

PHASES = {
    "_generate": "generate_s",
    "_calculate_rewards": "reward_s",
    "_generate_and_score_completions": "rollout_s",
    "_get_per_token_logps_and_entropies": "log_prob_s",
}
"""Methods of TRL's online trainers (GRPO, RLOO) and the phase each is; rollout_s holds the other three."""
PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets", "vllm", "deepspeed", "liger-kernel")


def now() -> float:
    """Seconds, after everything launched on the GPU has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Phases:
    """Seconds of the running step by phase, and how many samples it generated."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples = 0
        self.online = False
        self._inside_rollout = False

    def take(self) -> dict[str, float]:
        """Seconds that have gathered since the last call."""
        found = dict(self.seconds)
        self.seconds.clear()
        return found

    def fresh(self, processes: int) -> int | None:
        """Samples generated since the last call over all processes, which share them evenly; None for an offline trainer."""
        found, self.samples = self.samples * processes, 0
        return found if self.online else None

    def watch(self, trainer: Any) -> None:
        self.online = hasattr(trainer, "_calculate_rewards")
        for method, phase in PHASES.items():
            if hasattr(trainer, method):
                setattr(trainer, method, self._timed(getattr(trainer, method), phase))

    def watch_engine(self, generation: Any) -> None:
        """Time the handing over of weights to the rollout engine, which the trainer builds after itself."""
        if hasattr(generation, "sync_weights"):
            generation.sync_weights = self._timed(generation.sync_weights, "weight_sync_s")

    def _timed(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            # The update's own forward pass is the same method: only the rollout's log-probabilities are a phase of theirs.
            if phase == "log_prob_s" and not self._inside_rollout:
                return method(*arguments, **named)
            self._inside_rollout |= phase == "rollout_s"
            began = now()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds[phase] += now() - began
                self._inside_rollout &= phase != "rollout_s"
                if phase == "reward_s":
                    self.samples += len(arguments[1])

        return call


class PrefixCache:
    """Hit rate of the prefix cache of a vLLM that runs inside the trainer, from vLLM's own counters."""

    def __init__(self) -> None:
        self.engine: Any = None
        self._seen = (0.0, 0.0)

    def take(self) -> float | None:
        """Share of prompt tokens found in the cache since the last call; None without such an engine, or when it did nothing."""
        if self.engine is None or not self.engine.llm_engine.log_stats:
            return None
        counted = {"vllm:prefix_cache_queries": 0.0, "vllm:prefix_cache_hits": 0.0}
        for metric in self.engine.get_metrics():
            if metric.name in counted:
                counted[metric.name] += float(metric.value)
        before, self._seen = self._seen, (counted["vllm:prefix_cache_queries"], counted["vllm:prefix_cache_hits"])
        asked = self._seen[0] - before[0]
        return (self._seen[1] - before[1]) / asked if asked > 0 else None


class StepWriter(transformers.TrainerCallback):  # type: ignore[misc]
    """One JSON line a step. Numbers that are not finite are listed under `broken`, since JSON cannot hold them."""

    def __init__(self, path: Path, phases: Phases, trainer: Any = None) -> None:
        self.path = path
        self.phases = phases
        self.trainer = trainer
        self.cache = PrefixCache()
        self.file: TextIO | None = None
        self.stepped = 0.0
        self.step_s: float | None = None
        self.tokens_seen = 0.0

    def write(self, record: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(record, default=str) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            # Line-buffered, so that a run that is killed keeps every finished step.
            self.file = self.path.open("w", buffering=1, encoding="utf-8")
        generation = getattr(self.trainer, "vllm_generation", None)
        self.phases.watch_engine(generation)
        self.cache.engine = getattr(generation, "llm", None)
        self.phases.take()
        self.write({"event": "begin", "arguments": args.to_dict(), "versions": installed(), "world_size": args.world_size})
        self.stepped = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ended = now()
        self.step_s, self.stepped = ended - self.stepped, ended

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.step_s is None:
            return
        logs = logs or {}
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        broken = [key for key, value in logs.items() if value is None or (key in numbers and not math.isfinite(numbers[key]))]
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        phases, fresh = self.phases.take(), self.phases.fresh(args.world_size)
        tokens = numbers.get("num_tokens", 0.0) - self.tokens_seen
        self.tokens_seen += tokens
        self.write(
            {
                "event": "step",
                "step": state.global_step,
                "step_s": self.step_s,
                "samples": samples,
                "fresh_samples": fresh,
                # A step that reuses earlier answers, or shares a generation with others, has no token count of its own.
                "tokens": tokens if tokens > 0 and fresh in (None, samples) else None,
                "phases": phases,
                "rollout_hit_rate": self.cache.take(),
                "trainer_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
                "logs": {key: value for key, value in numbers.items() if math.isfinite(value)},
                "broken": broken,
            }
        )
        self.step_s = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.write({"event": "end", "step": state.global_step})


def installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def keep_statistics() -> None:
    """Let the vLLM that TRL is about to build inside the trainer keep its statistics."""
    module: Any = sys.modules.get("trl.generation.vllm_generation")
    build = getattr(module, "LLM", None)
    if build is not None and not isinstance(build, functools.partial):
        module.LLM = functools.partial(build, disable_log_stats=False)


def tap(path: Path) -> None:
    """Make every Trainer built from now on report its steps to `path`."""
    build = transformers.Trainer.__init__

    def init(trainer: Any, *arguments: Any, **named: Any) -> None:
        build(trainer, *arguments, **named)
        keep_statistics()
        phases = Phases()
        phases.watch(trainer)
        trainer.add_callback(StepWriter(path, phases, trainer))

    transformers.Trainer.__init__ = init


def main() -> None:
    steps, script, *rest = sys.argv[1:]
    sys.argv = [script, *rest]
    tap(Path(steps))
    if script.endswith(".py"):
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
