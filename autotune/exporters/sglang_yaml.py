"""A winner as the YAML file that `python -m sglang.launch_server --config` reads."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import yaml

from autotune.engines._sglang_cpu import ENVIRONMENT, LAUNCHER
from autotune.engines.base import Flag
from autotune.exporters import _proof
from autotune.exporters._script import comments, start
from autotune.exporters.base import Exporter, Winner
from autotune.trial import Value

FILE = "sglang.yaml"


class SglangYaml(Exporter):
    """SGLang's own configuration file: hyphens in every key, switches only when they are on, no nulls."""

    name: ClassVar[str] = "sglang_yaml"
    engines: ClassVar[tuple[str, ...]] = ("sglang",)

    def render(self, winner: Winner) -> Mapping[str, str]:
        values = {"model-path": winner.model_path, **_entries(winner.parameters, _proof.flags_of(_proof.engine_of(winner)))}
        notes = comments([*winner.header(), *_usage(winner)])
        return {FILE: "\n".join([*notes, yaml.safe_dump(values, sort_keys=False, default_flow_style=False, width=1000)])}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_text(files[FILE])
            return _proof.prove(_proof.engine_of(winner), ["--config", str(path)], winner, FILE)


def _entries(parameters: Mapping[str, Value], flags: Mapping[str, Flag]) -> dict[str, Value]:
    """Parameters as the file takes them: null, and false of a switch, are said by leaving them out. What only an opposite of its
    own turns off the file cannot say: SGLang refuses it there, instead of running with what its default comes to."""
    opposed = {name for name, flag in flags.items() if flag.negation is not None}
    said = {name: value for name, value in parameters.items() if value is not None and (value is not False or name in opposed)}
    return {name.replace("_", "-"): value for name, value in said.items()}


def _usage(winner: Winner) -> list[str]:
    env = [f"{name}={shlex.quote(value)}" for name, value in sorted(winner.env.items())]
    # Without a GPU SGLang needs the stand-ins that autotune's launcher puts in place.
    program = f"python {LAUNCHER}" if winner.engine.device == "cpu" else "python -m sglang.launch_server"
    env += [f"{name}={value}" for name, value in ENVIRONMENT.items()] if winner.engine.device == "cpu" else []
    return ["Start it with:", f"  {start(winner.interpreter)}" + " ".join([*env, f"{program} --config {FILE}"])]


exporter = SglangYaml
