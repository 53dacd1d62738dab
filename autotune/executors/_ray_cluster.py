"""A Ray cluster: joining and leaving it, what its nodes have, and a call on each of them."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune.errors import MachineUnusable, MissingPrerequisite

_CONNECT_S = 10.0
_HEAD_S = 2.0
_MESSAGE = 600
"""Characters of Ray's own explanation."""
_KIND = "accelerator_type:"
HEAD = {"node:__internal_head__": 0.001}
"""What only the cluster's head has."""
_INIT = {"namespace": "autotune", "log_to_driver": False, "logging_level": "ERROR"}

_occupying: list[Any] = []
"""What was placed on nodes to keep anything else from there."""

Nodes = dict[str, Mapping[str, float]]
"""What each node has in all, by the node's id."""


@dataclass(frozen=True)
class Membership:
    """That this process takes part in a cluster. One that was joined by somebody else stays joined."""

    joined: bool
    session: Path | None = None
    """The folder of a cluster that was started here for this process alone."""

    def leave(self) -> None:
        """Leave the cluster; one that was started here ends, and its folder goes."""
        while _occupying:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(_occupying.pop())
        if self.joined:
            ray.shutdown()
        if self.session is not None:
            shutil.rmtree(self.session, ignore_errors=True)
            latest = self.session.parent / "session_latest"
            if latest.is_symlink() and not latest.exists():
                latest.unlink(missing_ok=True)


def join(address: str | None) -> Membership:
    """Join the cluster at the address or at RAY_ADDRESS; without either, start one here for this process alone.

    Raises MissingPrerequisite when nothing answers at the address.
    """
    if ray.is_initialized():
        return Membership(joined=False)
    wanted = address or os.environ.get("RAY_ADDRESS")
    with warnings.catch_warnings(), _own_signals():
        warnings.simplefilter("ignore")
        return _joined(wanted) if wanted else _started()


def nodes() -> Nodes:
    """The live ones."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def slots(having: Nodes, gpus: int, cpus: int = 1) -> int:
    """How many trials such nodes can run at once that each need so many GPUs and CPUs on one node."""
    found = ((int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0))) for node in having.values())
    return sum(min(cpu, gpu // gpus) if gpus else cpu for cpu, gpu in found)


def cpus(having: Nodes, gpus: int, parallel: int | Literal["auto"]) -> int:
    """CPUs that a trial asks for: one beside its GPUs. Without GPUs it computes on them: then all that the largest node has, or
    its part of them where more trials than such nodes are to run at once."""
    if gpus:
        return 1
    found = [int(node.get("CPU", 0)) for node in having.values()]
    most = max(found, default=0)
    each = 1 if parallel == "auto" else math.ceil(parallel / max(1, found.count(most)))
    return max(1, most // each)


def largest(having: Nodes) -> int:
    """GPUs of the node that has most, of those with a CPU for a trial."""
    return max((int(node.get("GPU", 0)) for node in having.values() if node.get("CPU", 0) >= 1), default=0)


def kinds(having: Nodes) -> list[str]:
    """The kinds of GPU that Ray knows of."""
    return sorted({name.removeprefix(_KIND) for node in having.values() for name in node if name.startswith(_KIND)})


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Raises MachineUnusable when the cluster is gone."""
    try:
        yield
    except Exception as error:
        remote = type(error).__module__.startswith("grpc")
        if ray.is_initialized() and not remote and not isinstance(error, (ConnectionError, ray.exceptions.RayError)):
            raise
        why = " ".join(str(getattr(error, "details", error.__str__)()).split())[:_MESSAGE]
        raise MachineUnusable(
            f"The Ray cluster does not answer any more ({why}). "
            "Continue with the same command once it does; nothing measured was lost."
        ) from error


def head_answers() -> bool:
    """Whether the cluster's head can be connected to. Ray's own calls wait for it, and end this process after a minute."""
    if is_far():
        return True
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=_HEAD_S).close()
        return True
    return False


def is_far() -> bool:
    """Whether this process reaches the cluster across ray://, without being a part of it."""
    return bool(ray.util.client.ray.is_connected())


def on_every_node(function: Callable[..., Any], *arguments: Any, timeout_s: float) -> dict[str, Any]:
    """What a function returns on each node, by the node's id, or the error that it ends with there. One that dies meanwhile, or
    does not answer within the time, is left out."""
    remote: Any = ray.remote(max_retries=0, num_cpus=0)(function)
    found: dict[str, Any] = {}
    with contextlib.suppress(ray.exceptions.RayError):
        places = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes()}
        calls = {remote.options(scheduling_strategy=place).remote(*arguments): node for node, place in places.items()}
        for call in ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)[0] if calls else ():
            try:
                found[calls[call]] = ray.get(call)
            except (ray.exceptions.RayTaskError, ray.exceptions.RaySystemError) as error:
                found[calls[call]] = error
            except ray.exceptions.RayError:
                continue
    return found


def occupy(node: str) -> None:
    """Take all that a node has, as it comes free, for as long as this process takes part: nothing else is placed there then.

    What takes it needs nothing installed there but Ray.
    """
    has = nodes().get(node, {})
    for needs in ({"num_cpus": int(has.get("CPU", 0))}, *[{"num_cpus": 0, "num_gpus": 1}] * int(has.get("GPU", 0))):
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        _occupying.append(ray.remote(scheduling_strategy=place, **needs)(threading.Event).remote())


def host(node: str) -> str:
    """A node's name, as its machine knows itself."""
    return next((str(one["NodeManagerHostname"]) for one in ray.nodes() if one["NodeID"] == node), node)


def said(error: Exception) -> str:
    """An error's kind and what it says: of a trace the last line, which has both, otherwise the first."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, (ray.exceptions.RayTaskError, ray.tune.TuneError)) or "Traceback" in str(error):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"


def _joined(address: str) -> Membership:
    _reachable(address)
    try:
        ray.init(address=address, **_INIT)
    except (ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise MissingPrerequisite(f"Cannot join the Ray cluster at {address}: {why[:_MESSAGE]}") from error
    return Membership(joined=True)


def _started() -> Membership:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    found = ray.init(address="local", include_dashboard=False, **_INIT)
    return Membership(joined=True, session=Path(found.address_info["session_dir"]))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, which a study has to hear."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reachable(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise MissingPrerequisite(f"There is no Ray cluster at {address}: {error}. Start one with: ray start --head") from error
