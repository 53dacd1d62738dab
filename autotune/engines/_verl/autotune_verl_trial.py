"""Loaded by verl in every process of a trial (VERL_USE_EXTERNAL_MODULES); changes how a trial waits, never what it computes.

- The trainer looks for finished samples every two seconds, so a short step takes two seconds whatever the rollout does. A
  trial looks as often as AUTOTUNE_VERL_POLL_S says.
- A critic asks for flash-attention by name. Where that package is not installed it gets PyTorch's own attention, as the actor
  does by its override_config.
- The trainer reports the mean reward alone. The spread of rewards, the share of groups that teach nothing because their rewards
  are equal, and what the reward function returns beside its score are added to each step's metrics.
- Rewards are computed while other answers are still generated, so verl's timings hide them in its generation. How long the
  workers that compute them were busy is added.
- The trainer hands weights to vLLM through a socket in /tmp that is named after the Ray job. That is the first of its own
  cluster in every trial, so that trials side by side would take each other's weights: the socket is put into RAY_TMPDIR.
- The prefix-cache hit rate of the rollout servers is added where their /metrics tells it: vLLM with `disable_log_stats: false`,
  SGLang with `prometheus.enable: true`.

Runs in verl's own environment and imports nothing of autotune.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator, attr-defined, no-any-return"
from __future__ import annotations

import http.client
import importlib.util
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]
WORKER, BEGAN, ENDED = "autotune_reward_worker", "autotune_reward_began", "autotune_reward_ended"
"""What a sample carries of the computing of its reward."""
QUERIES = ("vllm:prefix_cache_queries_total", "sglang:prompt_tokens_total")
HITS = ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total")
_SERIES = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


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


def time_rewards(module: ModuleType) -> None:
    """`module` is verl.experimental.reward_loop.reward_loop."""
    compute = module.RewardLoopWorker.compute_score

    async def timed(worker: Any, data: Any) -> Any:
        began = time.time()
        result = await compute(worker, data)
        result.setdefault("reward_extra_info", {}).update({WORKER: os.getpid(), BEGAN: began, ENDED: time.time()})
        return result

    module.RewardLoopWorker.compute_score = timed


def hand_over_apart(module: ModuleType) -> None:
    """`module` is verl.workers.rollout.vllm_rollout.bucketed_weight_transfer."""
    for side in (module.BucketedWeightSender, module.BucketedWeightReceiver):
        side.__init__ = in_the_trials_folder(side.__init__)


def in_the_trials_folder(build: Callable[..., None]) -> Callable[..., None]:
    def init(side: Any, *arguments: Any, **named: Any) -> None:
        build(side, *arguments, **named)
        side.zmq_handle = side.zmq_handle.replace("ipc:///tmp/", f"ipc://{os.environ.get('RAY_TMPDIR', '/tmp')}/")

    return init


def with_rewards(compute: Callable[..., Any], fetch: Callable[..., Any]) -> Callable[..., Any]:
    cache = RolloutCache()

    def call(trainer: Any, batch: Any, metrics: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        result = compute(trainer, batch, metrics, *arguments, **named)
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        data = fetch(keys=keys, partition_id=batch.partition_id, select_fields=["rm_scores", "extra_fields"])
        scores = [float(score.sum()) for score in data["rm_scores"]]
        metrics.update(spread(keys, scores))
        extras = [getattr(one, "data", one) for one in data["extra_fields"]]
        metrics.update({**beside_the_score(extras), **reward_seconds(extras)})
        metrics.update(cache.take(getattr(getattr(trainer, "llm_server_manager", None), "server_addresses", ())))
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


def told(extras: Sequence[Any]) -> list[dict[str, Any]]:
    """What came back with every sample's reward; empty unless all samples have it."""
    found = [extra["reward_extra_info"] for extra in extras if isinstance(extra, dict) and "reward_extra_info" in extra]
    return found if len(found) == len(extras) else []


def beside_the_score(extras: Sequence[Any]) -> dict[str, float]:
    """Means of the numbers that the reward function returned for every sample."""
    found = told(extras)
    names = set.intersection(*(set(one) for one in found)) - {WORKER, BEGAN, ENDED} if found else set()
    numbers = [name for name in names if all(isinstance(one[name], (int, float)) for one in found)]
    return {f"autotune/reward/{name}": statistics.fmean(float(one[name]) for one in found) for name in sorted(numbers)}


def reward_seconds(extras: Sequence[Any]) -> dict[str, float]:
    """Seconds in which the busiest of the workers that compute rewards had one in hand; overlaps count once."""
    found = told(extras)
    if not found or any(WORKER not in one for one in found):
        return {}
    busy: dict[int, float] = {}
    until: dict[int, float] = {}
    for one in sorted(found, key=lambda one: float(one[BEGAN])):
        worker, began, ended = one[WORKER], one[BEGAN], one[ENDED]
        busy[worker] = busy.get(worker, 0.0) + max(0.0, ended - max(began, until.get(worker, began)))
        until[worker] = max(ended, until.get(worker, ended))
    return {"autotune/reward_s": max(busy.values())}


class RolloutCache:
    """Prefix-cache hit rate of the rollout servers, from their own counters."""

    def __init__(self) -> None:
        self._seen = (0.0, 0.0)
        self._silent = False

    def take(self, addresses: Sequence[str]) -> dict[str, float]:
        """Share of prompt tokens found in the cache since the last call; empty where a server does not count them."""
        if self._silent or not addresses:
            return {}
        counts = [counters(address) for address in addresses]
        known = [one for one in counts if one is not None]
        # A server that does not count at its first step never will; it is not asked again.
        self._silent = len(known) < len(counts)
        if self._silent:
            return {}
        before, self._seen = self._seen, (sum(one[0] for one in known), sum(one[1] for one in known))
        asked = self._seen[0] - before[0]
        return {"autotune/rollout_hit_rate": (self._seen[1] - before[1]) / asked} if asked > 0 else {}


def counters(address: str) -> tuple[float, float] | None:
    """Prompt tokens that a server looked up in its prefix cache and found there; None when it does not say."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) == 0:
        return None
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=2)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    sums: dict[str, float] = {}
    for name, value in _SERIES.findall(text):
        if name in QUERIES + HITS:
            sums[name] = sums.get(name, 0.0) + float(value)
    pairs = [(sums[queries], sums[hits]) for queries, hits in zip(QUERIES, HITS, strict=True) if {queries, hits} <= set(sums)]
    return pairs[0] if pairs else None


sys.meta_path.insert(
    0,
    AfterImport(
        {
            "verl.trainer.ppo.v1.replay_buffer": poll_more_often,
            "verl.utils.model": critic_without_flash_attention,
            "verl.trainer.ppo.v1.trainer_base": report_rewards,
            "verl.experimental.reward_loop.reward_loop": time_rewards,
            "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": hand_over_apart,
        }
    ),
)
