"""A winner as a verl configuration file that holds only what differs from verl's defaults, and two lines that launch it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from autotune.engines._learner_model import FOLDER
from autotune.engines._verl_hydra import override
from autotune.engines.verl import CPU_FOLDER, TRIAL_FOLDER
from autotune.errors import InvalidInput, Mistake
from autotune.exporters import _proof
from autotune.exporters._script import comments, script, start
from autotune.exporters.base import Exporter, Winner
from autotune.trial import Value

CONFIG = "tuned.yaml"
LAUNCH = "train.sh"
OVERRIDES = "overrides.sh"


class VerlOverrides(Exporter):
    """verl's configuration: a file over its defaults, and the same as command-line overrides."""

    name: ClassVar[str] = "verl_overrides"
    engines: ClassVar[tuple[str, ...]] = ("verl",)

    def render(self, winner: Winner) -> Mapping[str, str]:
        values = _values(winner)
        notes = [*winner.header(), *_units(winner), f"Start it with: {start(winner.interpreter)}sh {LAUNCH}"]
        content = {"defaults": ["ppo_trainer", "_self_"], **_nested(values)}
        main, env = "python3 -m verl.trainer.main_ppo", _environment(winner)
        given = [shlex.quote(override(name, value)) for name, value in values.items()]
        composed = f'{main} --config-dir "$(cd "$(dirname "$0")" && pwd)" --config-name {Path(CONFIG).stem}'
        return {
            CONFIG: "\n".join([*comments(notes), yaml.safe_dump(content, sort_keys=False, width=1000)]),
            LAUNCH: script(notes, env, [composed]),
            OVERRIDES: script(notes, env, [main, *given]),
        }

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        values = _values(winner)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(files[CONFIG])
            answer = _proof.configured(winner).ask({"folder": folder, "name": Path(CONFIG).stem, "overrides": [[]]})[0]
        if "refused" in answer:
            raise InvalidInput([Mistake("", f"verl refuses the file: {answer['refused']}", file=CONFIG)])
        _proof.compare(values, answer["resolved"], _same, "verl", CONFIG)
        return (
            f"Hydra composed {CONFIG} over verl {winner.engine.version}'s defaults, verl's own validation accepted it, "
            f"and all {len(values)} values stand in it as they were measured."
        )


def _values(winner: Winner) -> dict[str, Value]:
    return dict(_proof.configured(winner).parameters(winner.configuration, winner.model_path))


def _units(winner: Winner) -> list[str]:
    options = _proof.configured(winner).options
    looked = f"The trial looked for finished samples every {options.poll_s:g} s"
    waits = f"{looked}, verl itself does every 2 s: a step may take so much longer."
    return [
        "train_batch_size and ppo_mini_batch_size count prompts over all GPUs; micro-batch sizes count answers on one GPU.",
        "The trial ran for a set number of steps: set trainer.total_epochs or trainer.total_training_steps for yours.",
        *([] if _patched(winner) else [waits]),
    ]


def _patched(winner: Winner) -> bool:
    """Whether the files launch with the plug-in that trials have."""
    options = _proof.configured(winner).options
    return bool(options.cpu or options.algorithm == "ppo")


def _environment(winner: Winner) -> dict[str, str]:
    """What the launch needs besides the configuration: on a CPU the plug-in, with the synthetic model its reward's folder."""
    options = _proof.configured(winner).options
    env = {"OMP_NUM_THREADS": str(options.threads), **winner.env}
    modules, folders = [], []
    if _patched(winner):
        modules, folders = ["autotune_verl_trial"], [str(TRIAL_FOLDER)]
        env = {"AUTOTUNE_VERL_POLL_S": str(options.poll_s), **env}
    if options.cpu:
        modules, folders = [*modules, "autotune_verl_cpu"], [*folders, str(CPU_FOLDER)]
        env |= {"VERL_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if modules:
        env |= {"VERL_USE_EXTERNAL_MODULES": ",".join(modules), "PYTHONPATH": ":".join([*folders, str(FOLDER)])}
    return env


def _nested(values: Mapping[str, Value]) -> dict[str, Any]:
    """Dotted names as the tree that a YAML file holds."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _same(parsed: Value, value: Value) -> bool:
    if isinstance(value, int | float) and isinstance(parsed, int | float):
        return float(value) == float(parsed)
    return bool(parsed == value)


exporter = VerlOverrides
