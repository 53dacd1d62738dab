"""What autotune adds to SGLang's own flags: bounds it does not check, coupled defaults, resolved values by flag name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from autotune.engines.base import Flag
from autotune.trial import Value

OWN_RANGES: Mapping[str, tuple[float | None, float | None]] = {
    "mem_fraction_static": (0.01, 0.99),
    "max_running_requests": (1, None),
    "max_total_tokens": (1, None),
    "max_prefill_tokens": (1, None),
    "prefill_max_requests": (1, None),
    "page_size": (1, None),
    "stream_interval": (1, None),
    "num_continuous_decode_steps": (1, None),
    "schedule_conservativeness": (0, None),
    "cuda_graph_max_bs_decode": (1, None),
    "cuda_graph_max_bs_prefill": (1, None),
    "tp_size": (1, None),
    "pp_size": (1, None),
    "dp_size": (1, None),
    "hicache_ratio": (0, None),
    "cpu_offload_gb": (0, None),
}
"""Bounds that SGLang's parser and resolution do not check: a value outside dies in the scheduler, or hangs."""

COUPLED = ("chunked_prefill_size", "cuda_graph_max_bs_decode", "mem_fraction_static")
"""SGLang computes the last from the first two (`handle_gpu_memory_settings`), so tuning one would move memory too."""

_GRAPH_SETTINGS = ("max_bs", "bs", "backend")


def flag(raw: Mapping[str, Any]) -> Flag:
    """A Flag from the probe's description, with the bounds that SGLang does not know."""
    low, high = OWN_RANGES.get(str(raw["name"]), (None, None))
    return Flag(**{**raw, "choices": None if raw["choices"] is None else tuple(raw["choices"])}, low=low, high=high)


def by_flag(resolved: Mapping[str, Any]) -> dict[str, Value]:
    """Resolved arguments by flag name: the per-phase graph configuration is spread over the flags that set it."""
    found = dict(resolved)
    config = found.get("cuda_graph_config")
    for phase in ("decode", "prefill"):
        settings = config.get(phase) if isinstance(config, Mapping) else None
        if not isinstance(settings, Mapping):
            continue
        for key in _GRAPH_SETTINGS:
            name = f"cuda_graph_{key}_{phase}"
            if found.get(name) is None and settings.get(key) is not None:
                found[name] = settings[key]
    return found


def moves_memory(changed: Collection[str]) -> bool:
    """Whether changing these parameters would move defaults that are coupled with them."""
    return any(name in changed for name in (*COUPLED, "max_running_requests"))


def pinned(values: Mapping[str, Value], default: Mapping[str, Value]) -> dict[str, Value]:
    """The coupled parameters that `values` leaves open, at what the engine resolves the `default` configuration to."""
    pins = {name: default[name] for name in COUPLED if name not in values and default.get(name) is not None}
    limit, graphs = values.get("max_running_requests"), pins.get("cuda_graph_max_bs_decode")
    if isinstance(limit, int) and isinstance(graphs, int):
        # SGLang's own default does the same: it captures no graph that the limit keeps from being used.
        pins["cuda_graph_max_bs_decode"] = min(graphs, limit)
    return pins


def out_of_range(values: Mapping[str, Value]) -> str | None:
    """A sentence about the first value outside the bounds that SGLang does not check itself."""
    for name, value in values.items():
        low, high = OWN_RANGES.get(name, (None, None))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            return f"{name} must be {bounds}; it is {value}."
    return None
