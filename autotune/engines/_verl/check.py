"""Answers questions about verl's own configuration, without Ray or a GPU: JSON on stdin, a JSON answer as the last line.

Each list of overrides is composed by Hydra and validated by verl: `[["key=value", ...], ...]` in,
`[{"refused": ...} or {"resolved": {...}}, ...]` out; with `folder` and `name`, a config file of that folder is the primary one,
as with `--config-dir` and `--config-name`. Runs in verl's own environment and imports nothing of autotune.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested configuration with dotted names, as overrides spell them."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def check(overrides: list[str], name: str) -> dict[str, Any]:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        config = compose(name, overrides=overrides)
        validate_config(config, need_reference_policy(config), need_critic(config))
        plain = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # Hydra, OmegaConf and verl each refuse with exceptions of their own.
        return {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    return {"resolved": json.loads(json.dumps(flat(plain), default=str))}


def main() -> None:
    import verl.trainer

    question = json.load(sys.stdin)
    own = str(Path(next(iter(verl.trainer.__path__))) / "config")
    search = [f"hydra.searchpath=[file://{own}]"] if "folder" in question else []
    with initialize_config_dir(question.get("folder", own), version_base=None):
        name = question.get("name", "ppo_trainer")
        answers = [check([*search, *overrides], name) for overrides in question["overrides"]]
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()
