"""Loaded by verl in every process of a trial (VERL_USE_EXTERNAL_MODULES); changes how a trial waits, never what it computes.

- The trainer looks for finished samples every two seconds, so a short step takes two seconds whatever the rollout does. A
  trial looks as often as AUTOTUNE_VERL_POLL_S says.
- A critic asks for flash-attention by name. Where that package is not installed it gets PyTorch's own attention, as the actor
  does by its override_config.
- The trainer reports the mean reward alone. The spread of rewards, the share of groups that teach nothing because their rewards
  are equal, and what the reward function returns beside its score are added to each step's metrics.

Runs in verl's own environment and imports nothing of autotune.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator, attr-defined, no-any-return"
from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """Runs a function on a module right after that module was first imported."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self.patches = dict(patches)
        for name in [name for name in self.patches if name in sys.modules]:
            self.patches.pop(name)(sys.modules[name])

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = self.patches.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if patch is not None else None
        if patch is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


def poll_more_often(module: ModuleType) -> None:
    """`module` is verl.trainer.ppo.v1.replay_buffer."""
    seconds = float(os.environ.get("AUTOTUNE_VERL_POLL_S", "0.05"))
    build = module.ReplayBuffer.__init__

    def init(buffer: Any, *arguments: Any, **named: Any) -> None:
        build(buffer, *arguments, **named)
        buffer.poll_interval = seconds

    module.ReplayBuffer.__init__ = init


def critic_without_flash_attention(module: ModuleType) -> None:
    """`module` is verl.utils.model."""
    if importlib.util.find_spec("flash_attn") is not None:
        return

    def load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    module.load_valuehead_model = load


def report_rewards(module: ModuleType) -> None:
    """`module` is verl.trainer.ppo.v1.trainer_base."""
    for holder in [one for one in vars(module).values() if isinstance(one, type) and "_compute_metrics" in vars(one)]:
        holder._compute_metrics = with_rewards(holder._compute_metrics, module.tq.kv_batch_get)


def with_rewards(compute: Callable[..., Any], fetch: Callable[..., Any]) -> Callable[..., Any]:
    def call(trainer: Any, batch: Any, metrics: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        result = compute(trainer, batch, metrics, *arguments, **named)
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        data = fetch(keys=keys, partition_id=batch.partition_id, select_fields=["rm_scores", "extra_fields"])
        scores = [float(score.sum()) for score in data["rm_scores"]]
        metrics.update(spread(keys, scores))
        metrics.update(beside_the_score([getattr(one, "data", one) for one in data["extra_fields"]]))
        return result

    return call


def spread(keys: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """A key begins with its prompt's id, so that answers to one prompt are a group."""
    groups: dict[str, list[float]] = {}
    for key, score in zip(keys, scores, strict=True):
        groups.setdefault(key.split("_")[0], []).append(score)
    found = {"autotune/reward_std": statistics.stdev(scores)} if len(scores) > 1 else {}
    several = [group for group in groups.values() if len(group) > 1]
    if several:
        found["autotune/zero_std_ratio"] = sum(min(group) == max(group) for group in several) / len(several)
    return found


def beside_the_score(extras: Sequence[Any]) -> dict[str, float]:
    """Means of the numbers that the reward function returned for every sample."""
    told = [extra["reward_extra_info"] for extra in extras if isinstance(extra, dict) and "reward_extra_info" in extra]
    if not told or len(told) < len(extras):
        return {}
    names = set.intersection(*(set(one) for one in told))
    numbers = [name for name in names if all(isinstance(one[name], (int, float)) for one in told)]
    return {f"autotune/reward/{name}": statistics.fmean(float(one[name]) for one in told) for name in sorted(numbers)}


sys.meta_path.insert(
    0,
    AfterImport(
        {
            "verl.trainer.ppo.v1.replay_buffer": poll_more_often,
            "verl.utils.model": critic_without_flash_attention,
            "verl.trainer.ppo.v1.trainer_base": report_rewards,
        }
    ),
)
