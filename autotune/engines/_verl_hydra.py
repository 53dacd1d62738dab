"""verl's configuration as Hydra overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping

from autotune.trial import Value

A = "actor_rollout_ref"
"""The section that actor, rollout and reference model share."""

_ABSENT_FROM_YAML = (
    "ray_kwargs.ray_init.", f"{A}.model.override_config.", f"{A}.rollout.engine_kwargs.vllm.", f"{A}.rollout.engine_kwargs.sglang.",
    f"{A}.rollout.enable_sleep_mode", f"{A}.actor.fsdp_config.mixed_precision.", "critic.model.override_config.",
)  # fmt: skip
"""Keys that verl reads but its own files do not list; Hydra takes them only with `++`."""

_BARE = re.compile(r"(?!(?:true|false|null|inf|nan)$)[A-Za-z_/][\w./-]*", re.IGNORECASE)
"""Strings that Hydra's grammar reads as they stand; all others are quoted."""


def override(name: str, value: Value) -> str:
    """One Hydra override."""
    prefix = "++" if name.startswith(_ABSENT_FROM_YAML) else ""
    return f"{prefix}{name}={hydra(value)}"


def hydra(value: Value) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra, value)) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
