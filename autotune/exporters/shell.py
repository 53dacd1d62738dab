"""A winner as a shell script of one command."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from autotune import process
from autotune.engines import _flags
from autotune.engines._sglang_cpu import ENVIRONMENT, LAUNCHER
from autotune.errors import InvalidInput, Mistake
from autotune.exporters import _proof
from autotune.exporters._script import script, start
from autotune.exporters.base import Exporter, Winner

FILE = "serve.sh"


class Shell(Exporter):
    """`serve.sh`: variables, then one command that takes further arguments, such as a host and a port, from its caller."""

    name: ClassVar[str] = "shell"
    engines: ClassVar[tuple[str, ...]] = ("vllm", "sglang")

    def render(self, winner: Winner) -> Mapping[str, str]:
        flags = _proof.flags_of(_proof.engine_of(winner))
        options = [_flags.argument(name, value, flags.get(name)) for name, value in winner.parameters.items()]
        lines = [shlex.join(part) for part in (entry(winner), *options) if part]
        # Another environment's interpreter is not the `python` that a shell finds first.
        notes = [] if winner.interpreter is None else [f"Start it with: {start(winner.interpreter)}sh {FILE}"]
        return {FILE: script([*winner.header(), *notes], {**_needed(winner), **winner.env}, lines)}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        words = command(files[FILE])
        head = entry(winner)
        # vLLM's parser takes the model as a positional argument too; the words before it start the program.
        own = 1 if winner.engine.kind == "vllm" and winner.engine.device != "cpu" else 2
        return _proof.prove(_proof.engine_of(winner), words[len(head) - own :], winner, FILE)


def entry(winner: Winner) -> list[str]:
    """The words that start the engine, the model last."""
    if winner.engine.kind == "sglang":
        program = [str(LAUNCHER)] if winner.engine.device == "cpu" else ["-m", "sglang.launch_server"]
        return ["python", *program, "--model-path", winner.model_path]
    if winner.engine.device == "cpu":
        # The CPU build's `vllm` command looks for a distribution of another name and ends.
        return ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", winner.model_path]
    return ["vllm", "serve", winner.model_path]


def _needed(winner: Winner) -> Mapping[str, str]:
    """Variables without which the engine does not start here."""
    return ENVIRONMENT if winner.engine.kind == "sglang" and winner.engine.device == "cpu" else {}


def command(text: str) -> Sequence[str]:
    """The words that the script would execute, as the shell itself reads them. Raises InvalidInput when it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_text(text.replace("\nexec ", "\nprintf '%s\\0' ", 1))
        done = process.run(["sh", str(path)], timeout_s=10)
    if done.returncode != 0:
        raise InvalidInput([Mistake("", f"The shell refuses the script: {done.stderr.strip()}", file=FILE)])
    return done.stdout.split("\0")[:-1]


exporter = Shell
