"""A winner as the YAML file that `python -m sglang.launch_server --config` reads."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from autotune import engines
from autotune.engines._sglang_cpu import ENVIRONMENT, LAUNCHER
from autotune.errors import AutotuneError, InvalidInput, Mistake
from autotune.exporters.base import Exporter, Winner
from autotune.trial import Value

FILE = "sglang.yaml"


class SglangYaml(Exporter):
    """SGLang's own configuration file: hyphens in every key, switches only when they are on, no nulls."""

    name: ClassVar[str] = "sglang_yaml"
    engines: ClassVar[tuple[str, ...]] = ("sglang",)

    def render(self, winner: Winner) -> Mapping[str, str]:
        values = {"model-path": winner.model_path, **_entries(winner.parameters)}
        notes = [*winner.header(), *_usage(winner)]
        text = "".join(f"# {line}\n" for line in notes)
        return {FILE: text + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000)}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        engine = _engine(winner)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_text(files[FILE])
            try:
                parsed = engine.parse(["--config", str(path)])
            except AutotuneError as error:
                raise InvalidInput([Mistake("", str(error), file=FILE)]) from error
        wrong = [Mistake(name, "SGLang reads another value.", found=repr(parsed.get(name)), allowed=repr(value), file=FILE)
                 for name, value in winner.parameters.items() if not _same(parsed.get(name), value)]  # fmt: skip
        if wrong:
            raise InvalidInput(wrong)
        version = engine.identity().version
        return f"SGLang {version}'s own parser read {FILE} and found all {len(winner.parameters)} values as they were measured."


def _entries(parameters: Mapping[str, Value]) -> dict[str, Value]:
    """Parameters as the file takes them: false and null are said by leaving them out."""
    return {name.replace("_", "-"): value for name, value in parameters.items() if value is not None and value is not False}


def _usage(winner: Winner) -> list[str]:
    env = [f"{name}={value}" for name, value in sorted(winner.env.items())]
    # Without a GPU SGLang needs the stand-ins that autotune's launcher puts in place.
    start = f"python {LAUNCHER}" if winner.engine.device == "cpu" else "python -m sglang.launch_server"
    env += [f"{name}={value}" for name, value in ENVIRONMENT.items()] if winner.engine.device == "cpu" else []
    return ["Start it with:", "  " + " ".join([*env, f"{start} --config {FILE}"])]


def _same(parsed: Value, value: Value) -> bool:
    if value is None or value is False:
        return parsed in (None, False)
    if isinstance(value, int | float) and isinstance(parsed, int | float):
        return float(value) == float(parsed)
    return bool(parsed == value or str(parsed) == str(value))


def _engine(winner: Winner) -> Any:
    found = engines.get("sglang")
    return found(found.Options(kind="sglang", model=winner.model, python=winner.interpreter))


exporter = SglangYaml
