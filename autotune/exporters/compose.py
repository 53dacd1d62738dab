"""A winner as a Docker Compose file: `docker compose up`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from autotune.errors import InvalidInput, Mistake
from autotune.exporters import _container as shared
from autotune.exporters._container import Container, container, header, proved
from autotune.exporters.base import Exporter, Winner

FILE = "compose.yaml"
_HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{shared.PORT}/health', timeout=5)"


class Compose(Exporter):
    """One service, published on loopback only; caches in a volume, so that a second start is a warm one."""

    name: ClassVar[str] = "compose"
    engines: ClassVar[tuple[str, ...]] = shared.SERVING

    def render(self, winner: Winner) -> Mapping[str, str]:
        one = container(winner)
        content = {"name": one.name, "services": {"engine": _service(one)}, "volumes": {"cache": {}}}
        return {FILE: header(winner, "docker compose up") + yaml.safe_dump(content, sort_keys=False, width=1000)}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        try:
            service = yaml.safe_load(files[FILE])["services"]["engine"]
            arguments = [text.replace("$$", "$") for text in service["command"]]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise InvalidInput([Mistake("services.engine.command", f"cannot be read: {error}", file=FILE)]) from error
        return proved(arguments, winner, FILE)


def _service(one: Container) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": one.image,
        "entrypoint": list(one.entry),
        "command": [_literal(text) for text in one.arguments],
        "ports": [f"127.0.0.1:{shared.PORT}:{shared.PORT}"],
        "volumes": [f"cache:{shared.CACHE_FOLDER}"],
        "shm_size": f"{shared.SHARED_MEMORY_GIB}gb",
        "stop_grace_period": "60s",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _HEALTH],
            "interval": "10s",
            "timeout": "10s",
            "retries": 6,
            "start_period": f"{shared.START_S}s",
        },
    }
    env = {name: _literal(value) for name, value in sorted(one.env.items())}
    if one.model_folder is not None:
        service["volumes"].append(
            {"type": "bind", "source": _literal(str(one.model_folder)), "target": shared.MODEL_FOLDER, "read_only": True}
        )
    else:
        env["HF_TOKEN"] = "${HF_TOKEN:-}"
    if env:
        service["environment"] = env
    if one.gpus:
        device = {"driver": "nvidia", "count": one.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _literal(text: str) -> str:
    """Compose replaces `$NAME`; a dollar of ours is doubled."""
    return text.replace("$", "$$")


exporter = Compose
