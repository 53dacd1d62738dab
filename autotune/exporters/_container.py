"""What a container of a serving engine needs, whatever runs it: image, command, variables, model, health."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.engines import _flags
from autotune.errors import AutotuneError
from autotune.exporters import _proof
from autotune.exporters._script import comments
from autotune.exporters.base import Winner
from autotune.trial import Value

PORT = 8000
MODEL_FOLDER = "/model"
CACHE_FOLDER = "/root/.cache"
"""Hub downloads and compile caches of both engines' images lie below it."""
SHARED_MEMORY_GIB = 8
"""Tensor-parallel workers exchange tensors through /dev/shm, of which containers get 64 MiB."""
START_S = 1800
"""A first start downloads weights and compiles; health is not judged before."""
SERVING = ("vllm", "sglang")
_ENTRY = {"vllm": ["python3", "-m", "vllm.entrypoints.openai.api_server"], "sglang": ["python3", "-m", "sglang.launch_server"]}
_MODEL_FLAG = {"vllm": "--model", "sglang": "--model-path"}
_OWN = ("host", "port", "model", "model_path", "served_model_name")
"""Parameters that the container sets itself."""


@dataclass(frozen=True, slots=True)
class Container:
    """One engine, ready to be written down for whatever runs containers."""

    name: str
    """Lower-case letters, digits and hyphens, for services and labels."""
    image: str
    entry: tuple[str, ...]
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    gpus: int
    model_folder: Path | None
    """The local folder to mount at MODEL_FOLDER; None for a model of a hub."""


def container(winner: Winner) -> Container:
    """The container of a winner. Raises AutotuneError where no published image runs what was measured."""
    local = Path(winner.model_path).is_absolute()
    return Container(
        name=slug(f"{winner.engine.kind}-{winner.study}"),
        image=image(winner),
        entry=tuple(_ENTRY[winner.engine.kind]),
        arguments=tuple(_arguments(winner, MODEL_FOLDER if local else winner.model_path)),
        env=dict(winner.env),
        gpus=0 if winner.engine.device == "cpu" else max(1, winner.gpus),
        model_folder=Path(winner.model_path) if local else None,
    )


def image(winner: Winner) -> str:
    """The engine's published image of the measured version."""
    version = winner.engine.version.partition("+")[0]
    on_cpu = winner.engine.device == "cpu"
    if winner.engine.kind == "sglang":
        if on_cpu:
            raise AutotuneError("SGLang publishes no image that runs as measured here, on a CPU: export it with sglang_yaml.")
        return f"lmsysorg/sglang:v{version}"
    return f"public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v{version}" if on_cpu else f"vllm/vllm-openai:v{version}"


def slug(text: str) -> str:
    """A DNS label of at most 52 characters, which leaves room for suffixes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].rstrip("-")


def header(winner: Winner, start: str, *notes: str) -> str:
    """The comment on top of a file, `notes` at its end."""
    lines = [
        *winner.header(),
        "The image holds the engine's measured version; its other packages may differ.",
        f"Start it with: {start}",
        *notes,
    ]
    return "".join(f"{line}\n" for line in comments(lines))


def proved(arguments: Sequence[str], winner: Winner, file: str) -> str:
    """One sentence when the engine's own parser reads from the file's arguments what was measured; raises as `_proof.prove`."""
    asked = winner.model_copy(update={"parameters": measured(winner)})
    return _proof.prove(_proof.engine_of(winner), list(arguments), asked, file)


def measured(winner: Winner) -> dict[str, Value]:
    """The parameters that the command must carry."""
    return {name: value for name, value in winner.parameters.items() if name not in _OWN}


def _arguments(winner: Winner, model: str) -> list[str]:
    served = str(winner.parameters.get("served_model_name") or winner.model)
    head = [_MODEL_FLAG[winner.engine.kind], model, "--served-model-name", served, "--host", "0.0.0.0", "--port", str(PORT)]
    flags = _proof.flags_of(_proof.engine_of(winner))
    return [*head, *_flags.arguments(measured(winner), flags)]
