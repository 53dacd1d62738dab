"""A winner as the YAML file that `vllm serve --config` reads."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import yaml

from autotune.exporters import _proof
from autotune.exporters._script import comments, start
from autotune.exporters.base import Exporter, Winner
from autotune.exporters.shell import entry

FILE = "vllm.yaml"


class VllmYaml(Exporter):
    """vLLM's own configuration file; environment variables, which it cannot hold, stand in the comment that starts it."""

    name: ClassVar[str] = "vllm_yaml"
    engines: ClassVar[tuple[str, ...]] = ("vllm",)

    def render(self, winner: Winner) -> Mapping[str, str]:
        values = {name.replace("_", "-"): value for name, value in winner.parameters.items() if value is not None}
        notes = comments([*winner.header(), "Start it with:", f"  {_start(winner)}"])
        content = yaml.safe_dump({"model": winner.model_path, **values}, sort_keys=False, width=1000)
        return {FILE: "\n".join([*notes, content])}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_text(files[FILE])
            return _proof.prove(_proof.engine_of(winner), ["--config", str(path)], winner, FILE)


def _start(winner: Winner) -> str:
    env = [f"{name}={shlex.quote(value)}" for name, value in sorted(winner.env.items())]
    program = entry(winner)
    program = program[: program.index(winner.model_path)]
    return start(winner.interpreter) + " ".join([*env, shlex.join(part for part in program if part != "--model"), "--config", FILE])


exporter = VllmYaml
