"""A winner as the YAML file that `trl grpo --config` reads, an accelerate configuration, and the line that launches both."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import yaml

from autotune.engines._learner_model import FOLDER, size_of
from autotune.engines.trl import modules
from autotune.errors import AutotuneError, InvalidInput, Mistake
from autotune.exporters import _proof
from autotune.exporters._script import comments, script, start
from autotune.exporters.base import Exporter, Winner
from autotune.trial import Value

CONFIG = "train.yaml"
ACCELERATE = "accelerate.yaml"
LAUNCH = "train.sh"


class TrlYaml(Exporter):
    """TRL's flat configuration file: config, model and script arguments together."""

    name: ClassVar[str] = "trl_yaml"
    engines: ClassVar[tuple[str, ...]] = ("trl",)

    def render(self, winner: Winner) -> Mapping[str, str]:
        notes = [*winner.header(), *_advice(winner)]
        content = {**_arguments(winner), "output_dir": "output"}
        return {
            CONFIG: "\n".join([*comments(notes), yaml.safe_dump(content, sort_keys=False, width=1000)]),
            ACCELERATE: yaml.safe_dump(_accelerate(winner, content), sort_keys=False),
            LAUNCH: script(notes, _environment(winner), [_command(winner)], beside=True),
        }

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        engine = _proof.configured(winner)
        with tempfile.TemporaryDirectory() as folder:
            for name in (CONFIG, ACCELERATE):
                (Path(folder) / name).write_text(files[name])
            question = {"ask": "read", "config": str(Path(folder) / CONFIG), "accelerate": str(Path(folder) / ACCELERATE)}
            try:
                told = engine.ask(question)
            except AutotuneError as error:
                raise InvalidInput([Mistake("", str(error), file=CONFIG)]) from error
        asked = _arguments(winner)
        _proof.compare(asked, told["values"], _same, "TRL", CONFIG)
        return (
            f"TRL {winner.engine.version}'s own parser read {CONFIG} and found all {len(asked)} values as they were measured; "
            f"accelerate read {ACCELERATE} for {told['processes']} process(es)."
        )


def _arguments(winner: Winner) -> dict[str, Value]:
    return dict(_proof.configured(winner).arguments(winner.configuration, winner.model_path))


def _algorithm(winner: Winner) -> str:
    return str(_proof.configured(winner).options.algorithm)


def _advice(winner: Winner) -> list[str]:
    notes = [
        f"Start it with: {start(winner.interpreter)}sh {LAUNCH}",
        "The trial ran for a set number of steps: set num_train_epochs or max_steps for yours.",
    ]
    if _arguments(winner).get("vllm_mode") == "server":
        notes.append(f"Start the rollout server first: trl vllm-serve --model {winner.model_path}")
    return notes


def _accelerate(winner: Winner, content: Mapping[str, Value]) -> dict[str, Value]:
    cpu = content.get("use_cpu") is True
    processes = 1 if cpu else max(1, winner.gpus)
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if processes > 1 else "NO",
        "mixed_precision": "no" if content.get("bf16") is False else "bf16",
        "num_machines": 1,
        "num_processes": processes,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": cpu,
    }


def _environment(winner: Winner) -> dict[str, str]:
    """Variables of the launch; a reward is found where the trials found it."""
    options = _proof.configured(winner).options
    own = options.script is not None or "." in (options.reward or "")
    path = modules() if own else str(FOLDER) if size_of(winner.model) is not None else None
    return {"OMP_NUM_THREADS": str(options.threads), **({"PYTHONPATH": path} if path else {}), **winner.env}


def _command(winner: Winner) -> str:
    own = _proof.configured(winner).options.script
    if own is not None:
        return shlex.join(["accelerate", "launch", "--config_file", ACCELERATE, str(own.absolute()), "--config", CONFIG])
    return shlex.join(["trl", _algorithm(winner), "--config", CONFIG, "--accelerate_config", ACCELERATE])


def _same(parsed: Value, value: Value) -> bool:
    if isinstance(value, int | float) and isinstance(parsed, int | float):
        return float(value) == float(parsed)
    return parsed == value or json.dumps(parsed, sort_keys=True) == json.dumps(value, sort_keys=True) or str(parsed) == str(value)


exporter = TrlYaml
