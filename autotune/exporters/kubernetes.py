"""A winner as a Kubernetes Deployment and Service: `kubectl apply -f kubernetes.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from autotune.errors import InvalidInput, Mistake
from autotune.exporters import _container as shared
from autotune.exporters._container import Container, container, header, proved, slug
from autotune.exporters.base import Exporter, Winner

FILE = "kubernetes.yaml"
_PERIOD_S = 10


class Kubernetes(Exporter):
    """A single replica that is replaced, not doubled, when it changes: a second one would wait for the first one's GPUs."""

    name: ClassVar[str] = "kubernetes"
    engines: ClassVar[tuple[str, ...]] = shared.SERVING

    def render(self, winner: Winner) -> Mapping[str, str]:
        one = container(winner)
        documents = [_deployment(one, winner), _service(one, winner)]
        if one.model_folder is None:
            needed = "A gated model needs: kubectl create secret generic hub --from-literal=token=..."
        else:
            needed = f"The model's folder {one.model_folder} must lie on the node."
        notes = header(winner, f"kubectl apply -f {FILE}", needed)
        return {FILE: notes + yaml.safe_dump_all(documents, sort_keys=False, width=1000)}

    def prove(self, files: Mapping[str, str], winner: Winner) -> str:
        try:
            deployment = next(iter(yaml.safe_load_all(files[FILE])))
            arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        except (yaml.YAMLError, KeyError, TypeError, IndexError, StopIteration) as error:
            raise InvalidInput([Mistake("spec.template.spec.containers[0].args", f"cannot be read: {error}", file=FILE)]) from error
        return proved([text.replace("$$", "$") for text in arguments], winner, FILE)


def _deployment(one: Container, winner: Winner) -> dict[str, Any]:
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": _selector(one)},
        "template": {"metadata": {"labels": _labels(one, winner)}, "spec": _pod(one)},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(one, winner), "spec": spec}


def _service(one: Container, winner: Winner) -> dict[str, Any]:
    ports = [{"name": "http", "port": shared.PORT, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(one, winner),
        "spec": {"type": "ClusterIP", "selector": _selector(one), "ports": ports},
    }


def _pod(one: Container) -> dict[str, Any]:
    mounts = [{"name": "cache", "mountPath": shared.CACHE_FOLDER}, {"name": "shared-memory", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared.SHARED_MEMORY_GIB}Gi"}},
    ]
    if one.model_folder is not None:
        mounts.append({"name": "model", "mountPath": shared.MODEL_FOLDER, "readOnly": True})  # type: ignore[dict-item]
        volumes.append({"name": "model", "hostPath": {"path": str(one.model_folder), "type": "Directory"}})
    container: dict[str, Any] = {
        "name": "engine",
        "image": one.image,
        "command": list(one.entry),
        "args": [_literal(text) for text in one.arguments],
        "ports": [{"name": "http", "containerPort": shared.PORT}],
        **({"env": env} if (env := _env(one)) else {}),
        **({"resources": {"limits": {"nvidia.com/gpu": one.gpus}}} if one.gpus else {}),
        "startupProbe": {**_probe(), "failureThreshold": shared.START_S // _PERIOD_S},
        "readinessProbe": {**_probe(), "failureThreshold": 3},
        "livenessProbe": {**_probe(), "failureThreshold": 6},
        "volumeMounts": mounts,
    }
    # Service links would set VLLM_PORT for a service named vllm, which vLLM takes for its own setting.
    own = {"enableServiceLinks": False, "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 60}
    return {**own, "containers": [container], "volumes": volumes}


def _env(one: Container) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [{"name": name, "value": _literal(value)} for name, value in sorted(one.env.items())]
    if one.model_folder is None:
        reference = {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}
        variables.append({"name": "HF_TOKEN", "valueFrom": reference})
    return variables


def _probe() -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PERIOD_S, "timeoutSeconds": 10}


def _metadata(one: Container, winner: Winner) -> dict[str, Any]:
    return {"name": one.name, "labels": _labels(one, winner)}


def _labels(one: Container, winner: Winner) -> dict[str, str]:
    version = slug(winner.engine.version)
    return {**_selector(one), "app.kubernetes.io/version": version, "app.kubernetes.io/managed-by": "autotune"}


def _selector(one: Container) -> dict[str, str]:
    return {"app.kubernetes.io/name": "engine", "app.kubernetes.io/instance": one.name}


def _literal(text: str) -> str:
    """Kubernetes replaces `$(NAME)`; a dollar of ours is doubled."""
    return text.replace("$", "$$")


exporter = Kubernetes
